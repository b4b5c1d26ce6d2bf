"""The debates of a run as rows: a debate, a turn, a dialogue, and what can be learned from them.

Rows of training debates are for anybody to learn from; those of held-out questions are for reading and measuring only.
Known answers are not among the columns, only whether an answer is right.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

from maft import tasks
from maft.evaluation import votes as votes_
from maft.files import Records
from maft.method import contrast
from maft.method.formats import trl_row
from maft.records import Debate, Turn, Vote
from maft.runs.folder import RunFolder

Side = Literal["train", "held_out"]
SIDES: tuple[Side, ...] = ("train", "held_out")
Row = dict[str, Any]


class Trace(NamedTuple):
    """A debate with its vote and verdicts."""

    debate: Debate
    vote: Vote
    right: Mapping[str | None, bool | None]
    """Whether each of its answers is right; None where nobody knows."""
    society: int
    """How many iterations its agents were finetuned."""
    turn: int | None = None
    """With `train.online_questions`, the turn of the next iteration, from 1, in which it was held: its agents had
    learned in the turns before it, too."""


def of_run(run: RunFolder, side: Side, iteration: int | None = None) -> Iterator[Trace]:
    """Yield the finished debates of a run on training or held-out questions, of one iteration or of all."""
    for number in range(run.config.num_iterations + 1) if iteration is None else [iteration]:
        if side == "held_out" and run.evaluated(number):
            held = votes_.held_out(run, number)
            for debate in held.debates:
                yield Trace(debate, held.votes[debate.problem_id], held.verdicts[debate.problem_id], number)
        elif side == "train" and number and run.votes(number).exists():
            yield from _trained(run, number)


def _trained(run: RunFolder, number: int) -> Iterator[Trace]:
    debates = Records(run.debates(number), Debate)
    problems, task = votes_.problems(run, "train"), tasks.make(run.config.task)
    votes, of_turn = votes_.votes_of(run, number, debates), run.config.train.online_questions
    grade = votes_.train_grade(run.config)
    for place, debate in enumerate(debates):
        vote, problem = votes[debate.problem_id], problems[debate.problem_id]
        graded = votes_.graded(vote, debate, problem, grade, task.equality.medoid)
        yield Trace(debate, graded, graded.verdicts(debate), number - 1, place // of_turn + 1 if of_turn else None)


def debate_row(trace: Trace) -> Row:
    """Return a debate: its question, label and cost."""
    debate, vote = trace.debate, trace.vote
    calls = debate.calls()
    return {
        **_place(trace),
        "question": debate.question,
        "label": vote.label,
        "label_correct": None if vote.label is None else trace.right.get(vote.label),
        "agreement": vote.agreement,
        "margin": vote.margin,
        "tied": vote.tied,
        "dropped": vote.dropped,
        "num_turns": len(debate.turns),
        "num_calls": len(calls),
        "prompt_tokens": sum(call.reply.prompt_tokens for call in calls),
        "completion_tokens": sum(call.reply.completion_tokens for call in calls),
        "error": debate.error,
    }


def turn_rows(trace: Trace) -> Iterator[Row]:
    """Yield the turns of a debate, further first answers last."""
    for turn in trace.debate.all_turns:
        reply = turn.call.reply
        yield {
            **_place(trace),
            "round": turn.round,
            "agent": turn.call.agent,
            "prompt": turn.call.prompt,
            "reply": reply.text,
            **_verdict(trace, turn),
            "cut": turn.cut,
            "shown_to_others": turn not in trace.debate.samples,
            "prompt_tokens": reply.prompt_tokens,
            "completion_tokens": reply.completion_tokens,
        }


def message_rows(trace: Trace) -> Iterator[Row]:
    """Yield each agent's own dialogue in a debate, prompts and replies in turn."""
    for last in trace.debate.latest:
        messages = [message.model_dump() for message in trace.debate.dialogue(last.agent)]
        yield {**_place(trace), "agent": last.call.agent, "messages": messages, **_verdict(trace, last)}


def preference_rows(trace: Trace) -> Iterator[Row]:
    """Yield pairs of replies to a prompt as TRL has them: one that agrees with the vote, and one that does not."""
    for example in contrast.of_society(trace.debate, trace.vote, "pairs"):
        yield {**_place(trace), "agent": example.agent, **trl_row(example)}


def unpaired_rows(trace: Trace) -> Iterator[Row]:
    """Yield replies as TRL has unpaired preferences: `label` says whether a reply agrees with the vote."""
    for example in contrast.of_society(trace.debate, trace.vote, "judged"):
        yield {**_place(trace), "agent": example.agent, **trl_row(example)}


def _place(trace: Trace) -> Row:
    return {"society": trace.society, "turn": trace.turn, "problem_id": trace.debate.problem_id}


def _verdict(trace: Trace, turn: Turn) -> Row:
    agrees = None if trace.vote.label is None else turn.answer in trace.vote.agreeing(trace.debate)
    return {"answer": turn.answer, "agrees": agrees, "correct": trace.right.get(turn.answer)}
