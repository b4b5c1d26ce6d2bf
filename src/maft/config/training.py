"""Settings of finetuning."""

from collections.abc import Collection, Sequence
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from maft.config.base import FREE, NEWER, PerIteration, Positive, Section, Share, of_iteration
from maft.extensions import Part


class LoraConfig(Section):
    """The shape of the adapters."""

    rank: Positive = 16
    """Rank of the adapters."""
    alpha: Positive = 32
    """Updates are scaled by alpha / rank."""
    dropout: Share = 0.0
    """Dropout of the adapters' input; above 0, TRL trains."""
    target_modules: str | tuple[str, ...] = "all-linear"
    """Names of the layers to adapt, or `all-linear`."""


Rate = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Weight = Annotated[float, Field(gt=0)] | None
Schedule = Literal["constant", "linear", "cosine"]
EXAMPLES = {"sft": "agreeing", "weighted": "agreeing", "kto": "judged", "dpo": "pairs", "grpo": "advantages"}
"""What each objective learns from, see `maft.trainers.objectives.Objective.examples`."""
OBJECTIVES = tuple(EXAMPLES)
Objective = Annotated[str, AfterValidator(Part("objective", OBJECTIVES))]


class _Training(Section):
    """Settings that all agents share."""

    method: Literal["lora", "qlora", "full"] = "lora"
    """`lora` trains adapters; `qlora` the same on a base quantised to 4 bits (CUDA only); `full` trains all weights.
    """
    max_length: Positive = 2048
    """Maximum length of an example in tokens; longer ones are dropped and counted, never cut, since the answer is at
    the end."""
    packing: bool = False
    """Let TRL pack examples into rows of up to `max_length` tokens, which do not attend to each other; `batch_size`
    then counts rows. maft's own loop, the default for adapters in one process, has no padding anyway."""
    gradient_checkpointing: Annotated[bool | None, FREE] = None
    """Recompute activations instead of keeping them: less memory, about a third more time. Null: on GPUs where memory
    is short; where TRL trains, on all GPUs."""
    loss_turns: Literal["last", "all"] = "last"
    """Assistant turns of a critic's dialogue that carry loss: the `last`, or `all` (the released code), which includes
    wrong first answers."""
    critics: bool = True
    """Finetune the critics; if false, they stay untrained (the paper's ablation without critics)."""
    start_from: Literal["previous", "base"] = "previous"
    """Initial weights of an iteration: the agent's own after the `previous` iteration, or those of the `base` model."""
    lora: LoraConfig = LoraConfig()
    """Shape of the adapters of `lora` and `qlora`."""


class Training(_Training):
    """How one agent is finetuned in one iteration, see `TrainConfig.of`."""

    objective: Objective = "sft"
    beta: Rate = 0.1
    desirable_weight: Weight = None
    undesirable_weight: Weight = None
    num_epochs: Positive = 2
    learning_rate: Rate = 3e-4
    lr_schedule: Schedule = "cosine"
    warmup_ratio: Share = 0.03
    batch_size: Positive = 16
    gradient_accumulation: Positive = 1
    weight_decay: NotNegative = 0.0
    max_grad_norm: Rate = 1.0

    def without_effect(self) -> Sequence[str]:
        """Return the settings of other objectives."""
        return [*_of_other_objectives({self.objective}), *(["objective"] if self.objective == "sft" else [])]


class RoleTraining(Section):
    """Settings for the agents of one role; null: as in `train`."""

    num_epochs: PerIteration[Positive] | None = None
    learning_rate: PerIteration[Rate] | None = None
    lr_schedule: PerIteration[Schedule] | None = None
    warmup_ratio: PerIteration[Share] | None = None
    batch_size: PerIteration[Positive] | None = None
    gradient_accumulation: PerIteration[Positive] | None = None
    weight_decay: PerIteration[NotNegative] | None = None
    max_grad_norm: PerIteration[Rate] | None = None
    objective: PerIteration[Objective] | None = None
    beta: PerIteration[Rate] | None = None
    desirable_weight: PerIteration[Weight] = None
    undesirable_weight: PerIteration[Weight] = None


class TrainConfig(_Training):
    """How agents are finetuned. Settings of the optimiser may be lists, with an entry for each iteration."""

    num_epochs: PerIteration[Positive] = 2
    """Passes over the examples. This and the settings below, up to `undesirable_weight`, may be lists with one entry
    per iteration; the last entry holds for all later ones."""
    learning_rate: PerIteration[Rate] = 3e-4
    """Peak learning rate. Full finetuning needs a smaller one, such as 1e-5."""
    lr_schedule: PerIteration[Schedule] = "cosine"
    """`constant`, `linear` or `cosine`."""
    warmup_ratio: PerIteration[Share] = 0.03
    """Share of the steps during which the learning rate rises."""
    batch_size: PerIteration[Positive] = 16
    """Examples in one forward and backward pass, over all `engine.num_train_processes` together."""
    gradient_accumulation: PerIteration[Positive] = 1
    """Batches per optimiser step: 8 batches of one example equal one batch of 8, in less memory."""
    weight_decay: PerIteration[NotNegative] = 0.0
    """Weight decay of AdamW."""
    max_grad_norm: PerIteration[Rate] = 1.0
    """Gradients are clipped to this norm."""
    objective: PerIteration[Objective] = "sft"
    """The loss: `sft` (maximum likelihood of responses that agree with the label), `weighted` (the same, each response
    weighted by the margin of its vote), `kto` (agreeing responses desirable, dissenting ones undesirable), `dpo` (pairs
    of an agreeing and a dissenting response to one prompt), `grpo` (generators only: reward 1 for agreeing first
    answers), or your own class (docs/extending.md)."""
    beta: PerIteration[Rate] = 0.1
    """kto, dpo: how strongly an agent is kept near the weights that it starts the iteration with."""
    desirable_weight: PerIteration[Weight] = None
    """kto: weight of agreeing responses; null: half of all examples divided by the number of these, so that both
    classes have the same total weight."""
    undesirable_weight: PerIteration[Weight] = None
    """kto: weight of dissenting responses; null: as for `desirable_weight`."""
    online_questions: Annotated[Positive | None, NEWER] = None
    """Update the agents after every this many questions within an iteration, so that later questions are debated by the
    updated agents; null: once per iteration."""
    together: Annotated[Literal["auto"] | bool, FREE] = "auto"
    """Train all agents of a base model in the same steps, each on its own examples; results are equal up to rounding.
    `auto` does so on GPUs; on a CPU, agents are trained in parallel processes."""
    generator: RoleTraining = RoleTraining()
    critic: RoleTraining = RoleTraining()

    def of(self, role: str, iteration: int) -> Training:
        """Return the settings of a role's agents in an iteration (from 1).

        >>> TrainConfig(learning_rate=(3e-4, 1e-4), critic=RoleTraining(num_epochs=5)).of("critic", 2).learning_rate
        0.0001
        """
        values = {name: getattr(self, name) for name in Training.model_fields}
        changes: Section = {"generator": self.generator, "critic": self.critic}.get(role, RoleTraining())
        values |= {name: value for name, value in changes if value is not None and name in values}
        return Training.model_construct(**{name: of_iteration(value, iteration) for name, value in values.items()})

    def without_effect(self) -> Sequence[str]:
        """Return the settings of objectives that nobody has."""
        given = (self.objective, self.generator.objective, self.critic.objective)
        used = {name for names in given if names for name in ((names,) if isinstance(names, str) else names)}
        idle = _of_other_objectives(used)
        return [prefix + name for prefix in ("", "generator.", "critic.") for name in idle]

    def objectives(self, num_iterations: int) -> dict[tuple[str, int], str]:
        """Return the objective of each role in each iteration."""
        places = [(role, number) for role in ("generator", "critic") for number in range(1, num_iterations + 1)]
        return {place: self.of(*place).objective for place in places}


def _of_other_objectives(used: Collection[str]) -> list[str]:
    """Return the settings that none of these objectives has; those from outside may have all."""
    outside = set(used) - set(OBJECTIVES)
    owners = {"beta": {"kto", "dpo"}, "desirable_weight": {"kto"}, "undesirable_weight": {"kto"}}
    return [name for name, whose in owners.items() if not outside and not whose & set(used)]
