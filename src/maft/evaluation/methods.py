"""What each method answers, read off one debate on each held-out question.

The first round of a debate holds N independent answers, so a single answer, the vote over N and the debate's own vote
come from the same samples: the comparison is paired and nothing is computed twice.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Literal, NamedTuple

from maft.config import RunConfig
from maft.method.vote import tally_of
from maft.records import Call, Debate, GradedVote, Problem, Score, Turn


def names(iteration: int, num_agents: int) -> tuple[str, str, str]:
    """Return the names of the three methods: single answer, vote over N first answers, debate.

    >>> names(0, 3)
    ('base', 'majority@3', 'debate')
    >>> names(2, 3)
    ('maft_single', 'maft_majority@3', 'maft')
    """
    if iteration == 0:
        return "base", f"majority@{num_agents}", "debate"
    return "maft_single", f"maft_majority@{num_agents}", "maft"


class HeldOut:
    """The debates of one society on held-out questions, with their votes."""

    def __init__(self, debates: Iterable[Debate], votes: Iterable[GradedVote]) -> None:
        self.debates = debates
        self.votes = {vote.problem_id: vote for vote in votes}
        self.verdicts = {debate.problem_id: self.votes[debate.problem_id].verdicts(debate) for debate in debates}
        """Whether each answer to each question is right; None where nobody knows."""

    def pairs(self) -> Iterator[tuple[Debate, GradedVote]]:
        """Yield every debate with its vote."""
        return ((debate, self.votes[debate.problem_id]) for debate in self.debates)

    def grade(self, problem: Problem, answer: str | None) -> bool | None:
        """Look up whether an answer that was given is right."""
        return self.verdicts[problem.id][answer]


class Scoring(NamedTuple):
    """What all scores of an iteration have in common."""

    held: HeldOut
    iteration: int
    config: RunConfig


def score_all(how: Scoring, budget: int | None = None) -> dict[str, list[Score]]:
    """Score every debate by the three methods, see `names`.

    Where there are further first answers, a fourth one, `majority@budget`, is the vote over as many of them as cost
    `budget` tokens, by default those of the debates, or over all if these are too few.
    """
    debates, num_agents = how.held.debates, how.config.debate.num_agents
    if budget is None:
        budget = tokens(call for debate in debates for call in debate.calls(samples=False))
    single, majority, debated = names(how.iteration, num_agents)
    scores = {
        single: [_single(debate, single, how) for debate in debates],
        majority: [_voted(debate, debate.round(1), majority, how) for debate in debates],
    }
    if any(debate.samples for debate in debates):
        num_votes, at_budget = votes_at_budget(debates, budget), majority.replace(f"@{num_agents}", "@budget")
        first = [debate.first_answers()[:num_votes] for debate in debates]
        scores[at_budget] = [_voted(d, turns, at_budget, how) for d, turns in zip(debates, first, strict=True)]
    scores[debated] = [_debated(debate, debated, how) for debate in debates]
    return scores


def votes_at_budget(debates: Iterable[Debate], budget: int) -> int:
    """Return the smallest number of first answers to each question that cost `budget` tokens over all questions.

    If all of them together cost less, their number.
    """
    each: Counter[int] = Counter()
    for debate in debates:
        each.update({place: tokens([turn.call]) for place, turn in enumerate(debate.first_answers())})
    costs = accumulate(each[place] for place in range(len(each)))
    return next((number for number, cost in enumerate(costs, 1) if cost >= budget), len(each))


def score_member(how: Scoring, agent: int) -> list[Score]:
    """Score one answer of one generator to every question."""
    return [_single(debate, f"generator_{agent}", how, agent) for debate in how.held.debates]


def agreeing_most(held: HeldOut, num_agents: int) -> int:
    """Return the generator whose first answers agree most often with the votes; no known answer is looked at."""
    agreed: Counter[int] = Counter()
    for debate in held.debates:
        label = held.votes[debate.problem_id].agreeing(debate)
        agreed.update(turn.agent for turn in debate.round(1) if turn.answer in label)
    return max(range(num_agents), key=lambda agent: agreed[agent])


def _single(debate: Debate, method: str, how: Scoring, agent: int | None = None) -> Score:
    """One answer of one generator: the mean over all first answers, or those of one agent, at the cost of one."""
    turns, classes = debate.first_answers(agent), how.held.votes[debate.problem_id].classes(debate)
    answers = tuple(None if classes[turn.answer] is None else turn.answer for turn in turns) or (None,)
    calls = [turn.call for turn in turns]
    return _score(debate, method, how, answers, calls, "failed" if not turns else None, 1 / max(1, len(turns)))


def _voted(debate: Debate, turns: Sequence[Turn], method: str, how: Scoring) -> Score:
    """The vote over some of the answers, at their own cost."""
    classes = how.held.votes[debate.problem_id].partition or ()
    tally = tally_of(debate, classes, turns, how.config.vote, how.config.seed)
    calls = [turn.call for turn in turns]
    return _score(debate, method, how, (tally.winner,), calls, _no_answer(debate, tally.winner, tally.tied))


def _debated(debate: Debate, method: str, how: Scoring) -> Score:
    """The vote of the debate, at the cost of the whole debate unless first answers alone are counted."""
    over, vote = how.config.vote.over, how.held.votes[debate.problem_id]
    first = [turn.call for turn in debate.first_answers()]
    calls = first if over == "first" else debate.calls(samples=over == "all")
    return _score(debate, method, how, (vote.label,), calls, _no_answer(debate, vote.label, vote.tied))


def _no_answer(debate: Debate, answer: str | None, tied: bool) -> Literal["failed", "tied"] | None:
    if debate.error is not None:
        return "failed"
    return "tied" if answer is None and tied else None


def _score(
    debate: Debate,
    method: str,
    how: Scoring,
    answers: tuple[str | None, ...],
    calls: Sequence[Call],
    no_answer: Literal["failed", "tied"] | None,
    share: float = 1.0,
) -> Score:
    verdicts = how.held.verdicts[debate.problem_id]
    right = tuple(verdict for answer in answers if (verdict := verdicts[answer]) is not None) or None
    return Score(
        iteration=how.iteration,
        method=method,
        problem_id=debate.problem_id,
        answers=answers,
        correct=right,
        no_answer=no_answer,
        calls=len(calls) * share,
        prompt_tokens=sum(call.reply.prompt_tokens for call in calls) * share,
        completion_tokens=sum(call.reply.completion_tokens for call in calls) * share,
    )


def tokens(calls: Iterable[Call]) -> int:
    """Return the prompt and generated tokens of calls."""
    return sum(call.reply.prompt_tokens + call.reply.completion_tokens for call in calls)
