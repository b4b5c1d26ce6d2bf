"""Results of a run as a table, rows, a page and transcripts."""

import html.parser
import json
import shutil
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner
from helpers import run, settings

from maft import report, store, transcript
from maft.cli.report import report as report_verb
from maft.cli.show import show as show_verb
from maft.errors import DataError
from maft.records import Debate, Request, Vote
from maft.samplers import Scripted
from maft.samplers.scripted import guess
from maft.store import RunFolder

HOSTILE = "<script>alert(1)</script>\x1b[2J"


def hostile(request: Request) -> str:
    return f"{HOSTILE} {guess(request)}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> RunFolder:
    return run(settings(tmp_path_factory.mktemp("runs"), "num_iterations=2"), Scripted(hostile))


class Tags(html.parser.HTMLParser):
    """Checks that tags close in order, and collects what the page would load."""

    VOID = {"meta", "link", "br", "img", "path", "use", "circle"}

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.scripts = 0

    def handle_starttag(self, tag, attrs):
        self.scripts += tag == "script"
        self.loads += [v for k, v in attrs if k in ("src", "href", "xlink:href") and not (v or "").startswith("#")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag


def test_rows_have_every_method_of_every_iteration(folder):
    rows = report.rows(folder)
    assert [(row["iteration"], row["method"]) for row in rows] == [
        *((0, m) for m in ("base", "majority@3", "debate")),
        *((n, m) for n in (1, 2) for m in ("maft_single", "maft_majority@3", "maft")),
    ]
    assert set(rows[0]) == set("iteration method accuracy ci_low ci_high n unparsed calls tokens".split())


def test_json_is_all_that_the_json_flag_prints(folder):
    done = CliRunner().invoke(report_verb, [str(folder.path), "--json"])
    assert json.loads(done.stdout) == report.rows(folder)


def test_without_the_flag_the_table_comes_first_and_the_path_of_the_page_last(folder):
    lines = CliRunner().invoke(report_verb, [str(folder.path)]).stdout.strip().splitlines()
    assert "majority@3" in "".join(lines) and "Pseudo-labels of iteration 2" in lines[-2]
    assert lines[-1] == f"Report: {folder.path / 'report.html'}"


def test_metrics_are_the_same_whenever_they_are_written(folder):
    report.write_metrics(folder)
    first = (folder.path / "metrics.jsonl").read_bytes()
    report.write_metrics(folder)
    assert (folder.path / "metrics.jsonl").read_bytes() == first
    kinds = [json.loads(line)["kind"] for line in first.splitlines()]
    assert kinds == ["method"] * 9 + ["pseudo_labels"] * 2


def test_the_page_is_whole_and_loads_nothing(folder):
    page = report.write_page(folder).read_text()
    tags = Tags()
    tags.feed(page)
    assert tags.open == [] and tags.loads == [] and tags.scripts == 0
    for heading in ("Accuracy on held-out", "Pseudo-labels", "Who learned", "Time and tokens", "Debates to read"):
        assert heading in page
    assert page.count("<svg") == 2 and "currentColor" in page


def test_what_a_model_wrote_is_shown_as_text(folder):
    page = report.write_page(folder).read_text()
    assert "&lt;script&gt;alert(1)" in page and "<script" not in page and "\x1b" not in page


def test_the_page_of_an_unfinished_run_says_so(tmp_path):
    whole = run(settings(tmp_path))
    shutil.rmtree(whole.iteration(1))
    assert "not finished" in report.write_page(whole).read_text()
    shutil.rmtree(whole.iteration(0))
    assert "not finished" in report.write_page(whole).read_text()
    assert report.rows(whole) == []


def test_a_transcript_tells_who_was_kept_and_why(folder):
    debates = {debate.problem_id: debate for debate in store.read_records(folder.debates(1), Debate)}
    votes = store.read_records(folder.votes(1), Vote)
    used = next(vote for vote in votes if vote.dropped is None)
    dropped = next(vote for vote in votes if vote.dropped is not None)
    text = transcript.find(folder, used.problem_id, 1)
    for turn in debates[used.problem_id].round(1):
        kept = turn.answer == used.label
        wanted = "kept (first)" if kept else "dropped, its answer is not the label"
        assert f"generator_{turn.agent}: {wanted}" in text
    assert "Not used for training: low agreement" in transcript.find(folder, dropped.problem_id, 1)


def test_a_transcript_cannot_steer_the_terminal(folder):
    done = CliRunner().invoke(show_verb, [str(folder.path), store.read_records(folder.debates(1), Debate)[0].problem_id])
    assert "\x1b" not in done.stdout and "\\x1b[2J" in done.stdout


def test_an_unknown_question_is_refused_with_some_that_exist(folder):
    with pytest.raises(DataError, match=r"has no question '99\+1'. It has 16, such as"):
        transcript.find(folder, "99+1")


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(DataError, match="is not a run folder"):
        RunFolder.existing(tmp_path)


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
def test_a_browser_draws_the_page(folder, tmp_path):
    picture = tmp_path / "page.png"
    page: Path = report.write_page(folder)
    subprocess.run(
        ["chromium", "--headless=new", "--no-sandbox", "--disable-gpu", f"--screenshot={picture}", page.as_uri()],
        check=True,
        capture_output=True,
        timeout=60,
    )
    assert picture.stat().st_size > 10_000
