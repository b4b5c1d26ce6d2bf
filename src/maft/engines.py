"""The engine and the trainer that a config names: the only file that knows hosted services and clusters."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from typing import TypeVar

from maft import extensions, models
from maft.config import SAMPLERS, TRAINERS, RunConfig, parts
from maft.errors import MissingExtra
from maft.method import bases, learners
from maft.models.memory import Ledger
from maft.runs.folder import RunFolder
from maft.samplers.base import Sampler
from maft.samplers.scripted import Scripted, guess
from maft.trainers.base import Trainer
from maft.trainers.null import NullTrainer

E = TypeVar("E")

LOCAL = ("auto", "vllm", "openvino", "transformers")
"""Samplers that load a model of transformers in this process."""


def make_sampler(config: RunConfig) -> Sampler:
    """Return the engine that the config names, or as many as a cluster has room for; models are loaded at first use.

    Raises:
        MissingExtra: the engine's packages are not installed.
    """
    if config.cluster.ray is not None and config.engine.sampler != "openai":
        from maft.cluster.sampler import RaySampler

        return RaySampler(config, _with_parts(make_sampler, config))
    settings = config.engine
    name = choose(installed, _device) if settings.sampler == "auto" else settings.sampler
    if name not in SAMPLERS:
        outside: Sampler = extensions.find("sampler", name, Sampler)(config)
        return outside
    if name == "scripted":
        return Scripted(guess, remember=False)
    if name == "openai":
        if not installed("openai"):
            raise MissingExtra("engine.sampler=openai", "openai")
        from maft.hosted.sampler import OpenAi
        from maft.samplers.cached import CachedSampler

        home, keep_tokens = config.runs_dir / config.name, config.debate.keep_tokens
        service = OpenAi(config.openai, home, keep_tokens=keep_tokens)
        return CachedSampler(service, RunFolder(home, config).replies, paid=True, keep_tokens=keep_tokens)
    most = len(bases(config))
    engine = _local(name, config)
    if most == 1:
        return engine(1)
    from maft.samplers.bases import Bases

    return Bases(engine, most)


def _local(name: str, config: RunConfig) -> Callable[[int], Sampler]:
    """Return a factory; its argument is the number of engines kept loaded at once."""
    settings, ledger = config.engine, Ledger()
    if name == "vllm":
        if not installed("vllm"):
            raise MissingExtra("engine.sampler=vllm", "vllm")
        from maft.samplers.vllm import Vllm

        rank = max(
            config.lora_of(role, n).rank for role in ("generator", "critic") for n in range(config.debate.num_agents)
        )

        def make_vllm(num_engines: int) -> Vllm:
            share = {"gpu_memory_utilization": config.vllm.gpu_memory_utilization / num_engines}
            own = config.vllm.model_copy(update=share)
            return Vllm(settings, own, len(learners(config)), rank, logprobs=config.debate.keep_tokens)

        return make_vllm
    if name == "openvino":
        if not installed("openvino_genai"):
            raise MissingExtra("engine.sampler=openvino", "openvino")
        from maft.samplers.openvino import OpenVino

        return lambda _: OpenVino(settings, ledger)
    if not installed("transformers") or not installed("torch"):
        raise MissingExtra("engine.sampler=transformers", "hf")
    from maft.samplers.batched import Batched

    return lambda _: Batched(settings, ledger)


def _with_parts(make: Callable[[RunConfig], E], config: RunConfig) -> Callable[[RunConfig], E]:
    """Return `make` with the files of the parts from outside, which the machine of a worker may lack."""
    return partial(_make_on_worker, make, extensions.pack(parts(config)))


def _make_on_worker(make: Callable[[RunConfig], E], files: dict[str, str], config: RunConfig) -> E:
    extensions.unpack(files)
    return make(config)


def check_templates(config: RunConfig) -> None:
    """Try the chat template of each model that is on this machine, as debates and finetuning will use it.

    Raises:
        DataError: a template does not serve; see `maft.models.templates.Template`.
    """
    if config.engine.sampler not in LOCAL or not installed("transformers"):
        return
    from maft.samplers.chat import Chat
    from maft.trainers import dialogue_tokens

    for base in bases(config):
        folder = models.check(base)
        if base.lower() != models.PACKAGED and models.revision(base) is not None:  # else it is known, or not yet here
            chat = Chat(folder, trust=config.engine.trust_remote_code, today=config.engine.date)
            if config.train.loss_turns == "all" and config.engine.trainer == "sft":
                dialogue_tokens.check_all_turns(chat.template)


@contextmanager
def opened(config: RunConfig) -> Iterator[Sampler]:
    """Make the engine that the config names, and free what it holds at the end, also where an error ends it."""
    sampler = make_sampler(config)
    try:
        yield sampler
    finally:
        sampler.release()


def choose(installed: Callable[[str], bool], device: Callable[[], str]) -> str:
    """Return the name of the engine that suits the machine best.

    >>> choose({"torch", "vllm", "openvino_genai"}.__contains__, lambda: "cuda")
    'vllm'
    >>> choose({"torch", "vllm", "openvino_genai"}.__contains__, lambda: "cpu")
    'openvino'
    >>> choose({"torch", "vllm", "openvino_genai"}.__contains__, lambda: "mps")
    'transformers'

    Args:
        installed: whether there is a package of that name.
        device: the best device, as `maft.samplers.transformers.device` tells it; asked only where it matters, for it
            takes seconds.
    """
    engines = {"cuda": ("vllm", "vllm"), "cpu": ("openvino", "openvino_genai")}
    if installed("torch") and any(installed(package) for _, package in engines.values()):
        name, package = engines.get(device(), ("transformers", "transformers"))
        return name if installed(package) else "transformers"
    return "transformers"


def installed(package: str) -> bool:
    """Say whether a package is there, without importing it."""
    return find_spec(package) is not None


def _device() -> str:
    from maft.samplers.transformers import device

    return device()


def make_trainer(config: RunConfig) -> Trainer:
    """Return the trainer that the config names, or one that gives each job to a worker of a cluster.

    Raises:
        MissingExtra: the trainer's packages are not installed.
        ConfigError: this machine has not the GPUs that are asked for.
    """
    if config.cluster.ray is not None and config.engine.trainer != "openai":
        from maft.cluster.trainer import RayTrainer

        return RayTrainer(config, _with_parts(make_trainer, config))
    if config.engine.trainer not in TRAINERS:
        outside: Trainer = extensions.find("trainer", config.engine.trainer, Trainer)(config)
        return outside
    if config.engine.trainer == "null":
        return NullTrainer()
    if config.engine.trainer == "openai":
        if not installed("openai"):
            raise MissingExtra("engine.trainer=openai", "openai")
        from maft.hosted.trainer import OpenAiTrainer

        return OpenAiTrainer(config.openai, config.runs_dir / config.name)
    from maft.trainers import launch
    from maft.trainers.sft import SftTrainer

    launch.check(config)
    return SftTrainer(config.engine)
