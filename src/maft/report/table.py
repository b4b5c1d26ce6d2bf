"""The results as a table for a terminal."""

from collections.abc import Sequence

from maft.diversity.measures import Diversity, collapsed
from maft.evaluation.learned import of_run, warnings
from maft.evaluation.metrics import MethodResult
from maft.report.data import Labels, labels, notes, owed, results, stand_ins
from maft.runs.folder import RunFolder


def table(folder: RunFolder) -> str:
    """Return the results as text, and a line for each iteration's pseudo-labels; with colours on a terminal only."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    found, missing = results(folder), owed(folder)
    drawn = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in ("iteration", "method", "accuracy", "95 % interval", "n", "unparsed", "calls", "generated", "tokens"):
        drawn.add_column(column, justify="left" if column == "method" else "right", no_wrap=True)
    for number, result in enumerate(found):
        starts_iteration = number == 0 or found[number - 1].iteration != result.iteration
        if starts_iteration and number:
            drawn.add_row()
        drawn.add_row(*_cells(result), style="bold" if result.method in ("debate", "maft") else None)
    console = Console(width=200, highlight=False)
    with console.capture() as captured:
        console.print(Text(f"{folder.config.name}: held-out questions", style="bold"))
        console.print()
        console.print(drawn if found else Text("Nothing has been evaluated yet."))
        console.print()
        for note in notes(found):
            console.print(Text(note))
        for quality in labels(folder):
            console.print(Text(pseudo_labels(quality)))
        for line in warnings(of_run(folder)):
            console.print(Text(line), soft_wrap=True)
        if warning := stand_ins(folder.config):
            console.print(Text(warning))
        if missing is not None:
            console.print(Text(f"This run is not finished. Next: {missing}."))
    return "\n".join(row.rstrip() for row in captured.get().rstrip().split("\n"))


def diversity_table(measured: Sequence[Diversity]) -> str:
    """Return the diversity of each society as text, and warnings where it has collapsed."""
    if not measured:
        return "No society of this run has been evaluated yet."
    shape = "{:>9}{:>14.3f}{:>15.3f}{:>12}{:>8}{:>12}"
    lines = ["iteration  disagreement  dissimilarity  likelihood      KL  KL to base"]
    for one in measured:
        read = [_nats(value) for value in (one.likelihood, one.kl, one.kl_to_base)]
        lines.append(shape.format(one.iteration, one.disagreement, one.dissimilarity, *read))
    last = measured[-1]
    lines.append("")
    lines.append(f"{last.num_questions} held-out questions, {last.num_read} of them read; embedder: {last.embedder}.")
    if last.num_models > 1:
        lines.append(f"The agents are of {last.num_models} models: likelihood and KL are of pairs of one model.")
    return "\n".join(lines + collapsed(measured))


def _nats(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _cells(result: MethodResult) -> list[str]:
    return [
        str(result.iteration),
        result.method,
        "no gold" if result.accuracy is None else f"{result.accuracy:.1%}",
        interval(result.ci_low, result.ci_high),
        str(result.n),
        f"{result.unparsed:.0f}",
        f"{result.calls:,.0f}",
        f"{result.completion_tokens:,.0f}",
        f"{result.tokens:,.0f}",
    ]


def interval(low: float | None, high: float | None) -> str:
    """Return an interval in percent, of the same width whatever the numbers.

    >>> interval(0.0684, 1)
    '  6.8 - 100.0'
    """
    return "" if low is None or high is None else f"{100 * low:5.1f} - {100 * high:5.1f}"


def pseudo_labels(found: Labels) -> str:
    """Say in one line how many questions were trained on, and how many of their labels were right."""
    quality = found.quality
    right = "correctness not known"
    if quality.accuracy is not None and found.accuracy_interval is not None:
        low, high = found.accuracy_interval
        right = f"{quality.accuracy:.1%} of them right ({100 * low:.1f} - {100 * high:.1f})"
    used = f"{quality.used} of {quality.num_problems} questions used ({quality.coverage:.1%})"
    return f"Pseudo-labels of iteration {quality.iteration}: {used}, {right}."
