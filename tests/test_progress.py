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


def logged(capsys, *steps: object) -> list[str]:
    """Return what a stage of 100 calls says off a terminal; steps are seconds that pass, or what is called."""
    now = [0.0]
    with Progress(clock=lambda: now[0]).stage("iteration 1: debate", 100, "call") as bar:
        for step in steps:
            if callable(step):
                step(bar)
            else:
                now[0] += step
    return capsys.readouterr().err.splitlines()


def test_a_log_gets_a_line_a_minute_and_one_that_sums_up(capsys):
    steps = [100, *[lambda bar: bar.advance(), 1.0] * 100]
    lines = logged(capsys, *steps)
    assert lines[0] == "iteration 1: debate: 1 of 100 calls"
    assert lines[1] == "iteration 1: debate: 61 of 100 calls, about 0:00:39 left", "loading for 100 s is no measure"
    assert lines[2:] == ["iteration 1: debate: 100 calls in 0:03:20"]


def test_what_was_done_before_is_said_and_nothing_goes_beyond_the_total(capsys):
    lines = logged(capsys, lambda bar: bar.skip(40), lambda bar: bar.note("critic_0"), lambda bar: bar.advance(70), 5)
    assert lines == ["iteration 1: debate: 100 calls in 0:00:05 (40 were done before), critic_0"]


def test_a_stage_that_fails_sums_up_nothing(capsys):
    with pytest.raises(ZeroDivisionError), Progress().stage("x", 2, "call"):
        raise ZeroDivisionError
    assert capsys.readouterr().err == ""
