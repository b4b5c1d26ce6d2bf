"""What all tests share."""

import pytest

from maft.records import Debate
from maft.store import RunFolder, read_records


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory) -> RunFolder:
    """A finished run of two iterations; tests only read it."""
    from helpers import run, settings

    return run(settings(tmp_path_factory.mktemp("runs"), "num_iterations=2"))


@pytest.fixture(scope="session")
def debates(finished_run) -> list[Debate]:
    """The debates of its first iteration."""
    return read_records(finished_run.debates(1), Debate)
