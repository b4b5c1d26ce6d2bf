"""How hard questions of a task are for a model, over settings of the task: `maft calibrate`.

(How long and how fast a model's replies are is `planning.calibration`, which `maft plan --calibrate` measures.)

Every setting gets first answers only, k to each of some training questions. There is something to learn where a single
answer is right for 20 to 60 % of the questions, and something for critics to find where pass@k is far above
the vote of k.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from maft import config as config_
from maft import tasks
from maft.answers.meaning import Embedded, fitting_similarity
from maft.config import RunConfig, SocietyConfig, TaskConfig, VoteConfig, reading
from maft.errors import ConfigError, DataError, StageFailed
from maft.evaluation.paired import Difference
from maft.evaluation.replay import Replayed, Share, of_debates
from maft.evaluation.votes import decide
from maft.pipeline import rollouts
from maft.pipeline import run as pipeline
from maft.records import Debate, Problem, Record, Reply
from maft.runs import societies
from maft.runs.folder import RunFolder
from maft.samplers.base import Sampler
from maft.samplers.cached import CachedSampler

EASIEST, HARDEST = 0.6, 0.2
"""Accuracy of a single answer between which a task is neither too easy nor too hard to learn from votes."""
MOST_VALUES = 100
"""Maximum number of values in a range of a knob."""
KNOBS: Mapping[str, Mapping[str, tuple[Any, ...]]] = {"arithmetic": {"high": (4, 9, 19)}}
"""Settings that are tried where none are named, by task."""

Knobs = Mapping[str, Sequence[Any]]
"""Values to try of each setting; a name that is no setting of a task is one of `task.options`."""


class Difficulty(Record):
    """One setting of a task."""

    settings: dict[str, Any]
    """By knob."""
    questions: int = 0
    answers: int = 0
    """To each question."""
    single: Share | None = None
    """Right by one answer; None where the questions could not be had, see `error`."""
    vote: Share | None = None
    passed: Share | None = None
    room: Difference | None = None
    """pass@k minus the accuracy of the vote of k."""
    unparsed: float = 0.0
    """Share of the answers that could not be read."""
    cut: float = 0.0
    """Share of the replies that reached the limit of tokens."""
    tokens: float = 0.0
    """Mean length of a reply."""
    error: str | None = None

    @property
    def fits(self) -> bool:
        """Say whether a single answer is right neither too seldom nor too often."""
        return self.single is not None and HARDEST <= self.single.mean <= EASIEST


def read_knobs(texts: Sequence[str]) -> Knobs:
    """Read knobs as the command line has them.

    >>> read_knobs(["high=5,9", "operators=+-,*", "max_numbers=2..4"])
    {'high': [5, 9], 'operators': ['+-', '*'], 'max_numbers': [2, 3, 4]}

    Raises:
        ConfigError: not of the form name=a,b,...
    """
    knobs: dict[str, Sequence[Any]] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        if not equals or not name.isidentifier() or not all(values.split(",")):
            raise ConfigError(f"--knob must look like name=a,b,... or name=1..4, got {text!r}.")
        bounds = re.fullmatch(r"(-?\d{1,9})\.\.(-?\d{1,9})", values)
        numbers = range(int(bounds[1]), int(bounds[2]) + 1) if bounds else ()
        if len(numbers) > MOST_VALUES or (bounds and not numbers):
            raise ConfigError(f"--knob {text}: a range has 1 to {MOST_VALUES} values, the smaller bound first.")
        knobs[name] = list(numbers) or [_value(value) for value in values.split(",")]
    return knobs


def _value(text: str) -> Any:
    try:
        return reading.read(text)
    except ValueError:  # a text such as *
        return text


def cells(config: RunConfig, knobs: Knobs) -> list[tuple[dict[str, Any], RunConfig]]:
    """Return every combination of the knobs, with the config that has it.

    Raises:
        ConfigError: a value is not one of that setting.
    """
    names = list(knobs)
    combined = [dict(zip(names, values, strict=True)) for values in product(*(knobs[name] for name in names))]
    return [(chosen, _with(config, chosen)) for chosen in combined]


def measure(
    config: RunConfig,
    knobs: Knobs,
    questions: int,
    answers: int,
    home: Path,
    sampler: Sampler,
    on_reply: Callable[[Reply], None] | None = None,
) -> Iterator[Difficulty]:
    """Measure every combination of the knobs.

    Questions are of the training side; `home` keeps replies, so that nothing is asked twice.

    Raises:
        ConfigError, StageFailed: the task refuses every combination; where it refuses some, these have an `error`.
    """
    works = False
    refused: ConfigError | StageFailed | None = None
    cached = CachedSampler(sampler, home / "replies.sqlite", keep_tokens=False)
    for chosen, cell in cells(config, knobs):
        alone = _alone(cell, questions, answers)
        try:
            problems = tasks.prepare(tasks.make(alone.task)).train
        except (ConfigError, DataError, StageFailed) as error:
            refused = refused or (None if isinstance(error, DataError) else error)
            yield Difficulty(settings=chosen, error=f"refused: {error}")
            continue
        works = True
        rules = pipeline.debate_rules(RunFolder(home, alone), 0, societies.untrained(alone), "train")
        batch, path = alone.engine.batch_size, home / f"{config_.digest(alone)}.jsonl"
        debates = rollouts.collect(problems, rules, cached, path, batch_size=batch, on_reply=on_reply)
        found = {} if "similarity" in chosen else _similarity(alone, debates)
        alone = alone.model_copy(update={"task": alone.task.model_copy(update=found)})
        yield _difficulty(chosen | found, list(debates), problems, alone)
    if refused and not works:
        raise refused


def _similarity(config: RunConfig, debates: Iterable[Debate]) -> dict[str, float]:
    """Return the setting `similarity` as these answers have it, if sentence embeddings compare them."""
    equality = tasks.make(config.task).equality
    if not isinstance(equality, Embedded):
        return {}
    answers = [[turn.answer for turn in debate.all_turns if turn.answer is not None] for debate in debates]
    found = fitting_similarity(equality, answers)
    return {} if found is None else {"similarity": found}


def best(measured: Sequence[Difficulty]) -> Difficulty | None:
    """Return the setting that fits with the most room for critics; of those that do not fit, the nearest to 40 %."""
    known = [one for one in measured if one.single is not None and one.room is not None]
    fitting = [one for one in known if one.fits]
    middle = (EASIEST + HARDEST) / 2
    if fitting:
        return max(fitting, key=lambda one: one.room.mean if one.room else 0.0)
    if not known:
        return next((one for one in measured if "similarity" in one.settings), None)
    return min(known, key=lambda one: abs(one.single.mean - middle) if one.single else 1.0)


def table(measured: Sequence[Difficulty]) -> str:
    """Return a row for each setting that was measured, as text, and a line for each that could not be."""
    rows = [(one, cells) for one in measured if (cells := _cells(one))]
    errors = [f"{_named(one)}: {one.error}" for one in measured if not _cells(one)]
    if not rows:
        return "\n".join(errors)
    k = max(one.answers for one, _ in rows)
    shares = ("single %", f"vote of {k} %", f"pass@{k} %", "room (95 %)", "unparsed %", "cut %")
    grid = [[*rows[0][0].settings, *shares, "tokens a reply"]]
    grid += [[*map(str, one.settings.values()), *cells] for one, cells in rows]
    widths = [max(map(len, column)) for column in zip(*grid, strict=True)]
    lines = ["  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)) for row in grid]
    each = ", ".join(map(str, sorted({one.questions for one, _ in rows})))
    return "\n".join([*lines, *errors, "", f"{each} questions each; room is pass@{k} minus vote of {k}."])


def _cells(one: Difficulty) -> list[str]:
    """Return what was measured; nothing if it could not be."""
    if one.single is None or one.vote is None or one.passed is None or one.room is None:
        return []
    shares = [f"{100 * share:.1f}" for share in (one.single.mean, one.vote.mean, one.passed.mean)]
    room = f"{100 * one.room.mean:.1f} ({100 * one.room.low:.1f} to {100 * one.room.high:.1f})"
    return [*shares, room, f"{100 * one.unparsed:.1f}", f"{100 * one.cut:.1f}", f"{one.tokens:.0f}"]


def _named(one: Difficulty) -> str:
    return ", ".join(f"{name} = {value}" for name, value in one.settings.items()) or "this task"


def recommendation(measured: Sequence[Difficulty]) -> str:
    """Say which setting is best, and why."""
    chosen = best(measured)
    if chosen is not None and chosen.single is None:
        return f"similarity = {chosen.settings['similarity']}; accuracy is not known: {chosen.error}."
    if chosen is None or chosen.single is None or chosen.room is None:
        return "No setting could be measured."
    named = _named(chosen)
    what = f"a single answer is right for {chosen.single.mean:.1%}, pass@{chosen.answers} is "
    what += f"{100 * chosen.room.mean:.1f} points above the vote of {chosen.answers}"
    if chosen.fits:
        return f"Best: {named}: {what}."
    side = "too easy" if chosen.single.mean > EASIEST else "too hard"
    return (
        f"No setting is between {HARDEST:.0%} and {EASIEST:.0%} for a single answer. The nearest is {named}, which is "
        f"{side}: {what}. Try other values with --knob."
    )


def ready(config: RunConfig, chosen: Difficulty) -> dict[str, Any]:
    """Return the settings of a run with the chosen setting of the task: those that differ from the defaults.

    Numbers of questions that the task does not have with this setting are left out, which takes all there are.
    """
    whole = _with(config, chosen.settings)
    try:
        tasks.prepare(tasks.make(whole.task))
    except DataError:
        whole = whole.model_copy(update={"task": whole.task.model_copy(update={"num_train": None, "num_eval": None})})
    default = RunConfig(task=TaskConfig(name=config.task.name))
    tree: dict[str, Any] = {"task": {"name": config.task.name}}
    for key, (_, value) in config_.differences(default, whole).items():
        *sections, last = key.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[last] = value
    return tree


def _with(config: RunConfig, chosen: Mapping[str, Any]) -> RunConfig:
    places = {name: "task." if name in TaskConfig.model_fields else "task.options." for name in chosen}
    return config_.over(config, {places[name] + name: value for name, value in chosen.items()}, "--knob")


def _alone(config: RunConfig, questions: int, answers: int) -> RunConfig:
    """Return a config whose debates are k first answers of the base model."""
    task = {"num_train": questions, "num_eval": questions, "size": None}
    changed = {
        "task": config.task.model_copy(update=task),
        "debate": config.debate.model_copy(update={"protocol": "vote", "num_agents": 1, "num_samples": answers}),
        "society": SocietyConfig(),
        "vote": VoteConfig(count_cut=config.vote.count_cut),
    }
    return config.model_copy(update=changed)


def _difficulty(
    chosen: dict[str, Any], debates: Sequence[Debate], problems: Sequence[Problem], config: RunConfig
) -> Difficulty:
    pairs = zip(debates, decide(debates, problems, config), strict=True)
    made: Replayed | None = of_debates(pairs, config, "train", 0)
    turns = [turn for debate in debates for turn in debate.first_answers()]
    if made is None:
        return Difficulty(settings=chosen, error="no question has a known answer")
    top = made.curve[-1]
    return Difficulty(
        settings=chosen,
        questions=made.n,
        answers=made.first_answers,
        single=made.single,
        vote=top.vote,
        passed=top.passed,
        room=made.room,
        unparsed=sum(turn.answer is None for turn in turns) / len(turns),
        cut=sum(turn.cut for turn in turns) / len(turns),
        tokens=sum(turn.call.reply.completion_tokens for turn in turns) / len(turns),
    )
