"""STaR, a baseline: one model learns from its own right answers, and from those it finds when given the answer.

Zelikman et al., *STaR: Bootstrapping Reasoning With Reasoning*, 2022. This is the one place where training may read the
known answers, and only if asked to: without them, the vote over first answers takes their place.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from maft import files, tasks
from maft.config import prompts
from maft.errors import DataError
from maft.method import learners
from maft.method.curate import CurateCounts, Curated, limit
from maft.pipeline import judging
from maft.pipeline import run as pipeline
from maft.records import Debate, Example, Message, Problem, Society
from maft.runs import societies
from maft.runs.folder import RunFolder
from maft.runs.progress import Progress
from maft.samplers.base import Sampler
from maft.trainers.base import Trainer


def run(folder: RunFolder, sampler: Sampler, trainer: Trainer, progress: Progress, *, with_gold: bool) -> None:
    """Carry out STaR in a run folder, or what is left of it; the config must be of one model and one round.

    Raises:
        DataError: `with_gold`, and a training question has no known answer.
    """
    split = pipeline.questions(folder)
    society = societies.untrained(folder.config)
    pipeline.evaluate(folder, 0, society, split.eval, sampler, progress)
    for iteration in range(1, folder.config.num_iterations + 1):
        train = tasks.train_set(split.train, folder.config.task, iteration)
        debates = list(pipeline.debate(folder, iteration, society, train, sampler, progress))
        if with_gold:
            judging.judge(folder, debates, sampler, progress, f"iteration {iteration}: judge", train)
        labels = _gold(folder, train) if with_gold else _votes(folder, iteration, debates)
        hinted = _ask_with_hints(folder, iteration, society, train, debates, labels, sampler, progress)
        judging.judge(folder, hinted, sampler, progress, f"iteration {iteration}: judge", train)
        counts = _make_examples(folder, iteration, debates, hinted, labels)
        if not any(counts.values()):
            progress.say(f"Iteration {iteration}: no reply is right, so that nothing is learned.")
        sampler.release()
        society = pipeline.train(folder, iteration, society, counts, trainer, progress)
        pipeline.evaluate(folder, iteration, society, split.eval, sampler, progress)
    sampler.release()


class _Labels(NamedTuple):
    """What the answers to the training questions are held against."""

    hints: Mapping[str, str]
    """The label of each question that has one."""
    right: Callable[[Debate], Collection[str | None]]
    """Returns the answers of a debate that are the label."""


def check_gold(problems: Sequence[Problem]) -> None:
    """Refuse questions without a known answer.

    Raises:
        DataError: names one.
    """
    unknown = [problem.id for problem in problems if problem.gold is None]
    if unknown:
        raise DataError(
            f"method star learns from known answers, and {len(unknown)} of {len(problems)} training questions have "
            f"none, such as {unknown[0]}. Leave it out, or compare star_label_free."
        )


def _gold(folder: RunFolder, problems: Sequence[Problem]) -> _Labels:
    check_gold(problems)
    by_id, task = {problem.id: problem for problem in problems}, tasks.make(folder.config.task)

    def right(debate: Debate) -> Collection[str | None]:
        answers = {turn.answer for turn in debate.first_answers()}
        return {answer for answer in answers if task.grade(by_id[debate.problem_id], answer)}

    known = {problem.id: task.reference(problem) for problem in problems}
    return _Labels({name: answer for name, answer in known.items() if answer is not None}, right)


def _votes(folder: RunFolder, iteration: int, debates: Sequence[Debate]) -> _Labels:
    """Take the votes; every label is some agent's answer, so that none is asked again with a hint."""
    votes = {name: vote for name, vote in pipeline.vote(folder, iteration, debates).items() if vote.dropped is None}

    def right(debate: Debate) -> Collection[str | None]:
        return votes[debate.problem_id].agreeing(debate) if debate.problem_id in votes else ()

    return _Labels({name: vote.label for name, vote in votes.items() if vote.label is not None}, right)


def _ask_with_hints(
    folder: RunFolder,
    iteration: int,
    society: Society,
    problems: Sequence[Problem],
    debates: Sequence[Debate],
    labels: _Labels,
    sampler: Sampler,
    progress: Progress,
) -> list[Debate]:
    """Ask again, with the label as a hint, every question that none of the first answers got right.

    The debates are returned with the plain question, by which a judge compares their answers.
    """
    rules = pipeline.debate_rules(folder, iteration, society, "train")._replace(stage="hint")
    fill = partial(prompts.fill, rules.prompts.hint)
    failed = {d.problem_id for d in debates if d.problem_id in labels.hints and not labels.right(d)}
    asked = [
        problem.model_copy(update={"question": fill(question=problem.question, hint=labels.hints[problem.id])})
        for problem in problems
        if problem.id in failed
    ]
    path = folder.hints(iteration)
    if folder.examples_summary(iteration).exists() or not asked:
        return _with_questions(files.read_records(path, Debate), problems) if path.exists() else []
    held = pipeline.collect(folder, rules, asked, path, sampler, progress, f"iteration {iteration}: hints")
    return _with_questions(held, problems)


def _with_questions(debates: Iterable[Debate], problems: Sequence[Problem]) -> list[Debate]:
    plain = {problem.id: problem.question for problem in problems}
    return [debate.model_copy(update={"question": plain[debate.problem_id]}) for debate in debates]


def _make_examples(
    folder: RunFolder, iteration: int, debates: Sequence[Debate], hinted: Sequence[Debate], labels: _Labels
) -> dict[str, int]:
    """Write the right answers as examples, those found with a hint as answers to the plain question."""
    config, summary = folder.config, folder.examples_summary(iteration)
    if not summary.exists():
        agent = learners(config)[0]
        plain = {debate.problem_id: debate for debate in debates}
        examples = [
            _example(plain[debate.problem_id], text, agent)
            for debate in (*debates, *hinted)
            for text in _right(debate, labels)
        ]
        untaught = len(plain) - len({example.problem_id for example in examples})
        counts = CurateCounts(examples=len(examples), first=len(examples), disagrees=untaught)
        chosen = limit(Curated(tuple(examples), counts), iteration, config.curate, config.seed)
        files.write_records(folder.examples(iteration, agent), chosen.examples)
        files.write_json(summary, {agent: chosen.counts.model_dump()})
        folder.log("curated", iteration=iteration)
    return pipeline.num_examples(folder, iteration)


def _right(debate: Debate, labels: _Labels) -> list[str]:
    """Return the different replies of the first round that are right, and ended by themselves."""
    right, turns = labels.right(debate), debate.first_answers()
    return list(dict.fromkeys(turn.call.reply.text for turn in turns if turn.answer in right and not turn.cut))


def _example(debate: Debate, text: str, agent: str) -> Example:
    asked = debate.dialogue(0, num_rounds=1)[:-1]
    return Example(
        iteration=debate.iteration,
        problem_id=debate.problem_id,
        agent=agent,
        kind="first",
        messages=(*asked, Message(role="assistant", content=text)),
    )
