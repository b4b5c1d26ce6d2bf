"""Settings: what is refused and in which words, what is kept, and what makes two runs the same."""

import json
from pathlib import Path

import pytest
from helpers import settings

from maft import config as config_
from maft.config import RunConfig, differences, digest, load, parse, resolved
from maft.errors import ConfigError
from maft.records import SamplingParams

MINIMAL = {"task": {"name": "arithmetic"}}


def refusal(*overrides: str, **tree: object) -> str:
    """Return the message with which the settings are refused."""
    with pytest.raises(ConfigError) as caught:
        parse(MINIMAL | tree, overrides)
    return str(caught.value)


@pytest.mark.parametrize(
    ("override", "suggestion"),
    [
        ("sede=1", "seed"),
        ("batch_size=3", "train.batch_size"),
        ("debate.num_agent=3", "debate.num_agents"),
        ("debates={}", "debate"),
        ("task.nam=arithmetic", "task.name"),
        ("train.lora.rnk=3", "train.lora.rank"),
        ("sampling.train.generator.temprature=1", "sampling.train.generator.temperature"),
        ("sampling.eval.critic.topp=1", "sampling.eval.critic.top_p"),
        ("max_new_tokens=4", "sampling.train.generator.max_new_tokens"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_one(override, suggestion):
    assert f"{override.split('=')[0]} is not a setting. Did you mean {suggestion}?" in refusal(override)


def test_an_unknown_key_in_the_file_is_refused_as_well():
    assert "debate.num_agent is not a setting." in refusal(debate={"num_agent": 3})
    assert "numiterations is not a setting. Did you mean num_iterations?" in refusal(numiterations=3)


def test_an_unknown_key_that_is_near_to_none_is_refused_with_those_beside_it():
    assert "debate.wxyzwxyz is not a setting. debate has: protocol, num_agents, num_rounds," in refusal(
        "debate.wxyzwxyz=1"
    )
    assert "zzz is not a setting. The top level has: name, runs_dir, seed, model," in refusal("zzz=1")


@pytest.mark.parametrize(
    ("override", "allowed"),
    [
        ("debate.num_agents=0", "a whole number of at least 1, got 0"),
        ("debate.num_agents=2.5", "a whole number of at least 1, got 2.5"),
        ("debate.num_agents=many", "a whole number of at least 1, got 'many'"),
        ("debate.num_agents.x=3", "a whole number of at least 1, got {'x': 3}"),
        ("debate.num_rounds=0", "a whole number of at least 1, got 0"),
        ("num_iterations=0", "a whole number of at least 1, got 0"),
        ("engine.batch_size=0", "a whole number of at least 1, got 0"),
        ("train.batch_size=-3", "a whole number of at least 1, or a list of these, got -3"),
        ("task.num_train=0", "a whole number of at least 1, or null, got 0"),
        ("task.train_file=3", "a path, or null, got 3"),
        ("task.negative=perhaps", "true or false, got 'perhaps'"),
        ("vote.ties=coin", "one of random, abstain, got 'coin'"),
        ("vote.min_agreement=most", "one of majority, plurality, or a number of at least 0 and at most 1, got 'most'"),
        ("vote.min_agreement=1.5", "one of majority, plurality, or a number of at least 0 and at most 1, got 1.5"),
        ("curate.critic_mix=2", "a number of at least 0 and at most 1, got 2"),
        ("train.learning_rate=0", "a number above 0, or a list of these, got 0"),
        ("train.learning_rate=.nan", "a number above 0, or a list of these, got nan"),
        ("train.learning_rate=.inf", "a number above 0, or a list of these, got inf"),
        ("train.lora.target_modules=[q_proj, 3]", "text, or a list of these, got ['q_proj', 3]"),
        ("prompts=none", "a section of texts by name, got 'none'"),
        ("prompts.solve=3", "text, got 3"),
        ("debate=3", "a section with settings such as protocol, num_agents, num_rounds, got 3"),
        ("sampling.eval=3", "a section with settings such as generator, critic, summarizer, or null, got 3"),
        ("name=''", "text that is not empty, got ''"),
    ],
)
def test_a_wrong_value_is_refused_with_its_key_what_is_allowed_and_what_was_got(override, allowed):
    key = override.split("=")[0].replace(".x", "")
    message = refusal(override)
    assert f"  {key} must be {allowed}." in message
    assert len(message.splitlines()) == 2  # the source and one line for the key
    assert "pydantic" not in message and "literal[" not in message


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("task.name=aritmetic", "task.name: 'aritmetic' is not a task. Did you mean arithmetic? The tasks are: arith"),
        ("task.name=gsm8", "'gsm8' is not a task. Did you mean gsm8k?"),
        ("task.name=poetry", "task.name: 'poetry' is not a task. The tasks are: arithmetic, gsm8k, math,"),
        ("task.name=reasoning_gym", "is not a task. Did you mean reasoning_gym:<name>?"),
        ("task.name='reasoning_gym:'", "is not a task. Did you mean reasoning_gym:<name>?"),
        ("task.name='math:algebra'", "'math:algebra' is not a task. Did you mean math?"),
        ("task.levels=[3]", "  task.levels is not a setting of task arithmetic, which has: num_train, num_eval,"),
        ("task={name: gsm8k, options: {x: 1}}", "  task.options is not a setting of task gsm8k, which has: num_train,"),
        ("task.levels=3", "task.levels must be a list of a whole number, or text, got 3."),
        ("task.options=3", "task.options must be a section of settings by name, got 3."),
    ],
)
def test_a_task_has_a_known_name_and_no_settings_of_other_tasks(override, said):
    assert said in refusal(override)


@pytest.mark.parametrize("setting", ["temperature=-1", "temperature=.inf", "top_p=0", "top_p=2", "top_k=-1"])
def test_sampling_that_no_engine_can_do_is_refused(setting):
    name, _, value = setting.partition("=")
    message = refusal(f"sampling.train.critic.{setting}")
    assert f"sampling.train.critic.{name} must be a" in message and value.strip(".") in message


def test_no_tokens_cannot_be_sampled():
    message = refusal("sampling.eval.generator.max_new_tokens=0")
    assert "sampling.eval.generator.max_new_tokens must be a whole number of at least 1, got 0." in message


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("prompts.sovle='{question}'", "prompts.sovle does not exist; the prompts are: system, solve,"),
        ("prompts.solve='Say something.'", "prompts.solve must contain {question}; got 'Say something.'"),
    ],
)
def test_prompts_are_checked_before_anything_runs(override, said):
    assert said in refusal(override)


def test_everything_that_is_wrong_is_said_at_once():
    message = refusal("debate.num_agents=0", "sede=1", "vote.ties=coin")
    assert [line.split()[0] for line in message.splitlines()[1:]] == ["debate.num_agents", "vote.ties", "sede"]


def test_a_missing_task_is_named():
    with pytest.raises(ConfigError, match=r"task is missing\."):
        parse({})


@pytest.mark.parametrize("override", ["seed", "=3", ".seed=3", "debate..num_agents=3", "debate.=3"])
def test_an_override_must_look_like_one(override):
    assert "an override must look like section.key=value" in refusal(override)


def test_an_override_that_is_not_yaml_says_so():
    assert "the value of prompts.solve is not valid YAML: " in refusal("prompts.solve={question")


def test_an_override_through_a_value_is_refused():
    assert "seed.more cannot be set: seed is a value, not a section" in refusal("seed.more=3", seed=4)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("task: {name: [", "is not valid YAML"),
        ("- a\n- b\n", "must hold settings (key: value), got list"),
        ("", "must hold settings (key: value), got NoneType"),
        ("task: &a\n  name: *a\n", "is not valid YAML|or holds itself"),
        ("2020-01-01: 3\ntask: {name: arithmetic}\n", "2020-01-01 is not a setting"),
        ("task: !!python/object/apply:os.system [ls]\n", "is not valid YAML"),
    ],
)
def test_a_file_that_holds_no_settings_is_refused(tmp_path, text, said):
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert any(part in str(caught.value) for part in said.split("|")) and str(path) in str(caught.value)


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9)
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seed: 1\ntask: {name: arithmetic}\nseed: 2\n", "line 3, column 1: the key seed is given twice"),
        ('{"task": {"name": "arithmetic", "name": "math"}}', "the key name is given twice"),
        (BOMB, "holds more than 100,000 values"),
        ("task: " + "[" * 5000, "is deeper than 50 levels"),
        ("task: " + "[" * 60 + "]" * 60, "is deeper than 50 levels"),
        ("task: " + "{a: " * 5000, "is deeper than 50 levels"),
    ],
)
def test_keys_given_twice_and_bombs_are_refused_in_one_line(tmp_path, text, said):
    path = tmp_path / "bomb.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert said in str(caught.value) and str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_dates_times_and_on_are_text_and_whole_numbers_are_names():
    for name in ("2024-01-01", "on", "12:30", "007", "123"):
        assert parse(MINIMAL, [f"name={name}"]).name == name
    assert "name must be text" in refusal("name=1.10") and "got true" in refusal("name=true")
    assert parse(MINIMAL, ["train.critics=off"]).train.critics is False


@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../b", "a//b", "x" * 300, "a\x07b", "."])
def test_a_name_stays_inside_runs_dir(name):
    with pytest.raises(ConfigError, match="must be the name of a folder inside runs_dir"):
        parse(MINIMAL | {"name": name})
    assert parse(MINIMAL, ["name=sweep/a"]).name == "sweep/a"


@pytest.mark.parametrize(
    "override",
    ["debate.num_agents=true", "seed=false", "train.learning_rate=[1.0e-4, true]", "curate.critic_mix=true",
     "sampling.train.generator.top_k=true", "openai.timeout=true"],
)  # fmt: skip
def test_true_and_false_are_no_numbers(override):
    assert "true" in refusal(override).lower() or "false" in refusal(override)


def test_an_override_changes_one_key_of_the_evaluation_too():
    train = {"generator": {"temperature": 0.7, "max_new_tokens": 64}, "critic": {"max_new_tokens": 32}}
    made = parse(MINIMAL | {"sampling": {"train": train}}, ["sampling.eval.generator.temperature=0"]).sampling
    assert made.eval is not None and made.eval.critic == made.train.critic
    assert made.eval.generator == made.train.generator.model_copy(update={"temperature": 0})
    own = {"sampling": {"train": train, "eval": {"critic": {"top_k": 5}}}}
    assert parse(MINIMAL | own, ["sampling.eval.generator.top_k=2"]).sampling.eval.critic.max_new_tokens == 512


def test_what_is_wrong_is_said_of_the_place_it_comes_from(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("task: {name: arithmetic}\nsede: 3\n")
    with pytest.raises(ConfigError) as caught:
        load(path, ["debate.num_agents=0"])
    lines = str(caught.value).splitlines()
    assert lines[0] == "command line:" and "debate.num_agents" in lines[1]
    assert lines[2] == f"{path}:" and "sede" in lines[3]


def test_paths_in_a_file_are_beside_it_or_else_in_the_current_folder(tmp_path, monkeypatch, caplog):
    home, here = tmp_path / "home", tmp_path / "here"
    for folder in (home, here):
        folder.mkdir()
    (home / "q.jsonl").write_text("{}")
    (here / "q.jsonl").write_text("{}")
    (here / "held.jsonl").write_text("{}")
    (home / "base").mkdir()
    (home / "model").mkdir()
    (home / "c.yaml").write_text(
        "model: model\nsociety: {generators: [model, {model: model}, org/name]}\n"
        "task: {name: dataset, train_file: q.jsonl, eval_file: held.jsonl}\n"
    )
    monkeypatch.chdir(here)
    with caplog.at_level("INFO", "maft"):
        made = load(Path("../home/c.yaml"))
    assert made.task.train_file == home / "q.jsonl" and made.task.eval_file == Path("held.jsonl")
    assert made.model == str(home / "model") and made.debate.summarizer == "base"
    assert [getattr(entry, "model", entry) for entry in made.society.generators] == [made.model, made.model, "org/name"]
    assert "task.train_file: using ../home/q.jsonl, next to the config file." in caplog.messages
    assert load(Path("../home/c.yaml"), ["task.train_file=q.jsonl"]).task.train_file == Path("q.jsonl")
    monkeypatch.chdir(home)
    assert load(Path("c.yaml")).task.train_file == Path("q.jsonl")
    assert "task.train_file" not in differences(made, load(Path("c.yaml")))


def test_the_config_of_a_run_folder_is_that_run_wherever_it_was_copied_to(tmp_path):
    folder = tmp_path / "copied"
    folder.mkdir()
    (folder / "config.json").write_text(resolved(parse(MINIMAL, ["name=original", "runs_dir=/elsewhere"])))
    assert load(folder / "config.json").name == "original"
    (folder / "manifest.json").write_text("{}")
    for path in (folder, folder / "config.json"):
        assert (load(path).name, load(path).runs_dir) == ("copied", tmp_path)


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"nothing\.yaml: No such file or directory\. Give the path of a config"):
        load(tmp_path / "nothing.yaml")
    with pytest.raises(ConfigError, match="Is a directory"):
        load(tmp_path)
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="is not valid YAML"):
        load(tmp_path / "bytes.yaml")


def test_a_file_from_a_windows_editor_is_read(tmp_path):
    path = tmp_path / "windows.yaml"
    path.write_bytes("\ufefftask:\r\n  name: arithmetic\r\nseed: 5\r\n".encode())
    assert load(path).seed == 5


def test_a_run_is_called_after_its_file_or_the_folder_of_a_config(tmp_path, monkeypatch):
    home = tmp_path / "sums"
    home.mkdir()
    for name in ("config.yaml", "mine.yaml"):
        (home / name).write_text("task: {name: arithmetic}\n")
    assert load(home / "mine.yaml").name == "mine"
    assert load(home / "config.yaml").name == "sums"
    monkeypatch.chdir(home)
    assert load(Path("config.yaml")).name == "sums"
    assert load(Path("config.yaml"), ["name=other"]).name == "other"


def full() -> RunConfig:
    """Settings that differ from every default."""
    return parse(
        MINIMAL,
        [
            "name=full", "runs_dir=/elsewhere", "seed=3", "num_iterations=2",
            "task={name: math, train_file: some/file.jsonl, levels: [1, Level 2]}",
            "vote.min_agreement=0.7", "train.lora.target_modules=[q_proj, v_proj]", "train.learning_rate=1e-5",
            "sampling.eval.generator.temperature=0", "prompts.system='Be brief: {ok}'", "engine.max_sequences=8",
        ],
    )  # fmt: skip


@pytest.mark.parametrize("config", [parse(MINIMAL), full()])
def test_resolved_settings_are_read_back_as_they_were(tmp_path, config):
    path = tmp_path / "config.json"
    path.write_text(resolved(config))
    assert load(path) == config
    assert digest(load(path)) == digest(config)
    assert resolved(load(path)) == resolved(config)


def test_resolved_settings_hold_every_key():
    tree = json.loads(resolved(full()))

    def leaf(key: str) -> object:
        node = tree
        for part in key.split("."):
            node = node[part]
        return node

    assert [leaf(key) for key in config_.known_keys() if not key.startswith("prompts")]


def test_the_older_name_of_the_local_trainer_is_the_same_run_and_stays_in_files():
    old, new = (parse(MINIMAL | {"engine": {"trainer": name}}) for name in ("sft", "local"))
    assert old == new == parse(MINIMAL) and new.engine.trainer == "local"
    assert digest(new) == "5348ff26cdc61ee4" and json.loads(resolved(new))["engine"]["trainer"] == "sft"


def test_where_a_run_is_written_is_not_its_identity():
    assert digest(parse(MINIMAL, ["name=a", "runs_dir=x"])) == digest(parse(MINIMAL, ["name=b", "runs_dir=y"]))


@pytest.mark.parametrize("override", ["seed=1", "debate.num_agents=4", "task.high=3", "prompts.system=Hm", "model=m"])
def test_every_other_setting_is(override):
    assert digest(parse(MINIMAL, [override])) != digest(parse(MINIMAL))


def test_a_default_that_is_written_out_changes_nothing():
    assert digest(parse(MINIMAL, ["debate.num_agents=3", "vote.ties=random"])) == digest(parse(MINIMAL))


def test_differences_name_the_keys_and_both_values():
    ours, theirs = parse(MINIMAL, ["seed=1", "name=a"]), parse(MINIMAL, ["debate.num_rounds=4", "prompts.system=Hm"])
    assert differences(ours, theirs) == {
        "debate.num_rounds": (2, 4),
        "prompts.system": (None, "Hm"),
        "seed": (1, 0),
    }
    assert differences(ours, ours) == {}


def test_overrides_are_yaml_and_the_last_one_wins():
    made = parse(MINIMAL, ["seed=1", "seed=2", "task.num_train=null", "task.shape=~", "sampling.eval={}"])
    assert (made.seed, made.task.num_train, made.task.shape) == (2, None, None)
    assert made.sampling.eval is not None
    assert parse(MINIMAL, ["train.learning_rate=1e-5"]).train.learning_rate == 1e-5


def test_settings_given_are_not_changed_by_overrides():
    tree = {"task": {"name": "arithmetic"}}
    parse(tree, ["task.high=3", "seed=5"])
    assert tree == {"task": {"name": "arithmetic"}}


def test_settings_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        parse(MINIMAL).seed = 3  # type: ignore[misc]


def test_sampling_defaults_are_valid():
    assert parse(MINIMAL).sampling.train.generator == SamplingParams()


def test_yaml_null_is_the_null_trainer():
    assert parse({"task": {"name": "arithmetic"}}, ["engine.trainer=null"]).engine.trainer == "null"


def test_finetuning_may_differ_by_role_and_iteration():
    train = {"learning_rate": [3e-4, 1e-4], "num_epochs": 3, "critic": {"num_epochs": [5, 1], "batch_size": 4}}
    train_config = parse(MINIMAL | {"train": train}).train
    chosen = {(role, n): train_config.of(role, n) for role in ("generator", "critic") for n in (1, 2, 7)}
    assert [how.learning_rate for how in chosen.values()] == [3e-4, 1e-4, 1e-4] * 2
    assert [how.num_epochs for how in chosen.values()] == [3, 3, 3, 5, 1, 1]
    assert [how.batch_size for how in chosen.values()] == [16, 16, 16, 4, 4, 4]
    assert {how.max_length for how in chosen.values()} == {2048}


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.learning_rate=[]", "train.learning_rate must be a number above 0, or a list"),
        ("train.learning_rate=[1.0e-4, 0]", "train.learning_rate must be a number above 0, or a list"),
        ("train.critic.num_epochs=[1, x]", "train.critic.num_epochs must be a whole number of at least 1, or a list"),
        ("train.critic.epochs=1", "train.critic.epochs is not a setting. Did you mean train.critic.num_epochs?"),
        ("train.method=dora", "train.method must be one of lora, qlora, full, got 'dora'"),
    ],
)
def test_finetuning_that_is_asked_for_wrongly_is_refused(override, said):
    assert said in refusal(override)


def test_processes_have_equal_shares_of_every_batch():
    said = refusal("engine.num_train_processes=4", train={"batch_size": [8, 6]}, num_iterations=2)
    assert (
        "train.batch_size = 6 (generator, iteration 2) cannot be divided among engine.num_train_processes = 4" in said
    )
    assert "Choose a multiple of 4" in said
    assert parse(MINIMAL | {"train": {"batch_size": [8, 6]}}, ["engine.num_train_processes=4"])  # one iteration


def test_a_model_is_not_divided_among_one_process():
    assert "engine.num_train_processes is 1" in refusal("engine.train_sharding=fsdp")


@pytest.mark.parametrize(
    "override", ["engine.num_train_processes=2", "train.gradient_checkpointing=true", "engine.num_threads=3"]
)
def test_how_the_work_is_spread_is_not_a_runs_identity(override):
    assert digest(parse(MINIMAL, [override])) == digest(parse(MINIMAL))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["train.objective=grpo", "train.critics=false", "debate.num_samples=4", "curate.max_examples=4"],
            "does not work with",
        ),
        (["vote.label=random", "curate.weight_by=margin"], "has no margin"),
        (["train.objective=weighted", "curate.keep=all"], "train.objective = weighted weighs responses by the vote"),
        (["curate.weight_by=gain", "curate.keep=readable"], "curate.weight_by = gain weighs responses by the vote"),
        (["debate.num_samples=4", "debate.wrong_majorities=0.5"], "needs critics"),
        (["debate.num_samples=2", "curate.weight_by=gain"], "every agent must read"),
        (["train.online_questions=5", "curate.questions=shards"], "fixed questions"),
    ],
)
def test_settings_that_change_what_others_mean_are_refused(tmp_path, overrides, said):
    with pytest.raises(ConfigError, match=said):
        settings(tmp_path, *overrides)


def test_a_wrong_name_is_said_once(tmp_path):
    with pytest.raises(ConfigError) as refused:
        settings(tmp_path, "train.objective=kot")
    assert "Did you mean kto?" in str(refused.value) and "must be" not in str(refused.value)
