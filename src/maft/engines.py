"""The engine and the trainer that a config names: the only file that knows hosted services and clusters."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from typing import TypeVar

from maft import extensions, models
from maft.config import HOSTED, SAMPLERS, TRAINERS, RunConfig, parts
from maft.errors import MissingExtra
from maft.method import bases, learners
from maft.models.memory import Ledger
from maft.runs.folder import RunFolder
from maft.samplers.base import Sampler
from maft.samplers.scripted import Scripted, guess
from maft.trainers.base import Trainer
from maft.trainers.null import NullTrainer

E = TypeVar("E")
log = logging.getLogger("maft")

NEEDS = {
    "openai": ("openai", "openai"),
    "vllm": ("vllm", "vllm"),
    "openvino": ("openvino", "openvino_genai"),
    "transformers": ("hf", "transformers", "torch"),
    "together": ("together", "together"),
    "fireworks": ("fireworks", "fireworks"),
    "tinker": ("tinker", "tinker"),
}
"""The extra of each sampler and hosted trainer, and the packages that it imports."""
LOCAL = ("auto", "vllm", "openvino", "transformers")
"""Samplers that load a model of transformers in this process."""


def make_sampler(config: RunConfig) -> Sampler:
    """Return the engine that the config names, or workers of a cluster; models are loaded at first use.

    Raises:
        MissingExtra: the engine's packages are not installed.
    """
    if config.cluster.ray is not None and config.engine.sampler != "openai":
        from maft.cluster.sampler import RaySampler

        return RaySampler(config, _with_parts(make_sampler, config))
    settings = config.engine
    name = auto() if settings.sampler == "auto" else settings.sampler
    if name not in SAMPLERS:
        outside: Sampler = extensions.find("sampler", name, Sampler)(config)
        return outside
    if name == "scripted":
        return Scripted(guess, remember=False)
    _require(f"engine.sampler={name}", *NEEDS[name])
    if name == "openai":
        from maft.hosted.sampler import OpenAi
        from maft.samplers.cached import CachedSampler

        home, keep_tokens = config.runs_dir / config.name, config.debate.keep_tokens
        service = OpenAi(config.openai, home, keep_tokens=keep_tokens)
        return CachedSampler(service, RunFolder(home, config).replies, paid=True, keep_tokens=keep_tokens)
    num_bases, make = len(bases(config)), partial(_local, name, config, Ledger())
    if num_bases == 1:
        return make(1)
    from maft.samplers.bases import Bases

    return Bases(make, num_bases)


def _local(name: str, config: RunConfig, ledger: Ledger, num_engines: int) -> Sampler:
    """Return an engine with a model in this process, of `num_engines` that share the memory."""
    if name == "vllm":
        from maft.samplers.vllm import Vllm

        roles = [(role, n) for role in ("generator", "critic") for n in range(config.debate.num_agents)]
        rank = max(config.lora_of(role, n).rank for role, n in roles)
        share = {"gpu_memory_utilization": config.vllm.gpu_memory_utilization / num_engines}
        settings, logprobs = config.vllm.model_copy(update=share), config.debate.keep_tokens
        lora = config.train.method != "full"
        return Vllm(config.engine, settings, len(learners(config)), rank, lora=lora, logprobs=logprobs)
    if name == "openvino":
        from maft.samplers.openvino import OpenVino

        return OpenVino(config.engine, ledger)
    from maft.samplers.transformers import Transformers

    return Transformers(config.engine, ledger)


def _require(what: str, extra: str, *packages: str) -> None:
    if not all(map(installed, packages)):
        raise MissingExtra(what, extra)


def _with_parts(make: Callable[[RunConfig], E], config: RunConfig) -> Callable[[RunConfig], E]:
    """Return `make` with the files of the parts from outside, which the machine of a worker may lack."""
    return partial(_make_on_worker, make, extensions.pack(parts(config)))


def _make_on_worker(make: Callable[[RunConfig], E], files: dict[str, str], config: RunConfig) -> E:
    extensions.unpack(files)
    return make(config)


def check_templates(config: RunConfig) -> None:
    """Check the chat template of each model that is on this machine, as debates and finetuning will use it.

    Raises:
        DataError: a template is unusable; see `maft.models.templates.Template`.
    """
    if config.engine.sampler not in LOCAL or not installed("transformers"):
        return
    from maft.samplers.chat import Chat
    from maft.trainers import dialogue_tokens

    for base in bases(config):
        folder = models.check(base)
        if (
            base.lower() != models.PACKAGED and models.revision(base) is not None
        ):  # else it is known, or not downloaded yet
            chat = Chat(folder, trust=config.engine.trust_remote_code, today=config.engine.date)
            if config.train.loss_turns == "all" and config.engine.trainer == "local":
                dialogue_tokens.check_all_turns(chat.template)


@contextmanager
def opened(config: RunConfig) -> Iterator[Sampler]:
    """Make the engine that the config names, and free what it holds at the end or after an error."""
    sampler = make_sampler(config)
    try:
        yield sampler
    finally:
        sampler.release()


def choose(installed: Callable[[str], bool], device: Callable[[], str]) -> str:
    """Return the name of the engine that suits the machine best.

    >>> choose({"torch", "vllm", "openvino_genai"}.__contains__, lambda: "cpu")
    'openvino'

    Args:
        installed: whether there is a package of that name.
        device: returns the best device, see `maft.samplers.transformers.device`; called only where it matters, since
            it takes seconds.
    """
    for_cuda, for_cpu = installed("vllm"), installed("openvino_genai")
    best = device() if installed("torch") and (for_cuda or for_cpu) else ""
    return "vllm" if best == "cuda" and for_cuda else "openvino" if best == "cpu" and for_cpu else "transformers"


def auto() -> str:
    """Return the name of the engine that `engine.sampler=auto` stands for on this machine."""
    return choose(installed, _device)


def installed(package: str) -> bool:
    """Say whether a package is installed, without importing it."""
    return find_spec(package) is not None


def _device() -> str:
    from maft.samplers.transformers import device

    return device()


def make_trainer(config: RunConfig) -> Trainer:
    """Return the trainer that the config names, or one that gives each job to a worker of a cluster.

    Raises:
        MissingExtra: the trainer's packages are not installed.
        ConfigError: this machine lacks the GPUs that are asked for, or the key of the service.
    """
    elsewhere = config.cluster.ray is not None or config.engine.trainer in HOSTED
    if config.train.online_questions and elsewhere:
        log.warning(
            "train.online_questions: the workers of a cluster, and services, begin each turn with a new optimiser."
        )
    if config.cluster.ray is not None and config.engine.trainer not in HOSTED:
        from maft.cluster.trainer import RayTrainer

        return RayTrainer(config, _with_parts(make_trainer, config))
    if config.engine.trainer not in TRAINERS:
        outside: Trainer = extensions.find("trainer", config.engine.trainer, Trainer)(config)
        return outside
    if config.engine.trainer == "null":
        return NullTrainer()
    if config.engine.trainer in HOSTED:
        return _hosted(config)
    from maft.trainers import launch
    from maft.trainers.sft import SftTrainer

    launch.check(config)
    return SftTrainer(config.engine)


def _hosted(config: RunConfig) -> Trainer:
    name, settings = config.engine.trainer, config.openai
    _require(f"engine.trainer={name}", *NEEDS[name])
    from maft.hosted.service import checked_key
    from maft.hosted.trainer import HostedTrainer

    if name != "openai":  # whose key is asked for with the first request, unless a server needs none
        checked_key(settings)
    if name == "tinker":
        from maft.hosted.tinker import TinkerTrainer

        return TinkerTrainer(settings, config.runs_dir / config.name)
    if name == "together":
        from maft.hosted.jobs_together import TogetherJobs

        _warn_of_settings_not_sent(name, TogetherJobs.not_sent)
        return HostedTrainer(TogetherJobs, settings, config.runs_dir / config.name)
    if name == "fireworks":
        from maft.hosted.jobs_fireworks import FireworksJobs

        _warn_of_settings_not_sent(name, FireworksJobs.not_sent)
        return HostedTrainer(FireworksJobs, settings, config.runs_dir / config.name)
    from maft.hosted.jobs_openai import CLOSING, OpenAiJobs

    if settings.base_url is None:
        log.warning(CLOSING)
    return HostedTrainer(OpenAiJobs, settings, config.runs_dir / config.name)


def _warn_of_settings_not_sent(name: str, keys: Sequence[str]) -> None:
    log.warning("The values of %s hold, not those of the config, for %s.", name, ", ".join(f"train.{k}" for k in keys))
