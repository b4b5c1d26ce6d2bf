"""What stored debates say without asking anybody: ceilings, and what other protocols and votes would have answered.

pass@k and the vote of any k are means over all ways to draw k of a question's first answers, so that no draw favours
a k (Chen et al., arXiv 2107.03374, for pass@k). A perfect critic picks the right answer wherever an agent gave it: its
ceiling is pass@N. Other protocols are replayed where every turn that they need is there: what `contested` and
`dissenters` would have asked, a `debate` of two rounds has asked already.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from math import comb
from typing import Literal, NamedTuple

from maft import tasks
from maft.config import RunConfig, VoteConfig
from maft.evaluation.methods import tokens
from maft.evaluation.metrics import interval
from maft.evaluation.paired import Difference, accuracy_over, difference
from maft.evaluation.votes import graded, held_out, train_grade, votes_of
from maft.files import Records
from maft.method import protocol_of
from maft.method.debate import largest, unanimous
from maft.method.vote import tally_of
from maft.records import Debate, GradedVote, Problem, Record, Turn
from maft.runs.folder import RunFolder

Side = Literal["train", "eval"]
ROOM = 0.05
"""pass@k minus the vote of k below which a task is closed for critics: the best critic there could be gains less."""
CURVE = (*range(1, 13), 16, 24, 36, 48)
"""The k of the curves, as far as there are first answers."""


class Share(Record):
    """A mean over questions, with its 95 % interval."""

    mean: float
    low: float
    high: float


class Ceiling(Record):
    """What k first answers can give."""

    k: int
    vote: Share
    """Right by the vote over k answers, ties drawn evenly."""
    passed: Share
    """Right if one of the k answers is."""


class Rule(Record):
    """What a protocol or a way of voting would have answered."""

    name: str
    right: Share
    tokens: float
    """Prompt and generated tokens, in those of the N first answers."""
    gain: Difference | None
    """Minus the vote over the N first answers, on the same questions; None for that vote."""


class Replayed(Record):
    """The debates of one iteration on one side of the split."""

    side: Side
    iteration: int
    """As in the run folder: training debates of iteration l are held by agents finetuned l - 1 times."""
    n: int
    """Questions whose answer is known."""
    first_answers: int
    """First answers to each question."""
    single: Share
    oracle: Share
    """Right if one of the N agents' first answers is: a perfect critic."""
    curve: tuple[Ceiling, ...]
    unanimous: Share
    """Questions on which all first answers of the debate agree."""
    unanimous_right: Share | None
    """How often unanimity is right; None where there is none."""
    room: Difference
    """pass@k minus the vote of k, of all first answers."""
    rules: tuple[Rule, ...]

    @property
    def closed(self) -> bool:
        """Say whether even a perfect critic would gain less than `ROOM`, by the whole interval."""
        return self.room.high < ROOM


class _Question(NamedTuple):
    """What is kept of one debate."""

    id: str
    right: tuple[int, ...]
    """Sizes of the classes of first answers that are right."""
    wrong: tuple[int, ...]
    unread: int
    oracle: bool
    unanimous: bool
    vote: bool
    answers: dict[str, tuple[bool, int]]
    """Whether each rule is right, and its tokens."""

    @property
    def first(self) -> int:
        return sum(self.right) + sum(self.wrong) + self.unread


def replay(folder: RunFolder) -> list[Replayed]:
    """Replay every vote and evaluation that is finished: training debates, then held-out ones, by iteration.

    Sides on which no answer is known are left out.
    """
    numbers = range(folder.config.num_iterations + 1)
    made = [
        *(of_debates(_trained(folder, n), folder.config, "train", n) for n in numbers if folder.votes(n).exists()),
        *(of_debates(_held_out(folder, n), folder.config, "eval", n) for n in numbers if folder.evaluated(n)),
    ]
    return [one for one in made if one is not None]


def of_debates(
    debates: Iterable[tuple[Debate, GradedVote]], config: RunConfig, side: Side, iteration: int
) -> Replayed | None:
    """Replay debates with their votes; None if no answer is known. A debate that failed is wrong by every rule."""
    questions = [_question(debate, vote, config) for debate, vote in debates if vote.grades is not None]
    most = max((question.first for question in questions), default=0)
    if not most:
        return None
    ks = _ks(most)
    votes = {k: [_vote_at(question, k) for question in questions] for k in ks}
    passed = {k: [_pass_at(question, k) for question in questions] for k in ks}
    agreed = [question.vote for question in questions if question.unanimous]
    room = difference([_by_id(questions, passed[most])], [_by_id(questions, votes[most])])
    assert room is not None
    return Replayed(
        side=side,
        iteration=iteration,
        n=len(questions),
        first_answers=most,
        single=_share(passed[1]),
        oracle=_share([question.oracle for question in questions]),
        curve=tuple(Ceiling(k=k, vote=_share(votes[k]), passed=_share(passed[k])) for k in ks),
        unanimous=_share([question.unanimous for question in questions]),
        unanimous_right=_share(agreed) if agreed else None,
        room=room,
        rules=tuple(_rules(questions)),
    )


def curve(seeds: Sequence[Iterable[tuple[Debate, GradedVote]]], config: RunConfig) -> list[Ceiling]:
    """Return pass@k and the vote of any k as means over the debates of several seeds on the same questions."""
    asked = [[_question(debate, vote, config) for debate, vote in of if vote.grades is not None] for of in seeds]
    most = min((question.first for of in asked for question in of if question.first), default=0)

    def over(right: Callable[[_Question, int], float], k: int) -> Share | None:
        mean = accuracy_over([_by_id(of, [right(question, k) for question in of]) for of in asked])
        return Share(mean=mean.mean, low=mean.low, high=mean.high) if mean else None

    points = [(k, over(_vote_at, k), over(_pass_at, k)) for k in _ks(most)] if most and all(asked) else []
    return [Ceiling(k=k, vote=vote, passed=passed) for k, vote, passed in points if vote and passed]


def _ks(most: int) -> list[int]:
    return [k for k in CURVE if k < most] + [most]


def verdict(one: Replayed) -> str:
    """Say in a sentence whether critics have anything to find."""
    k, room = one.first_answers, one.room
    interval = f"{100 * room.low:.1f} to {100 * room.high:.1f}"
    points = f"pass@{k} is {100 * room.mean:.1f} points ({interval}) above the vote of {k}"
    end = f"{'closed' if one.closed else 'open' if room.low >= ROOM else 'unclear'} for critics"
    few = "" if k >= 12 else f"; with {k} first answers this says little of a larger vote (debate.num_eval_samples)"
    return f"{end}: {points}{few}."


def _trained(folder: RunFolder, number: int) -> Iterator[tuple[Debate, GradedVote]]:
    problems = {problem.id: problem for problem in Records(folder.problems("train"), Problem)}
    debates, task = Records(folder.debates(number), Debate), tasks.make(folder.config.task)
    grade = train_grade(folder.config)
    votes = votes_of(folder, number, debates)
    for debate in debates:
        yield debate, graded(votes[debate.problem_id], debate, problems[debate.problem_id], grade, task.equality.medoid)


def _held_out(folder: RunFolder, number: int) -> Iterator[tuple[Debate, GradedVote]]:
    return held_out(folder, number).pairs()


def _question(debate: Debate, vote: GradedVote, config: RunConfig) -> _Question:
    verdicts, classes = vote.verdicts(debate), vote.classes(debate)
    first = debate.first_answers() if debate.error is None else ()
    sizes = Counter(classes[turn.answer] for turn in first if _votes(turn, config))
    opening, grades = debate.round(1) if first else (), vote.grades or ()
    answers = dict(_answers(debate, vote, config)) if first else {}
    return _Question(
        id=debate.problem_id,
        right=tuple(sorted(size for number, size in sizes.items() if number is not None and grades[number])),
        wrong=tuple(sorted(size for number, size in sizes.items() if number is not None and not grades[number])),
        unread=len(first) - sum(sizes.values()),
        oracle=any(verdicts[turn.answer] for turn in opening if _votes(turn, config)),
        unanimous=bool(opening) and unanimous([classes[turn.answer] for turn in opening]),
        vote=bool(answers) and next(iter(answers.values()))[0],
        answers=answers,
    )


def _votes(turn: Turn, config: RunConfig) -> bool:
    return turn.answer is not None and (config.vote.count_cut or not turn.cut)


def _answers(debate: Debate, vote: GradedVote, config: RunConfig) -> Iterator[tuple[str, tuple[bool, int]]]:
    """Yield the name of each rule, whether its answer is right, and its tokens."""
    verdicts, classes, protocol = vote.verdicts(debate), vote.partition or (), protocol_of(config.debate)
    plain, likely = (config.vote.model_copy(update={"weight": weight}) for weight in ("none", "likelihood"))

    def right(turns: Sequence[Turn], settings: VoteConfig = plain) -> bool:
        return bool(verdicts[tally_of(debate, classes, turns, settings, config.seed).winner])

    def cost(turns: Iterable[Turn]) -> int:
        return tokens(call for turn in turns for call in (turn.summary, turn.call) if call is not None)

    first, last = debate.round(1), protocol.ballots(debate, "last")
    known = all(turn.call.reply.likelihood is not None for turn in debate.all_turns if turn.answer is not None)
    known &= any(turn.call.reply.likelihood is not None for turn in debate.all_turns)
    for answered in (first, debate.first_answers())[: 2 if debate.samples else 1]:
        yield f"vote of {len(answered)}", (right(answered), cost(answered))
        if known:
            yield f"vote of {len(answered)} by likelihood", (right(answered, likely), cost(answered))
    if protocol.rounds(config.debate) == 1:
        return
    played = (right(last), cost(debate.turns))
    yield config.debate.protocol, played
    if known:
        yield f"{config.debate.protocol} by likelihood", (right(last, likely), cost(debate.turns))
    yield "all rounds vote", (right(debate.all_turns), cost(debate.all_turns))
    if config.debate.protocol == "debate" and config.debate.num_rounds == 2:
        numbers = classes[: len(first)]
        yield "contested", (right(first), cost(first)) if unanimous(numbers) else played
        dissent = [number is None or number != largest(numbers) for number in numbers]
        spoke = [turn for turn in debate.round(2) if dissent[turn.agent]]
        kept = [turn for turn in first if not dissent[turn.agent]]
        yield "dissenters", (right([*kept, *spoke]), cost([*first, *spoke]))


def _rules(questions: Sequence[_Question]) -> Iterator[Rule]:
    """Yield the rules that could be replayed on every question, the vote over the N first answers first."""
    held = [question.answers for question in questions if question.answers]
    names = [name for name in held[0] if all(name in answers for answers in held)]
    failed = (False, 0)
    accuracies = {name: [question.answers.get(name, failed)[0] for question in questions] for name in names}
    spent = {name: sum(answers[name][1] for answers in held) for name in names}
    for name in names:
        pair = [_by_id(questions, accuracies[name])], [_by_id(questions, accuracies[names[0]])]
        yield Rule(
            name=name,
            right=_share(accuracies[name]),
            tokens=spent[name] / (spent[names[0]] or 1),
            gain=None if name == names[0] else difference(*pair),
        )


def _by_id(questions: Sequence[_Question], values: Sequence[float]) -> dict[str, float]:
    return {question.id: float(value) for question, value in zip(questions, values, strict=True)}


def _share(values: Sequence[float]) -> Share:
    mean = sum(values) / len(values)
    low, high = interval(values)
    return Share(mean=mean, low=low, high=high)


def _pass_at(question: _Question, k: int) -> float:
    return pass_at(k, question.first, sum(question.right))


def _vote_at(question: _Question, k: int) -> float:
    return vote_at(k, question.right, question.wrong, question.unread)


def pass_at(k: int, n: int, right: int) -> float:
    """Return the chance that one of k answers, drawn from n, is right; of fewer than k answers, all are drawn.

    >>> pass_at(1, 4, 1), pass_at(2, 4, 1), pass_at(9, 4, 1)
    (0.25, 0.5, 1.0)
    """
    k = min(k, n)
    return 1 - comb(n - right, k) / comb(n, k) if n else 0.0


@lru_cache(maxsize=100_000)
def vote_at(k: int, right: tuple[int, ...], wrong: tuple[int, ...], unread: int) -> float:
    """Return the chance that the vote over k answers is right, drawn from all; of fewer than k, all are drawn.

    Args:
        k: answers that vote.
        right: sizes of the classes of right answers; each class is counted by itself.
        wrong: sizes of the classes of wrong answers.
        unread: answers that could not be read, and abstain.

    >>> vote_at(1, (1,), (3,), 0), vote_at(2, (1,), (1,), 0), vote_at(3, (2,), (1, 1), 0)
    (0.25, 0.5, 0.6666666666666666)
    """
    n = sum(right) + sum(wrong) + unread
    k = min(k, n)
    others = [(size, [*right[:place], *right[place + 1 :], *wrong]) for place, size in enumerate(right)]
    return sum(_ways(k, size, other, unread) for size, other in others) / comb(n, k) if n else 0.0


def _ways(k: int, own: int, others: Sequence[int], unread: int) -> float:
    """Return in how many ways of drawing k answers a class of `own` wins; a tie of t classes counts 1/t."""
    ways = 0.0
    for votes in range(1, min(own, k) + 1):
        table = Counter({(0, 0): 1})
        """Ways to draw answers of the other classes, none with more votes: by their number, and by classes that tie."""
        for size in others:
            more: Counter[tuple[int, int]] = Counter()
            for (drawn, ties), count in table.items():
                for number in range(min(size, votes, k - votes - drawn) + 1):
                    more[drawn + number, ties + (number == votes)] += count * comb(size, number)
            table = more
        for (drawn, ties), count in table.items():
            ways += comb(own, votes) * count * comb(unread, k - votes - drawn) / (ties + 1)
    return ways
