"""Several runs side by side."""

import json

import pytest
from helpers import run, settings
from test_comparison import sums

from maft.report import rows, runs, runs_table
from maft.report.gains import gains
from maft.samplers import Scripted


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    home = tmp_path_factory.mktemp("seeds")
    return [run(settings(home, f"name=seed{n}", f"seed={n}"), Scripted(sums)) for n in range(3)]


def test_each_run_has_its_column_and_the_mean_is_theirs(seeds):
    for row in runs.together(seeds):
        each = [r["accuracy"] for folder in seeds for r in rows(folder) if r["method"] == row.method]
        assert row.accuracies == pytest.approx(each) and row.mean == pytest.approx(sum(each) / 3)
        assert row.low <= row.mean <= row.high and row.n == 6
    assert [row.method for row in runs.together(seeds)] == [r["method"] for r in rows(seeds[0])]


def test_gains_are_differences_on_the_same_questions(seeds):
    means = {row.method: row for row in runs.together(seeds)}
    found = {gain.over: gain for gain in gains(seeds)}
    for over, method in (("untrained debate", "debate"), ("untrained majority", "majority@3")):
        assert found[over].gap.mean == pytest.approx(means["maft"].mean - means[method].mean)
        assert found[over].by_run == pytest.approx(
            [a - b for a, b in zip(means["maft"].accuracies, means[method].accuracies, strict=True)]
        )


def test_on_the_command_line(seeds, call):
    paths = [str(folder.path) for folder in seeds]
    code, out, err = call("report", *paths)
    assert code == 0, err
    assert "seed0" in out and "Finetuned debate minus untrained debate" in out and "Minutes of sampling" in out
    code, out, _ = call("report", *paths, "--json")
    assert code == 0 and set(json.loads(out)[0]["runs"]) == {"seed0", "seed1", "seed2"}
    code, _, err = call("report", paths[0], "nowhere")
    assert code == 2 and "nowhere is not a run folder" in err


def test_runs_without_an_evaluation_in_common_say_so(seeds, tmp_path):
    from maft.runs.folder import RunFolder

    empty = settings(tmp_path, "name=empty")
    assert "no evaluated method in common" in runs_table([seeds[0], RunFolder(tmp_path / "empty", empty)])


def test_runs_over_different_questions_are_compared_on_those_that_all_have(seeds, tmp_path, call):
    other = run(settings(tmp_path, "name=other", "task.split_seed=5", "task.num_eval=30"), Scripted(sums))
    shared, every = runs.shared_questions([seeds[0], other])
    assert 0 < len(shared) < 6 < every
    assert {row.n for row in runs.together([seeds[0], other])} == {len(shared)}
    out = call("report", str(seeds[0].path), str(other.path))[1]
    assert f"only the {len(shared)} of {every} that all have count" in out
    apart = run(settings(tmp_path, "name=apart", "task.low=10", "task.high=14"), Scripted(sums))
    code, _, err = call("report", str(seeds[0].path), str(apart.path))
    assert code == 2 and "no held-out question in common" in err
