"""Dialogues to tokens and loss masks, with the model's own chat template.

The tokens before a reply are the ones that it was sampled after: the template up to the reply, with its generation
prompt, tokenised alone. The loss covers the reply and what the template writes to end a turn.

Where the sampled tokens of a reply are known, the loss is on these: tokenising the text again may split it differently.
Replies without loss are tokenised again, as they were for the reply that was sampled after them.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise, takewhile
from typing import Literal, NamedTuple

from maft.errors import DataError
from maft.models.templates import Template
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


def shared_beginning(rows: Sequence[DialogueTokens]) -> int:
    """Return how many tokens all rows begin with, at most up to the last one before any loss.

    >>> shared_beginning([DialogueTokens([1, 2, 3], [-100, -100, 3]), DialogueTokens([1, 2, 4], [-100, -100, 4])])
    1
    """
    if len(rows) < 2:
        return 0
    unlearned = min(sum(1 for _ in takewhile(lambda label: label == IGNORED, row.labels)) for row in rows)
    columns = zip(*(row.input_ids[: max(0, unlearned - 1)] for row in rows), strict=False)
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))


def tokenize(
    template: Template,
    messages: Sequence[Message],
    loss_turns: Literal["last", "all"],
    sampled: Sequence[Sequence[int] | None] | None = None,
) -> DialogueTokens:
    """Tokenise a dialogue that ends with an assistant turn, with loss on that turn or on all assistant turns.

    `sampled` has the sampled tokens of each assistant message, where known; they are used if they decode to it.

    Raises:
        DataError: the template cannot render this dialogue, or it writes a turn differently when another one follows,
            so that no loss can be put on all of them.
    """
    if not messages or messages[-1].role != "assistant":
        raise DataError("a training example must end with an assistant message. Make the examples again.")
    text = template.prompt(messages[:-1]) + messages[-1].content + template.end
    cuts, replies = [0], []
    known = iter(sampled or ())
    for place, message in enumerate(messages):
        ids = next(known, None) if message.role == "assistant" else None
        if message.role == "assistant" and (loss_turns == "all" or place == len(messages) - 1):
            prompt = template.prompt(messages[:place])
            reply_end = len(prompt) + len(message.content)
            end = _end_of_turn(template, text[reply_end:])
            if not text.startswith(prompt + message.content) or template.stop_id not in template.tokenize(end):
                raise DataError(
                    "the chat template of this model writes a turn differently when another turn follows it "
                    f"(after {place + 1} messages), so that the loss cannot be put on all replies. "
                    "Use train.loss_turns=last, or a chat template that only adds text at the end."
                )
            cuts += [len(prompt), reply_end + len(end)]
            replies.append((message.content, ids, end))
    pieces = _pieces(template, text, cuts)
    for turn, (reply, ids, end) in enumerate(replies):
        if ids and template.decode(ids) == reply:
            body = ids[:-1] if ids[-1] in template.stop_ids else ids
            pieces[2 * turn + 1] = [*body, *template.tokenize(end)]
    labels = [token if turn % 2 else IGNORED for turn, piece in enumerate(pieces) for token in piece]
    return DialogueTokens([token for piece in pieces for token in piece], labels)


def check_all_turns(template: Template) -> None:
    """Refuse a template by which loss cannot be put on all turns of a dialogue; replies may hold thinking.

    Raises:
        DataError: it writes a turn differently when another one follows.
    """
    thinks = "</think>" in str(template.tokenizer.chat_template)
    for thinking in ("", "<think>\nSo 7.\n</think>\n\n") if thinks else ("",):
        turns = (("user", "3 + 4?"), ("assistant", f"{thinking}It is 7."))
        dialogue = [Message.model_validate({"role": role, "content": content}) for role, content in turns]
        tokenize(template, [*dialogue, *dialogue], "all")


def _end_of_turn(template: Template, after: str) -> str:
    """Return as much of the end of a turn as there is after a reply; some templates close the last turn otherwise."""
    tokens = template.tokenize(template.end)
    ends: Iterator[str] = (template.tokenizer.decode(tokens[:count]) for count in range(len(tokens), -1, -1))
    return next(end for end in ends if after.startswith(end))


def _pieces(template: Template, text: str, cuts: Sequence[int]) -> list[list[int]]:
    """Return the tokens between the cuts, such that no token reaches across a cut."""
    whole = template.tokenize(text)
    ends = [template.tokenize(text[:cut]) for cut in cuts]
    if all(whole[: len(end)] == end for end in ends):
        return [whole[len(a) : len(b)] for a, b in pairwise(ends)]
    # A reply that begins with a line break, say, would be merged with the one that ends the prompt. It was sampled
    # after the prompt's own tokens, so it is tokenised apart from them.
    pieces = [template.tokenize(text[a:b]) for a, b in pairwise(cuts)]
    joined = [token for piece in pieces for token in piece]
    if template.tokenizer.decode(joined) != template.tokenizer.decode(whole):
        raise DataError(
            f"this model's tokenizer does not split {text[cuts[1] - 20 : cuts[1] + 20]!r} where the reply begins. "
            "Training on replies only is not possible with it; choose another model."
        )
    return pieces
