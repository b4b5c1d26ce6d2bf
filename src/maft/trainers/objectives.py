"""What finetuning minimises: each objective turns an example into token rows, and their log-probabilities into losses.

An objective sees one agent's examples of one optimiser step, or a part of them. Its losses are summed over the step and
divided by the step's size, so splitting a step into parts changes nothing.

`kto` and `dpo` follow TRL's `KTOTrainer` and `DPOTrainer` (`loss_type` "kto" and "sigmoid"), their reference too: the
adapter that an agent starts from, so that each iteration is held to what the agent was before it. A fresh adapter
changes nothing, so in the first iteration that is the base model with the adapter switched off.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from maft.config import Training
from maft.errors import DataError
from maft.extensions import find
from maft.records import Example, Message
from maft.trainers.dialogue_tokens import IGNORED, DialogueTokens

Tokenize = Callable[[Sequence[Message], Sequence[Sequence[int] | None] | None], DialogueTokens]
"""Messages, and the sampled tokens of each assistant message where they are known, to tokens with a loss mask."""


class Unit(NamedTuple):
    """An example as the model is trained on it."""

    example: Example
    rows: tuple[DialogueTokens, ...]
    """One, or several whose losses belong together, such as the two of a pair; they are never in different parts."""
    mismatched: DialogueTokens | None = None
    """Its prompt with a response to another question, for objectives that want it."""

    @property
    def num_tokens(self) -> int:
        """Count the tokens of all rows."""
        return sum(len(row.input_ids) for row in self.rows)


class Scored(NamedTuple):
    """Examples of one agent with the log-probabilities of their tokens. Tensors; n tokens with loss, m rows."""

    examples: Sequence[Example]
    logprobs: Any
    """(n), with gradients: the log-probability of each token that carries loss."""
    rows: Any
    """(n): the row of each token, numbered from 0 in the order of the examples."""
    num_rows: int
    reference: Any = None
    """(n): the same of the reference weights, without gradients; None if the objective has no reference."""
    mismatched: Any = None
    """(): mean over the step's mismatched rows of log p(row) - log p_reference(row), without gradients; or None."""

    @property
    def weights(self) -> Any:
        """Return the weight of each example: (number of examples)."""
        return self.logprobs.new_tensor([example.weight for example in self.examples])

    def sums(self, values: Any) -> Any:
        """Sum a value of each token over the tokens of each row: (n) to (m)."""
        return values.new_zeros(self.num_rows).index_add(0, self.rows, values)


class Objective(ABC):
    """One way to learn from examples."""

    reference: Literal["none", "start", "base"] = "none"
    """Whose log-probabilities are computed once before training: of the weights it starts from, or of the base model
    without an adapter."""
    examples: Literal["agreeing", "judged", "pairs", "advantages"] = "agreeing"
    """What curation makes for it: responses that agree with the label; these and dissenting ones, each with `wanted`;
    pairs, whose `rejected` dissents; or several responses to a prompt, whose `weight` is their advantage."""
    mismatched: bool = False
    """Whether it needs the gain of mismatched rows at each step."""
    settings: Training = Training()
    """Of the agent and iteration."""

    def rows(self, example: Example, tokenize: Tokenize) -> tuple[DialogueTokens, ...]:
        """Return an example as rows of tokens.

        Raises:
            DataError: the example lacks what this objective needs.
        """
        return (tokenize(example.messages, example.token_ids),)

    def size(self, unit: Unit) -> float:
        """Return what an example adds to the divisor of a step: by default its tokens with loss."""
        return float(sum(row.num_completion_tokens for row in unit.rows))

    @abstractmethod
    def losses(self, scored: Scored) -> Any:
        """Return losses as a tensor of any shape; their sum is minimised."""


class Sft(Objective):
    """Maximum likelihood of the responses: the mean negative log-likelihood over the tokens of a step."""

    def losses(self, scored: Scored) -> Any:
        """Return the negative log-likelihood of each token."""
        return -scored.logprobs


class Weighted(Objective):
    """Maximum likelihood in which each response has its example's weight: a weighted mean over the tokens of a step."""

    def size(self, unit: Unit) -> float:
        """Return the tokens with loss, weighted."""
        return unit.example.weight * super().size(unit)

    def losses(self, scored: Scored) -> Any:
        """Return the weighted negative log-likelihood of each token."""
        return -scored.weights[scored.rows] * scored.logprobs


class Dpo(Objective):
    """Direct preference optimisation (arXiv 2305.18290): the wanted response of a pair gains more than the other."""

    reference = "start"
    examples = "pairs"

    def rows(self, example: Example, tokenize: Tokenize) -> tuple[DialogueTokens, ...]:
        """Return the wanted and the unwanted response, each after the prompt.

        Raises:
            DataError: the example is no pair.
        """
        if example.rejected is None:
            raise DataError(
                f"train.objective=dpo learns from pairs; {example.agent} has an example without `rejected`."
            )
        unwanted = example.messages[-1].model_copy(update={"content": example.rejected})
        known = example.token_ids or (None,) * sum(message.role == "assistant" for message in example.messages)
        return (
            tokenize(example.messages, example.token_ids),
            tokenize((*example.messages[:-1], unwanted), (*known[:-1], example.rejected_token_ids)),
        )

    def size(self, unit: Unit) -> float:
        """Return 1: the loss is a mean over pairs."""
        return 1.0

    def losses(self, scored: Scored) -> Any:
        """Return the loss of each pair."""
        from torch.nn.functional import logsigmoid

        wanted, unwanted = scored.sums(scored.logprobs - scored.reference).view(-1, 2).unbind(1)
        return -scored.weights * logsigmoid(self.settings.beta * (wanted - unwanted))


class Kto(Objective):
    """Kahneman-Tversky optimisation (arXiv 2402.01306): wanted responses gain over the mean gain, unwanted ones lose.

    That mean is estimated from mismatched rows: each prompt with the response to the question before it.
    """

    reference = "start"
    examples = "judged"
    mismatched = True

    def rows(self, example: Example, tokenize: Tokenize) -> tuple[DialogueTokens, ...]:
        """Return the response after its prompt.

        Raises:
            DataError: the example does not say whether it is wanted.
        """
        if example.wanted is None:
            raise DataError(
                f"train.objective=kto learns from judged responses; {example.agent} has one without `wanted`."
            )
        return super().rows(example, tokenize)

    def size(self, unit: Unit) -> float:
        """Return 1: the loss is a mean over responses."""
        return 1.0

    def losses(self, scored: Scored) -> Any:
        """Return the loss of each response."""
        gain = scored.sums(scored.logprobs - scored.reference) - scored.mismatched.clamp(min=0)
        sign = gain.new_tensor([1.0 if example.wanted else -1.0 for example in scored.examples])
        return scored.weights * (1 - (self.settings.beta * sign * gain).sigmoid())


class Grpo(Objective):
    """Group relative policy optimisation (arXiv 2402.03300): responses with an advantage among their group gain.

    The ratio to the weights that sampled them is clipped as in TRL's `GRPOTrainer` with its defaults: no divergence
    term, a mean over the tokens of a step.
    """

    reference = "start"
    examples = "advantages"
    epsilon = 0.2
    """How far from 1 the ratio of probabilities may go."""

    def losses(self, scored: Scored) -> Any:
        """Return the loss of each token."""
        ratio = (scored.logprobs - scored.reference).exp()
        advantage = scored.weights[scored.rows]
        return -(ratio * advantage).minimum(ratio.clamp(1 - self.epsilon, 1 + self.epsilon) * advantage)


OBJECTIVES: Mapping[str, type[Objective]] = {"sft": Sft, "weighted": Weighted, "kto": Kto, "dpo": Dpo, "grpo": Grpo}


def make(name: str, settings: Training | None = None) -> Objective:
    """Return an objective by name.

    Raises:
        ConfigError: it comes from outside and cannot be loaded.
    """
    objective: Objective = (OBJECTIVES.get(name) or find("objective", name, Objective))()
    objective.settings = settings or Training()
    return objective


def mismatch(units: Sequence[Unit], max_length: int) -> list[Unit]:
    """Give each unit a mismatched row: its first row's prompt, with the response to the question before it.

    The question before the first one is the last one. Where all examples have one question, the response is of it.
    Where the two together are longer than `max_length`, the end of the response is left out; it only sets a level.
    """
    result = []
    for place, unit in enumerate(units):
        others = [units[place - back] for back in range(1, len(units) + 1)]
        other = next((o for o in others if o.example.problem_id != unit.example.problem_id), others[0])
        (prompt, _), (_, response) = _parted(unit.rows[0]), _parted(other.rows[0])
        response = response[: max(1, max_length - len(prompt))]
        labels = [IGNORED] * len(prompt) + response
        result.append(unit._replace(mismatched=DialogueTokens(prompt + response, labels)))
    return result


def _parted(row: DialogueTokens) -> tuple[list[int], list[int]]:
    """Return a row's tokens before its last response, and those of the response."""
    end = len(row.labels)
    start = next((n for n in range(end, 0, -1) if row.labels[n - 1] == IGNORED), 0)
    return row.input_ids[:start], row.input_ids[start:]
