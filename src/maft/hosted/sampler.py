"""Hosted models: OpenAI's service, or any server that speaks its API (vLLM, llama.cpp, ...)."""

import asyncio
import logging
import math
import threading
from collections import Counter
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from maft import seeds
from maft.config import OpenAiConfig
from maft.errors import ConfigError, DataError
from maft.hosted import replies
from maft.hosted import service as hosted
from maft.hosted.parameters import Parameters
from maft.hosted.served import Served
from maft.hosted.service import NotAnAnswer, Spending
from maft.models.adapters import fingerprint
from maft.records import Reply, Request
from maft.samplers.base import Answered, Feed, Streaming

T = TypeVar("T")
log = logging.getLogger("maft")

FIRST_CONTACT_RETRIES = 2
"""Further tries to reach a server that has never answered."""
MESSAGE_TOKENS = 10
"""More than a chat template adds to a message."""


class OpenAi(Streaming):
    """Sends requests side by side; `maft.samplers.cached` keeps every reply, so that none is paid for twice."""

    def __init__(self, settings: OpenAiConfig, folder: Path, *, keep_tokens: bool = False) -> None:
        """Send nothing yet; the money spent is kept in `folder`; `keep_tokens` asks for log-probabilities.

        vLLM's server returns token ids as well.
        """
        self.settings = settings
        self._keep_tokens = keep_tokens
        self._folder = folder
        self._served = Served(settings, folder)
        self._parameters = Parameters(settings, keep_tokens=keep_tokens)
        self._tries = hosted.Tries(settings, FIRST_CONTACT_RETRIES)
        self._counts: Counter[str] = Counter()
        self._said_uncounted = False
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
        _run(self._all(Feed(requests, on_reply)))

    def release(self) -> None:
        """Unload our adapters, where the server has some; the model is elsewhere."""
        if self._served.kept():
            _run(self._unload())

    async def _unload(self) -> None:
        async with hosted.client(self.settings, asynchronous=True) as client:
            await self._served.unload(client)

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

    async def _all(self, feed: Feed) -> None:
        spending = Spending(self.settings, self._folder)
        gate = Gate(self.settings.concurrency, self._limit)
        tasks: set[asyncio.Task[None]] = set()
        async with hosted.client(self.settings, asynchronous=True) as client:
            names: dict[str, str] = {}
            loading = asyncio.Lock()

            async def answer(number: int, request: Request) -> None:
                adapter = request.agent.adapter
                if adapter is not None:
                    async with loading:
                        if adapter not in names:
                            names.update(await self._served.load(client, [request.agent]))
                model = names[adapter] if adapter is not None else request.agent.model
                try:
                    reply = await self._one(request, model, client, gate, spending)
                except BaseException:
                    await gate.close()  # at once, before the next request in the queue
                    raise
                send(feed.reply(number, reply))

            def send(numbered: list[tuple[int, Request]]) -> None:
                for number, request in numbered if not gate.closed else ():
                    self._check(request)
                    tasks.add(asyncio.create_task(answer(number, request)))

            try:
                send(feed.first)
                while tasks:
                    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                    for task in done:
                        tasks.remove(task)
                        if not task.cancelled():  # by the closed gate: another task says why
                            task.result()
            except BaseException:
                # What is under way is waited for, since it is paid for; what is not yet sent is not sent.
                await gate.close()
                if tasks:
                    await asyncio.wait(tasks, timeout=self.settings.timeout)
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                raise
            finally:
                self._limit = gate.limit
                self._tell()

    async def _one(self, request: Request, model: str, client: Any, gate: "Gate", spending: Spending) -> Reply:
        """Send one request until it is answered, or cannot be; `model` is what the server calls the agent's weights."""
        # No text has more tokens than bytes.
        prompt = sum(len(message.content.encode()) + MESSAGE_TOKENS for message in request.messages)
        most = spending.sampling_cost(prompt, request.sampling.max_new_tokens)
        rng = seeds.rng(request.seed, "backoff")
        attempt = 0
        while True:
            async with gate:
                sent = self._parameters.of(request, model)
                spending.reserve(most, "the next request")
                paid: float | None = None  # what does not come, or uncounted, is booked as dear as it can be
                try:
                    answer = await _ask(client, sent)
                    if answer.counted:
                        paid = spending.sampling_cost(answer.reply.prompt_tokens, answer.reply.completion_tokens)
                    self._tries.answered = True
                    self._counts.update(replies=1, uncounted=not answer.counted, reasoning=answer.only_reasoning)
                    gate.succeeded()
                    return answer.reply
                except Exception as error:
                    if not _is_api_error(error) and not isinstance(error, NotAnAnswer):
                        raise
                    paid = None if hosted.may_be_billed(error) else 0.0
                    if self._parameters.learn(error, sent):
                        continue
                    last, wait = error, self._tries.wait(error, attempt)
                finally:
                    spending.settle(most, paid)
            if wait is None:
                text = f"{type(last).__name__}: {hosted.said(last, self.settings)}"
                return Reply(text="", finish_reason="error", error=text)
            if getattr(last, "status_code", None) == 429:
                gate.too_many(wait or 1.0)
            await gate.pause(wait if hosted.retry_after(last) is not None else wait * (0.5 + rng.random() / 2))
            attempt += 1

    def _tell(self) -> None:
        """Say what was odd about the replies since the last time."""
        replies, uncounted, reasoning = (self._counts[name] for name in ("replies", "uncounted", "reasoning"))
        if uncounted and not self._said_uncounted:
            self._said_uncounted = True
            log.warning(
                "The service does not count tokens (no usage in %d of %d replies): they are estimated, and money is "
                "booked as if each reply were as long as it may be.",
                *(uncounted, replies),
            )
        if reasoning:
            log.warning(
                "%d of %d replies are empty: all of their tokens went into reasoning. Allow more "
                "(sampling.train.*.max_new_tokens), or take a model that reasons less.",
                *(reasoning, replies),
            )
        self._counts.clear()


class Gate:
    """Limits the requests at the same time: half as many after each 429, then slowly more again."""

    def __init__(self, most: int, limit: float) -> None:
        """Begin with `limit`; `most` is never passed."""
        self.most = most
        self.limit = limit
        self._inside = 0
        self._closed = asyncio.Event()
        self._not_before = 0.0
        self._changed = asyncio.Condition()

    async def __aenter__(self) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: self._closed.is_set() or self._inside < math.floor(self.limit))
            self._inside += 1
        await self.pause(self._not_before - asyncio.get_running_loop().time())
        if self._closed.is_set():
            await self.__aexit__()
            raise asyncio.CancelledError

    async def __aexit__(self, *_: object) -> None:
        async with self._changed:
            self._inside -= 1
            self._changed.notify_all()

    def succeeded(self) -> None:
        """Let one more through after as many successes as there are places."""
        self.limit = min(float(self.most), self.limit + 1 / self.limit)

    def too_many(self, seconds: float) -> None:
        """Let half as many through, and none for some seconds; many refusals at one moment count once."""
        now = asyncio.get_running_loop().time()
        if now >= self._not_before:
            self.limit = max(1.0, self.limit / 2)
        self._not_before = max(self._not_before, now + seconds)

    async def pause(self, seconds: float) -> None:
        """Wait, unless the gate is closed meanwhile."""
        if seconds > 0:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._closed.wait(), seconds)

    @property
    def closed(self) -> bool:
        """Whether nothing gets through any more."""
        return self._closed.is_set()

    async def close(self) -> None:
        """Let nothing through any more."""
        self._closed.set()
        async with self._changed:
            self._changed.notify_all()


def _is_api_error(error: Exception) -> bool:
    import openai

    return isinstance(error, openai.APIError)


async def _ask(client: Any, sent: dict[str, Any]) -> replies.Answer:
    """Send a request once.

    Raises:
        NotAnAnswer: what came back is no chat completion.
    """
    asked = "".join(message["content"] for message in sent["messages"])
    try:
        completion = await client.chat.completions.create(**sent)
    except (AttributeError, TypeError, ValueError):
        raise NotAnAnswer("what came back is no JSON") from None
    return replies.read(completion, asked)


def _run(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end, also where the caller's thread has a running loop, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    done: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            done.append(asyncio.run(work))
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return done[0]
