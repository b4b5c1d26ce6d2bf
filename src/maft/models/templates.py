"""A model's chat template: checked once when the tokenizer is loaded, then used for sampling and for finetuning.

Templates are third-party jinja; they run in the sandbox of transformers only, and errors in them become one line.

A training text is the prompt that a reply was sampled after, the reply, and the end of a turn. It is not the template's
own rendering of the finished dialogue, which may add text that was never sampled (an empty `<think></think>`), or leave
out text that was.
"""

import logging
from collections.abc import Iterable, Sequence
from datetime import date, datetime
from typing import Any

from maft.answers import thinking
from maft.errors import DataError
from maft.records import Message

log = logging.getLogger(__name__)

_SYSTEM = Message(role="system", content="Use S1 & 'no' <tools>.")
_QUESTION = Message(role="user", content='Is Q1 < \\frac{2}{3} & "more"?\n\n  Say: why.')
_REPLY = Message(role="assistant", content="It is R1:\n\n  \\boxed{-1}.")
_AGAIN = Message(role="user", content="Check A1 again.")
_CHOOSE = "Choose an instruction-tuned (chat) model, or give this one another chat_template.jinja"


class Template:
    """Renders dialogues as a model reads them, and knows where its turns end."""

    def __init__(self, tokenizer: Any, model: str, stop_ids: Iterable[int], today: date | None = None) -> None:
        """Check the template on short dialogues.

        `stop_ids` are the tokens that the model's files name as ends of a text; `today` is the date for templates that
        write one, None the clock's.

        Raises:
            DataError: there is no template, it fails, loses text or earlier turns, or nothing ends a reply.
        """
        self.tokenizer = tokenizer
        self._model = model
        self._clock = {} if today is None else _clock(today)
        self._parts = False
        self._check_text()
        self._has_system = self._keeps([_SYSTEM, _QUESTION])
        self._warned = False
        self.end, self.stop_ids = self._end_of_turn(frozenset(stop_ids))
        self.stop_id = next(token for token in self.tokenize(self.end) if token in self.stop_ids)
        """The token at which sampling stops at the end of a turn."""
        self._marks = {token for token in self._specials() if thinking.is_mark(tokenizer.decode([token]))}
        if today is None and len({self._render([_QUESTION], _clock(date(year, 3, 2))) for year in (2001, 2019)}) > 1:
            log.warning(
                "The chat template of %s writes today's date, so prompts change daily. Set engine.date=%s to fix it.",
                model,
                date.today().isoformat(),
            )

    def prompt(self, messages: Sequence[Message]) -> str:
        """Return what the model reads before it replies.

        Raises:
            DataError: the template refuses the messages.
        """
        if messages[0].role == "system" and not self._has_system:
            if not self._warned:
                log.warning("Model %s has no system role: prompts.system precedes the first question.", self._model)
                self._warned = True
            first = messages[1].model_copy(update={"content": f"{messages[0].content}\n\n{messages[1].content}"})
            messages = [first, *messages[2:]]
        return self._render(messages, self._clock)

    def tokenize(self, text: str) -> list[int]:
        """Return the tokens of text that the template rendered, which has its BOS already."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return sampled tokens as text, without special tokens other than those that mark a model's thinking."""
        pieces, start = [], 0
        for place in [place for place, token in enumerate(ids) if token in self._marks]:
            pieces += [self.tokenizer.decode(ids[start:place], skip_special_tokens=True)]
            pieces += [self.tokenizer.decode([ids[place]])]
            start = place + 1
        return "".join([*pieces, self.tokenizer.decode(ids[start:], skip_special_tokens=True)])

    def _check_text(self) -> None:
        templates = self.tokenizer.chat_template
        if not templates:
            raise DataError(f"model {self._model} has no chat template. {_CHOOSE}.")
        if isinstance(templates, dict) and "default" not in templates:
            raise DataError(
                f"model {self._model} has the chat templates {', '.join(sorted(templates))}, and none called default. "
                "Save the one to use as chat_template.jinja in the model's folder."
            )
        self._parts = _lost([_QUESTION], self._render([_QUESTION])) is not None
        for dialogue in ([_QUESTION], [_QUESTION, _REPLY], [_QUESTION, _REPLY, _AGAIN]):
            lost = _lost(dialogue, self._render(dialogue, prompt=dialogue[-1] is not _REPLY))
            if lost is not None:
                raise DataError(f"the chat template of {self._model} does not keep {lost!r} as it is. {_CHOOSE}.")

    def _keeps(self, messages: Sequence[Message]) -> bool:
        """Say whether the template keeps all text of messages."""
        try:
            return _lost(messages, self._render(messages)) is None
        except DataError:
            return False

    def _end_of_turn(self, stop_ids: frozenset[int]) -> tuple[str, frozenset[int]]:
        """Return what ends a reply, in text, and all tokens at which sampling stops."""
        end = self._render([_QUESTION, _REPLY], prompt=False).rpartition(_REPLY.content)[2]
        tokens = self.tokenize(end)
        if any(token in stop_ids for token in tokens):
            return end, stop_ids
        special = [token for token in tokens if token in self._specials()]
        if special:
            return end, stop_ids | {special[0]}
        if not stop_ids:
            raise DataError(
                f"model {self._model} has no token that ends a reply: no eos in its files, none in its chat template. "
                f"{_CHOOSE}."
            )
        return self.tokenizer.decode([min(stop_ids)]), stop_ids

    def _specials(self) -> set[int]:
        added = getattr(self.tokenizer, "added_tokens_decoder", {})
        return {*self.tokenizer.all_special_ids, *(token for token, how in added.items() if how.special)}

    def _render(self, messages: Sequence[Message], clock: dict[str, Any] | None = None, *, prompt: bool = True) -> str:
        dialogue = [
            {"role": m.role, "content": [{"type": "text", "text": m.content}] if self._parts else m.content}
            for m in messages
        ]
        try:
            text: str = self.tokenizer.apply_chat_template(
                dialogue, tokenize=False, add_generation_prompt=prompt, **(clock or {})
            )
        except Exception as error:  # templates raise jinja2 errors of any kind
            why = (str(error).strip() or "no reason given").splitlines()[0]
            raise DataError(
                f"the chat template of {self._model} fails on a dialogue of "
                f"{', '.join(message.role for message in messages)}: {type(error).__name__}: {why}. {_CHOOSE}."
            ) from None
        return text


def _lost(messages: Sequence[Message], text: str) -> str | None:
    """Return the first message that the text does not hold, in order; blanks at its ends may be trimmed."""
    start = 0
    for message in messages:
        start = text.find(message.content, start)
        if start < 0:
            return message.content
        start += len(message.content)
    return None


def _clock(today: date) -> dict[str, Any]:
    return {"strftime_now": datetime(today.year, today.month, today.day).strftime}
