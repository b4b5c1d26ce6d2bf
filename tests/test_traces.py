"""Debates for others: exported for other programs, and pushed as a data set to a stand-in of the hub."""

import json
from collections import Counter
from pathlib import Path

import pytest
from helpers import boxed, debate, run, settings
from hub_stand_in import WRITER, Hub
from tiny import slow

from maft import files
from maft.answers import Mathematics
from maft.config import VoteConfig
from maft.method import contrast
from maft.method import vote as voting
from maft.records import Debate, Example, Vote
from maft.sharing import dataset, traces
from maft.sharing.export import TARGETS

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with Hub() as stand_in:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", stand_in.url)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no_token"))
        monkeypatch.setenv("HF_TOKEN", WRITER)
        yield stand_in


@pytest.fixture
def published(finished_run, hub, call, tmp_path) -> Path:
    """The data set as the hub has it, in a folder."""
    code, out, err = call("push", str(finished_run.path), "me/sums", "--debates", "--license", "mit")
    assert (code, err) == (0, "") and f"{hub.url}/datasets/me/sums" in out
    home = tmp_path / "sums"
    for path, data in hub.files("datasets/me/sums").items():
        (home / path).parent.mkdir(parents=True, exist_ok=True)
        (home / path).write_bytes(data)
    return home


def load(home: Path, view: str, split: str):
    import datasets

    datasets.disable_progress_bars()
    return datasets.load_dataset(str(home), view, split=split, cache_dir=str(home.parent / "cache"))


@pytest.mark.slow
def test_a_data_set_is_loaded_back_view_by_view(published, finished_run):
    train = {n: files.read_records(finished_run.debates(n), Debate) for n in (1, 2)}
    debates = load(published, "debates", "train")
    assert len(debates) == 20 and Counter(debates["society"]) == {0: 10, 1: 10}
    votes = {v.problem_id: v for v in files.read_records(finished_run.votes(2), Vote)}
    for row in debates.filter(lambda row: row["society"] == 1):
        assert row["label"] == votes[row["problem_id"]].label and row["label_correct"] in (True, False)
        assert row["agreement"] == votes[row["problem_id"]].agreement
    turns = load(published, "turns", "train")
    assert len(turns) == sum(len(debate.turns) for of in train.values() for debate in of)
    assert turns[0]["reply"] == train[1][0].turns[0].call.reply.text and turns[0]["agent"] == "generator_0"
    assert len(load(published, "turns", "test")) == 3 * 6 * 6
    messages = load(published, "messages", "train")
    assert [message["role"] for message in messages[0]["messages"]] == ["user", "assistant"] * 2
    assert len(load(published, "preferences", "train")) > 0 and len(load(published, "unpaired", "train")) > 0


def test_a_debate_held_in_a_turn_says_in_which(tmp_path):
    folder = run(settings(tmp_path, "num_iterations=2", "train.online_questions=4"))
    rows = [traces.debate_row(trace) for trace in traces.of_run(folder, "train")]
    assert [row["turn"] for row in rows] == 2 * [1, 1, 1, 1, 2, 2, 2, 2, 3, 3]
    assert [row["society"] for row in rows] == [0] * 10 + [1] * 10
    assert {trace.turn for trace in traces.of_run(folder, "held_out")} == {None}


@pytest.mark.slow
def test_the_card_tells_license_views_and_how_many_labels_are_right(published, finished_run):
    from huggingface_hub import DatasetCard

    card = DatasetCard((published / "README.md").read_text())
    assert card.data.license == "mit" and "multiagent-debate" in card.data.tags
    views = {one["config_name"]: [file["split"] for file in one["data_files"]] for one in card.data.configs}
    assert views["turns"] == ["train", "test"] and views["preferences"] == ["train"]
    assert all((published / file["path"]).exists() for one in card.data.configs for file in one["data_files"])
    assert card.text.count(" of 10 | ") == 2 and "| 2 | maft |" in card.text
    gold = {line["gold"] for line in map(json.loads, finished_run.problems("eval").read_text().splitlines())}
    assert gold and "gold" not in load(published, "debates", "test").column_names


def test_what_is_left_of_an_earlier_push_is_replaced_and_a_strange_data_set_is_not(hub, call, finished_run):
    path = str(finished_run.path)
    assert call("push", path, "me/sums", "--debates")[0] == 0
    whole = hub.files("datasets/me/sums")["turns/train.parquet"]
    assert call("push", path, "me/sums", "--debates", "--iteration", "1")[0] == 0
    assert len(hub.files("datasets/me/sums")["turns/train.parquet"]) < len(whole)
    hub.put("datasets/me/other", {"README.md": b"mine"})
    code, _, err = call("push", path, "me/other", "--debates")
    assert code == 2 and "did not send" in err and hub.files("datasets/me/other") == {"README.md": b"mine"}
    code, _, err = call("push", path, "me/sums", "--debates", "--agent", "critic_1")
    assert code == 2 and "--debates sends no agents" in err


def test_a_dry_run_sends_nothing_and_prints_json_if_asked(hub, call, finished_run):
    code, out, _ = call("push", str(finished_run.path), "me/sums", "--debates", "--dry-run", "--json")
    planned = json.loads(out)
    assert code == 0 and planned["kind"] == "dataset" and "debates/test.parquet" in planned["files"]
    assert "license: unknown" in planned["card"] and not hub.repos


def test_tables_are_written_in_batches_of_one_schema(tmp_path):
    import pyarrow.parquet as pq

    table, path = dataset._Table({"name": "string", "right": "bool"}, size=2), tmp_path / "v" / "a.parquet"
    for number in range(5):
        table.add([{"name": str(number), "right": None if number < 3 else True}], path)
    table.close()
    assert pq.read_metadata(path).num_row_groups == 3 and table.total == 5
    assert pq.read_table(path)["right"].to_pylist() == [None, None, None, True, True]


def contrasts(shape, *rounds):
    spoken = debate(*rounds)
    return contrast.of_society(spoken, voting.vote(spoken, VoteConfig(), 0, Mathematics()), shape)


def test_preferences_are_of_one_prompt_and_follow_the_vote():
    made = contrasts("pairs", ["1", "2", "1"], ["1", "1", "1"])
    assert [(e.agent, e.messages[-1].content, e.rejected) for e in made] == [("critic_1", boxed("1"), boxed("2"))]
    judged = contrasts("judged", ["1", "2", "1"], ["1", "1", None])
    assert [(e.agent, e.wanted) for e in judged] == [("generators", True), ("critic_0", True), ("critic_1", True)]
    assert contrasts("pairs", ["1", "2", "3"], [None, None, None]) == []


@pytest.mark.parametrize("to", TARGETS)
def test_every_format_is_written_and_never_over_something(finished_run, tmp_path, call, to):
    words = ("export", str(finished_run.path), "--to", to, "--output", str(tmp_path / "out"))
    code, out, err = call(*words, "--json")
    assert code == 0, err
    rows = json.loads(out)["rows"]
    assert sum(rows.values()) > 0 and all(rows.values())
    assert call(*words)[0] == 2


def test_training_sets_are_the_examples_of_each_agent(finished_run, tmp_path, call):
    home = tmp_path / "sets"
    words = ("export", str(finished_run.path), "--to", "messages", "--iteration", "1")
    assert call(*words, "--output", str(home))[0] == 0
    for agent in ("generator_0", "critic_2"):
        examples = files.read_records(finished_run.examples(1, agent), Example)
        lines = [json.loads(line)["messages"] for line in (home / f"{agent}.jsonl").read_text().splitlines()]
        assert lines == [[message.model_dump() for message in example.messages] for example in examples]
    code, _, err = call(*words[:-1], "7", "--output", str(tmp_path / "none"))
    assert code == 2 and "no examples of iteration 7" in err


def test_a_log_for_inspect_has_a_sample_for_each_question_with_its_verdict(finished_run, tmp_path, call):
    path = tmp_path / "log.json"
    assert call("export", str(finished_run.path), "--to", "inspect", "--output", str(path))[0] == 0
    log = json.loads(path.read_text())
    (accuracy,) = [score["metrics"]["accuracy"]["value"] for score in log["results"]["scores"]]
    assert len(log["samples"]) == 6 and log["version"] == 2 and len(log["samples"][0]["messages"]) == 7
    summary = {row["method"]: row["accuracy"] for row in files.read_json(finished_run.results(2))}
    assert accuracy == pytest.approx(summary["maft"])


def test_replies_to_training_questions_are_right_if_what_stands_for_their_class_is(finished_run, monkeypatch):
    monkeypatch.setattr(Mathematics, "medoid", lambda equality, answers: "no answer to any question")
    verdicts = [right for trace in traces.of_run(finished_run, "train") for right in trace.right.values()]
    assert verdicts and not any(verdicts)


@pytest.mark.parametrize(
    ("to", "what"), [("trl-unpaired", "votes"), ("messages", "examples"), ("inspect", "evaluated")]
)
def test_an_iteration_that_the_run_does_not_have_is_named(finished_run, tmp_path, call, to, what):
    words = ("export", str(finished_run.path), "--to", to, "--output", str(tmp_path / "out"), "--iteration", "9")
    code, _, err = call(*words)
    assert code == 2 and what in err and "iteration" in err and "9" in err


def test_a_run_without_debates_has_nothing_to_give(tmp_path, call):
    folder = run(settings(tmp_path, "debate.num_rounds=1", "debate.num_agents=1"))
    code, _, err = call("export", str(folder.path), "--to", "trl-preference", "--output", str(tmp_path / "x"))
    assert code == 2 and "others do not" in err


@slow
def test_trl_learns_from_what_is_exported(finished_run, tmp_path, tiny, call):
    import datasets
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer

    for to, kind, settings_ in (("trl-preference", DPOTrainer, DPOConfig), ("trl-unpaired", KTOTrainer, KTOConfig)):
        path = tmp_path / f"{to}.jsonl"
        assert call("export", str(finished_run.path), "--to", to, "--output", str(path))[0] == 0
        rows = datasets.load_dataset("json", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
        how = settings_(
            output_dir=str(tmp_path / to),
            max_steps=1,
            per_device_train_batch_size=2,
            report_to=[],
            use_cpu=True,
            bf16=False,
        )
        model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny), AutoTokenizer.from_pretrained(tiny)
        trainer = kind(model=model, args=how, train_dataset=rows.select(range(8)), processing_class=tokenizer)
        assert trainer.train().training_loss > 0
