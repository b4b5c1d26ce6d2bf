"""How much of an accuracy is format: single answers, with replies read anew where the task cannot read them."""

from collections.abc import Mapping

from maft.answers.extract import extract_number
from maft.evaluation.methods import HeldOut
from maft.records import Debate, Problem
from maft.tasks import Task


def lenient(held: HeldOut, problems: Mapping[str, Problem], task: Task) -> dict[str, float]:
    """Return the accuracy of first answers on each question whose answer is known.

    A reply without an answer that the task can read counts as right if its last number or its last line is.
    """
    return {
        debate.problem_id: sum(right) / len(right)
        for debate in held.debates
        if held.verdicts[debate.problem_id] and (right := _right(debate, held, problems[debate.problem_id], task))
    }


def _right(debate: Debate, held: HeldOut, problem: Problem, task: Task) -> list[bool]:
    verdicts = held.verdicts[debate.problem_id]
    right = []
    for turn in debate.first_answers():
        verdict = verdicts[turn.answer]
        if verdict is None:
            return []
        if turn.answer is None:
            text = turn.call.reply.text.strip()
            read = {extract_number(text), text.rpartition("\n")[2].strip() or None} - {None}
            verdict = any(task.grade(problem, answer) for answer in read)
        right.append(verdict)
    return right or ([False] if problem.gold is not None else [])
