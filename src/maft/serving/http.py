"""A socket, and uvicorn on it until a signal ends it."""

import ipaddress
import signal
import socket
import sys
from contextlib import suppress
from typing import Any

from maft.errors import UserError

IDLE_SECONDS = 30
"""Seconds after which a connection on which no request is under way is closed."""


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


def server(app: Any, drain: float) -> Any:
    """Return a uvicorn server. The engine's queue limits the requests; uvicorn's limit would count idle connections.

    Args:
        app: the application.
        drain: maximum number of seconds to finish what has begun, when it ends.
    """
    import uvicorn
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class Protocol(H11Protocol):
        """Also closes connections whose first request, or the rest of one, does not come in time."""

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

        def data_received(self, data: bytes) -> None:
            deadline, self.timeout_keep_alive_task, request = self.timeout_keep_alive_task, None, self.cycle
            super().data_received(data)
            if deadline is not None and self.cycle is request:  # it has not come whole
                self.timeout_keep_alive_task = deadline
            elif deadline is not None:
                deadline.cancel()

    config = uvicorn.Config(
        app,
        http=Protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=max(1, round(drain)),
        timeout_keep_alive=IDLE_SECONDS,
    )
    return uvicorn.Server(config)


def run(app: Any, listener: socket.socket, drain: float) -> None:
    """Serve until SIGINT or SIGTERM; then take nothing new, and finish what has begun; see `server`."""
    sys.stdout.flush()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with suppress(KeyboardInterrupt):  # uvicorn raises the signal again when it has ended
        server(app, drain).run(sockets=[listener])
