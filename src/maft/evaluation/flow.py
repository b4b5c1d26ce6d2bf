"""What becomes of each agent's answer between the first round and the last: who corrects, who spoils.

An agent that is not asked again keeps its answer.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from maft.evaluation.methods import HeldOut
from maft.evaluation.paired import Difference, difference
from maft.records import Debate, Problem, Record
from maft.tasks.base import Grade


class Flow(NamedTuple):
    """Counts of held-out questions of one iteration, by how one agent's answer changed."""

    iteration: int
    agent: int
    stayed_right: int
    corrected: int
    """Wrong at first, right in the end."""
    spoiled: int
    """Right at first, wrong in the end."""
    stayed_wrong: int


def flows(debates: Iterable[Debate], problems: Mapping[str, Problem], iteration: int, grade: Grade) -> list[Flow]:
    """Return one flow for each agent; none where nobody ever spoke twice.

    Debates that failed or are on a question without a known answer are left out.
    """
    counts: dict[int, Counter[tuple[bool, bool]]] = {}
    debated = False
    for debate in debates:
        problem = problems[debate.problem_id]
        if debate.error is not None or problem.gold is None:
            continue
        for final in debate.latest:
            debated |= final.round > 1
            first = debate.turns_of(final.agent)[0]
            change = (bool(grade(problem, first.answer)), bool(grade(problem, final.answer)))
            counts.setdefault(final.agent, Counter())[change] += 1
    return [
        Flow(iteration, agent, of[True, True], of[False, True], of[True, False], of[False, False])
        for agent, of in sorted(counts.items())
        if debated
    ]


class RoundFlow(Record):
    """What one round of critics changed, over all agents, questions and seeds."""

    round: int
    corrected: float
    """Answers that were wrong before the round and right after it, as a share of all."""
    spoiled: float
    """Right before, wrong after."""
    net: Difference
    """Share of right answers after the round minus before it, question by question."""


def by_round(seeds: Sequence[HeldOut]) -> list[RoundFlow]:
    """Return the flow of each round of critics; debates that failed or that nobody can grade are left out."""
    last = max((debate.turns[-1].round for held in seeds for debate in held.debates if debate.turns), default=1)
    rounds = []
    for number in range(2, last + 1):
        changes = [_changes(held, number) for held in seeds]
        sides = ([{id: of[side] for id, of in changed.items()} for changed in changes] for side in (1, 0))
        if (net := difference(*sides)) is not None:
            flows = [of for changed in changes for of in changed.values()]
            corrected, spoiled = (sum(of[place] for of in flows) / len(flows) for place in (2, 3))
            rounds.append(RoundFlow(round=number, corrected=corrected, spoiled=spoiled, net=net))
    return rounds


def _changes(held: HeldOut, number: int) -> dict[str, tuple[float, float, float, float]]:
    """Return, by question, the shares of answers right before a round, right after it, corrected, and spoiled."""
    changes = {}
    for debate in held.debates:
        verdicts = held.verdicts[debate.problem_id]
        if debate.error is not None:
            continue
        pairs = []
        for agent in {turn.agent for turn in debate.round(1)}:
            turns = debate.turns_of(agent)
            before, after = ([t for t in turns if t.round < number][-1], [t for t in turns if t.round <= number][-1])
            pairs.append((verdicts[before.answer], verdicts[after.answer]))
        if any(verdict is None for pair in pairs for verdict in pair):
            continue  # nobody knows the answer
        size = len(pairs)
        changes[debate.problem_id] = (
            sum(bool(before) for before, _ in pairs) / size,
            sum(bool(after) for _, after in pairs) / size,
            sum(bool(after) and not before for before, after in pairs) / size,
            sum(bool(before) and not after for before, after in pairs) / size,
        )
    return changes
