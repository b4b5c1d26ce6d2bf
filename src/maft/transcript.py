"""A debate as text for people: who said what, how the vote went, who was kept and why."""

import difflib
import textwrap
from collections.abc import Mapping

from maft import store
from maft.answers import equivalent
from maft.errors import DataError
from maft.records import Call, Debate, Example, Problem, Turn, Vote
from maft.store import RunFolder


def find(folder: RunFolder, problem_id: str, iteration: int | None = None, stage: str | None = None) -> str:
    """Return the transcript of a question's debate; without an iteration, of the last one that has it.

    Raises:
        DataError: there is no such debate; names the questions with the nearest ids.
    """
    sides = {side: _problems(folder, side) for side in ("train", "eval")}
    side = stage or next((side for side, problems in sides.items() if problem_id in problems), None)
    if side is None or problem_id not in sides[side]:
        known = [name for problems in sides.values() for name in problems]
        near = difflib.get_close_matches(problem_id, known, n=3, cutoff=0.3) or known[:3]
        raise DataError(
            f"{folder.path} has no question {problem_id!r}{f' among those of {stage}' if stage else ''}. It has "
            f"{len(known)}, such as {', '.join(map(repr, near))}; see problems/ in the folder."
        )
    numbers = [iteration] if iteration is not None else range(folder.config.num_iterations, -1, -1)
    for number in numbers:
        path = folder.debates(number) if side == "train" else folder.evaluation(number) / "debates.jsonl"
        for debate in store.read_records(path, Debate) if path.exists() else []:
            if debate.problem_id == problem_id:
                return render(debate, sides[side][problem_id], *_outcome(folder, debate, side))
    where = f"iteration {iteration}" if iteration is not None else "any iteration"
    raise DataError(f"question {problem_id!r} ({side}) has not been debated in {where} yet.")


def render(debate: Debate, problem: Problem, vote: Vote | None, kept: Mapping[str, str]) -> str:
    """Return a transcript; `vote` and `kept` (kind of example by agent) are those of a training debate."""
    gold = "not known" if problem.gold is None else f"{problem.gold} (never shown to training)"
    lines = [f"Question {problem.id}: {problem.question}", f"Gold answer: {gold}", f"Iteration {debate.iteration}"]
    for number in sorted({turn.round for turn in debate.turns}):
        lines += ["", f"== Round {number} " + "=" * 60]
        for turn in debate.round(number):
            lines += _turn(turn, problem)
    if debate.error is not None:
        lines += ["", f"The debate failed: {debate.error}"]
    if vote is not None:
        lines += ["", "== Vote " + "=" * 64, _vote(vote)]
        lines += _kept(debate, vote, kept)
    return "\n".join(lines)


def safe(text: str) -> str:
    r"""Return text of a model with control characters spelt out, so that it cannot steer the terminal.

    >>> safe("a\x1b[2Jb")
    'a\\x1b[2Jb'
    """
    return "".join(c if c in "\n\t" or c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _turn(turn: Turn, problem: Problem) -> list[str]:
    mark = ""
    if problem.gold is not None:
        mark = " (right)" if turn.answer is not None and equivalent(turn.answer, problem.gold) else " (wrong)"
    answer = "none that could be read" if turn.answer is None else safe(turn.answer)
    lines = ["", f"-- {turn.call.agent}: answer {answer}{mark}"]
    if turn.summary is not None:
        lines += [f"   read this summary by {turn.summary.agent}:", *_quoted(turn.summary, "   > ")]
    return lines + _quoted(turn.call, "   ")


def _quoted(call: Call, prefix: str) -> list[str]:
    wrapped = [part for line in safe(call.reply.text).split("\n") for part in textwrap.wrap(line, 100) or [""]]
    end = [f"{prefix}[cut at the token limit]"] if call.reply.finish_reason == "length" else []
    return [f"{prefix}{line}" for line in wrapped] + end


def _vote(vote: Vote) -> str:
    counts = ", ".join(f"{safe(label)}: {votes}" for label, votes in vote.counts) or "no answers"
    tie = ", drawn among equals" if vote.tied else ""
    return f"{counts}; {vote.abstained} of {vote.num_agents} abstained. Label: {safe(vote.label or 'none')}{tie}."


def _kept(debate: Debate, vote: Vote, kept: Mapping[str, str]) -> list[str]:
    if vote.dropped is not None:
        return [f"Not used for training: {vote.dropped.replace('_', ' ')}."]
    learners = [(f"generator_{turn.agent}", turn) for turn in debate.round(1)]
    learners += [(f"critic_{turn.agent}", turn) for turn in debate.round(-1) if turn.round > 1]
    return [
        f"{agent}: {f'kept ({kept[agent]})' if agent in kept else _why_not(turn, vote)}" for agent, turn in learners
    ]


def _why_not(turn: Turn, vote: Vote) -> str:
    if turn.answer is None:
        return "dropped, its answer could not be read"
    if vote.label is not None and equivalent(turn.answer, vote.label):
        return "dropped to mix corrected and kept answers as asked"
    return "dropped, its answer is not the label"


def _problems(folder: RunFolder, side: str) -> dict[str, Problem]:
    path = folder.problems(side)
    return {problem.id: problem for problem in store.read_records(path, Problem)} if path.exists() else {}


def _outcome(folder: RunFolder, debate: Debate, side: str) -> tuple[Vote | None, dict[str, str]]:
    """Return the vote on a training debate, and the kind of example it became for each agent."""
    path = folder.votes(debate.iteration)
    if side != "train" or not path.exists():
        return None, {}
    vote = next(vote for vote in store.read_records(path, Vote) if vote.problem_id == debate.problem_id)
    files = sorted(folder.examples_summary(debate.iteration).parent.glob("*.jsonl"))
    examples = [example for file in files for example in store.read_records(file, Example)]
    return vote, {example.agent: example.kind for example in examples if example.problem_id == debate.problem_id}
