"""`maft chat`: talk to the agents of a run in the terminal."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

import click

from maft.cli import stage

if TYPE_CHECKING:
    from rich.console import Console

    from maft.samplers.base import Sampler
    from maft.serving.engine import Engine, Said
    from maft.serving.society import Answered, Question, ServedSociety

HELP = """/debate          the whole society debates and votes (as at the start)
/vote [K]        a vote over K first answers
/agent NAME      one agent alone, such as generator_0 or base
/new             start a new conversation
/save FILE       write the conversation, with its debates, as JSONL; no other file is overwritten
/help            show this
/quit            leave (or Ctrl-D)
Everything else is a question. Ctrl-C stops an answer."""


@click.command(epilog="Examples:\n\n  maft chat runs/arithmetic_cpu\n\n  maft chat runs/arithmetic_cpu --seed 0")
@click.argument("folder", metavar="RUN", type=click.Path(path_type=Path))
@stage.overrides
@click.option(
    "--iteration", type=click.IntRange(min=0), help="Iteration whose agents answer (default: the newest; 0: untrained)."
)
@click.option("--seed", type=int, help="Seed of the first question, then counted up (default: random).")
def chat(folder: Path, overrides: tuple[str, ...], *, iteration: int | None, seed: int | None) -> None:
    """Ask the agents of the run in folder RUN: shows each reply and the vote, and takes follow-up questions.

    KEY.SUB=VALUE, such as engine.sampler=transformers, applies to this chat only.
    """
    from rich.console import Console

    from maft import engines
    from maft.serving.society import ServedSociety

    stage.log_to_stderr(quiet=True)
    console = Console(highlight=False)
    society = ServedSociety(stage.run_to_serve(folder, overrides), iteration)
    with opened(society, engines.make_sampler(society.config), console) as engine:
        console.print(f"Iteration {society.iteration} of {folder}. /help lists the commands.")
        Talk(society, engine, console, seed).run()


@contextmanager
def opened(society: "ServedSociety", sampler: "Sampler", console: "Console") -> Iterator["Engine"]:
    """Load the agents, and free them at the end."""
    from maft.serving.engine import Engine

    with console.status("Loading the agents ..."):
        engine = Engine(sampler, society.probe)
        engine.started.result()
    try:
        yield engine
    finally:
        engine.close()


class Talk:
    """What was asked and answered, and who is asked next."""

    def __init__(self, society: "ServedSociety", engine: "Engine", console: "Console", seed: int | None) -> None:
        """Begin with a debate."""
        from maft.records import Message

        self._society, self._engine, self._console, self._seed = society, engine, console, seed
        self._model = "debate"
        self._messages: list[Message] = []
        self._lines: list[str] = []
        self._saved: set[Path] = set()
        self._commands: dict[str, Callable[[str], None]] = {
            "/debate": lambda _: self._ask_from_now("debate"),
            "/vote": lambda count: self._ask_from_now(f"vote@{count}" if count else "vote"),
            "/agent": self._ask_from_now,
            "/new": lambda _: self._messages.clear(),
            "/save": self._save,
            "/help": lambda _: console.print(HELP, markup=False),
        }

    def run(self) -> None:
        """Read lines until the end."""
        from maft.errors import MaftError

        while True:
            try:
                line = self._console.input(f"[bold]{self._model}>[/bold] ").strip()
                line = line.encode(errors="replace").decode()  # bytes of another encoding
            except EOFError:
                return
            word, _, rest = line.partition(" ")
            if word in ("/quit", "/exit"):
                return
            try:
                if word.startswith("/"):
                    self._command(word, rest.strip())
                elif line:
                    self._answer(line)
            except MaftError as error:
                self._console.print(str(error), style="red", markup=False)
            except KeyboardInterrupt:
                self._console.print("Stopped.")

    def _command(self, word: str, rest: str) -> None:
        from maft.errors import UserError

        if word not in self._commands:
            raise UserError(f"there is no command {word}; there are {', '.join(self._commands)} and /quit")
        self._commands[word](rest)

    def _ask_from_now(self, model: str) -> None:
        self._society.check(model)
        self._model = model

    def _save(self, name: str) -> None:
        from maft import files
        from maft.errors import UserError

        if not name:
            raise UserError("/save needs the name of a file")
        path = Path(name).expanduser().absolute()
        try:
            if path.is_file() and path not in self._saved:
                raise UserError(f"{name} exists, and is not of this talk. Choose another name.")
            files.write_text(path, "".join(self._lines))
        except OSError as error:
            raise UserError(f"{name}: {error.strerror}") from None
        self._saved.add(path)
        self._console.print(f"{len(self._lines)} answers in {name}", markup=False)

    def _answer(self, text: str) -> None:
        """Ask a question, show what is said as it comes, and remember it."""
        from maft.records import Message
        from maft.serving import api
        from maft.serving.society import Question

        seed = api.new_seed() if self._seed is None else self._seed
        self._seed = None if self._seed is None else self._seed + 1
        asked = Message(role="user", content=text)
        question = Question(self._model, (*self._messages, asked), seed, {})
        answered = self._wait(question)
        self._show(answered)
        self._messages += [asked, Message(role="assistant", content=answered.text)]
        known = {"model": self._model, "question": text, "text": answered.text}
        self._lines.append(json.dumps(known | api.details(answered, seed, trace=True)) + "\n")

    def _wait(self, question: "Question") -> "Answered":
        """Return the answer; an error or Ctrl-C lets go of it."""
        news: SimpleQueue[Said] = SimpleQueue()
        ticket = self._engine.submit(self._society.dialogue(question), news.put)
        try:
            with self._console.status(f"{question.model} ..."):
                while not (ticket.result.done() and news.empty()):
                    try:
                        self._say(question, news.get(timeout=0.1))
                    except Empty:
                        continue
                return self._society.answered(question, ticket.result.result())
        except BaseException:
            self._engine.leave(ticket)
            raise

    def _say(self, question: "Question", said: "Said") -> None:
        from rich.padding import Padding
        from rich.text import Text

        from maft.report.transcript import safe

        alone = question.model in self._society.agents
        self._console.print(Text(question.model if alone else said.request.agent.name, style="bold cyan"))
        self._console.print(Padding(Text(safe(said.reply.text.strip()) or "[empty]"), (0, 0, 0, 2)))

    def _show(self, answered: "Answered") -> None:
        """Print each round's answers and the vote."""
        from rich.text import Text

        from maft.report.transcript import line

        debate, vote = answered.debate, answered.vote
        tokens = answered.prompt_tokens + answered.completion_tokens
        if debate is not None and vote is not None:
            winners = vote.agreeing(debate)
            for number in sorted({turn.round for turn in debate.all_turns}):
                row = Text(f"Round {number}: ")
                turns: list[Any] = [turn for turn in debate.all_turns if turn.round == number]
                for place, turn in enumerate(turns):
                    row.append(", " if place else "").append(f"{turn.call.agent} ", style="dim")
                    answer = "no answer read" if turn.answer is None else line(turn.answer)
                    row.append(answer, style="green" if turn.answer in winners else "")
                self._console.print(row)
            counts = ", ".join(f"{line(answer)} x {count}" for answer, count in vote.counts) or "no votes"
            label = "no answer" if vote.label is None else line(vote.label)
            tie = ", drawn among equals" if vote.tied and vote.label is not None else ""
            self._console.print(Text(f"Vote: {label}{tie} ({counts})", style="bold green"))
        self._console.print(Text(f"{answered.calls} calls, {tokens} tokens", style="dim"))
