"""Iterations that ruin agents stop a run; healthy ones never do."""

import json
from functools import cache
from itertools import pairwise
from random import Random

import pytest
from helpers import boxed, debate, held_out, run, run_files, settings
from simulated_society import Simulated

from maft import library, seeds
from maft.config import GuardConfig
from maft.errors import StageFailed
from maft.evaluation import guard
from maft.records import Reply
from maft.runs import status
from maft.samplers import Scripted
from maft.trainers import NullTrainer


def rising(before, after, **limits):
    return guard.collapses(guard.measures(before), guard.measures(after), GuardConfig(**limits))


def of_rounds(*rounds, num=30):
    """Return debates on different questions that all have these answers."""
    return held_out([debate(*rounds, problem_id=f"q{n}") for n in range(num)])


def test_each_measure_of_each_agent():
    of = guard.measures(held_out([debate(["1", "1", None], ["1", "2", "2"]), debate(["3", "1", "1"], problem_id="q")]))
    shares = {agent: {name: list(values.values()) for name, values in named.items()} for agent, named in of.items()}
    assert shares["generator_0"] == {
        "disagreement": [0.5, 1],
        "unparsed": [0, 0],
        "cut": [0, 0],
        "same_answer": [1, 0],
    }
    assert shares["generator_2"]["unparsed"] == [1, 0] and shares["generator_2"]["disagreement"] == [1, 0.5]
    # Only the first debate has critics; where there is none, its first answer stays a critic's answer.
    assert shares["critic_2"] == {"disagreement": [1, 0.5], "unparsed": [0], "cut": [0], "same_answer": [1]}


def test_agents_that_never_speak_as_critics_are_not_measured():
    assert set(guard.measures(held_out([debate(["1", "2"]), debate([], problem_id="q", error="failed")]))) == {
        "generator_0",
        "generator_1",
    }


def test_a_rise_is_reported_with_its_agent_and_numbers():
    rises = rising(of_rounds("123", "123"), of_rounds("12" + "3", ["1", None, "3"]))
    assert [(one.agent, one.measure, one.before, one.after) for one in rises] == [("critic_1", "unparsed", 0, 1)]
    text = guard.sentence(rises, 2)
    assert "iteration 2" in text and "critic_1" in text and "0% to 100%" in text and "guard.unparsed = 0.3" in text


def test_few_questions_and_small_rises_stop_nothing():
    assert rising(of_rounds("11", num=30), of_rounds([None, "1"], num=30))
    assert not rising(of_rounds("11", num=8), of_rounds([None, "1"], num=8))
    assert not rising(of_rounds("11"), of_rounds([None, "1"]), unparsed=1, disagreement=1)


@cache
def drawn(accuracy, seed, num, ruin=lambda answer, rng: answer):
    """Return debates of a society; a wrong answer is one of ten, a right one the question's own."""
    rng, society = Random(seed), Simulated(accuracy, 0.4)
    answers = [
        [ruin(str(rng.randrange(10)) if a == "0" else f"right {n}", rng) for a in society.answers(rng)]
        for n in range(num)
    ]
    return held_out([debate(of, of, problem_id=f"q{n}") for n, of in enumerate(answers)])


@pytest.mark.parametrize("num", [10, *(pytest.param(num, marks=pytest.mark.slow) for num in (40, 100))])
def test_of_twenty_healthy_runs_none_is_stopped(num):
    """They get better, and then worse by chance or a little."""
    for seed in range(20):
        steps = [drawn(accuracy, f"{seed} {accuracy}", num) for accuracy in (0.3, 0.6, 0.9, 0.85)]
        assert not any(rising(before, after) for before, after in pairwise(steps))


@pytest.mark.parametrize(
    "ruin",
    [
        lambda answer, rng: None if rng.random() < 0.8 else answer,
        lambda answer, rng: "0" if rng.random() < 0.9 else answer,
        lambda answer, rng: str(rng.randrange(100)),
    ],
)
def test_of_twenty_ruined_runs_all_are_stopped(ruin):
    for seed in range(20):
        assert rising(drawn(0.6, f"{seed}", 60), drawn(0.6, f"{seed} after", 60, ruin))


def answering(ruin=None):
    """Return a sampler whose finetuned agents are ruined in one way, from iteration 2 on."""

    def answer(request):
        rng = seeds.rng("reply", request.seed)
        adapter = request.agent.adapter or ""
        usual = seeds.rng("usual", request.messages[0].content).randrange(10)
        text = f"It is \\boxed{{{usual if rng.random() < 0.6 else rng.randrange(10)}}}."
        if not adapter or "iter_01" in adapter or ruin is None:
            return text
        return ruin(text, rng)

    return Scripted(answer, remember=False)


RUINS = {
    "unparsed": lambda text, rng: "the the the the",
    "same_answer": lambda text, rng: "It is \\boxed{0}.",
    "cut": lambda text, rng: Reply(text=text + " so" * 99, finish_reason="length"),
    "disagreement": lambda text, rng: f"It is \\boxed{{{rng.randrange(10**6)}}}.",
}


@pytest.fixture(params=RUINS)
def ruined(request):
    return request.param


def config(path, *overrides):
    task = {"name": "arithmetic", "num_train": 6, "num_eval": 30}
    return settings(path, "num_iterations=3", "vote.min_agreement=plurality", *overrides, task=task)


def test_a_ruin_stops_the_run_and_the_society_before_stays_the_newest(tmp_path, ruined):
    for _ in range(2):  # the same command says the same again
        with pytest.raises(StageFailed, match=f"iteration 2 collapsed.*guard.{ruined}.*--keep-going") as stopped:
            run(config(tmp_path), answering(RUINS[ruined]))
    assert stopped.value.exit_code == 1
    folder = library.open(tmp_path / "run").folder
    assert folder.evaluated(2) and not folder.iteration(3).exists()
    assert ruined in {one["measure"] for one in json.loads(folder.collapse(2).read_text())}
    assert status.newest(folder) == 1 and "collapsed" in status.next_step(folder)


def test_keep_going_goes_on_and_is_not_asked_for_again(tmp_path):
    with pytest.raises(StageFailed):
        run(config(tmp_path), answering(RUINS["unparsed"]))
    sampler = answering(RUINS["unparsed"])
    library.run(config(tmp_path), sampler=sampler, trainer=NullTrainer(), quiet=True, keep_going=True)
    folder = run(config(tmp_path), sampler)
    assert status.newest(folder) == 3 and status.next_step(folder) is None
    off = run(config(tmp_path, "name=off", "guard.enabled=false"), answering(RUINS["unparsed"]))
    assert status.complete(off)


def test_a_higher_limit_lets_a_stopped_run_go_on(tmp_path):
    with pytest.raises(StageFailed):
        run(config(tmp_path), answering(RUINS["same_answer"]))
    folder = run(config(tmp_path, "guard.same_answer=1"), answering(RUINS["same_answer"]))
    assert status.complete(folder) and not folder.collapse(2).exists()


def test_a_healthy_run_is_as_without_the_guard(tmp_path):
    with_guard, without = (
        run(config(tmp_path / name, f"guard.enabled={name}"), answering()) for name in ("true", "false")
    )
    ours, theirs = run_files(with_guard.path), run_files(without.path)
    assert ours.keys() == theirs.keys() and ours["iter_03/eval/summary.json"] == theirs["iter_03/eval/summary.json"]


def test_on_the_command_line(tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ruin.py").write_text(
        "from maft.samplers import Scripted\n\n\nclass Ruin(Scripted):\n    def __init__(self, *_):\n"
        "        super().__init__(lambda request: 'the' if request.agent.adapter else '\\\\boxed{1}')\n"
    )
    (tmp_path / "sums.yaml").write_text(
        'task: {name: arithmetic, num_train: 4, num_eval: 20}\nengine: {sampler: "ruin.py:Ruin", trainer: "null"}\n'
    )
    code, _, err = call("run", "sums.yaml")
    assert code == 1 and "guard.unparsed" in err and "Traceback" not in err
    assert "collapsed" in call("run", "sums.yaml", "--dry-run")[2]
    code, _, err = call("run", "sums.yaml", "--keep-going")
    assert code == 0 and "collapsed" in err


def test_the_bench_counts_what_is_stopped_and_resumes(tmp_path, monkeypatch):
    from bench import guard as bench

    def say(request):
        ruined = request.agent.adapter and "learning_rate" in request.agent.adapter
        return "hm" if ruined else boxed(request.seed % 3)

    monkeypatch.setattr(bench.engines, "make_trainer", lambda _: NullTrainer())
    sampler = Scripted(say)
    settings = {kind: bench.of_kind(kind, 0, tmp_path) for kind in bench.KINDS}
    assert [kind for kind in bench.KINDS if bench.stopped(settings[kind], sampler)] == ["learning_rate"]
    assert "unparsed +1.00" in bench.largest_rises(settings["learning_rate"])
    asked = len(sampler.history)
    assert bench.stopped(settings["learning_rate"], sampler) and len(sampler.history) == asked
