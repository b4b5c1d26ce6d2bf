"""Predictions that are written down before there are results: `maft compare --preregister FILE`.

FILE is YAML: `predictions`, a list with `row`, `direction` (more, less or same), and as wanted `against`, `points` and
`why`; `primary`, the row that decides; `note`; `discordant`. The predictions are the declared family: p-values are
corrected over them, and all other rows of the table are exploratory.
"""

import logging
from collections.abc import Sequence
from datetime import UTC, datetime
from math import sqrt
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from maft import __version__, files
from maft.comparison.arms import ARMS
from maft.comparison.compare import REGISTERED, Comparison
from maft.config import reading
from maft.errors import ConfigError
from maft.evaluation.paired import Difference
from maft.method import protocol_of
from maft.records import Record
from maft.runs import manifest

log = logging.getLogger("maft")

SIGNIFICANT = 0.05


class Prediction(Record):
    """What one row of the table, after the last iteration, will be compared with another."""

    row: str
    against: str | None = None
    """The other row; None: the one that the table compares with."""
    direction: Literal["more", "less", "same"]
    points: Annotated[float, Field(ge=0)] | None = None
    """Expected difference in points; for `same`, the largest difference that still counts as none."""
    why: str = ""

    @model_validator(mode="after")
    def _same_has_a_margin(self) -> Self:
        if self.direction == "same" and not self.points:
            raise ValueError("direction: same needs points, the largest difference that counts as none")
        return self


class _Declared(Record):
    """The content of FILE."""

    predictions: Annotated[tuple[Prediction, ...], Field(min_length=1)]
    primary: str | None = None
    note: str = ""
    discordant: Annotated[float, Field(gt=0, le=1)] = 0.25


class Registered(_Declared):
    """Predictions with the time and the plan that they were made for."""

    time: str
    commit: str | None
    maft: str
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    questions: int | None
    """Held out; None: all that the task has."""
    iteration: int
    """The last one, after which rows are compared."""
    detectable: float | None
    """The smallest difference in points that four of five such comparisons find with one seed, if the two methods
    differ on a share `discordant` of the questions: 280 * sqrt(discordant / questions)."""


class Outcome(Record):
    """A prediction beside what came out."""

    prediction: Prediction
    against: str
    primary: bool
    difference: Difference | None
    """Row minus `against`, as shares; None while one of them is missing."""
    holm: float | None
    """p-value corrected for the number of predictions of `more` or `less`."""

    @property
    def verdict(self) -> str:
        """`held`, `refuted`, `unclear` or `not measured`."""
        gap, direction = self.difference, self.prediction.direction
        if gap is None:
            return "not measured"
        if direction == "same":
            margin = (self.prediction.points or 0.0) / 100
            held, refuted = -margin < gap.low and gap.high < margin, gap.low > margin or gap.high < -margin
        else:
            sign = 1 if direction == "more" else -1
            certain = self.holm is not None and self.holm < SIGNIFICANT
            held, refuted = certain and gap.mean * sign > 0, gap.verdict not in ("unclear", direction)
        return "held" if held else "refuted" if refuted else "unclear"


def register(comparison: Comparison, path: Path) -> Registered:
    """Write the predictions of a file into the folder of a comparison, unless they are there already.

    Raises:
        ConfigError: the file is no list of predictions on rows of this comparison; or agents that one of them is
            about have been evaluated, and these are not the predictions of before.
    """
    declared, earlier = check(comparison, path), registered(comparison)
    if earlier is not None and all(getattr(earlier, name) == value for name, value in declared):
        return earlier
    if (known := _first_result(comparison, declared.predictions)) is not None:
        what = "other predictions were registered before it" if earlier else "predictions come before results"
        raise ConfigError(f"{path}: {known} is evaluated already, and {what}. Choose another name=... to test them.")
    n = comparison.config.task.num_eval
    made = Registered(
        **dict(declared),
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        commit=manifest.commit(),
        maft=__version__,
        methods=comparison.methods,
        seeds=comparison.seeds,
        questions=n,
        iteration=comparison.config.num_iterations,
        detectable=None if n is None else round(280 * sqrt(declared.discordant / n), 1),
    )
    files.write_json(comparison.path / REGISTERED, made.model_dump(mode="json"))
    content = files.read_json(comparison.path / "compare.json")
    files.write_json(
        comparison.path / "compare.json", content | {"preregistered": files.digest(comparison.path / REGISTERED)}
    )
    log.info("%d predictions are registered in %s.", len(made.predictions), comparison.path / REGISTERED)
    return made


def check(comparison: Comparison, path: Path) -> _Declared:
    """Read predictions on the rows of a comparison.

    Raises:
        ConfigError: as `register`.
    """
    declared, rows = _read(path), possible_rows(comparison)
    for name in (*(p.row for p in declared.predictions), *(p.against for p in declared.predictions if p.against)):
        if name not in rows:
            raise ConfigError(f"{path}: {name} is no row of this comparison. The rows are: {', '.join(rows)}.")
    tests: set[frozenset[str]] = set()
    for one in declared.predictions:
        pair = frozenset((one.row, one.against or comparison.against))
        if len(pair) == 1:
            raise ConfigError(f"{path}: {one.row} would be compared with itself. Give it another row as `against`.")
        if one.direction != "same":
            if pair in tests:
                raise ConfigError(f"{path}: the difference between {' and '.join(sorted(pair))} is predicted twice.")
            tests.add(pair)
    if declared.primary not in (None, *(prediction.row for prediction in declared.predictions)):
        raise ConfigError(f"{path}: primary = {declared.primary} is not the row of a prediction.")
    return declared


def _read(path: Path) -> _Declared:
    try:
        tree: Any = reading.read(path.read_text(encoding="utf-8-sig"))
        return _Declared.model_validate(tree)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}.") from None
    except ValidationError as errors:
        first = errors.errors()[0]
        raise ConfigError(
            f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}. It must have predictions, a list of row, "
            "direction (more, less or same) and optionally against, points, why; also primary, note, discordant."
        ) from None
    except ValueError as error:
        raise ConfigError(f"{path} {error}.") from None


def registered(comparison: Comparison) -> Registered | None:
    """Return the registered predictions; None if there are none."""
    path = comparison.path / REGISTERED
    return Registered.model_validate(files.read_json(path)) if path.exists() else None


def remarks(comparison: Comparison) -> list[str]:
    """Say how the comparison differs from what was registered."""
    plan = registered(comparison)
    if plan is None:
        return []
    changes = []
    if files.read_json(comparison.path / "compare.json").get("preregistered") != files.digest(
        comparison.path / REGISTERED
    ):
        changes.append(f"{REGISTERED} was changed after it was registered.")
    now = comparison.config
    for name, before, after in (
        ("seeds", plan.seeds, comparison.seeds),
        ("held-out questions", plan.questions, now.task.num_eval),
        ("last iteration", plan.iteration, now.num_iterations),
    ):
        if before != after:
            shown = [", ".join(map(str, value)) if isinstance(value, tuple) else value for value in (before, after)]
            changes.append(f"Registered with {name}: {shown[0]}; now: {shown[1]}.")
    return changes


def possible_rows(comparison: Comparison) -> list[str]:
    """Return the names of all rows that the table can have."""
    debate, parts = comparison.config.debate, _parts(comparison)
    names = ["base", *parts[1:]]
    for arm in (ARMS[name] for name in comparison.methods):
        names += [arm.name, *(f"{arm.name}_{part}" for part in parts if part != arm.row)]
    if comparison.teaches:
        names.append(f"{comparison.reference}_best_member")
    alone = protocol_of(debate).rounds(debate) == 1
    return [name for name in names if not (alone and name == "debate")]


def _parts(comparison: Comparison) -> list[str]:
    """Return how agents can answer: the names of the untrained model's rows, but for `single`, which is `base`."""
    debate = comparison.config.debate
    many = (debate.num_eval_samples or debate.num_samples) > 1
    return ["single", f"majority@{debate.num_agents}", *(["majority@budget"] if many else []), "debate"]


def _first_result(comparison: Comparison, predictions: Sequence[Prediction]) -> str | None:
    """Name the first evaluation that could have told how a prediction comes out; None if there is none."""
    untrained = {"base", *_parts(comparison)}
    known_first = any(one.row in untrained and one.against in untrained for one in predictions)
    for seed in comparison.seeds:
        for arm in (ARMS[name] for name in comparison.methods if comparison.begun(ARMS[name], seed)):
            folder = comparison.folder(arm, seed)
            for number in range(0 if known_first else 1, comparison.config.num_iterations + 1):
                if folder.evaluated(number):
                    return f"{arm.name}, seed {seed}, iteration {number},"
    return None


def tested(predictions: Sequence[Prediction]) -> int:
    """Return the size of the declared family: the predictions that are tests of a difference."""
    return sum(prediction.direction != "same" for prediction in predictions)
