"""`maft calibrate`: how hard a task is over its settings, which setting is recommended, and a config that can be run."""

import json

import pytest
from helpers import boxed, needs, settings
from test_comparison import sums

from maft import config as config_
from maft.errors import ConfigError
from maft.evaluation.paired import Difference
from maft.evaluation.replay import Share
from maft.planning import difficulty
from maft.planning.difficulty import Difficulty
from maft.records import Reply, Request
from maft.samplers import Scripted


def measured(tmp_path, knobs, say, questions=8, answers=4, **more) -> tuple[list[Difficulty], Scripted]:
    sampler = Scripted(say)
    config = settings(tmp_path, **more)
    return list(difficulty.measure(config, knobs, questions, answers, tmp_path / "home", sampler)), sampler


def harder(request: Request) -> str | Reply:
    """Know the sums of small numbers only, and be cut or unreadable now and then."""
    left, _, right = request.messages[0].content.split("What is ")[1].split("?")[0].split()
    if request.seed % 8 == 0:
        return Reply(text="well", finish_reason="length", completion_tokens=30)
    return sums(request) if int(left) + int(right) < 10 and request.seed % 2 else boxed(request.seed % 97)


def test_every_combination_is_measured_with_first_answers_alone(tmp_path):
    found, sampler = measured(tmp_path, {"high": [4, 30], "operators": ["+", "*"]}, harder)
    assert [one.settings for one in found] == [
        {"high": 4, "operators": "+"},
        {"high": 4, "operators": "*"},
        {"high": 30, "operators": "+"},
        {"high": 30, "operators": "*"},
    ]
    assert all((one.questions, one.answers) == (8, 4) for one in found)
    assert len(sampler.history) == 4 * 8 * 4
    assert all(r.agent.role == "generator" and len(r.messages) == 1 for r in sampler.history)
    easy, hard = found[0], found[2]
    assert easy.single.mean > hard.single.mean and easy.passed.mean >= easy.vote.mean
    assert easy.room.mean == pytest.approx(easy.passed.mean - easy.vote.mean)
    assert 0 < easy.unparsed < 0.4 and easy.cut == easy.unparsed and easy.tokens > 3


def test_a_second_start_asks_nothing(tmp_path):
    first, _ = measured(tmp_path, {"high": [4, 9]}, harder)
    again, sampler = measured(tmp_path, {"high": [4, 9]}, harder)
    assert again == first and sampler.history == []
    more, sampler = measured(tmp_path, {"high": [4, 9, 12]}, harder)
    assert more[:2] == first and 0 < len(sampler.history) <= 32, "settings share questions"


def test_answers_are_drawn_as_in_the_first_iteration(tmp_path):
    _, sampler = measured(tmp_path, {"high": [4]}, harder, 4, 2, sampling={"train_temperature": [1.0, 0.4]})
    assert {request.sampling.temperature for request in sampler.history} == {1.0}


def test_replies_survive_a_kill_within_a_setting(tmp_path):
    count = iter(range(10))

    def killed(request: Request):
        if next(count) == 9:
            raise KeyboardInterrupt
        return harder(request)

    with pytest.raises(KeyboardInterrupt):
        measured(tmp_path, {"high": [4]}, killed)
    _, sampler = measured(tmp_path, {"high": [4]}, harder)
    assert len(sampler.history) == 32 - 9


def test_a_setting_with_too_few_questions_says_so_and_the_others_go_on(tmp_path):
    found, _ = measured(tmp_path, {"high": [0, 9]}, harder)
    assert found[0].single is None and "only" in found[0].error and found[1].single is not None
    assert found[0].error in difficulty.table(found)


@pytest.mark.slow
@needs("reasoning_gym")
def test_a_combination_that_the_data_set_refuses_is_a_row(tmp_path):
    knobs = difficulty.read_knobs(["min_numbers=2..3", "max_numbers=2..3"])
    task = {"name": "reasoning_gym:countdown"}
    found, _ = measured(tmp_path, knobs, lambda _: "<answer>1 + 1</answer>", 2, 2, task=task)
    assert [one.error is None for one in found] == [True, True, False, True]
    assert found[2].settings == {"min_numbers": 3, "max_numbers": 2} and found[2].error.startswith("refused: ")
    with pytest.raises(ConfigError, match="refuses the settings"):
        measured(tmp_path, {"min_numbers": [9]}, sums, 2, 2, task=task)
    for text in ("high=4..2", "high=1..900"):
        with pytest.raises(ConfigError, match="a range has 1 to 100 values"):
            difficulty.read_knobs([text])


def result(single: float, room: float, **chosen) -> Difficulty:
    share = Share(mean=single, low=0, high=1)
    gap = Difference(mean=room, low=0, high=1, p_value=1, n=9, num_seeds=1)
    return Difficulty(settings=chosen, questions=9, answers=12, single=share, vote=share, passed=share, room=gap)


def test_the_most_room_among_settings_that_are_neither_too_easy_nor_too_hard_is_recommended():
    some = [result(0.9, 0.5, high=3), result(0.5, 0.1, high=9), result(0.3, 0.3, high=20), result(0.1, 0.6, high=99)]
    assert difficulty.best(some) is some[2]
    assert difficulty.recommendation(some).startswith("Best: high = 20: a single answer is right for 30.0%")
    assert difficulty.best([some[0], some[3]]) is some[3], "the nearest to 40 %"
    assert "too hard" in difficulty.recommendation([some[0], some[3]])
    assert "too easy" in difficulty.recommendation(some[:1])
    assert difficulty.recommendation([Difficulty(settings={}, error="no")]) == "No setting could be measured."


def test_a_table_has_a_row_for_each_setting_and_a_line_for_each_that_could_not_be_measured():
    failed = Difficulty(settings={"high": 3}, error="there are only 9 questions; ask for fewer")
    head, row, line, _, foot = difficulty.table([failed, result(0.3, 0.2, high=20)]).splitlines()
    assert head.split()[:3] == ["high", "single", "%"]
    assert row.split()[:2] == ["20", "30.0"] and len(row) == len(head)
    assert line == f"high = 3: {failed.error}"
    assert foot == "9 questions each; room is pass@12 minus vote of 12."
    assert difficulty.table([failed]) == line, "nothing was measured"


def test_the_config_that_is_written_is_one_of_a_run(tmp_path):
    config = settings(tmp_path, "seed=3", "debate.num_agents=5")
    tree = difficulty.ready(config, result(0.5, 0.2, high=7))
    assert tree["task"] == {"name": "arithmetic", "high": 7, "num_train": 10, "num_eval": 6}
    few = difficulty.ready(settings(tmp_path, "task.num_train=40"), result(0.5, 0.2, high=1))
    assert few["task"] == {"name": "arithmetic", "high": 1}, "there are not as many questions"
    parsed = config_.parse(tree)
    assert (parsed.seed, parsed.debate.num_agents, parsed.task.high) == (3, 5, 7)


@needs("reasoning_gym")
def test_knobs_are_settings_of_the_task_or_options_of_a_data_set(tmp_path):
    config = config_.parse({"task": {"name": "reasoning_gym:chain_sum"}, "runs_dir": str(tmp_path)})
    ((chosen, cell),) = difficulty.cells(config, {"max_terms": [2]})
    assert cell.task.options == {"max_terms": 2} and chosen == {"max_terms": 2}
    with pytest.raises(ConfigError, match=r"--knob:\n.*task\.high must be a whole number"):
        difficulty.cells(settings(tmp_path), {"high": ["x"]})
    with pytest.raises(ConfigError, match="--knob must look like"):
        difficulty.read_knobs(["high"])


def test_on_the_command_line(home, call):
    asked = ("calibrate", "arithmetic", "engine.sampler=scripted", "--questions", "4", "--answers", "3", "--quiet")
    code, out, _ = call(*asked, "--knob", "high=3,5", "--out", "mine.yaml")
    assert code == 0 and "pass@3 %" in out and "Config: mine.yaml" in out
    config = config_.load(home / "mine.yaml")
    assert config.task.name == "arithmetic" and config.task.high in (3, 5)
    assert config.sampling.train.generator.max_new_tokens == 128
    code, out, _ = call(*asked, "--json")
    rows = json.loads(out)
    assert code == 0 and [row["settings"]["high"] for row in rows] == [4, 9, 19]
    (best,) = [row for row in rows if row["best"]]
    assert config_.load(home / best["config"]).task.high == best["settings"]["high"]
    code, _, err = call("calibrate", "sums.yaml", "--knob", "high", "--quiet")
    assert code == 2 and "--knob must look like name=a,b" in err
