"""What each method answers, read off one debate on each held-out question.

The first round of a debate holds N independent answers, so a single answer, the vote over N and the debate's own vote
come from the same samples: the comparison is paired and nothing is computed twice.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from maft import seeds
from maft.config import VoteConfig
from maft.method.vote import ballots, tally
from maft.records import Call, Debate, Problem, Score, Turn
from maft.tasks.base import Grade, by_equality


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


class Scoring(NamedTuple):
    """What all scores of an iteration have in common."""

    problems: Mapping[str, Problem]
    iteration: int
    settings: VoteConfig
    run_seed: int
    grade: Grade = by_equality


def score_all(
    debates: Sequence[Debate], num_agents: int, how: Scoring, budget: int | None = None
) -> dict[str, list[Score]]:
    """Score every debate by the three methods, see `names`.

    Where there are further first answers, a fourth one, `majority@budget`, is the vote over as many of them as cost
    `budget` tokens, by default those of the debates, or over all if these are too few.
    """
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


def votes_at_budget(debates: Sequence[Debate], budget: int) -> int:
    """Return the smallest number of first answers to each question that cost `budget` tokens over all questions.

    If all of them together cost less, their number.
    """
    most = max(len(debate.first_answers()) for debate in debates)
    costs = ((k, tokens(t.call for d in debates for t in d.first_answers()[:k])) for k in range(1, most + 1))
    return next((k for k, cost in costs if cost >= budget), most)


def _single(debate: Debate, method: str, how: Scoring) -> Score:
    """One answer of one generator: the mean over all first answers, at the cost of one."""
    turns = debate.first_answers()
    answers = tuple(turn.answer for turn in turns) or (None,)
    return _score(debate, method, how, answers, [turn.call for turn in turns], share=1 / max(1, len(turns)))


def _debated(debate: Debate, method: str, how: Scoring) -> Score:
    over = how.settings.over
    turns = ballots(debate, over)
    return _voted(debate, turns, method, how, None if over == "first" else debate.calls(samples=over == "all"))


def _voted(
    debate: Debate, turns: Sequence[Turn], method: str, how: Scoring, calls: Sequence[Call] | None = None
) -> Score:
    """The vote over some of the answers, at their own cost if not told otherwise; a failed debate has no answer."""
    rng = seeds.rng(how.run_seed, "tie", method, how.iteration, debate.problem_id)
    answers = [turn.answer for turn in turns] if debate.error is None else []
    winner = tally(answers, rng, ties=how.settings.ties).winner
    return _score(debate, method, how, (winner,), [turn.call for turn in turns] if calls is None else calls)


def _score(
    debate: Debate,
    method: str,
    how: Scoring,
    answers: tuple[str | None, ...],
    calls: Sequence[Call],
    *,
    share: float = 1.0,
) -> Score:
    graded = [how.grade(how.problems[debate.problem_id], answer) for answer in answers]
    right = tuple(verdict for verdict in graded if verdict is not None) or None
    return Score(
        iteration=how.iteration,
        method=method,
        problem_id=debate.problem_id,
        answers=answers,
        correct=right,
        calls=len(calls) * share,
        prompt_tokens=sum(call.reply.prompt_tokens for call in calls) * share,
        completion_tokens=sum(call.reply.completion_tokens for call in calls) * share,
    )


def tokens(calls: Iterable[Call]) -> int:
    """Return the prompt and generated tokens of calls."""
    return sum(call.reply.prompt_tokens + call.reply.completion_tokens for call in calls)
