"""LoRA adapters of several agents of one base model, side by side in its layers.

The A matrices of a layer lie side by side, so do the B matrices: a token goes through all of them in two products, and
a mask keeps what its own agent's adapter gives. Parameters, gradients and optimisers are each agent's own.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch.nn import functional
from transformers import get_scheduler

from maft.config import Training
from maft.models.probe import Probe
from maft.trainers.agent import Learner
from maft.trainers.base_model import BaseModel

SCHEDULES = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}
"""Names of `train.lr_schedule` in transformers."""


class Unsupported(Exception):
    """This model or adapter needs another trainer."""


class Trained(NamedTuple):
    """What became of an agent."""

    weights: dict[str, torch.Tensor]
    """By the names that PEFT gives them in a file."""
    losses: list[float]
    """Of each step."""
    optimizer_state: Mapping[str, Any]
    config: Any
    """PEFT's."""
    probe: Probe | None = None


class _Matrices(NamedTuple):
    """One agent's adapter of one layer, as places in its flat parameters."""

    layer: str
    module: Any
    rank: int
    scale: float
    a: tuple[int, int]
    """(rank, inputs), flat."""
    b: tuple[int, int]
    """(rank, outputs), flat: the transpose of PEFT's."""


class Adapter:
    """One agent's adapter as one flat tensor of parameters, and its optimiser."""

    def __init__(self, base: BaseModel, learner: Learner) -> None:
        """Initialise it as PEFT does, from the job's seed or from the adapter that the job continues.

        Raises:
            Unsupported: it is no plain LoRA without dropout.
        """
        from peft.tuners.lora import Linear

        model = base.trainable(learner.job, learner.training)
        try:
            trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
            self.matrices: list[_Matrices] = []
            values, size = [], 0
            for name, module in model.base_model.model.named_modules():
                if not isinstance(module, Linear):
                    continue
                a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
                trained -= {f"base_model.model.{name}.lora_{which}.default.weight" for which in "AB"}
                if module.lora_variant or module.lora_dropout["default"].__class__ is not torch.nn.Identity:
                    raise Unsupported("LoRA with dropout, or of another variant")
                places = (size, size + a.numel()), (size + a.numel(), size + a.numel() + b.numel())
                size = places[1][1]
                self.matrices.append(
                    _Matrices(name, module.get_base_layer(), len(a), module.scaling["default"], *places)
                )
                values += [a.detach().flatten(), b.detach().T.flatten()]
            if trained or not values:
                raise Unsupported(f"an adapter that trains {min(trained, default='nothing')}")
            self.config = model.peft_config["default"]
            self.flat = torch.nn.Parameter(torch.cat(values))
        finally:
            base.restore(model)
        self.learner = learner
        self.losses: list[float] = []
        self.steps = list(steps(len(learner.units), learner.training, learner.job.seed))
        how = learner.training
        self.optimizer = torch.optim.AdamW([self.flat], weight_decay=how.weight_decay, fused=True)
        if learner.optimizer_state is not None:
            self.optimizer.load_state_dict(dict(learner.optimizer_state))
        group = self.optimizer.param_groups[0]
        group |= {"lr": how.learning_rate, "initial_lr": how.learning_rate, "weight_decay": how.weight_decay}
        self.schedule = get_scheduler(
            SCHEDULES[how.lr_schedule],
            self.optimizer,
            # The first step of a warmup has a rate of zero: with one step alone nothing would be learned.
            num_warmup_steps=min(math.ceil(len(self.steps) * how.warmup_ratio), len(self.steps) - 1),
            num_training_steps=len(self.steps),
        )
        self.tokens = 0
        self.references: dict[int, torch.Tensor] = {}
        """By example, the reference's log-probabilities of its tokens, where the objective has a reference."""
        self.mismatched: dict[int, torch.Tensor] = {}
        """The same of the mismatched rows."""

    @property
    def finished(self) -> bool:
        """Whether all steps are done."""
        return len(self.losses) == len(self.steps)

    def update(self, gradient: torch.Tensor) -> float:
        """Clip the gradient and do a step of the optimiser; return the learning rate."""
        how, rate = self.learner.training, float(self.schedule.get_last_lr()[0])
        norm = torch.linalg.vector_norm(gradient)
        self.flat.grad = gradient.mul_((how.max_grad_norm / (norm + 1e-6)).clamp(max=1.0))
        self.optimizer.step()
        self.schedule.step()
        self.flat.grad = None
        return rate

    def result(self) -> Trained:
        """Return what was learned."""
        weights = {}
        for m in self.matrices:
            a, b = (self.flat.detach()[slice(*place)].view(m.rank, -1) for place in (m.a, m.b))
            weights[f"base_model.model.{m.layer}.lora_A.weight"] = a.clone()
            weights[f"base_model.model.{m.layer}.lora_B.weight"] = b.T.contiguous()
        return Trained(weights, self.losses, self.optimizer.state_dict(), self.config)


def steps(num_examples: int, training: Training, seed: int) -> Iterator[list[int]]:
    """Yield the examples of each optimiser step: every epoch in a new order, as TRL draws it."""
    size = training.batch_size * training.gradient_accumulation
    for epoch in range(training.num_epochs):
        generator = torch.Generator().manual_seed(seed % 2**32 + epoch)
        order = torch.randperm(num_examples, generator=generator).tolist()
        for start in range(0, num_examples, size):
            yield order[start : start + size]


class Stack:
    """The adapters of several agents, in the layers of their base model until `remove`."""

    def __init__(self, base: BaseModel, adapters: Sequence[Adapter]) -> None:
        self.adapters = adapters
        self._masks: dict[Any, torch.Tensor] = {}
        self._columns: dict[Any, tuple[torch.Tensor, torch.Tensor]] = {}
        dtype, device = getattr(torch, base.dtype), adapters[0].flat.device
        own = [{m.layer: m for m in adapter.matrices} for adapter in adapters]
        layers = {name: module for name, module in base.model.named_modules() if any(name in ms for ms in own)}
        self._pieces: list[tuple[int, tuple[int, int]]] = []
        """Agent and place in its parameters, of each piece of the working copy; every agent's are in its own order."""
        shapes = []
        for name in layers:
            parts = [(number, ms[name]) for number, ms in enumerate(own) if name in ms]
            shapes.append(tuple((number, m.rank, m.scale) for number, m in parts))
            self._pieces += [(number, m.a) for number, m in parts] + [(number, m.b) for number, m in parts]
        self._sizes = [end - start for _, (start, end) in self._pieces]
        self._sources = [adapters[number].flat.detach()[slice(*place)] for number, place in self._pieces]
        self._work = torch.empty(sum(self._sizes), dtype=dtype, device=device)
        self._leaves: list[torch.Tensor] = []
        self._modules = list(layers.values())
        ends, start, first = [0], 0, 0
        for module, shape in zip(self._modules, shapes, strict=True):
            for _ in "AB":
                start = ends[-1]
                ends.append(start + sum(self._sizes[first : first + len(shape)]))
                first += len(shape)
                matrix = self._work[start : ends[-1]].view(sum(rank for _, rank, _ in shape), -1)
                self._leaves.append(matrix.detach().requires_grad_())
            if shape not in self._columns:
                owners = [number for number, rank, _ in shape for _ in range(rank)]
                scales = [scale for _, rank, scale in shape for _ in range(rank)]
                self._columns[shape] = torch.tensor(owners, device=device), torch.tensor(scales).to(self._work)
            module.forward = partial(self._forward, module, shape, *self._leaves[-2:])
        self.refresh()

    def remove(self) -> None:
        """Take the adapters out of the layers."""
        for module in self._modules:
            module.__dict__.pop("forward", None)

    def refresh(self) -> None:
        """Copy the agents' parameters to where the layers compute with them."""
        with torch.no_grad():
            self._work.copy_(torch.cat(self._sources))

    def speak(self, agents: torch.Tensor | None) -> None:
        """Set whose adapter each token of the next forward pass goes through; None is nobody's."""
        for shape, (owners, scales) in self._columns.items():
            if agents is None:
                self._masks[shape] = torch.zeros_like(scales)
            else:
                self._masks[shape] = scales if len(self.adapters) == 1 else (agents[:, None] == owners) * scales

    def gradients(self) -> list[torch.Tensor]:
        """Return each agent's gradient as one flat tensor, and forget it here."""
        found = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in self._leaves]
        for leaf in self._leaves:
            leaf.grad = None
        whole = torch.cat([gradient.flatten() for gradient in found]).to(self.adapters[0].flat.dtype)
        owned: list[list[torch.Tensor]] = [[] for _ in self.adapters]
        for (number, _), piece in zip(self._pieces, whole.split(self._sizes), strict=True):
            owned[number].append(piece)
        return [torch.cat(pieces) for pieces in owned]

    def _forward(self, module: Any, shape: Any, a: torch.Tensor, b: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = type(module).forward(module, x)
        a, b = a.to(out.dtype), b.to(out.dtype)  # the base is wider while it is probed
        hidden = functional.linear(x.to(a.dtype), a) * self._masks[shape]
        return torch.addmm(out.reshape(-1, out.shape[-1]), hidden.reshape(-1, len(a)), b).view_as(out)
