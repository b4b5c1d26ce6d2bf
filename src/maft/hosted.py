"""What sampling from a hosted service and finetuning on it share: the key, the money, and what its errors mean."""

import os
import threading
from pathlib import Path
from typing import Any

from maft import store
from maft.config import OpenAiConfig
from maft.errors import ConfigError, DataError, MaftError, StageFailed

MILLION = 1_000_000
CHARACTERS_PER_TOKEN = 3
"""Fewer than English has, so that estimates from it are rather too high."""


def client(settings: OpenAiConfig, *, asynchronous: bool = False) -> Any:
    """Return the official client; it does not retry, for we do.

    Raises:
        ConfigError: the environment has no key.
    """
    import openai

    key = os.environ.get(settings.api_key_env, "")
    if not key and settings.base_url is None:
        raise ConfigError(
            f"the environment variable {settings.api_key_env} is not set. Put the key of the service into it, or name "
            "another variable in openai.api_key_env, or a server that needs no key in openai.base_url."
        )
    kind = openai.AsyncOpenAI if asynchronous else openai.OpenAI
    return kind(api_key=key or "none", base_url=settings.base_url, timeout=settings.timeout, max_retries=0)


def refusal(error: Exception, settings: OpenAiConfig) -> MaftError | None:
    """Return what to tell the user where trying again is of no use and no request can succeed; None otherwise."""
    import openai

    where = settings.base_url or "the service"
    if isinstance(error, openai.AuthenticationError):
        return ConfigError(f"{where} does not accept the key in {settings.api_key_env}. Check it; nothing was paid.")
    if isinstance(error, openai.PermissionDeniedError):
        return ConfigError(f"{where} does not permit this with the key in {settings.api_key_env}: {said(error)}")
    if isinstance(error, openai.NotFoundError):
        return DataError(f"{where} does not know what was asked for: {said(error)} Check model and openai.base_url.")
    if isinstance(error, openai.RateLimitError) and getattr(error, "code", None) == "insufficient_quota":
        return StageFailed(f"the quota of the key is used up: {said(error)} What was paid for is kept.")
    return None


def can_pass(error: Exception) -> bool:
    """Say whether the same request may succeed a little later."""
    import openai

    if isinstance(error, openai.APIStatusError):
        return error.status_code in (408, 409, 429) or error.status_code >= 500
    return isinstance(error, openai.APIConnectionError)


def retry_after(error: Exception) -> float | None:
    """Return the seconds that the service asks to wait, where it says so."""
    response = getattr(error, "response", None)
    for header, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            return min(300.0, max(0.0, float(response.headers[header]) * unit)) if response is not None else None
        except (KeyError, ValueError):
            continue
    return None


def said(error: Exception) -> str:
    """Return the message of an error in one line, without what could be a key."""
    body = getattr(error, "body", None)
    message = body.get("message") if isinstance(body, dict) else None
    text = " ".join(str(message or error).split())[:300]
    return " ".join("<key>" if word.strip("'\".,:").startswith("sk-") else word for word in text.split()) + (
        "" if text.endswith((".", "!", "?")) else "."
    )


class Spending:
    """The money that a run has spent, kept in its folder so that a limit holds over all starts; for any thread."""

    def __init__(self, settings: OpenAiConfig, folder: Path) -> None:
        """Read what earlier starts have spent."""
        self.settings = settings
        self._file = folder / "spending.json"
        self._lock = threading.Lock()
        self._reserved = 0.0
        self.spent: float = store.read_json(self._file)["usd"] if self._file.exists() else 0.0

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
            self.spent += paid
            if paid:
                store.write_json(self._file, {"usd": self.spent})
