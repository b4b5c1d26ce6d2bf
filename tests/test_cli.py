"""The command line: exit codes, what goes where, and no traceback for a mistake of the user's."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from helpers import ENVIRONMENT, ROOT, SlowMaft, maft

from maft import config as config_
from maft import engines, files
from maft.cli import main
from maft.cli.main import VERBS
from maft.cli.main import maft as maft_command
from maft.errors import install_line
from maft.pipeline import run as pipeline


def test_a_run_prints_its_table_on_stdout_and_everything_else_on_stderr(home, call):
    done = maft("run", "sums.yaml", cwd=home)
    assert done.returncode == 0, done.stderr
    assert "majority@3" in done.stdout and "maft" in done.stdout
    assert "debate" in done.stderr and "calls" in done.stderr and "|" not in done.stdout
    lines = done.stderr.splitlines()
    assert [line.split(":")[0] for line in lines] == ["untrained"] * 2 + ["iteration 1"] * 4 and "\r" not in done.stderr
    assert lines[1].startswith("untrained: base ") and lines[-1].startswith("iteration 1: maft_single ")
    assert (home / "runs/sums/report.html").exists()
    assert call("run", "sums.yaml")[:2] == (0, done.stdout)


def test_quiet_prints_nothing_but_the_result(home, call, no_page):
    code, out, err = call("run", "sums.yaml", "--quiet")
    assert code == 0 and "maft" in out and err == ""


def test_a_society_of_one_round_has_no_critics_to_train(home, call, no_page):
    code, _, err = call("run", "sums.yaml", "debate.num_rounds=1")
    assert code == 0, err
    agents = sorted(path.name for path in (home / "runs/sums/iter_01/agents").iterdir())
    assert agents == ["generator_0", "generator_1", "generator_2"]


def test_one_agent_is_enough(home, call, no_page):
    assert call("run", "sums.yaml", "debate.num_agents=1")[0] == 0


def test_a_dry_run_prints_the_settings_and_makes_nothing(home, call):
    before = set(home.rglob("*"))
    code, out, err = call("run", "sums.yaml", "--dry-run", "seed=5", "num_iterations=2")
    assert code == 0 and set(home.rglob("*")) == before
    assert yaml.safe_load(out)["seed"] == 5 and yaml.safe_load(out)["name"] == "sums"
    assert len(out.splitlines()) < 15 and config_.parse(yaml.safe_load(out)).num_iterations == 2
    assert "debate" not in yaml.safe_load(out) and "debate" in json.loads(
        call("run", "sums.yaml", "--dry-run", "--json")[1]
    )
    calls = (6 * 2 + 4 * 3) * 9
    assert f"{calls:,} calls, at most {calls * 512:,} generated tokens; 12 finetunings" in err


def test_what_a_dry_run_prints_can_be_run(home, call, no_page):
    for name, options in (("resolved.json", ["--json"]), ("changed.yaml", [])):
        Path(name).write_text(call("run", "sums.yaml", "--dry-run", *options)[1])
        assert call("run", name)[0] == 0
    assert call("run", "runs/sums/config.json")[0] == 0


MISTAKES = {
    "no such file": (["run", "none.yaml"], "No such file or directory. Give the path of a config file, see recipes/."),
    "a folder": (["run", "."], "Is a directory"),
    "no config": (["run"], "Missing argument 'CONFIG'"),
    "no such option": (["run", "sums.yaml", "--dryrun"], "No such option"),
    "unknown key": (["run", "sums.yaml", "sede=3"], "sede is not a setting. Did you mean seed?"),
    "not an override": (["run", "sums.yaml", "seed"], "must look like section.key=value, got 'seed'"),
    "wrong type": (["run", "sums.yaml", "debate.num_agents=x"], "debate.num_agents must be a whole number"),
    "unknown prompt": (["run", "sums.yaml", "prompts.x=y"], "prompts.x does not exist"),
    "no operator": (["run", "sums.yaml", "task.operators=/"], "allowed are one or more of + - *"),
    "too many questions": (["run", "sums.yaml", "task.num_train=900"], "there are only 48 questions. Ask for fewer."),
    "no questions": (["run", "sums.yaml", "task={name: jsonl}"], "task.train_file is missing"),
    "no such questions": (["run", "sums.yaml", "task={name: jsonl, train_file: q.jsonl}"], "q.jsonl: No such file"),
    "bad questions": (["run", "sums.yaml", "task={name: jsonl, train_file: sums.yaml}"], "line 2 is not JSON"),
    "a file for a folder": (["run", "sums.yaml", "runs_dir=sums.yaml"], "there is a file in its place"),
}


@pytest.mark.parametrize(("arguments", "said"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_exit_code_2_and_a_few_clean_words(home, call, arguments, said):
    code, out, err = call(*arguments)
    assert (code, out) == (2, "")
    assert said in err and "Traceback" not in err and len(err.splitlines()) <= 6


def test_a_mistake_in_a_real_process_has_no_traceback_either(home):
    done = maft("run", "sums.yaml", "sede=3", cwd=home)
    assert done.returncode == 2 and done.stderr.startswith("maft: ") and "Traceback" not in done.stderr


@pytest.mark.parametrize("verb", ["run", "debate", "compare"])
@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["model=/no/such", "engine.sampler=transformers"], "model /no/such does not exist"),
        (["society.critics=[x, x, {model: /no/such}]", "engine.sampler=auto", "model=a/b"], "does not exist"),
        (["task={name: dataset, train_file: gone.jsonl}"], "gone.jsonl: No such file"),
    ],
)
def test_a_dry_run_checks_models_and_files(home, call, verb, overrides, said):
    methods = ["--methods", "cooperative"] if verb == "compare" else []
    code, _, err = call(verb, "sums.yaml", "--dry-run", *overrides, *methods)
    assert code == 2 and said in err and "Traceback" not in err and not (home / "runs").exists()


def test_a_dry_run_says_that_a_run_has_other_settings(home, call, no_page):
    assert call("run", "sums.yaml")[0] == 0
    assert call("run", "sums.yaml", "--dry-run", "num_iterations=2")[0] == 0
    code, _, err = call("run", "sums.yaml", "--dry-run", "seed=4")
    assert code == 2 and "seed: 0 there, 4 asked for" in err


def test_a_plan_checks_the_model_and_counts_the_questions_itself(home, call):
    assert call("plan", "sums.yaml", "model=/no/such", "engine.sampler=transformers")[0] == 2
    code, _, err = call("run", "sums.yaml", "--dry-run", "task.num_train=null", "task.num_eval=null")
    assert code == 0 and "1 iteration of 24 debates" in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["rnu"], "maft run"),
        (["evaluate"], "maft eval"),
        (["zzzz"], "demo, init, doctor"),
    ],
)
def test_a_mistyped_verb_is_answered_with_the_nearest_or_all(call, words, said):
    code, out, err = call(*words)
    assert (code, out) == (2, "") and f"No such command '{words[0]}'" in err and said in err


def test_help_is_asked_for_in_four_ways(call):
    for words in (["-h"], ["help"], ["--help"]):
        assert call(*words)[0] == 0 and "Usage: maft" in call(*words)[1]
    assert call("help", "run")[1] == call("run", "-h")[1] == call("run", "--help")[1]


def test_results_are_printed_as_json_by_every_verb_that_prints_some(home, call, no_page):
    def result(*words: str) -> object:
        code, out, err = call(*words, "--json", "--quiet")
        assert code == 0, err
        return json.loads(out)

    assert result("debate", "sums.yaml")["debates"] == 6
    assert set(result("curate", "sums.yaml")["examples"]) == {
        f"{r}_{n}" for r in ("generator", "critic") for n in range(3)
    }
    assert len(result("finetune", "sums.yaml")["agents"]) == 6
    assert {row["iteration"] for row in result("eval", "sums.yaml")} == {1}
    whole = result("run", "sums.yaml")
    assert whole["run"] == "runs/sums" and whole["spent_usd"] is None and len(whole["results"]) == 6


@pytest.mark.slow
def test_diversity_is_printed_as_json(home, call, no_page):
    assert call("run", "sums.yaml", "--quiet")[0] == 0
    code, out, err = call("diversity", "runs/sums", "--questions", "0", "--json", "--quiet")
    assert code == 0, err
    assert [one["iteration"] for one in json.loads(out)] == [0, 1]


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb not in ("chat", "serve", "schema")])
def test_every_verb_that_prints_results_takes_json(verb):
    command = maft_command.get_command(None, verb)
    assert any("--json" in option.opts for option in command.params)


def test_a_mistake_can_be_mended_under_the_same_name(home, call, no_page):
    assert call("run", "sums.yaml", "task.num_train=900")[0] == 2
    assert call("run", "sums.yaml")[0] == 0
    code, _, err = call("run", "sums.yaml", "seed=4")
    assert code == 2 and "seed: 0 there, 4 asked for" in err and "another name=..." in err


def test_a_stage_that_fails_is_exit_code_1(home, call, monkeypatch):
    from maft.records import Reply
    from maft.samplers import Scripted

    broken = Scripted(lambda _: Reply(text="", finish_reason="error", error="out of memory"))
    monkeypatch.setattr(engines, "make_sampler", lambda _: broken)
    code, out, err = call("run", "sums.yaml")
    assert (code, out) == (1, "")
    assert "4 of 4 debates failed" in err and "out of memory" in err and "same command repeats them" in err
    assert "Traceback" not in err


def test_a_missing_extra_is_answered_with_its_install_line(home, call, monkeypatch):

    monkeypatch.setattr(engines, "find_spec", lambda _: None)
    for engine, extra in (("openvino", "openvino"), ("transformers", "hf"), ("auto", "hf")):
        code, _, err = call("run", "sums.yaml", f"engine.sampler={engine}", f"name={engine}")
        assert code == 2 and install_line(extra) in err


@pytest.mark.parametrize(
    ("source", "line"),
    [
        (None, 'pip install "maft[hf]"'),
        ({"url": "file:///a%20b/maft", "dir_info": {"editable": True}}, 'pip install -e "/a b/maft[hf]"'),
        ({"url": "file:///x/maft.whl", "archive_info": {}}, 'pip install "maft[hf] @ file:///x/maft.whl"'),
        (
            {"url": "https://h/maft", "vcs_info": {"vcs": "git", "commit_id": "12ab"}},
            'pip install "maft[hf] @ git+https://h/maft@12ab"',
        ),
    ],
    ids=["index", "checkout", "wheel", "git"],
)
def test_an_extra_is_installed_from_where_maft_came_from(monkeypatch, source, line):
    class Installed:
        def read_text(self, name: str) -> str | None:
            return None if source is None else json.dumps(source)

    monkeypatch.setattr("importlib.metadata.distribution", lambda _: Installed())
    assert install_line("hf") == line


def test_the_demo_runs_in_any_folder_and_says_that_no_model_was_run(home, call):
    code, out, _ = call("run", "recipes/demo/config.yaml")
    assert code == 0 and out.splitlines()[-1] == "Report: runs/demo/report.html"
    page = (home / "runs/demo/report.html").read_text()
    assert "Multiagent finetuning of scripted replies (no model)" in page
    for text in (out, page):
        assert "No model was run" in text and "Nothing was trained" in text


def test_python_dash_m_is_the_same_command(home):
    done = subprocess.run([sys.executable, "-m", "maft", "--version"], capture_output=True, text=True, env=ENVIRONMENT)
    assert (done.returncode, done.stdout.split()[0]) == (0, "maft,")


def test_a_bug_keeps_its_traceback(home, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["maft", "run", "sums.yaml"])
    monkeypatch.setattr(pipeline, "run", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EIO, errno.EMFILE])
def test_a_disk_that_takes_no_more_is_said_and_the_run_goes_on_later(home, call, no_page, monkeypatch, number):
    append = files.append_records

    def full(path: Path, records: object, *, durable: bool = True) -> None:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(files, "append_records", full)
    code, _, err = call("run", "sums.yaml")
    assert code == 1 and "Traceback" not in err
    assert f"runs/sums/iter_00/eval/debates.jsonl: {os.strerror(number)}" in err and "same command again" in err
    monkeypatch.setattr(files, "append_records", append)
    assert call("run", "sums.yaml")[0] == 0


@pytest.mark.slow
def test_ctrl_c_is_exit_code_130_a_kind_word_and_no_loss(tmp_path):
    slow = SlowMaft(tmp_path / "slow")
    process = slow.start(seconds=0.5)
    deadline = time.monotonic() + 30
    while len(slow.asked()) < 5 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err.splitlines()[-1] == "Interrupted. Finished work is kept; the same command resumes."
    assert "Traceback" not in err
    asked = slow.asked()
    assert slow.finish()[0] == 0
    assert not set(asked[:-1]) & set(slow.asked()[len(asked) :]), "only what was in flight is asked again"


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_run_that_is_told_to_stop_stops_as_with_ctrl_c(tmp_path, number, code):
    slow = SlowMaft(tmp_path / "slow")
    process = slow.start(seconds=0.1)
    deadline = time.monotonic() + 30
    while len(slow.asked()) < 5 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == code
    assert "Traceback" not in err and f"Stopped by {number.name}" in err.splitlines()[-1]
    asked = slow.asked()
    assert slow.finish()[0] == 0
    assert not set(asked[:-1]) & set(slow.asked()[len(asked) :])


@pytest.mark.parametrize("arguments", [["--help"], *([verb, "--help"] for verb in VERBS)], ids=" ".join)
def test_help_says_what_it_does_and_gives_an_example(call, arguments):
    code, out, err = call(*arguments)
    assert code == 0 and err == ""
    assert "Example" in out and "maft " + (arguments[0] if len(arguments) > 1 else "run") in out


def test_help_names_every_verb(call):
    out = call("--help")[1]
    assert all(verb in out and sentence.split(".")[0][:30] in out for verb, sentence in VERBS.items())


def test_the_version_is_printed(call):
    from maft import __version__

    assert call("--version")[:2] == (0, f"maft, version {__version__}\n")


def test_without_a_verb_the_help_is_shown(call):
    code, _, err = call()
    assert code == 2 and "Usage: maft" in err


def test_the_examples_in_the_help_name_configs_that_exist(call):
    for verb in VERBS:
        for word in call(verb, "--help")[1].split():
            if word.startswith("recipes/"):
                assert (ROOT / word).exists()


def test_report_prints_the_rows_other_programs_read(finished_run, call):
    code, out, _ = call("report", str(finished_run.path), "--json")
    rows = json.loads(out)
    assert code == 0 and len(rows) == 9
    names = ["iteration", "method", "accuracy", "ci_low", "ci_high", "n", "unparsed", "calls", "tokens"]
    assert all(list(row) == names for row in rows)
    assert all(0 <= row["ci_low"] <= row["accuracy"] <= row["ci_high"] <= 1 for row in rows)


@pytest.mark.parametrize("verb", ["report", "show"])
def test_a_folder_that_is_no_run_is_a_mistake(home, call, verb):
    code, out, err = call(verb, str(home), *(["7*8"] if verb == "show" else []))
    assert (code, out) == (2, "") and "Traceback" not in err


def test_a_comparison_is_no_run(home, call):
    (home / "compared").mkdir()
    (home / "compared/compare.json").write_text("{}")
    code, out, err = call("replay", "compared")
    assert (code, out) == (2, "") and "compared/seed_N/METHOD" in err


def test_diversity_needs_weights_before_a_model_is_loaded(finished_run, call):
    code, out, err = call("diversity", str(finished_run.path))
    assert (code, out) == (2, "") and "holds no weights" in err and "--questions 0" in err


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_a_read_only_run_still_prints_its_table(finished_run, call, monkeypatch, number):
    def refuse(path: Path, text: str) -> None:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(files, "write_text", refuse)
    code, out, err = call("report", str(finished_run.path))
    assert code == 0 and "majority@3" in out and "Report:" not in out
    assert f"Not written: {finished_run.page}: {os.strerror(number)}." in err


def test_what_is_gone_is_said_in_a_line(home, call, no_page):
    assert call("run", "sums.yaml")[0] == 0
    (home / "runs/sums/problems/train.jsonl").unlink()
    for words in (["run", "sums.yaml"], ["report", "runs/sums"]):
        code, _, err = call(*words)
        assert (
            code in (1, 2)
            and re.search(r"problems/train.jsonl(: No such file| is missing)", err)
            and "Traceback" not in err
        )


def test_a_full_disk_is_said_whoever_says_it(home, call, monkeypatch):
    class SafetensorError(Exception):
        pass

    def full(*_: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(pipeline, "train", full)
    code, _, err = call("run", "sums.yaml")
    assert code == 1 and "No space left on device" in err and "Traceback" not in err


@pytest.mark.slow
def test_a_reader_that_leaves_is_no_error(home, call, no_page):
    assert call("run", "sums.yaml")[0] == 0
    start = [sys.executable, "-c", "from maft.cli import main; main()", "run", "sums.yaml", "--dry-run", "--json"]
    with subprocess.Popen(start, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        complaints = process.stderr.read()
    assert "Traceback" not in complaints and process.returncode != 0
