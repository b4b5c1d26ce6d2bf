"""What all tests share."""

import os

import pytest

from maft.records import Debate
from maft.store import RunFolder, read_records


@pytest.fixture(autouse=True, scope="session")
def _no_waiting_for_the_disk():
    """A kill, unlike a power cut, loses nothing that was handed to the system."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory) -> RunFolder:
    """A finished run of two iterations; tests only read it."""
    from helpers import run, settings

    return run(settings(tmp_path_factory.mktemp("runs"), "num_iterations=2"))


@pytest.fixture(scope="session")
def debates(finished_run) -> list[Debate]:
    """The debates of its first iteration."""
    return read_records(finished_run.debates(1), Debate)
