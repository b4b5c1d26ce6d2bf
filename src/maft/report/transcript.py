"""A debate as a transcript: replies, answers, the vote, who learns from it and why.

Gold answers are shown here and in the report; nothing that trains imports this module.
"""

import difflib
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from itertools import count
from pathlib import Path
from string import ascii_uppercase
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from pydantic import ValidationError

from maft import files
from maft.config import CurateConfig, RunConfig, Training
from maft.config.training import EXAMPLES
from maft.errors import DataError
from maft.evaluation.votes import held_out, problems, train_grade, votes_of
from maft.files import Records
from maft.method import curate, learners
from maft.records import Debate, Example, Problem, Turn, Vote
from maft.runs import societies
from maft.runs.folder import RunFolder
from maft.tasks.base import Grade

Stage = Literal["train", "eval"]
_KINDS = {"train": "training", "eval": "held-out"}
How = Literal["title", "quiet", "right", "wrong", "kept", "dropped"]
Paint = Callable[[str, How], str]

WIDTH = 100
LONGEST = 120
"""Characters of an answer in a line; a longer one is cut there, for its reply is shown anyway."""
MOST_WORDS = 400
"""Words, or lines of programs, of two answers that are compared."""

KEPT = {
    "first": "its first answer is the label",
    "corrected": "its first answer was another, its last one is the label",
    "kept": "both its first and its last answer are the label",
    "dissenting": "its answer is not the label and becomes less likely",
}


class Fate(NamedTuple):
    """What became of one agent's response to one training question."""

    agent: str
    """Who would learn from it, such as `critic_2`."""
    kind: str | None
    """`first`, `corrected`, `kept` or `dissenting`; None if nobody learns from it."""
    why: str


class Told(NamedTuple):
    """A debate with its question, vote, and what was learned from it."""

    stage: Stage
    problem: Problem
    debate: Debate
    vote: Vote | None
    """None until all debates of the stage are done. In a held-out debate, nothing is ever dropped."""
    fates: tuple[Fate, ...]
    """Of a training question that is used, once the examples are made: generators, then critics."""
    grade: Grade
    models: Mapping[str, str] = MappingProxyType({})
    """Base model of each agent by the agent's name, where there are several."""
    dropped: str | None = None
    """Why nobody learns from it, in words."""

    def right(self, answer: str | None) -> bool | None:
        """Say whether an answer to the question is right; None where nobody knows."""
        return self.grade(self.problem, answer)


def load(folder: RunFolder, problem_id: str, iteration: int | None = None, stage: Stage | None = None) -> Told:
    """Return a question's debate; without an iteration, of the last one that has it.

    Raises:
        DataError: there is no such question or no such debate; names the questions with the nearest ids.
    """
    sides: dict[Stage, dict[str, Problem]] = {"train": {}, "eval": {}}
    if folder.problems("eval").exists():
        sides = {"train": problems(folder, "train"), "eval": problems(folder, "eval")}
    having = [side for side in sides if problem_id in sides[side]]  # ids count within a side only
    asked = [side for side in having if stage in (None, side)]
    if not asked:
        raise DataError(_no_such_question(folder, problem_id, having[0] if having else None, sides))
    numbers = range(folder.config.num_iterations, -1, -1) if iteration is None else [iteration]
    for number, side in ((number, side) for number in numbers for side in asked):
        path = folder.debates(number) if side == "train" else folder.held_out_debates(number)
        # A debate that failed and was held again is in the file twice until the stage is done.
        held = [debate for debate in _debates(path) if debate.problem_id == problem_id]
        if held:
            return tell(folder, sides[side][problem_id], held[-1], side)
    where = "any iteration" if iteration is None else f"iteration {iteration}"
    raise DataError(
        f"the {_KINDS[asked[0]]} question {problem_id!r} has not been debated in {where}. The run has iterations "
        f"{1 if asked[0] == 'train' else 0} to {folder.config.num_iterations}; it may not have reached this one yet."
    )


def ids(folder: RunFolder, stage: Stage | None = None) -> list[tuple[Stage, Problem]]:
    """Return the questions of a run, with their side."""
    sides: tuple[Stage, ...] = ("train", "eval")
    having = [side for side in sides if stage in (None, side) and folder.problems(side).exists()]
    return [(side, problem) for side in having for problem in problems(folder, side).values()]


def tell(folder: RunFolder, problem: Problem, debate: Debate, stage: Stage) -> Told:
    """Put a debate together with its vote and with what was learned from it."""
    number, by_model = debate.iteration, societies.speakers(folder.config)
    models = {agent: model for model, of in by_model.items() for agent in of} if len(by_model) > 1 else {}
    told = Told(stage, problem, debate, None, (), train_grade(folder.config), models)
    if stage == "eval":
        if not folder.evaluated(number):
            return told
        held = held_out(folder, number)
        return told._replace(vote=held.votes[problem.id], grade=held.grade)
    vote = votes_of(folder, number, [debate]).get(problem.id) if folder.votes(number).exists() else None
    dropped = None if vote is None else why_dropped(vote, folder.config.curate)
    if vote is None or dropped is not None or not folder.examples_summary(number).exists():
        return told._replace(vote=vote, dropped=dropped)
    every = (e for agent in learners(folder.config) for e in Records(folder.examples(number, agent), Example))
    examples = [example for example in every if example.problem_id == debate.problem_id]
    return told._replace(vote=vote, fates=fates(debate, vote, examples, folder.config))


def fates(debate: Debate, vote: Vote, examples: Sequence[Example], config: RunConfig) -> tuple[Fate, ...]:
    """Say for each agent that is finetuned whether it learns from this debate, and why.

    The debate is on a training question that is used; `examples` are all that were made from it.
    """
    counts = Counter((example.agent, example.kind) for example in examples)
    responses = [(f"generator_{turn.agent}", turn) for turn in debate.round(1)]
    responses += [(f"critic_{turn.agent}", turn) for turn in debate.latest if turn.round > 1]
    fates: list[Fate] = []
    label, keep = curate.accepted(debate, vote, config.curate), config.curate.keep
    for agent, turn in responses:
        learned = {kind: times for (who, kind), times in counts.items() if who == agent}
        for kind, times in learned.items():
            why = KEPT[kind] if keep == "agreeing" else f"curate.keep = {keep}"
            fates.append(Fate(agent, kind, why + (f"; {times} times" if times > 1 else "")))
        if learned:
            continue
        if config.society.one_model or agent in learners(config):
            training = config.train.of(agent.partition("_")[0], debate.iteration)
            fates.append(Fate(agent, None, _why_not(turn, label, config.curate, training)))
    return tuple(fates)


def _why_not(turn: Turn, label: frozenset[str | None], settings: CurateConfig, training: Training) -> str:
    if turn.answer is None and turn.answer not in label:
        return "its answer could not be read"
    if EXAMPLES.get(training.objective) == "pairs":
        return "its answers to this question make no pair"
    if turn.answer not in label:
        return "its answer is not the label"
    fits = "agrees, but was" if settings.keep == "agreeing" else "it was"
    if turn.cut:
        return f"{fits} cut at the token limit"
    reasons = {
        "to mix corrected and kept dialogues as asked": turn.round > 1,
        "for curate.max_examples": settings.max_examples is not None,
        "for curate.questions": settings.questions != "all",
        "for curate.weight_by": settings.weight_by != "none",
    }
    return f"{fits} left out {' or '.join(reason for reason, holds in reasons.items() if holds)}"


def why_dropped(vote: Vote, settings: CurateConfig) -> str | None:
    """Say why nobody learns from a debate; None if agents may."""
    reason = curate.dropped_for(vote, settings)
    if reason is None:
        return None
    if reason == "failed":
        return "the debate failed"
    if reason == "no_answer":
        return "nobody's answer could be read, so there is no label"
    if reason == "tied" or vote.label is None:
        return "several answers have the most votes, so there is no label"
    return f"only {vote.counts[0][1]} of {vote.num_ballots} answers agree with the label"


def who(told: Told) -> str:
    """Say which debate it is, such as `held-out question, iteration 2, agents finetuned twice`."""
    finetuned = told.debate.iteration - (told.stage == "train")
    trained = {0: "untrained agents", 1: "agents finetuned once", 2: "agents finetuned twice"}
    agents = trained.get(finetuned, f"agents finetuned {finetuned} times")
    return f"{_KINDS[told.stage]} question, iteration {told.debate.iteration}, {agents}"


def title_of_round(debate: Debate, number: int) -> str:
    """Say what happens in a round."""
    if number == 1:
        return "Round 1: each generator answers alone"
    turns, num_agents = debate.round(number), len(debate.round(1))
    if num_agents == 1:
        return f"Round {number}: the critic checks its own answer"
    everyone = len(turns) == num_agents
    who = "each critic has" if everyone else f"only {', '.join(turn.call.agent for turn in turns)}, having"
    shown = "a summary of the others' answers" if turns[0].summary else "the others' answers"
    return f"Round {number}: {who} read {shown}"


def safe(text: str) -> str:
    r"""Return text of a model with control characters spelt out, so that it cannot steer the terminal.

    >>> safe("a\x1b[2Jb\u202e")
    'a\\x1b[2Jb\\u202e'
    """
    return "".join(c if c in "\n\t" or c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def line(text: str) -> str:
    r"""Return text of a model as one safe line.

    >>> line("7\n\n8")
    '7 8'
    """
    return safe(" ".join(text.split()))


def short(answer: str) -> str:
    r"""Return an answer as one safe line of at most 120 characters.

    >>> short("7\n8"), short("x" * 130)[-20:]
    ('7 8', 'xx… (130 characters)')
    """
    text = line(answer)
    return text if len(text) <= LONGEST else f"{text[:100]}… ({len(text)} characters)"


def difference(answer: str, label: str | None) -> str | None:
    """Return what an answer has in place of the label's words; None where the two have too little in common.

    >>> difference('{"city": "Rome", "number": 14}', '{"city": "Rome", "number": 41}')
    '{"city": "Rome", "number": [-41}-] {+14}+}'
    """
    marks = {0: "{}", -1: "[-{}-]", 1: "{{+{}+}}"}
    pieces = compared(answer.split(), (label or "").split())
    return line(" ".join(marks[side].format(" ".join(units)) for side, units in pieces)) if pieces else None


def compared(answer: Sequence[str], label: Sequence[str]) -> list[tuple[int, list[str]]]:
    """Return the words or lines that two answers share (0), those of the label only (-1), and of the answer only (1).

    Nothing, where they have too little in common.
    """
    theirs, ours = list(label[:MOST_WORDS]), list(answer[:MOST_WORDS])
    matcher = difflib.SequenceMatcher(None, theirs, ours, autojunk=False)
    if min(len(theirs), len(ours)) < 2 or matcher.quick_ratio() < 0.5 or matcher.ratio() < 0.5:
        return []
    pieces = []
    for what, i, j, m, n in matcher.get_opcodes():
        pieces += [(0, theirs[i:j])] if what == "equal" else [(-1, theirs[i:j]), (1, ours[m:n])]
    return [(side, units) for side, units in pieces if units]


def labels(debate: Debate, vote: Vote | None) -> dict[str, str]:
    """Return the names of the programs of a debate, such as `program A`, by class; equal letters behave alike.

    Answers that are no programs have no name.
    """
    if debate.code is None or vote is None or vote.partition is None:
        return {}
    classes = vote.classes(debate)
    counted = [classes[answer] for answer, _ in vote.counts]
    order = list(dict.fromkeys([*counted, *classes.values()]))
    letters = dict(zip((number for number in order if number is not None), _letters(), strict=False))
    return {
        answer: "a program without an answer" if number is None else f"program {letters[number]}"
        for answer, number in classes.items()
        if answer is not None
    }


def _letters() -> Iterator[str]:
    """Yield A to Z, then A1, B1 and so on."""
    return (f"{letter}{number or ''}" for number in count() for letter in ascii_uppercase)


def plain(text: str, how: How) -> str:
    """Paint nothing."""
    return text


def render(told: Told, paint: Paint = plain) -> str:
    """Return a transcript; `paint` colours pieces of text by their meaning."""
    names = labels(told.debate, told.vote)

    def shown(answer: str) -> str:
        return names.get(answer) or short(answer)

    functions: dict[str, Any] = {"title_of_round": title_of_round, "difference": difference}
    functions |= {"shown": shown, "names": names}
    return str(_template(paint).render(functions, told=told, who=who(told), width=WIDTH)).rstrip("\n")


@cache
def _template(paint: Paint) -> Any:
    def wrapped(text: str, indent: str, how: How | None = None) -> str:
        rows = [part for row in text.split("\n") for part in textwrap.wrap(row, WIDTH - len(indent)) or [""]]
        lines = [f"{indent}{row}".rstrip() for row in rows]
        return "\n".join(paint(text, how) if how else text for text in lines)

    return files.template("report", "transcript.txt.j2", safe_text=safe, line=line, paint=paint, wrapped=wrapped)


def _no_such_question(
    folder: RunFolder, problem_id: str, side: Stage | None, sides: Mapping[Stage, Mapping[str, Problem]]
) -> str:
    if side is not None:
        return f"{problem_id!r} is a {_KINDS[side]} question. Leave --stage out, or give --stage {side}."
    known = [name for problems in sides.values() for name in problems]
    if not known:
        return f"{folder.path} has no questions yet."
    near = difflib.get_close_matches(problem_id, known, n=3, cutoff=0.5)
    ids = ", ".join(map(repr, near or known[:3]))
    hint = f"The nearest ids are {ids}." if near else f"Some of its ids: {ids}."
    return (
        f"{folder.path} has no question {problem_id!r}. {hint} It has {len(sides['train'])} training and "
        f"{len(sides['eval'])} held-out questions; `maft show {folder.path}` lists them."
    )


def _debates(path: Path) -> list[Debate]:
    """Return the debates of a file that may still be growing: a last line without its end is left out."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
    try:
        return [Debate.from_json(text) for text in lines]
    except ValidationError:
        return files.read_records(path, Debate)  # says which line is wrong, and what to do
