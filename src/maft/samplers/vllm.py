"""The GPU engine: vLLM in processes of its own, all agents of a base in one batch, each request with its own adapter.

Three traps of vLLM are avoided. Its prefix cache knows an adapter by its name alone, so that other weights under a
known name would meet the keys and values of the old ones: here a name and id belong to one content, and are never used
again. Its CPU build (0.32.0) gives a request without an adapter the adapter in the last slot, if others in the batch
have one: there, the bare base has batches of its own. And it ends where a request has a seed and a prompt that is read
in parts ("CPU Generator does not use offset"): there, prompts are read whole.
"""

import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from maft import models
from maft.config import EngineConfig, VllmConfig
from maft.errors import ConfigError, DataError, MissingExtra, StageFailed
from maft.models import adapters, memory, shapes
from maft.records import Request
from maft.samplers.chat import UNLIMITED, Chat, Generated
from maft.samplers.local import Ended, Job, LocalSampler, Take

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks of adapters that vLLM supports."""
ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
}
"""Set before vLLM is imported, where the user has not: it would send usage statistics, fork a process that has used
CUDA, and log to stdout."""
BATCH_TOKENS = 8192
"""Tokens read in one step on a CPU, unless the context is longer."""
ALL = 1 << 30
"""Jobs to take at a time: vLLM has a queue of its own."""

_ids = itertools.count(1)


class Vllm(LocalSampler):
    """Samples with vLLM, on CUDA, ROCm or, with vLLM's CPU build, on a CPU."""

    default_sequences = 256

    def __init__(
        self,
        engine: EngineConfig,
        settings: VllmConfig,
        num_adapters: int,
        rank: int,
        *,
        lora: bool = True,
        logprobs: bool = False,
    ) -> None:
        """Load nothing yet.

        Args:
            engine: dtype, memory for the cache of the CPU build, maximum number of replies at a time.
            settings: of vLLM.
            num_adapters: adapters of the society; all are held in GPU memory, or at least in main memory.
            rank: of the adapters that will be trained; a larger one restarts vLLM when it comes.
            lora: whether adapters will be trained.
            logprobs: whether replies carry log-probabilities, which takes some time.
        """
        super().__init__(engine)
        self.vllm = settings
        self.num_adapters = num_adapters
        self.slots = settings.max_loras or num_adapters
        self.rank = rank
        self.lora = lora
        self.logprobs = logprobs
        self._vllm: Any = None
        self._folder = ""
        self._room = 0
        """Largest rank of adapters that vLLM was started for; 0 for none."""
        self._adapters: dict[tuple[object, ...], Any] = {}
        self._checked: dict[tuple[object, ...], Path] = {}

    def group(self, request: Request) -> str:
        """Mix all agents; on a CPU, keep the bare base apart."""
        return "adapters" if request.agent.adapter and self._platform().is_cpu() else ""

    def ready(self, model: str, requests: Sequence[Request] = ()) -> Chat:
        """Start vLLM for a base model and the adapters of these requests, unless it is running with room for them."""
        folder = models.resolve(model)
        paths = sorted({Path(request.agent.adapter) for request in requests if request.agent.adapter})
        rank = max((adapters.rank(self._plain(path, folder)) for path in paths), default=0)
        room = _room(max(rank, self.rank)) if rank else 0
        if self._chat is not None and (model != self._base or room > self._room):
            self.release()
        if self._chat is None:
            self._room = room
        return super().ready(model, requests)

    def unload(self) -> None:
        """Stop vLLM's processes, so that the memory is free."""
        engine, self._vllm = self._vllm, None
        self._adapters.clear()
        if engine is not None:
            engine.engine_core.shutdown()

    def run(self, take: Take) -> Ended:
        """Yield each job as it ends; those whose adapter needs more room come last, after a restart.

        Raises:
            StageFailed: vLLM has stopped.
        """
        running: dict[str, Job] = {}
        late: list[Job] = []
        try:
            while True:
                jobs = take(ALL)
                if late and not running:
                    self.ready(self._base, [job.request for job in late])
                    jobs, late = late + jobs, []
                for job in jobs:
                    plain = self._plain(job.adapter, self._folder) if job.adapter else None
                    if plain and adapters.rank(plain) > self._room:
                        late.append(job)
                        continue
                    prompt, adapter = {"prompt_token_ids": job.prompt.token_ids}, self._adapter(plain)
                    self._vllm.add_request(str(job.number), prompt, self._params(job), lora_request=adapter)
                    running[str(job.number)] = job
                if not running and not late:
                    return
                for output in self._vllm.step() if running else ():
                    if output.finished:
                        reply = output.outputs[0]
                        steps = zip(reply.token_ids, reply.logprobs or (), strict=False)
                        logprobs = [step[token].logprob for token, step in steps] or None
                        yield running.pop(output.request_id), Generated(reply.token_ids, logprobs)
        except BaseException as error:
            self.release()  # it still holds requests, which must not mix with later ones
            if type(error).__name__ == "EngineDeadError":
                raise StageFailed(
                    "vLLM has stopped; its own messages are above. Finished work is kept, and the same command "
                    "resumes. If memory ran out, lower engine.max_sequences, vllm.max_model_len or "
                    "vllm.gpu_memory_utilization."
                ) from None
            raise

    def _params(self, job: Job) -> Any:
        from vllm import SamplingParams

        how = job.request.sampling
        return SamplingParams(
            temperature=how.temperature,
            top_p=how.top_p,
            top_k=how.top_k,
            max_tokens=job.prompt.max_new_tokens,
            seed=job.request.seed,
            stop_token_ids=self._stop_ids,
            detokenize=False,
            logprobs=0 if self.logprobs else None,  # 0: the sampled token alone
        )

    def _platform(self) -> Any:
        """Return what vLLM runs on."""
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        try:
            from vllm.platforms import current_platform
        except ImportError:
            raise MissingExtra("the vllm sampler", "vllm") from None
        return current_platform

    def load(self, model: str, chat: Chat) -> None:
        """Start vLLM.

        Raises:
            ConfigError: there are fewer GPUs than asked for, or no kernels for adapters in this dtype.
            DataError: vLLM cannot load the model, or it does not fit.
        """
        platform = self._platform()
        from vllm import EngineArgs, LLMEngine

        on_cpu = platform.is_cpu()
        check_gpus(self.vllm, 0 if on_cpu or platform.is_unspecified() else platform.device_count(), on_cpu=on_cpu)
        if (self.lora or self._room) and self.settings.dtype == "float32" and not on_cpu:
            raise ConfigError(
                "engine.sampler=vllm with adapters and engine.dtype=float32: vLLM's GPU kernels for adapters know "
                "bfloat16 and float16 only. Set engine.dtype=bfloat16, or use engine.sampler=transformers."
            )
        chat.context = min(chat.context, self.vllm.max_model_len or chat.context)
        self.check_memory(model, chat.context, self._room, 0 if on_cpu else platform.get_device_total_memory())
        try:
            arguments = EngineArgs(model=model, **self.arguments(chat.context, self._room, on_cpu))
            self._vllm = LLMEngine.from_engine_args(arguments)
        except Exception as error:
            message = str(error).strip().splitlines()[0]
            raise DataError(f"vLLM cannot load model {model}: {message} Its own messages are above.") from None
        chat.context = min(chat.context, self._vllm.model_config.max_model_len)
        self._folder, self._stop_ids = model, sorted(chat.stop_ids)

    def check_fit(self, folder: str, requests: Sequence[Request]) -> None:
        """Leave this to `load`, which knows where vLLM runs."""

    def arguments(self, context: int, room: int, on_cpu: bool) -> dict[str, Any]:
        """Return what vLLM is started with, besides the model.

        Args:
            context: longest sequence in tokens.
            room: largest rank of adapters; 0 for none.
            on_cpu: whether it is vLLM's CPU build.
        """
        shared = {
            "dtype": self.settings.dtype,
            "trust_remote_code": self.settings.trust_remote_code,
            "max_model_len": None if context == UNLIMITED else context,
            "max_num_seqs": self.max_sequences,
            "tensor_parallel_size": self.vllm.tensor_parallel_size,
            "enable_prefix_caching": True,
            "disable_log_stats": True,
            "use_tqdm_on_load": False,
        }
        ready = {"max_loras": self.slots, "max_cpu_loras": max(self.slots, self.num_adapters)}
        slots = {"enable_lora": True, "max_lora_rank": room, **ready} if room else {}
        if not on_cpu:
            return shared | slots | {"gpu_memory_utilization": self.vllm.gpu_memory_utilization}
        batch = max(BATCH_TOKENS, context)
        cache = {
            "kv_cache_memory_bytes": self.settings.cache_gb << 30,
            "enforce_eager": True,
        }  # compiling takes minutes
        return shared | slots | cache | {"enable_chunked_prefill": False, "max_num_batched_tokens": batch}

    def check_memory(self, model: str, context: int, room: int, gpu_bytes: int) -> None:
        """Refuse a model that does not fit; one of unknown shape is left to vLLM.

        Args:
            model: folder or hub name.
            context: longest sequence in tokens.
            room: largest rank of adapters; 0 for none.
            gpu_bytes: memory of one GPU; 0 on a CPU.

        Raises:
            DataError: weights, adapters and the key-value cache of one sequence do not fit.
        """
        shape = shapes.of_model(model)
        if shape is None or context == UNLIMITED:
            return
        dtype, gpus, utilization = self.settings.dtype, self.vllm.tensor_parallel_size, self.vllm.gpu_memory_utilization
        parts: dict[str, float] = {"of weights": shape.weight_bytes(dtype)}
        if room:
            adapter_bytes = shape.lora_parameters(room) * shapes.BYTES[dtype]
            parts[f"for {self.slots} adapters"] = self.slots * adapter_bytes
        least = {f"of key-value cache for one sequence of {context} tokens": context * shape.kv_bytes_per_token(dtype)}
        if gpu_bytes:
            where = f"{gpus} GPU{'s' * (gpus > 1)} of {gpu_bytes / memory.GB:.0f} GB, of which "
            where += f"vllm.gpu_memory_utilization = {utilization:g} is used"
            advice = (
                "Take a smaller model, a lower vllm.max_model_len or vllm.max_loras, or more GPUs with "
                "vllm.tensor_parallel_size."
            )
            memory.check(model, parts | least, gpus * utilization * gpu_bytes, where, advice)
            return
        cache = self.settings.cache_gb << 30
        memory.check(model, least, cache, "engine.cache_gb", "Raise it, or lower vllm.max_model_len.")
        advice = "Take a smaller model or a lower engine.cache_gb, or end other programs."
        memory.check(model, parts | {"of key-value cache": cache}, memory.free_ram(), "free memory", advice)

    def _plain(self, folder: Path, base: str) -> Path:
        """Return an adapter as vLLM reads it, checked once: with one scale for all of its layers."""
        key = adapters.fingerprint(folder)
        if key not in self._checked:
            scales = models.check_adapter(folder, base, trust=self.settings.trust_remote_code)
            self._checked[key], _ = adapters.uniform(folder, scales)
        return self._checked[key]

    def _adapter(self, folder: Path | None) -> Any:
        """Return vLLM's description of an adapter, under a name and id that never meant anything else."""
        from vllm.lora.request import LoRARequest

        if folder is None:
            return None
        key = adapters.fingerprint(folder)
        if key not in self._adapters:
            number = next(_ids)
            self._adapters[key] = LoRARequest(f"{folder.name}-{number}", number, str(folder))
        return self._adapters[key]


def check_gpus(settings: VllmConfig, num_gpus: int, *, on_cpu: bool) -> None:
    """Refuse to start without the GPUs that are asked for.

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


def _room(rank: int) -> int:
    """Return the smallest rank that vLLM supports and that holds `rank`.

    Raises:
        DataError: there is none.
    """
    if rank > RANKS[-1]:
        raise DataError(f"vLLM has adapters of rank {RANKS[-1]} at most, got {rank}. Use engine.sampler=transformers.")
    return next(room for room in RANKS if rank <= room)
