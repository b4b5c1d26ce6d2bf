"""The vote: answers in, of the last round if not told otherwise; pseudo-label out."""

from collections.abc import Sequence
from random import Random
from typing import Literal, NamedTuple

from maft import answers as rules
from maft import seeds
from maft.config import VoteConfig, of_iteration
from maft.records import Debate, Turn, Vote


class Tally(NamedTuple):
    """Answers counted by classes of mathematical equality."""

    winner: str | None
    counts: tuple[tuple[str, int], ...]
    """(representative answer, votes) of each class, the winner first, then by votes."""
    abstained: int
    tied: bool


def tally(answers: Sequence[str | None], rng: Random, *, ties: str = "random") -> Tally:
    """Count equal answers; those that could not be parsed (None) abstain.

    Ties are drawn by `rng` among the classes with the most votes. Neither the counts nor the winner depend on the
    order of the answers.

    >>> tally(["1/2", None, "0.5", "3"], Random(0))
    Tally(winner='0.5', counts=(('0.5', 2), ('3', 1)), abstained=1, tied=False)
    """
    classes = [[text for i in indices if (text := answers[i]) is not None] for indices in rules.group(answers)]
    counts = [(rules.representative(texts), len(texts)) for texts in classes]
    leaders = [label for label, votes in counts if votes == max(votes for _, votes in counts)]
    tied = len(leaders) > 1
    winner = None if not leaders or (tied and ties == "abstain") else rng.choice(sorted(leaders))
    counts.sort(key=lambda count: (-count[1], count[0] != winner, count[0]))
    return Tally(winner, tuple(counts), sum(text is None for text in answers), tied)


def ballots(debate: Debate, which: str) -> tuple[Turn, ...]:
    """Return the turns whose answers are counted: of the `last` round, the `first` with its samples, or `all`."""
    if which == "first":
        return debate.first_answers()
    return debate.round(-1) if which == "last" else debate.turns + debate.samples


def vote(debate: Debate, settings: VoteConfig, run_seed: int) -> Vote:
    """Return the pseudo-label of a debate: the answer with the most votes, by default in the last round.

    The question is dropped from training if the debate failed, nobody gave an answer, or the winner has fewer votes
    than `settings.min_agreement` asks for.
    """
    answers = [turn.answer for turn in ballots(debate, of_iteration(settings.label_from, debate.iteration))]
    rng = seeds.rng(run_seed, "tie", debate.iteration, debate.problem_id)
    result = tally(answers, rng, ties=settings.ties) if debate.error is None else Tally(None, (), 0, False)
    dropped: Literal["failed", "no_answer", "low_agreement"] | None = None
    if debate.error is not None:
        dropped = "failed"
    elif result.winner is None:
        dropped = "no_answer"
    elif not _agreed(result.counts[0][1], len(answers), settings.min_agreement):
        dropped = "low_agreement"
    return Vote(
        iteration=debate.iteration,
        problem_id=debate.problem_id,
        label=result.winner,
        counts=result.counts,
        num_ballots=len(answers),
        abstained=result.abstained,
        tied=result.tied,
        dropped=dropped,
    )


def _agreed(votes: int, num_ballots: int, min_agreement: str | float) -> bool:
    if min_agreement == "plurality":
        return True
    if min_agreement == "majority":
        return 2 * votes > num_ballots
    # Not votes >= min_agreement * num_ballots: 0.55 * 20 is a little above 11.
    return votes / num_ballots >= float(min_agreement)
