"""Continuous batching: replies grow in slots, and a slot whose reply has ended takes the next request.

All slots of a batch make one step together, each with its own length, adapter, sampling parameters and random stream.
On CUDA a step is a graph, captured once for each of a few batch sizes; only the flags of finished replies are copied to
the host, once in several steps.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from maft.records import SamplingParams
from maft.samplers.chat import Generated
from maft.samplers.fused import Fused
from maft.samplers.local import Ended, Job, Take

STEPS = 8
"""Steps between two looks at which replies have ended."""
PREFILL_TOKENS = 16384
"""Tokens of prompts read at a time, padding included."""
SIZES = (1, 4, 16, 64, 128, 256, 384, 512, 768, 1024)
"""Numbers of slots that make a step together; each is captured at its first use."""


class Slots:
    """The key-value cache and the state of all replies in progress."""

    def __init__(self, fused: Fused, stop_ids: Sequence[int], count: int, length: int, steps: int) -> None:
        """Allocate for `count` replies of up to `steps` tokens, in dialogues of up to `length`, the reply included."""
        self.fused, self.count, self.length, self.steps = fused, count, length, steps
        like = fused.model.model.embed_tokens.weight
        self.device = like.device
        self.stops = torch.tensor(sorted(stop_ids), device=self.device)
        rows = count + 1  # the last one is always finished: it fills up batches
        shape = (len(fused.layers), rows, fused.kv_heads, length, fused.width)
        self.keys, self.values = (torch.zeros(shape, dtype=like.dtype, device=self.device) for _ in range(2))
        self.cos, self.sin = fused.rotations(length)
        whole, real = torch.long, torch.float
        kinds = {"tokens": whole, "lengths": whole, "steps": whole, "limits": whole, "agents": whole, "top_k": whole,
                 "temperature": real, "top_p": real, "done": torch.bool}  # fmt: skip
        self.state = {name: torch.zeros(rows, dtype=kind, device=self.device) for name, kind in kinds.items()}
        self.state["done"].fill_(True)
        self.state["draws"] = torch.zeros(rows, steps, device=self.device)
        self.state["logprobs"] = torch.zeros(rows, steps, device=self.device)
        self.state["output"] = torch.zeros(rows, steps, dtype=whole, device=self.device)
        self.graphs: dict[int, tuple[Tensor, Any]] = {}
        self.free = list(range(count))

    def run(self, jobs: Sequence[Job], take: Take, admit: Callable[[Sequence[Job], bool], None]) -> Ended:
        """Yield each job as its reply has ended, until none is left or the next is too long.

        Whatever the caller does with a reply, and `take`, happen while the next steps are computed.

        `take` returns further jobs; `admit` is called with those about to begin, and whether others are running.
        """

        def fits(job: Job) -> bool:
            limit = job.prompt.max_new_tokens
            return limit <= self.steps and len(job.prompt.token_ids) + limit <= self.length

        waiting, running, more = list(jobs), dict[int, Job](), True
        ended: list[tuple[Job, Generated]] = []
        self.free = list(range(self.count))
        while True:
            if waiting and len(self.free) >= min(len(waiting), max(1, self.count // 8)):
                begin, waiting = waiting[: len(self.free)], waiting[len(self.free) :]
                admit(begin, bool(running))
                for chunk in _chunks(begin):
                    slots = [self.free.pop() for _ in chunk]
                    self._read(chunk, slots)
                    running.update(zip(slots, chunk, strict=True))
            if running:
                self._go(sorted(running, key=lambda slot: self.fused.numbers[running[slot].adapter]))
            yield from ended
            if more and (new := take(self.count - len(waiting))):
                more = all(map(fits, new))
                waiting += filter(fits, new)
            if not running and not waiting:
                return
            ended = self._ended(running) if running else []

    def greedy(self, jobs: Sequence[Job], limit: int) -> list[list[int]]:
        """Return some of the likeliest tokens after each job's prompt, at most `STEPS`, in slots that are free."""
        slots = self.free[: len(jobs)]
        sampling = {"sampling": SamplingParams(temperature=0, max_new_tokens=limit)}
        self._read(
            [
                Job(job.number, job.request.model_copy(update=sampling), job.prompt._replace(max_new_tokens=limit))
                for job in jobs
            ],
            slots,
        )
        self._go(slots)
        at = torch.tensor(slots, device=self.device)
        self.state["done"][at] = True
        steps, output = (self.state[name][at].tolist() for name in ("steps", "output"))
        return [ids[:end] for end, ids in zip(steps, output, strict=True)]

    @torch.inference_mode()  # type: ignore[untyped-decorator]
    def _read(self, jobs: Sequence[Job], slots: Sequence[int]) -> None:
        """Read prompts into slots and draw the first token of each reply."""
        lengths = [len(job.prompt.token_ids) for job in jobs]
        sampling = [job.request.sampling for job in jobs]
        longest = max(lengths)
        at = torch.tensor(slots, device=self.device)
        new = {
            "lengths": [length - 1 for length in lengths], "steps": [0] * len(jobs), "done": [False] * len(jobs),
            "limits": [job.prompt.max_new_tokens for job in jobs],
            "agents": [self.fused.numbers[job.adapter] for job in jobs],
            "temperature": [how.temperature for how in sampling], "top_p": [how.top_p for how in sampling],
            "top_k": [how.top_k for how in sampling],
        }  # fmt: skip
        for name, values in new.items():
            self.state[name][at] = torch.tensor(values, dtype=self.state[name].dtype, device=self.device)
        draws = torch.zeros(len(jobs), self.steps)
        for row, job in enumerate(jobs):
            limit, generator = job.prompt.max_new_tokens, torch.Generator().manual_seed(job.request.seed)
            torch.rand(limit, generator=generator, out=draws[row, :limit])
        self.state["draws"][at] = draws.to(self.device)
        padded = [[*job.prompt.token_ids, *[0] * (longest - n)] for job, n in zip(jobs, lengths, strict=True)]
        tokens = torch.tensor(padded, device=self.device).flatten()
        positions = torch.arange(longest, device=self.device).repeat(len(jobs))
        rows = at.repeat_interleave(longest)

        def attend(layer: int, qkv: Tensor) -> Tensor:
            keys, values, rotate = self.keys[layer], self.values[layer], self.fused.ops.rotate_and_store
            q = rotate(qkv, self.cos, self.sin, positions, rows, keys, values, self.fused.heads)
            # Padding comes after the prompt, where causal attention does not see it.
            out = functional.scaled_dot_product_attention(
                q.unflatten(0, (len(jobs), longest)).transpose(1, 2),
                keys[at, :, :longest],
                values[at, :, :longest],
                is_causal=True,
                enable_gqa=True,
            )
            return out.transpose(1, 2).flatten(0, 1).flatten(1)

        hidden = self.fused.hidden(tokens, self.state["agents"][rows], attend)
        ends = torch.tensor([row * longest + length - 1 for row, length in enumerate(lengths)], device=self.device)
        self.fused.ops.advance(self.fused.logits(hidden[ends]), at, self.state, self.stops)

    def _step(self, slots: Tensor) -> None:
        """Make one token in each slot."""
        ops, state, heads = self.fused.ops, self.state, self.fused.heads

        def attend(layer: int, qkv: Tensor) -> Tensor:
            keys, values = self.keys[layer], self.values[layer]
            return ops.attend(qkv, self.cos, self.sin, slots, keys, values, state["lengths"], heads)

        hidden = self.fused.hidden(state["tokens"][slots], state["agents"][slots], attend)
        ops.advance(self.fused.logits(hidden), slots, state, self.stops)

    @torch.inference_mode()  # type: ignore[untyped-decorator]
    def _go(self, slots: Sequence[int]) -> None:
        """Make some steps in these slots."""
        if self.device.type != "cuda":
            rows = torch.tensor(slots)
            for _ in range(STEPS):
                self._step(rows)
            return
        size = next((size for size in SIZES if size >= len(slots)), self.count)
        rows, graph = self.graphs.get(size) or self._capture(size)
        rows.copy_(torch.tensor([*slots, *[self.count] * (size - len(slots))]))
        for _ in range(STEPS):
            graph.replay()

    def _capture(self, size: int) -> tuple[Tensor, Any]:
        rows = torch.full((size,), self.count, device=self.device)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # compiles kernels and sets up libraries, which must not happen in a capture
            self._step(rows)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=next(iter(self.graphs.values()))[1].pool() if self.graphs else None):
            self._step(rows)
        self.graphs[size] = (rows, graph)
        return rows, graph

    def _ended(self, running: dict[int, Job]) -> list[tuple[Job, Generated]]:
        """Return the replies that have ended, and free their slots."""
        done = self.state["done"].tolist()
        ended = [slot for slot in running if done[slot]]
        if not ended:
            return []
        at = torch.tensor(ended, device=self.device)
        steps, output, logprobs = (self.state[name][at].tolist() for name in ("steps", "output", "logprobs"))
        self.free.extend(ended)
        jobs = [running.pop(slot) for slot in ended]
        return [
            (job, Generated(ids[:end], likely[:end]))
            for job, end, ids, likely in zip(jobs, steps, output, logprobs, strict=True)
        ]


def _chunks(jobs: Sequence[Job]) -> list[list[Job]]:
    """Divide jobs into chunks of prompts of like lengths."""
    chunks: list[list[Job]] = []
    for job in sorted(jobs, key=lambda job: len(job.prompt.token_ids), reverse=True):
        longest = len(chunks[-1][0].prompt.token_ids) if chunks else 0
        if not chunks or (len(chunks[-1]) + 1) * longest > PREFILL_TOKENS or 2 * len(job.prompt.token_ids) < longest:
            chunks.append([])
        chunks[-1].append(job)
    return chunks
