"""The seam to finetuning: jobs in, adapters or models in folders out."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from maft.config import LoraConfig, TrainConfig, Training
from maft.records import Record


class TrainJob(Record):
    """One finetuning of one agent on its own examples."""

    agent: str
    """Such as `critic_2`."""
    role: str
    iteration: int
    examples: Path
    """JSONL of `Example` records: `messages` end with the response to learn."""
    num_examples: int
    base_model: str
    """Name of the model as the config has it; `maft.models.names.resolve` finds its folder."""
    init_adapter: Path | None
    """PEFT folder to go on from; None starts from the base model."""
    output: Path
    """Folder to make: it appears whole, by a rename, or not at all."""
    seed: int
    lora: LoraConfig | None = None
    """Shape of its adapter, where that is not `train.lora`."""
    keep_optimizer: bool = False
    """Continue from the optimiser state that this agent's last job in the same session left, if it is held, and leave
    one for its next job."""

    def work(self, settings: TrainConfig) -> int:
        """Return how long the job will take, in no unit: the bytes of its examples, as often as they are seen."""
        return self.examples.stat().st_size * self.training(settings).num_epochs

    def training(self, settings: TrainConfig) -> Training:
        """Return the settings that hold for this job's role, iteration and agent."""
        found = settings.of(self.role, self.iteration)
        return found if self.lora is None else found.model_copy(update={"lora": self.lora})


class TrainProgress(Record):
    """How far the training of one agent is; sent after every optimiser step."""

    agent: str
    step: int
    num_steps: int
    loss: float | None
    tokens: int
    """Tokens trained on so far in this job, padding excluded."""
    learning_rate: float | None = None
    """Of this step; None if the trainer does not say."""


class Trainer(ABC):
    """Finetunes agents, one job each."""

    @abstractmethod
    def train(
        self, jobs: Sequence[TrainJob], settings: TrainConfig, on_progress: Callable[[TrainProgress], None]
    ) -> None:
        """Make the output folder of each job; a job whose folder is there already must not be given again.

        Raises:
            maft.errors.StageFailed: a training failed; the folders of the jobs finished before it are there.
        """

    @contextmanager
    def open(self) -> Iterator["Trainer"]:
        """Yield a trainer that holds what it can between its calls, until the block ends.

        Trainers in this machine hold the base model and, for jobs with `keep_optimizer`, optimiser states. A failed
        call loses these, and no finished folder.
        """
        yield self
