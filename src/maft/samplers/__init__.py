"""Engines that answer requests: the `Sampler` protocol and its implementations by name."""

from importlib.util import find_spec

from maft.config import RunConfig
from maft.errors import MissingExtra
from maft.samplers.base import Sampler
from maft.samplers.scripted import Scripted, guess

__all__ = ["Sampler", "Scripted", "make"]


def make(config: RunConfig) -> Sampler:
    """Return the engine that the config names; it loads its model at the first request.

    Raises:
        MissingExtra: the engine's packages are not installed.
    """
    settings = config.engine
    name = _auto() if settings.sampler == "auto" else settings.sampler
    if name == "scripted":
        return Scripted(guess)
    if name == "openai":
        if find_spec("openai") is None:
            raise MissingExtra("engine.sampler=openai", "openai")
        from maft.samplers.openai import OpenAi

        return OpenAi(config.openai, config.runs_dir / config.name)
    if name == "openvino":
        if find_spec("openvino_genai") is None:
            raise MissingExtra("engine.sampler=openvino", "openvino")
        from maft.samplers.openvino import OpenVino

        return OpenVino(settings)
    if find_spec("transformers") is None or find_spec("torch") is None:
        raise MissingExtra("engine.sampler=transformers", "hf")
    from maft.samplers.transformers import Transformers

    return Transformers(settings)


def _auto() -> str:
    if find_spec("openvino_genai") is None or find_spec("torch") is None:
        return "transformers"
    from maft.samplers.transformers import device

    return "openvino" if device() == "cpu" else "transformers"
