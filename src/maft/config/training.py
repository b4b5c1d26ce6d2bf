"""Settings of finetuning."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from maft.config.base import FREE, PerIteration, Positive, Section, Share, of_iteration
from maft.extensions import Part


class LoraConfig(Section):
    """The shape of the adapters."""

    rank: Positive = 16
    alpha: Positive = 32
    dropout: Share = 0.0
    target_modules: str | tuple[str, ...] = "all-linear"
    """Names of the layers to adapt, or `all-linear`."""


Rate = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Schedule = Literal["constant", "linear", "cosine"]
OBJECTIVES = ("sft",)
Objective = Annotated[str, AfterValidator(Part("objective", OBJECTIVES))]


class _Training(Section):
    """What does not change from one agent to the next."""

    method: Literal["lora", "qlora", "full"] = "lora"
    """`lora` trains adapters; `qlora` the same on a base in 4 bits, on CUDA only; `full` trains and keeps all weights.
    """
    max_length: Positive = 2048
    """Maximum length of an example in tokens; longer ones are dropped and counted, never cut, since the answer is at
    the end."""
    packing: bool = False
    """Pack examples into rows of up to `max_length` tokens; they do not see each other, and `batch_size` counts rows.
    Saves padding on GPUs; on a CPU it is slower than batches of examples of similar length."""
    gradient_checkpointing: Annotated[bool | None, FREE] = None
    """Compute activations twice instead of keeping them: less memory, about a third more time. Null: on GPUs where
    memory is short; where TRL trains, on all GPUs."""
    loss_turns: Literal["last", "all"] = "last"
    """Assistant turns that carry loss; the first turn of a corrected dialogue is a wrong answer."""
    critics: bool = True
    """Finetune the critics; if false, they stay untrained (the paper's ablation without critics)."""
    start_from: Literal["previous", "base"] = "previous"
    """Initial weights of an iteration: the agent's own after the previous iteration, or those of the base model."""
    lora: LoraConfig = LoraConfig()
    """Shape of the adapters of `lora` and `qlora`."""


class Training(_Training):
    """How one agent is finetuned in one iteration: what `TrainConfig.of` returns."""

    num_epochs: Positive = 2
    learning_rate: Rate = 3e-4
    lr_schedule: Schedule = "cosine"
    warmup_ratio: Share = 0.03
    batch_size: Positive = 16
    gradient_accumulation: Positive = 1
    weight_decay: NotNegative = 0.0
    max_grad_norm: Rate = 1.0


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
    objective: Objective | None = None


class TrainConfig(_Training):
    """How agents are finetuned. Settings of the optimiser may be lists, with an entry for each iteration."""

    num_epochs: PerIteration[Positive] = 2
    """This and the seven settings below may be lists: an entry for each iteration; the last one holds for all further
    ones."""
    learning_rate: PerIteration[Rate] = 3e-4
    """Full finetuning needs a smaller one, such as 1e-5."""
    lr_schedule: PerIteration[Schedule] = "cosine"
    """`constant`, `linear` or `cosine`."""
    warmup_ratio: PerIteration[Share] = 0.03
    """Share of the steps during which the learning rate rises."""
    batch_size: PerIteration[Positive] = 16
    """Examples in one forward and backward pass, over all of `engine.num_train_processes`."""
    gradient_accumulation: PerIteration[Positive] = 1
    """Batches per optimiser step: 8 batches of one example equal one batch of 8, in less memory."""
    weight_decay: PerIteration[NotNegative] = 0.0
    max_grad_norm: PerIteration[Rate] = 1.0
    objective: Objective = "sft"
    """What is minimised: `sft` (maximum likelihood of the responses), or a class of your own (docs/extending.md)."""
    together: Annotated[Literal["auto"] | bool, FREE] = "auto"
    """Train all agents of a base model in the same steps, each on its own examples: results are equal but for rounding.
    `auto` does so on GPUs; on a CPU, agents are trained side by side in processes of their own."""
    generator: RoleTraining = RoleTraining()
    critic: RoleTraining = RoleTraining()

    def of(self, role: str, iteration: int) -> Training:
        """Return what holds for the agents of a role in an iteration (from 1).

        >>> TrainConfig(learning_rate=(3e-4, 1e-4), critic=RoleTraining(num_epochs=5)).of("critic", 2).learning_rate
        0.0001
        """
        values = {name: getattr(self, name) for name in Training.model_fields}
        changes: Section = {"generator": self.generator, "critic": self.critic}.get(role, RoleTraining())
        values |= {name: value for name, value in changes if value is not None and name in values}
        return Training.model_construct(**{name: of_iteration(value, iteration) for name, value in values.items()})

    def objective_of(self, role: str) -> str:
        """Return the objective of the agents of a role."""
        own = {"generator": self.generator, "critic": self.critic}.get(role, RoleTraining()).objective
        return own or self.objective
