"""Continuous batching: replies grow in slots, and a slot whose reply has ended takes the next request.

All slots of a batch make one step together, each with its own length, adapter, sampling parameters and random stream.
On CUDA a step is a graph, captured once for each of a few batch sizes; nothing but the flags of finished replies goes
to the host, once in several steps.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from maft.records import SamplingParams
from maft.samplers.fused import Fused

STEPS = 8
"""Steps between two looks at which replies have ended."""
PREFILL_TOKENS = 16384
"""Tokens of prompts read at a time, padding included."""
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 192, 256, 384, 512, 640, 768, 896, 1024)


class Job(NamedTuple):
    """One reply to make."""

    number: int
    token_ids: Sequence[int]
    max_new_tokens: int
    sampling: SamplingParams
    seed: int
    agent: int
    """Number of the adapter; -1 is the bare base."""


class Slots:
    """The key-value cache and the state of all replies that are being made."""

    def __init__(self, fused: Fused, stop_ids: Sequence[int], count: int, length: int, steps: int) -> None:
        """Allocate.

        Args:
            fused: the model.
            stop_ids: tokens that end a reply.
            count: replies at a time.
            length: longest dialogue in tokens, the reply included.
            steps: most tokens of a reply.
        """
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

    def run(self, waiting: deque[Job]) -> Iterator[tuple[int, list[int], list[float]]]:
        """Yield number, tokens (the ending one included) and log-probabilities of each job as its reply ends.

        Jobs may be appended to `waiting` while this runs.
        """
        running: dict[int, Job] = {}
        free = list(range(self.count))
        while waiting or running:
            if waiting and len(free) >= min(len(waiting), max(1, self.count // 8)):
                for chunk in self._chunks(waiting, len(free)):
                    slots = [free.pop() for _ in chunk]
                    self._read(chunk, slots)
                    running.update(zip(slots, chunk, strict=True))
            self._go(sorted(running))
            yield from self._ended(running, free)

    def drop_graphs(self) -> None:
        """Forget captured steps, whose memory has moved."""
        self.graphs.clear()

    def _chunks(self, waiting: deque[Job], room: int) -> list[list[Job]]:
        """Take jobs for free slots, in chunks of prompts of like lengths."""
        jobs = [waiting.popleft() for _ in range(min(room, len(waiting)))]
        chunks: list[list[Job]] = []
        for job in sorted(jobs, key=lambda job: len(job.token_ids), reverse=True):
            longest = len(chunks[-1][0].token_ids) if chunks else 0
            if not chunks or (len(chunks[-1]) + 1) * longest > PREFILL_TOKENS or 2 * len(job.token_ids) < longest:
                chunks.append([])
            chunks[-1].append(job)
        return chunks

    @torch.inference_mode()  # type: ignore[untyped-decorator]
    def _read(self, jobs: Sequence[Job], slots: Sequence[int]) -> None:
        """Read prompts into slots and draw the first token of each reply."""
        lengths = [len(job.token_ids) for job in jobs]
        longest = max(lengths)
        at = torch.tensor(slots, device=self.device)
        new = {
            "lengths": [length - 1 for length in lengths], "steps": [0] * len(jobs), "done": [False] * len(jobs),
            "limits": [job.max_new_tokens for job in jobs], "agents": [job.agent for job in jobs],
            "temperature": [job.sampling.temperature for job in jobs], "top_p": [job.sampling.top_p for job in jobs],
            "top_k": [job.sampling.top_k for job in jobs],
        }  # fmt: skip
        for name, values in new.items():
            self.state[name][at] = torch.tensor(values, dtype=self.state[name].dtype, device=self.device)
        draws = torch.zeros(len(jobs), self.steps)
        for row, job in enumerate(jobs):
            torch.rand(
                job.max_new_tokens,
                generator=torch.Generator().manual_seed(job.seed),
                out=draws[row, : job.max_new_tokens],
            )
        self.state["draws"][at] = draws.to(self.device)
        padded = [[*job.token_ids, *[0] * (longest - len(job.token_ids))] for job in jobs]
        tokens = torch.tensor(padded, device=self.device).flatten()
        positions = torch.arange(longest, device=self.device).repeat(len(jobs))
        rows = at.repeat_interleave(longest)

        def attend(layer: int, qkv: Tensor) -> Tensor:
            keys, values = self.keys[layer], self.values[layer]
            q = self.fused.ops.rotate_and_store(
                qkv, self.cos, self.sin, positions, rows, keys, values, self.fused.heads
            )
            # Padding stands behind the prompt, where causal attention does not see it.
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
        positions = self.state["lengths"][slots]

        def attend(layer: int, qkv: Tensor) -> Tensor:
            keys, values = self.keys[layer], self.values[layer]
            q = self.fused.ops.rotate_and_store(
                qkv, self.cos, self.sin, positions, slots, keys, values, self.fused.heads
            )
            return self.fused.ops.attend(q, keys, values, slots, self.state["lengths"])

        hidden = self.fused.hidden(self.state["tokens"][slots], self.state["agents"][slots], attend)
        self.fused.ops.advance(self.fused.logits(hidden), slots, self.state, self.stops)

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

    def _ended(self, running: dict[int, Job], free: list[int]) -> list[tuple[int, list[int], list[float]]]:
        """Return the replies that have ended, and free their slots."""
        done = self.state["done"].tolist()
        ended = [slot for slot in running if done[slot]]
        if not ended:
            return []
        at = torch.tensor(ended, device=self.device)
        steps, output, logprobs = (self.state[name][at].tolist() for name in ("steps", "output", "logprobs"))
        free.extend(ended)
        numbers = [running.pop(slot).number for slot in ended]
        return [(n, ids[:end], told[:end]) for n, end, ids, told in zip(numbers, steps, output, logprobs, strict=True)]
