"""Results as tables for a terminal: of a run, of several runs, of a comparison, of diversity."""

from collections.abc import Iterator, Sequence

from maft.comparison import ARMS, Result
from maft.diversity.measures import Diversity, collapsed
from maft.evaluation import overlap, retention
from maft.evaluation.labels import LabelQuality
from maft.evaluation.learned import of_run, warnings
from maft.evaluation.overlap import Overlap
from maft.evaluation.paired import Difference
from maft.pipeline import judging
from maft.report.data import labels, notes, results, stand_ins
from maft.report.gains import gains
from maft.report.runs import shared_questions, together
from maft.runs import status
from maft.runs.folder import RunFolder

AT_BUDGET = "_majority@budget"


def table(folder: RunFolder) -> str:
    """Return the results of a run, and a line for each iteration's pseudo-labels."""
    shown, missing = results(folder), status.next_step(folder)
    rows = [
        [
            str(result.iteration),
            result.method,
            "no gold" if result.accuracy is None else f"{result.accuracy:.1%}",
            interval(result.ci_low, result.ci_high),
            str(result.n),
            f"{result.unparsed:.0f}",
            *(f"{number:,.0f}" for number in (result.calls, result.completion_tokens, result.tokens)),
        ]
        for result in shown
    ]
    lines = [
        *notes(shown),
        *(pseudo_labels(quality) for quality, _ in labels(folder)),
        *warnings(of_run(folder)),
        *map(overlap.sentence, overlap.overlaps(folder)),
        *map(judging.sentence, judging.preferences(folder)),
        *(retention.sentence(one) for one in retention.retention([folder])),
        *([text] if (text := stand_ins(folder.config)) else []),
        *([f"This run is not finished. Next: {missing}."] if missing else []),
    ]
    columns = ("iteration", "method", "accuracy", "95 % interval", "n", "unparsed", "calls", "generated", "tokens")
    title, empty = f"{folder.config.name}: held-out questions", "Nothing has been evaluated yet."
    return _draw(columns, rows, lines, empty=empty, title=title, bold=("debate", "maft"))


def runs_table(folders: Sequence[RunFolder]) -> str:
    """Return several runs side by side, and what finetuning gained in them."""
    rows = [
        [
            str(row.iteration),
            row.method,
            *(f"{100 * accuracy:.1f}" for accuracy in (*row.accuracies, row.mean)),
            interval(row.low, row.high),
            str(row.n),
        ]
        for row in together(folders)
    ]
    questions, every = shared_questions(folders)
    lines = []
    if len(questions) < every:
        lines.append(
            f"The runs hold out different questions: only the {len(questions)} of {every} that all have count."
        )
    for over, gap, _, _, by_run in gains(folders, questions=questions) if rows else []:
        each = ", ".join(f"{100 * difference:+.1f}" for difference in by_run)
        bounds = f"{100 * gap.low:+.1f} to {100 * gap.high:+.1f}"
        lines.append(f"Finetuned debate minus {over}: {100 * gap.mean:+.1f} points ({bounds}); by run {each}.")
    minutes = ", ".join(f"{sum(e.get('seconds', 0.0) for e in folder.events()) / 60:.1f}" for folder in folders)
    lines.append(f"Minutes of sampling and finetuning, by run: {minutes}.")
    columns = ("iteration", "method", *(folder.path.name for folder in folders), "mean", "95 % interval", "n")
    return _draw(columns, rows, lines, empty="These runs have no evaluated method in common.")


def comparison_table(compared: Sequence[Result]) -> str:
    """Return the rows of a comparison; of the iterations in between only the methods themselves, not their parts.

    Where they are compared with a vote at the debate's budget, their votes at that budget are shown as well.
    """
    against = compared[0].against if compared else "maft"
    peers = {against, *(f"{arm}{AT_BUDGET}" for arm in ARMS if against.endswith(AT_BUDGET))}
    last, has_overlap = max((row.iteration for row in compared), default=0), any(row.overlap for row in compared)
    rows = [
        [
            str(row.iteration),
            row.method,
            "no gold" if row.accuracy is None else f"{row.accuracy:.1%}",
            interval(row.ci_low, row.ci_high),
            *(_difference(row)),
            _points(row.equal_training),
            f"{row.unparsed:.0f}",
            "" if row.accuracy_read is None else f"{row.accuracy_read:.1%}",
            *(_overlap(row.overlap) if has_overlap else ()),
            *(f"{number:,.0f}" for number in (row.calls, row.completion_tokens, row.tokens)),
            *(f"{number:,.0f}" for number in (row.training_examples, row.training_tokens, row.seconds)),
        ]
        for row in compared
        if row.iteration in (0, last) or row.method in {*ARMS, *peers}
    ]
    columns = (
        *("iteration", "method", "accuracy", "95 % interval", f"minus {against}", "95 % interval", "p", "Holm"),
        *("equal training", "unparsed", "right if read"),
        *(("exact match", "token F1", "chrF") if has_overlap else ()),
        *("calls", "generated", "tokens", "examples", "training tokens", "seconds"),
    )
    lines = []
    registered = [one for row in compared for one in row.predictions]
    if compared:
        seeds = f"{compared[0].num_seeds} seeds" if compared[0].num_seeds > 1 else "one seed"
        lines = [f"{compared[0].n} held-out questions, {seeds}; examples, tokens and seconds are means."]
        if any(row.holm is not None for row in compared):
            finds = [gap.detectable for row in compared if row.holm is not None and (gap := row.difference)]
            widest = max((gap for gap in finds if gap is not None), default=None)
            family = "registered predictions" if registered else "methods asked for"
            lines.append(f"Holm: p corrected for the number of {family}; rows without it are exploratory.")
            if widest:
                lines[-1] += (
                    f" A true difference of {100 * widest:.1f} points would be detected in 80 % of such comparisons."
                )
        if any(row.equal_training for row in compared):
            lines.append(
                "Equal training: the difference where both had learned as many tokens as the smaller had in all; "
                "between two iterations accuracy is taken to grow in proportion, which favours the smaller one if "
                "learning is fastest at first."
            )
        lines += _evidence(compared)
    return _draw(
        columns, rows, lines, empty="No method has been evaluated for every seed yet.", bold=("debate", against)
    )


def _overlap(one: Overlap | None) -> tuple[str, ...]:
    """Return exact match, token F1 and chrF in percent."""
    shares = (one.exact, one.f1, one.chrf) if one else (None, None, None)
    return tuple("" if share is None else f"{100 * share:.1f}" for share in shares)


def _evidence(compared: Sequence[Result]) -> Iterator[str]:
    """Yield predictions with their outcomes, what rounds changed, what is format, and what became of other tasks."""
    for row in sorted(compared, key=lambda row: not any(one.primary for one in row.predictions)):
        for one in row.predictions:
            points = one.prediction.points
            size = "" if points is None else f" by {points:g} points"
            yield (
                f"Predicted{' (primary)' * one.primary}: {row.method} {one.prediction.direction}{size} against "
                f"{one.against}: {one.verdict}, {_points(one.difference) or 'no difference yet'}"
                + ("." if one.holm is None else f", p = {one.holm:.3f} (Holm).")
            )
    for row in compared:
        for flow in row.flows if row.method in {"debate", *ARMS} else ():
            yield (
                f"{row.method}, iteration {row.iteration}, round {flow.round}: {flow.corrected:.1%} of the answers "
                f"corrected, {flow.spoiled:.1%} spoiled, {_points(flow.net)}."
            )
    for row in compared:
        if row.accuracy_lenient is not None and row.accuracy is not None and row.accuracy_lenient > row.accuracy:
            yield (
                f"{row.method}, iteration {row.iteration}: {row.accuracy:.1%} of single answers are right, "
                f"{row.accuracy_lenient:.1%} if replies that cannot be read count by their last number or line."
            )
    for row in compared:
        for kept in row.retention:
            yield f"{row.method}: {retention.sentence(kept)}"


def _points(gap: Difference | None) -> str:
    """Return a difference in points with its interval."""
    return f"{100 * gap.mean:+.1f} ({100 * gap.low:+.1f} to {100 * gap.high:+.1f})" if gap else ""


def _difference(row: Result) -> tuple[str, ...]:
    gap = row.difference
    if gap is None:
        return "", "", "", ""
    p_values = ("" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}" for p in (gap.p_value, row.holm))
    return f"{100 * gap.mean:+.1f}", f"{100 * gap.low:+5.1f} to {100 * gap.high:+.1f}", *p_values


def diversity_table(measured: Sequence[Diversity]) -> str:
    """Return the diversity of each society, and warnings where it has collapsed."""
    rows = []
    for one in measured:
        values = (one.disagreement, one.dissimilarity, one.likelihood, one.kl, one.kl_to_base)
        rows.append([str(one.iteration), *("-" if value is None else f"{value:.3f}" for value in values)])
    lines = collapsed(measured)
    if measured:
        last = measured[-1]
        if last.num_models > 1:
            lines.insert(0, f"The agents are of {last.num_models} models: likelihood and KL are of pairs of one model.")
        read = f"{last.num_questions} held-out questions, {last.num_read} of them read; embedder: {last.embedder}."
        lines.insert(0, read)
    columns = ("iteration", "disagreement", "dissimilarity", "likelihood", "KL", "KL to base")
    return _draw(columns, rows, lines, empty="No society of this run has been evaluated yet.", groups=False)


def _draw(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    lines: Sequence[str],
    *,
    empty: str,
    title: str = "",
    bold: Sequence[str] = (),
    groups: bool = True,
) -> str:
    """Lay out a title, a table (or `empty`, if it has no rows) and lines, with colours on a terminal only.

    The first cell of a row is the iteration, the second, if `bold` names any, the method. With `groups`, an empty row
    comes between iterations.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        drawn.add_column(column, justify="left" if column == "method" else "right", no_wrap=True)
    for number, row in enumerate(rows):
        if groups and number and rows[number - 1][0] != row[0]:
            drawn.add_row()
        drawn.add_row(*row, style="bold" if row[1] in bold else None)
    console = Console(width=300, highlight=False)
    with console.capture() as captured:
        if title:
            console.print(Text(title, style="bold"), end="\n\n")
        console.print(drawn if rows else Text(empty))
        console.print()
        for line in lines:
            console.print(Text(line), soft_wrap=True)
    return "\n".join(row.rstrip() for row in captured.get().rstrip().split("\n"))


def interval(low: float | None, high: float | None) -> str:
    """Return an interval in percent, of the same width whatever the numbers.

    >>> interval(0.0684, 1)
    '  6.8 - 100.0'
    """
    return "" if low is None or high is None else f"{100 * low:5.1f} - {100 * high:5.1f}"


def pseudo_labels(quality: LabelQuality) -> str:
    """Say in one line how many questions were trained on, and how many of their labels were right."""
    right = "correctness not known"
    if quality.accuracy is not None and quality.ci_low is not None and quality.ci_high is not None:
        bounds = f"{100 * quality.ci_low:.1f} - {100 * quality.ci_high:.1f}"
        right = f"{quality.accuracy:.1%} of them right ({bounds})"
    used = f"{quality.used} of {quality.num_problems} questions used ({quality.coverage:.1%})"
    return f"Pseudo-labels of iteration {quality.iteration}: {used}, {right}."
