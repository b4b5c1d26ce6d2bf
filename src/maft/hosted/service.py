"""What sampling from a hosted service and finetuning on it share: the client, retries, errors and spending.

The clients of OpenAI, Together and Fireworks are made by one generator: their errors have the same names and fields, by
which they are told apart here.
"""

import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, TypeVar

from maft import files
from maft.config import OpenAiConfig
from maft.errors import ConfigError, DataError, MaftError, StageFailed

T = TypeVar("T")
MILLION = 1_000_000
BYTES_PER_TOKEN = 3
"""Fewer than English has, so that estimates from it are too high rather than too low."""
SERVICE = "https://api.openai.com/v1"


class NotAnAnswer(Exception):
    """A server answered with status 200, but not as the API documents: with HTML, for example, or an error message."""

    def __init__(self, words: str, code: object = None) -> None:
        """Take the server's words, and its code, which is used as the status if it is a number."""
        super().__init__(words)
        self.code = code
        if code is not None:
            limit = any(word in f"{code} {words}".lower() for word in ("limit", "overload", "busy", "capacity"))
            self.status_code = code if isinstance(code, int) else 429 if limit else 400


def understood(call: Callable[[], T]) -> T:
    """Return what the client makes of a service's answer.

    Raises:
        NotAnAnswer: it is not what the API documents, and the client fails on it.
    """
    try:
        return call()
    except MaftError:
        raise
    except (AttributeError, TypeError, ValueError):
        raise NotAnAnswer("the answer is not what the API documents") from None


def client(settings: OpenAiConfig) -> Any:
    """Return OpenAI's client without its own retries, which know no spending limit; for any thread.

    Raises:
        ConfigError: the environment has no key, or one that cannot be sent.
    """
    import openai

    key = checked_key(settings, needed=settings.base_url is None)
    # The client would take an address from the environment, and the config would not say where the key went.
    address = settings.base_url or SERVICE
    return openai.OpenAI(api_key=key or "none", base_url=address, timeout=settings.timeout, max_retries=0)


def checked_key(settings: OpenAiConfig, *, needed: bool = True) -> str:
    """Return the key in the environment.

    Raises:
        ConfigError: there is none although one is needed, or it cannot be sent.
    """
    key = _key(settings)
    if not key and needed:
        raise ConfigError(
            f"the environment variable {settings.api_key_env} is not set. Put the key of the service into it, or name "
            "another variable in openai.api_key_env, or a server that needs no key in openai.base_url."
        )
    if not re.fullmatch(r"[!-~]*", key):
        raise ConfigError(
            f"the environment variable {settings.api_key_env} holds characters that no key has, such as spaces or "
            "typographic quotes. Copy the key again."
        )
    return key


def _key(settings: OpenAiConfig) -> str:
    return os.environ.get(settings.api_key_env, "").strip()


def refusal(error: Exception, settings: OpenAiConfig) -> MaftError | None:
    """Return the error for the user if no request can succeed; None if other requests may."""
    where, status = settings.base_url or "the service", getattr(error, "status_code", None)
    if isinstance(error, NotAnAnswer):
        status = None
    if status == 401:
        return ConfigError(f"{where} does not accept the key in {settings.api_key_env}. Check it.")
    if status == 403:
        return ConfigError(
            f"{where} does not permit this with the key in {settings.api_key_env}: {said(error, settings)}"
        )
    if status == 404:
        return DataError(
            f"{where} does not know what was asked for: {said(error, settings)} Check model and openai.base_url."
        )
    if status == 400 and getattr(error, "code", None) in NO_SUCH_PARAMETER:
        return ConfigError(f"{where} does not take what was set: {said(error, settings)} Check sampling and model.")
    if getattr(error, "code", None) == "insufficient_quota" or getattr(error, "status_code", None) == 402:
        return StageFailed(f"the quota of the key is used up: {said(error, settings)} What was paid for is kept.")
    return None


NO_SUCH_PARAMETER = ("unsupported_parameter", "unsupported_value", "unknown_parameter")


def no_contact(error: Exception, settings: OpenAiConfig) -> DataError | None:
    """Return the error for the user if a server that never answered fails so; None if it answered with a status."""
    where, words = settings.base_url or "the service", said(error, settings)
    if _is(error, "APITimeoutError"):
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
    status = getattr(error, "status_code", None)
    if status is not None:
        return bool(status in (408, 409, 429) or status >= 500)
    return isinstance(error, NotAnAnswer) or _is(error, "APIConnectionError")


def _is(error: Exception, name: str) -> bool:
    """Say whether an error is of a class of this name, in the client of any service."""
    return any(kind.__name__ == name for kind in type(error).__mro__)


def may_be_billed(error: Exception) -> bool:
    """Say whether the service may have done the work and bill it, although no reply came."""
    import httpx

    status = getattr(error, "status_code", None)
    if isinstance(status, int) and not isinstance(error, NotAnAnswer):
        return status >= 500 and status not in (503, 529)
    return not isinstance(error.__cause__, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout)


class Tries:
    """Calls of one service, tried again where that can help."""

    def __init__(self, settings: OpenAiConfig, contact: int, errors: type[Exception] | None = None) -> None:
        """Retry `openai.max_retries` times, but only `contact` times while the server has never answered.

        Args:
            settings: of the service.
            contact: see above.
            errors: base class of the client's errors; None: of OpenAI's client.
        """
        self.settings = settings
        self.errors = errors
        self.contact = min(contact, settings.max_retries)
        self.answered = False

    def call(self, ask: Callable[[], T], pause: Callable[[Exception, float], None]) -> T:
        """Return the result of a call.

        `pause` waits before the next try, given the error and a number of seconds.

        Raises:
            MaftError: no call can succeed.
            Exception: one of the client's, or NotAnAnswer: the call failed for good.
        """
        errors, attempt = self.errors or _openai_error(), 0
        while True:
            try:
                result = ask()
                self.answered = True
                return result
            except (errors, NotAnAnswer) as error:
                if (refused := refusal(error, self.settings)) is not None:
                    raise refused from None
                away = None if self.answered else no_contact(error, self.settings)
                if away is not None and attempt >= self.contact:
                    raise away from None
                if not can_pass(error) or attempt >= self.settings.max_retries:
                    raise
                asked = retry_after(error)
                pause(error, min(60.0, 2.0**attempt) if asked is None else asked)
            attempt += 1


def _openai_error() -> type[Exception]:
    import openai

    return openai.OpenAIError


def retry_after(error: Exception) -> float | None:
    """Return the seconds that the service asks to wait, at most five minutes; None if it does not ask."""
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
    "retry-after": lambda text: (
        float(text) if text[:1].isdigit() else parsedate_to_datetime(text).timestamp() - time.time()
    ),
}


def said(error: Exception, settings: OpenAiConfig) -> str:
    """Return the message of an error as one sentence, without the key."""
    message = words(getattr(error, "body", None)) or str(error)
    if not hasattr(error, "status_code") and (cause := str(error.__cause__ or "")) not in message:
        message = f"{message.rstrip('.')}: {cause}"
    text = without_key(" ".join(whole_text(message).split()), settings)[:300].rstrip(": ")
    return text if text.endswith((".", "!", "?")) else f"{text}."


def words(body: object) -> str:
    """Return the message in the body of an error, in any of the usual forms.

    >>> words({"error": {"message": "no"}}), words({"detail": [{"loc": ["body", "seed"], "msg": "forbidden"}]})
    ('no', 'body.seed: forbidden')
    """
    if isinstance(body, list):
        return "; ".join(filter(None, map(words, body)))
    if not isinstance(body, dict):
        return body if isinstance(body, str) else ""
    text = next(filter(None, (words(body.get(name)) for name in ("message", "msg", "detail", "error"))), "")
    place = body.get("loc")
    return f"{'.'.join(map(str, place))}: {text}" if text and isinstance(place, list) else text


def whole_text(text: str) -> str:
    r"""Return a text without halves of surrogate pairs, which no file can hold.

    >>> whole_text("\ud83d\ude00 \ud800") == "\U0001f600 \ufffd"
    True
    """
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def without_key(text: str, settings: OpenAiConfig) -> str:
    """Return a text of the service with `<key>` in place of our key and of what looks like one."""
    key = _key(settings)
    text = text.replace(key, "<key>") if len(key) > 3 else text
    return re.sub(r"\bsk-[\w*-]+", "<key>", text)


def tokens(text: str) -> float:
    """Estimate the tokens of a text, rather too many than too few."""
    return len(text.encode()) / BYTES_PER_TOKEN


def spent(folder: Path) -> float | None:
    """Return the US dollars that a run has spent; None if it spent nothing or prices are unknown."""
    file = folder / "spending.json"
    return sum(files.read_json(file).get(name, 0.0) for name in ("usd", "under_way")) if file.exists() else None


class Spending:
    """The money that a run has spent, kept in its folder so that a limit holds over all starts; for any thread.

    What a request could cost is written down before it is sent. If no reply comes, or one without a count of tokens, or
    the process dies meanwhile, all of that is booked: the limit holds whatever goes wrong.
    """

    def __init__(self, settings: OpenAiConfig, folder: Path) -> None:
        """Read what earlier starts have spent, and book what a killed one had under way."""
        self.settings = settings
        self._file = folder / "spending.json"
        self._lock = threading.Lock()
        self._under_way: list[float] = []
        self._jobs_under_way = 0.0
        known = files.read_json(self._file) if self._file.exists() else {}
        lost: float = known.get("under_way", 0.0)
        self.spent: float = known.get("usd", 0.0) + lost
        self._estimated: float = known.get("estimated_usd", 0.0) + lost
        self._jobs: dict[str, float] = known.get("jobs", {})

    def sampling_cost(self, prompt_tokens: float, completion_tokens: float) -> float:
        """Return US dollars; 0 if prices are unknown."""
        prices = (self.settings.prompt_price or 0.0, self.settings.completion_price or 0.0)
        return (prompt_tokens * prices[0] + completion_tokens * prices[1]) / MILLION

    def training_cost(self, tokens: float) -> float:
        """Return US dollars; 0 if the price is unknown."""
        return tokens * (self.settings.training_price or 0.0) / MILLION

    def reserve(self, highest: float, what: str) -> None:
        """Set money aside for a request that is about to be sent.

        Raises:
            StageFailed: the limit could be passed.
        """
        with self._lock:
            self._refuse(highest, what)
            self._under_way.append(highest)
            if highest:
                self._write()

    def settle(self, reserved: float, paid: float | None) -> None:
        """Book what was paid of the money set aside; all of it if that is unknown."""
        with self._lock:
            self._under_way.remove(reserved)
            self.spent += reserved if paid is None else paid
            self._estimated += reserved if paid is None else 0.0
            if reserved or paid:
                self._write()

    @contextmanager
    def job(self, highest: float, what: str) -> Iterator[None]:
        """Set money aside while a job is submitted; `book` then books it under a name that a restart finds again.

        Raises:
            StageFailed: the limit could be passed.
        """
        with self._lock:
            self._refuse(highest, what)
            self._jobs_under_way += highest
        try:
            yield
        finally:
            with self._lock:
                self._jobs_under_way -= highest

    def book(self, job: str, cost: float) -> None:
        """Book the cost of a finetuning job, in place of what was booked for it before."""
        with self._lock:
            self.spent += cost - self._jobs.get(job, 0.0)
            self._jobs[job] = cost
            if cost:
                self._write()

    def _refuse(self, highest: float, what: str) -> None:
        limit, under_way = self.settings.spending_limit, sum(self._under_way) + self._jobs_under_way
        if limit is not None and self.spent + under_way + highest > limit:
            raise StageFailed(
                f"{what} could cost {highest:.4f} USD, which with {self.spent:.4f} spent and {under_way:.4f} under way "
                f"could pass openai.spending_limit = {limit}. Everything paid for is kept; run the same command with a "
                "higher limit to continue."
            )

    def _write(self) -> None:
        content = {"usd": self.spent, "estimated_usd": self._estimated, "under_way": sum(self._under_way)}
        files.write_json(self._file, content | {"jobs": self._jobs})
