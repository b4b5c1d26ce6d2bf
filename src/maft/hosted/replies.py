"""Chat completions as services send them, read into replies."""

from typing import Any, NamedTuple

from maft.hosted import service as hosted
from maft.hosted.service import NotAnAnswer
from maft.records import Reply

STOPPED = ("stop", "eos", "eos_token", "end", "end_turn", "stop_sequence", "")
CUT = ("length", "max_tokens", "model_length")


class Answer(NamedTuple):
    """A reply, with what the service said about its tokens."""

    reply: Reply
    counted: bool
    """Whether the service counted the tokens; otherwise they are estimated."""
    only_reasoning: bool
    """Whether all tokens went into reasoning that the service does not show, and none into an answer."""


def read(completion: Any, asked: str) -> Answer:
    """Read a chat completion; a reply that a filter stopped is an error.

    Args:
        completion: what the client returned.
        asked: the text of the request, to estimate its tokens if the service does not count them.

    Raises:
        NotAnAnswer: it is not a chat completion; with the server's own words, if it sent an error.
    """
    try:
        if error := getattr(completion, "error", None):
            code = error.get("code") or error.get("type") if isinstance(error, dict) else None
            raise NotAnAnswer(hosted.words(error) or "an error without a message", code)
        choice = completion.choices[0]
        text, how = hosted.whole_text(_text(choice.message.content)), choice.finish_reason
        stopped = how in STOPPED or (how is None and bool(text))
        ended = stopped or how in CUT
        tokens = _usage(completion.usage, text)
        ids, drawn = getattr(choice, "token_ids", None), getattr(choice.logprobs, "content", None)
        reply = Reply(
            text=text if ended else "",
            finish_reason="stop" if stopped else "length" if ended else "error",
            prompt_tokens=tokens[0] if tokens else round(hosted.tokens(asked)),
            completion_tokens=tokens[1] if tokens else round(hosted.tokens(text)),
            error=None if ended else f"the service ended the reply: {how}",
            token_ids=ids and tuple(ids),
            logprobs=drawn and tuple(step.logprob for step in drawn),
        )
        thought = getattr(choice.message, "reasoning_content", None) or getattr(choice.message, "reasoning", None)
        return Answer(reply, tokens is not None, ended and not text and bool(how in CUT or thought))
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        raise NotAnAnswer("the answer is not a chat completion") from None


def _text(content: Any) -> str:
    """Return the text of a message, whose content may be a list of parts."""
    if content is None or isinstance(content, str):
        return content or ""
    parts = [part if isinstance(part, str) else part.get("text") for part in content]
    return "".join(part for part in parts if isinstance(part, str))


def _usage(usage: Any, text: str) -> tuple[int, int] | None:
    """Return prompt and completion tokens; None if they were not counted or make no sense."""
    prompt, completion = (getattr(usage, name, None) for name in ("prompt_tokens", "completion_tokens"))
    if type(prompt) is not int or type(completion) is not int or prompt <= 0 or completion < (1 if text else 0):
        return None
    return prompt, completion
