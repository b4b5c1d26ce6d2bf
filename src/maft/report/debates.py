"""The debates of a run, packed for the page's browser: every text once, everything else as numbers that point to it.

All text is made safe here (control characters are spelt out), and the page shows it as text only.
"""

import base64
import json
import zlib
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

from maft.config import RunConfig
from maft.evaluation.methods import names
from maft.evaluation.votes import problems as problems_of
from maft.evaluation.votes import train_grade, votes_of
from maft.files import Records
from maft.method import learners
from maft.method.vote import tally_of
from maft.records import Call, Debate, Example, Problem, Score, Turn, Vote
from maft.report import transcript
from maft.report.data import Evaluation
from maft.report.transcript import Fate
from maft.runs.folder import RunFolder
from maft.tasks.base import Grade

MAX_CHARACTERS = 4_000
"""Characters of a reply on the page."""
MAX_TOTAL = 24_000_000
"""Characters of replies on the page; compressed, a fifth of that or less."""
MAX_DEBATES = 1_000
"""Debates of an iteration on the page; of more, this many at equal distances in the order of the questions."""
PLAIN = 1_500_000
"""Characters of packed debates above which they are compressed."""

KINDS = {
    "corrected": "the vote over first answers is wrong, the final answer right",
    "spoiled": "the vote over first answers is right, the final answer wrong",
    "wrong": "the final answer is wrong",
    "split": "not all agents agree at the end",
    "unparsable": "an answer could not be read",
    "not used": "nobody learns from it",
    "failed": "a call failed, and the debate ended",
}
"""Filters of the browser; a debate may pass several."""


class Shown(NamedTuple):
    """A debate with its vote, the vote over first answers, and what each agent learns from it."""

    debate: Debate
    vote: Vote | None
    first: str | None
    """The vote over first answers."""
    fates: tuple[Fate, ...] = ()
    dropped: str | None = None
    """Why nobody learns from it, in words."""


class Set(NamedTuple):
    """The debates of one iteration on one side of the split."""

    key: str
    title: str
    is_training: bool
    grade: Grade
    problems: Mapping[str, Problem]
    debates: Sequence[Shown]

    @property
    def size(self) -> int:
        """Return about the number of characters that it adds to the page."""
        calls = (call for shown in self.debates for call in shown.debate.calls(samples=False))
        return sum(min(len(call.reply.text), MAX_CHARACTERS) for call in calls)


class Packed(NamedTuple):
    """What the page holds of the debates."""

    text: str
    """JSON, or deflated and in base64; neither can end its HTML element."""
    is_deflated: bool
    left_out: tuple[str, ...]
    """Titles of sets that would make the page too large."""


def pack(folder: RunFolder, evaluations: Sequence[Evaluation]) -> Packed | None:
    """Pack as many sets as the page has room for: held-out questions first; None if there is no debate yet."""
    sets = [*_held_out(folder, evaluations), *_training(folder)]
    chosen: list[Set] = []
    room = MAX_TOTAL
    for one in sets:
        if not chosen or one.size <= room:
            chosen.append(one)
            room -= one.size
    if not chosen:
        return None
    left_out = tuple(one.title for one in sets if one not in chosen)
    text = json.dumps(_tree(chosen), ensure_ascii=False, separators=(",", ":"))
    if len(text) <= PLAIN:
        return Packed(text.replace("<", "\\u003c"), False, left_out)
    return Packed(base64.b64encode(zlib.compress(text.encode(), 9)).decode(), True, left_out)


def kinds(shown: Shown, problem: Problem, grade: Grade) -> Iterator[str]:
    """Yield the filters that a debate passes, see `KINDS`."""
    debate, vote = shown.debate, shown.vote
    if debate.error is not None:
        yield "failed"
        return
    label = vote.label if vote else None
    if vote is not None and grade(problem, None) is not None:
        before, after = grade(problem, shown.first), grade(problem, label)
        if debate.turns[-1].round > 1 and before != after:
            yield "corrected" if after else "spoiled"
        if not after:
            yield "wrong"
    if vote is not None:
        classes = vote.classes(debate)
        last = {classes[turn.answer] for turn in debate.latest}
        if len(last) != 1 or None in last:
            yield "split"
    if any(turn.answer is None for turn in debate.turns):
        yield "unparsable"
    if shown.dropped is not None:
        yield "not used"


def _held_out(folder: RunFolder, evaluations: Sequence[Evaluation]) -> Iterator[Set]:
    """Yield the last evaluation first, then the untrained society's, then the others."""
    for number, every, held in (*evaluations[:0:-1][:1], *evaluations[:1], *evaluations[-2:0:-1]):
        majority = names(number, folder.config.debate.num_agents)[1]
        first = {score.problem_id: score.answers[0] for score in Records(folder.scores(number, majority), Score)}
        problems, of_all = _some(every)
        debates = [
            Shown(debate, held.votes[debate.problem_id], first[debate.problem_id])
            for debate in held.debates
            if debate.problem_id in problems
        ]
        title = (f"Held-out, iteration {number}" if number else "Held-out, untrained") + of_all
        yield Set(f"eval-{number}", title, False, held.grade, problems, debates)


def _some(problems: Mapping[str, Problem]) -> tuple[Mapping[str, Problem], str]:
    """Return the questions whose debates the page holds, and what its title says of the others."""
    step = -(-len(problems) // MAX_DEBATES)
    some = dict(list(problems.items())[:: max(1, step)])
    return some, f" ({len(some):,} of {len(problems):,} debates)" if len(some) < len(problems) else ""


def _training(folder: RunFolder) -> Iterator[Set]:
    """Yield the debates on training questions of every vote that is finished, the last one first."""
    numbers = [n for n in range(folder.config.num_iterations, 0, -1) if folder.votes(n).exists()]
    problems, of_all = _some(problems_of(folder, "train") if numbers else {})
    grade = train_grade(folder.config)
    for number in numbers:
        held = [debate for debate in Records(folder.debates(number), Debate) if debate.problem_id in problems]
        votes, examples = votes_of(folder, number, held), _examples(folder, number, problems)
        debates = [_trained(debate, votes[debate.problem_id], examples, folder.config) for debate in held]
        yield Set(f"train-{number}", f"Training, iteration {number}{of_all}", True, grade, problems, debates)


def _examples(folder: RunFolder, number: int, problems: Collection[str]) -> Mapping[str, Sequence[Example]] | None:
    """Return the examples of an iteration by question; None before they are made."""
    if not folder.examples_summary(number).exists():
        return None
    by_question: dict[str, list[Example]] = defaultdict(list)
    for agent in learners(folder.config):
        for example in Records(folder.examples(number, agent), Example):
            if example.problem_id in problems:
                by_question[example.problem_id].append(example)
    return by_question


def _trained(debate: Debate, vote: Vote, examples: Mapping[str, Sequence[Example]] | None, config: RunConfig) -> Shown:
    first = tally_of(debate, vote.partition or (), debate.round(1), config.vote, config.seed).winner
    dropped = transcript.why_dropped(vote, config.curate)
    fates: tuple[Fate, ...] = ()
    if examples is not None and dropped is None:
        fates = transcript.fates(debate, vote, examples.get(debate.problem_id, ()), config)
    return Shown(debate, vote, first, fates, dropped)


class _Texts:
    """Texts by number; the same text has the same number."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def add(self, text: str | None) -> int:
        """Return the number of a text; -1 is none."""
        return -1 if text is None else self.numbers.setdefault(text, len(self.numbers))


def _tree(sets: Sequence[Set]) -> dict[str, Any]:
    """Return what the page reads; see `debates.js`, which says what the numbers are."""
    texts = _Texts()
    problems = {(one.is_training, problem.id): problem for one in sets for problem in one.problems.values()}
    places = {key: place for place, key in enumerate(problems)}
    packed: dict[str, dict[str, Any]] = {one.key: {} for one in sets}
    by_id = [(one, {shown.debate.problem_id: shown for shown in one.debates}) for one in sets]
    # Question by question: debates on one question are alike, and compress well next to each other.
    for (is_training, name), problem in problems.items():
        for one, shown in by_id:
            if one.is_training == is_training and name in shown:
                packed[one.key][name] = _debate(shown[name], problem, places[is_training, name], one.grade, texts)
    return {
        "kinds": list(KINDS.items()),
        "questions": [
            [transcript.line(p.id), texts.add(_cut(p.question)), texts.add(_gold(p))] for p in problems.values()
        ],
        "sets": [
            {
                "key": one.key,
                "title": one.title,
                "training": one.is_training,
                "debates": [packed[one.key][shown.debate.problem_id] for shown in one.debates],
            }
            for one in sets
        ],
        "texts": list(texts.numbers),
    }


def _debate(shown: Shown, problem: Problem, place: int, grade: Grade, texts: _Texts) -> list[Any]:
    debate, vote, latest = shown.debate, shown.vote, shown.debate.latest
    fates: Mapping[str, list[Fate]] = {a: list(of) for a, of in groupby(shown.fates, lambda fate: fate.agent)}
    passed, named = set(kinds(shown, problem, grade)), transcript.labels(debate, vote)
    agreeing = vote.agreeing(debate) if vote else frozenset()

    def brief(answer: str | None) -> str | None:
        return None if answer is None else named.get(answer) or _answer(answer)

    def graded(answer: str | None) -> tuple[int, int]:
        """Return the number of an answer's text, and whether it is right: -1 if that is not known."""
        right = grade(problem, answer)
        return texts.add(brief(answer)), -1 if right is None else int(right)

    def reply(call: Call) -> tuple[int, int]:
        """Return the number of a reply's text, and how many characters are left out: -1 if the model was stopped."""
        text = call.reply.text.strip()
        left_out = max(0, len(text) - MAX_CHARACTERS)
        return texts.add(_cut(text)), left_out or -int(call.reply.finish_reason == "length")

    def pack_turn(turn: Turn) -> list[Any]:
        learner = "generator" if turn.round == 1 else "critic" if turn in latest else ""
        of_agent = fates.get(f"{learner}_{turn.agent}", [])
        learned = any(fate.kind for fate in of_agent)
        why = "; ".join(fate.why for fate in of_agent)
        return [
            texts.add(turn.call.agent),
            *graded(turn.answer),
            *reply(turn.call),
            *((-1, 0) if turn.summary is None else reply(turn.summary)),
            texts.add(f"{'Learns from it' if learned else 'Not used'}: {why}." if of_agent else None),
            int(learned),
            [] if vote is None or turn.answer in agreeing else _difference(turn.answer, vote.label, debate),
        ]

    return [
        place,
        [number for number, kind in enumerate(KINDS) if kind in passed],
        [
            [texts.add(transcript.title_of_round(debate, number)), list(map(pack_turn, debate.round(number)))]
            for number in sorted({turn.round for turn in debate.turns})
        ],
        vote
        and [
            [[texts.add(brief(answer)), votes] for answer, votes in vote.counts],
            vote.abstained,
            *graded(vote.label),
            int(vote.tied and vote.label is not None),
            texts.add(shown.dropped),
        ],
        [*graded(shown.first)],
        [texts.add(brief(turn.answer)) for turn in debate.samples],
        texts.add(None if debate.error is None else transcript.line(debate.error[:500])),
    ]


def _difference(answer: str | None, label: str | None, debate: Debate) -> list[tuple[int, str]]:
    """Return the pieces of an answer and of the one that won, in lines of programs or in words."""
    if answer is None or label is None:
        return []
    sign = " " if debate.code is None else "\n"
    split = str.split if debate.code is None else str.splitlines
    pieces = transcript.compared(split(answer), split(label))
    return [(side, transcript.safe(sign.join(units)) + sign) for side, units in pieces]


def _cut(text: str) -> str:
    return transcript.safe(text[:MAX_CHARACTERS])


def _gold(problem: Problem) -> str | None:
    """Return the known answer; of a question for a program all of it, as a block of code."""
    if problem.code is None or problem.gold is None:
        return _answer(problem.gold)
    return f"```python\n{_cut(problem.gold)}\n```"


def _answer(answer: str | None) -> str | None:
    if answer is None:
        return None
    text = transcript.line(answer[:160])
    return text if len(text) <= 80 else f"{text[:79]}…"
