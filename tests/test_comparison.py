"""Methods side by side: who is trained on what, what is computed once, and what the table says."""

import json
from collections import Counter

import pytest
from helpers import Quiet, run, settings

import maft
from maft import comparison, files, report, tasks
from maft.comparison import preregister
from maft.comparison.arms import ARMS, PAPER
from maft.comparison.compare import Comparison, arm_config
from maft.errors import ConfigError, DataError, UserError
from maft.evaluation import votes
from maft.evaluation.lenient import lenient
from maft.evaluation.methods import HeldOut
from maft.evaluation.paired import Difference
from maft.method import learners
from maft.records import Debate, Example, Problem, Reply
from maft.runs import seals, societies, status
from maft.runs.folder import RunFolder
from maft.samplers import Scripted
from maft.trainers import NullTrainer


class Counting(NullTrainer):
    """Counts the jobs."""

    def __init__(self) -> None:
        self.jobs: list[str] = []

    def train(self, jobs, settings, on_progress):
        self.jobs += [job.agent for job in jobs]
        super().train(jobs, settings, on_progress)


def sums(request) -> str:
    """Answer sums rightly four times out of five, and a little less often in a debate."""
    question = next(word for word in request.messages[0].content.split("What is ")[1:])
    left, sign, right = question.split("?")[0].split()
    value = {"+": int(left) + int(right), "-": int(left) - int(right), "*": int(left) * int(right)}[sign]
    return f"It is \\boxed{{{value + (request.seed % 5 == 0)}}}."


OTHERS = (
    *("maft_wo_debate", "label_samples", "majority_ft_samples", "two_examples", "kto", "judge", "random_labels"),
    *("format_only", "large_vote_contested"),
)
"""One of each kind of those that are not of the paper; `large_vote_contested` sets the most at once."""


def compared(runs, methods) -> tuple[Comparison, Scripted, Counting]:
    """Compare methods with two seeds, over two iterations."""
    made = comparison.begin(settings(runs, "num_iterations=2", "debate.num_eval_samples=4"), methods, [0, 1])
    engine, trainer = Scripted(sums), Counting()
    comparison.compare(made, engine, trainer, Quiet())
    return made, engine, trainer


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> tuple[Comparison, Scripted, Counting]:
    """The methods of the paper."""
    return compared(tmp_path_factory.mktemp("compared"), PAPER)


_TABLES: dict[str | None, list[comparison.Result]] = {}


def table(done, against: str | None = None) -> list[comparison.Result]:
    """Return the rows, of few methods if they are compared with another row; nothing changes the comparison."""
    if against not in _TABLES:
        made = done[0] if against is None else done[0]._replace(methods=("maft", "star"))
        _TABLES[against] = comparison.results(made, against)
    return _TABLES[against]


def found(done, against: str | None = None) -> dict[tuple[int, str], comparison.Result]:
    return {(row.iteration, row.method): row for row in table(done, against)}


def examples(done, arm: str, iteration: int = 1, agent: str = "generator_0") -> list[Example]:
    return files.read_records(done[0].folder(ARMS[arm], 0).examples(iteration, agent), Example)


def test_the_table_has_every_method_of_the_paper(done):
    names = {
        *("base", "majority@3", "majority@budget", "debate", "star", "star_label_free", "majority_ft"),
        *("single_agent_ft", "single_agent_ft_debate", "maft", "maft_wo_summary", "maft_wo_critic", "cooperative"),
        "unique_id",
    }
    rows = found(done)
    assert names <= {method for _, method in rows}
    assert {method for iteration, method in rows if iteration == 0} == {
        "base",
        "majority@3",
        "majority@budget",
        "debate",
    }
    assert all((iteration, name) in rows for iteration in (1, 2) for name in PAPER)


@pytest.mark.slow
def test_methods_of_every_other_kind_have_rows_and_share_what_was_computed(tmp_path):
    ours = compared(tmp_path, OTHERS)
    rows = {(row.iteration, row.method) for row in comparison.results(ours[0])}
    assert all((iteration, name) in rows for iteration in (1, 2) for name in OTHERS)
    test_nothing_is_asked_twice(ours)
    test_nothing_is_trained_twice(ours)


def test_every_method_says_that_it_is_finished(done):
    made = done[0]
    assert {status.next_step(made.folder(ARMS[name], seed)) for name in made.methods for seed in made.seeds} == {None}


def test_nothing_is_asked_twice(done):
    asked = Counter(request.model_dump_json(exclude={"agent": {"role", "index"}}) for request in done[1].history)
    assert max(asked.values()) == 1


def test_nothing_is_trained_twice(done):
    made, _, trainer = done
    folders = [made.folder(ARMS[name], seed) for name in made.methods for seed in made.seeds]
    agents = sum(len(learners(folder.config)) * 2 for folder in folders)
    kept = len(list((made.path / "cache/agents").iterdir()))
    assert len(trainer.jobs) == kept < agents


def test_baselines_are_given_the_examples_of_one_agent_or_of_all(done):
    counts = [
        sum(c["examples"] for c in files.read_json(done[0].folder(ARMS["maft"], 0).examples_summary(n)).values())
        for n in (1, 2)
    ]
    for n in (1, 2):
        assert len(examples(done, "single_agent_ft", n)) == max(1, round(counts[n - 1] / 6))
        assert len(examples(done, "single_agent_ft_all", n)) <= counts[n - 1]
        assert len(examples(done, "majority_ft_all", n)) <= counts[n - 1]
    assert len(examples(done, "single_agent_ft_all", 1)) == counts[0]


def test_star_learns_the_right_answers_and_those_it_finds_with_a_hint(done):
    folder = done[0].folder(ARMS["star"], 0)
    gold = {p.id: p.gold for p in files.read_records(folder.problems("train"), Problem)}
    learned = examples(done, "star")
    assert learned and all(f"{{{gold[e.problem_id]}}}" in e.messages[-1].content for e in learned)
    assert not any("right answer is" in e.messages[0].content for e in learned)


def test_star_asks_with_a_hint_only_where_nobody_was_right(tmp_path):
    config = settings(tmp_path, "debate.num_agents=1", "task.num_train=30", "task.high=6")
    made = comparison.begin(config, ["star"], [0])
    comparison.compare(made, Scripted(sums), NullTrainer(), Quiet())
    folder = made.folder(ARMS["star"], 0)
    gold = {p.id: p.gold for p in files.read_records(folder.problems("train"), Problem)}
    wrong = {
        d.problem_id for d in files.read_records(folder.debates(1), Debate) if d.turns[0].answer != gold[d.problem_id]
    }
    hinted = files.read_records(folder.iteration(1) / "hints.jsonl", Debate)
    assert wrong and {d.problem_id for d in hinted} == wrong
    assert all(f"The right answer is {gold[d.problem_id]}." in d.turns[0].call.prompt for d in hinted)
    events = [event for event in folder.events() if event.get("stage") == "hint"]
    assert sum(event["calls"] for event in events) == len(wrong), "their time and calls are among the costs"


def test_star_asks_the_judge_about_first_and_hinted_replies(tmp_path):
    rows = [{"question": f"Which town is number {n}?", "answer": "a town"} for n in range(8)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def say(request) -> str:
        text = request.messages[-1].content
        if "Second answer:" in text:
            return "yes" if "right town" in text or ("number 1" in text and "x town" in text) else "no"
        return "right town" if "right answer" in text else "x town"

    task = {"name": "text", "equality": "judge", "train_file": str(tmp_path / "rows.jsonl"), "num_train": 4}
    made = comparison.begin(settings(tmp_path, task=task), ["star"], [0], "maft_wo_debate")
    comparison.compare(made, Scripted(say), NullTrainer(), Quiet())
    folder = made.folder(ARMS["star"], 0)
    known = [p for p in files.read_records(folder.problems("train"), Problem) if "number 1" in p.question]
    learned = files.read_records(folder.examples(1, "generator_0"), Example)
    assert Counter(example.messages[-1].content for example in learned) == Counter(
        {"right town": 4 - len(known)} | ({"x town": 1} if known else {})
    )


def test_star_needs_known_answers_and_says_so(tmp_path):
    questions = tmp_path / "q.jsonl"
    questions.write_text("".join(json.dumps({"question": f"What is {n} + 1?"}) + "\n" for n in range(8)))
    task = {"name": "jsonl", "train_file": str(questions), "gold_field": None, "num_train": 4, "num_eval": 4}
    config = settings(tmp_path, task=task)
    with pytest.raises(
        DataError, match="method star learns from known answers, and 4 of 4 training questions have none"
    ):
        comparison.begin(config, ["star"], [0])
    assert set(PAPER) - set(comparison.default_methods(config)) == {"star"}
    assert comparison.default_methods(settings(tmp_path)) == PAPER


def test_each_method_differs_from_maft_where_it_should_and_nowhere_else(tmp_path):
    made = Comparison(tmp_path, settings(tmp_path), tuple(ARMS), (0,))
    plain = arm_config(made, ARMS["maft"], 0)
    for name, keys in {
        "maft_wo_summary": {"debate.summarizer"},
        "maft_wo_critic": {"train.critics"},
        "cooperative": {"prompts.critic_summary", "prompts.critic_full"},
        "maft_wo_debate": {"debate.num_rounds"},
        "maft_wo_debate_samples": {"debate.num_rounds", "debate.num_samples", "vote.label_from"},
        "vote_over_all": {"vote.over"},
        "contested": {"debate.protocol"},
        "contested_answers": {"debate.protocol", "debate.quote"},
        "dissenters": {"debate.protocol"},
        "aggregator": {"debate.protocol"},
        "judge": {"debate.protocol"},
        "answers_only": {"debate.quote"},
        "bootstrap": {"curate.questions"},
        "shards": {"curate.questions"},
        "cooling": {"sampling.train_temperature"},
        "large_vote_contested": {
            *("debate.num_samples", "debate.wrong_majorities", "debate.protocol", "debate.quote", "vote.label_from"),
        },
        "random_labels": {"vote.label"},
        "least_frequent": {"vote.label"},
        "vote_by_likelihood": {"vote.weight", "debate.keep_tokens"},
        "label_first_then_last": {"vote.label_from"},
    }.items():
        from maft import config as config_

        assert set(config_.differences(plain, arm_config(made, ARMS[name], 0))) == keys


def test_methods_without_critics_are_compared_with_wrong_majorities_for_critics(tmp_path):
    chosen = settings(tmp_path, "debate.num_samples=4", "debate.wrong_majorities=0.5", "vote.label_from=first")
    made = comparison.begin(chosen, ["majority_ft", "star", "maft_wo_debate"], [0])  # refuses what cannot run
    assert arm_config(made, ARMS["maft_wo_debate"], 0).debate.wrong_majorities is None
    assert arm_config(made, ARMS["maft"], 0).debate.wrong_majorities == 0.5


def test_a_method_that_the_config_cannot_have_is_refused_before_anything_runs(tmp_path):
    config = settings(tmp_path, "debate.num_agents=3")
    with pytest.raises(ConfigError, match=r"method sparse:\n.*debate\.num_agents to 4"):
        comparison.chosen(config, ["contested", "sparse"], [0])
    assert comparison.chosen(settings(tmp_path, "debate.num_agents=4"), ["sparse"], [0]).methods == ("maft", "sparse")


def test_a_difference_is_to_maft_on_the_same_questions(done):
    rows = found(done)
    assert rows[1, "maft"].difference is None
    for iteration in (1, 2):
        maft, single = rows[iteration, "maft"], rows[iteration, "single_agent_ft"]
        assert single.difference.mean == pytest.approx(single.accuracy - maft.accuracy)
        assert single.difference.low <= single.difference.mean <= single.difference.high
        assert single.difference.num_seeds == 2


def test_a_difference_may_be_to_another_row(done):
    plain = found(done)
    rows = found(done, "star_majority@budget")
    assert {row.against for row in rows.values()} == {"star_majority@budget"}
    assert rows[2, "star_majority@budget"].difference is None
    assert rows[0, "base"].difference is None
    gap = plain[2, "maft"].accuracy - plain[2, "star_majority@budget"].accuracy
    assert rows[2, "maft"].difference.mean == pytest.approx(gap)
    with pytest.raises(ConfigError, match="nobody is not a row of this comparison. The rows are: base, majority@3"):
        comparison.results(done[0], "nobody")


def test_votes_are_shown_beside_a_vote_in_every_iteration(done):
    for against, shown in (("star_majority@budget", True), ("maft", False)):
        lines = [line.split() for line in report.comparison_table(table(done, against)).splitlines()]
        assert (["1", "maft_majority@budget"] in [line[:2] for line in lines]) is shown


def test_a_difference_to_an_untrained_row_is_the_gain_of_every_iteration(done):
    rows = found(done, "majority@budget")
    untrained = rows[0, "majority@budget"]
    assert untrained.difference is None
    for iteration in (1, 2):
        gain = rows[iteration, "maft"]
        assert gain.difference.mean == pytest.approx(gain.accuracy - untrained.accuracy)


def test_every_method_has_its_vote_at_the_tokens_of_mafts_debate(done):
    rows = found(done)
    for method in ("maft", "single_agent_ft", "star"):
        votes = rows[1, f"{method}_majority@budget"]
        assert votes.tokens >= min(rows[1, "maft"].tokens, 12 * rows[1, "maft_single"].tokens) - 1e-6


def test_another_method_may_set_examples_and_tokens(tmp_path):
    config = settings(tmp_path, "num_iterations=1", "debate.num_eval_samples=4", "task.num_train=30", "task.high=6")
    made = comparison.begin(config, ["majority_ft", "majority_ft_all"], [0], "maft_wo_debate")
    comparison.compare(made, Scripted(sums), NullTrainer(), Quiet())
    assert made.methods == ("maft_wo_debate", "majority_ft", "majority_ft_all")
    counts = files.read_json(made.folder(ARMS["maft_wo_debate"], 0).examples_summary(1)).values()
    total = sum(count["examples"] for count in counts)
    for name, share in (("majority_ft", round(total / 3)), ("majority_ft_all", total)):
        learned = files.read_records(made.folder(ARMS[name], 0).examples(1, "generator_0"), Example)
        assert len(learned) == share
    rows = {row.method: row for row in comparison.results(made)}
    assert {row.against for row in rows.values()} == {"maft_wo_debate_majority@budget"}
    assert rows["maft_wo_debate_majority@budget"].calls == 12 * rows["base"].n
    assert rows["majority_ft_majority@budget"].difference.num_seeds == 1
    assert "minus maft_wo_debate_majority@budget" in report.comparison_table(list(rows.values()))


def test_without_further_samples_a_reference_without_debate_is_compared_by_its_vote(tmp_path):
    made = comparison.begin(settings(tmp_path), ["majority_ft"], [0], "maft_wo_debate")
    assert made.against == "maft_wo_debate_majority@3"
    comparison.compare(made, Scripted(sums), NullTrainer(), Quiet())
    rows = {row.method: row for row in comparison.results(made)}
    assert rows["majority_ft_majority@3"].difference is not None


def test_what_one_model_cannot_have_is_said_as_it_is(tmp_path):
    with pytest.raises(ConfigError, match="curate.questions = shards gives each agent its own questions"):
        comparison.chosen(settings(tmp_path, "curate.questions=shards"), ["majority_ft"], [0])


def test_a_reference_is_a_method_with_examples_of_its_own_and_stays(tmp_path):
    config = settings(tmp_path)
    with pytest.raises(ConfigError, match=r"--reference star: this method .* Choose one of: maft, maft_wo_summary, "):
        comparison.chosen(config, [], [0], "star")
    with pytest.raises(ConfigError, match="nobody is not a method"):
        comparison.chosen(config, [], [0], "nobody")
    comparison.begin(config, ["star"], [0], "cooperative")
    with pytest.raises(ConfigError, match="--reference: 'cooperative' there, 'maft' asked for"):
        comparison.begin(config, ["star"], [0])


def test_the_same_command_again_computes_nothing_and_says_the_same(done):
    made, engine, trainer = done
    few = made._replace(methods=("maft", "star"))
    before = (len(engine.history), len(trainer.jobs), comparison.results(few))
    comparison.compare(made, engine, trainer, Quiet())
    assert (len(engine.history), len(trainer.jobs), comparison.results(few)) == before


def test_methods_and_seeds_can_be_added_and_other_settings_cannot(tmp_path):
    config = settings(tmp_path)
    assert comparison.chosen(config, ["star"], [0]).methods == ("maft", "star")
    assert not (config.runs_dir / config.name).exists(), "choosing writes nothing"
    assert comparison.begin(config, ["star"], [0]).methods == ("maft", "star")
    more = comparison.begin(config, ["majority_ft"], [1])
    assert (more.methods, more.others, more.seeds) == (("maft", "majority_ft"), ("star",), (1,))
    kept = comparison.existing(more.path)
    assert kept.methods == ("maft", "majority_ft", "star") and kept.seeds == (0, 1)
    assert comparison.chosen(config, ["star"], []).seeds == (0, 1)
    with pytest.raises(
        ConfigError, match=r"(?s)holds a comparison with other settings:.*debate\.num_rounds: 2 there, 3"
    ):
        comparison.begin(settings(tmp_path, "debate.num_rounds=3"), ["star"], [0])
    with pytest.raises(ConfigError, match="stra is not a method. The methods are: maft, "):
        comparison.begin(config, ["stra"], [0])


def test_a_file_in_place_of_the_folder_is_said(tmp_path):
    config = settings(tmp_path)
    files.write_text(config.runs_dir / config.name, "")
    with pytest.raises(ConfigError, match="is a file, and cannot be the folder of a comparison"):
        comparison.begin(config, ["star"], [0])


def test_two_processes_that_begin_at_the_same_time_both_keep_their_seeds(tmp_path, monkeypatch):
    config = settings(tmp_path)

    def meanwhile(_):
        monkeypatch.undo()
        comparison.begin(config, ["majority_ft"], [1])

    monkeypatch.setattr(societies, "check", meanwhile)
    assert comparison.begin(config, ["star"], [0]).seeds == (0,)
    kept = comparison.existing(config.runs_dir / config.name)
    assert {*kept.methods} == {"maft", "star", "majority_ft"} and {*kept.seeds} == {0, 1}


def test_a_comparison_gets_further_iterations_and_shows_fewer(tmp_path):
    for last in (1, 2, 1):
        made = comparison.begin(settings(tmp_path, f"num_iterations={last}"), ["majority_ft"], [0])
        comparison.compare(made, Scripted(sums), NullTrainer(), Quiet())
        shown = {row.iteration for row in comparison.results(made) if row.method == "majority_ft"}
        assert shown == set(range(1, last + 1))


def test_the_methods_of_a_call_are_shown_and_p_values_stay_corrected_for_all(done):
    some = done[0]._replace(methods=("maft", "star"), others=tuple({*done[0].methods} - {"maft", "star"}))
    rows = {(row.iteration, row.method): row for row in comparison.results(some)}
    assert (2, "star") in rows and (2, "majority_ft") not in rows
    star = rows[2, "star"]
    assert star.holm == min(1.0, (len(done[0].methods) - 1) * star.difference.p_value)
    assert star.difference == found(done)[2, "star"].difference


def test_rows_that_a_seed_lacks_are_named(tmp_path, caplog):
    made = comparison.begin(settings(tmp_path), ["star"], [0, 1])
    comparison.compare(made._replace(seeds=(0,)), Scripted(sums), NullTrainer(), Quiet())
    comparison.compare(made._replace(methods=("maft",)), Scripted(sums), NullTrainer(), Quiet())
    assert {row.method for row in comparison.results(made)} >= {"base", "maft"}
    (warning,) = [record.getMessage() for record in caplog.records if "Rows left out" in record.getMessage()]
    assert "star, iteration 1 (seed 1)" in warning and "maft" not in warning


def test_failed_debates_are_named(tmp_path, caplog):
    def say(request) -> str | Reply:
        failing = request.agent.role == "critic" and "What is 1 " in request.messages[0].content
        return Reply(text="", finish_reason="error", error="broke") if failing else sums(request)

    made = comparison.begin(settings(tmp_path, "engine.max_failures=1", "task.num_eval=12"), ["maft_wo_debate"], [0])
    comparison.compare(made, Scripted(say), NullTrainer(), Quiet())
    comparison.results(made)
    (warning,) = [record.getMessage() for record in caplog.records if "count as wrong" in record.getMessage()]
    held = files.read_records(made.folder(ARMS["maft"], 0).held_out_debates(1), Debate)
    count = sum(debate.error is not None for debate in held)
    assert count and f": maft, iteration 0 ({count}); maft, iteration 1 ({count})." in warning


def test_a_rival_with_few_examples_is_named(tmp_path):
    made = comparison.begin(settings(tmp_path, "task.num_train=20"), ["majority_ft"], [0])
    comparison.compare(made, Scripted(sums), NullTrainer(), Quiet())
    assert comparison.weak_rivals(made) == []
    summary = made.folder(ARMS["majority_ft"], 0).examples_summary(1)
    files.write_json(summary, {"generator_0": {"examples": 1}})
    (line,) = comparison.weak_rivals(made)
    assert line.startswith("majority_ft (1) had fewer than half") and "majority_ft_all" in line
    assert line in report.write_comparison_page(made, comparison.results(made)).read_text()


def test_the_table_and_the_json_hold_the_same_rows(done):
    rows = table(done)
    assert [row["method"] for row in json.loads(comparison.as_json(rows))] == [row.method for row in rows]
    text = report.comparison_table(rows)
    assert all(name in text for name in PAPER) and "2 seeds" in text


def test_p_values_are_corrected_for_the_methods_that_were_asked_for_after_the_last_iteration(done):
    rows = found(done)
    family = {row.method for row in rows.values() if row.holm is not None}
    assert family == {*done[0].methods} - {"maft"}
    assert all(row.holm is None or (row.iteration == 2 and row.holm >= row.difference.p_value) for row in rows.values())
    assert "Holm" in report.comparison_table(table(done))


def test_a_method_that_is_no_ordinary_run_is_continued_by_the_comparison_only(tmp_path):
    made = comparison.begin(settings(tmp_path), ["star"], [0])
    comparison.compare(made, Scripted(sums), NullTrainer(), Quiet())
    with pytest.raises(UserError, match="is method star of a comparison. Continue it with `maft compare`"):
        maft.run(made.path / "seed_0/star", quiet=True)
    assert maft.run(made.path / "seed_0/maft", quiet=True).results()


def test_on_the_command_line(tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.yaml").write_text(
        'task: {name: arithmetic, high: 3, num_train: 6, num_eval: 4}\nengine: {sampler: scripted, trainer: "null"}\n'
    )
    code, out, err = call(
        "compare", "s.yaml", "--methods", "star", "unique_id", "--seeds", "0", "1", "name=c", "--quiet"
    )
    assert code == 0, err
    assert "star" in out and "Rows: runs/c/results.json\n" in out and err == ""
    assert out.endswith("Report: runs/c/report.html\n") and (tmp_path / "runs/c/report.html").exists()
    code, out, _ = call("report", "runs/c", "--json")
    assert code == 0 and {"base", "star", "unique_id", "maft"} <= {row["method"] for row in json.loads(out)}
    code, _, err = call("run", "s.yaml", "name=c")
    assert code == 2 and "is not a run folder" in err


PREDICTIONS = """
note: the society pays, the debate does not
primary: majority_ft
predictions:
  - {row: majority_ft, direction: less, points: 5, why: one model}
  - {row: maft, against: maft_majority@3, direction: same, points: 100}
"""


@pytest.fixture(scope="module")
def registered(tmp_path_factory):
    """A comparison of two methods with predictions, another task, and trained tokens."""
    home = tmp_path_factory.mktemp("registered")
    (home / "p.yaml").write_text(PREDICTIONS)
    other = {"also": [{"name": "arithmetic", "low": 10, "high": 13, "num_train": 4, "num_eval": 6}]}
    made = comparison.begin(settings(home, "num_iterations=2", eval=other), ["majority_ft", "star"], [0, 1])
    preregister.register(made, home / "p.yaml")

    class Learning(NullTrainer):
        def train(self, jobs, settings, on_progress):
            super().train(jobs, settings, on_progress)
            for job in jobs:
                tokens = 10 * job.num_examples
                (job.output / "training.json").write_text(json.dumps({"tokens": tokens, "losses": []}))

    comparison.compare(made, Scripted(sums), Learning(), Quiet())
    return home, made, {(row.iteration, row.method): row for row in comparison.results(made)}


def test_predictions_stand_beside_their_outcome_and_are_the_family(registered):
    _, made, rows = registered
    outcome, same = rows[2, "majority_ft"].predictions[0], rows[2, "maft"].predictions[0]
    assert outcome.primary and outcome.against == "maft" and outcome.difference == rows[2, "majority_ft"].difference
    assert outcome.holm == outcome.difference.p_value, "the other prediction is no test of a difference"
    assert same.verdict == "held" and same.holm is None
    assert rows[2, "majority_ft"].holm == outcome.holm and rows[2, "star"].holm is None and rows[2, "star"].exploratory
    assert preregister.remarks(made) == []
    text = report.comparison_table(list(rows.values()))
    assert "Predicted (primary): majority_ft less by 5 points against maft" in text
    page = report.write_comparison_page(made, list(rows.values())).read_text()
    assert 'id="predictions"' in page and "one model" in page and "exploratory" in page


@pytest.mark.parametrize(
    ("low", "high", "direction", "points", "verdict"),
    [
        (0.01, 0.2, "more", None, "held"),
        (0.01, 0.2, "less", None, "refuted"),
        (-0.1, 0.2, "more", None, "unclear"),
        (-0.01, 0.02, "same", 3, "held"),
        (0.1, 0.2, "same", 3, "refuted"),
        (-0.1, 0.2, "same", 3, "unclear"),
    ],
)
def test_the_verdict_on_a_prediction(low, high, direction, points, verdict):
    gap = Difference(mean=(low + high) / 2, low=low, high=high, p_value=0.5, n=9, num_seeds=1)
    one = preregister.Prediction(row="maft", direction=direction, points=points)
    made = preregister.Outcome(
        prediction=one, against="x", primary=False, difference=gap, holm=0.01 if low > 0 else 0.5
    )
    assert made.verdict == verdict
    assert made.model_copy(update={"difference": None}).verdict == "not measured"


def test_predictions_cannot_be_changed_after_results(registered):
    home, made, _ = registered
    (home / "other.yaml").write_text(PREDICTIONS.replace("less", "more"))
    with pytest.raises(ConfigError, match=r"iteration 1, is evaluated already, and other predictions were registered"):
        preregister.register(made, home / "other.yaml")
    assert preregister.register(made, home / "p.yaml").detectable == pytest.approx(280 * (0.25 / 6) ** 0.5, abs=0.1)
    path = made.path / preregister.REGISTERED
    path.write_text(path.read_text().replace("less", "more"))
    assert preregister.remarks(made) == ["preregistered.json was changed after it was registered."]
    path.write_text(path.read_text().replace("more", "less"))
    assert "Registered with seeds: 0, 1; now: 0." in preregister.remarks(made._replace(seeds=(0,)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "predictions: [{row: kto, direction: more}]",
            "kto is no row of this comparison. The rows are: base, majority@3",
        ),
        ("predictions: [{row: maft, direction: up}]", "direction"),
        ("predictions: [{row: maft, direction: same}]", "same needs points"),
        ("predictions: []", "predictions"),
        ("predictions: [{row: maft, direction: more}]", "maft would be compared with itself"),
        (
            "predictions: [{row: star, direction: more}, {row: maft, against: star, direction: more}]",
            "the difference between maft and star is predicted twice",
        ),
        ("primary: maft\npredictions: [{row: star, direction: more}]", "primary = maft is not the row of a prediction"),
    ],
)
def test_predictions_that_are_none_are_refused(tmp_path, text, message):
    (tmp_path / "p.yaml").write_text(text)
    made = comparison.begin(settings(tmp_path), ["star"], [0])
    with pytest.raises(ConfigError, match=message):
        preregister.register(made, tmp_path / "p.yaml")


def test_a_prediction_on_the_untrained_model_comes_before_its_results(tmp_path):
    made = comparison.begin(settings(tmp_path), ["star"], [0])
    with RunFolder.open(made.folder(ARMS["maft"], 0).config) as folder:
        files.write_json(folder.results(0), [])
    untrained, finetuned = ("{row: debate, against: base, direction: more}", "{row: star, direction: more}")
    (tmp_path / "p.yaml").write_text(f"predictions: [{untrained}, {finetuned}]")
    with pytest.raises(ConfigError, match="maft, seed 0, iteration 0, is evaluated already, and predictions come"):
        preregister.register(made, tmp_path / "p.yaml")
    (tmp_path / "p.yaml").write_text(f"predictions: [{finetuned}]")
    assert preregister.register(made, tmp_path / "p.yaml").predictions[0].row == "star"


def test_predictions_of_a_sign_only_are_shown_and_corrected_beside_one_of_no_difference(tmp_path):
    test, same = "{row: star, direction: more}", "{row: star, direction: same, points: 5}"
    (tmp_path / "p.yaml").write_text(f"predictions: [{test}, {same}]")
    made = comparison.begin(settings(tmp_path), ["star"], [0])
    preregister.register(made, tmp_path / "p.yaml")
    comparison.compare(made, Scripted(sums), NullTrainer(), Quiet())
    rows = comparison.results(made)
    (star,) = [row for row in rows if (row.iteration, row.method) == (1, "star")]
    assert star.holm == star.predictions[0].holm and star.holm is not None and not star.exploratory
    assert "Predicted (primary): star more against maft: " in report.comparison_table(rows)


def test_other_tasks_are_answered_before_and_after(registered):
    _, made, rows = registered
    (kept,) = rows[2, "majority_ft"].retention
    assert kept.n == 6 and 0 < kept.before < 1 and kept.difference.num_seeds == 2
    folder = made.folder(ARMS["maft"], 0)
    assert [folder.others[0].evaluated(number) for number in (0, 1, 2)] == [True, False, True]
    assert "arithmetic (low=10, high=13)" in report.comparison_table(list(rows.values()))
    seals.seal(folder)
    assert status.complete(folder) and seals.damage(folder) == []
    folder.others[0].problems("eval").write_text("")
    assert [damaged.file.split("/")[0] for damaged in seals.damage(folder)] == ["also"]
    shared = {"also": [{"name": "arithmetic", "high": 4, "num_train": 2, "num_eval": 70, "split_seed": 3}]}
    with pytest.raises(DataError, match="held-out questions are training questions too"):
        run(settings(made.path.parent / "again", eval=shared))


def test_differences_at_equal_training_tokens_flows_and_room(registered):
    _, _, rows = registered
    fewer = rows[2, "majority_ft"]
    assert fewer.training_tokens < rows[2, "maft"].training_tokens
    assert fewer.equal_training is not None and fewer.equal_training != fewer.difference
    assert rows[1, "majority_ft"].equal_training is None
    (flow,) = rows[2, "maft"].flows
    assert flow.net.mean == pytest.approx(flow.corrected - flow.spoiled) and flow.round == 2
    curve = rows[2, "maft_single"].curve
    assert [one.k for one in curve] == [1, 2, 3] and curve[0].vote.mean == pytest.approx(curve[0].passed.mean)
    assert curve[2].passed.mean >= curve[2].vote.mean - 1e-9 and rows[1, "maft_single"].curve == ()
    base = rows[0, "base"]
    assert [base.accuracy_lenient, base.accuracy_read] == pytest.approx([base.accuracy] * 2), "all can be read"


def test_replies_that_cannot_be_read_are_read_by_any_means(tmp_path):
    folder = run(settings(tmp_path), Scripted(lambda request: "<answer>" + "7" * 3 + "\nperhaps 777"))
    task = tasks.make(folder.config.task)
    held = votes.held_out(folder, 0)
    problems = {id: one.model_copy(update={"gold": "777"}) for id, one in votes.problems(folder, "eval").items()}
    blind = HeldOut(
        [
            d.model_copy(update={"turns": tuple(t.model_copy(update={"answer": None}) for t in d.turns)})
            for d in held.debates
        ],
        [
            v.model_copy(update={"partition": (None,) * len(v.partition), "grades": (), "winner": None})
            for v in held.votes.values()
        ],
    )
    assert set(lenient(blind, problems, task).values()) == {1.0}
