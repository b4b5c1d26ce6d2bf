"""A plan as text."""

from maft import files
from maft.planning import hardware
from maft.planning.costs import GIGA
from maft.planning.plan import MISSING, Plan


def render(plan: Plan) -> str:
    """Return the plan as a few short sections."""
    template = files.template("planning", "plan.txt.j2", count=_count, gb=_gb, duration=_duration)
    return str(template.render(plan=plan, missing=MISSING, hardware=hardware)).rstrip("\n")


def _count(number: float) -> str:
    for limit, unit in ((1e12, "T"), (1e9, "B"), (1e7, "M")):
        if number >= limit:
            return f"{number / (1e6 if unit == 'M' else limit):,.1f}{unit}"
    return f"{number:,.0f}"


def _gb(number: float) -> str:
    return f"{number / GIGA:,.1f} GB" if number >= 1e8 else f"{number / 1e6:,.1f} MB"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"
