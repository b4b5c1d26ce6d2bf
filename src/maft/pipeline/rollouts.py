"""Many debates side by side: batches, progress, resumption.

Debates of a batch go in step: what all of them ask at one moment is one call of the sampler. A batch is written when
it is finished; on resumption only the questions that are not in the file are debated.
"""

from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from maft import files, method
from maft.errors import StageFailed, UserError
from maft.method.protocol import Play, Rules
from maft.records import Debate, Problem, Reply, Request
from maft.samplers.base import Sampler

OnReply = Callable[[Reply], None]


def collect(
    problems: Sequence[Problem],
    rules: Rules,
    sampler: Sampler,
    path: Path,
    *,
    batch_size: int,
    max_failures: float = 0.1,
    on_reply: OnReply | None = None,
    on_resume: Callable[[Sequence[Debate]], None] | None = None,
    on_batch: Callable[[Sequence[Debate]], None] | None = None,
) -> list[Debate]:
    """Debate every question that is not in the file at `path` yet, and return all debates in the order of `problems`.

    Debates that failed earlier are held again.

    Raises:
        StageFailed: a share of more than `max_failures` of the debates failed, said after the batch that is too much;
            they are in the file to be looked at.
    """
    done = _finished(path)
    if on_resume:
        on_resume(list(done.values()))
    for start in range(0, len(problems), batch_size):
        owed = [problem for problem in problems[start : start + batch_size] if problem.id not in done]
        if owed:
            debates = play_all([method.play(problem, rules) for problem in owed], sampler, on_reply)
            files.append_records(path, debates)
            done |= {debate.problem_id: debate for debate in debates}
            if on_batch:
                on_batch(debates)
            _refuse_failures(done.values(), len(problems), max_failures, path)
    debates = [done[problem.id] for problem in problems]
    if list(done.values()) != debates:  # held again out of turn: the file is as an unbroken run writes it
        files.write_records(path, debates)
    return debates


def finished(path: Path, problems: Sequence[Problem]) -> list[Debate]:
    """Return the debates on all `problems`.

    Raises:
        UserError: there are questions that are not debated yet.
    """
    held = {debate.problem_id: debate for debate in files.read_records(path, Debate)} if path.exists() else {}
    owed = [problem for problem in problems if problem.id not in held]
    if owed:
        raise UserError(f"{len(owed)} of {len(problems)} questions are not debated yet. Do `maft debate` first.")
    return [held[problem.id] for problem in problems]


def play_all(plays: Sequence[Play], sampler: Sampler, on_reply: OnReply | None = None) -> list[Debate]:
    """Play debates in step until all are over, and return them in their order."""
    results: dict[int, Debate] = {}
    asked: dict[int, list[Request]] = {}

    def advance(number: int, replies: list[Reply] | None) -> None:
        try:
            asked[number] = next(plays[number]) if replies is None else plays[number].send(replies)
        except StopIteration as end:
            results[number] = end.value

    for number in range(len(plays)):
        advance(number, None)
    while asked:
        step, asked = asked, {}
        flat = [request for requests in step.values() for request in requests]
        replies = sampler.sample(flat, on_reply)
        assert len(replies) == len(flat), f"the sampler gave {len(replies)} replies to {len(flat)} requests"
        for number, requests in step.items():
            advance(number, replies[: len(requests)])
            replies = replies[len(requests) :]
    return [results[number] for number in range(len(plays))]


def _finished(path: Path) -> dict[str, Debate]:
    """Return the good debates of the file by problem id, and take the torn and the failed ones out of it."""
    files.drop_torn_line(path)
    present = files.read_records(path, Debate) if path.exists() else []
    good = [debate for debate in present if debate.error is None]
    if len(good) < len(present):
        files.write_records(path, good)
    return {debate.problem_id: debate for debate in good}


def _refuse_failures(held: Collection[Debate], num_owed: int, max_failures: float, path: Path) -> None:
    failed = [debate for debate in held if debate.error is not None]
    if len(failed) > max_failures * num_owed:
        raise StageFailed(
            f"{len(failed)} of {len(held)} debates failed, more than engine.max_failures = {max_failures:.0%} of "
            f"{num_owed} allows. The first: {failed[0].problem_id}: {failed[0].error}. All are in {path}; the same "
            "command holds them again, and goes on."
        )
