"""What is sent with a request: the parameters that a service knows, under the names that it knows.

If a service refuses a parameter, the request is sent again without it where that changes nothing (`seed`, or a default
value), or with its other name. That holds for the rest of the run and is logged once.
"""

import logging
import re
import threading
from typing import Any

from maft.config import OpenAiConfig
from maft.errors import ConfigError
from maft.hosted import service as hosted
from maft.records import Request

log = logging.getLogger("maft")

LENGTHS = ("max_tokens", "max_completion_tokens")
"""Two names of one parameter: newer models refuse the first, and many servers know only that one."""
_DEFAULTS = {"top_p": 1.0, "temperature": 1.0, "top_k": 0}
_REFUSED = re.compile(
    r"(?i)unsupported|not support|unknown|unrecogni[sz]ed|unexpected|extra[ _]|not permitted|not allowed|deprecated"
)
_OUT_OF_RANGE = re.compile(
    r"(?i)too (large|small|long|high|low)|at (most|least)|must be|between|exceed|greater|less than"
)


class Parameters:
    """The parameters of requests to one service; for any thread."""

    def __init__(self, settings: OpenAiConfig, *, keep_tokens: bool = False) -> None:
        self.settings = settings
        self.keep_tokens = keep_tokens
        self._lock = threading.Lock()
        self._omit: set[str] = set(settings.omit)
        self._rename = dict(settings.rename)

    def of(self, request: Request, model: str) -> dict[str, Any]:
        """Return the arguments of the client's `chat.completions.create`."""
        how, served = request.sampling, self.settings.load_adapters
        body: dict[str, Any] = {
            "temperature": how.temperature,
            "top_p": how.top_p,
            LENGTHS[self.settings.base_url is None]: how.max_new_tokens,
            "seed": request.seed % 2**31,
        }
        if how.top_k or served:  # vLLM takes missing ones from generation_config.json, so "no limit" must be sent
            body["top_k"] = how.top_k
        if self.keep_tokens:
            body |= {"logprobs": True} | ({"return_token_ids": True} if served else {})
        body = {self._rename.get(name, name): value for name, value in body.items() if name not in self._omit}
        messages = [message.model_dump() for message in request.messages]
        return {"model": model, "messages": messages, "extra_body": body}

    def learn(self, error: Exception, sent: dict[str, Any]) -> bool:
        """Learn from a refusal which parameter to leave out or rename; return whether to send the request again.

        Args:
            error: of the client.
            sent: the arguments that were refused, as `of` made them.

        Raises:
            ConfigError: a parameter is refused that would change the replies.
        """
        if getattr(error, "status_code", None) not in (400, 422):
            return False
        with self._lock:
            return self._learn(error, sent)

    def _learn(self, error: Exception, sent: dict[str, Any]) -> bool:
        words, body, at_fault = hosted.said(error, self.settings), sent["extra_body"], str(getattr(error, "param", ""))
        named = [name for name in body if name == at_fault or re.search(rf"\b{re.escape(name)}\b", words)]
        refused = getattr(error, "code", None) in hosted.NO_SUCH_PARAMETER or _REFUSED.search(words)
        if not named or not refused or _OUT_OF_RANGE.search(words):
            return False
        name = at_fault if at_fault in named else named[0]
        own = next((key for key, other in self._rename.items() if other == name), name)
        if own in self._omit or self._rename.get(own, own) != name:
            return True  # another request has learned it meanwhile
        if own in LENGTHS and own not in self._rename:
            self._rename[own] = LENGTHS[1 - LENGTHS.index(own)]
            log.warning("The service refuses %s; %s is sent instead: %s", name, self._rename[own], words)
            return True
        if own in ("seed", "logprobs") or (own in _DEFAULTS and body[name] == _DEFAULTS[own]):
            self._omit.add(own)
            log.warning("The service refuses %s, which is no longer sent: %s", name, words)
            return True
        where = self.settings.base_url or "the service"
        raise ConfigError(
            f"{where} does not take {name} = {body[name]}: {words} Change it in sampling, leave it out with "
            f"openai.omit=[{own}], or give it another name with openai.rename.{own}=..."
        )
