"""Hosted models: OpenAI's service, or any server with its API (vLLM, llama.cpp, ...)."""

import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from maft import seeds
from maft.config import OpenAiConfig
from maft.errors import ConfigError, DataError
from maft.hosted import replies
from maft.hosted import service as hosted
from maft.hosted.parameters import Parameters
from maft.hosted.replies import Answer
from maft.hosted.served import Served
from maft.hosted.service import NotAnAnswer, Spending
from maft.models.adapters import fingerprint
from maft.records import Reply, Request
from maft.samplers.base import Answered, Feed, Streaming

log = logging.getLogger("maft")

FIRST_CONTACT_RETRIES = 2
"""Retries while a server has never answered."""
MESSAGE_TOKENS = 10
"""More than a chat template adds to a message."""


class OpenAi(Streaming):
    """Sends requests concurrently; `maft.samplers.cached` keeps every reply, so that none is paid for twice."""

    def __init__(self, settings: OpenAiConfig, folder: Path, *, keep_tokens: bool = False) -> None:
        """Send nothing yet; spending is kept in `folder`; `keep_tokens` asks for log-probabilities and token ids."""
        self.settings = settings
        self._folder = folder
        self._served = Served(settings, folder)
        self._parameters = Parameters(settings, keep_tokens=keep_tokens)
        self._tries = hosted.Tries(settings, FIRST_CONTACT_RETRIES)
        self._warned_of_usage = False
        self._limit = float(settings.concurrency)

    def answer(self, requests: Sequence[Request], on_reply: Answered) -> None:
        """Answer requests; see `maft.samplers.base.Streaming`.

        Raises:
            ConfigError: no key, a key that is not accepted, or a parameter that the service does not know.
            DataError: the server cannot be reached or does not know the model.
            StageFailed: the quota or the spending limit is used up.
        """
        for request in requests:
            self._check(request)
        feed, spending = Feed(requests, on_reply), Spending(self.settings, self._folder)
        gate = Gate(self.settings.concurrency, self._limit)
        numbers: dict[Future[Answer], int] = {}
        ended: SimpleQueue[Future[Answer]] = SimpleQueue()
        counts: Counter[str] = Counter()

        def ask(request: Request) -> Answer:
            try:
                return self._ask(request, client, gate, spending)
            except BaseException:
                gate.close()  # at once, before the next request in the queue
                raise

        def send(numbered: Iterable[tuple[int, Request]]) -> None:
            for number, request in numbered:
                self._check(request)
                future = threads.submit(ask, request)
                numbers[future] = number
                future.add_done_callback(ended.put)

        def take(future: Future[Answer]) -> list[tuple[int, Request]]:
            answer = future.result()
            counts.update(replies=1, uncounted=not answer.counted, reasoning=answer.only_reasoning)
            return feed.reply(numbers.pop(future), answer.reply)

        threads = ThreadPoolExecutor(self.settings.concurrency)
        with hosted.client(self.settings) as client:
            try:
                send(feed.first)
                while numbers:
                    future = ended.get()
                    if isinstance(future.exception(), CancelledError):  # by the closed gate: another one says why
                        del numbers[future]
                    else:
                        send(take(future))
            except BaseException:
                # Requests in flight are paid for: wait for their replies and keep them. Send no others.
                gate.close()
                for future in wait(numbers, self.settings.timeout).done:
                    if future.exception() is None:
                        with suppress(Exception):  # the first error is the one to report
                            take(future)
                raise
            finally:
                threads.shutdown(wait=False, cancel_futures=True)
                self._limit = gate.limit
                self._warn(counts)

    def release(self) -> None:
        """Unload our adapters from the server, if it has any."""
        if self._served.kept():
            with hosted.client(self.settings) as client:
                self._served.unload(client)

    def _check(self, request: Request) -> None:
        if request.agent.adapter is not None and not self.settings.load_adapters:
            raise DataError(
                f"{request.agent.name} has the adapter {request.agent.adapter}, which a hosted service cannot load. "
                "Give the id of a hosted model, set openai.load_adapters for a vLLM server, or use another "
                "engine.sampler."
            )
        if request.agent.adapter is not None:
            fingerprint(Path(request.agent.adapter))
        if request.sampling.top_k and self.settings.base_url is None:
            raise ConfigError("OpenAI's service does not know top_k. Set it to 0 for every role in sampling.")

    def _ask(self, request: Request, client: Any, gate: "Gate", spending: Spending) -> Answer:
        """Send one request until it is answered, or cannot be."""
        import openai

        agent = request.agent
        model = self._served.name(client, agent) if agent.adapter is not None else agent.model
        text = "".join(message.content for message in request.messages)
        # No text has more tokens than bytes.
        prompt = len(text.encode()) + MESSAGE_TOKENS * len(request.messages)
        highest = spending.sampling_cost(prompt, request.sampling.max_new_tokens)
        rng = seeds.rng(request.seed, "backoff")

        def once() -> Answer:
            while True:
                with gate:
                    sent = self._parameters.of(request, model)
                    spending.reserve(highest, "the next request")
                    paid: float | None = None  # an answer that does not come or is not counted is booked at its highest
                    try:
                        completion = hosted.understood(lambda sent=sent: client.chat.completions.create(**sent))  # type: ignore[misc]
                        answer = replies.read(completion, text)
                        if answer.counted:
                            tokens = answer.reply.prompt_tokens, answer.reply.completion_tokens
                            paid = spending.sampling_cost(*tokens)
                        gate.succeeded()
                        return answer
                    except (openai.APIError, NotAnAnswer) as error:
                        paid = None if hosted.may_be_billed(error) else 0.0
                        if not self._parameters.learn(error, sent):
                            raise
                    finally:
                        spending.settle(highest, paid)

        def pause(error: Exception, seconds: float) -> None:
            if getattr(error, "status_code", None) == 429:
                gate.too_many(seconds or 1.0)
            gate.pause(seconds if hosted.retry_after(error) is not None else seconds * (0.5 + rng.random() / 2))

        try:
            return self._tries.call(once, pause)
        except (openai.APIError, NotAnAnswer) as error:
            text = f"{type(error).__name__}: {hosted.said(error, self.settings)}"
            return Answer(Reply(text="", finish_reason="error", error=text), counted=True, only_reasoning=False)

    def _warn(self, counts: Counter[str]) -> None:
        if counts["uncounted"] and not self._warned_of_usage:
            self._warned_of_usage = True
            log.warning(
                "The service does not count tokens (no usage in %d of %d replies): they are estimated, and each reply "
                "is counted at its maximum price.",
                *(counts["uncounted"], counts["replies"]),
            )
        if counts["reasoning"]:
            log.warning(
                "%d of %d replies are empty: all of their tokens went into reasoning. Allow more "
                "(sampling.train.*.max_new_tokens), or use a model that reasons less.",
                *(counts["reasoning"], counts["replies"]),
            )


class Gate:
    """Limits the number of concurrent requests: half as many after each 429, then slowly more again."""

    def __init__(self, maximum: int, limit: float) -> None:
        """Begin with `limit`, which never exceeds `maximum`."""
        self.maximum, self.limit = maximum, limit
        self._inside = 0
        self._closed = threading.Event()
        self._not_before = 0.0
        self._changed = threading.Condition()

    def __enter__(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._closed.is_set() or self._inside < math.floor(self.limit))
            self._inside += 1
        self.pause(self._not_before - time.monotonic())
        if self._closed.is_set():
            self.__exit__()
            raise CancelledError

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._inside -= 1
            self._changed.notify_all()

    def succeeded(self) -> None:
        """Let one more through after as many successes as there are places."""
        with self._changed:
            self.limit = min(float(self.maximum), self.limit + 1 / self.limit)

    def too_many(self, seconds: float) -> None:
        """Let half as many through, and none for some seconds; simultaneous refusals count once."""
        with self._changed:
            now = time.monotonic()
            if now >= self._not_before:
                self.limit = max(1.0, self.limit / 2)
            self._not_before = max(self._not_before, now + seconds)

    def pause(self, seconds: float) -> None:
        """Wait, but no longer than until the gate is closed."""
        if seconds > 0:
            self._closed.wait(seconds)

    def close(self) -> None:
        """Let nothing through any more."""
        self._closed.set()
        with self._changed:
            self._changed.notify_all()
