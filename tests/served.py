"""A server on a free port of this machine, in a thread."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from maft.runs.folder import RunFolder
from maft.samplers.base import Sampler
from maft.serving import http
from maft.serving.app import Server
from maft.serving.engine import Engine
from maft.serving.society import ServedSociety

if TYPE_CHECKING:
    import openai


def client_error(kind: str, match: str | None = None) -> Any:
    """Expect an error of OpenAI's client."""
    import openai

    return pytest.raises(getattr(openai, kind), match=match)


class Served(NamedTuple):
    url: str
    client: "openai.OpenAI"
    engine: Engine
    society: ServedSociety

    def ask(self, model: str, question: str = "What is 2 + 3?", **how: Any) -> Any:
        messages = how.pop("messages", None) or [{"role": "user", "content": question}]
        return self.client.chat.completions.create(model=model, messages=messages, **how)


@contextmanager
def served(folder: RunFolder, sampler: Sampler, *, at_once: int = 64, queue: int = 256, **how: Any) -> Iterator[Served]:
    """Serve the newest agents of a run."""
    import openai

    society = ServedSociety(folder)
    engine = Engine(sampler, society.probe, at_once=at_once, queue=queue)
    engine.started.result()
    app = Server(society, engine, **how).app
    with http.listening("127.0.0.1", 0) as listener:
        server = http.server(app, 5)
        thread = threading.Thread(target=lambda: server.run(sockets=[listener]))
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        client = openai.OpenAI(base_url=f"{url}/v1", api_key=how.get("key") or "none", max_retries=0)
        try:
            with client:
                yield Served(url, client, engine, society)
        finally:
            server.should_exit = True
            thread.join()
            engine.close()
