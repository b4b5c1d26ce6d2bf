"""What sampling from a hosted service and finetuning on it share: the key, the money, and what its errors mean."""

import os
import re
import threading
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from maft import files
from maft.config import OpenAiConfig
from maft.errors import ConfigError, DataError, MaftError, StageFailed

MILLION = 1_000_000
BYTES_PER_TOKEN = 3
"""Fewer than English has, so that estimates from it are rather too high."""
SERVICE = "https://api.openai.com/v1"


class NotAnAnswer(Exception):
    """A server said something that this API never says, such as a page of HTML."""


def client(settings: OpenAiConfig, *, asynchronous: bool = False) -> Any:
    """Return the official client; it does not retry, for we do.

    Raises:
        ConfigError: the environment has no key, or one that cannot be sent.
    """
    import openai

    key = _key(settings)
    if not key and settings.base_url is None:
        raise ConfigError(
            f"the environment variable {settings.api_key_env} is not set. Put the key of the service into it, or name "
            "another variable in openai.api_key_env, or a server that needs no key in openai.base_url."
        )
    if not re.fullmatch(r"[!-~]*", key):
        raise ConfigError(
            f"the environment variable {settings.api_key_env} holds characters that no key has, such as spaces or "
            "typographic quotes. Copy the key again."
        )
    kind = openai.AsyncOpenAI if asynchronous else openai.OpenAI
    # The client would take an address from the environment, and the config would not say where the key went.
    address = settings.base_url or SERVICE
    return kind(api_key=key or "none", base_url=address, timeout=settings.timeout, max_retries=0)


def _key(settings: OpenAiConfig) -> str:
    return os.environ.get(settings.api_key_env, "").strip()


def refusal(error: Exception, settings: OpenAiConfig) -> MaftError | None:
    """Return what to tell the user where trying again is of no use and no request can succeed; None otherwise."""
    import openai

    where = settings.base_url or "the service"
    if isinstance(error, openai.AuthenticationError):
        return ConfigError(f"{where} does not accept the key in {settings.api_key_env}. Check it.")
    if isinstance(error, openai.PermissionDeniedError):
        return ConfigError(
            f"{where} does not permit this with the key in {settings.api_key_env}: {said(error, settings)}"
        )
    if isinstance(error, openai.NotFoundError):
        return DataError(
            f"{where} does not know what was asked for: {said(error, settings)} Check model and openai.base_url."
        )
    if isinstance(error, openai.BadRequestError) and error.code in _NO_SUCH_PARAMETER:
        return ConfigError(f"{where} does not take what was set: {said(error, settings)} Check sampling and model.")
    if isinstance(error, openai.RateLimitError) and getattr(error, "code", None) == "insufficient_quota":
        return StageFailed(f"the quota of the key is used up: {said(error, settings)} What was paid for is kept.")
    return None


_NO_SUCH_PARAMETER = ("unsupported_parameter", "unsupported_value", "unknown_parameter")


def no_contact(error: Exception, settings: OpenAiConfig) -> DataError | None:
    """Return what to tell where a server that never answered fails so; None where it did answer, with a status."""
    import openai

    where, words = settings.base_url or "the service", said(error, settings)
    if isinstance(error, openai.APITimeoutError):
        return DataError(
            f"{where} does not answer within openai.timeout = {settings.timeout:g} seconds. Check openai.base_url and "
            "the network, or allow more."
        )
    if isinstance(error, NotAnAnswer):
        return DataError(f"{where} does not answer as OpenAI's API does: {words} Check openai.base_url.")
    if hasattr(error, "status_code"):
        return None
    return DataError(f"{where} cannot be reached: {words} Check openai.base_url and the network.")


def can_pass(error: Exception) -> bool:
    """Say whether the same request may succeed a little later."""
    import openai

    if isinstance(error, openai.APIStatusError):
        return error.status_code in (408, 409, 429) or error.status_code >= 500
    return isinstance(error, openai.APIConnectionError | NotAnAnswer)


def retry_after(error: Exception) -> float | None:
    """Return the seconds that the service asks to wait, five minutes at most, where it says so."""
    response = getattr(error, "response", None)
    headers = {} if response is None else response.headers
    for header, seconds in _WAITS.items():
        try:
            return min(300.0, max(0.0, seconds(headers[header])))
        except (KeyError, ValueError):
            continue
    return None


_WAITS: dict[str, Callable[[str], float]] = {
    "retry-after-ms": lambda text: float(text) / 1000,
    "retry-after": lambda text: float(text) if text[:1].isdigit() else _seconds_until(text),
}


def _seconds_until(date: str) -> float:
    return parsedate_to_datetime(date).timestamp() - time.time()


def said(error: Exception, settings: OpenAiConfig) -> str:
    """Return the message of an error as one sentence, without the key."""
    body = getattr(error, "body", None)
    message = str((body.get("message") if isinstance(body, dict) else None) or error)
    if error.__cause__ is not None and not hasattr(error, "status_code"):
        message = f"{message.rstrip('.')}: {error.__cause__}"
    text = without_key(" ".join(message.split()), settings)[:300].rstrip(": ")
    return text if text.endswith((".", "!", "?")) else f"{text}."


def without_key(text: str, settings: OpenAiConfig) -> str:
    """Return a text of the service with `<key>` for our key, and for whatever else looks like one."""
    key = _key(settings)
    text = text.replace(key, "<key>") if len(key) > 3 else text
    return re.sub(r"\bsk-[\w*-]+", "<key>", text)


def tokens(text: str) -> float:
    """Estimate the tokens of a text, rather too high."""
    return len(text.encode()) / BYTES_PER_TOKEN


def spent(folder: Path) -> float | None:
    """Return the US dollars that a run has spent; None where nothing was, or prices are not known."""
    file = folder / "spending.json"
    return float(files.read_json(file)["usd"]) if file.exists() else None


class Spending:
    """The money that a run has spent, kept in its folder so that a limit holds over all starts; for any thread."""

    def __init__(self, settings: OpenAiConfig, folder: Path) -> None:
        """Read what earlier starts have spent."""
        self.settings = settings
        self._file = folder / "spending.json"
        self._lock = threading.Lock()
        self._reserved = 0.0
        known = files.read_json(self._file) if self._file.exists() else {}
        self.spent: float = known.get("usd", 0.0)
        self._jobs: dict[str, float] = known.get("jobs", {})

    def sampling_cost(self, prompt_tokens: float, completion_tokens: float) -> float:
        """Return US dollars, 0 where prices are not known."""
        prices = (self.settings.prompt_price or 0.0, self.settings.completion_price or 0.0)
        return (prompt_tokens * prices[0] + completion_tokens * prices[1]) / MILLION

    def training_cost(self, tokens: float) -> float:
        """Return US dollars, 0 where the price is not known."""
        return tokens * (self.settings.training_price or 0.0) / MILLION

    def reserve(self, most: float, what: str) -> None:
        """Set money aside for what is about to be sent.

        Raises:
            StageFailed: the limit could be passed.
        """
        limit = self.settings.spending_limit
        with self._lock:
            if limit is not None and self.spent + self._reserved + most > limit:
                raise StageFailed(
                    f"{what} could cost {most:.4f} USD, which with {self.spent:.4f} spent and {self._reserved:.4f} "
                    f"under way could pass openai.spending_limit = {limit}. Everything paid for is kept; the same "
                    "command with a higher limit goes on."
                )
            self._reserved += most

    def settle(self, reserved: float, paid: float) -> None:
        """Book what was paid of the money set aside."""
        with self._lock:
            self._reserved -= reserved
            self._add(paid)

    def book(self, job: str, cost: float) -> None:
        """Book what a finetuning job costs, in place of what was booked for it before: nothing is counted twice."""
        with self._lock:
            change = cost - self._jobs.get(job, 0.0)
            self._jobs[job] = cost
            self._add(change)

    def _add(self, paid: float) -> None:
        if paid:
            self.spent += paid
            files.write_json(self._file, {"usd": self.spent, "jobs": self._jobs})
