"""What finetuning minimises: each objective turns an example into token rows, and their log-probabilities into losses.

An objective sees one agent's examples of one optimiser step, or a part of them. Its losses are summed over the step and
divided by the step's size, so splitting a step into parts changes nothing.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from maft.extensions import find
from maft.records import Example, Message
from maft.trainers.dialogue_tokens import DialogueTokens

Tokenize = Callable[[Sequence[Message], Sequence[Sequence[int] | None] | None], DialogueTokens]
"""Messages, and the sampled tokens of each assistant message where they are known, to tokens with a loss mask."""


class Unit(NamedTuple):
    """An example as the model is trained on it."""

    example: Example
    rows: tuple[DialogueTokens, ...]
    """One, or several whose losses belong together, such as the two of a pair; they are never in different parts."""

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

    def sums(self, values: Any) -> Any:
        """Sum a value of each token over the tokens of each row: (n) to (m)."""
        return values.new_zeros(self.num_rows).index_add(0, self.rows, values)


class Objective(ABC):
    """One way to learn from examples."""

    reference: Literal["none", "start", "base"] = "none"
    """Whose log-probabilities are computed once before training: of the weights it starts from, or of the base model
    without an adapter."""

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


OBJECTIVES: Mapping[str, type[Objective]] = {"sft": Sft}


def make(name: str) -> Objective:
    """Return an objective by name.

    Raises:
        ConfigError: it comes from outside and cannot be loaded.
    """
    kind = OBJECTIVES.get(name) or find("objective", name, Objective)
    return kind()
