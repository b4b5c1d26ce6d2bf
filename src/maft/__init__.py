"""maft: multiagent finetuning of language models (arXiv 2501.05707).

The names in `__all__` are the public ones; each is loaded when it is first asked for, so that `import maft` is quick.

>>> import maft
>>> maft.equivalent("1/2", "0.5")
True
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maft.answers import equivalent, extract_answer
    from maft.config import RunConfig
    from maft.errors import ConfigError, DataError, MaftError, MissingExtra, StageFailed, UserError
    from maft.library import Answer, LoadedSociety, Records, Run, open, run
    from maft.method import Protocol, play
    from maft.method.curate import critic_examples, generator_examples
    from maft.method.vote import Tally, tally, vote
    from maft.records import (
        AgentRef,
        Call,
        Debate,
        Example,
        Message,
        Problem,
        Reply,
        Request,
        SamplingParams,
        Score,
        Society,
        Turn,
        Vote,
    )
    from maft.runs.folder import RunFolder
    from maft.samplers import Sampler, Scripted
    from maft.tasks import Split, Task
    from maft.trainers import NullTrainer, Trainer, TrainJob, TrainProgress

__version__ = "0.1.0"

__all__ = [
    "AgentRef",
    "Answer",
    "Call",
    "ConfigError",
    "DataError",
    "Debate",
    "Example",
    "LoadedSociety",
    "MaftError",
    "Message",
    "MissingExtra",
    "NullTrainer",
    "Problem",
    "Protocol",
    "Records",
    "Reply",
    "Request",
    "Run",
    "RunConfig",
    "RunFolder",
    "Sampler",
    "SamplingParams",
    "Score",
    "Scripted",
    "Society",
    "Split",
    "StageFailed",
    "Tally",
    "Task",
    "TrainJob",
    "TrainProgress",
    "Trainer",
    "Turn",
    "UserError",
    "Vote",
    "critic_examples",
    "equivalent",
    "extract_answer",
    "generator_examples",
    "open",
    "play",
    "run",
    "tally",
    "vote",
]

_HOMES = {
    "answers": ["equivalent", "extract_answer"],
    "config": ["RunConfig"],
    "errors": ["ConfigError", "DataError", "MaftError", "MissingExtra", "StageFailed", "UserError"],
    "library": ["Answer", "LoadedSociety", "Records", "Run", "open", "run"],
    "method": ["Protocol", "play"],
    "method.curate": ["critic_examples", "generator_examples"],
    "method.vote": ["Tally", "tally", "vote"],
    "runs.folder": ["RunFolder"],
    "samplers": ["Sampler", "Scripted"],
    "tasks": ["Split", "Task"],
    "trainers": ["NullTrainer", "TrainJob", "TrainProgress", "Trainer"],
}
"""Which module has a name; the others are records."""


def __getattr__(name: str) -> Any:
    """Load a public name from the module that has it (PEP 562)."""
    if name in __all__:
        home = next((module for module, names in _HOMES.items() if name in names), "records")
        globals()[name] = getattr(import_module(f"maft.{home}"), name)
        return globals()[name]
    raise AttributeError(f"module 'maft' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
