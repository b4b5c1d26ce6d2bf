"""The CPU engine: OpenVINO GenAI with continuous batching, on an IR exported once from the Hugging Face model.

An adapter is fused into the weights as the pipeline is built, so that one model is in memory at any time and every
agent speaks at the speed of the base. Changing agents costs a build (1.3 s for 135M parameters). The other way,
adapters given with each call to one pipeline, was measured at half the speed or less, and has two traps: a pipeline
built without an adapter ignores all that are given later, and its prefix cache, keyed by tokens alone, hands one agent
the keys and values of another. A pipeline with one set of weights can have neither.
"""

import logging
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from maft import files, models
from maft.errors import DataError, MissingExtra
from maft.models import adapters, probe
from maft.models.shapes import Shape
from maft.records import SamplingParams
from maft.samplers.chat import Chat, Encoded, Generated
from maft.samplers.local import LocalSampler

log = logging.getLogger(__name__)

PRECISION = {"bfloat16": "bf16", "float32": "f32"}


class OpenVino(LocalSampler):
    """Samples with OpenVINO GenAI on the CPU."""

    default_sequences = 256
    continuous = True
    _pipeline: Any = None
    _speaking: Path | None = None
    """Adapter fused into the pipeline; None is the bare base."""

    def load(self, model: str, chat: Chat) -> None:
        """Find or export the IR; the pipeline is built at the first call, which tells the adapter."""
        self._folder = exported(model, trust=self.settings.trust_remote_code)
        self._model = model
        self._probe = probe.token_ids(chat.tokenizer)
        self._stop_ids = set(chat.stop_ids)

    def cache_bytes(self, shape: Shape, limits: Sequence[int]) -> float:
        """Return the size of the cache, which is set."""
        return self.settings.cache_gb * 2**30

    def unload(self) -> None:
        """Drop the pipeline."""
        self._pipeline = None

    def generate(
        self, prompts: Sequence[Encoded], sampling: Sequence[SamplingParams], seeds: Sequence[int], adapter: Path | None
    ) -> Iterator[Generated]:
        """Generate for one adapter; every request has its own random stream.

        Step by step, not by the pipeline's `generate`: replies can be counted as they end, and Ctrl-C is heard between
        two steps in place of after the last. A prompt that is there several times is read once, for the prefix cache is
        looked up when a request is added: the others are added when the first has been read.
        """
        import numpy
        import openvino
        from openvino_genai import GenerationStatus

        if self._pipeline is None or adapter != self._speaking:
            self._build(adapter)
        pipeline, running = self._pipeline, {}

        def add(place: int) -> None:
            ids = openvino.Tensor(numpy.array([prompts[place].token_ids], dtype=numpy.int64))
            config = self._generation_config(prompts[place], sampling[place], seeds[place])
            running[place] = pipeline.add_request(place, ids, config)

        waiting = _same_prompts(prompts)
        for first in waiting:
            add(first)
        try:
            while running:
                pipeline.step()
                ended = [place for place, one in running.items() if one.get_status() != GenerationStatus.RUNNING]
                for first in [place for place in waiting if place in ended or running[place].can_read()]:
                    for place in waiting.pop(first):
                        add(place)
                for place in ended:
                    output = running.pop(place).read_all()[0]
                    yield Generated(place, output.generated_ids, output.generated_log_probs)
        finally:
            if running:  # interrupted: what is left must not mix with the next requests
                self._pipeline = None

    def _build(self, adapter: Path | None) -> None:
        import openvino_genai as genai

        trust = self.settings.trust_remote_code
        scales = models.check_adapter(adapter, self._model, trust=trust) if adapter else {}
        self._pipeline = None  # frees the old one before the new one is made
        scheduler = genai.SchedulerConfig()
        scheduler.cache_size = self.settings.cache_gb
        scheduler.max_num_seqs = self.max_sequences
        scheduler.max_num_batched_tokens = 1024
        scheduler.enable_prefix_caching = True
        num_threads = self.settings.num_threads or _num_cores()
        # one thread that computes in bfloat16 ends the process with SIGFPE where the CPU has AMX (OpenVINO 2026.4.1)
        dtype = self.settings.dtype if num_threads > 1 else "float32"
        properties: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": PRECISION[dtype],
            "INFERENCE_NUM_THREADS": num_threads,
            "ENABLE_CPU_PINNING": False,  # pinned threads of two processes share one core, and leave others idle
        }
        if adapter is not None:
            expected = probe.expected(adapter, self._model, self._folder.name, trust=trust)
            folder, scale = adapters.uniform(adapter, scales)
            weights = genai.Adapter(str(folder / adapters.WEIGHTS))
            properties["adapters"] = genai.AdapterConfig(weights, scale, mode=genai.AdapterConfig.Mode.MODE_FUSE)
        pipeline = genai.ContinuousBatchingPipeline(str(self._folder), scheduler, "CPU", properties=properties)
        if adapter is not None and expected is not None:
            probe.check(adapter, expected, _likelihoods(pipeline, self._probe))
        self._pipeline, self._speaking = pipeline, adapter

    def _generation_config(self, prompt: Encoded, sampling: SamplingParams, seed: int) -> Any:
        import openvino_genai as genai

        config = genai.GenerationConfig()
        config.max_new_tokens = prompt.max_new_tokens
        config.stop_token_ids = self._stop_ids
        config.logprobs = 1
        config.do_sample = sampling.temperature > 0
        if config.do_sample:
            config.temperature = sampling.temperature
            config.top_p = sampling.top_p
            if sampling.top_k:
                config.top_k = sampling.top_k
            config.rng_seed = seed % 2**32
        return config


def _same_prompts(prompts: Sequence[Encoded]) -> dict[int, list[int]]:
    """Return the first place of each prompt, and the other places that have the same."""
    first: dict[tuple[int, ...], int] = {}
    places: dict[int, list[int]] = {}
    for place, prompt in enumerate(prompts):
        one = first.setdefault(tuple(prompt.token_ids), place)
        places.setdefault(one, []).extend([place] if place != one else [])
    return places


def _likelihoods(pipeline: Any, ids: Sequence[int]) -> list[float]:
    """Return the log-likelihoods of all tokens but the first; the pipeline must not have read them before."""
    import numpy
    import openvino
    import openvino_genai as genai

    config = genai.GenerationConfig()
    config.max_new_tokens, config.logprobs, config.echo = 1, 1, True
    handle = pipeline.add_request(0, openvino.Tensor(numpy.array([ids], dtype=numpy.int64)), config)
    while pipeline.has_non_finished_requests():
        pipeline.step()
    return list(handle.read_all()[0].generated_log_probs)[1 : len(ids)]


def exported(model: str, *, trust: bool = False) -> Path:
    """Return the folder with the model's IR, exporting it first if the cache has none of this content.

    Raises:
        DataError: the export failed; names the log.
    """
    folder = models.cache_dir() / "openvino" / models.content_name(model)
    if not (folder / "openvino_model.xml").is_file():
        log.info("Exporting %s to OpenVINO, once; it is kept in %s.", model, folder)
        files.make_whole(folder, lambda scratch: _export(model, scratch, trust=trust))
    return folder


def _export(model: str, output: Path, *, trust: bool) -> None:
    """Export in a process of its own, so that torch and a second copy of the weights do not stay in memory."""
    code = (
        "import sys; from optimum.exporters.openvino import main_export; "
        "main_export(sys.argv[1], sys.argv[2], task='text-generation-with-past', stateful=True, "
        f"trust_remote_code={trust})"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code, model, str(output)], capture_output=True, text=True)
    if "No module named 'optimum" in done.stderr:
        raise MissingExtra("exporting a model to OpenVINO", "openvino")
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise DataError(
            f"model {model} cannot be exported to OpenVINO: {last[0]}. Use engine.sampler=transformers instead."
        )


def _num_cores() -> int:
    """Return how many cores we may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
