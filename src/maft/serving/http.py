"""A socket, and uvicorn on it until a signal ends it."""

import ipaddress
import signal
import socket
import sys
from contextlib import suppress
from typing import Any

from maft.errors import UserError

HEAD_SECONDS = 20.0
"""Seconds in which the head of a request must have come, also of the first one after a connection."""


def is_loopback(host: str) -> bool:
    """Say whether only this machine can reach an address.

    >>> is_loopback("127.0.0.1"), is_loopback("localhost"), is_loopback("0.0.0.0")
    (True, True, False)
    """
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def listening(host: str, port: int) -> socket.socket:
    """Return a socket at an address; 0 is any free port.

    Raises:
        UserError: the address cannot be had.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        raise UserError(
            f"--host {host} --port {port}: {error.strerror or error}. Choose another port or host."
        ) from None


def server(app: Any, drain: float, connections: int) -> Any:
    """Return a uvicorn server.

    Args:
        app: the application.
        drain: maximum number of seconds to finish what has begun, when it ends.
        connections: maximum number of requests at a time, besides some for health and metrics.
    """
    import uvicorn

    config = uvicorn.Config(
        app,
        http=_bounded(connections + 64),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=connections + 64,
        timeout_graceful_shutdown=max(1, round(drain)),
        timeout_keep_alive=30,
    )
    return uvicorn.Server(config)


def _bounded(maximum: int) -> type[Any]:
    """Return uvicorn's protocol for connections of which none is kept without use.

    One whose request does not begin in time is closed. At the maximum, a new one takes the place of the one that has
    been idle longest; where none is idle, uvicorn answers 503.
    """
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class Bounded(H11Protocol):
        due: Any = None
        since = 0.0

        @property
        def idle(self) -> bool:
            return self.cycle is None or self.cycle.response_complete

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._await_head()
            idle = [other for other in self.connections if isinstance(other, Bounded) and other.idle]
            if len(self.connections) >= maximum and (others := [each for each in idle if each is not self]):
                longest = min(others, key=lambda other: other.since)
                self.connections.discard(longest)
                longest.transport.close()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if not self.idle:
                self._cancel()
            elif self.due is None:  # a part of a head, which has ended the time to keep the connection
                self._await_head()

        def on_response_complete(self) -> None:
            self.since = self.loop.time()
            super().on_response_complete()

        def connection_lost(self, exc: Exception | None) -> None:
            self._cancel()
            super().connection_lost(exc)

        def _await_head(self) -> None:
            self.since = self.loop.time()
            self.due = self.loop.call_later(HEAD_SECONDS, self._close_if_idle)

        def _cancel(self) -> None:
            if self.due is not None:
                self.due.cancel()
                self.due = None

        def _close_if_idle(self) -> None:
            self.due = None
            if self.idle:
                self.transport.close()

    return Bounded


def run(app: Any, listener: socket.socket, drain: float, connections: int) -> None:
    """Serve until SIGINT or SIGTERM; then take nothing new, and finish what has begun; see `server`."""
    sys.stdout.flush()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with suppress(KeyboardInterrupt):  # uvicorn raises the signal again when it has ended
        server(app, drain, connections).run(sockets=[listener])
