r"""What a society is worth: votes of as many answers, from one of its members, from two, from all.

    maft eval recipes/arithmetic_cpu/config.yaml name=members_0 seed=0 debate.num_rounds=1 debate.num_eval_samples=12 \
      "society.generators=[A, B, C]" --iteration 0          # A, B, C: agents of a finished run, such as
                                                            # runs/results/seed_0/maft/iter_04/agents/generator_0
    maft eval recipes/arithmetic_cpu/config.yaml name=single_0 seed=0 debate.num_rounds=1 debate.num_eval_samples=36 \
      debate.num_agents=1 "society.generators=[D]" --iteration 0     # D: one model, such as that of majority_ft
    python -m bench.society runs/members_0 runs/members_1 --against runs/single_0 runs/single_1

Every member is a self-trained model, taught by the labels of the whole society. A vote of its answers is what it can do
alone; a vote of as many answers from several members costs the same, and differs in nothing but who gives them. For
each question the accuracy is a mean over DRAWS drawn votes. Intervals are over seeds and questions, see docs/report.md.
"""

from argparse import ArgumentParser
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random

from rich.console import Console
from rich.table import Table

from maft import files, seeds, tasks
from maft.answers import EQUALITIES
from maft.evaluation.paired import Accuracies, accuracy_over, difference
from maft.records import Debate, Problem
from maft.runs.folder import RunFolder

DRAWS = 100
Share = tuple[int, int]
"""A number of votes, and of the members that share them equally."""
Verdicts = Mapping[int, Sequence[tuple[int | None, float]]]
"""Of each agent's samples: the class of equal answers, None where it could not be read, and whether it is right."""


def verdicts(debate: Debate, right: Mapping[str, float]) -> Verdicts:
    """Return the samples of each agent to one question."""
    turns = debate.first_answers()
    classes = EQUALITIES["mathematics"]().classes([turn.answer for turn in turns])
    found: dict[int, list[tuple[int | None, float]]] = {}
    for place, turn in enumerate(turns):
        found.setdefault(turn.agent, []).append((classes[place], right.get(turn.answer or "", 0.0)))
    return found


def accuracy(samples: Verdicts, num_votes: int, num_members: int, rng: Random) -> float:
    """Return how often a vote is right if drawn members give equal numbers of drawn answers; ties are drawn, too."""
    total = 0.0
    for _ in range(DRAWS):
        members = rng.sample(sorted(samples), num_members)
        drawn = [one for member in members for one in rng.sample(samples[member], num_votes // num_members)]
        counts = Counter(number for number, _ in drawn if number is not None)
        if counts:
            leaders = sorted(number for number, votes in counts.items() if votes == max(counts.values()))
            winner = rng.choice(leaders)
            total += next(grade for number, grade in drawn if number == winner)
    return total / DRAWS


def measured(folder: RunFolder, shares: Sequence[Share]) -> list[Accuracies]:
    """Return the accuracy on each question for each share of votes, of the newest evaluation of a run."""
    iteration = max(
        n for n in range(folder.config.num_iterations + 1) if (folder.evaluation(n) / "summary.json").exists()
    )
    problems = {problem.id: problem for problem in files.read_records(folder.problems("eval"), Problem)}
    grade = tasks.make(folder.config.task).grade
    found: list[dict[str, float]] = [{} for _ in shares]
    for debate in files.read_records(folder.evaluation(iteration) / "debates.jsonl", Debate):
        said = {turn.answer for turn in debate.first_answers() if turn.answer is not None}
        right = {text: float(grade(problems[debate.problem_id], text) or False) for text in said}
        samples = verdicts(debate, right)
        for place, (votes, members) in enumerate(shares):
            rng = seeds.rng(folder.config.seed, "society", votes, members, debate.problem_id)
            found[place][debate.problem_id] = accuracy(samples, votes, members, rng)
    return list(found)


def shares_of(folder: RunFolder) -> list[Share]:
    """Return numbers of votes, each with the numbers of members that can share them equally."""
    agents, samples = folder.config.debate.num_agents, folder.config.debate.num_eval_samples
    return [
        (votes, members)
        for votes in range(agents, samples + 1, agents)
        for members in range(1, agents + 1)
        if votes % members == 0
    ]


def row(mine: Sequence[Accuracies], other: Sequence[Accuracies]) -> list[str]:
    """Return an accuracy with its interval, and the difference to another with its interval and p-value."""
    found, gap = accuracy_over(mine), difference(mine, other)
    assert found is not None and gap is not None
    p_value = "< 0.001" if gap.p_value < 0.001 else f"{gap.p_value:.3f}"
    return [
        *(f"{100 * found.mean:.1f}", f"{100 * found.low:.1f} to {100 * found.high:.1f}"),
        *(f"{100 * gap.mean:+.1f}", f"{100 * gap.low:+.1f} to {100 * gap.high:+.1f}", p_value),
    ]


def main(societies: Sequence[Path], singles: Sequence[Path]) -> None:
    """Print the table of one run or of several seeds."""
    folders = [RunFolder.existing(path) for path in societies]
    shares = shares_of(folders[0])
    by_run = [measured(folder, shares) for folder in folders]
    alone = [(votes, 1) for votes, _ in shares]
    others = [measured(RunFolder.existing(path), alone) for path in singles] or [
        [run[shares.index(share)] for share in alone] for run in by_run
    ]
    other = "the single model" if singles else "one member"
    table = Table(*("votes", "members", "accuracy", "95 % interval", f"minus {other}", "95 % interval", "p"), box=None)
    for place, (votes, members) in enumerate(shares):
        cells = row([run[place] for run in by_run], [run[place] for run in others])
        table.add_row(str(votes), str(members), *(cells if singles or members > 1 else cells[:2]))
    Console(width=120).print(table)


if __name__ == "__main__":
    parser = ArgumentParser(prog="python -m bench.society", description="Votes of one member, of two, of all.")
    parser.add_argument("societies", nargs="+", type=Path, help="runs of the members, one for each seed")
    parser.add_argument("--against", nargs="*", default=[], type=Path, help="runs of single models, of the same seeds")
    given = parser.parse_args()
    main(given.societies, given.against)
