"""Checks of the measurement itself: for societies that are known, everything comes out as theory says.

Coverage is the share of 1,000 simulated evaluations whose 95 % interval holds the truth.
"""

import json
import re
from collections import Counter
from math import cos, sin
from random import Random

import pytest
from helpers import debate, grade, held_out, run, scored, settings
from simulated_society import RIGHT, WRONG, Simulated, problems
from test_comparison import sums

from maft import files, report
from maft.config import VoteConfig
from maft.diversity.measures import disagreement, dissimilarity, mean_kl
from maft.evaluation import series as metrics
from maft.evaluation.agents import agent_accuracies
from maft.evaluation.flow import flows
from maft.evaluation.labels import label_quality
from maft.evaluation.metrics import summarize
from maft.evaluation.paired import accuracy_over, difference
from maft.method import vote as voting
from maft.records import Score
from maft.report.gains import compare
from maft.samplers import Scripted

SIMULATIONS = 1000
NUM = 1500
"""Questions of one large evaluation; three standard errors of a share are 0.04."""


def coverage(held: int) -> float:
    """Return the share of the simulations, and insist that it is 95 % give or take two."""
    assert 0.93 <= held / SIMULATIONS <= 0.97
    return held / SIMULATIONS


@pytest.mark.parametrize(
    ("num_agents", "accuracy", "majority"),
    [(3, 0.6, 0.648), (3, 0.8, 0.896), (5, 0.7, 0.83692), (9, 0.6, 0.73343), (3, 0.4, 0.352), (1, 0.7, 0.7)],
)
def test_independent_voters_are_those_of_condorcet(num_agents, accuracy, majority):
    assert Simulated(accuracy, 0.0, num_agents).majority == pytest.approx(majority, abs=5e-6)


@pytest.mark.parametrize("num_agents", [3, 5])
def test_with_correlation_a_vote_gains_less_and_at_last_nothing(num_agents):
    majorities = [Simulated(0.6, correlation, num_agents).majority for correlation in (0, 0.1, 0.4, 0.9, 1)]
    assert majorities == sorted(majorities, reverse=True)
    assert majorities[-1] == pytest.approx(0.6) and 0.6 < majorities[-2] < majorities[0] - 0.03


def evaluated(society: Simulated, num: int, seed: int = 0):
    """Return the results of a simulated society's debates, by method."""
    held = list(society.debates(Random(seed), num))
    scores = scored(held, problems(num), 1, society.num_agents)
    return {method: summarize(of_method) for method, of_method in scores.items()}


@pytest.mark.parametrize("num_agents", [3, 5])
@pytest.mark.parametrize(
    "correlation", [pytest.param(0.0, marks=pytest.mark.slow), 0.3, pytest.param(1.0, marks=pytest.mark.slow)]
)
def test_votes_are_as_often_right_as_theory_says(correlation, num_agents):
    society = Simulated(0.65, correlation, num_agents)
    found = evaluated(society, NUM)
    assert found["maft_single"].accuracy == pytest.approx(0.65, abs=0.04)
    assert found[f"maft_majority@{num_agents}"].accuracy == pytest.approx(society.majority, abs=0.04)
    assert found["maft"].accuracy == found[f"maft_majority@{num_agents}"].accuracy


@pytest.mark.parametrize(
    "correlation", [pytest.param(0.0, marks=pytest.mark.slow), 0.3, pytest.param(0.9, marks=pytest.mark.slow)]
)
def test_labels_agree_as_often_as_theory_says(correlation):
    society = Simulated(0.7, correlation, 5)
    held = list(society.debates(Random(1), NUM))
    found = label_quality([voting.vote(one, VoteConfig(), 0) for one in held], problems(NUM), grade)
    margin = sum(society.share(right) * abs(2 * right - 5) / 5 for right in range(6))
    assert found.accuracy == pytest.approx(society.majority, abs=0.04)
    assert found.mean_margin == pytest.approx(margin, abs=0.04)
    assert found.mean_agreement == pytest.approx((1 + margin) / 2, abs=0.02)
    assert found.unanimity == pytest.approx(society.share(0) + society.share(5), abs=0.04)
    assert (found.coverage, found.abstention) == (1, 0)


def test_where_the_wrong_differ_coverage_is_the_share_of_two_alike_or_more():
    society, rng, num = Simulated(0.5, 0.2, 3), Random(2), NUM
    held = [
        debate(
            [a if a == RIGHT else f"{n}{agent}7" for agent, a in enumerate(society.answers(rng))], problem_id=f"q{n}"
        )
        for n in range(num)
    ]
    found = label_quality([voting.vote(one, VoteConfig(), 0) for one in held], problems(num), grade)
    assert found.coverage == pytest.approx(society.share(2) + society.share(3), abs=0.04)
    assert found.accuracy == 1


@pytest.mark.parametrize("correlation", [0.0, 0.5])
def test_single_agents_are_as_good_as_they_are(correlation):
    society = Simulated(0.7, correlation, 3)
    held = list(society.debates(Random(3), NUM))
    mean, *agents = agent_accuracies(held, problems(NUM), 1, 3, grade)
    assert [one.accuracy for one in agents] == pytest.approx([0.7] * 3, abs=0.04)
    narrower = (mean.high - mean.low) / (agents[0].high - agents[0].low)
    assert narrower == pytest.approx(((1 + 2 * correlation) / 3) ** 0.5, abs=0.04)  # the variance of a mean of three


def scores(rng: Random, society: Simulated, num: int, *, vote: bool) -> list[Score]:
    """Return scores of one evaluation: of the vote, or of single answers."""
    found = []
    for number in range(num):
        right = [answer == RIGHT for answer in society.answers(rng)]
        correct = (2 * sum(right) > len(right),) if vote else tuple(right)
        costs = {"calls": 1.0, "prompt_tokens": 1.0, "completion_tokens": 1.0}
        answers = tuple(str(int(one)) for one in correct)
        fields = {"iteration": 0, "method": "m", "problem_id": f"q{number}", "answers": answers, "correct": correct}
        found.append(Score.model_construct(**fields, **costs))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("vote", [True, False], ids=["vote", "single answers"])
@pytest.mark.parametrize("correlation", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("accuracy", [0.5, 0.8])
def test_the_interval_of_an_accuracy_holds_the_truth_as_often_as_it_says(vote, correlation, accuracy):
    society, rng, held = Simulated(accuracy, correlation, 3), Random(4), 0
    truth = society.majority if vote else accuracy
    for _ in range(SIMULATIONS):
        found = summarize(scores(rng, society, 107, vote=vote))
        held += found.ci_low <= truth <= found.ci_high
    assert coverage(held)


def over_seeds(rng: Random, num_seeds: int, n: int, accuracy: float, differ: float, hardness) -> list[dict[str, float]]:
    """Return right and wrong answers of a method by seed, whose accuracies have the standard deviation `differ`."""
    shifts = [rng.gauss(0, differ) for _ in range(num_seeds)]
    return [{f"{q}": float(rng.random() < accuracy + shift + hardness[q]) for q in range(n)} for shift in shifts]


SEEDS = pytest.mark.parametrize(("num_seeds", "differ"), [(1, 0.0), (3, 0.02), (3, 0.04), (5, 0.05)], ids=str)


@pytest.mark.slow
@SEEDS
def test_over_several_seeds_the_interval_of_an_accuracy_holds_the_truth_too(num_seeds, differ):
    rng, held, n = Random(5), 0, 107
    for _ in range(SIMULATIONS):
        hardness = [rng.uniform(-0.3, 0.3) for _ in range(n)]
        found = accuracy_over(over_seeds(rng, num_seeds, n, 0.6, differ, hardness))
        held += found.low <= 0.6 <= found.high
    assert coverage(held)


@pytest.mark.slow
@SEEDS
def test_the_interval_of_a_difference_holds_the_truth_and_its_test_is_wrong_one_time_in_twenty(num_seeds, differ):
    rng, held, false_alarms, n = Random(6), 0, 0, 107
    for _ in range(SIMULATIONS):
        hardness = [rng.uniform(-0.2, 0.2) for _ in range(n)]
        ours, other, alike = (
            over_seeds(rng, num_seeds, n, accuracy, differ / 2**0.5, hardness) for accuracy in (0.7, 0.6, 0.7)
        )
        found = difference(ours, other)
        held += found.low <= 0.1 <= found.high
        false_alarms += difference(ours, alike).p_value <= 0.05
    assert coverage(held)
    assert 0.03 <= false_alarms / SIMULATIONS <= 0.07


@pytest.mark.slow
def test_three_seeds_that_differ_by_nothing_but_chance_have_intervals_a_little_too_wide():
    rng, held, n = Random(12), [0, 0], 107
    for _ in range(SIMULATIONS):
        hardness = [rng.uniform(-0.2, 0.2) for _ in range(n)]
        ours, other = (over_seeds(rng, 3, n, accuracy, 0.0, hardness) for accuracy in (0.7, 0.6))
        for kind, (found, truth) in enumerate(((accuracy_over(ours), 0.7), (difference(ours, other), 0.1))):
            held[kind] += found.low <= truth <= found.high
    assert all(0.95 <= one / SIMULATIONS <= 0.985 for one in held)


@pytest.mark.slow
def test_the_interval_of_a_gain_in_the_report_holds_the_truth():
    rng, held = Random(7), 0
    for _ in range(SIMULATIONS):
        hardness = [rng.uniform(-0.2, 0.2) for _ in range(107)]
        mine, other = ({q: rng.random() < p + hardness[q] for q in range(107)} for p in (0.75, 0.6))
        found = compare("debate", [mine], [other]).gap
        held += found.low <= 0.15 <= found.high
    assert coverage(held)


@pytest.mark.parametrize("correlation", [0.0, 0.4, 1.0])
def test_consensus_is_as_theory_says(correlation):
    society = Simulated(0.6, correlation, 3)
    held = list(society.debates(Random(9), NUM))
    outvoted = (society.share(1) + society.share(2)) / 3
    assert disagreement(held, held_out(held).votes) == pytest.approx(outvoted, abs=0.015)


@pytest.mark.parametrize("width", [0.2, 1.0, 2.0])
def test_dissimilarity_of_known_directions_is_as_theory_says(width):
    rng = Random(10)
    replies = [[(cos(a), sin(a)) for a in (rng.uniform(-width, width) for _ in range(3))] for _ in range(4000)]
    assert dissimilarity(replies) == pytest.approx(1 - (sin(width) / width) ** 2, abs=0.02)


@pytest.mark.slow
def test_kl_of_known_distributions_is_the_mean_over_ordered_pairs():
    import torch

    from maft.diversity.likelihood import divergences

    shares = torch.tensor([[0.5, 0.5], [0.9, 0.1], [0.5, 0.5]], dtype=torch.float64)
    found = divergences(shares.log().unsqueeze(1))
    there = 0.5 * torch.log(torch.tensor(0.5 / 0.9)) + 0.5 * torch.log(torch.tensor(0.5 / 0.1))
    back = 0.9 * torch.log(torch.tensor(0.9 / 0.5)) + 0.1 * torch.log(torch.tensor(0.1 / 0.5))
    assert found[0][1] == pytest.approx(float(there)) and found[1][0] == pytest.approx(float(back))
    assert mean_kl([found]) == pytest.approx(float(2 * there + 2 * back) / 6, abs=1e-6)


def test_votes_flow_between_rounds_as_they_were_made_to():
    rng, num = Random(11), NUM
    society, corrects, spoils = Simulated(0.6, 0.3, 3), (0.5, 0.2, 0.0), (0.0, 0.1, 0.4)
    held = []
    for number in range(num):
        first = society.answers(rng)
        turns = [rng.random() < (spoils[n] if a == RIGHT else corrects[n]) for n, a in enumerate(first)]
        last = [{RIGHT: WRONG, WRONG: RIGHT}[a] if turn else a for a, turn in zip(first, turns, strict=True)]
        held.append(debate(first, last, problem_id=f"q{number}"))
    for flow in flows(held, problems(num), 1, grade):
        wrong, right = flow.corrected + flow.stayed_wrong, flow.spoiled + flow.stayed_right
        assert wrong + right == num and right / num == pytest.approx(0.6, abs=0.04)
        assert flow.corrected / wrong == pytest.approx(corrects[flow.agent], abs=0.04)
        assert flow.spoiled / right == pytest.approx(spoils[flow.agent], abs=0.04)


def by_hand(text: str) -> dict[str, object]:
    """Read a file of debates without any of maft: accuracies of one answer, of the first vote and of the last."""
    single, votes = [], {1: [], 2: []}
    for line in text.splitlines():
        held = json.loads(line)
        left, sign, right = re.search(r"What is (\S+) (\S) (\S+)\?", held["question"]).groups()
        gold = {"+": int(left) + int(right), "-": int(left) - int(right), "*": int(left) * int(right)}[sign]
        for number in (1, 2):
            said = [turn["call"]["reply"]["text"] for turn in held["turns"] if turn["round"] == number]
            answers = [int(found[1]) if (found := re.search(r"boxed\{(-?\d+)\}", one)) else None for one in said]
            if number == 1:
                single.append(sum(answer == gold for answer in answers) / len(answers))
            counts = Counter(answer for answer in answers if answer is not None).most_common(2)
            tied = len(counts) == 2 and counts[0][1] == counts[1][1]
            votes[number].append(bool(counts) and not tied and counts[0][0] == gold)
    return {"single": single, "first": votes[1], "last": votes[2]}


def test_accuracies_of_every_iteration_are_those_of_the_raw_debates(tmp_path):
    def say(request) -> str:
        return "I do not know." if request.seed % 11 == 0 else sums(request)

    folder = run(settings(tmp_path, "num_iterations=2", "task.num_eval=12", "vote.ties=abstain"), Scripted(say))
    shown = {(row["iteration"], row["method"]): row["accuracy"] for row in report.rows(folder)}
    lines = {(one["iteration"], one["method"]): one["accuracy"] for one in metrics.lines(folder) if "method" in one}
    printed = [line.split() for line in report.table(folder).splitlines() if line.strip()[:2] in ("0 ", "1 ", "2 ")]
    for number in range(3):
        raw = by_hand((folder.evaluation(number) / "debates.jsonl").read_text())
        names = ("base", "majority@3", "debate") if number == 0 else ("maft_single", "maft_majority@3", "maft")
        summary = {
            row["method"]: row["accuracy"] for row in files.read_json(folder.evaluation(number) / "summary.json")
        }
        for method, right in zip(names, raw.values(), strict=True):
            accuracy = sum(right) / len(right)
            assert summary[method] == pytest.approx(accuracy)
            assert shown[number, method] == lines[number, method] == summary[method]
            assert [str(number), method, f"{accuracy:.1%}"] in [cells[:3] for cells in printed]
    assert len(set(shown.values())) > 2
