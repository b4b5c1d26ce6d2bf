"""What stored debates say of other protocols and votes: exact ceilings, and the same answers as the protocols give."""

import json
from itertools import combinations

import pytest
from helpers import debate, problem, run, settings, voting_by

import maft
from maft import files, report
from maft.evaluation.metrics import interval
from maft.evaluation.replay import curve, of_debates, pass_at, replay, verdict, vote_at
from maft.evaluation.votes import decide
from maft.records import Debate, Reply, Score
from maft.samplers import Scripted

GOLD = "56"


def replayed(*debates: Debate, num_agents: int = 3, **how):
    config = voting_by(num_agents, **how)
    problems = [problem(one.problem_id, GOLD) for one in debates]
    votes = decide(debates, problems, config)
    made = of_debates(zip(debates, votes, strict=True), config, "eval", 1)
    assert made is not None
    return made


def drawn_by_hand(k: int, answers: list[str | None]) -> tuple[float, float]:
    """Return pass@k and vote@k by looking at every way to draw k answers; `r...` are right."""
    passed, voted, total = 0.0, 0.0, 0
    for chosen in combinations(answers, k):
        total += 1
        said = [answer for answer in chosen if answer is not None]
        passed += any(answer.startswith("r") for answer in said)
        most = max((said.count(answer) for answer in said), default=0)
        leaders = {answer for answer in said if said.count(answer) == most}
        voted += sum(answer.startswith("r") for answer in leaders) / len(leaders) if leaders else 0
    return passed / total, voted / total


@pytest.mark.parametrize(
    "answers",
    [
        ["r", "r", "a", "b", "a", None],
        ["r", "a", "b", "c", "d"],
        ["r", "r", "r"],
        ["a", "a", None, None],
        [None, None],
        ["r1", "r1", "r2", "r2", "a", "a", "a"],
        ["r"] * 4 + ["a"] * 4 + ["b"] * 2 + [None],
    ],
)
def test_ceilings_are_means_over_all_ways_to_draw_k_answers(answers):
    read = [answer for answer in answers if answer is not None]
    sizes = {answer: read.count(answer) for answer in read}
    right = tuple(size for answer, size in sizes.items() if answer.startswith("r"))
    wrong = tuple(size for answer, size in sizes.items() if not answer.startswith("r"))
    for k in range(1, len(answers) + 1):
        passed, voted = drawn_by_hand(k, answers)
        assert pass_at(k, len(answers), sum(right)) == pytest.approx(passed)
        assert vote_at(k, right, wrong, answers.count(None)) == pytest.approx(voted)


def test_many_answers_are_counted_quickly_and_never_leave_the_unit_interval():
    for sizes in ((1,) * 36, (12, 12, 12), (3,) * 12):
        shares = [vote_at(k, sizes[:1], sizes[1:], 4) for k in range(1, 41)]
        assert all(0 <= share <= 1 for share in shares)
        assert shares[0] == pytest.approx(sizes[0] / 40)
        assert shares[-1] == pytest.approx(1 / len(sizes)), "all have as many votes"


def test_what_is_known_of_a_handful_of_debates():
    made = replayed(
        debate([GOLD] * 3, [GOLD] * 3, problem_id="a"),
        debate([GOLD, "1", "1"], [GOLD, GOLD, "1"], problem_id="b"),
        debate(["1", "1", "1"], ["1", "1", GOLD], problem_id="c"),
        debate([GOLD, None, "2"], ["2", "2", "2"], problem_id="d"),
        debate(error="generator_0, round 1: timeout", problem_id="e"),
    )
    assert (made.n, made.first_answers) == (5, 3)
    assert made.single.mean == pytest.approx((1 + 1 / 3 + 0 + 1 / 3 + 0) / 5)
    assert made.oracle.mean == pytest.approx(3 / 5)
    assert (made.oracle.low, made.oracle.high) == interval([1, 1, 0, 1, 0])
    assert made.unanimous.mean == pytest.approx(2 / 5) and made.unanimous_right.mean == 1 / 2
    assert [ceiling.k for ceiling in made.curve] == [1, 2, 3]
    assert made.curve[0].vote.mean == pytest.approx(made.single.mean)
    assert made.curve[0].passed.mean == pytest.approx(made.single.mean)
    assert made.curve[2].passed.mean == made.oracle.mean
    assert made.room.mean == pytest.approx(3 / 5 - (1 + 0 + 0 + 1 / 2 + 0) / 5)
    rules = {rule.name: rule for rule in made.rules}
    assert list(rules) == ["vote of 3", "debate", "all rounds vote", "contested", "dissenters"]
    assert rules["debate"].right.mean == pytest.approx(2 / 5), "a and b"
    assert rules["contested"].right.mean == rules["debate"].right.mean
    assert rules["debate"].tokens == 2.0 and rules["contested"].tokens == pytest.approx(1 + 2 / 4)
    assert rules["dissenters"].tokens == pytest.approx((4 * 3 + 0 + 1 + 0 + 3) / (4 * 3))
    assert rules["vote of 3"].gain is None and rules["debate"].gain.n == 5


def test_a_task_is_closed_where_the_best_critic_gains_less_than_five_points():
    easy = [debate([GOLD] * 3, problem_id=f"{n}") for n in range(99)]
    hard = [debate([GOLD, "1", "1"], problem_id=f"h{n}") for n in range(20)]
    made = replayed(*easy, hard[0])
    assert made.closed and verdict(made).startswith("closed for critics: pass@3 is 1.0 points")
    assert not replayed(*easy, *hard).closed and verdict(replayed(*easy, *hard)).startswith("open for critics")
    assert verdict(replayed(*easy[:30], hard[0])).startswith("unclear for critics: pass@3 is 3.2 points (-3.4 to 9.8)")
    assert "; with 3 first answers this says little of a larger vote" in verdict(made)
    assert verdict(replayed(debate([GOLD] * 12), num_agents=12)).endswith(" above the vote of 12.")
    assert [rule.name for rule in replayed(*easy).rules] == ["vote of 3", "debate", "all rounds vote", "contested",
                                                             "dissenters"]  # fmt: skip


def test_more_first_answers_are_in_the_curves_and_vote_as_a_rule():
    made = replayed(debate([GOLD, "1", "1"], ["1"] * 3, samples=[GOLD, GOLD, "2"]))
    assert [ceiling.k for ceiling in made.curve] == [1, 2, 3, 4, 5, 6]
    rules = {rule.name: rule.right.mean for rule in made.rules}
    assert (rules["vote of 3"], rules["vote of 6"]) == (0, 1) and made.oracle.mean == 1


def test_a_curve_is_a_mean_over_seeds_on_the_questions_that_all_have():
    config = voting_by()
    seeds = [
        [
            debate([GOLD, "1", "1"], problem_id="a"),
            debate([GOLD] * 3, problem_id="b"),
            debate(["1"] * 3, problem_id="c"),
        ],
        [debate([GOLD, GOLD, "1"], samples=["1"], problem_id="a"), debate(["1", "2", GOLD], problem_id="b")],
    ]
    problems = {name: problem(name, GOLD) for name in "abc"}
    decided = [[*zip(of, decide(of, problems.values(), config), strict=True)] for of in seeds]
    points = curve(decided, config)
    assert [point.k for point in points] == [1, 2, 3], "as far as every question has first answers"
    single = (1 / 3 + 1 + 2 / 4 + 1 / 3) / 4
    assert (points[0].vote.mean, points[0].passed.mean) == (pytest.approx(single), pytest.approx(single))
    assert points[1].passed.mean == pytest.approx((2 / 3 + 1 + 5 / 6 + 2 / 3) / 4)
    assert points[2].vote.mean == pytest.approx((0 + 1 + 1 / 2 + 1 / 3) / 4)
    assert points[2].vote.low <= points[2].vote.mean <= points[2].vote.high
    assert curve([decided[0], []], config) == [] and curve([], config) == []


def test_ties_are_drawn_as_the_run_draws_them():
    held = [debate([GOLD, "1"], [GOLD, "1"], problem_id=f"q{n}") for n in range(8)]
    decided = decide(held, [problem(one.problem_id, GOLD) for one in held], voting_by(2))
    wins = [vote.label == GOLD for vote in decided]
    assert {True, False} == set(wins)
    for one, won in zip(held, wins, strict=True):
        rules = {rule.name: rule.right.mean for rule in replayed(one, num_agents=2).rules}
        assert rules["vote of 2"] == rules["debate"] == rules["dissenters"] == won


def test_questions_without_a_known_answer_are_left_out():
    config = voting_by()
    known, unknown = debate([GOLD] * 3), debate(["1"] * 3, problem_id="x")
    votes = decide([known, unknown], [problem(gold=GOLD), problem("x", None)], config)
    assert of_debates(zip([unknown], votes[1:], strict=True), config, "eval", 0) is None
    assert of_debates(zip([known, unknown], votes, strict=True), config, "eval", 0).n == 1


def say(request) -> Reply:
    """Answer by the request's seed alone, with log-probabilities."""
    answer = request.seed % 4 and int(request.seed % 3)
    return Reply(text=f"\\boxed{{{answer}}}", finish_reason="stop", prompt_tokens=request.seed % 50, completion_tokens=9,
                 token_ids=(1,), logprobs=(-float(request.seed % 7),))  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return run(
        settings(tmp_path_factory.mktemp("runs"), "debate.summarizer=none", "task.num_eval=12", "task.high=5",
                 "debate.num_eval_samples=2", "debate.keep_tokens=true"),
        Scripted(say),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("rule", "changed"),
    [
        ("contested", "debate.protocol=contested"),
        ("dissenters", "debate.protocol=dissenters"),
        ("all rounds vote", "vote.over=all"),
        ("debate by likelihood", "vote.weight=likelihood"),
        ("debate", "name=run"),
    ],
)
def test_a_rule_answers_what_a_run_with_it_answers(folder, tmp_path, rule, changed):
    made = next(one for one in replay(folder) if (one.side, one.iteration) == ("eval", 0))
    (of_rule,) = (each for each in made.rules if each.name == rule)
    more = (
        "debate.summarizer=none",
        "task.num_eval=12",
        "task.high=5",
        "debate.keep_tokens=true",
        "debate.num_eval_samples=2",
        changed,
    )
    other = run(settings(tmp_path, *more), Scripted(say))
    scores = files.read_records(other.scores(0, "debate"), Score)
    assert of_rule.right.mean == pytest.approx(sum(score.accuracy for score in scores) / 12)
    first = sum(call.reply.prompt_tokens + 9 for d in files.read_records(other.held_out_debates(0), Debate)
                for call in (turn.call for turn in d.round(1)))  # fmt: skip
    spent = sum(score.prompt_tokens + score.completion_tokens for score in scores)
    assert of_rule.tokens == pytest.approx(spent / first)


def test_a_run_is_replayed_in_the_terminal_as_json_in_a_program_and_on_its_page(folder, call):
    code, out, _ = call("replay", str(folder.path))
    assert code == 0 and out.count("first answers each") == 3 and out.count("unclear for critics") == 3
    assert "Iteration 1, 10 training questions, 3 first answers each" in out
    code, out, _ = call("replay", str(folder.path), "--json")
    rows = json.loads(out)
    assert [(row["side"], row["iteration"]) for row in rows] == [("train", 1), ("eval", 0), ("eval", 1)]
    assert rows[1]["first_answers"] == 6 and rows[1]["closed"] is False
    made = maft.open(folder.path).replay()
    assert [json.loads(one.to_json()) | {"closed": one.closed} for one in made] == rows
    text = report.write_page(folder).read_text(encoding="utf-8")
    assert 'id="room"' in text and 'id="chart-room"' in text and "dissenters" in text


def test_a_run_of_votes_has_no_room_for_rules_but_has_ceilings(tmp_path):
    folder = run(settings(tmp_path, "debate.protocol=vote"), Scripted(say))
    made = replay(folder)
    assert [[rule.name for rule in one.rules] for one in made] == [["vote of 3"]] * 3
    assert report.write_page(folder).exists()


def test_a_run_that_has_not_begun_says_so(tmp_path, home, call):
    (home / "runs" / "x").mkdir(parents=True)
    code, _, err = call("replay", "runs/x")
    assert code == 2 and "is not a run folder" in err
