"""Many debates side by side: requests to one engine, progress, resumption.

A debate goes on as soon as its own replies are there, and the next question begins when a debate ends. Each debate is
written as it ends; on resumption only the questions that are not in the file are debated.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from maft import files, method
from maft.errors import StageFailed, UserError
from maft.files import Records
from maft.method.protocol import Play, Rules
from maft.records import Debate, Problem, Reply, Request
from maft.samplers.base import Sampler, answer

OnReply = Callable[[Reply], None]


class Count:
    """How many debates there were, and what they took; `cut` are the replies that reached their limit of tokens."""

    def __init__(self) -> None:
        self.debates = self.calls = self.prompt_tokens = self.completion_tokens = self.cut = 0

    def add(self, debate: Debate) -> None:
        """Count a debate."""
        replies = [call.reply for call in debate.calls()]
        self.debates += 1
        self.calls += len(replies)
        self.prompt_tokens += sum(reply.prompt_tokens for reply in replies)
        self.completion_tokens += sum(reply.completion_tokens for reply in replies)
        self.cut += sum(reply.finish_reason == "length" for reply in replies)


def collect(
    problems: Sequence[Problem],
    rules: Rules,
    sampler: Sampler,
    path: Path,
    *,
    batch_size: int,
    max_failures: float = 0.1,
    on_reply: OnReply | None = None,
    on_resume: Callable[[Count], None] | None = None,
    on_batch: Callable[[Count], None] | None = None,
) -> Records[Debate]:
    """Debate every question that is not in the file at `path` yet, and return all debates in the order of `problems`.

    Debates that failed earlier are held again.

    `on_reply` is told of every reply, `on_resume` of what the file has already, `on_batch` of each `batch_size` debates
    and of those at the end.

    Raises:
        StageFailed: a share of more than `max_failures` of the debates failed; no further debate is begun then. They
            are in the file to be looked at.
    """
    resumed, order = _finished(path)
    if on_resume:
        on_resume(resumed)
    done, failed, batch = set(order), list[Debate](), Count()

    def plays() -> Iterator[Play]:
        for problem in problems:
            if problem.id not in done and len(failed) <= max_failures * len(problems):
                yield method.play(problem, rules)

    def end_batch() -> None:
        nonlocal batch
        if batch.debates and on_batch:
            on_batch(batch)
        batch = Count()

    def on_debate(debate: Debate) -> None:
        batch.add(debate)
        order.append(debate.problem_id)
        if debate.error is not None:
            failed.append(debate)
        files.append_records(path, [debate], durable=batch.debates == batch_size or len(order) == len(problems))
        if batch.debates == batch_size:
            end_batch()

    hold(plays(), sampler, batch_size, on_debate, on_reply)
    end_batch()
    if len(failed) > max_failures * len(problems):
        raise StageFailed(
            f"{len(failed)} of {len(order)} debates failed, more than engine.max_failures = {max_failures:.0%} of "
            f"{len(problems)} allows. The first: {failed[0].problem_id}: {failed[0].error}. All are in {path}; the "
            "same command repeats them."
        )
    places = {problem_id: place for place, problem_id in enumerate(order)}
    in_order = [places[problem.id] for problem in problems]
    if in_order != list(range(len(order))):  # debates end in any order: the file has that of the questions
        files.keep_lines(path, in_order)
    return Records(path, Debate)


def finished(path: Path, problems: Sequence[Problem]) -> Records[Debate]:
    """Return the debates on all `problems`.

    Raises:
        UserError: there are questions that are not debated yet.
    """
    held = {debate.problem_id for debate in Records(path, Debate)} if path.exists() else set()
    missing = sum(problem.id not in held for problem in problems)
    if missing:
        raise UserError(f"{missing} of {len(problems)} questions are not debated yet. Run `maft debate` first.")
    return Records(path, Debate)


class _Seat:
    """A debate that waits for replies."""

    def __init__(self, play: Play) -> None:
        self.play = play
        self.replies: list[Reply] = []
        self.missing = 0


def hold(
    plays: Iterator[Play],
    sampler: Sampler,
    at_once: int,
    on_debate: Callable[[Debate], None],
    on_reply: OnReply | None = None,
) -> None:
    """Play debates, at most `at_once` at a time, and tell of each as it ends."""
    waiting: dict[int, tuple[_Seat, int]] = {}
    """Whose reply it is, and which one, by the number of the request."""
    numbers = itertools.count()

    def advance(seat: _Seat) -> list[Request]:
        try:
            requests = seat.play.send(seat.replies) if seat.replies else next(seat.play)
        except StopIteration as end:
            on_debate(end.value)
            return []
        seat.replies, seat.missing = [_NOTHING] * len(requests), len(requests)
        waiting.update((next(numbers), (seat, place)) for place in range(len(requests)))
        return requests

    def begin() -> list[Request]:
        return next(filter(None, (advance(_Seat(play)) for play in plays)), [])

    def take(number: int, reply: Reply) -> list[Request]:
        seat, place = waiting.pop(number)
        if on_reply:
            on_reply(reply)
        seat.replies[place] = reply
        seat.missing -= 1
        return [] if seat.missing else advance(seat) or begin()

    first = [request for _ in range(at_once) for request in begin()]
    if first:
        answer(sampler, first, take)
    assert not waiting, f"the sampler left {len(waiting)} requests without a reply"


_NOTHING = Reply(text="", finish_reason="error", error="there is no reply yet")


def play_all(plays: Sequence[Play], sampler: Sampler, on_reply: OnReply | None = None) -> list[Debate]:
    """Play debates all at a time, and return them in their order."""
    results: dict[int, Debate] = {}

    def watched(number: int, play: Play) -> Play:
        results[number] = yield from play
        return results[number]

    hold((watched(number, play) for number, play in enumerate(plays)), sampler, len(plays), lambda _: None, on_reply)
    return [results[number] for number in range(len(plays))]


def _finished(path: Path) -> tuple[Count, list[str]]:
    """Return the good debates of the file, counted and by problem id, and take the torn and the failed ones out."""
    files.drop_torn_line(path)
    count, ids, lines = Count(), list[str](), 0
    good: list[int] = []
    for line, debate in enumerate(Records(path, Debate) if path.exists() else ()):
        lines = line + 1
        if debate.error is None:
            count.add(debate)
            ids.append(debate.problem_id)
            good.append(line)
    if len(good) < lines:
        files.keep_lines(path, good)
    return count, ids
