"""OpenAI's chat completions: what a request may say, and what a response holds."""

import json
import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from maft.errors import UserError
from maft.records import Message
from maft.serving.engine import Said
from maft.serving.society import Answered, Question

MAX_CHOICES = 16
IGNORED = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "parallel_tool_calls")
"""Parameters of OpenAI's that change no answer."""
REFUSED: Mapping[str, tuple[Any, ...]] = {
    "response_format": (None, {"type": "text"}),
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
    "logit_bias": (None, {}),
    "logprobs": (None, False),
    "top_logprobs": (None, 0),
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
    "modalities": (None, ["text"]),
    "audio": (None,),
    "reasoning_effort": (None,),
    "prediction": (None,),
    "web_search_options": (None,),
    "verbosity": (None, "medium"),
}
"""Parameters that would change an answer and are not supported, with the values that ask for nothing."""


def _whole(text: str) -> str:
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ValueError("half of a surrogate pair is no character")
    return text


Text = Annotated[str, AfterValidator(_whole)]
Stop = Annotated[str, Field(min_length=1, max_length=256)]
Tokens = Annotated[int, Field(ge=1, lt=2**31)]


class Part(BaseModel):
    """A part of a message; only text is taken."""

    model_config = ConfigDict(extra="forbid")
    type: Literal["text"]
    text: Text


class ChatMessage(BaseModel):
    """A message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[Part]
    name: str | None = None

    @property
    def text(self) -> str:
        """The content as one text."""
        return self.content if isinstance(self.content, str) else "\n".join(part.text for part in self.content)


def _one_or_more(value: object) -> object:
    return [value] if isinstance(value, str) else value or []


class Drawn(BaseModel):
    """What chat completions and completions have in common."""

    model_config = ConfigDict(extra="forbid")
    model: str
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=256)]], BeforeValidator(_one_or_more), Field(max_length=16)
    ] = []
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None

    @model_validator(mode="before")
    @classmethod
    def _only_what_is_supported(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            raise ValueError("the body must be a JSON object")
        for name, allowed in REFUSED.items():
            if name in data and name not in cls.model_fields and data[name] not in allowed:
                raise ValueError(f"{name} is not supported; leave it out")
        dropped = {*IGNORED, *REFUSED} - set(cls.model_fields)
        return {name: value for name, value in data.items() if name not in dropped and value is not None}

    def how(self, max_tokens: int | None) -> dict[str, float]:
        """Return the sampling parameters that are given, by maft's names; -1 is no limit of top_k."""
        given = {"temperature": self.temperature, "top_p": self.top_p, "max_new_tokens": max_tokens}
        given["top_k"] = None if self.top_k is None else max(0, self.top_k)
        return {name: value for name, value in given.items() if value is not None}


class ChatRequest(Drawn):
    """The body of a chat completion."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None

    def questions(self, seed: int) -> list[Question]:
        """Return what is asked, once for each choice.

        Raises:
            UserError: the messages are no conversation that ends with a user's.
        """
        how = self.how(self.max_completion_tokens or self.max_tokens)
        messages = conversation(self.messages)
        return [Question(self.model, messages, seed + choice, how) for choice in range(self.n or 1)]


def parse(kind: type[Drawn], body: bytes) -> Any:
    """Read a request.

    Raises:
        UserError: says what is wrong with it.
    """
    try:
        return kind.model_validate(json.loads(body))
    except ValidationError as errors:
        first = errors.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(f"{where + ': ' if where else ''}{first['msg'].removeprefix('Value error, ')}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"the body is not JSON: {error}") from None


def conversation(messages: Sequence[ChatMessage]) -> tuple[Message, ...]:
    """Return messages as every chat template takes them: a system message, then user and assistant in turn.

    Neighbours of one role become one message.

    Raises:
        UserError: a system message stands later, or the last message is not a user's.
    """
    turns: list[Message] = []
    for message in messages:
        role: Literal["system", "user", "assistant"] = "system" if message.role == "developer" else message.role
        if turns and turns[-1].role == role:
            turns[-1] = Message(role=role, content=f"{turns[-1].content}\n\n{message.text}")
        elif role == "system" and turns:
            raise UserError("messages: system messages must come first")
        else:
            turns.append(Message(role=role, content=message.text))
    roles = [message.role for message in turns if message.role != "system"]
    if not roles or roles[0] != "user" or roles[-1] != "user":
        raise UserError("messages: the first and the last message after the system message must be the user's")
    return tuple(turns)


def cut(answered: Answered, stop: Sequence[str]) -> Answered:
    """Return an answer that ends before the first stop text in it."""
    text = before(answered.text, stop)
    return answered if text is None else answered._replace(text=text, finish_reason="stop")


def before(text: str, stop: Sequence[str]) -> str | None:
    """Return what is before the first stop text; None where there is none."""
    places = [place for one in stop if (place := text.find(one)) >= 0]
    return text[: min(places)] if places else None


def safe_part(text: str, stop: Sequence[str]) -> str:
    r"""Return what of a text that is being generated will stay: no half character, and no part of a stop text.

    >>> safe_part("one STO", ["STOP"]), safe_part("one STOP two", ["STOP"]), safe_part("one \ufffd", [])
    ('one ', 'one ', 'one ')
    """
    ended = before(text, stop)
    text = text.rstrip("\ufffd") if ended is None else ended
    held = max((n for one in stop for n in range(1, len(one)) if text.endswith(one[:n])), default=0)
    return text[: len(text) - held]


def new_seed() -> int:
    """Return a seed for a request that names none."""
    return secrets.randbits(31)


def head(name: str, kind: str, model: str) -> dict[str, Any]:
    """Return what each response and each chunk of it begins with."""
    return {"id": name, "object": kind, "created": int(time.time()), "model": model}


def usage(answers: Sequence[Answered]) -> dict[str, int]:
    """Return the tokens of all calls behind all choices."""
    prompt = sum(one.prompt_tokens for one in answers)
    completion = sum(one.completion_tokens for one in answers)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def total(usages: Sequence[Mapping[str, int]]) -> dict[str, int]:
    """Return the sum of several usages."""
    return {name: sum(each[name] for each in usages) for name in usages[0]}


def details(answered: Answered, seed: int, *, trace: bool) -> dict[str, Any]:
    """Return the extension field `maft` of a choice."""
    known: dict[str, Any] = {"seed": seed, "calls": answered.calls}
    debate, vote = answered.debate, answered.vote
    if debate is not None and vote is not None:
        known |= {
            "answer": vote.label,
            "agreement": round(vote.agreement, 4),
            "votes": [{"answer": answer, "votes": votes} for answer, votes in vote.counts],
            "ballots": vote.num_ballots,
            "abstained": vote.abstained,
            "tied": vote.tied,
            "rounds": debate.turns[-1].round,
        }
        if trace:
            known |= {"debate": debate.model_dump(mode="json"), "vote": vote.model_dump(mode="json")}
    return known


def completion(name: str, model: str, seed: int, answers: Sequence[Answered], *, trace: bool) -> dict[str, Any]:
    """Return the response with all choices; `maft` is that of the first, further ones have their own."""
    choices = [
        {
            "index": index,
            "message": {"role": "assistant", "content": one.text},
            "finish_reason": one.finish_reason,
            "logprobs": None,
            "maft": details(one, seed + index, trace=trace),
        }
        for index, one in enumerate(answers)
    ]
    return head(name, "chat.completion", model) | {
        "choices": choices,
        "usage": usage(answers),
        "maft": choices[0]["maft"],
    }


def chunk(name: str, model: str, choices: Sequence[Mapping[str, Any]], **more: Any) -> dict[str, Any]:
    """Return a chunk of a streamed response."""
    return head(name, "chat.completion.chunk", model) | {"choices": list(choices), **more}


def said(index: int, one: Said, agent: str) -> dict[str, Any]:
    """Return a reply within a debate, as it comes, for clients that trace."""
    return {"said": {"choice": index, "step": one.step, "agent": agent, "text": one.reply.text}}


def error(message: str, kind: str = "invalid_request_error", code: str | None = None) -> dict[str, Any]:
    """Return the body of an error."""
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}
