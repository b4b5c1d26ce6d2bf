"""Whether finetuning ruined an agent: its replies on held-out questions, compared with those of the iteration before.

No known answers are needed, and each agent is compared with itself. A rise counts if it passes its limit in `guard` and
cannot be chance: the Wilson intervals of the two shares, at three standard errors, lie apart. With fewer than ten
questions they never do.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import NamedTuple

from maft.config import GuardConfig
from maft.evaluation.methods import HeldOut
from maft.evaluation.metrics import wilson

STANDARD_ERRORS = 3.0
NAMES = {
    "unparsed": "replies without a readable answer",
    "cut": "replies that reach the token limit",
    "same_answer": "questions with the same answer",
    "disagreement": "other agents' first answers that differ from the agent's own",
}
"""What each measure is a share of, by its limit in `guard`."""

Measures = Mapping[str, Mapping[str, float]]
"""Values of one measure of one agent by problem id; each from 0 to 1."""


class Collapse(NamedTuple):
    """One measure of one agent that rose by more than its limit."""

    agent: str
    measure: str
    before: float
    after: float
    limit: float


def measures(held: HeldOut) -> dict[str, Measures]:
    """Return the measures of each agent that spoke: of generators in round 1, of critics in their last turn.

    A critic that is not asked again keeps its answer where it is compared with those of others, so that debates which
    end early do not change whom it is compared on.
    """
    values: dict[str, dict[str, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    answers: dict[str, dict[str, str]] = defaultdict(dict)
    for debate in held.debates:
        if debate.error is not None:
            continue
        first, classes = debate.round(1), held.votes[debate.problem_id].classes(debate) | {None: None}
        for role, turns in (("generator", first), ("critic", debate.latest)):
            for turn in turns:
                agent, number = f"{role}_{turn.agent}", classes[turn.answer]
                if others := [classes[other.answer] for other in first if other.agent != turn.agent]:
                    same = sum(number is not None and other == number for other in others)
                    values[agent]["disagreement"][debate.problem_id] = 1 - same / len(others)
                if role == "generator" or turn.round > 1:
                    values[agent]["unparsed"][debate.problem_id] = float(number is None)
                    values[agent]["cut"][debate.problem_id] = float(turn.cut)
                    if turn.answer is not None:
                        answers[agent][debate.problem_id] = turn.answer
    for agent, of_agent in answers.items():
        ((most_frequent, _),) = Counter(of_agent.values()).most_common(1)
        values[agent]["same_answer"] = {id: float(answer == most_frequent) for id, answer in of_agent.items()}
    return {agent: dict(of_agent) for agent, of_agent in values.items() if "unparsed" in of_agent}


def collapses(before: Mapping[str, Measures], after: Mapping[str, Measures], limits: GuardConfig) -> list[Collapse]:
    """Return what rose by more than its limit and by more than chance, the largest rise of each measure first."""
    rises = []
    for measure in NAMES:
        limit = getattr(limits, measure)
        for agent in after:
            old, new = (list(of.get(agent, {}).get(measure, {}).values()) for of in (before, after))
            if not old or not new:
                continue
            was, now = sum(old) / len(old), sum(new) / len(new)
            apart = wilson(now, len(new), STANDARD_ERRORS)[0] > wilson(was, len(old), STANDARD_ERRORS)[1]
            if now - was > limit and apart:
                rises.append(Collapse(agent, measure, was, now, limit))
    order = list(NAMES)
    return sorted(rises, key=lambda rise: (order.index(rise.measure), rise.before - rise.after, rise.agent))


def sentence(found: list[Collapse], iteration: int) -> str:
    """Say what collapsed: for each measure the agent with the largest rise, and how many others."""
    parts = []
    for measure in dict.fromkeys(one.measure for one in found):
        of_measure = [one for one in found if one.measure == measure]
        worst, others = of_measure[0], len(of_measure) - 1
        also = f" and {others} other agent{'s' * (others > 1)}" if others else ""
        parts.append(
            f"the share of {NAMES[measure]} rose from {worst.before:.0%} to {worst.after:.0%} for {worst.agent}{also}, "
            f"more than guard.{measure} = {worst.limit:g} allows"
        )
    return f"iteration {iteration} collapsed on the held-out questions: {'; '.join(parts)}."
