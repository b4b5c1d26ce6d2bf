"""Engines that finetune agents: the `Trainer` protocol and its implementations by name."""

from importlib.util import find_spec

from maft.config import RunConfig
from maft.errors import MissingExtra
from maft.trainers.base import Trainer, TrainJob, TrainProgress
from maft.trainers.null import NullTrainer

__all__ = ["NullTrainer", "TrainJob", "TrainProgress", "Trainer", "make"]


def make(config: RunConfig) -> Trainer:
    """Return the trainer that the config names, or one that gives each job to a worker of a cluster.

    Raises:
        MissingExtra: the trainer's packages are not installed.
        ConfigError: this machine has not the GPUs that are asked for.
    """
    if config.cluster.ray is not None and config.engine.trainer != "openai":
        from maft.trainers.ray import RayTrainer

        return RayTrainer(config, make)
    if config.engine.trainer == "null":
        return NullTrainer()
    if config.engine.trainer == "openai":
        if find_spec("openai") is None:
            raise MissingExtra("engine.trainer=openai", "openai")
        from maft.trainers.openai import OpenAiTrainer

        return OpenAiTrainer(config.openai, config.runs_dir / config.name)
    from maft.trainers import launch
    from maft.trainers.sft import SftTrainer

    launch.check(config)
    return SftTrainer(config.engine)
