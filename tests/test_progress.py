"""Progress bars are seen wherever there is a screen, and nowhere else."""

import os
import pty
import select
import sys

import pytest

from maft.runs.progress import Progress


def drawn(monkeypatch, *, rows: int, columns: int) -> str:
    """Return what a stage draws on a terminal of this size."""
    import fcntl
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    with os.fdopen(theirs, "w") as screen:
        monkeypatch.setattr(sys, "stderr", screen)
        with Progress().stage("iteration 1: debate", 50, "call") as bar:
            bar.skip(10)
            bar.advance(40)
        screen.flush()
        said = b""
        while select.select([ours], [], [], 0.2)[0]:
            said += os.read(ours, 10_000)
    os.close(ours)
    return said.decode()


@pytest.mark.parametrize(("rows", "columns"), [(40, 120), (0, 0)], ids=["a window", "a terminal that knows no size"])
def test_a_stage_shows_done_total_rate_and_time_left(monkeypatch, rows, columns):
    said = drawn(monkeypatch, rows=rows, columns=columns)
    assert "iteration 1: debate" in said and "50/50 calls" in said and "calls/s" in said.replace("call/s", "calls/s")


def test_quiet_draws_nothing(capsys):
    with Progress(quiet=True).stage("x", 2, "call") as bar:
        bar.advance(2)
    assert capsys.readouterr().err == ""
