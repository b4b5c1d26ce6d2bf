"""Runs a comparison: every arm for every seed, in one folder, with one engine.

runs/<name>/
  compare.json           config, methods, seeds and reference: the identity of the comparison
  cache/                 replies and finetuned agents, shared by all arms
  seed_0/maft/           an ordinary run folder for each arm
  results.json           the rows of the table, see `maft.comparison.results`
"""

import logging
import os
from collections.abc import Callable, Sequence
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple

from maft import config as config_
from maft import engines, files, tasks
from maft.cluster.mirror import mirrored
from maft.comparison import distil, star
from maft.comparison.arms import ARMS, PAPER, Arm
from maft.config import RunConfig
from maft.errors import ConfigError, UserError
from maft.evaluation.methods import tokens
from maft.files import Records
from maft.pipeline import run as pipeline
from maft.pipeline import tracking
from maft.records import Debate
from maft.runs import manifest, societies, status
from maft.runs.folder import RunFolder
from maft.runs.progress import Progress
from maft.samplers.base import Sampler
from maft.samplers.cached import CachedSampler
from maft.trainers.base import Trainer
from maft.trainers.cached import CachedTrainer

log = logging.getLogger("maft")

REGISTERED = "preregistered.json"
"""Predictions, see `maft.comparison.preregister`; their methods are always run and shown together."""


class Comparison(NamedTuple):
    """What is compared, and where."""

    path: Path
    config: RunConfig
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    reference: str = "maft"
    """The method that sets the number of examples of the others, and the tokens of a vote."""
    others: tuple[str, ...] = ()
    """Methods of earlier calls that this one leaves out: they are not run and not shown, and stay in the folder."""
    earlier_seeds: tuple[int, ...] = ()
    """Seeds of earlier calls; those that this one leaves out stay in the folder, too."""

    @property
    def against(self) -> str:
        """The row that the others are compared with: the reference's answers at the tokens that it sets."""
        if ARMS[self.reference].row == "debate":
            return self.reference
        debate = config_.over(self.config, ARMS[self.reference].settings(self.config), self.reference).debate
        many = (debate.num_eval_samples or debate.num_samples) > 1
        return f"{self.reference}_majority@{'budget' if many else debate.num_agents}"

    @property
    def own_settings(self) -> dict[str, tuple[Any, Any]]:
        """Settings of finetuning that an adopted reference had otherwise: its value, and that of the other methods."""
        arm = ARMS[self.reference]
        runs = [self.folder(arm, seed) for seed in self.seeds if self.adopted(arm, seed)]
        changed = [config_.differences(run.config, self.config) for run in runs]
        return {key: pair for of_run in changed for key, pair in of_run.items() if key.startswith("train.")}

    @property
    def teaches(self) -> bool:
        """Say whether some method learns from the reference's finetuned society."""
        return any(ARMS[name].teaches for name in self.methods)

    def adopted(self, arm: Arm, seed: int) -> bool:
        """Say whether the run of an arm is a finished one from elsewhere, see `of_run`."""
        return (self.path / f"seed_{seed}" / arm.name).is_symlink()

    def begun(self, arm: Arm, seed: int) -> bool:
        """Say whether the run of an arm exists, finished or not."""
        return (self.path / f"seed_{seed}" / arm.name / "config.json").exists()

    def folder(self, arm: Arm, seed: int) -> RunFolder:
        """Return the run folder of an arm, which need not exist yet."""
        path = self.path / f"seed_{seed}" / arm.name
        return RunFolder.existing(path) if self.begun(arm, seed) else RunFolder(path, arm_config(self, arm, seed))


def compare(comparison: Comparison, sampler: Sampler, trainer: Trainer, progress: Progress) -> None:
    """Run every arm, or resume it; the reference first, since it sets the others' number of examples."""
    arms = [ARMS[name].settings(comparison.config) for name in comparison.methods]
    keep = comparison.config.debate.keep_tokens or any(arm.get("debate.keep_tokens") for arm in arms)
    replies = comparison.path / "cache" / "replies.sqlite"
    cached_sampler = CachedSampler(sampler, replies, keep_tokens=keep, shared=True)
    cached_trainer = CachedTrainer(trainer, comparison.path / "cache" / "agents")
    for seed in comparison.seeds:
        for name in comparison.methods:
            progress.say(f"{name}, seed {seed}")
            _run(comparison, ARMS[name], seed, cached_sampler, cached_trainer, progress)


def default_methods(config: RunConfig) -> tuple[str, ...]:
    """Return the methods of the paper, without those that need known answers where training questions have none."""
    if all(problem.gold is not None for problem in tasks.prepare(tasks.make(config.task)).train):
        return PAPER
    log.info("Method star is left out: it needs known answers, and some training questions have none.")
    return tuple(name for name in PAPER if ARMS[name].star != "gold")


def begin(config: RunConfig, methods: Sequence[str], seeds: Sequence[int], reference: str = "maft") -> Comparison:
    """Make the folder of a comparison, or resume it; methods and seeds may be added. No seeds are those of before.

    Several processes may work in one folder, such as one for each seed.

    Raises:
        ConfigError: as `chosen` does.
        DataError: an adapter that agents begin with does not fit its base model.
    """
    import filelock

    asked = chosen(config, methods, seeds, reference)
    societies.check(config)
    engines.check_templates(config)
    if any(ARMS[name].star == "gold" for name in asked.methods):
        star.check_gold(tasks.prepare(tasks.make(config.task)).train)
    path = asked.path / "compare.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(asked.path / ".lock"):
        asked = chosen(config, methods, seeds, reference)  # another process may have added methods or seeds
        content = {
            "config": config.model_dump(mode="json"),
            "methods": (*asked.methods, *asked.others),
            "seeds": tuple(dict.fromkeys((*asked.earlier_seeds, *asked.seeds))),
            "reference": asked.reference,
        }
        kept = files.read_json(path) if path.exists() else {}
        files.write_json(path, kept | content)
    return asked


def chosen(config: RunConfig, methods: Sequence[str], seeds: Sequence[int], reference: str = "maft") -> Comparison:
    """Return the comparison that would run: the reference, the given methods, and all if predictions are registered.

    Raises:
        ConfigError: a method that does not exist, has settings that this config cannot take, or is one model where
            society names several; a reference that takes
            its own number of examples from another; engines that do not fit together; or the folder holds a run, or a
            comparison with other settings.
    """
    config_.check_loop(config)
    methods = (reference, *methods)
    unknown = [name for name in methods if name not in ARMS]
    if unknown:
        raise ConfigError(f"{unknown[0]} is not a method. The methods are: {', '.join(ARMS)}.")
    if ARMS[reference].budget:
        free = ", ".join(name for name, arm in ARMS.items() if not arm.budget)
        raise ConfigError(
            f"--reference {reference}: this method gets as many examples as the reference, so it cannot be the "
            f"reference. Choose one of: {free}."
        )
    _refuse_one_for_several(config, methods)
    if config.train.online_questions and any(ARMS[name].budget for name in methods):
        raise ConfigError(
            "methods with an equal number of examples do not support train.online_questions. "
            f"Leave it out, or leave out these methods: {', '.join(name for name in methods if ARMS[name].budget)}."
        )
    for name in methods:
        config_.over(config, ARMS[name].settings(config), f"method {name}")
    path = config.runs_dir / config.name
    if path.is_file():
        raise ConfigError(f"{path} is a file, and cannot be the folder of a comparison. Choose another name=...")
    if (path / "config.json").exists():
        raise ConfigError(f"{path} holds a run. Choose another name=... for the comparison.")
    asked = Comparison(path, config, tuple(dict.fromkeys(methods)), tuple(dict.fromkeys(seeds)), reference)
    if not (path / "compare.json").exists():
        return asked if seeds else asked._replace(seeds=(config.seed,))
    earlier = existing(path)
    changed = config_.differences(earlier.config, config)
    changed.pop("seed", None)
    if earlier.reference != reference:
        changed["--reference"] = (earlier.reference, reference)
    if changed:
        keys = "\n".join(f"  {key}: {old!r} there, {new!r} asked for" for key, (old, new) in changed.items())
        raise ConfigError(f"{path} holds a comparison with other settings:\n{keys}\nChoose another name=...")
    registered = files.read_json(path / REGISTERED)["methods"] if (path / REGISTERED).exists() else ()
    methods = tuple(dict.fromkeys((*asked.methods, *registered)))
    return asked._replace(
        methods=methods,
        others=tuple(name for name in earlier.methods if name not in methods),
        seeds=asked.seeds or earlier.seeds,
        earlier_seeds=earlier.seeds,
    )


def _refuse_one_for_several(config: RunConfig, methods: Sequence[str]) -> None:
    """Refuse methods of one model, before any work, if the agents begin as several."""
    apart = [name for name, arm in ARMS.items() if "society.one_model" not in arm.settings(config)]
    of_one = [name for name in methods if name not in apart]
    if not of_one:
        return
    try:
        config_.parse(config.model_dump(mode="json"), ["society.one_model=true"])
    except ConfigError as error:
        why = str(error).splitlines()[-1].strip()
        raise ConfigError(
            f"method {of_one[0]} uses one model for all agents, which these settings do not allow: {why} "
            f"Or choose methods with separate agents, with --methods: {', '.join(apart)}."
        ) from None


def existing(path: Path) -> Comparison:
    """Read the folder of a comparison.

    Raises:
        ConfigError: it was made by another version of maft, or was edited.
    """
    content: dict[str, Any] = files.read_json(path / "compare.json")
    config = config_.parse(content["config"], source=str(path / "compare.json"))
    return Comparison(
        path, config, tuple(content["methods"]), tuple(content["seeds"]), content.get("reference", "maft")
    )


def arm_config(comparison: Comparison, arm: Arm, seed: int) -> RunConfig:
    """Return the config of one arm: the common one, the arm's own settings, and its share of examples."""
    settings = {"name": arm.name, "runs_dir": str(comparison.path / f"seed_{seed}"), "seed": seed}
    if comparison.config.cluster.storage is not None:
        settings["cluster.storage"] = f"{comparison.config.cluster.storage}/{comparison.path.name}/seed_{seed}"
    settings |= arm.settings(comparison.config)
    if arm.budget:
        settings["curate.max_examples"] = _examples_of_reference(comparison, seed, arm.budget)
    return config_.over(comparison.config, settings, f"method {arm.name}")


def _examples_of_reference(comparison: Comparison, seed: int, budget: str) -> list[int]:
    """Return how many examples one agent of the reference had on average, or all together, for each iteration."""
    folder = comparison.folder(ARMS[comparison.reference], seed)
    num_iterations = max(folder.config.num_iterations, comparison.config.num_iterations)
    counts = [pipeline.num_examples(folder, n) for n in range(1, num_iterations + 1)]
    share: Callable[[dict[str, int]], float] = (
        (lambda of: sum(of.values()) / len(of)) if budget == "one" else (lambda of: sum(of.values()))
    )
    return [max(1, round(share(of))) for of in counts if of]


def of_run(run: RunFolder, methods: Sequence[str], overrides: Sequence[str] = ()) -> Comparison:
    """Begin a comparison whose reference is a finished run, in the folder `<run>_distilled` beside it, or resume it.

    The other methods give as many answers to a held-out question as a debate of the run costs in tokens.

    Raises:
        UserError: the run is not finished.
        ConfigError: as `chosen` does, or the folder was made from another run, such as this one before it was repeated.
    """
    if not status.complete(run):
        raise UserError(f"{run.path} is not finished: {status.next_step(run)}. Finish it with `maft run {run.path}`.")
    config = config_.parse(config_.changed(run.config.model_dump(mode="json"), overrides))
    debates = Records(run.held_out_debates(config.num_iterations), Debate)
    whole = tokens(call for debate in debates for call in debate.calls(samples=False))
    first = tokens(turn.call for debate in debates for turn in debate.round(1))
    enough = max(config.debate.num_eval_samples or config.debate.num_samples, ceil(1.25 * whole / max(1, first)))
    debate = config.debate.model_copy(update={"num_eval_samples": enough})
    config = config.model_copy(update={"name": f"{config.name}_distilled", "debate": debate})
    asked = chosen(config, methods, [config.seed])
    path, heard = (
        asked.path / "compare.json",
        [files.digest(run.held_out_debates(n)) for n in range(config.num_iterations + 1)],
    )
    earlier = files.read_json(path).get("teacher", []) if path.exists() else []
    if {*asked.earlier_seeds} - {config.seed} or any(old != new for old, new in zip(earlier, heard, strict=False)):
        raise ConfigError(
            f"{asked.path} was made from another run than {run.path} is now: that had another seed, or was repeated "
            "since. Move the folder away to distil this run."
        )
    link = asked.path / f"seed_{config.seed}" / asked.reference
    link.parent.mkdir(parents=True, exist_ok=True)
    if not link.exists():
        link.symlink_to(os.path.relpath(run.path.resolve(), link.parent.resolve()))
    begun = begin(config, methods, [config.seed])
    files.write_json(path, files.read_json(path) | {"teacher": heard})
    if begun.own_settings:
        log.warning(
            "The society was finetuned with other settings than what is compared with it: %s.",
            ", ".join(f"{key} = {own}, not {others}" for key, (own, others) in begun.own_settings.items()),
        )
    return begun


def _extend(folder: RunFolder, config: RunConfig) -> None:
    """Give a run that gets further iterations their numbers of examples; those of the iterations before stay."""
    earlier, now = folder.config.curate.max_examples, config.curate.max_examples
    if isinstance(earlier, tuple) and isinstance(now, tuple) and earlier == now[: len(earlier)] != now:
        curate = folder.config.curate.model_copy(update={"max_examples": now})
        files.write_text(folder.config_file, config_.resolved(folder.config.model_copy(update={"curate": curate})))


def _run(comparison: Comparison, arm: Arm, seed: int, sampler: Sampler, trainer: Trainer, progress: Progress) -> None:
    if comparison.adopted(arm, seed):
        return
    config = arm_config(comparison, arm, seed)
    if comparison.begun(arm, seed):
        _extend(comparison.folder(arm, seed), config)
    with RunFolder.open(config, mirrored) as folder, tracking.following(folder, comparison.config.name):
        if status.complete(folder):
            return
        manifest.write(folder)
        if arm.star:
            star.run(folder, sampler, trainer, progress, with_gold=arm.star == "gold")
        elif arm.teaches:
            teacher = comparison.folder(ARMS[comparison.reference], seed)
            distil.run(folder, teacher, sampler, trainer, progress, whole=arm.teaches == "debates")
        else:
            pipeline.run(folder, sampler, trainer, progress, keep_going=True)
