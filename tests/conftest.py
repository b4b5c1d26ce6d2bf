"""What all tests share."""

import os

import pytest
from helpers import run, settings

from maft.store import RunFolder


@pytest.fixture(autouse=True, scope="session")
def _no_waiting_for_the_disk():
    """A kill, unlike a power cut, loses nothing that was handed to the system."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory) -> RunFolder:
    """A finished run of two iterations; tests only read it."""
    return run(settings(tmp_path_factory.mktemp("runs"), "num_iterations=2"))
