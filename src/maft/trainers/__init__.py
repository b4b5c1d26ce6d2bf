"""Engines in this process that finetune agents: the `Trainer` protocol and its implementations."""

from maft.trainers.base import Trainer, TrainJob, TrainProgress
from maft.trainers.null import NullTrainer

__all__ = ["NullTrainer", "TrainJob", "TrainProgress", "Trainer"]
