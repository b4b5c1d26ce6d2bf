"""Messages to tokens and back, with the model's own chat template; the same for every local engine."""

from collections.abc import Sequence
from contextlib import suppress
from datetime import date
from typing import Any, NamedTuple

from maft import models
from maft.errors import MissingExtra
from maft.models.templates import Template
from maft.records import Reply, Request

UNLIMITED = 2**31
"""Tokens of a context whose length is not known."""


class Encoded(NamedTuple):
    """A request as the model sees it."""

    token_ids: list[int]
    max_new_tokens: int
    """The request's limit, or what is left of the context."""


class Generated(NamedTuple):
    """What an engine generated for one prompt."""

    token_ids: Sequence[int]
    """Including the token that ended it."""
    logprobs: Sequence[float] | None = None
    """See `maft.records.Reply`."""


class Chat:
    """The tokenizer of a model folder or hub name, with its chat template, and the length of its context."""

    def __init__(self, model: str, *, trust: bool = False, today: date | None = None) -> None:
        """Load the tokenizer.

        `today` is the date that the chat template is given; None is the clock's.

        Raises:
            DataError: the model has no tokenizer, or no usable chat template; see `Template`.
        """
        try:
            from transformers import AutoConfig, AutoTokenizer, GenerationConfig
        except ImportError:
            raise MissingExtra("reading a model's tokenizer", "hf") from None
        with models.loading(model):
            self.tokenizer: Any = AutoTokenizer.from_pretrained(model, trust_remote_code=trust)
            config: Any = AutoConfig.from_pretrained(model, trust_remote_code=trust).get_text_config()
        self.context: int = getattr(config, "max_position_embeddings", None) or UNLIMITED
        ends = [self.tokenizer.eos_token_id, config.eos_token_id]
        with suppress(OSError):  # generation_config.json is optional
            ends.append(GenerationConfig.from_pretrained(model).eos_token_id)
        flat = [token for end in ends for token in (end if isinstance(end, list) else [end])]
        self.template = Template(self.tokenizer, model, (token for token in flat if token is not None), today)
        self.stop_ids = self.template.stop_ids

    def encode(self, request: Request) -> Encoded | Reply:
        """Return the tokens of a request, or a reply with an error where they do not fit the context."""
        ids = self.template.tokenize(self.template.prompt(request.messages))
        room = self.context - len(ids)
        if room < 1:
            error = f"the prompt has {len(ids)} tokens, and the context of the model {self.context}"
            return Reply(text="", finish_reason="error", prompt_tokens=len(ids), error=error)
        return Encoded(ids, min(request.sampling.max_new_tokens, room))

    def reply(self, prompt: Sequence[int], generated: Sequence[int], logprobs: Sequence[float] | None = None) -> Reply:
        """Return what was generated as text, without the token that ended it."""
        stopped = bool(generated) and generated[-1] in self.stop_ids
        return Reply(
            text=self.template.decode(generated),
            finish_reason="stop" if stopped else "length",
            prompt_tokens=len(prompt),
            completion_tokens=len(generated),
            token_ids=tuple(generated),
            logprobs=None if logprobs is None else tuple(round(value, 4) for value in logprobs),
        )
