"""One thread with the sampler; dialogues of all clients share its batches.

A dialogue is a generator like a debate (`maft.method.protocol`): it yields requests that can be answered at the same
time, is sent their replies, and returns its result. New dialogues join whenever a reply comes. Engines answer all that
waits for one agent before they turn to the next, so new ones join for `WAVE` seconds only: then what has begun is
finished first, and no agent waits for ever. Places go to the request that has the fewest of them.

A dialogue whose requests the engine refuses, such as a parameter that a hosted service does not know, fails alone:
after a failure that may be the fault of one dialogue, each is continued by itself.
"""

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from typing import Any, Generic, NamedTuple, TypeVar

from maft.errors import MaftError, UserError
from maft.records import Reply, Request
from maft.samplers.base import Sampler, answer
from maft.samplers.local import LocalSampler

log = logging.getLogger(__name__)

T = TypeVar("T")
Dialogue = Generator[list[Request], list[Reply], T]

WAVE = 5.0
LINGER = 0.02
"""Seconds that an idle engine waits for more dialogues to begin with."""
RETRY_SECONDS = 5.0
"""Seconds between two attempts to start an engine that failed."""


class Busy(MaftError):
    """The queue is full; `seconds` is when to ask again."""

    def __init__(self, seconds: int) -> None:
        self.seconds = seconds
        super().__init__(f"the server is busy; ask again in {seconds} s")


class EngineFailed(MaftError):
    """The engine ended while it worked on a dialogue, twice, or cannot be started again."""


class Said(NamedTuple):
    """A reply within a dialogue, as it comes."""

    step: int
    """From 1; the requests of a step are answered at the same time."""
    request: Request
    reply: Reply


class Ticket(Generic[T]):
    """A dialogue that somebody waits for."""

    def __init__(
        self,
        dialogue: Dialogue[T],
        on_said: Callable[[Said], None],
        on_text: Callable[[str], None] | None = None,
        group: object = None,
    ) -> None:
        self.result: Future[T] = Future()
        self.result.set_running_or_notify_cancel()  # who waits may stop waiting, but cannot cancel it
        self.tries = 0
        """Failures of the engine during this dialogue."""
        self.alone = False
        """Whether it is continued by itself, since it may be at fault."""
        self.group = group
        self._dialogue, self._on_said, self._on_text = dialogue, on_said, on_text
        self._tokens: list[int] = []
        self._step, self._missing = 0, 0
        self._requests: list[Request] = []
        self._replies: list[Reply | None] = []
        self._left = False

    def leave(self) -> None:
        """Nobody waits any more: nothing further is asked, and what is being answered is thrown away."""
        self._left = True

    def begin(self) -> list[tuple[int, Request]]:
        """Return the first requests, each with its place."""
        return self._advance([])

    def take(self, place: int, reply: Reply) -> list[tuple[int, Request]]:
        """Take a reply, and return what is asked next."""
        self._replies[place] = reply
        self._missing -= 1
        if not self._left:
            try:
                self._on_said(Said(self._step, self._requests[place], reply))
            except Exception:  # who listened is no longer there
                self.leave()
        if self._missing:
            return []
        return self._advance([reply for reply in self._replies if reply is not None])

    def hear(self, place: int, tokens: Sequence[int], decode: Callable[[Request, list[int]], str]) -> None:
        """Pass on what a reply that is being generated says so far."""
        if self._on_text is not None and not self._left:
            self._tokens += tokens
            try:
                self._on_text(decode(self._requests[place], self._tokens))
            except Exception:  # who listened is no longer there
                self.leave()

    def unanswered(self) -> list[tuple[int, Request]]:
        """Return the requests of this step that have no reply, to be asked again."""
        self._tokens = []
        return [(n, one) for n, one in enumerate(self._requests) if self._replies[n] is None]

    def fail(self, error: Exception) -> None:
        """End the dialogue with an error."""
        self._dialogue.close()
        if not self.result.done():
            self.result.set_exception(error)

    def _advance(self, replies: list[Reply]) -> list[tuple[int, Request]]:
        try:
            while not self._left:
                self._requests = self._dialogue.send(replies) if self._step else next(self._dialogue)
                self._step += 1
                self._replies, self._missing = [None] * len(self._requests), len(self._requests)
                if self._requests:
                    return list(enumerate(self._requests))
                replies = []
        except StopIteration as end:
            self.result.set_result(end.value)
        except Exception as error:  # of a protocol from outside, or a bug: it ends this dialogue only
            log.exception("A dialogue failed.")
            self.result.set_exception(error)
        else:
            self.fail(EngineFailed("nobody waits for this answer"))
        return []


class Engine:
    """A sampler in a thread of its own, for any number of clients.

    Args:
        sampler: answers; only this thread uses it.
        probe: is given the sampler at the start and after each failure, and raises where it must not be used.
        at_once: maximum number of dialogues in the sampler.
        queue: maximum number of dialogues that wait for a place.
    """

    def __init__(
        self, sampler: Sampler, probe: Callable[[Sampler], None], *, at_once: int = 64, queue: int = 256
    ) -> None:
        self._sampler, self._probe, self._at_once, self._queue = sampler, probe, at_once, queue
        self._news = threading.Condition()
        self._waiting: deque[Ticket[Any]] = deque()
        self._active: set[Ticket[Any]] = set()
        self._suspect: Ticket[Any] | None = None
        """The dialogue that is continued by itself in this wave."""
        self._work: deque[tuple[Future[Any], Callable[[Sampler], Any]]] = deque()
        self._asked: dict[int, tuple[Ticket[Any], int]] = {}
        self._numbers = 0
        self._wave_ends = 0.0
        self._closing = False
        self._seconds = 1.0
        """Running mean of the seconds between two finished dialogues while the engine works."""
        self._last_end = 0.0
        if isinstance(sampler, LocalSampler):
            sampler.on_tokens = self._hear
        self.state = "starting"
        """`starting`, `ready`, `failed` or `closed`."""
        self.restarts = 0
        self.calls = self.prompt_tokens = self.completion_tokens = 0
        """Of all replies, also of those that nobody waited for any more."""
        self.started: Future[None] = Future()
        """Done once the probe has passed, or failed."""
        self._thread = threading.Thread(target=self._run, name="maft engine", daemon=True)
        self._thread.start()

    def submit(
        self,
        dialogue: Dialogue[T],
        on_said: Callable[[Said], None] = lambda _: None,
        on_text: Callable[[str], None] | None = None,
        group: object = None,
    ) -> Ticket[T]:
        """Queue a dialogue.

        Args:
            dialogue: see above.
            on_said: is given each reply as it comes.
            on_text: of a dialogue that makes one call: is given the text of its reply so far, by engines that can.
            group: dialogues of one request have the same; groups share the places.

        Raises:
            Busy: too many are waiting, or the server is about to end.
            EngineFailed: the engine is being started again.
        """
        ticket = Ticket(dialogue, on_said, on_text, group)
        with self._news:
            self._refuse_more()
            self._waiting.append(ticket)
            self._news.notify()
        return ticket

    def apply(self, work: Callable[[Sampler], T]) -> Future[T]:
        """Do something else with the sampler, between the dialogues.

        Raises:
            Busy, EngineFailed: see `submit`.
        """
        result: Future[T] = Future()
        result.set_running_or_notify_cancel()
        with self._news:
            self._refuse_more()
            self._work.append((result, work))
            self._news.notify()
        return result

    def leave(self, ticket: Ticket[Any]) -> None:
        """Nobody waits for a dialogue any more: it frees its place in the queue, or ends at its next step."""
        ticket.leave()
        with self._news:
            if ticket in self._waiting:
                self._waiting.remove(ticket)

    def _refuse_more(self) -> None:
        if self.state == "failed":
            raise EngineFailed("the engine failed, and is being started again")
        if self._closing or len(self._waiting) + len(self._work) >= self._queue:
            raise Busy(self.retry_after())

    def retry_after(self) -> int:
        """Return the seconds after which the queue may be shorter by half."""
        return max(1, min(60, round(self._seconds * len(self._waiting) / 2)))

    @property
    def load(self) -> tuple[int, int]:
        """The numbers of dialogues that are answered and that wait."""
        return len(self._active), len(self._waiting)

    def close(self) -> None:
        """Take nothing new, finish what has come, and free the model; a reply may not take more than 30 seconds."""
        with self._news:
            self._closing = True
            self._news.notify()
        self._thread.join(30)

    def _run(self) -> None:
        try:
            self._probe(self._sampler)
        except BaseException as error:
            self.state, self._closing = "failed", True
            self.started.set_exception(error)
            return
        self.state = "ready"
        self.started.set_result(None)
        while self._work_has_come():
            try:
                self._do_other_work()
                self._wave()
            except UserError as error:  # a request that it refuses; the engine is well
                self._blame(error)
            except Exception as error:
                log.exception("The engine failed; it is started again.")
                self._blame(error)
                self._recover()
        self._sampler.release()
        self.state = "closed"

    def _wave(self) -> None:
        """Answer what waits, and what follows from it and joins, until nothing is left."""
        self._asked.clear()
        self._numbers = 0
        self._last_end = time.monotonic()
        self._suspect = next((ticket for ticket in self._active if ticket.alone), None)
        self._wave_ends = self._last_end + (0 if self._suspect else WAVE)
        tickets = [self._suspect] if self._suspect else list(self._active)
        again = [request for ticket in tickets for request in self._number(ticket, ticket.unanswered())]
        if first := again + ([] if self._suspect else self._admit()):
            answer(self._sampler, first, self._take)
        if self._asked:
            raise EngineFailed(f"the engine left {len(self._asked)} requests without a reply")

    def _work_has_come(self) -> bool:
        with self._news:
            while not (self._waiting or self._active or self._work or self._closing):
                self._news.wait_for(lambda: self._waiting or self._work or self._closing)
                self._news.wait_for(lambda: self._closing, LINGER)  # meanwhile the only client may leave
            return bool(self._waiting or self._active or self._work)

    def _do_other_work(self) -> None:
        """Do one piece of it: dialogues have their turn before the next."""
        if self._work:
            result, work = self._work.popleft()
            try:
                result.set_result(work(self._sampler))
            except Exception as error:
                result.set_exception(error)

    def _take(self, number: int, reply: Reply) -> Sequence[Request]:
        ticket, place = self._asked.pop(number)
        self.calls += 1
        self.prompt_tokens += reply.prompt_tokens
        self.completion_tokens += reply.completion_tokens
        following = self._number(ticket, ticket.take(place, reply))
        more = time.monotonic() < self._wave_ends and not self._work
        return following + (self._admit() if more else [])

    def _hear(self, number: int, tokens: Sequence[int]) -> None:
        if number in self._asked:  # not of a probe
            ticket, place = self._asked[number]
            ticket.hear(place, tokens, self._decode)

    def _decode(self, request: Request, tokens: list[int]) -> str:
        assert isinstance(self._sampler, LocalSampler)
        return self._sampler.ready(request.agent.model).template.decode(tokens)

    def _admit(self) -> list[Request]:
        """Begin dialogues that wait, as far as there are places."""
        requests: list[Request] = []
        while len(self._active) < self._at_once:
            with self._news:
                if not self._waiting:
                    break
                places = Counter(ticket.group for ticket in self._active)
                ticket = min(self._waiting, key=lambda each: places[each.group])  # of several the first that came
                self._waiting.remove(ticket)
                self._active.add(ticket)
            requests += self._number(ticket, ticket.begin())
        return requests

    def _number(self, ticket: Ticket[Any], placed: list[tuple[int, Request]]) -> list[Request]:
        for place, _ in placed:
            self._asked[self._numbers] = (ticket, place)
            self._numbers += 1
        if ticket.result.done():
            self._active.discard(ticket)
            now = time.monotonic()
            self._seconds += 0.1 * (now - self._last_end - self._seconds)
            self._last_end = now
        return [request for _, request in placed]

    def _blame(self, error: Exception) -> None:
        """End the dialogue during which the engine failed twice, or that it refuses; several are continued singly."""
        self._asked.clear()
        tickets, refused = [self._suspect] if self._suspect else list(self._active), isinstance(error, UserError)
        for ticket in tickets:
            ticket.tries += 1
            if refused or ticket.tries > 1:
                if len(tickets) == 1:
                    self._drop(ticket, error if refused else EngineFailed(f"the engine failed twice: {error}"))
                else:
                    ticket.alone = True

    def _recover(self) -> None:
        """Free the engine and try it until it works."""
        self.state = "failed"
        self.restarts += 1
        while True:
            try:
                self._sampler.release()
                self._probe(self._sampler)
                self.state = "ready"
                return
            except Exception as why:
                log.error("The engine does not work: %s", why)
                with self._news:
                    lost, self._waiting = [*self._active, *self._waiting], deque()
                    works, self._work = self._work, deque()
                failed = EngineFailed(f"the engine cannot be started again: {why}")
                for ticket in lost:
                    self._drop(ticket, failed)
                for result, _ in works:
                    result.set_exception(failed)
                with self._news:
                    if self._news.wait_for(lambda: self._closing, RETRY_SECONDS):
                        return

    def _drop(self, ticket: Ticket[Any], error: Exception) -> None:
        self._active.discard(ticket)
        ticket.fail(error)
