"""A few debates of a run that are worth reading, laid out for the page."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from maft import store, tasks, transcript
from maft.records import Call, Debate, Problem, Turn, Vote
from maft.report.data import labels
from maft.store import RunFolder
from maft.tasks.base import Grade
from maft.transcript import Fate, Told

MAX_CHARACTERS = 1_500
"""How much of one reply the page shows."""


class Text(NamedTuple):
    """What a model wrote, safe to show and not too long."""

    text: str
    num_left_out: int
    """Characters that are not shown."""
    at_limit: bool
    """Whether the model was stopped at the token limit."""


class Said(NamedTuple):
    """A turn as the page shows it."""

    agent: str
    answer: str | None
    right: bool | None
    text: Text
    summary: Text | None
    """What the agent had read."""
    fate: Fate | None
    """Whether it became an example; None where nobody decided on it."""


class Round(NamedTuple):
    """The turns of one round."""

    title: str
    turns: tuple[Said, ...]


class Shown(NamedTuple):
    """A debate as the page shows it."""

    why: str
    """What makes it worth reading."""
    told: Told
    rounds: tuple[Round, ...]
    answer_right: bool | None
    not_used: str | None
    """Why nobody learns from a training debate."""


def held_out(folder: RunFolder) -> list[Shown]:
    """Return one debate of each kind from the last evaluation that is finished."""
    for number in range(folder.config.num_iterations, -1, -1):
        home = folder.evaluation(number)
        if (home / "summary.json").exists():
            problems = {p.id: p for p in store.read_records(folder.problems("eval"), Problem)}
            debates = store.read_records(home / "debates.jsonl", Debate)
            picked = _pick(debates, problems, tasks.make(folder.config.task).grade)
            return [_shown(why, transcript.tell(folder, problems[d.problem_id], d, "eval")) for why, d in picked]
    return []


def training(folder: RunFolder) -> list[Shown]:
    """Return a debate that some agents learn from and others do not, and one that nobody learns from."""
    number = max((found.quality.iteration for found in labels(folder)), default=0)
    if number == 0:
        return []
    problems = {p.id: p for p in store.read_records(folder.problems("train"), Problem)}
    votes = {vote.problem_id: vote for vote in store.read_records(folder.votes(number), Vote)}
    debates = store.read_records(folder.debates(number), Debate)

    def first(which: Callable[[Vote], bool]) -> Debate | None:
        return next((debate for debate in debates if which(votes[debate.problem_id])), None)

    picked = {
        "some learn from it": first(lambda vote: vote.dropped is None and vote.counts[0][1] < vote.num_ballots)
        or first(lambda vote: vote.dropped is None),
        "nobody learns from it": first(lambda vote: vote.dropped == "low_agreement")
        or first(lambda vote: vote.dropped is not None),
    }
    return [
        _shown(why, transcript.tell(folder, problems[debate.problem_id], debate, "train"))
        for why, debate in picked.items()
        if debate is not None
    ]


def _pick(debates: Sequence[Debate], problems: dict[str, Problem], grade: Grade) -> list[tuple[str, Debate]]:
    found: dict[str, Debate] = {}
    for debate in debates:
        for kind in _kinds(debate, problems[debate.problem_id], grade):
            found.setdefault(kind, debate)
    return [(kind, found[kind]) for kind in KINDS if kind in found]


KINDS = (
    "corrected by the critics",
    "spoiled by the critics",
    "right from the start",
    "no two agree at the end",
    "an answer could not be read",
    "the debate failed",
)


def _kinds(debate: Debate, problem: Problem, grade: Grade) -> Iterator[str]:
    """Yield what can be said of a debate; corrected and spoiled go by more than half of the agents."""
    if debate.error is not None:
        yield KINDS[5]
        return
    first, last = debate.round(1), debate.round(-1)
    if grade(problem, None) is not None:
        before, after = (sum(grade(problem, turn.answer) is True for turn in turns) for turns in (first, last))
        if 2 * before < len(first) < 2 * after:
            yield KINDS[0]
        if 2 * after < len(first) < 2 * before:
            yield KINDS[1]
        if before == after == len(first):
            yield KINDS[2]
    answers = [turn.answer for turn in last]
    if None in answers:
        yield KINDS[4]
    elif len(set(answers)) == len(answers) > 1:
        yield KINDS[3]


def _shown(why: str, told: Told) -> Shown:
    debate = told.debate
    fates = {fate.agent: fate for fate in told.fates}
    numbers = sorted({turn.round for turn in debate.turns})
    return Shown(
        why=why,
        told=told,
        rounds=tuple(
            Round(
                transcript.title_of_round(told, number),
                tuple(_said(turn, told, fates, number == numbers[-1]) for turn in debate.round(number)),
            )
            for number in numbers
        ),
        answer_right=told.right(told.vote.label) if told.vote else None,
        not_used=transcript.why_dropped(told.vote) if told.vote and told.vote.dropped else None,
    )


def _said(turn: Turn, told: Told, fates: dict[str, Fate], is_last: bool) -> Said:
    learner = f"generator_{turn.agent}" if turn.round == 1 else f"critic_{turn.agent}" if is_last else ""
    return Said(
        agent=turn.call.agent,
        answer=None if turn.answer is None else _cut(turn.answer, 80),
        right=told.right(turn.answer),
        text=_text(turn.call),
        summary=None if turn.summary is None else _text(turn.summary),
        fate=fates.get(learner),
    )


def _text(call: Call) -> Text:
    text = call.reply.text.strip()
    shown = transcript.safe(text[:MAX_CHARACTERS])
    return Text(shown, max(0, len(text) - MAX_CHARACTERS), call.reply.finish_reason == "length")


def _cut(text: str, length: int) -> str:
    text = transcript.line(text[: 2 * length])
    return text if len(text) <= length else f"{text[: length - 1]}…"
