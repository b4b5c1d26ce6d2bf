"""Engines that finetune agents: the `Trainer` protocol and its implementations by name."""

from maft.config import EngineConfig
from maft.trainers.base import Trainer, TrainJob, TrainProgress
from maft.trainers.null import NullTrainer

__all__ = ["NullTrainer", "TrainJob", "TrainProgress", "Trainer", "make"]


def make(settings: EngineConfig) -> Trainer:
    """Return the trainer that the settings name."""
    if settings.trainer == "null":
        return NullTrainer()
    from maft.trainers.sft import SftTrainer

    return SftTrainer(settings.dtype)
