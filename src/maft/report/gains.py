"""What finetuning gained, question by question: both methods answered the same ones."""

from collections.abc import Mapping, Sequence
from math import sqrt
from typing import NamedTuple

from maft import files
from maft.evaluation.methods import names
from maft.evaluation.metrics import wilson
from maft.records import Score
from maft.runs.folder import RunFolder


class Gain(NamedTuple):
    """The accuracy of one method minus that of another, on the questions that both answered."""

    over: str
    """The other method, in words."""
    n: int
    won: int
    """Questions that only the first method got right."""
    lost: int
    """Questions that only the other one got right."""
    difference: float
    low: float
    """Lower end of the 95 % interval."""
    high: float

    @property
    def verdict(self) -> str:
        """`more`, `less`, or `unclear` where the interval holds 0."""
        return "more" if self.low > 0 else "less" if self.high < 0 else "unclear"


def gains(folder: RunFolder, *, vote: bool = False) -> list[Gain]:
    """Compare the debate of the last society that was evaluated, or its vote, with what came before it.

    Empty until a finetuned society has been evaluated, and where no gold answer is known.
    """
    config = folder.config
    done = [n for n in range(config.num_iterations + 1) if folder.evaluated(n)]
    if 0 not in done or done == [0]:
        return []
    last, num_agents = done[-1], config.debate.num_agents
    (_, majority, debate), (_, our_majority, ours) = names(0, num_agents), names(last, num_agents)
    others = {
        "untrained debate": (0, debate),
        "untrained majority": (0, majority),
        **({"finetuned debate": (last, ours)} if vote else {"finetuned majority": (last, our_majority)}),
    }
    if last > 1:
        others[f"{'majority' if vote else 'debate'} after iteration 1"] = (1, our_majority if vote else ours)
    mine = _right(folder, last, our_majority if vote else ours)
    found = (paired(over, mine, _right(folder, number, method)) for over, (number, method) in others.items())
    return [gain for gain in found if gain is not None]


def _right(folder: RunFolder, number: int, method: str) -> dict[str, bool]:
    scores = files.read_records(folder.evaluation(number) / f"{method}.jsonl", Score)
    return {score.problem_id: score.correct[0] for score in scores if score.correct is not None}


def paired(over: str, mine: Mapping[str, bool], other: Mapping[str, bool]) -> Gain | None:
    """Compare right and wrong answers by question; None if no question is in both.

    The interval is Newcombe's for paired shares (1998, method 10): it is built from two Wilson intervals and does not
    shrink to nothing where the methods never differ.
    """
    shared = [(mine[question], other[question]) for question in mine if question in other]
    if not shared:
        return None
    both, won, lost = (shared.count(pair) for pair in ((True, True), (True, False), (False, True)))
    low, high = _newcombe(both, won, lost, len(shared) - both - won - lost)
    return Gain(over, len(shared), won, lost, (won - lost) / len(shared), low, high)


def _newcombe(both: int, won: int, lost: int, neither: int) -> tuple[float, float]:
    """Return the 95 % interval of the difference of two paired shares.

    >>> [round(bound, 4) for bound in _newcombe(20, 12, 2, 16)]
    [0.0562, 0.3292]
    """
    n = both + won + lost + neither
    mine, other = (both + won) / n, (both + lost) / n
    (low_mine, high_mine), (low_other, high_other) = wilson(mine, n), wilson(other, n)
    phi = _correlation(both, won, lost, neither)
    down = _distance(mine - low_mine, high_other - other, phi)
    up = _distance(high_mine - mine, other - low_other, phi)
    return max(-1.0, mine - other - down), min(1.0, mine - other + up)


def _distance(a: float, b: float, phi: float) -> float:
    return sqrt(max(0.0, a * a - 2 * phi * a * b + b * b))


def _correlation(both: int, won: int, lost: int, neither: int) -> float:
    """Return phi, corrected for continuity as Newcombe has it; 0 where a margin is empty."""
    margins: Sequence[int] = (both + won, lost + neither, both + lost, won + neither)
    product = margins[0] * margins[1] * margins[2] * margins[3]
    if product == 0:
        return 0.0
    cross: float = both * neither - won * lost
    if cross > 0:
        cross = max(0.0, cross - (both + won + lost + neither) / 2)
    return cross / sqrt(product)
