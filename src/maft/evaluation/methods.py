"""What each method answers, read off one debate on each held-out question.

The first round of a debate holds N independent answers, so a single answer, the vote over N and the debate's own vote
come from the same samples: the comparison is paired and nothing is computed twice.
"""

from collections.abc import Callable, Mapping, Sequence

from maft import seeds
from maft.answers import equivalent
from maft.config import VoteConfig
from maft.consensus import ballots, tally
from maft.records import Call, Debate, Problem, Score


def names(iteration: int, num_first: int) -> tuple[str, str, str]:
    """Return the names of the three methods: single answer, vote over the first answers, debate.

    >>> names(0, 3)
    ('base', 'majority@3', 'debate')
    >>> names(2, 3)
    ('maft_single', 'maft_majority@3', 'maft')
    """
    if iteration == 0:
        return "base", f"majority@{num_first}", "debate"
    return "maft_single", f"maft_majority@{num_first}", "maft"


def score_all(
    debates: Sequence[Debate],
    problems: Mapping[str, Problem],
    iteration: int,
    num_first: int,
    settings: VoteConfig,
    run_seed: int,
) -> dict[str, list[Score]]:
    """Score every debate by the three methods, see `names`."""
    single, majority, debated = names(iteration, num_first)

    def each(method: str, score: Callable[[Debate, Problem, str], Score]) -> list[Score]:
        return [score(debate, problems[debate.problem_id], method) for debate in debates]

    return {
        single: each(single, lambda d, p, m: _single(d, p, m, iteration)),
        majority: each(majority, lambda d, p, m: _voted(d, p, m, iteration, settings, run_seed, "first")),
        debated: each(debated, lambda d, p, m: _voted(d, p, m, iteration, settings, run_seed, settings.over)),
    }


def _single(debate: Debate, problem: Problem, method: str, iteration: int) -> Score:
    """One answer of one generator: the mean over all first answers, at the cost of one."""
    turns = debate.first_answers()
    answers = tuple(turn.answer for turn in turns) or (None,)
    return _score(problem, method, iteration, answers, [turn.call for turn in turns], share=1 / max(1, len(turns)))


def _voted(
    debate: Debate, problem: Problem, method: str, iteration: int, settings: VoteConfig, run_seed: int, which: str
) -> Score:
    """The vote over some of the answers, see `consensus.ballots`; a failed debate has no answer."""
    rng = seeds.rng(run_seed, "tie", method, iteration, debate.problem_id)
    counted = ballots(debate, which)
    answers = [turn.answer for turn in counted] if debate.error is None else []
    calls = [turn.call for turn in counted] if which == "first" else debate.calls(samples=which == "all")
    return _score(problem, method, iteration, (tally(answers, rng, ties=settings.ties).winner,), calls)


def _score(
    problem: Problem,
    method: str,
    iteration: int,
    answers: tuple[str | None, ...],
    calls: Sequence[Call],
    *,
    share: float = 1.0,
) -> Score:
    gold = problem.gold
    right = None if gold is None else tuple(a is not None and equivalent(a, gold) for a in answers)
    return Score(
        iteration=iteration,
        method=method,
        problem_id=problem.id,
        answers=answers,
        correct=right,
        calls=len(calls) * share,
        prompt_tokens=sum(call.reply.prompt_tokens for call in calls) * share,
        completion_tokens=sum(call.reply.completion_tokens for call in calls) * share,
    )
