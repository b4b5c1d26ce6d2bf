"""Finetuning of all agents of one base model together: one forward pass for the examples of all of them.

Each agent has its own examples in its own order, its own schedule, clipping, loss and optimiser state, so it becomes
what it becomes alone, to rounding. An agent that has done its steps is handed over at once and leaves; the others
continue without it. With one agent this is an ordinary training loop.

A step is done in parts that memory has room for. Logits are computed only where a token with loss is predicted. Before
anything is trained, packed rows are compared with single ones that go through the model's own attention.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import accumulate
from typing import Any

import torch

from maft.errors import DataError
from maft.models.probe import Probe, in_float32, is_exact, measure, token_ids
from maft.trainers import packed
from maft.trainers.agent import Learner
from maft.trainers.base import TrainProgress
from maft.trainers.base_model import BaseModel
from maft.trainers.dialogue_tokens import shared_beginning
from maft.trainers.objectives import Scored
from maft.trainers.packed import Attention, Row, TokenLogprobs, lay_out
from maft.trainers.stack import Adapter, Stack, Trained, Unsupported

__all__ = ["Learner", "Trained", "Unsupported", "train"]

TOLERANCE = {"bfloat16": 0.1, "float16": 0.02, "float32": 1e-3, "float64": 1e-3}
"""Largest mean difference of tokens' log-probabilities that rounding explains."""
CPU_TOKENS = 1024
"""Tokens of a part on a CPU: fewer make matrix products less efficient, more do not stay in its caches."""
GPU_TOKENS = (4096, 65536)
"""The same on a GPU: of the first part, by which the memory of a token is measured, and at most."""
PLENTY = 8192
"""Tokens of a part that make computing activations twice unnecessary."""
MEMORY_SHARE = 0.7
"""Share of the free GPU memory that a part may take."""

Place = tuple[int, int]
"""An agent's number in the stack, and the number of an example of its."""
Numbered = tuple[int, Row]
"""An agent's number in the stack, and a row of its."""


def train(
    base: BaseModel,
    learners: Sequence[Learner],
    report: Callable[[TrainProgress], None],
    done: Callable[[Learner, Trained], None],
) -> None:
    """Train agents of one base model together.

    `report` gets every agent's progress after every step, `done` each agent when it has done its steps.

    Raises:
        Unsupported: this model or an adapter needs another trainer.
        DataError: the loss of an agent is not a number.
    """
    _refuse_windows(base, learners)
    base.to_device()
    active = [Adapter(base, learner) for learner in learners]
    with PackedModel(base, [learner.training.gradient_checkpointing for learner in learners]) as model:
        while active:
            model.put(active)
            for _ in range(min(len(adapter.steps) - len(adapter.losses) for adapter in active)):
                _step(model, active, report)
            for number, adapter in enumerate(active):
                if adapter.finished:
                    done(adapter.learner, adapter.result()._replace(probe=model.probe(number)))
            active = [adapter for adapter in active if not adapter.finished]


def _refuse_windows(base: BaseModel, learners: Sequence[Learner]) -> None:
    config = base.model.config
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    longest = max(len(row.input_ids) for learner in learners for unit in learner.units for row in unit.rows)
    if window and longest > window:
        raise Unsupported(f"its attention has a window of {window} tokens, and an example has {longest}")


def _step(model: "PackedModel", adapters: Sequence[Adapter], report: Callable[[TrainProgress], None]) -> None:
    """Do one optimiser step of every agent."""
    batches = [adapter.steps[len(adapter.losses)] for adapter in adapters]
    values = model.backward(batches)
    for adapter, value in zip(adapters, values, strict=True):
        if not math.isfinite(value):
            raise DataError(
                f"training {adapter.learner.job.agent}: the loss is {value} at step {len(adapter.losses) + 1}. "
                "Use a smaller train.learning_rate, or engine.dtype=float32."
            )
    progress = []
    for adapter, batch, value, gradient in zip(adapters, batches, values, model.stack.gradients(), strict=True):
        adapter.losses.append(value)
        adapter.tokens += sum(adapter.learner.units[place].num_tokens for place in batch)
        rate = adapter.update(gradient)
        progress.append(
            TrainProgress(
                agent=adapter.learner.job.agent,
                step=len(adapter.losses),
                num_steps=len(adapter.steps),
                loss=value,
                tokens=adapter.tokens,
                learning_rate=rate,
            )
        )
    model.stack.refresh()
    for step in progress:
        report(step)


class PackedModel:
    """A base model that computes packed rows with the adapters of several agents, while it is entered."""

    stack: Stack

    def __init__(self, base: BaseModel, recompute: Sequence[bool | None]) -> None:
        """Prepare the model.

        `recompute` is `gradient_checkpointing` of the agents; None is no, unless memory is short.

        Raises:
            Unsupported: the model has dropout, or a head that cannot be replaced.
        """
        self.base, self.model = base, base.model
        self.device = next(base.model.parameters()).device
        self.head = base.model.get_output_embeddings()
        if self.head is None or any(m.p for m in self.model.modules() if isinstance(m, torch.nn.Dropout)):
            raise Unsupported("a model with dropout, or without a language-model head")
        self._attention = _attention()
        self._padded = True
        self._own_attention = base.model.config._attn_implementation
        self._recompute = any(recompute)
        self._may_recompute = None in recompute
        self._tokens = CPU_TOKENS if self.device.type == "cpu" else GPU_TOKENS[0]
        self._measured = self.device.type != "cuda"
        self._exact = torch.float64 if base.dtype == "float64" else torch.float32
        self._gains: dict[int, torch.Tensor] = {}

    def __enter__(self) -> "PackedModel":
        self.model.set_attn_implementation(packed.NAME)
        if self.model.config._attn_implementation != packed.NAME:
            raise Unsupported("its attention cannot be replaced")
        self.model.train()
        self._checkpoint(self._recompute)
        return self

    def __exit__(self, *_: object) -> None:
        self._attention.layout = None
        if hasattr(self, "stack"):
            self.stack.remove()
        self._checkpoint(False)
        self.model.set_attn_implementation(self._own_attention)
        self.model.eval()

    def put(self, adapters: Sequence[Adapter]) -> None:
        """Put adapters into the layers, in place of those that are there.

        Raises:
            Unsupported: packed rows do not give what single ones give; says why.
        """
        if hasattr(self, "stack"):
            self.stack.remove()
        self.stack = Stack(self.base, adapters)
        units = [adapter.learner.units for adapter in adapters]
        self._rows = [[[Row.of(row) for row in unit.rows] for unit in own] for own in units]
        self._mismatched = [[[Row.of(unit.mismatched)] if unit.mismatched else [] for unit in own] for own in units]
        self._shared = {n: shared_beginning([r for unit in own for r in unit.rows]) for n, own in enumerate(units)}
        known = self.base.knows.get(f"padded, {len(adapters) > 1}")
        self._padded = self._check() if known is None else known
        self.base.knows[f"padded, {len(adapters) > 1}"] = self._padded
        for number, adapter in enumerate(adapters):
            if adapter.learner.objective.reference != "none" and not adapter.references:
                self._refer(number, adapter)

    def backward(self, batches: Sequence[Sequence[int]]) -> list[float]:
        """Compute the gradients of one step, which the stack keeps; return each agent's loss."""
        places = [(number, place) for number, batch in enumerate(batches) for place in batch]
        learners = [adapter.learner for adapter in self.stack.adapters]
        sizes = [0.0] * len(learners)
        for number, place in places:
            sizes[number] += learners[number].objective.size(learners[number].units[place])
        while True:
            try:
                self._gains = self._mismatched_gains(batches)
                return self._backward(places, torch.tensor(sizes, dtype=self._exact, device=self.device)).tolist()  # type: ignore[no-any-return]
            except torch.OutOfMemoryError:
                if self._tokens <= CPU_TOKENS:
                    raise
            self.stack.gradients()
            torch.cuda.empty_cache()
            self._tokens //= 2

    def _backward(self, places: Sequence[Place], sizes: torch.Tensor) -> torch.Tensor:
        total = torch.zeros_like(sizes)
        units = [adapter.learner.units for adapter in self.stack.adapters]
        for part in self._parts({(number, place): units[number][place].num_tokens for number, place in places}):
            if not self._measured:
                torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated() if not self._measured else 0
            losses = self._losses(part)
            (losses / sizes).sum().backward()
            total = total + (losses / sizes).detach()
            if not self._measured:
                self._measure(before, part)
        return total

    def _losses(self, part: Sequence[Place]) -> torch.Tensor:
        """Return the summed losses of each agent's examples in a part."""
        logprobs, rows, ends = self._score([(n, row) for n, place in part for row in self._rows[n][place]])
        learners = [adapter.learner for adapter in self.stack.adapters]
        losses, start, first = [], 0, 0
        for number, adapter in enumerate(self.stack.adapters):
            places = [place for owner, place in part if owner == number]
            units = [learners[number].units[place] for place in places]
            num_rows = sum(len(unit.rows) for unit in units)
            end = ends[first + num_rows]
            if not units:
                losses.append(logprobs.new_zeros(()))
                continue
            scored = Scored(
                [unit.example for unit in units],
                logprobs[start:end],
                rows[start:end] - first,
                num_rows,
                torch.cat([adapter.references[place] for place in places]) if adapter.references else None,
                self._gains.get(number),
            )
            losses.append(learners[number].objective.losses(scored).sum())
            start, first = end, first + num_rows
        return torch.stack(losses)

    def _mismatched_gains(self, batches: Sequence[Sequence[int]]) -> dict[int, torch.Tensor]:
        """Return, by agent, the mean gain over the reference of a step's mismatched rows."""
        gains = {}
        for number, adapter in enumerate(self.stack.adapters):
            if adapter.mismatched:
                now = self._logprobs(number, batches[number], self._mismatched[number])
                gains[number] = torch.stack([(now[n] - adapter.mismatched[n]).sum() for n in batches[number]]).mean()
        return gains

    def _logprobs(
        self, number: int, places: Sequence[int], rows: Sequence[Sequence[Row]], *, base_only: bool = False
    ) -> dict[int, torch.Tensor]:
        """Return, by example, the log-probabilities of the tokens with loss in one agent's rows."""
        results = {}
        for part in self._parts({(number, place): sum(len(row.ids) for row in rows[place]) for place in places}):
            with torch.no_grad():
                logprobs, _, ends = self._score(
                    [(number, row) for _, n in part for row in rows[n]], base_only=base_only
                )
            first = 0
            for _, place in part:
                last = first + len(rows[place])
                results[place] = logprobs[ends[first] : ends[last]]
                first = last
        return results

    def _score(
        self, rows: Sequence[Numbered], *, base_only: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
        """Return the log-probability and row of each token with loss, and where the tokens of each row end."""
        ends = [0, *accumulate(len(row.learned) for _, row in rows)]
        layout = lay_out(rows, self._shared, self.device, padded=self._padded)
        self._attention.layout = layout.attention
        self.stack.speak(None if base_only else layout.agents)

        def narrow(_: Any, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            return (arguments[0].index_select(1, layout.predicting), *arguments[1:])

        hook = self.head.register_forward_pre_hook(narrow)
        try:
            logits = self.model(input_ids=layout.input_ids, position_ids=layout.positions, use_cache=False).logits[0]
        finally:
            hook.remove()
        return TokenLogprobs.apply(logits, layout.targets), layout.rows, ends

    def _parts(self, sizes: Mapping[Place, int]) -> list[list[Place]]:
        """Group examples into parts of about equal size that memory has room for, with rows of like length together."""
        num_parts = -(-sum(sizes.values()) // self._tokens)
        limit, filled = sum(sizes.values()) / num_parts, 0.0
        parts: list[list[Place]] = [[]]
        for place in sorted(sizes, key=lambda place: (sizes[place], place)):
            if parts[-1] and filled + sizes[place] / 2 > limit:
                parts.append([])
                filled = 0.0
            parts[-1].append(place)
            filled += sizes[place]
        return [sorted(part) for part in parts]

    def probe(self, agent: int) -> Probe | None:
        """Return the likelihoods by which engines that sample with an agent's adapter are checked."""
        if self.base.method != "lora":
            return None
        ids = token_ids(self.base.tokenizer)
        self.model.set_attn_implementation(self._own_attention)
        with in_float32(self.model):
            exact = is_exact(self.model)
            if exact not in self.base.likelihoods:
                self.stack.speak(None)
                self.base.likelihoods[exact] = measure(self.model, ids)
            self.stack.speak(torch.full((len(ids),), agent, device=self.device))
            probe = Probe(base=self.base.likelihoods[exact], adapted=measure(self.model, ids), exact=exact)
        self.model.set_attn_implementation(packed.NAME)
        return probe

    def _refer(self, number: int, adapter: Adapter) -> None:
        """Compute the log-probabilities of an agent's reference weights."""
        learner = adapter.learner
        places, base_only = range(len(learner.units)), learner.objective.reference == "base"
        adapter.references = self._logprobs(number, places, self._rows[number], base_only=base_only)
        if learner.objective.mismatched:
            adapter.mismatched = self._logprobs(number, places, self._mismatched[number], base_only=base_only)

    def _check(self) -> bool:
        """Compare packed rows with single ones that go through the model's own attention; return `padded`.

        Raises:
            Unsupported: they differ, however attention is computed.
        """
        shortest = [
            (number, place)
            for number, adapter in enumerate(self.stack.adapters[:2])
            for place in sorted(range(len(adapter.learner.units)), key=lambda n: adapter.learner.units[n].num_tokens)[
                :2
            ]
        ]
        rows = [(number, row) for number, place in shortest for row in self._rows[number][place]]
        with torch.no_grad():
            wanted = torch.cat([self._plain(n, row) for n, row in rows])
        reasons = []
        for self._padded in (False, True) if packed.has_variable_lengths() else (True,):
            self.model.set_attn_implementation(packed.NAME)
            try:
                ours = self._score(rows)[0]
                ours.sum().backward()
                finite = all(gradient.isfinite().all() for gradient in self.stack.gradients())
            except torch.OutOfMemoryError:
                raise
            except (AttributeError, IndexError, NotImplementedError, RuntimeError, TypeError, ValueError) as why:
                reasons.append(f"{type(why).__name__}: {why}")
                continue  # this model's layers or torch's kernel are of another kind
            difference = float((ours.detach() - wanted).abs().mean())
            if finite and difference <= TOLERANCE[self.base.dtype]:
                return self._padded
            reasons.append(f"log-probabilities differ by {difference:g}" if finite else "a gradient is not a number")
        raise Unsupported(f"packed rows do not give what single ones give ({'; '.join(reasons)})")

    def _plain(self, agent: int, row: Row) -> torch.Tensor:
        """Return the log-probabilities of a row's tokens with loss, computed in the usual way."""
        self.model.set_attn_implementation(self._own_attention)
        ids, learned = (torch.from_numpy(values).to(self.device) for values in row)
        self.stack.speak(torch.full_like(ids, agent))
        logits = self.model(input_ids=ids[None], use_cache=False).logits[0]
        return TokenLogprobs.apply(logits[learned - 1], ids[learned])

    def _measure(self, before: int, part: Sequence[Place]) -> None:
        """Set how many tokens a part may have, by the memory that the first one took."""
        tokens = sum(self.stack.adapters[n].learner.units[place].num_tokens for n, place in part)
        each = (torch.cuda.max_memory_allocated() - before) / tokens
        room = torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        fits = int(MEMORY_SHARE * room / max(each, 1.0))
        if fits < PLENTY and self._may_recompute and not self._recompute:
            self._recompute = True
            self._checkpoint(True)
            torch.cuda.reset_peak_memory_stats()
            return  # the next part is measured
        self._measured = True
        self._tokens = min(max(fits, CPU_TOKENS), GPU_TOKENS[1])

    def _checkpoint(self, on: bool) -> None:
        if on:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        elif getattr(self.model, "is_gradient_checkpointing", False):
            self.model.gradient_checkpointing_disable()


@cache
def _attention() -> Attention:
    return Attention()
