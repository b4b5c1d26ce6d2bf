"""What becomes of each agent's answer between the first round and the last: who corrects, who spoils.

An agent that is not asked again keeps its answer.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from maft.records import Debate, Problem
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
