"""Dialogues to tokens and loss masks, with the model's own chat template.

The tokens before a reply are the ones that it was sampled after: the template up to the reply, with its generation
prompt, tokenised alone. The loss covers what the template writes after that: the reply and the end of its turn.

Where the sampled tokens of a reply are known, the loss is on these: tokenising the text again may split it differently.
Replies without loss are tokenised again, as they were for the reply that was sampled after them.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple

from maft.errors import DataError
from maft.records import Message

IGNORED = -100
"""Label of a token without loss, as torch and transformers have it."""


class DialogueTokens(NamedTuple):
    """One example as the model is trained on it."""

    input_ids: list[int]
    labels: list[int]
    """`input_ids` where the loss is, `IGNORED` elsewhere."""

    @property
    def num_completion_tokens(self) -> int:
        """Count the tokens that carry loss."""
        return sum(label != IGNORED for label in self.labels)


def tokenize(
    tokenizer: Any,
    messages: Sequence[Message],
    loss_turns: Literal["last", "all"],
    sampled: Sequence[Sequence[int] | None] | None = None,
) -> DialogueTokens:
    """Tokenise a dialogue that ends with an assistant turn, with loss on that turn or on all assistant turns.

    Args:
        tokenizer: of transformers.
        messages: the dialogue.
        loss_turns: which assistant turns carry loss.
        sampled: sampled tokens of each assistant message, where they are known. They are used if they decode to the
            message, so tokens of another model's tokenizer do no harm.

    Raises:
        DataError: there is no chat template, it cannot render this dialogue, or it writes a turn differently when
            another one follows, so that no mask can be exact.
    """
    if not messages or messages[-1].role != "assistant":
        raise DataError("a training example must end with an assistant message. Make the examples again.")
    text = _render(tokenizer, messages)
    cuts, replies = [0], []
    known = iter(sampled or ())
    for place, message in enumerate(messages):
        ids = next(known, None) if message.role == "assistant" else None
        if message.role == "assistant" and (loss_turns == "all" or place == len(messages) - 1):
            cuts.append(_prefix_length(tokenizer, text, messages[:place], loss_turns, generation_prompt=True))
            cuts.append(_prefix_length(tokenizer, text, messages[: place + 1], loss_turns, generation_prompt=False))
            replies.append((message.content, ids))
    cuts.append(len(text))  # some templates close the dialogue after its last turn
    pieces = _pieces(tokenizer, text, cuts)
    for turn, (reply, ids) in enumerate(replies):
        written = text[cuts[2 * turn + 1] : cuts[2 * turn + 2]]
        if ids and written.startswith(reply) and tokenizer.decode(ids, skip_special_tokens=True) == reply:
            body = ids[:-1] if ids[-1] in tokenizer.all_special_ids else ids
            pieces[2 * turn + 1] = [*body, *_encode(tokenizer, written[len(reply) :])]
    labels = [token if turn % 2 else IGNORED for turn, piece in enumerate(pieces) for token in piece]
    return DialogueTokens([token for piece in pieces for token in piece], labels)


def _pieces(tokenizer: Any, text: str, cuts: Sequence[int]) -> list[list[int]]:
    """Return the tokens between the cuts, such that no token reaches across a cut."""
    whole = _encode(tokenizer, text)
    ends = [_encode(tokenizer, text[:cut]) for cut in cuts]
    if all(whole[: len(end)] == end for end in ends):
        return [whole[len(a) : len(b)] for a, b in pairwise(ends)]
    # A reply that begins with a line break, say, would be merged with the one that ends the prompt. It was sampled
    # after the prompt's own tokens, so it is tokenised apart from them.
    pieces = [_encode(tokenizer, text[a:b]) for a, b in pairwise(cuts)]
    joined = [token for piece in pieces for token in piece]
    if tokenizer.decode(joined) != tokenizer.decode(whole):
        raise DataError(
            f"this model's tokenizer does not split {text[cuts[1] - 20 : cuts[1] + 20]!r} where the reply begins. "
            "Training on replies only is not possible with it; choose another model."
        )
    return pieces


def _prefix_length(
    tokenizer: Any, text: str, messages: Sequence[Message], loss_turns: str, *, generation_prompt: bool
) -> int:
    prefix = _render(tokenizer, messages, generation_prompt=generation_prompt)
    if text.startswith(prefix):
        return len(prefix)
    advice = "Use train.loss_turns=last, or" if loss_turns == "all" else "Choose a model, or give this one"
    raise DataError(
        "the chat template of this model writes a turn differently when another turn follows it "
        f"(after {len(messages)} messages), so that the loss cannot be put on exactly the replies. "
        f"{advice} a chat template that only adds text at the end."
    )


def _render(tokenizer: Any, messages: Sequence[Message], *, generation_prompt: bool = False) -> str:
    if not tokenizer.chat_template:
        raise DataError("this model has no chat template. Choose an instruction-tuned (chat) model.")
    try:
        rendered: str = tokenizer.apply_chat_template(
            [message.model_dump() for message in messages], tokenize=False, add_generation_prompt=generation_prompt
        )
    except Exception as error:  # templates raise jinja2 errors of any kind
        raise DataError(f"the chat template of this model refuses an example: {error}") from error
    return rendered


def _encode(tokenizer: Any, text: str) -> list[int]:
    """Tokenise text that the template wrote: it has its BOS already."""
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids
