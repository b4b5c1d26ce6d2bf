r"""What a society is worth: votes of as many answers, from one of its members, from two, from all.

    maft eval recipes/arithmetic_cpu/config.yaml name=members_0 seed=0 debate.num_rounds=1 debate.num_eval_samples=12 \
      "society.generators=[A, B, C]" --iteration 0          # A, B, C: agents of a finished run, such as
                                                            # runs/results/seed_0/maft/iter_04/agents/generator_0
    python -m bench.society runs/members_0 runs/members_1 runs/members_2

Every member is a self-trained model, taught by the labels of the whole society. A vote of its answers is what it can do
alone; a vote of as many answers from several members costs the same, and differs in nothing but who gives them. For
each question the accuracy is a mean over DRAWS drawn votes. Intervals are over seeds and questions, see docs/report.md.
"""

import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from random import Random

from rich.console import Console
from rich.table import Table

from maft import answers, seeds, store, tasks
from maft.evaluation.paired import Accuracies, accuracy_over, difference
from maft.records import Debate, Problem
from maft.store import RunFolder

DRAWS = 100
Verdicts = Mapping[int, Sequence[tuple[int | None, float]]]
"""Of each agent's samples: the class of equal answers, None where it could not be read, and whether it is right."""


def verdicts(debate: Debate, right: Mapping[str, float]) -> Verdicts:
    """Return the samples of each agent to one question."""
    turns = debate.first_answers()
    classes = {
        place: number for number, places in enumerate(answers.group([t.answer for t in turns])) for place in places
    }
    found: dict[int, list[tuple[int | None, float]]] = {}
    for place, turn in enumerate(turns):
        found.setdefault(turn.agent, []).append((classes.get(place), right.get(turn.answer or "", 0.0)))
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


def measured(folder: RunFolder) -> dict[tuple[int, int], Accuracies]:
    """Return the accuracy on each question by number of votes and of members, of the newest evaluation of a run."""
    iteration = max(
        n for n in range(folder.config.num_iterations + 1) if (folder.evaluation(n) / "summary.json").exists()
    )
    problems = {problem.id: problem for problem in store.read_records(folder.problems("eval"), Problem)}
    grade = tasks.make(folder.config.task).grade
    found: dict[tuple[int, int], dict[str, float]] = {}
    for debate in store.read_records(folder.evaluation(iteration) / "debates.jsonl", Debate):
        said = {turn.answer for turn in debate.first_answers() if turn.answer is not None}
        right = {text: float(grade(problems[debate.problem_id], text) or False) for text in said}
        samples = verdicts(debate, right)
        for votes, members in choices(len(samples), min(map(len, samples.values()))):
            rng = seeds.rng(folder.config.seed, "society", votes, members, debate.problem_id)
            found.setdefault((votes, members), {})[debate.problem_id] = accuracy(samples, votes, members, rng)
    return dict(found)


def choices(num_agents: int, num_samples: int) -> Iterator[tuple[int, int]]:
    """Yield numbers of votes, and of members that share them equally."""
    for votes in range(num_agents, num_samples + 1, num_agents):
        yield from ((votes, members) for members in range(1, num_agents + 1) if votes % members == 0)


def main(paths: Sequence[Path]) -> None:
    """Print the table of one run or of several seeds."""
    runs = [measured(RunFolder.existing(path)) for path in paths]
    table = Table(
        *("votes", "members", "accuracy", "95 % interval", "minus one member", "95 % interval", "p"), box=None
    )
    for votes, members in runs[0]:
        mine, alone = ([run[votes, count] for run in runs] for count in (members, 1))
        found, gap = accuracy_over(mine), difference(mine, alone)
        assert found is not None and gap is not None
        beside = [f"{100 * gap.mean:+.1f}", f"{100 * gap.low:+.1f} to {100 * gap.high:+.1f}", f"{gap.p_value:.3f}"]
        table.add_row(
            *(str(votes), str(members), f"{100 * found.mean:.1f}", f"{100 * found.low:.1f} to {100 * found.high:.1f}"),
            *(beside if members > 1 else []),
        )
    Console(width=120).print(table)


if __name__ == "__main__":
    main([Path(path) for path in sys.argv[1:]])
