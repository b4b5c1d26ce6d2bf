"""OpenAI's older completions: an agent continues a text as it stands, and says how likely each token is.

Log-likelihoods come from one forward pass of transformers in the engine's number format, before temperature, top-p and
top-k. Other local engines continue texts, and do not give the log-likelihoods of a prompt.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Self

from pydantic import BeforeValidator, Field, model_validator

from maft import seeds
from maft.errors import UserError
from maft.records import AgentRef, Message, Request, SamplingParams
from maft.samplers.base import Sampler
from maft.samplers.chat import Chat, Encoded
from maft.samplers.local import Job, LocalSampler
from maft.samplers.transformers import Likelihoods, Transformers
from maft.serving.api import Drawn, Text, before

MAX_TEXTS = 256
"""Texts that a request may have written, prompts times `n`."""
SHARE = 16
"""Texts that are written before other requests have their turn."""


def _texts_or_tokens(prompt: object) -> object:
    """Return prompts as a list: OpenAI's API takes one or several, as text or as tokens."""
    return (
        [prompt]
        if isinstance(prompt, str) or (isinstance(prompt, list) and prompt[:1] and isinstance(prompt[0], int))
        else prompt
    )


class CompletionRequest(Drawn):
    """The body of a completion."""

    prompt: Annotated[
        list[Text] | list[Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]],
        BeforeValidator(_texts_or_tokens),
        Field(min_length=1, max_length=1024),
    ]
    max_tokens: Annotated[int, Field(ge=0, lt=2**31)] = 16
    echo: bool = False
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if len(self.prompt) * (self.n or 1) > MAX_TEXTS:
            raise ValueError(
                f"prompt: {len(self.prompt)} prompts times n = {self.n or 1} are more than {MAX_TEXTS} texts"
            )
        return self


def shares(asked: CompletionRequest) -> list[range]:
    """Return the places of the prompts, in shares of up to `SHARE` texts."""
    size = max(1, SHARE // (asked.n or 1))
    return [range(start, min(start + size, len(asked.prompt))) for start in range(0, len(asked.prompt), size)]


class Continued(NamedTuple):
    """A prompt as tokens, and what was generated after it."""

    prompt: list[int]
    generated: list[int]
    text: str
    """Of what was generated, without the token that ended it."""
    stopped: bool


def complete(
    sampler: Sampler, agent: AgentRef, how: SamplingParams, asked: CompletionRequest, seed: int, share: range
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Return the choices of some of the prompts, and their usage; to be called in the engine's thread.

    Raises:
        UserError: this engine cannot do it, or a prompt is too long.
    """
    if not isinstance(sampler, LocalSampler if asked.logprobs is None else Transformers):
        with_what = "" if asked.logprobs is None else " with logprobs"
        raise UserError(
            f"/v1/completions{with_what} does not work with this engine: start `maft serve RUN "
            "engine.sampler=transformers`, for a run with one base model"
        )
    chat = sampler.ready(agent.model)
    given = [asked.prompt[place] for place in share]
    prompts = [chat.tokenizer(one)["input_ids"] if isinstance(one, str) else one for one in given]
    for ids in prompts:
        if not 0 < len(ids) <= chat.context - asked.max_tokens:
            raise UserError(f"prompt: {len(ids)} tokens, and max_tokens {asked.max_tokens}, must fit {chat.context}")
        if max(ids) >= len(chat.tokenizer):
            raise UserError(f"prompt: token {max(ids)} does not exist; the vocabulary has {len(chat.tokenizer)}")
    copies = [
        (ids, seeds.seed(seed, place, n))
        for place, ids in zip(share, prompts, strict=True)
        for n in range(asked.n or 1)
    ]
    if asked.max_tokens:
        written = _write(sampler, chat, agent, how, copies)
    else:
        written = [Continued(ids, [], "", False) for ids, _ in copies]
    read: Sequence[Likelihoods | None] = [None] * len(written)
    if asked.logprobs is not None and isinstance(sampler, Transformers):
        adapter, texts = Path(agent.adapter) if agent.adapter else None, [one.prompt + one.generated for one in written]
        read = sampler.likelihoods(adapter, texts, max(1, asked.logprobs))
    choices = [
        _choice(chat, asked, share.start * (asked.n or 1) + index, one, likely)
        for index, (one, likely) in enumerate(zip(written, read, strict=True))
    ]
    counts = [sum(map(len, prompts)), sum(len(one.generated) for one in written)]
    return choices, {"prompt_tokens": counts[0], "completion_tokens": counts[1], "total_tokens": sum(counts)}


def _write(
    sampler: LocalSampler, chat: Chat, agent: AgentRef, how: SamplingParams, prompts: Sequence[tuple[list[int], int]]
) -> list[Continued]:
    """Continue prompts, each with its own seed."""
    nothing = (Message(role="user", content=""),)  # the prompt is tokens already
    jobs = [
        Job(place, Request(agent=agent, messages=nothing, sampling=how, seed=seed), Encoded(ids, how.max_new_tokens))
        for place, (ids, seed) in enumerate(prompts)
    ]
    written: dict[int, Continued] = {}
    for job, generated in sampler.run(lambda limit: [jobs.pop(0) for _ in jobs[:limit]]):
        tokens = list(generated.token_ids)
        stopped = bool(tokens) and tokens[-1] in chat.stop_ids
        written[job.number] = Continued(job.prompt.token_ids, tokens, chat.template.decode(tokens), stopped)
    return [written[place] for place in range(len(prompts))]


def _choice(
    chat: Chat, asked: CompletionRequest, index: int, one: Continued, likely: Likelihoods | None
) -> dict[str, Any]:
    """Return a choice as OpenAI's API has it; a stop text ends what was generated."""
    ended = before(one.text, asked.stop)
    text = one.text if ended is None else ended
    given = asked.prompt[index // (asked.n or 1)]
    prompt = given if isinstance(given, str) else chat.tokenizer.decode(one.prompt)
    reason = "stop" if ended is not None or one.stopped else "length"
    choice = {"index": index, "text": (prompt if asked.echo else "") + text, "finish_reason": reason, "logprobs": None}
    if likely is None:
        return choice
    start = 0 if asked.echo else len(one.prompt)
    ids = (one.prompt + one.generated)[start:]
    names = [chat.tokenizer.decode([token]) for token in ids]
    offsets = [sum(map(len, names[:place])) for place in range(len(names))]
    top = [
        None if some is None else _named(chat, some, token, value)
        for some, token, value in zip(likely.top[start:], ids, likely.tokens[start:], strict=True)
    ]
    listed = {"tokens": names, "token_logprobs": likely.tokens[start:], "top_logprobs": top, "text_offset": offsets}
    return choice | {"logprobs": listed}


def _named(chat: Chat, top: dict[int, float], token: int, value: float | None) -> dict[str, float]:
    """Return the likeliest tokens and the one that stands there, as texts; of equal texts the likeliest counts."""
    named: dict[str, float] = {}
    for other, likelihood in [*top.items(), (token, value or 0.0)]:
        text = chat.tokenizer.decode([other])
        named[text] = max(likelihood, named.get(text, likelihood))
    return named
