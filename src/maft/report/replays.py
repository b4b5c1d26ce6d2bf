"""Replays of debates (`maft.evaluation.replay`) as text, as a picture and for the page."""

from collections.abc import Sequence

from maft.comparison import Result
from maft.config import RunConfig
from maft.evaluation.paired import Difference
from maft.evaluation.replay import Replayed, Share, of_debates, verdict
from maft.report.charts import MARKERS, Chart, Curve, Point
from maft.report.data import Evaluation
from maft.report.table import interval


def replays(evaluations: Sequence[Evaluation], config: RunConfig) -> list[Replayed]:
    """Return what else the held-out debates could have answered, iteration by iteration; none without known answers."""
    made = (of_debates(one.held.pairs(), config, "eval", one.iteration) for one in evaluations)
    return [one for one in made if one is not None]


def chart(replayed: Sequence[Replayed]) -> Chart | None:
    """Return pass@k (what critics could find) and the vote of any k, of the untrained and the last society."""
    if not replayed or replayed[-1].first_answers < 2:
        return None
    curves = [
        Curve(
            f"{words}, {f'iteration {one.iteration}' if one.iteration else 'untrained'}",
            *look,
            [Point(c.k, share.mean, share.low, share.high) for c in one.curve for share in (getattr(c, name),)],
            dashed=one.iteration == 0,
        )
        for one in {each.iteration: each for each in (replayed[-1], replayed[0])}.values()
        for name, words, look in (
            ("passed", "right answer among k", ("green", "o")),
            ("vote", "vote of any k", ("orange", "s")),
        )
    ]
    ticks: dict[float, str] = {ceiling.k: str(ceiling.k) for ceiling in replayed[-1].curve}
    return Chart("room", "Right answers among k first answers, and by their vote", curves, ticks, "first answers, k")


def room(rows: Sequence[Result]) -> Chart | None:
    """Return the same of the compared methods' single answers, untrained and after the last iteration."""
    measured = [row for row in rows if len(row.curve) > 1]
    last = max((row.iteration for row in measured), default=0)
    shown = [row for row in measured if row.iteration == 0][:1] + [row for row in measured if row.iteration == last > 0]
    curves = [
        Curve(
            f"{words}, {row.method if row.iteration else 'untrained'}",
            *look,
            [Point(one.k, share.mean, share.low, share.high) for one in row.curve for share in (getattr(one, name),)],
            shown=place < 2,
            dashed=row.iteration == 0,
        )
        for place, row in enumerate(shown)
        for name, words, look in (
            ("passed", "right answer among k", ("green", list(MARKERS)[place % len(MARKERS)])),
            ("vote", "vote of any k", ("orange", list(MARKERS)[place % len(MARKERS)])),
        )
    ]
    ticks: dict[float, str] = {one.k: str(one.k) for row in shown for one in row.curve}
    title = "Right answers among k first answers, and by their vote"
    return Chart("room", title, curves, ticks, "first answers, k") if curves else None


def replay_table(replayed: Sequence[Replayed]) -> str:
    """Return, for each iteration and side, the ceilings, every rule, and whether critics have anything to find."""
    lines: list[str] = []
    for one in replayed:
        side = "held-out questions" if one.side == "eval" else "training questions"
        agree = f", right on {_percent(one.unanimous_right)} of these" if one.unanimous_right else ""
        lines += [
            f"Iteration {one.iteration}, {one.n} {side}, {one.first_answers} first answers each",
            f"  {_percent(one.unanimous)} unanimous{agree}",
            f"  {'':<24}{'right':>7}  {'95 % interval':<15}{'minus vote':>10}  {'95 % interval':<15}{'tokens':>7}",
            _row("single answer", one.single),
            *(_row(rule.name, rule.right, rule.gain, rule.tokens) for rule in one.rules),
            _row("perfect critic", one.oracle),
            *(
                f"{_row(f'vote of any {c.k}, pass@{c.k}', c.vote)}  pass {_percent(c.passed)}"
                for c in one.curve
                if c.k > 1
            ),
            f"  {verdict(one)}",
            "",
        ]  # fmt: skip
    return "\n".join(lines).rstrip() or (
        "No question with a known answer has been debated yet, or all debates failed: `maft show` prints their errors."
    )


def _row(name: str, right: Share, gain: Difference | None = None, tokens: float | None = None) -> str:
    minus = f"{100 * gain.mean:+10.1f}  {100 * gain.low:+.1f} to {100 * gain.high:+.1f}" if gain else ""
    line = f"  {name:<24}{100 * right.mean:7.1f}  {interval(right.low, right.high):<15}{minus:<27}"
    return line.rstrip() if tokens is None else f"{line}{tokens:7.2f}"


def _percent(share: Share) -> str:
    return f"{100 * share.mean:.1f} % ({100 * share.low:.1f} to {100 * share.high:.1f})"
