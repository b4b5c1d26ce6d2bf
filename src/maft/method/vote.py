"""The vote: answers in, of the last round by default; pseudo-label out.

Answers are divided into classes of equal ones once, all answers of a debate together, by the task's equality. The vote
keeps this partition, and whoever asks later whether two answers are the same reads it.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from random import Random
from typing import Literal, NamedTuple

from maft import seeds
from maft.answers.equality import Classes, Equality, Mathematics, representative
from maft.config import Ballots, VoteConfig, of_iteration
from maft.errors import DataError
from maft.records import Debate, Problem, Turn, Vote

MATHEMATICS = Mathematics()


class Tally(NamedTuple):
    """Answers counted by classes of equal ones."""

    winner: str | None
    counts: tuple[tuple[str, int], ...]
    """(representative answer, votes) of each class, the winner first, then by votes."""
    abstained: int
    tied: bool
    weights: tuple[float, ...] | None = None
    """Sum of the weights of each class, in the order of `counts`; None where all ballots weigh the same."""


def tally(
    answers: Sequence[str | None], rng: Random, *, ties: str = "random", equality: Equality = MATHEMATICS
) -> Tally:
    """Divide answers into classes and count them, see `count`.

    >>> tally(["1/2", None, "0.5", "3"], Random(0))[:2]
    ('0.5', (('0.5', 2), ('3', 1)))
    """
    return count(answers, equality.classes(answers), rng, ties=ties)


def count(
    answers: Sequence[str | None],
    classes: Classes,
    rng: Random,
    *,
    ties: str = "random",
    weights: Sequence[float] | None = None,
) -> Tally:
    """Count the answers of each class; those that could not be parsed (None) abstain.

    Ties are drawn by `rng` among the classes with the most votes, or the largest weight. Neither the counts nor the
    winner depend on the order of the answers.
    """
    votes = Counter(number for number in classes if number is not None)
    names = {
        number: representative(str(answer) for answer, its in zip(answers, classes, strict=True) if its == number)
        for number in votes
    }
    heavy = {n: sum(w for w, its in zip(weights, classes, strict=True) if its == n) for n in votes} if weights else {}
    sums = {number: round(weight, 12) for number, weight in heavy.items()} or dict(votes)
    leaders = sorted(names[number] for number in votes if sums[number] == max(sums.values()))
    tied = len(leaders) > 1
    winner = None if not leaders or (tied and ties == "abstain") else rng.choice(leaders)
    ordered = sorted(votes, key=lambda n: (-sums[n], names[n] != winner, names[n]))
    counts = tuple((names[number], votes[number]) for number in ordered)
    abstained = sum(number is None for number in classes)
    return Tally(winner, counts, abstained, tied, tuple(heavy[number] for number in ordered) if weights else None)


def ballots(debate: Debate, which: str) -> tuple[Turn, ...]:
    """Return the turns whose answers are counted: of the `last` round, the `first` with its samples, or `all`."""
    if which == "first":
        return debate.first_answers()
    return debate.round(-1) if which == "last" else debate.all_turns


Choose = Callable[[Debate, str], tuple[Turn, ...]]
"""Returns the turns of a debate that vote, see `ballots`."""


def vote(
    debate: Debate,
    settings: VoteConfig,
    run_seed: int,
    equality: Equality = MATHEMATICS,
    over: Ballots | None = None,
    choose: Choose = ballots,
) -> Vote:
    """Return the pseudo-label of a debate: the answer with the most votes, by default in the last round.

    The question is dropped from training if the debate failed, nobody gave an answer, the vote is tied and
    `settings.ties` has it abstain, or the winner has fewer votes than `settings.min_agreement` asks for.

    `over` says which answers are counted, by default those of `settings.label_from`.
    """
    counted: str = of_iteration(settings.label_from, debate.iteration) if over is None else over
    turns = choose(debate, counted)
    elected = elect(debate, partition(debate, equality), turns, settings, run_seed)
    elected = _named(elected, debate, _answers(turns, settings), equality)
    return elected if over is not None else relabelled(elected, debate, settings.label, run_seed)


def _answers(turns: Sequence[Turn], settings: VoteConfig) -> list[str | None]:
    """Return the answers that are counted; those of replies that were cut may abstain."""
    return [turn.answer if settings.count_cut or not turn.cut else None for turn in turns]


def _named(elected: Vote, debate: Debate, counted: Sequence[str | None], equality: Equality) -> Vote:
    """Return a vote whose classes have the names that the equality gives them, by the answers that were counted."""
    if not elected.counts or type(equality).medoid is Equality.medoid:
        return elected
    class_of = elected.classes(debate)
    answers = [answer for answer in counted if answer is not None]
    names = {
        name: equality.medoid(answer for answer in answers if class_of[answer] == class_of[name])
        for name, _ in elected.counts
    }
    label = None if elected.label is None else names[elected.label]
    return elected.model_copy(
        update={"label": label, "counts": tuple((names[name], votes) for name, votes in elected.counts)}
    )


def relabelled(elected: Vote, debate: Debate, label: str, run_seed: int) -> Vote:
    """Return a vote with the label that `vote.label` says: its winner, or another answer, by seed among equals."""
    if label == "majority" or elected.label is None:
        return elected
    fewest = min(votes for _, votes in elected.counts)
    answers = sorted(answer for answer, votes in elected.counts if label == "random" or votes == fewest)
    drawn = seeds.rng(run_seed, "label", debate.iteration, debate.problem_id).choice(answers)
    order = sorted(range(len(elected.counts)), key=lambda place: elected.counts[place][0] != drawn)
    changes = {
        "label": drawn,
        "counts": tuple(elected.counts[place] for place in order),
        "winner": elected.classes(debate)[drawn],
        "weights": elected.weights and tuple(elected.weights[place] for place in order),
    }
    return elected.model_copy(update=changes)


def partition(debate: Debate, equality: Equality) -> Classes:
    """Divide all answers of a debate into classes. The known answer of the question is not looked at."""
    problem = Problem(id=debate.problem_id, question=debate.question, code=debate.code)
    return equality.classes([turn.answer for turn in debate.all_turns], problem)


def elect(debate: Debate, classes: Classes, turns: Sequence[Turn], settings: VoteConfig, run_seed: int) -> Vote:
    """Return the vote over some turns of a debate whose answers have been divided into classes."""
    result = tally_of(debate, classes, turns, settings, run_seed)
    return Vote(
        iteration=debate.iteration,
        problem_id=debate.problem_id,
        label=result.winner,
        counts=result.counts,
        num_ballots=len(turns),
        abstained=result.abstained,
        tied=result.tied,
        dropped="failed" if debate.error is not None else _dropped(result, len(turns), settings.min_agreement),
        partition=classes,
        winner=_class_of(debate, classes).get(result.winner),
        weights=result.weights,
    )


def tally_of(debate: Debate, classes: Classes, turns: Sequence[Turn], settings: VoteConfig, run_seed: int) -> Tally:
    """Count some turns of a debate; a failed debate has no answer.

    Ties are drawn by question and iteration: whenever the same answers tie, the same one wins.

    Raises:
        DataError: ballots are weighted by their likelihood, and that of a reply is not known.
    """
    answers = _answers(turns, settings) if debate.error is None else []
    class_of = _class_of(debate, classes)
    rng = seeds.rng(run_seed, "tie", debate.iteration, debate.problem_id)
    weights = [_likelihood(turn, debate) for turn in turns] if settings.weight == "likelihood" and answers else None
    return count(answers, tuple(class_of.get(answer) for answer in answers), rng, ties=settings.ties, weights=weights)


def _likelihood(turn: Turn, debate: Debate) -> float:
    likelihood = turn.call.reply.likelihood
    if likelihood is None and turn.answer is not None:
        raise DataError(
            f"the log-probabilities of {turn.call.agent}'s reply on {debate.problem_id} are not known, and "
            "vote.weight = likelihood needs them. Use an engine that returns them, or vote.weight=none."
        )
    return likelihood or 0.0


def with_partition(vote: Vote, debate: Debate, equality: Equality) -> Vote:
    """Return a vote with its partition; one of schema 1 is grouped now."""
    if vote.partition is not None:
        return vote
    classes = partition(debate, equality)
    return vote.model_copy(update={"partition": classes, "winner": _class_of(debate, classes).get(vote.label)})


def _class_of(debate: Debate, classes: Classes) -> dict[str | None, int | None]:
    return dict(zip((turn.answer for turn in debate.all_turns), classes, strict=True))


def _dropped(
    result: Tally, num_ballots: int, min_agreement: str | float
) -> Literal["no_answer", "tied", "low_agreement"] | None:
    if result.winner is None:
        return "tied" if result.tied else "no_answer"
    return None if _agreed(result.counts[0][1], num_ballots, min_agreement) else "low_agreement"


def _agreed(votes: int, num_ballots: int, min_agreement: str | float) -> bool:
    if min_agreement == "plurality":
        return True
    if min_agreement == "majority":
        return 2 * votes > num_ballots
    # Not votes >= min_agreement * num_ballots: 0.55 * 20 is a little above 11.
    return votes / num_ballots >= float(min_agreement)
