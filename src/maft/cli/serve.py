"""`maft serve`: the agents of a run behind an OpenAI-compatible API."""

import os
from contextlib import ExitStack
from pathlib import Path

import click

from maft.cli import stage


@click.command(
    epilog="Examples:\n\n  maft serve runs/arithmetic_cpu\n\n"
    "  maft serve runs/arithmetic_cpu --host 0.0.0.0 --api-key-env MAFT_KEY --keep runs/served"
)
@click.argument("folder", metavar="RUN", type=stage.PATH)
@stage.overrides
@click.option(
    "--iteration", type=click.IntRange(min=0), help="Iteration whose agents answer (default: the newest; 0: untrained)."
)
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Address to listen on; any but the default needs a key."
)
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="Port; 0: any free one.")
@click.option("--api-key-env", metavar="NAME", help="Environment variable with the key that clients must send.")
@click.option("--keep", metavar="FOLDER", type=stage.PATH, help="Store every debate in this run folder.")
@click.option(
    "--at-once",
    type=click.IntRange(min=1),
    default=64,
    show_default=True,
    help="Maximum number of dialogues answered at a time.",
)
@click.option(
    "--queue", type=click.IntRange(min=1), default=256, show_default=True, help="Maximum number of waiting dialogues."
)
@click.option(
    "--timeout", type=click.FloatRange(min=1), default=600, show_default=True, help="Maximum seconds of a request."
)
@click.option(
    "--max-tokens", type=click.IntRange(min=1), default=4096, show_default=True, help="Maximum tokens of a reply."
)
@click.option("--quiet", is_flag=True, help="Print nothing but warnings.")
def serve(
    folder: Path,
    overrides: tuple[str, ...],
    *,
    iteration: int | None,
    host: str,
    port: int,
    api_key_env: str | None,
    keep: Path | None,
    at_once: int,
    queue: int,
    timeout: float,
    max_tokens: int,
    quiet: bool,
) -> None:
    """Serve the agents of the run in folder RUN, and a web page, until Ctrl-C or SIGTERM.

    Model names are debate, vote, vote@12 (the vote of 12 first answers), base, generator_0, critic_0 and so on.
    KEY.SUB=VALUE, such as engine.sampler=transformers, changes settings of engine, vllm, openai and sampling.
    """
    from maft import engines
    from maft.errors import MissingExtra, UserError

    if not engines.installed("starlette") or not engines.installed("uvicorn"):
        raise MissingExtra("maft serve", "serve")
    from maft.serving import http
    from maft.serving.app import Limits, Server
    from maft.serving.engine import Engine
    from maft.serving.keep import keeping
    from maft.serving.society import ServedSociety

    stage.log_to_stderr(quiet=quiet)
    key = os.environ.get(api_key_env) if api_key_env else None
    if api_key_env and not key:
        raise UserError(
            "--api-key-env must name an environment variable that holds the key."
        )  # it may be the key itself
    local = http.is_loopback(host)
    if not local and key is None:
        raise UserError(f"--host {host} can be reached by others and needs a key. Give --api-key-env NAME.")
    society = ServedSociety(stage.run_to_serve(folder, overrides), iteration)
    with http.listening(host, port) as listener, ExitStack() as stack:
        keeper = stack.enter_context(keeping(keep, society.folder, society.iteration)) if keep else None
        engine = Engine(engines.make_sampler(society.config), society.probe, at_once=at_once, queue=queue)
        stack.callback(engine.close)
        engine.started.result()
        limits = Limits(timeout, max_tokens)
        hosts = ("127.0.0.1", "localhost", "::1", host) if key is None else ("*",)
        server = Server(society, engine, key=key, hosts=hosts, limits=limits, keeper=keeper)
        if not quiet:
            click.echo(
                f"Serving iteration {society.iteration} of {folder}: {', '.join(society.models)}, vote@K", err=True
            )
        click.echo(f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}")
        http.run(server.app, listener, timeout)
    if not quiet:
        click.echo(f"Stopped, after {engine.calls} calls.", err=True)
