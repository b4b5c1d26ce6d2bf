"""Single stages on the command line: the same run folder, the same files as a whole run."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from helpers import dialogues, run, run_files, settings
from test_formats import RELEASED

from maft import config as config_
from maft import files
from maft.cli.stage import spread
from maft.records import Debate, Example, Problem
from maft.runs import societies

TWO = "num_iterations=2"


def test_the_stages_by_hand_give_the_files_of_a_whole_run(home, call, no_page):
    more = (TWO, "task.shape=a+b*c", "task.train_sets=2")
    assert call("run", "sums.yaml", *more, "name=whole")[0] == 0
    for verb in ("eval", "debate", "curate", "finetune", "eval", "debate", "curate", "finetune", "eval"):
        code, _, err = call(verb, "sums.yaml", *more, "name=hand")
        assert code == 0, err
    by_hand, whole = (run_files(home / "runs" / name) for name in ("hand", "whole"))
    assert json.loads(by_hand.pop("config.json"))["name"] == "hand" and whole.pop("config.json")
    assert by_hand == whole


def test_a_stage_done_twice_changes_nothing_and_a_run_goes_on_from_it(home, call, no_page):
    for verb in ("debate", "curate", "finetune"):
        assert call(verb, "sums.yaml")[0] == 0
        before = run_files(home / "runs/sums")
        assert call(verb, "sums.yaml", "--iteration", "1")[0] == 0
        assert run_files(home / "runs/sums") == before
    assert call("run", "runs/sums")[0] == 0
    assert call("run", "sums.yaml", "name=whole")[0] == 0
    ours, whole = (run_files(home / "runs" / name) for name in ("sums", "whole"))
    assert ours.pop("config.json") != whole.pop("config.json") and ours == whole


def test_a_run_folder_stands_for_its_config_wherever_it_is(home, call, no_page):
    assert call("debate", "sums.yaml")[0] == 0
    shutil.move("runs/sums", "moved")
    assert call("curate", "moved")[0] == 0
    assert (home / "moved/iter_01/votes.jsonl").exists() and not (home / "runs/sums").exists()


@pytest.mark.parametrize("verb", ["debate", "curate", "finetune", "eval"])
def test_a_dry_run_makes_nothing_and_says_what_is_owed(home, call, verb):
    before = set(home.rglob("*"))
    code, out, err = call(verb, "sums.yaml", "--dry-run", "seed=3")
    assert code == 0 and set(home.rglob("*")) == before
    assert config_.parse(yaml.safe_load(out)).seed == 3
    assert "Next: preparing the questions." in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["curate", "sums.yaml"], "6 of 6 questions are not debated yet. Run `maft debate` first."),
        (["finetune", "sums.yaml"], "iteration 1 has no examples yet. Run `maft curate` first."),
        (["eval", "sums.yaml", "--iteration", "1"], "the agents of iteration 1 are not finetuned yet"),
        (["debate", "sums.yaml", TWO, "--iteration", "2"], "iteration 2 starts from the agents of iteration 1"),
        (["debate", "sums.yaml", "--iteration", "2"], "--iteration must be 1 to num_iterations = 1, got 2."),
        (
            ["debate", "sums.yaml", "--generators", "a", "b", "debate.num_agents=3"],
            "has 2 entries, but debate.num_agents is 3",
        ),
        (["debate", "sums.yaml", "--generators", "a", "--critics", "b", "c"], "society.critics has 2 entries"),
        (["debate", "sums.yaml", "--generators"], "requires an argument"),
        (["debate", "sums.yaml", "--released", "none.json"], "none.json: No such file"),
        (["export", "runs/sums", "--to", "xml", "--output", "x"], "'xml' is not one of"),
    ],
)
def test_a_stage_out_of_turn_is_a_clean_error(home, call, arguments, said):
    code, out, err = call(*arguments)
    assert code == 2 and out == "" and said in err and "Traceback" not in err


def test_training_sets_in_other_formats_hold_the_same_dialogues(home, call):
    call("debate", "sums.yaml", "task.high=1", "task.num_train=4", "task.num_eval=2")
    code, out, err = call("curate", "runs/sums")
    assert code == 0 and "generator_0" in out and "critic_2" in out, err
    examples = home / "runs/sums/iter_01/examples"
    native = [example.messages for example in files.read_records(examples / "critic_0.jsonl", Example)]
    for format, suffix in (("openai", "jsonl"), ("sharegpt", "json"), ("messages", "jsonl")):
        assert call("export", "runs/sums", "--to", format, "--output", format)[0] == 0
        assert dialogues((home / format / f"critic_0.{suffix}").read_text(), format) == native


def test_given_weights_speak_in_their_places(tmp_path):
    adapter, model, hosted = (tmp_path / name for name in ("adapter", "model", "hosted"))
    for folder, file, text in (
        (adapter, "adapter_config.json", "{}"),
        (model, "config.json", "{}"),
        (hosted, "hosted.json", '{"model": "ft:small:us::1"}'),
    ):
        folder.mkdir()
        (folder / file).write_text(text)
    config = settings(
        tmp_path, debate={"num_agents": 4}, society={"generators": [str(adapter), str(model), str(hosted), "org/name"]}
    )
    society = societies.untrained(config)
    assert [(agent.model, agent.adapter) for agent in society.generators] == [
        (config.model, str(adapter)),
        (str(model), None),
        ("ft:small:us::1", None),
        ("org/name", None),
    ]
    assert {agent.model for agent in society.critics} == {config.model}


def test_finetuned_agents_of_one_run_debate_in_another(home, call, no_page):
    assert call("run", "sums.yaml")[0] == 0
    agents = home / "runs/sums/iter_01/agents"
    weights = {role: [str(agents / f"{role}_{n}") for n in range(2)] for role in ("generator", "critic")}
    arguments = ["--generators", *weights["generator"], "--critics", *weights["critic"], "debate.num_rounds=3"]
    code, _, err = call("debate", "sums.yaml", "name=other", *arguments)
    assert code == 0, err
    debates = files.read_records(home / "runs/other/iter_01/debates.jsonl", Debate)
    assert {len(debate.turns) for debate in debates} == {6}
    saved = config_.load(home / "runs/other/config.json")
    assert saved.society.generators == tuple(weights["generator"]) and saved.debate.num_agents == 2


def test_training_starts_from_the_given_weights(tmp_path):
    given = tmp_path / "given"
    given.mkdir()
    config = settings(tmp_path, "num_iterations=2", "train.start_from=base", society={"generators": [str(given)] * 3})
    folder = run(config)
    for iteration in (1, 2):
        for agent, start in (("generator_0", "given"), ("critic_0", None)):
            assert files.read_json(folder.agent(iteration, agent) / "adapter.json")["init_adapter"] == start


def test_debates_of_the_released_code_are_carried_on(home, call, no_page):
    Path("math_2_2.json").write_text(json.dumps(RELEASED))
    rest = ["name=theirs", "debate.num_agents=2", "task.operators='*'"]
    code, out, err = call("debate", "sums.yaml", "--released", "math_2_2.json", *rest)
    assert code == 0, err
    assert "2 debates" in out
    folder = home / "runs/theirs"
    train = files.read_records(folder / "problems/train.jsonl", Problem)
    assert [problem.question for problem in train] == list(RELEASED)
    held = (folder / "iter_01/debates.jsonl").read_bytes()
    code, _, err = call("run", "sums.yaml", *rest)
    assert code == 0, err
    assert (folder / "iter_01/debates.jsonl").read_bytes() == held
    examples = files.read_records(folder / "iter_01/examples/critic_0.jsonl", Example)
    assert [example.messages[-1].content for example in examples] == ["\\boxed{4}"]
    code, _, err = call("debate", "sums.yaml", "--released", "math_2_2.json", *rest)
    assert code == 2 and "already has questions" in err


def test_released_questions_that_are_held_out_too_are_refused(home, call):
    Path("r.json").write_text(json.dumps(RELEASED))
    rest = ["debate.num_agents=2", "task.num_train=null", "task.num_eval=15", "task.operators=+"]
    code, _, err = call("debate", "sums.yaml", "--released", "r.json", *rest)
    assert code == 2 and "held-out questions are training questions too" in err


def test_a_list_ends_where_an_option_or_a_setting_begins():
    lists = {"--generators", "--critics"}
    assert spread(["c.yaml", "--generators", "A", "B", "--critics", "C", "seed=1", "--quiet"], lists) == [
        *("c.yaml", "--generators", "A", "--generators", "B", "--critics", "C", "seed=1", "--quiet")
    ]
    assert spread(["--generators", "--quiet"], lists) == ["--generators", "--quiet"]
