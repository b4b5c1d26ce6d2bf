"""Methods side by side, from the same base model, on the same questions."""

from maft.comparison.arms import ARMS, PAPER, Arm
from maft.comparison.compare import Comparison, begin, chosen, compare, default_methods, existing, of_run
from maft.comparison.results import Result, as_json, over_iterations, results, weak_rivals

__all__ = [
    "ARMS",
    "PAPER",
    "Arm",
    "Comparison",
    "Result",
    "as_json",
    "begin",
    "chosen",
    "compare",
    "default_methods",
    "existing",
    "of_run",
    "over_iterations",
    "results",
    "weak_rivals",
]
