"""Files for papers: tables as CSV and JSON, pictures as PNG and SVG."""

import csv
import json
from pathlib import Path

import pytest
from helpers import Quiet, settings
from test_comparison import sums

from maft import comparison, files, report
from maft.samplers import Scripted
from maft.samplers.scripted import guess
from maft.trainers import NullTrainer


@pytest.fixture(scope="module")
def compared(tmp_path_factory) -> comparison.Comparison:
    config = settings(tmp_path_factory.mktemp("compared"), "name=c", "num_iterations=2", "debate.num_eval_samples=4")
    made = comparison.begin(config, ["single_agent_ft", "maft_wo_summary"], [0])
    comparison.compare(made, Scripted(sums), NullTrainer(), Quiet())
    return made


def table(file: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(file.read_text(encoding="utf-8").splitlines()))


def test_a_run_as_files(finished_run, tmp_path, call):
    code, out, err = call("report", str(finished_run.path), "--json", "--export", str(tmp_path / "new" / "figures"))
    assert code == 0, err
    assert json.loads(out) == report.rows(finished_run), "the rows and nothing else"
    home = tmp_path / "new" / "figures"
    names = {path.name for path in home.iterdir()}
    for name in ("results", "gains", "agents", "flow", "reliability", "labels", "examples", "costs", "curves"):
        assert {f"{name}.csv", f"{name}.json"} <= names
        rows = table(home / f"{name}.csv")
        assert len(rows) == len(files.read_json(home / f"{name}.json"))
    for picture in ("accuracy", "agents", "reliability", "labels", "votes"):
        assert {f"{picture}.png", f"{picture}.svg"} <= names
    assert "diversity.csv" not in names, "nothing was measured"
    rows = table(home / "results.csv")
    assert [float(row["accuracy"]) for row in rows] == [row["accuracy"] for row in report.rows(finished_run)]


@pytest.mark.slow
def test_a_comparison_as_files(compared, tmp_path, call):
    code, out, err = call("report", str(compared.path), "--export", str(tmp_path))
    assert code == 0, err
    assert "Exported: 12 files" in out and out.strip().endswith("report.html")
    found = comparison.results(compared)
    rows = table(tmp_path / "methods.csv")
    assert [(int(row["iteration"]), row["method"]) for row in rows] == [(row.iteration, row.method) for row in found]
    gaps = [(row["difference.mean"], row["difference.p_value"]) for row in rows if row["method"] == "single_agent_ft"]
    assert gaps == [(str(r.difference.mean), str(r.difference.p_value)) for r in found if r.method == "single_agent_ft"]
    names = {path.name for path in tmp_path.iterdir()}
    assert {"methods.png", "methods.svg", "budget.png", "budget.svg", "room.png", "room.svg", "flows.csv"} <= names


def test_only_one_run_can_be_exported_and_only_into_a_folder(finished_run, tmp_path, call):
    path = str(finished_run.path)
    code, _, err = call("report", path, path, "--export", str(tmp_path / "x"))
    assert code == 2 and "--export takes one run or one comparison" in err and not (tmp_path / "x").exists()
    (tmp_path / "file").write_text("mine")
    code, _, err = call("report", path, "--export", str(tmp_path / "file"))
    assert code == 2 and "is a file" in err and (tmp_path / "file").read_text() == "mine"


def test_the_page_of_a_comparison_has_every_row_and_runs_no_script_but_its_own(compared):
    found = comparison.results(compared)
    html = report.write_comparison_page(compared, found).read_text(encoding="utf-8")
    assert html.count('<tr data-place="') == len(found)
    for row in found:
        assert f'data-method="{row.method}"' in html
    assert html.count("<svg") == 3 and "script-src 'sha256-" in html and "http:" not in html and "https:" not in html
    assert "not finished" not in html
    assert html == report.write_comparison_page(compared, found).read_text(encoding="utf-8")


def test_the_page_says_what_all_rows_are_compared_with(compared):
    for against in (None, "base", "single_agent_ft_majority@budget"):
        found = comparison.results(compared, against)
        html = report.write_comparison_page(compared, found).read_text(encoding="utf-8")
        assert f"Minus {against or 'maft'}” is" in html
        assert f"{against or 'maft'} minus one model finetuned on debates, alone" in html or against == "base"


def test_curves_begin_with_what_the_agents_of_each_method_answer_untrained(compared):
    found = {(row.iteration, row.method): row for row in comparison.results(compared)}
    curves = comparison.over_iterations(compared, list(found.values()))
    for method, start in {"maft": "debate", "maft_single": "base", "single_agent_ft": "base"}.items():
        assert [row.iteration for row in curves[method]] == [0, 1, 2]
        assert curves[method][0].accuracy == found[0, start].accuracy
        assert [row.accuracy for row in curves[method][1:]] == [found[n, method].accuracy for n in (1, 2)]


def test_an_unfinished_comparison_has_a_page(tmp_path, call):
    made = comparison.begin(settings(tmp_path, "name=c"), ["star"], [0, 1])
    code, _, err = call("report", str(made.path))
    assert code == 0, err
    html = (made.path / "report.html").read_text(encoding="utf-8")
    assert "This comparison is not finished." in html and "maft, star" in html


def test_without_known_answers_the_page_has_the_costs(tmp_path):
    questions = tmp_path / "q.jsonl"
    questions.write_text("".join(json.dumps({"question": f"What is {n} + 1?"}) + "\n" for n in range(8)))
    task = {"name": "jsonl", "train_file": str(questions), "gold_field": None, "num_train": 4, "num_eval": 4}
    made = comparison.begin(settings(tmp_path, "name=c", task=task), ["single_agent_ft"], [0])
    comparison.compare(made, Scripted(guess), NullTrainer(), Quiet())
    found = comparison.results(made)
    html = report.write_comparison_page(made, found).read_text(encoding="utf-8")
    assert html.count('<tr data-place="') == len(found) and "<svg" not in html and 'class="card' not in html
    assert {path.name for path in report.export_comparison(made, found, tmp_path)} == {"methods.csv", "methods.json"}
