"""What all pages share: one file that loads nothing, and runs no script but its own."""

import base64
import hashlib
import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from maft import config as config_
from maft import files
from maft.config import RunConfig, TaskConfig
from maft.report import transcript
from maft.runs import societies


def write(path: Path, template: str, content: Mapping[str, Any]) -> Path:
    """Write a page and return its path."""
    from markupsafe import Markup

    script = "\n".join(_file(name) for name in ("charts.js", "tables.js", "debates.js"))
    text = _template(template).render(
        content,
        style=Markup(_file("page.css")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    files.write_text(path, text)
    return path


@cache
def _template(name: str) -> Any:
    from markupsafe import Markup

    from maft.report import plots

    filters: dict[str, Callable[..., Any]] = {
        "safe_text": transcript.safe,
        "percent": percent,
        "points": points,
        "number": lambda value: f"{value:,.0f}",
        "duration": duration,
        "value": lambda y, unit: percent(y) if unit == "share" else f"{y:.3f}",
        "p": lambda value: "p < 0.001" if value < 0.001 else f"p = {value:.3f}",
        "raw": Markup,
        "pick": lambda counts, names: {name: getattr(counts, name) for name in names},
        "svg": lambda chart: Markup(plots.for_page(chart)),
    }
    return files.template("report", name, html=True, **filters)


def _file(name: str) -> str:
    return (Path(__file__).parent / "templates" / name).read_text(encoding="utf-8")


def models(config: RunConfig) -> str:
    """Return the base model, or, where there are several, each with its agents."""
    if config.engine.sampler == "scripted":
        return "scripted replies (no model)"
    by_model = societies.speakers(config)
    if len(by_model) == 1:
        return next(iter(by_model))
    return ", ".join(f"{model} ({', '.join(agents).replace('_', ' ')})" for model, agents in by_model.items())


def changed_settings(config: RunConfig) -> dict[str, str]:
    """Return the settings that are not the default, by dotted key, as they are written in a config."""
    default = RunConfig(task=TaskConfig(name=config.task.name))
    changed = {key: value for key, (_, value) in config_.differences(default, config).items()}
    return {key: value if isinstance(value, str) else json.dumps(_set(value)) for key, value in changed.items()}


def _set(value: Any) -> Any:
    """Leave out the settings of an agent that are not set."""
    if isinstance(value, list):
        return [_set(entry) for entry in value]
    if isinstance(value, dict):
        return {key: inner for key, entry in value.items() if (inner := _set(entry)) not in (None, {})}
    return value


def percent(share: float | None) -> str:
    """Return a share in percent with one digit; nothing for None.

    >>> percent(0.7291), percent(None)
    ('72.9', '')
    """
    return "" if share is None else f"{100 * share:.1f}"


def points(difference: float) -> str:
    """Return a difference of shares in points, with its sign.

    >>> points(0.383), points(-0.02), points(0.0001)
    ('+38.3', '−2.0', '0.0')
    """
    text = f"{100 * abs(difference):.1f}"
    return text if text == "0.0" else f"{'+' if difference > 0 else '−'}{text}"


def duration(seconds: float) -> str:
    """Return a time as people say it.

    >>> duration(0.4), duration(75), duration(8000)
    ('0.4 s', '1 min 15 s', '2 h 13 min')
    """
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"
