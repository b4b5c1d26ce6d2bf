"""The GPU engine: vLLM in processes of ours, all agents of a base in one batch, each request with its own adapter.

Three traps of vLLM are kept away. Its prefix cache knows an adapter by its name alone, so that other weights under a
known name would meet the keys and values of the old ones: here a name and id stand for one content, and are never used
again. Its CPU build (0.32.0) gives a request without an adapter the adapter in the last slot, if others in the batch
have one: there, the bare base speaks alone. And it ends where a request has a seed and a prompt that is read in parts
("CPU Generator does not use offset"): there, prompts are read whole.
"""

import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from maft import models
from maft.config import EngineConfig, VllmConfig
from maft.errors import ConfigError, DataError, MissingExtra, StageFailed
from maft.models import adapters, memory, shapes
from maft.records import Request
from maft.samplers.base import Answered, Feed, Streaming
from maft.samplers.chat import UNLIMITED, Chat, Encoded, Generated
from maft.samplers.local import Job, Jobs, Queue, Take

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks of adapters that vLLM makes room for."""
ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
}
"""Set before vLLM is imported, where the user has not: it would tell its makers of every start, fork a process in which
CUDA was looked at, and talk on stdout."""
BATCH_TOKENS = 8192
"""Tokens read in one step on a CPU, or as many as the context has."""
DEFAULT_SEQUENCES = 256
MANY = 1 << 30
"""Requests that vLLM may have: all, for it has a queue of its own."""

_ids = itertools.count(1)


class Vllm(Streaming):
    """Samples with vLLM, on CUDA, ROCm or, with vLLM's CPU build, on a CPU."""

    def __init__(
        self, engine: EngineConfig, settings: VllmConfig, num_adapters: int, rank: int, *, logprobs: bool = False
    ) -> None:
        """Load nothing yet.

        Args:
            engine: dtype, memory for the cache of the CPU build, most replies at a time.
            settings: of vLLM.
            num_adapters: of the society; so many are held ready in GPU memory, or in main memory at least.
            rank: of the adapters that will be trained; those with a larger one are met when they come.
            logprobs: whether replies carry log-probabilities, which takes some time.
        """
        self.engine = engine
        self.settings = settings
        self.num_adapters = num_adapters
        self.slots = settings.max_loras or num_adapters
        self.rank = rank
        self.logprobs = logprobs
        self._vllm: Any = None
        self._chat: Chat | None = None
        self._folder = self._base = ""
        """Of the base model that is loaded; the base is its name."""
        self._room = 0
        """Largest rank that the engine has room for; 0 is none."""
        self._adapters: dict[tuple[object, ...], Any] = {}
        self._checked: dict[tuple[object, ...], Path] = {}

    def answer(self, requests: Sequence[Request], on_reply: Answered) -> None:
        """Answer requests; see `maft.samplers.base.Streaming`.

        Raises:
            ConfigError: there are fewer GPUs than asked for.
            StageFailed: vLLM has stopped.
        """
        on_cpu = self._platform().is_cpu()  # there the bare base speaks alone
        queue = Queue(Feed(requests, on_reply), lambda request: "adapters" if on_cpu and request.agent.adapter else "")
        while queue.waiting:
            key = queue.largest(self._base)
            of_base = [request for (base, _), some in queue.waiting.items() if base == key[0] for _, request in some]
            folders = {Path(request.agent.adapter) for request in of_base if request.agent.adapter}
            base = models.resolve(key[0])
            ranks = [adapters.rank(self._plain(folder, base)) for folder in sorted(folders)]
            chat = self._ready(base, max(ranks, default=0))
            self._base = key[0]
            jobs, late = Jobs(queue, key, chat), list[Job]()
            try:
                for job, generated in self._run(jobs.take, late):
                    jobs.ended(job, generated)
            except BaseException as error:
                self.release()  # it holds requests that nobody waits for any more
                if type(error).__name__ == "EngineDeadError":
                    raise StageFailed(
                        "vLLM has stopped; what it said stands above. What was finished is kept, and the same command "
                        "resumes. Where memory ran out, lower engine.max_sequences, vllm.max_model_len or "
                        "vllm.gpu_memory_utilization."
                    ) from None
                raise
            queue.put((job.number, job.request) for job in late)

    def release(self) -> None:
        """Stop the engine's processes, so that the memory is free; the next `sample` starts them again."""
        engine, self._vllm, self._chat, self._room = self._vllm, None, None, 0
        self._adapters.clear()
        if engine is not None:
            engine.engine_core.shutdown()

    def _run(self, take: Take, late: list[Job]) -> Iterator[tuple[Job, Generated]]:
        """Yield each job as it ends; those whose adapter is too large for the engine as it was started are `late`."""
        running: dict[str, Job] = {}
        while True:
            for job in take(MANY):
                plain = self._plain(job.adapter, self._folder) if job.adapter else None
                if plain and adapters.rank(plain) > self._room:
                    late.append(job)
                    continue
                adapter = self._adapter(plain) if plain else None
                text = {"prompt_token_ids": job.prompt.token_ids}
                params = self._params(job.prompt, job.request)
                self._vllm.add_request(str(job.number), text, params, lora_request=adapter)
                running[str(job.number)] = job
            if not running:
                return
            for output in self._vllm.step():
                if output.finished:
                    one = output.outputs[0]
                    yield running.pop(output.request_id), Generated(0, one.token_ids, _logprobs(one))

    def _params(self, prompt: Encoded, request: Request) -> Any:
        from vllm import SamplingParams

        how = request.sampling
        return SamplingParams(
            temperature=how.temperature,
            top_p=how.top_p,
            top_k=how.top_k,
            max_tokens=prompt.max_new_tokens,
            seed=request.seed,
            stop_token_ids=self._stop_ids,
            detokenize=False,
            logprobs=0 if self.logprobs else None,  # 0 is the sampled token's alone
        )

    def _ready(self, folder: str, rank: int) -> Chat:
        """Return the tokenizer of a base model that is loaded, with room for adapters of a rank (0: for none)."""
        room = _room(max(rank, self.rank)) if rank else 0
        if self._chat is None or self._folder != folder or self._room < room:
            self.release()
            chat = Chat(folder, trust=self.engine.trust_remote_code, today=self.engine.date)
            self._load(folder, chat, room)
            self._chat, self._folder, self._room = chat, folder, room
            self._stop_ids = sorted(chat.stop_ids)
        return self._chat

    def _platform(self) -> Any:
        """Return what vLLM runs on."""
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        try:
            from vllm.platforms import current_platform
        except ImportError:
            raise MissingExtra("the vllm sampler", "vllm") from None
        return current_platform

    def _load(self, model: str, chat: Chat, room: int) -> None:
        platform = self._platform()
        from vllm import EngineArgs, LLMEngine

        on_cpu = platform.is_cpu()
        check_gpus(self.settings, 0 if on_cpu or platform.is_unspecified() else platform.device_count(), on_cpu=on_cpu)
        chat.context = min(chat.context, self.settings.max_model_len or chat.context)
        gpu_bytes = 0 if on_cpu else platform.get_device_total_memory()
        self.check_fit(model, chat.context, room, gpu_bytes)
        try:
            self._vllm = LLMEngine.from_engine_args(
                EngineArgs(model=model, **self.arguments(chat.context, room, on_cpu))
            )
        except Exception as error:
            said = str(error).strip().splitlines()[0]
            raise DataError(f"vLLM cannot load model {model}: {said} What it said stands above.") from None
        chat.context = min(chat.context, self._vllm.model_config.max_model_len)

    def arguments(self, context: int, room: int, on_cpu: bool) -> dict[str, Any]:
        """Return what vLLM is started with, beside the model.

        Args:
            context: longest sequence.
            room: largest rank of adapters; 0 for none.
            on_cpu: whether it is vLLM's CPU build.
        """
        shared = {
            "dtype": self.engine.dtype,
            "trust_remote_code": self.engine.trust_remote_code,
            "max_model_len": None if context == UNLIMITED else context,
            "max_num_seqs": self.engine.max_sequences or DEFAULT_SEQUENCES,
            "tensor_parallel_size": self.settings.tensor_parallel_size,
            "enable_prefix_caching": True,
            "disable_log_stats": True,
            "use_tqdm_on_load": False,
        }
        ready = {"max_loras": self.slots, "max_cpu_loras": max(self.slots, self.num_adapters)}
        slots = {"enable_lora": True, "max_lora_rank": room, **ready} if room else {}
        if not on_cpu:
            return shared | slots | {"gpu_memory_utilization": self.settings.gpu_memory_utilization}
        batch = max(BATCH_TOKENS, context)
        cache = {"kv_cache_memory_bytes": self.engine.cache_gb << 30, "enforce_eager": True}  # compiling takes minutes
        return shared | slots | cache | {"enable_chunked_prefill": False, "max_num_batched_tokens": batch}

    def check_fit(self, model: str, context: int, room: int, gpu_bytes: int) -> None:
        """Refuse a model that does not fit; one whose shape is not known is left to vLLM.

        Args:
            model: folder or hub name.
            context: longest sequence.
            room: largest rank of adapters; 0 for none.
            gpu_bytes: memory of one GPU; 0 on a CPU.

        Raises:
            DataError: weights, adapters and the key-value cache of one sequence need more than there is.
        """
        shape = shapes.of_model(model)
        if shape is None or context == UNLIMITED:
            return
        how, dtype = self.settings, self.engine.dtype
        size = shapes.BYTES[dtype]
        parts: dict[str, float] = {"of weights": shape.weight_bytes(dtype)}
        if room:
            parts[f"for {self.slots} adapters"] = self.slots * shape.lora_parameters(room) * size
        one = {f"of key-value cache for one sequence of {context} tokens": context * shape.kv_bytes_per_token(dtype)}
        if gpu_bytes:
            where = f"{how.tensor_parallel_size} GPU{'s' * (how.tensor_parallel_size > 1)}"
            where += f" of {gpu_bytes / memory.GB:.0f} GB, of which vllm.gpu_memory_utilization = "
            where += f"{how.gpu_memory_utilization:g} is used"
            usable = how.tensor_parallel_size * how.gpu_memory_utilization * gpu_bytes
            advice = "a smaller model, a lower vllm.max_model_len or vllm.max_loras, or more GPUs with"
            memory.check(model, parts | one, usable, where, f"Take {advice} vllm.tensor_parallel_size.")
            return
        cache = self.engine.cache_gb << 30
        memory.check(model, one, cache, "engine.cache_gb", "Raise it, or lower vllm.max_model_len.")
        advice = "Take a smaller model or a lower engine.cache_gb, or end other programs."
        memory.check(model, parts | {"of key-value cache": cache}, memory.free_ram(), "free memory", advice)

    def _plain(self, folder: Path, base: str) -> Path:
        """Return an adapter as vLLM reads it, checked once: with one scale for all of its layers."""
        key = adapters.fingerprint(folder)
        if key not in self._checked:
            scales = models.check_adapter(folder, base, trust=self.engine.trust_remote_code)
            self._checked[key], _ = adapters.uniform(folder, scales)
        return self._checked[key]

    def _adapter(self, folder: Path) -> Any:
        """Return how vLLM is told of an adapter, under a name and id that never meant anything else."""
        from vllm.lora.request import LoRARequest

        key = adapters.fingerprint(folder)
        if key not in self._adapters:
            number = next(_ids)
            self._adapters[key] = LoRARequest(f"{folder.name}-{number}", number, str(folder))
        return self._adapters[key]


def check_gpus(settings: VllmConfig, num_gpus: int, *, on_cpu: bool) -> None:
    """Refuse to go on without the GPUs that are asked for.

    Raises:
        ConfigError: there are fewer; vLLM's CPU build needs none for tensor_parallel_size = 1.
    """
    asked = settings.tensor_parallel_size
    if num_gpus >= asked or (on_cpu and asked == 1):
        return
    build = " (vLLM's CPU build is installed)" if on_cpu else ""
    raise ConfigError(
        f"engine.sampler = vllm with vllm.tensor_parallel_size = {asked} needs {asked} GPU{'s' * (asked > 1)}, and "
        f"vLLM finds {num_gpus}{build}. Lower it, or use engine.sampler=openvino or transformers, which need no GPU."
    )


def _logprobs(output: Any) -> list[float] | None:
    """Return the log-probability of each sampled token, where vLLM was asked for them."""
    steps = zip(output.token_ids, output.logprobs or (), strict=False)
    return [step[token].logprob for token, step in steps] or None


def _room(rank: int) -> int:
    """Return the smallest rank that vLLM makes room for and that holds `rank`.

    Raises:
        DataError: there is none.
    """
    for room in RANKS:
        if rank <= room:
            return room
    raise DataError(f"vLLM has adapters of rank {RANKS[-1]} at most, got {rank}. Use engine.sampler=transformers.")
