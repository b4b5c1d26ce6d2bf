"""`maft validate`: known answers against their own grader, from the command line."""

import json
import shutil
from pathlib import Path

import pytest
from helpers import maft
from test_tasks_table import DATA, needs_data

from maft import config, tasks
from maft.tasks.dataset import Dataset


def jsonl(path: Path, *rows: object) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_a_task_by_name_with_overrides(home, call):
    code, out, err = call("validate", "arithmetic", "task.low=1", "task.negative=false", "task.num_train=100")
    assert (code, err) == (0, "")
    assert "Known answers that are graded as right: 207 of 207" in out
    assert "a run trains on            100" in out and "and holds out              107" in out
    assert out.count("---- prompt of question") == 3 and out.count("Give the final answer as \\boxed{answer}.") == 3


def test_a_config_with_prompts_of_its_own(home, call):
    code, out, _ = call("validate", "sums.yaml", "prompts.system=Be brief.", "prompts.solve='{question} Quick!'")
    assert code == 0 and out.count("[system] Be brief.") == 3 and out.count("? Quick!\n") == 3
    assert "a run trains on              6" in out and "and holds out                4" in out


def test_shapes_of_sums(home, call):
    code, out, _ = call("validate", "arithmetic", "task.shape=a+b*c+d-e*f", "task.high=29", "task.size=200")
    assert code == 0 and "graded as right: 200 of 200" in out


def test_an_answer_that_its_grader_cannot_read_fails_with_exit_code_1(home, call):
    rows = [{"question": f"Q{n}", "answer": answer} for n, answer in enumerate(["1", "a } b {", "3"])]
    code, out, err = call("validate", "dataset", f"task.train_file={jsonl(home / 'q.jsonl', *rows)}")
    assert code == 1
    assert "graded as right: 2 of 3" in out and "the known answer is 'a } b {', in a reply read as" in out
    assert err.endswith("maft: 1 of 3 known answers are graded as wrong.\n")


def test_worked_solutions_are_read_as_replies_are(home, call):
    rows = [
        {"question": f"Add {n} and 1.", "answer": f"{n} + 1 = <<{n}+1={n + 1}>>{n + 1}\n#### {n + 1}"} for n in range(9)
    ]
    code, out, _ = call("validate", "dataset", f"task.train_file={jsonl(home / 'q.jsonl', *rows)}")
    assert code == 0 and "graded as right: 9 of 9" in out
    questions = tasks.make(
        config.parse({"task": {"name": "dataset", "train_file": str(home / "q.jsonl")}}).task
    ).questions()
    assert {problem.gold for problem in (*questions.train, *questions.eval)} == {str(n + 1) for n in range(9)}


def test_worked_solutions_without_an_answer_at_their_end_are_named(home, call):
    solution = "First we add the two numbers of the question, then we take one away, so that {} are left."
    rows = [{"question": f"Q{n}", "answer": solution.format(n)} for n in range(4)]
    code, out, err = call("validate", "dataset", f"task.train_file={jsonl(home / 'q.jsonl', *rows)}")
    assert code == 1 and out.count("looks like a worked solution") == 4
    assert "4 of 4 known answers are worked solutions" in err


def test_a_grader_that_takes_wrong_answers_for_right_is_named(home, call, monkeypatch):
    rows = [{"question": f"Q{n}", "answer": n} for n in range(4)]
    monkeypatch.setattr(Dataset, "correct", lambda self, problem, answer: True)
    code, out, err = call("validate", "dataset", f"task.train_file={jsonl(home / 'q.jsonl', *rows)}")
    assert code == 1 and out.count("the answer of another question, is graded as right") == 4
    assert "4 of 4 wrong answers are graded as right" in err


def test_a_folder_of_a_tasks_name_is_no_config(home, call):
    (home / "arithmetic").mkdir()
    assert call("validate", "arithmetic", "task.num_train=5")[0] == 0


def test_duplicates_and_unknown_answers_are_counted(home):
    rows = [{"question": f"Q{n % 7}", "answer": None if n % 7 < 3 else n % 7} for n in range(9)]
    done = maft("validate", "dataset", f"task.train_file={jsonl(home / 'q.jsonl', *rows)}", cwd=home)
    out, err = done.stdout, done.stderr
    assert done.returncode == 0
    assert "questions                    7" in out and "duplicates left out          2" in out
    assert "without known answer         3" in out and "graded as right: 4 of 4" in out
    assert err.count("2 of 9 questions occur more than once") == 1


def test_what_is_asked_wrongly_has_exit_code_2(home, call):
    code, _, err = call("validate", "gsm8")
    assert code == 2 and "'gsm8' is not a task. Did you mean gsm8k?" in err
    assert call("validate", "none.yaml")[0] == 2
    assert call("validate", "dataset", "task.train_file=none.jsonl")[0] == 2


@pytest.mark.slow
@needs_data
def test_gsm8k_and_math_500_pass_from_the_command_line(home, call):
    files = [f"task.train_file={DATA / 'gsm8k/train.jsonl'}", f"task.eval_file={DATA / 'gsm8k/test.jsonl'}"]
    code, out, _ = call("validate", "gsm8k", *files)
    assert code == 0 and "graded as right: 8,792 of 8,792" in out
    code, out, _ = call("validate", "math", f"task.train_file={DATA / 'math500.jsonl'}")
    assert code == 0 and "graded as right: 500 of 500" in out


@needs_data
@pytest.mark.parametrize("task", ["gsm8k", "math"])
def test_the_recipes_validate_on_local_files(home, call, task):
    root = Path(__file__).parent.parent
    shutil.copy(root / f"recipes/{task}/config.yaml", home / "config.yaml")
    if task == "gsm8k":
        for name in ("train.jsonl", "test.jsonl"):  # all of them: test_gsm8k_and_math_500_pass_from_the_command_line
            lines = (DATA / "gsm8k" / name).read_text(encoding="utf-8").split("\n")
            (home / name).write_text("\n".join(lines[:1000]) + "\n", encoding="utf-8")
        files = ["task.train_file=train.jsonl", "task.eval_file=test.jsonl"]
    else:
        files = [f"task.train_file={DATA / 'math500.jsonl'}", "task.num_train=100", "task.num_eval=100"]
    code, out, err = call("validate", "config.yaml", *files)
    assert code == 0 and "Known answers that are graded as right:" in out, err


def test_counts_as_json_and_a_model_that_does_not_exist(home, call):
    code, out, _ = call("validate", "sums.yaml", "--json")
    assert code == 0 and json.loads(out) == {
        "task": "arithmetic",
        "questions": 48,
        "duplicates_left_out": 0,
        "known": 48,
        "trains_on": 6,
        "holds_out": 4,
        "failed": 0,
        "wrong_accepted": 0,
        "worked_solutions": 0,
    }
    code, _, err = call("validate", "sums.yaml", "model=/no/such", "engine.sampler=transformers")
    assert code == 2 and "model /no/such does not exist" in err
