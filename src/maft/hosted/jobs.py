"""The seam to the finetuning jobs of a hosted service: upload a set, start a job, look at it, name its model."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

from maft.config import OpenAiConfig, Training
from maft.method.formats import write_dialogues
from maft.records import Example
from maft.trainers.base import TrainJob

ENDED = ("succeeded", "failed", "cancelled")


class State(NamedTuple):
    """What a service says about a job."""

    status: str
    """`running`, one of `ENDED`, or the service's own word for a job that waits for somebody."""
    model: str | None = None
    """Name by which the finetuned model is sampled."""
    tokens: int | None = None
    """Tokens trained on, in all epochs."""
    usd: float | None = None
    """Price of the job."""
    reason: str | None = None
    """The service's words on why it failed."""
    step: tuple[int, int] | None = None
    """Steps done and their total."""


class Jobs(ABC):
    """One service, through its own client. Every method makes its calls once; `HostedTrainer` tries them again."""

    error: type[Exception]
    """Base class of the errors of the client."""
    least_examples: ClassVar[int] = 1
    """The service refuses smaller sets."""
    largest_file: ClassVar[int]
    """In bytes; the service refuses larger files."""
    not_sent: ClassVar[tuple[str, ...]] = ()
    """Settings of `train` for which the service has values of its own."""

    @abstractmethod
    def __init__(self, settings: OpenAiConfig) -> None:
        """Make the client; nothing is sent.

        Raises:
            ConfigError: the environment has no key, or one that cannot be sent.
        """

    @abstractmethod
    def close(self) -> None:
        """Close the connections."""

    def rows(self, examples: Sequence[Example], *, last_only: bool) -> str:
        """Return a training set in the service's format, of responses or of pairs."""
        return write_dialogues(examples, "openai", last_only=last_only)

    @abstractmethod
    def terms(self, job: TrainJob, training: Training) -> dict[str, Any]:
        """Return the settings of a job which, besides model, seed and set, make it another job."""

    @abstractmethod
    def upload(self, marker: str, text: str) -> str:
        """Return the id of a set, which is uploaded unless there is one of this name."""

    def price(self, file: str, job: TrainJob, training: Training) -> float | None:
        """Return the US dollars that a job will cost, if the service says so beforehand."""
        return None

    @abstractmethod
    def find(self, marker: str, training: Training) -> str | None:
        """Return the id of a job of this name that runs or has succeeded."""

    @abstractmethod
    def start(self, marker: str, file: str, job: TrainJob, training: Training) -> str:
        """Start a job and return its id.

        Raises:
            ConfigError: the service offers no such training.
        """

    @abstractmethod
    def state(self, name: str, job: TrainJob) -> State | None:
        """Return the state of a job, known to the service by its name; None if it does not know it any more."""


def whole(answers: list[Any], *names: str) -> list[Any]:
    """Return a service's answers, if they have these fields.

    Raises:
        TypeError: they are something else, such as a page of HTML, which the client takes for text.
    """
    if not all(isinstance(getattr(answer, name, None), str) for answer in answers for name in names):
        raise TypeError
    return answers
