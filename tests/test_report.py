"""The table, the rows, the metrics and the page of a run."""

import base64
import hashlib
import json
import re
import shutil
from collections import Counter
from html.parser import HTMLParser

import pytest
from click.testing import CliRunner
from helpers import boxed, run, settings

from maft import files, report, seeds
from maft.cli.main import maft
from maft.records import Problem, Request, Score, Vote
from maft.report import charts, data, page, run_page, transcript
from maft.report.gains import compare, gains
from maft.runs.folder import RunFolder
from maft.samplers import Scripted

HOSTILE = "<script>document.title = 'owned'</script> \x1b[2J\u202e & \"quoted\" </pre></details>"
SECTIONS = (
    *("accuracy", "agents", "room", "reliability", "labels", "votes", "flow", "examples", "costs", "debates", "made"),
)


def hostile_guess(request: Request) -> str:
    """Answer well enough for all kinds of debates to occur, and badly enough for all kinds of trouble."""
    number = seeds.rng("guess", request.seed).choice([0, 0, 1, 2, None])
    return HOSTILE + "word " * 500 if number is None else f"{HOSTILE} {boxed(number)}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> RunFolder:
    """A finished run of two iterations with a hostile model; tests only read it, or copy it."""
    overrides = ("num_iterations=2", "task.num_train=24", "task.num_eval=12", "task.high=6", "debate.summarizer=base")
    return run(settings(tmp_path_factory.mktemp("runs"), *overrides), Scripted(hostile_guess))


@pytest.fixture
def copy(folder, tmp_path) -> RunFolder:
    shutil.copytree(folder.path, tmp_path / "run")
    return RunFolder(tmp_path / "run", folder.config)


@pytest.fixture(scope="module")
def html(folder, tmp_path_factory) -> str:
    place = tmp_path_factory.mktemp("page") / "run"
    shutil.copytree(folder.path, place)
    return report.write_page(RunFolder(place, folder.config)).read_text(encoding="utf-8")


def test_rows_are_what_was_evaluated_under_the_documented_names(folder):
    rows = report.rows(folder)
    assert [(row["iteration"], row["method"]) for row in rows] == [
        *((0, method) for method in ("base", "majority@3", "debate")),
        *((n, method) for n in (1, 2) for method in ("maft_single", "maft_majority@3", "maft")),
    ]
    for row in rows:
        assert " ".join(row) == "iteration method accuracy ci_low ci_high n unparsed calls tokens"
        assert row["n"] == 12 and 0 <= row["ci_low"] <= row["accuracy"] <= row["ci_high"] <= 1
        scores = files.read_records(folder.evaluation(row["iteration"]) / f"{row['method']}.jsonl", Score)
        assert row["accuracy"] == pytest.approx(sum(score.accuracy for score in scores) / 12)
        assert row["tokens"] == pytest.approx(sum(score.prompt_tokens + score.completion_tokens for score in scores))


def test_json_is_the_rows_and_nothing_else_and_writes_nothing(copy):
    done = CliRunner().invoke(maft, ["report", str(copy.path), "--json"], catch_exceptions=False)
    assert done.exit_code == 0 and done.stderr == ""
    assert json.loads(done.stdout) == report.rows(copy)
    assert not (copy.path / "report.html").exists() and not (copy.path / "metrics.jsonl").exists()


def test_the_command_prints_the_table_and_writes_the_page_whose_path_comes_last(copy):
    done = CliRunner().invoke(maft, ["report", str(copy.path)], catch_exceptions=False)
    lines = done.stdout.splitlines()
    assert lines[-1].endswith(str(copy.path / "report.html")) and (copy.path / "report.html").exists()
    assert (copy.path / "metrics.jsonl").exists()
    assert done.stdout.startswith(report.table(copy))


def test_the_table_has_a_line_for_each_row_and_for_each_vote_and_no_colours(folder):
    table = report.table(folder)
    assert "\x1b" not in table
    for row in report.rows(folder):
        line = next(line for line in table.splitlines() if line.split()[:2] == [str(row["iteration"]), row["method"]])
        cells = line.split()
        assert cells[2] == f"{row['accuracy']:.1%}"
        assert cells[3] == f"{100 * row['ci_low']:.1f}" and cells[5] == f"{100 * row['ci_high']:.1f}"
        assert cells[6] == "12" and cells[-1] == f"{row['tokens']:,.0f}"
    assert table.count("Pseudo-labels of iteration") == 2
    assert "not finished" not in table


def test_metrics_are_the_same_bytes_whenever_they_are_written(copy):
    report.write_metrics(copy)
    first = (copy.path / "metrics.jsonl").read_bytes()
    report.write_metrics(copy)
    assert (copy.path / "metrics.jsonl").read_bytes() == first
    lines = [json.loads(line) for line in first.splitlines()]
    assert Counter(line["kind"] for line in lines) == {
        "method": 9,
        "agent": 24,
        "held_out_votes": 3,
        "pseudo_labels": 2,
    }
    for line in lines[-2:]:
        assert line["coverage"] == line["used"] / line["num_problems"]
        assert line["ci_low"] <= line["pseudo_label_accuracy"] <= line["ci_high"]
        assert line["used"] + sum(line["dropped"].values()) == 24


UNFINISHED = {
    "evaluation of the untrained": ("iter_00/eval/summary.json", r"untrained society, evaluation \(12 of 12"),
    "debate": ("iter_02/votes.jsonl", r"iteration 2, debate \(24 of 24"),
    "curation": ("iter_02/examples/summary.json", "iteration 2, curation"),
    "finetuning": ("iter_02/agents/critic_1", r"iteration 2, finetuning \(5 of 6"),
    "evaluation": ("iter_02/eval", r"iteration 2, evaluation \(0 of 12"),
}


@pytest.mark.parametrize(("missing", "said"), UNFINISHED.values(), ids=UNFINISHED)
def test_an_unfinished_run_is_reported_and_says_what_comes_next(copy, missing, said):
    path = copy.path / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    if path == copy.votes(2):
        shutil.rmtree(copy.examples_summary(2).parent)  # they are made after the votes
    shutil.rmtree(copy.path / "iter_02/eval", ignore_errors=True)
    done = CliRunner().invoke(maft, ["report", str(copy.path)], catch_exceptions=False)
    assert re.search(rf"not finished. Next: .*{said}", done.stdout)
    assert "This run is not finished." in (copy.path / "report.html").read_text(encoding="utf-8")


def test_a_run_that_has_hardly_begun_is_reported(tmp_path):
    with RunFolder.open(settings(tmp_path)) as folder:
        lines = report.table(folder).splitlines()
        assert "Nothing has been evaluated yet." in lines
        assert lines[-1] == "This run is not finished. Next: preparing the questions."
        assert report.rows(folder) == []
        report.write_metrics(folder)
        assert "How it was made" in report.write_page(folder).read_text(encoding="utf-8")


def test_accuracy_of_every_iteration_can_be_counted_from_the_raw_debates(tmp_path):
    """Nothing of maft but its names for seeds is used to count again, from the lines of the files."""
    size = ("num_iterations=2", "task.num_eval=30", "task.high=9", "debate.num_agents=4")
    folder = run(settings(tmp_path, *size), Scripted(hostile_guess))
    gold = {p["id"]: p["gold"] for p in map(json.loads, folder.problems("eval").read_text().splitlines())}
    reported = {(row["iteration"], row["method"]): row["accuracy"] for row in report.rows(folder)}
    for n, (single, first, last) in {
        0: ("base", "majority@4", "debate"),
        1: ("maft_single", "maft_majority@4", "maft"),
        2: ("maft_single", "maft_majority@4", "maft"),
    }.items():
        debates = [json.loads(line) for line in (folder.evaluation(n) / "debates.jsonl").read_bytes().splitlines()]
        assert {debate["problem_id"] for debate in debates} == set(gold)
        alone = [turn["answer"] == gold[d["problem_id"]] for d in debates for turn in d["turns"] if turn["round"] == 1]
        assert reported[n, single] == pytest.approx(sum(alone) / len(alone))
        for number, method in ((1, first), (2, last)):
            right = 0
            for debate in debates:
                answers = [turn["answer"] for turn in debate["turns"] if turn["round"] == number]
                counts = Counter(answer for answer in answers if answer is not None)
                leaders = sorted(answer for answer in counts if counts[answer] == max(counts.values()))
                draw = seeds.rng(0, "tie", n, debate["problem_id"])
                right += bool(leaders) and draw.choice(leaders) == gold[debate["problem_id"]]
            assert reported[n, method] == pytest.approx(right / len(gold)), method


def test_something_else_than_a_run_is_one_clean_line(tmp_path):
    done = CliRunner().invoke(maft, ["report", str(tmp_path)])
    assert "is not a run folder" in str(done.exception)


def test_help_has_examples():
    assert "Examples:" in CliRunner().invoke(maft, ["report", "--help"]).stdout


class Checker(HTMLParser):
    """Reads a page; notes what is not closed in order, and all tags and attributes."""

    VOID = ("meta", "br", "link", "img", "hr", "input")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str]] = []
        self.text = ""

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags[tag] += 1
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing that is open, at {self.getpos()}"

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def checked(html) -> Checker:
    checker = Checker()
    checker.feed(html)
    checker.close()
    return checker


def test_the_page_is_well_formed_and_has_every_section(checked, html):
    assert checked.open == []
    ids = [value for name, value in checked.attributes if name == "id"]
    assert set(SECTIONS) <= set(ids)
    assert [id for id, count in Counter(ids).items() if count > 1 and not id.startswith(("m", "p"))] == []
    assert {value for name, value in checked.attributes if name == "href"} <= {f"#{section}" for section in SECTIONS}
    assert html.count("<svg") == 6


def test_the_page_needs_nothing_from_anywhere(checked, html):
    assert "http:" not in html and "https:" not in html and "url(" not in html.replace("url(#", "")
    assert not {"link", "img", "iframe", "object"} & set(checked.tags)
    assert not [name for name, _ in checked.attributes if name.startswith("on") or name == "src"]


def test_no_script_runs_but_the_page_s_own(checked, html):
    assert checked.tags["script"] == 2, "the debates, which are data, and the page's own"
    script = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script[0].encode()).digest()).decode()
    assert len(script) == 1 and f"script-src 'sha256-{digest}'" in html and "default-src 'none'" in html
    assert "innerHTML" not in script[0] and "insertAdjacentHTML" not in script[0] and "eval(" not in script[0]


def test_text_of_a_model_cannot_leave_its_element(html):
    data = re.findall(r'<script type="application/json" id="debate-data">(.*?)</script>', html, re.DOTALL)
    assert len(data) == 1 and "<" not in data[0]
    assert any(HOSTILE[:20] in text for text in json.loads(data[0])["texts"])
    assert "\x1b" not in html and "\u202e" not in html


def test_the_page_is_a_function_of_the_folder(copy):
    first = report.write_page(copy).read_bytes()
    assert report.write_page(copy).read_bytes() == first


def test_the_headline_is_the_paired_gain_over_the_untrained_society(folder, checked):
    by_name = {(row["iteration"], row["method"]): row["accuracy"] for row in report.rows(folder)}
    found = {gain.over: gain.gap for gain in gains([folder])}
    assert set(found) == {"untrained debate", "untrained majority", "finetuned majority", "debate after iteration 1"}
    for over, other in (("untrained debate", (0, "debate")), ("finetuned majority", (2, "maft_majority@3"))):
        assert found[over].mean == pytest.approx(by_name[2, "maft"] - by_name[other])
        assert found[over].low <= found[over].mean <= found[over].high
    by_vote = by_name[2, "maft_majority@3"] > by_name[2, "maft"]
    on_card = next(gain for gain in gains([folder], vote=by_vote) if gain.over == "untrained debate")
    assert f"Gain over untrained debate{page.points(on_card.gap.mean)}" in checked.text


def right(*answers: int) -> dict[str, bool]:
    return {str(place): bool(answer) for place, answer in enumerate(answers)}


def test_a_gain_counts_the_questions_on_which_the_two_differ():
    gain = compare("x", [right(1, 1, 1, 0)], [right(1, 0, 0, 1)])
    assert gain is not None
    assert (gain.won, gain.lost, gain.gap.n, gain.gap.mean, gain.gap.verdict) == (2, 1, 4, 0.25, "unclear")


def test_a_gain_turned_round_is_a_loss():
    mine, other = right(*[1] * 30 + [0] * 10), right(*[1] * 12 + [0] * 28)
    gain, loss = compare("x", [mine], [other]).gap, compare("x", [other], [mine]).gap
    assert (gain.low, gain.high) == (pytest.approx(-loss.high), pytest.approx(-loss.low))
    assert (gain.verdict, loss.verdict) == ("more", "less")


def test_methods_that_never_differ_are_not_claimed_to_be_equal():
    gap = compare("x", [right(*[1] * 20)], [right(*[1] * 20)]).gap
    assert gap.low < 0 < gap.high


def test_methods_without_a_common_question_are_not_compared():
    assert compare("x", [{"a": True}], [{"b": True}]) is None


def test_bars_add_up_to_the_debates(folder):
    for by_agent in data.examples(folder).values():
        for agent, counts in by_agent.items():
            assert sum(getattr(counts, reason) for reason in run_page.REASONS) == 24, agent
    for found in data.labels(folder):
        assert sum(level.questions for level in found.levels) == 24
        used = [vote for vote in files.read_records(folder.votes(found.quality.iteration), Vote) if not vote.dropped]
        assert sum(level.questions for level in found.levels if 2 * level.votes > 3) == len(used)


def test_costs_are_those_of_the_events(folder):
    costs = data.costs(folder)
    assert [(cost.iteration, cost.stage) for cost in costs] == [
        (0, "evaluate"), *((n, stage) for n in (1, 2) for stage in ("debate", "finetune", "evaluate")),
    ]  # fmt: skip
    events = folder.events()
    assert sum(cost.calls for cost in costs) == sum(event.get("calls", 0) for event in events)
    assert sum(cost.seconds for cost in costs) == pytest.approx(sum(event.get("seconds", 0) for event in events))


def test_bars_are_in_proportion(folder, html):
    widths = [float(width) for width in re.findall(r'class="bar"[^>]*style="width: ([0-9.]+)%"', html)]
    assert max(widths) == 100 and len(widths) == 2 + 3 * 3 + 2 * 6 + 3, "labels, flows, examples, costs"
    pieces = re.findall(r'class="stayed_wrong" style=" ?flex-grow: (\d+)" title="stayed wrong: (\d+)"', html)
    assert pieces and all(int(grow) == 1000 * int(count) for grow, count in pieces)


def test_questions_on_both_sides_are_not_passed_over(copy):
    problems = files.read_records(copy.problems("eval"), Problem)
    train = files.read_records(copy.problems("train"), Problem)
    assert data.split(copy) == ((24, 24), (12, 12), 0)
    shared = problems[0].model_copy(update={"id": "other", "question": problems[0].question.replace(" ", "  ")})
    files.write_records(copy.problems("train"), [*train[:-1], shared])
    found = data.split(copy)
    assert found is not None and found.shared_texts == 1


def test_without_gold_answers_everything_but_accuracy_is_reported(tmp_path):
    questions = [{"question": f"What is {n} + 1?"} for n in range(12)]
    (tmp_path / "q.jsonl").write_text("".join(f"{json.dumps(q)}\n" for q in questions))
    task = {"name": "jsonl", "train_file": str(tmp_path / "q.jsonl"), "gold_field": None, "num_eval": 4}
    folder = run(settings(tmp_path / "runs", task=task))
    assert "no gold" in report.table(folder) and "correctness not known" in report.table(folder)
    text = report.write_page(folder).read_text(encoding="utf-8")
    assert "accuracy is not known" in text and "Who learned from what" in text
    assert "<b>" not in text.partition('id="accuracy"')[0]
    assert all(row["accuracy"] is None for row in report.rows(folder))


@pytest.mark.parametrize(
    "overrides",
    [
        ("debate.num_agents=1",),
        ("debate.num_rounds=1",),
        ("debate.num_agents=2", "debate.num_rounds=3", "curate.short_side=repeat"),
        ("vote.ties=abstain",),
        ("debate.num_samples=3", "num_iterations=2", "vote.label_from=[first, last]"),
        ("debate.num_eval_samples=3", "vote.over=all"),
        ("society.one_model=true", "curate.max_examples=2"),
        ("train.critics=false", "curate.weight_by=margin"),
    ],
    ids=" ".join,
)
def test_every_kind_of_society_can_be_reported_and_shown(tmp_path, overrides):
    folder = run(settings(tmp_path, *overrides, "task.num_train=5", "task.num_eval=3"))
    assert "not finished" not in report.table(folder)
    report.write_metrics(folder)
    page = report.write_page(folder).read_text(encoding="utf-8")
    assert ("Who corrects, who spoils" in page) == (folder.config.debate.num_rounds > 1)
    for side in ("train", "eval"):
        for problem in files.read_records(folder.problems(side), Problem):
            assert transcript.render(transcript.load(folder, problem.id))


@pytest.mark.parametrize("answer", [0, "no idea"], ids=["all agree", "nobody answers"])
def test_a_society_of_one_opinion_or_none_can_be_reported(tmp_path, answer):
    folder = run(settings(tmp_path), Scripted(lambda request: boxed(answer) if answer == 0 else str(answer)))
    assert report.write_page(folder).exists()
    assert f"{100 if answer == 0 else 0}.0%" in report.table(folder)


def test_the_page_says_of_an_agent_only_what_the_config_says(tmp_path):
    society = {"generators": [{}, {"model": "ORG/NAME"}, {"sampling": {"top_k": 5}}]}
    changed = page.changed_settings(settings(tmp_path, society=society))
    assert json.loads(changed["society.generators"]) == society["generators"]


def test_the_big_card_shows_the_better_of_debate_and_vote(finished_run):
    from maft.report.run_page import _best

    found = data.results(finished_run)
    last = [one for one in found if one.iteration == 2]

    def better(**accuracies: float) -> str:
        names = {"maft": accuracies["debate"], "maft_majority@3": accuracies["vote"], "maft_single": 1.0}
        changed = [one.model_copy(update={"accuracy": names[one.method]}) for one in last]
        return _best(changed, 2, 3).method

    assert better(debate=0.5, vote=0.6) == "maft_majority@3"
    assert better(debate=0.6, vote=0.6) == better(debate=0.7, vote=0.6) == "maft"
    assert _best([], 0, 3) is None


def test_many_agents_are_in_a_list_to_open():
    from maft.evaluation.agents import AgentAccuracy

    def offered(num_agents: int) -> int:
        agents = [
            AgentAccuracy(1, role, n, 9, 0.5, 0.4, 0.6)
            for role in ("generator", "critic")
            for n in (None, *range(num_agents))
        ]
        return sum(curve.offered for curve in charts.agents(agents).curves)

    assert offered(3) == 8 and offered(50) == 2
