"""The HTTP side: routes, keys, limits, streams, metrics. Nothing here knows a model."""

import asyncio
import base64
import hashlib
import hmac
import json
import logging
import secrets
import time
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from maft.errors import UserError
from maft.serving import api
from maft.serving.completions import CompletionRequest, complete, shares
from maft.serving.engine import Busy, Engine, EngineFailed, Said, Ticket
from maft.serving.keep import Keeper
from maft.serving.society import Answered, Question, ServedSociety

log = logging.getLogger(__name__)

MAX_BODY = 2**20
"""Bytes of a request."""
BODY_SECONDS = 30.0
"""Seconds in which a request must have come."""
TICK = 1.0
"""Seconds between two looks whether a client that is streamed to is still there."""


class Limits(NamedTuple):
    """What a request may take."""

    timeout: float = 600.0
    """Seconds."""
    max_tokens: int = 4096
    """Of each reply."""


class Metrics:
    """What Prometheus is told."""

    def __init__(self, engine: Engine) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "maft_requests", "Requests by model and HTTP status.", ["model", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "maft_request_seconds",
            "Seconds of a request that was answered.",
            ["model"],
            registry=self.registry,
            buckets=(0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500),
        )
        numbers: dict[str, tuple[str, Callable[[], float]]] = {
            "maft_active_dialogues": ("Dialogues that are answered.", lambda: engine.load[0]),
            "maft_waiting_dialogues": ("Dialogues that wait for a place.", lambda: engine.load[1]),
            "maft_engine_ready": ("1 if the engine answers.", lambda: engine.state == "ready"),
            "maft_engine_restarts": ("Failures of the engine.", lambda: engine.restarts),
            "maft_calls": ("Replies of agents.", lambda: engine.calls),
            "maft_prompt_tokens": ("Prompt tokens of all replies.", lambda: engine.prompt_tokens),
            "maft_completion_tokens": ("Generated tokens of all replies.", lambda: engine.completion_tokens),
        }
        for name, (text, value) in numbers.items():
            Gauge(name, text, registry=self.registry).set_function(value)


class Server:
    """A society behind HTTP."""

    def __init__(
        self,
        society: ServedSociety,
        engine: Engine,
        *,
        key: str | None = None,
        hosts: Sequence[str] = ("*",),
        limits: Limits | None = None,
        keeper: Keeper | None = None,
    ) -> None:
        """Serve what an engine answers.

        Args:
            society: what can be asked.
            engine: answers.
            key: what clients must send; None: nothing.
            hosts: names that a request may have as its host, so that no page elsewhere reaches a server on loopback.
            limits: of a request.
            keeper: keeps the debates.
        """
        self.society, self.engine, self.limits, self.keeper = society, engine, limits or Limits(), keeper
        society.max_tokens = self.limits.max_tokens
        self._key = None if key is None else key.encode(errors="surrogateescape")
        self.metrics = Metrics(engine)
        self._page = (Path(__file__).parent / "page.html").read_text(encoding="utf-8")
        script = self._page.partition("<script>")[2].partition("</script>")[0]
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; connect-src 'self'"
        self._page_headers = {
            "content-security-policy": f"{policy}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
            "x-content-type-options": "nosniff",
            "referrer-policy": "no-referrer",
        }
        self.app = Starlette(
            routes=[
                Route("/", self.page),
                Route("/health", self.health),
                Route("/metrics", self._guarded(self.show_metrics)),
                Route("/v1/models", self._guarded(self.models)),
                Route("/v1/models/{name}", self._guarded(self.model)),
                Route("/v1/chat/completions", self._guarded(self.chat), methods=["POST"]),
                Route("/v1/completions", self._guarded(self.complete), methods=["POST"]),
            ],
            middleware=[Middleware(_Hosts, allowed=frozenset(hosts))],
            exception_handlers={HTTPException: _http_error, Exception: _bug},
        )

    async def page(self, request: Request) -> Response:
        """Return the page."""
        return HTMLResponse(self._page, headers=self._page_headers)

    async def health(self, request: Request) -> Response:
        """Say whether the engine answers."""
        active, waiting = self.engine.load
        state = {"status": self.engine.state, "active": active, "waiting": waiting}
        return JSONResponse(state, 200 if self.engine.state == "ready" else 503)

    async def show_metrics(self, request: Request) -> Response:
        """Return the metrics as Prometheus reads them."""
        return PlainTextResponse(generate_latest(self.metrics.registry), media_type="text/plain; version=0.0.4")

    async def models(self, request: Request) -> Response:
        """List what can be asked."""
        return JSONResponse({"object": "list", "data": [self._model(name) for name in self.society.models]})

    async def model(self, request: Request) -> Response:
        """Describe one of them."""
        name = request.path_params["name"]
        self._check(name)
        return JSONResponse(self._model(name))

    async def chat(self, request: Request) -> Response:
        """Answer a conversation."""
        asked: api.ChatRequest = api.parse(api.ChatRequest, await _body(request))
        request.state.model = asked.model
        self._check(asked.model)
        self._refuse_longer(asked.max_completion_tokens or asked.max_tokens or 0)
        seed = api.new_seed() if asked.seed is None else asked.seed
        exchange = Exchange(
            self, asked.questions(seed), trace=request.query_params.get("trace") == "1", stream=bool(asked.stream)
        )
        if asked.stream:
            streamed = exchange.stream(request, asked, seed)
            headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
            return StreamingResponse(streamed, media_type="text/event-stream", headers=headers)
        answers = [api.cut(one, asked.stop) for one in await exchange.wait(request)]
        return JSONResponse(api.completion(exchange.name, asked.model, seed, answers, trace=exchange.trace))

    async def complete(self, request: Request) -> Response:
        """Continue texts."""
        asked: CompletionRequest = api.parse(CompletionRequest, await _body(request))
        request.state.model = asked.model
        self._check(asked.model)
        if asked.model not in self.society.agents or asked.stream:
            raise UserError("/v1/completions is for single agents, without stream; ask others at /v1/chat/completions")
        self._refuse_longer(asked.max_tokens)
        agent, seed = self.society.agents[asked.model], api.new_seed() if asked.seed is None else asked.seed
        how = self.society.sampling(asked.model, asked.how(asked.max_tokens))
        parts = []
        async with asyncio.timeout(self.limits.timeout):
            for share in shares(asked):  # one after the other, so that other requests come between
                work = self.engine.apply(partial(complete, agent=agent, how=how, asked=asked, seed=seed, share=share))
                parts.append(await asyncio.wrap_future(work))
        head = api.head(f"cmpl-{secrets.token_hex(12)}", "text_completion", asked.model)
        choices = [choice for part in parts for choice in part[0]]
        return JSONResponse(head | {"choices": choices, "usage": api.total([part[1] for part in parts])})

    def _refuse_longer(self, max_tokens: float) -> None:
        if max_tokens > self.limits.max_tokens:
            raise UserError(f"max_tokens: at most {self.limits.max_tokens} tokens, got {max_tokens:.0f}")

    def _check(self, name: str) -> None:
        try:
            self.society.check(name)
        except UserError as error:
            raise HTTPException(404, str(error)) from None

    def _model(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": 0, "owned_by": self.society.folder.path.name}

    def _guarded(self, handle: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        """Ask for the key, turn what went wrong into responses, and count."""

        async def guarded(request: Request) -> Response:
            request.state.model = ""
            started = time.monotonic()
            try:
                response = await self._answer(handle, request)
            except Exception:
                self._count(request, 500, started)
                raise
            if isinstance(response, StreamingResponse):
                response.body_iterator = self._counted(response.body_iterator, request, started)
            else:
                self._count(request, response.status_code, started)
            return response

        return guarded

    def _count(self, request: Request, status: int, started: float) -> None:
        if request.method == "POST":
            model = request.state.model if status != 404 else ""
            self.metrics.requests.labels(model, status).inc()
            if status == 200:
                self.metrics.seconds.labels(model).observe(time.monotonic() - started)

    async def _counted(self, pieces: AsyncIterable[Any], request: Request, started: float) -> AsyncIterator[Any]:
        """Pass a stream on, and count it when it has ended, by what it ended with."""
        request.state.status = 499
        try:
            async for piece in pieces:
                yield piece
        except Exception:
            request.state.status = 500
            raise
        finally:
            self._count(request, request.state.status, started)

    async def _answer(self, handle: Callable[[Request], Awaitable[Response]], request: Request) -> Response:
        given = request.headers.get("authorization", "").removeprefix("Bearer ").encode("latin-1")  # its bytes
        if self._key is not None and not hmac.compare_digest(given, self._key):
            return _error(401, "the key is missing or wrong", "authentication_error", {"www-authenticate": "Bearer"})
        try:
            return await handle(request)
        except HTTPException as error:
            return _error(error.status_code, error.detail)
        except Busy as error:
            return _error(429, str(error), "rate_limit_error", {"retry-after": str(error.seconds)})
        except (EngineFailed, TimeoutError, UserError) as error:
            return self._failed(error)

    def _failed(self, error: Exception) -> Response:
        if isinstance(error, EngineFailed):
            return _error(503, str(error), "server_error", {"retry-after": "5"})
        if isinstance(error, TimeoutError):
            return _error(504, f"no answer within {self.limits.timeout:g} s", "server_error")
        return _error(400, str(error))


class _Hosts:
    """Refuses requests that are addressed to another host, so that no page elsewhere reaches a server on loopback."""

    def __init__(self, app: ASGIApp, allowed: frozenset[str]) -> None:
        self._app, self._allowed = app, allowed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and "*" not in self._allowed:
            name = host_name(Headers(scope=scope).get("host", ""))
            if name not in self._allowed:
                served = ", ".join(sorted(self._allowed))
                await _error(400, f"host {name!r} is not served here; {served} are")(scope, receive, send)
                return
        await self._app(scope, receive, send)


def host_name(header: str) -> str:
    """Return the host of a Host header without its port; nothing where it has none.

    >>> host_name("[::1]:8000"), host_name("LOCALHOST:80"), host_name("[")
    ('::1', 'localhost', '')
    """
    try:
        return urlsplit(f"//{header}").hostname or ""
    except ValueError:
        return ""


class Exchange:
    """The dialogues of one request."""

    def __init__(self, server: Server, questions: Sequence[Question], *, trace: bool, stream: bool) -> None:
        """Queue them all, or none.

        Raises:
            Busy: the queue is full.
        """
        self.server, self.questions, self.trace = server, questions, trace
        self.name = f"chatcmpl-{secrets.token_hex(12)}"
        self.news: asyncio.Queue[tuple[int, Said | str | None]] = asyncio.Queue()
        """By choice, a reply, or the text so far of one that is being generated; None when all is answered."""
        self._sent: dict[int, str] = {}
        loop = asyncio.get_running_loop()
        self._tickets: list[Ticket[Any]] = []
        for index, question in enumerate(questions):

            def tell(news: Said | str, index: int = index) -> None:
                loop.call_soon_threadsafe(self.news.put_nowait, (index, news))

            alone = question.model in server.society.agents
            try:
                dialogue = server.society.dialogue(question)
                heard = tell if stream and alone else None
                self._tickets.append(server.engine.submit(dialogue, tell, heard, group=self.name))
            except (Busy, EngineFailed):
                self.leave()
                raise

    def leave(self) -> None:
        """Let go of what is not answered yet."""
        for ticket in self._tickets:
            if not ticket.result.done():
                self.server.engine.leave(ticket)

    async def answers(self) -> list[Answered]:
        """Return the answers to all questions, and keep the debates."""
        answers: list[Answered] = []
        for number, (question, ticket) in enumerate(zip(self.questions, self._tickets, strict=True)):
            result = await asyncio.wrap_future(ticket.result)
            answered = await asyncio.to_thread(self.server.society.answered, question, result)
            if self.server.keeper and answered.debate and answered.vote:
                name = f"{self.name.removeprefix('chatcmpl-')}-{number}"
                await asyncio.to_thread(self.server.keeper.keep, name, answered.debate, answered.vote)
            answers.append(answered)
        return answers

    async def wait(self, request: Request) -> list[Answered]:
        """Return the answers, unless the client leaves or the time is over.

        Raises:
            TimeoutError: the time is over.
        """
        answers = asyncio.ensure_future(self.answers())
        gone = asyncio.ensure_future(_gone(request))
        try:
            done, _ = await asyncio.wait(
                {answers, gone}, timeout=self.server.limits.timeout, return_when="FIRST_COMPLETED"
            )
            if answers in done:
                return answers.result()
            raise HTTPException(499, "the client has left") if gone in done else TimeoutError
        finally:
            answers.cancel()
            gone.cancel()
            self.leave()

    async def stream(self, request: Request, asked: api.ChatRequest, seed: int) -> AsyncIterator[bytes]:
        """Yield server-sent events: progress as comments, what was said for clients that trace, then the answers."""
        answers = asyncio.ensure_future(self.answers())
        answers.add_done_callback(lambda _: self.news.put_nowait((0, None)))
        ends = time.monotonic() + self.server.limits.timeout
        try:
            while True:
                if await request.is_disconnected():
                    return
                if time.monotonic() > ends:
                    raise TimeoutError
                try:
                    index, news = await asyncio.wait_for(self.news.get(), TICK)
                except TimeoutError:
                    yield b": waiting\n\n"
                    continue
                if news is None:
                    break
                if isinstance(news, str):
                    if piece := self._piece(asked.model, index, api.safe_part(news, asked.stop)):
                        yield piece
                    continue
                agent = asked.model if asked.model in self.server.society.agents else news.request.agent.name
                yield f": {agent} has answered\n\n".encode()
                if self.trace:
                    yield _event(api.chunk(self.name, asked.model, [], maft=api.said(index, news, agent)))
            results = [api.cut(one, asked.stop) for one in answers.result()]
        except (EngineFailed, UserError, TimeoutError) as error:
            response = self.server._failed(error)
            request.state.status = response.status_code
            yield f"data: {bytes(response.body).decode()}\n\n".encode()
            return
        finally:
            answers.cancel()
            self.leave()
        for index, one in enumerate(results):
            if not one.text.startswith(self._sent.get(index, "")):  # an engine that was started again rounds otherwise
                request.state.status = 503
                yield _event(api.error("the engine failed while it answered; ask again", "server_error"))
                return
            yield self._piece(asked.model, index, one.text)
            end = {"index": index, "delta": {}, "finish_reason": one.finish_reason}
            known = api.details(one, seed + index, trace=self.trace)
            yield _event(api.chunk(self.name, asked.model, [end], maft=known))
        if (asked.stream_options or {}).get("include_usage"):
            yield _event(api.chunk(self.name, asked.model, [], usage=api.usage(results)))
        request.state.status = 200
        yield b"data: [DONE]\n\n"

    def _piece(self, model: str, index: int, text: str) -> bytes:
        """Return what of a text has not been sent, as a chunk; nothing where there is no more of it."""
        sent = self._sent.get(index)
        if sent is not None and (not text.startswith(sent) or text == sent):
            return b""
        self._sent[index] = text
        delta = {"role": "assistant"} if sent is None else {}
        choice = {"index": index, "delta": delta | {"content": text[len(sent or "") :]}, "finish_reason": None}
        return _event(api.chunk(self.name, model, [choice]))


async def _body(request: Request) -> bytes:
    """Return the body of a request.

    Raises:
        HTTPException: it is too large, takes too long, or is not declared as JSON.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # which a page of another origin cannot send without being asked for it first
        raise HTTPException(415, f"content-type must be application/json, got {kind or 'none'}")
    too_large = HTTPException(413, f"the body must have at most {MAX_BODY} bytes")
    length = request.headers.get("content-length", "0")
    if not length.isdigit() or int(length) > MAX_BODY:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.stream():
                body += part
                if len(body) > MAX_BODY:
                    raise too_large
    except TimeoutError:
        raise HTTPException(408, f"the body did not come within {BODY_SECONDS:g} s") from None
    return bytes(body)


async def _gone(request: Request) -> None:
    """Return when the client has left."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _event(content: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(content)}\n\n".encode()


def _error(status: int, message: str, kind: str = "invalid_request_error", headers: Any = None) -> Response:
    code = "model_not_found" if status == 404 else None
    headers = {"connection": "close", **(headers or {})} if status in (408, 413) else headers
    return JSONResponse(api.error(message, kind, code), status, headers=headers)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _error(error.status_code, error.detail)


async def _bug(request: Request, error: Exception) -> Response:
    return _error(500, "the server made an error; its log says more", "server_error")
