"""A judge model compares answers, pair by pair and in both orders, for tasks with `equality: judge`.

It is asked when the debates of a stage are finished, about all their questions at a time. What it said is kept in the
run folder (judgements.jsonl), so that no pair is asked twice, and votes look it up (`answers.meaning.Judged`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from typing import NamedTuple

from maft import engines, files, seeds, tasks
from maft.answers import extract_stated, thinking
from maft.answers.equality import folded
from maft.answers.meaning import Judged, Judgement, judgements
from maft.config import RunConfig, prompts
from maft.errors import StageFailed, UserError
from maft.evaluation.metrics import wilson
from maft.evaluation.votes import held_out, problems
from maft.records import AgentRef, Debate, Message, Problem, Record, Reply, Request
from maft.runs.folder import RunFolder
from maft.runs.progress import Progress
from maft.samplers.base import Sampler

PAIRS_AT_FIRST, PAIRS_AT_ONCE = 16, 256
"""Pairs that are asked about before it is looked at whether any reply has a verdict, and later each time."""
ENOUGH = 10
"""Replies of which one must have a verdict."""
HOSTED = "openai:"
"""Before the name of a hosted judge, where the agents are not hosted."""


_YES_OR_NO = re.compile(r"\W*(yes|no)\b(?=[\s*_]*(?:[.,;:!\n]|$))(?!,? and (?:yes|no)\b)", re.IGNORECASE)
_BETTER = re.compile(
    r"(?:the )?(first|second)(?: answer| one)? is (?:(?:clearly|much|slightly|somewhat) )?(?:the )?better\b"
    r"|(?:both|they|(?:both|the|the two) answers) are (equal)",
    re.IGNORECASE,
)
_REPEATED = re.compile(r"^\W*(?:first|second)(?: answer)?\W*:.*$", re.IGNORECASE | re.MULTILINE)
"""A line that repeats what was compared: "First answer: Yes" is no verdict."""


def yes_or_no(text: str) -> str | None:
    r"""Return yes or no, if a reply begins with it or states it.

    >>> [yes_or_no(text) for text in ('No, one says "Yes".', "**Yes**", "Both say yes.", r"Yes, so \boxed{no}")]
    ['no', 'yes', None, None]
    """
    rest = _REPEATED.sub("", thinking.strip(text).rest).strip()
    begins = _YES_OR_NO.match(rest)
    return _agreed([begins[1]] if begins else [], rest, ("yes", "no"))


def better(text: str) -> str | None:
    """Return first, second or equal, if a reply is that word, states it, or has a sentence that begins so.

    >>> [better(text) for text in ("Second.", "Both are good. The first answer is slightly better.", "Answer: equal")]
    ['second', 'first', 'equal']
    >>> [better(text) for text in ("First, I compare them.", "First answer: Rome", "Is the first better?")]
    [None, None, None]
    """
    rest = _REPEATED.sub("", thinking.strip(text).rest).strip()
    sentences = re.split(r"(?<=[.!?:])\s+|\n+", rest)
    matches = [match for sentence in sentences if (match := _BETTER.match(sentence.strip(" *_\"'")))]
    return _agreed([match[1] or match[2] for match in matches], rest, ("first", "second", "equal"))


def _agreed(verdicts: Sequence[str], text: str, words: tuple[str, ...]) -> str | None:
    """Return the one word among the verdicts given, the answer that a reply states, and the word that is all of it."""
    stated = [folded(part or "").strip(" .,;:!*_\"'`()[]") for part in (extract_stated(text), text)]
    plain = [part.removeprefix("the ").removesuffix(" answer") for part in stated]
    different = {word for word in (*map(folded, verdicts), *plain) if word in words}
    return different.pop() if len(different) == 1 else None


class Pair(NamedTuple):
    """Two answers to a question."""

    question: str
    a: str
    b: str


Ask = Callable[[Sequence[Request]], list[Reply]]


def _both_orders(pairs: Iterable[Pair]) -> list[Pair]:
    return [order for pair in pairs for order in (pair, Pair(pair.question, pair.b, pair.a))]


def judge(
    folder: RunFolder,
    debates: Iterable[Debate],
    sampler: Sampler,
    progress: Progress,
    title: str,
    known: Iterable[Problem] = (),
) -> None:
    """Ask the judge about each pair of different answers of the debates, and about each answer and the known one.

    Raises:
        StageFailed: as `compare`.
    """
    equality = tasks.make(folder.config.task).equality
    if not isinstance(equality, Judged):
        return
    gold = {problem.id: problem.gold for problem in known}
    pairs = [
        Pair(debate.question, a, b)
        for debate in debates
        for a, b in equality.unknown(debate.question, [*_answers(debate), gold.get(debate.problem_id)])
    ]
    if not pairs:
        return
    with progress.stage(title, 2 * len(pairs), "call") as bar, opened(folder.config, sampler) as engine:

        def ask(requests: Sequence[Request]) -> list[Reply]:
            return engine.sample(requests, lambda _: bar.advance())

        made = [judgement for some in _batches(pairs) for judgement in compare(some, folder.config, ask)]
    counts = Counter(judgement.same for judgement in made)
    unread, cut = (sum(getattr(judgement, name) for judgement in made) for name in ("unread", "cut"))
    verdicts = {"same": counts[True], "other": counts[False], "undecided": counts[None]}
    folder.log("judged", pairs=len(made), **verdicts, unread=unread, cut=cut)
    progress.say(
        f"{title}: {len(made)} pairs: {counts[True]} the same, {counts[False]} not, {counts[None]} undecided "
        f"({unread} of {2 * len(made)} replies without yes or no, {cut} of them cut)."
    )


def compare(pairs: Sequence[Pair], config: RunConfig, ask: Ask) -> list[Judgement]:
    """Ask about pairs in both orders, and keep what the judge says. Orders that disagree, and odd replies, abstain.

    Raises:
        StageFailed: no reply of ten or more says yes or no, or a call failed; the other pairs are kept.
    """
    template = prompts.build(tasks.make(config.task).prompts, config.prompts).same
    replies = ask([_request(one, template, config) for one in _both_orders(pairs)])
    failed = [reply.error is not None for reply in replies]
    answered = [number for number in range(len(pairs)) if not any(failed[2 * number : 2 * number + 2])]
    kept = [replies[place] for n in answered for place in (2 * n, 2 * n + 1)]
    said = _read(kept, yes_or_no, config, "same")
    cut = [reply.finish_reason == "length" for reply in kept]
    made = [
        Judgement(
            judge=config.task.judge,
            question=Judged.digest(pairs[n].question),
            a=min(map(folded, pairs[n][1:])),
            b=max(map(folded, pairs[n][1:])),
            same=first == "yes" if first == second and first is not None else None,
            unread=(first is None) + (second is None),
            cut=sum(cut[2 * place : 2 * place + 2]),
        )
        for place, (n, first, second) in enumerate(zip(answered, said[::2], said[1::2], strict=True))
    ]
    judgements.add(made)
    _refuse_failed(replies, config, 0)
    return made


class Preference(Record):
    """How often a judge finds the debate's answers after an iteration better than the untrained one's."""

    iteration: int
    judge: str
    n: int
    """Held-out questions to which both have an answer."""
    only_before: int = 0
    """Held-out questions that are left out since only the untrained society answered them."""
    only_after: int = 0
    """Held-out questions that are left out since only the finetuned society answered them."""
    wins: int
    """Better in both orders."""
    losses: int
    """Worse in both orders."""
    ties: int
    """Equal answers, orders that disagree, and replies without a verdict."""
    unread: int
    """Replies that said neither first, second nor equal, of two for each question with different answers."""
    cut: int = 0
    """Those of them that ended at the limit of tokens."""
    rate: float
    """Wins and half of the ties, as a share of n."""
    ci_low: float
    ci_high: float
    """Wilson's 95 % interval."""


def prefer(folder: RunFolder, iteration: int, sampler: Sampler, progress: Progress) -> Preference:
    """Ask the judge about each held-out question, in both orders; what is in the run folder is not asked again.

    Raises:
        UserError: the iteration, or the untrained society, is not evaluated.
        StageFailed: no reply of ten or more has a verdict.
    """
    if iteration == 0 or not (folder.evaluated(0) and folder.evaluated(iteration)):
        raise UserError(f"iteration {iteration} of {folder.path} is not evaluated, or is the untrained one.")
    path = folder.preference(iteration)
    if path.exists():
        return Preference.model_validate(files.read_json(path))
    before, after = held_out(folder, 0).votes, held_out(folder, iteration).votes
    answers = [(name, vote.label, before[name].label) for name, vote in after.items()]
    both = [(name, ours, theirs) for name, ours, theirs in answers if ours is not None and theirs is not None]
    if not both:
        raise UserError(f"no held-out question of {folder.path} has an answer before and after iteration {iteration}.")
    asked = problems(folder, "eval")
    pairs = [Pair(asked[name].question, a, b) for name, a, b in both if folded(a) != folded(b)]
    template = prompts.build(tasks.make(folder.config.task).prompts, folder.config.prompts).better
    replies, said = list[Reply](), list[str | None]()
    with progress.stage("judge", 2 * len(pairs), "call") as bar, opened(folder.config, sampler) as engine:
        for some in _batches(pairs):
            requests = [_request(order, template, folder.config) for order in _both_orders(some)]
            replies += engine.sample(requests, lambda _: bar.advance())
            _refuse_failed(replies, folder.config, folder.config.engine.max_failures)
            said = _read(replies, better, folder.config, "better")
    counts = Counter(zip(said[::2], said[1::2], strict=True))
    wins, losses, n = counts["first", "second"], counts["second", "first"], len(both)
    rate = (wins + (n - wins - losses) / 2) / n
    low, high = wilson(rate, n)
    made = Preference(
        iteration=iteration,
        judge=folder.config.task.judge,
        n=n,
        only_before=sum(ours is None and theirs is not None for _, ours, theirs in answers),
        only_after=sum(theirs is None and ours is not None for _, ours, theirs in answers),
        wins=wins,
        losses=losses,
        ties=n - wins - losses,
        unread=said.count(None),
        cut=sum(reply.finish_reason == "length" for reply in replies),
        rate=rate,
        ci_low=low,
        ci_high=high,
    )
    files.write_json(path, made.model_dump())
    return made


def preferences(folder: RunFolder) -> list[Preference]:
    """Return what judges have said of the iterations of a run so far."""
    paths = map(folder.preference, range(1, folder.config.num_iterations + 1))
    return [Preference.model_validate(files.read_json(path)) for path in paths if path.exists()]


def sentence(one: Preference) -> str:
    """Return a preference as a line of text."""
    return (
        f"Iteration {one.iteration} against the untrained society, judged by {one.judge}: {one.wins} better, "
        f"{one.losses} worse, {one.ties} equal or undecided of {one.n}: win rate {one.rate:.1%} "
        f"({one.ci_low:.1%} to {one.ci_high:.1%}); {one.unread} replies had no verdict, {one.cut} of them cut. "
        f"Left out: {one.only_before} questions that only the untrained society answered, "
        f"{one.only_after} that only the finetuned one did."
    )


def _read(
    replies: Sequence[Reply], verdict: Callable[[str], str | None], config: RunConfig, prompt: str
) -> list[str | None]:
    """Return the verdict in each reply; None where there is none, as in every reply that was cut.

    Raises:
        StageFailed: no reply of ten or more has one.
    """
    said = [verdict(reply.text) if reply.finish_reason == "stop" else None for reply in replies]
    if not any(said) and len(said) >= ENOUGH:
        cut = sum(reply.finish_reason == "length" for reply in replies)
        limit = f" {cut} were cut: raise sampling.train.summarizer.max_new_tokens." if cut else ""
        expected = "yes nor no" if prompt == "same" else "first, second nor equal"
        raise StageFailed(
            f"the judge {config.task.judge} said neither {expected} in {len(said)} replies, such as "
            f"{replies[0].text[:80]!r}.{limit} Name another task.judge, or change prompts.{prompt}."
        )
    return said


def _refuse_failed(replies: Sequence[Reply], config: RunConfig, share: float) -> None:
    """Stop if more than a share of the calls failed: a verdict that is missing must not count as one for good."""
    failed = [reply.error for reply in replies if reply.error is not None]
    if len(failed) > share * len(replies):
        raise StageFailed(
            f"{len(failed)} of {len(replies)} calls of the judge {config.task.judge} failed, more than {share:.0%}. "
            f"The first: {failed[0]}. The same command asks again."
        )


def opened(config: RunConfig, sampler: Sampler) -> AbstractContextManager[Sampler]:
    """Return what asks the judge: the run's own engine, or a hosted service beside it, which is closed at the end."""
    if not config.task.judge.startswith(HOSTED):
        return nullcontext(sampler)
    return engines.opened(config.model_copy(update={"engine": config.engine.model_copy(update={"sampler": "openai"})}))


def _request(pair: Pair, template: str, config: RunConfig) -> Request:
    text = prompts.fill(template, question=pair.question, first=pair.a, second=pair.b)
    name = config.task.judge
    model = config.model if name == "base" else name.removeprefix(HOSTED)
    return Request(
        agent=AgentRef(role="summarizer", index=1, model=model),
        messages=(Message(role="user", content=text),),
        sampling=config.sampling.train.summarizer.model_copy(update={"temperature": 0.0}),
        seed=seeds.seed(config.seed, "judge", pair.question, pair.a, pair.b),
    )


def _answers(debate: Debate) -> list[str | None]:
    return [turn.answer for turn in debate.all_turns]


def _batches(pairs: Iterable[Pair]) -> Iterator[list[Pair]]:
    rest, size = iter(pairs), PAIRS_AT_FIRST
    while some := list(islice(rest, size)):
        yield some
        size = PAIRS_AT_ONCE
