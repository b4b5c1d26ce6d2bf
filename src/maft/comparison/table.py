"""The rows of a comparison as a table for a terminal."""

from collections.abc import Sequence
from typing import Literal

from maft.comparison.arms import ARMS
from maft.comparison.results import Result

COLUMNS: dict[str, Literal["left", "right"]] = {
    "iteration": "right",
    "method": "left",
    "accuracy": "right",
    "95 % interval": "right",
    "minus maft": "right",
    "95 % interval ": "right",
    "p": "right",
    "unparsed": "right",
    "calls": "right",
    "generated": "right",
    "tokens": "right",
    "examples": "right",
    "training tokens": "right",
    "seconds": "right",
}

AT_BUDGET = "_majority@budget"


def table(found: Sequence[Result]) -> str:
    """Return the rows as text; of the iterations in between only the methods themselves, not their parts.

    Where they are compared with a vote at the debate's budget, their votes at that budget are shown as well.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    against = found[0].against if found else "maft"
    drawn = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column, side in COLUMNS.items():
        drawn.add_column(column.replace("maft", against), justify=side, no_wrap=True)
    last = max((row.iteration for row in found), default=0)
    peers = {against, *(f"{arm}{AT_BUDGET}" for arm in ARMS if against.endswith(AT_BUDGET))}
    shown = [row for row in found if row.iteration in (0, last) or row.method in {*ARMS, *peers}]
    for number, row in enumerate(shown):
        if number and shown[number - 1].iteration != row.iteration:
            drawn.add_row()
        drawn.add_row(*_cells(row), style="bold" if row.method in ("debate", against) else None)
    console = Console(width=240, highlight=False)
    with console.capture() as captured:
        console.print(drawn if found else Text("No method has been evaluated for every seed yet."))
        if found:
            seeds = f"{found[0].num_seeds} seeds" if found[0].num_seeds > 1 else "one seed"
            console.print(Text(f"\n{found[0].n} held-out questions, {seeds}; examples, tokens and seconds are means."))
    return "\n".join(row.rstrip() for row in captured.get().rstrip().split("\n"))


def _cells(row: Result) -> list[str]:
    gap = row.difference
    return [
        str(row.iteration),
        row.method,
        "no gold" if row.accuracy is None else f"{row.accuracy:.1%}",
        _interval(row.ci_low, row.ci_high),
        "" if gap is None else f"{100 * gap.mean:+.1f}",
        "" if gap is None else _interval(gap.low, gap.high, "+"),
        "" if gap is None else "< 0.001" if gap.p_value < 0.001 else f"{gap.p_value:.3f}",
        f"{row.unparsed:.0f}",
        f"{row.calls:,.0f}",
        f"{row.completion_tokens:,.0f}",
        f"{row.tokens:,.0f}",
        f"{row.training_examples:,.0f}",
        f"{row.training_tokens:,.0f}",
        f"{row.seconds:,.0f}",
    ]


def _interval(low: float | None, high: float | None, sign: str = "") -> str:
    """Return an interval in percent.

    >>> _interval(-0.0684, 0.1, "+")
    ' -6.8 to +10.0'
    """
    return "" if low is None or high is None else f"{100 * low:{sign}5.1f} to {100 * high:{sign}.1f}"
