"""The CPU engine: OpenVINO GenAI with continuous batching, on an IR exported once from the Hugging Face model.

An adapter is fused into the weights as the pipeline is built, so that every agent runs at the speed of the base.
Changing agents costs a build (1.3 s for 135M parameters). Adapters given with each call to one pipeline were measured
at half the speed or less, and have two traps: a pipeline built without an adapter ignores all that are given later, and
its prefix cache, keyed by tokens alone, gives one agent the keys and values of another.
"""

import logging
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from maft import files, models
from maft.config import EngineConfig
from maft.errors import DataError, MissingExtra
from maft.models import adapters, memory, probe
from maft.models.adapters import fingerprint
from maft.models.shapes import Shape
from maft.samplers.chat import Chat, Generated
from maft.samplers.local import Ended, Job, LocalSampler, Take

log = logging.getLogger(__name__)

PRECISION = {"bfloat16": "bf16", "float32": "f32"}
WIDER = {"bfloat16": 1, "float32": 2}
"""Bytes in memory for each byte of weights on disk, which are in 16 bits."""
RESERVE = 2 << 30
"""Bytes of free memory that further pipelines leave to other programs."""
BLOCK = 32
"""Tokens of a block of the prefix cache."""


class OpenVino(LocalSampler):
    """Samples with OpenVINO GenAI on the CPU."""

    default_sequences = 256

    _room = 0.0
    """Bytes that all pipelines together may take."""

    def __init__(self, settings: EngineConfig, ledger: memory.Ledger | None = None) -> None:
        super().__init__(settings, ledger)
        self._pipelines: dict[object, Any] = {}
        """By adapter; the last one was used last."""
        self._wide: set[object] = set()
        """Adapters whose pipelines are in float32 whatever the settings say."""

    def load(self, model: str, chat: Chat) -> None:
        """Find or export the IR; a pipeline is built at an agent's first call."""
        self._folder = exported(model, trust=self.settings.trust_remote_code)
        self._model = model
        self._probe = probe.token_ids(chat.tokenizer)
        self._stop_ids = set(chat.stop_ids)

    def cache_bytes(self, shape: Shape, limits: Sequence[int]) -> float:
        """Return the size of the cache in bytes, which is a setting."""
        return self.settings.cache_gb * 2**30

    def unload(self) -> None:
        """Drop the pipelines."""
        self._pipelines.clear()

    def run(self, take: Take) -> Ended:
        """Generate for one adapter; every request has its own random stream.

        Step by step, not by the pipeline's `generate`: each reply is yielded as it ends, requests that follow join at
        once, and Ctrl-C takes effect between two steps. Shared beginnings of prompts are computed once: the prefix
        cache is looked up when a request is added, so that a prompt waits while its beginning is read for another.
        """
        from openvino_genai import GenerationStatus

        jobs = take(self.max_sequences)
        if not jobs:
            return
        key, pipeline = self._pipeline(jobs[0].adapter)
        running: dict[int, tuple[Job, Any]] = {}
        readers: dict[int, int] = {}
        """Number of the job that is reading each prefix."""
        waiting: dict[int, list[Job]] = {}
        """Jobs that wait for the prompt of another job to be read, by its number."""
        parts: defaultdict[int, list[Any]] = defaultdict(list)
        """What was read of replies before they ended."""
        try:
            while True:
                for job in jobs:
                    prefixes = _prefixes(job.prompt.token_ids)
                    reader = next((readers[prefix] for prefix in reversed(prefixes) if prefix in readers), None)
                    if reader is not None:
                        waiting[reader].append(job)
                        continue
                    readers.update(dict.fromkeys(prefixes, job.number))
                    running[job.number], waiting[job.number] = (job, self._add(pipeline, job)), []
                if not running:
                    return
                pipeline.step()
                jobs = []
                ended = [n for n, (_, handle) in running.items() if handle.get_status() != GenerationStatus.RUNNING]
                for number in [n for n in waiting if n in ended or running[n][1].can_read()]:
                    for prefix in _prefixes(running[number][0].prompt.token_ids):
                        readers.pop(prefix, None)
                    jobs += waiting.pop(number)
                for number, (_, handle) in running.items():
                    if self.on_tokens is not None and handle.can_read():
                        parts[number].append(handle.read()[0])
                        self.on_tokens(number, parts[number][-1].generated_ids)
                for number in ended:
                    job, handle = running.pop(number)
                    outputs = [*parts.pop(number, ()), *handle.read_all()]
                    ids = [token for output in outputs for token in output.generated_ids]
                    yield job, Generated(ids, [value for output in outputs for value in output.generated_log_probs])
                jobs += take(self.max_sequences - len(running) - sum(map(len, waiting.values())) - len(jobs))
        finally:
            if running:  # interrupted: what is left must not mix with the next requests
                self._pipelines.pop(key, None)

    def _add(self, pipeline: Any, job: Job) -> Any:
        import openvino_genai as genai

        sampling, config = job.request.sampling, genai.GenerationConfig()
        config.max_new_tokens = job.prompt.max_new_tokens
        config.stop_token_ids = self._stop_ids
        config.logprobs = 1
        config.do_sample = sampling.temperature > 0
        if config.do_sample:
            config.temperature = sampling.temperature
            config.top_p = sampling.top_p
            if sampling.top_k:
                config.top_k = sampling.top_k
            config.rng_seed = job.request.seed % 2**32
        return pipeline.add_request(job.number, _tensor(job.prompt.token_ids), config)

    def _pipeline(self, adapter: Path | None) -> tuple[object, Any]:
        """Return the pipeline of an adapter, and its key; the others stay loaded as far as there is memory."""
        key = fingerprint(adapter) if adapter else None
        pipeline = self._pipelines.pop(key, None)
        if pipeline is None:
            new = self._bytes(self._dtype(key))
            if not self._pipelines:
                self._room = memory.free_ram() - RESERVE
            # Caches fill up later: what is free now says too little.
            while self._pipelines and (
                new + sum(self._bytes(self._dtype(loaded)) for loaded in self._pipelines) > self._room
                or memory.free_ram() < new + RESERVE
            ):
                self._pipelines.pop(next(iter(self._pipelines)))
            pipeline = self._build(adapter, key)
        self._pipelines[key] = pipeline
        return key, pipeline

    def _bytes(self, dtype: str) -> float:
        """Return what a pipeline takes in memory."""
        weights = sum(file.stat().st_size for file in self._folder.glob("*.bin"))
        return self.settings.cache_gb * 2**30 + weights * WIDER[dtype]

    def _dtype(self, key: object) -> str:
        """Return the number format of a pipeline, see `_build`."""
        # one thread that computes in bfloat16 ends the process with SIGFPE where the CPU has AMX (OpenVINO 2026.4.1)
        return "float32" if key in self._wide or self._num_threads == 1 else self.settings.dtype

    def _build(self, adapter: Path | None, key: object) -> Any:
        """Load a pipeline: in float32 for an adapter that fusing into weights in 16 bits would round away.

        Raises:
            DataError: the adapter does not work here as in PEFT.
        """
        import openvino_genai as genai

        trust, ids = self.settings.trust_remote_code, self._probe
        dtype = self._dtype(key)
        if adapter is None:
            pipeline = self._load(dtype)
            self._of_base(dtype, pipeline)
            return pipeline
        scales = models.check_adapter(adapter, self._model, trust=trust)
        expected = probe.expected(adapter, self._model, self._folder.name, len(ids), trust=trust)
        folder, scale = adapters.uniform(adapter, scales)
        weights = genai.Adapter(str(folder / adapters.WEIGHTS))
        fused = genai.AdapterConfig(weights, scale, mode=genai.AdapterConfig.Mode.MODE_FUSE)
        if expected is None:
            return self._load(dtype, adapters=fused)
        try:
            return self._probed(adapter, expected, dtype, fused)
        except DataError:
            if dtype == "float32" or memory.free_ram() < self._bytes("float32"):
                raise
        pipeline = self._probed(adapter, expected, "float32", fused)
        self._wide.add(key)
        log.warning(
            "The effect of adapter %s is too small for bfloat16 weights: its agent is sampled in float32.", adapter
        )
        return pipeline

    def _probed(self, adapter: Path, expected: probe.Probe, dtype: str, fused: Any) -> Any:
        base = self._of_base(dtype)
        pipeline = self._load(dtype, adapters=fused)
        adapted = _likelihoods(pipeline, self._probe)
        probe.check(adapter, expected, probe.Probe(base=base, adapted=adapted))
        return pipeline

    def _of_base(self, dtype: str, pipeline: Any = None) -> tuple[float, ...]:
        import openvino_genai as genai

        name = f"{self._folder.name}-openvino-{genai.get_version()}-{dtype}"
        return probe.of_base(name, lambda: _likelihoods(pipeline or self._load(dtype), self._probe))

    def _load(self, dtype: str, **more: Any) -> Any:
        import openvino_genai as genai

        scheduler = genai.SchedulerConfig()
        scheduler.cache_size = self.settings.cache_gb
        scheduler.max_num_seqs = self.max_sequences
        scheduler.max_num_batched_tokens = 1024
        scheduler.enable_prefix_caching = True
        properties: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": PRECISION[dtype],
            "INFERENCE_NUM_THREADS": self._num_threads,
            "ENABLE_CPU_PINNING": False,  # pinned threads of two processes would share cores and leave others idle
        }
        return genai.ContinuousBatchingPipeline(str(self._folder), scheduler, "CPU", properties=properties | more)

    @property
    def _num_threads(self) -> int:
        return self.settings.num_threads or memory.num_cores()


def _prefixes(tokens: Sequence[int]) -> list[int]:
    """Return a hash of each beginning of a prompt that fills whole cache blocks, and of the whole prompt."""
    hashes = [0]
    for start in range(0, len(tokens), BLOCK):
        hashes.append(hash((hashes[-1], *tokens[start : start + BLOCK])))
    return hashes[1:]


def _likelihoods(pipeline: Any, ids: Sequence[int]) -> tuple[float, ...]:
    """Return the log-likelihoods of all tokens but the first; the pipeline must not have read them before."""
    import openvino_genai as genai

    config = genai.GenerationConfig()
    config.max_new_tokens, config.logprobs, config.echo = 1, 1, True
    handle = pipeline.add_request(0, _tensor(ids), config)
    while pipeline.has_non_finished_requests():
        pipeline.step()
    return tuple(handle.read_all()[0].generated_log_probs[1 : len(ids)])


def _tensor(ids: Sequence[int]) -> Any:
    import numpy
    import openvino

    return openvino.Tensor(numpy.array([ids], dtype=numpy.int64))


def exported(model: str, *, trust: bool = False) -> Path:
    """Return the folder with the model's IR, exporting it first if the cache has none of this content.

    Raises:
        DataError: the export failed.
    """
    folder = models.cache_dir() / "openvino" / models.content_name(model)
    if not (folder / "openvino_model.xml").is_file():
        log.info("Exporting %s to OpenVINO; this is done once and kept in %s.", model, folder)
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
