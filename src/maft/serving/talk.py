"""A conversation with the agents of a run in the terminal: `maft chat`."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from maft import files
from maft.errors import MaftError, UserError
from maft.records import Message
from maft.report.transcript import line, safe
from maft.samplers.base import Sampler
from maft.serving import api
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


@contextmanager
def opened(society: ServedSociety, sampler: Sampler, console: Console) -> Iterator[Engine]:
    """Load the agents, and free them at the end."""
    with console.status("Loading the agents ..."):
        engine = Engine(sampler, society.probe)
        engine.started.result()
    try:
        yield engine
    finally:
        engine.close()


class Talk:
    """What was asked and answered, and who is asked next."""

    def __init__(self, society: ServedSociety, engine: Engine, console: Console, seed: int | None) -> None:
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
        while True:
            try:
                text = self._console.input(f"[bold]{self._model}>[/bold] ").strip()
                text = text.encode(errors="replace").decode()  # bytes of another encoding
            except EOFError:
                return
            word, _, rest = text.partition(" ")
            if word in ("/quit", "/exit"):
                return
            try:
                if word.startswith("/"):
                    self._command(word, rest.strip())
                elif text:
                    self._answer(text)
            except MaftError as error:
                self._console.print(str(error), style="red", markup=False)
            except KeyboardInterrupt:
                self._console.print("Stopped.")

    def _command(self, word: str, rest: str) -> None:
        if word not in self._commands:
            raise UserError(f"there is no command {word}; there are {', '.join(self._commands)} and /quit")
        self._commands[word](rest)

    def _ask_from_now(self, model: str) -> None:
        self._society.check(model)
        self._model = model

    def _save(self, name: str) -> None:
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
        seed = api.new_seed() if self._seed is None else self._seed
        self._seed = None if self._seed is None else self._seed + 1
        asked = Message(role="user", content=text)
        question = Question(self._model, (*self._messages, asked), seed, {})
        answered = self._wait(question)
        self._show(answered)
        self._messages += [asked, Message(role="assistant", content=answered.text)]
        known = {"model": self._model, "question": text, "text": answered.text}
        self._lines.append(json.dumps(known | api.details(answered, seed, trace=True)) + "\n")

    def _wait(self, question: Question) -> Answered:
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

    def _say(self, question: Question, said: Said) -> None:
        alone = question.model in self._society.agents
        self._console.print(Text(question.model if alone else said.request.agent.name, style="bold cyan"))
        self._console.print(Padding(Text(safe(said.reply.text.strip()) or "[empty]"), (0, 0, 0, 2)))

    def _show(self, answered: Answered) -> None:
        """Print each round's answers and the vote."""
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
