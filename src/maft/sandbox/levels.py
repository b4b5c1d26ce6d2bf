"""Finds the strongest level of protection on this machine, by trying to break it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from functools import cache
from typing import NamedTuple

from maft import files
from maft.errors import ConfigError
from maft.sandbox import values
from maft.sandbox.limits import BUBBLEWRAP, LEVELS, LIMITS, SECCOMP, UNPROTECTED, Limits
from maft.sandbox.run import NotConfined, Sandbox

PROBE_LIMITS = Limits(wall_seconds=5.0)


class Level(NamedTuple):
    """A level that holds on this machine."""

    name: str
    stronger: dict[str, str]
    """Why each stronger level is not to be had."""

    @property
    def sentence(self) -> str:
        """What is said at start."""
        return f"Programs run at level {self.name}, which does not protect from: {UNPROTECTED[self.name]}."

    @property
    def record(self) -> dict[str, object]:
        """What the manifest holds."""
        return {"level": self.name, "does_not_protect_from": UNPROTECTED[self.name], "not_available": self.stronger}


@cache
def strongest() -> Level:
    """Return the strongest level that works here and stops what it should stop.

    Raises:
        NotConfined: not even the weakest works.
    """
    refused: dict[str, str] = {}
    for name in LEVELS:
        why = fault(name)
        if why is None:
            return Level(name, refused)
        refused[name] = why
    raise NotConfined(f"Programs cannot be run on this machine: {_listed(refused)}.")


def _listed(reasons: Mapping[str, str]) -> str:
    return "; ".join(f"{name}: {why}" for name, why in reasons.items())


def check(*, allow_weak: bool) -> Level:
    """Return the level at which programs run.

    Raises:
        ConfigError: it is the weakest one, and that is not allowed.
    """
    level = strongest()
    if level.name == LIMITS and not allow_weak:
        raise ConfigError(
            "programs written by a model would run with limits on time and memory only, since stronger protection is "
            f"not available here ({_listed(level.stronger)}). Run maft on Linux with libseccomp, where user namespaces "
            "or Landlock are allowed, or take the risk with sandbox.allow_weak=true."
        )
    return level


ATTACKS = """
import os, socket

def attack(number, path, secret, parent):
    if number == 0:
        return "alive"
    if number == 1:
        with open(path, "w") as file:
            file.write("broken")
    if number == 2:
        os.fork()
    if number == 3:
        socket.create_connection(("127.0.0.1", 9), 0.1)
    if number == 4:
        with open(secret) as file:
            return file.read()
    if number == 5:
        os.kill(parent, 0)
"""


def fault(name: str) -> str | None:
    """Return why a level is not to be had here, or what it did not stop; None if it holds."""
    if name == BUBBLEWRAP and shutil.which("bwrap") is None:
        return "bwrap is not installed"
    sandbox = Sandbox(name, PROBE_LIMITS)
    folder = files.temporary("probe")
    target, secret = folder / "written", folder / "secret"
    secret.write_text("secret")
    secret.chmod(0o644)
    folder.chmod(0o777)
    try:
        with sandbox.program(ATTACKS, "attack") as program:
            outcomes = [
                program.call([values.encode(value) for value in (number, str(target), str(secret), os.getpid())])
                for number in range(6)
            ]
    except (NotConfined, OSError) as error:
        return str(error)
    finally:
        sandbox.close()
        is_written = target.exists()
        shutil.rmtree(folder)
    if outcomes[0] != {"value": "alive"}:
        return f"a harmless program does not run ({outcomes[0]})"
    if name == LIMITS:
        return None
    unstopped = {
        "it writes files": is_written,
        "it starts processes": "error" not in outcomes[2],
        "it reaches the network": outcomes[3] != {"error": "PermissionError"},
        "it reads files": name != SECCOMP and outcomes[4] == {"value": "secret"},
        "it signals its parent": "error" not in outcomes[5],
    }
    return next((what for what, happened in unstopped.items() if happened), None)
