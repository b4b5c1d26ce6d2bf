"""Distillation: the base model learns, in one finetuning, what a finetuned society agrees on.

After each iteration of the teacher, its society debates the training questions and votes, as it would to learn in the
next iteration; where it did, its debates are taken. The student of that iteration is the base model, finetuned on the
replies that agree with the vote or, with `whole`, on whole debates that end in the label, as one reply.
"""

import shutil
from collections import Counter
from collections.abc import Iterable, Mapping

from maft import files, tasks
from maft.answers import thinking
from maft.files import Records
from maft.method import learners, protocol_of
from maft.method.curate import CurateCounts, Curated, limit
from maft.pipeline import judging
from maft.pipeline import run as pipeline
from maft.records import Debate, Example, Message, Turn, Vote
from maft.runs import societies
from maft.runs.folder import RunFolder
from maft.runs.progress import Progress
from maft.samplers.base import Sampler
from maft.trainers.base import Trainer


def run(
    folder: RunFolder, teacher: RunFolder, sampler: Sampler, trainer: Trainer, progress: Progress, *, whole: bool
) -> None:
    """Teach a student after each iteration of a finished run, or what is left of that.

    With `whole`, debates are taught, see above; the student's config is of one model and one round.
    """
    split = pipeline.questions(folder)
    debate = teacher.config.debate
    rounds = protocol_of(debate).rounds(debate)
    about = {"name": teacher.path.resolve().name, "num_agents": debate.num_agents, "num_rounds": rounds, "whole": whole}
    files.write_json(folder.teacher, about)
    base = societies.untrained(folder.config)
    pipeline.evaluate(folder, 0, base, split.eval, sampler, progress)
    for iteration in range(1, folder.config.num_iterations + 1):
        debates = _debates(folder, teacher, iteration, sampler, progress)
        counts = _make_examples(folder, iteration, debates, _votes(folder, teacher, iteration, debates), whole)
        sampler.release()  # training needs the memory
        student = pipeline.train(folder, iteration, base, counts, trainer, progress)
        pipeline.evaluate(folder, iteration, student, split.eval, sampler, progress)
    sampler.release()


def _debates(
    folder: RunFolder, teacher: RunFolder, iteration: int, sampler: Sampler, progress: Progress
) -> Records[Debate]:
    """Return the debates of the society after an iteration on the training questions; they are part of the next one."""
    path = folder.debates(iteration)
    if folder.votes(iteration).exists():
        return Records(path, Debate)
    if not path.exists() and teacher.votes(iteration + 1).exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(teacher.debates(iteration + 1), path)
    society = societies.after(teacher, iteration)
    rules = pipeline.debate_rules(teacher, iteration + 1, society, "train")
    problems = tasks.train_set(pipeline.questions(folder).train, folder.config.task, iteration + 1)
    held = pipeline.collect(folder, rules, problems, path, sampler, progress, f"teacher {iteration}: debate", iteration)
    judging.judge(folder, held, sampler, progress, f"teacher {iteration}: judge")
    return held


def _votes(folder: RunFolder, teacher: RunFolder, iteration: int, debates: Iterable[Debate]) -> Mapping[str, Vote]:
    """Vote by the rules of the teacher."""
    by_teacher = RunFolder(folder.path, teacher.config)
    by_teacher.listeners = folder.listeners
    return pipeline.vote(by_teacher, iteration, debates)


def _make_examples(
    folder: RunFolder, iteration: int, debates: Iterable[Debate], votes: Mapping[str, Vote], whole: bool
) -> dict[str, int]:
    summary = folder.examples_summary(iteration)
    if not summary.exists():
        config, (student,) = folder.config, learners(folder.config)
        show = tasks.make(config.task).show
        examples: list[Example] = []
        dropped: Counter[str] = Counter()
        for debate in debates:
            vote = votes[debate.problem_id]
            if vote.dropped is not None or vote.label is None:
                dropped[vote.dropped or "no_answer"] += 1
                continue
            replies = [transcript(debate, show(vote.label))] if whole else _agreeing(debate, vote)
            if whole and any(turn.cut for turn in debate.turns):
                replies = []
            if not replies:
                label = vote.agreeing(debate)
                agreed = any(turn.answer in label for turn in (*debate.first_answers(), *debate.latest))
                dropped["cut" if whole or agreed else "disagrees"] += 1
                continue
            examples += [_example(debate, iteration, student, reply) for reply in replies]
        counts = CurateCounts(examples=len(examples), first=len(examples), **dropped)
        made = limit(Curated(tuple(examples), counts), iteration, config.curate, config.seed)
        files.write_records(folder.examples(iteration, student), made.examples)
        files.write_json(summary, {student: made.counts.model_dump()})
        folder.log("curated", iteration=iteration)
    return pipeline.num_examples(folder, iteration)


def _agreeing(debate: Debate, vote: Vote) -> list[str]:
    """Return the different first answers that are the label, or where there are none, such answers of later rounds."""
    label = vote.agreeing(debate)

    def fit(turns: Iterable[Turn]) -> list[str]:
        return list(dict.fromkeys(t.call.reply.text for t in turns if t.answer in label and not t.cut))

    return fit(debate.first_answers()) or fit(debate.latest)


def transcript(debate: Debate, end: str) -> str:
    """Return a debate as one reply: who said what in each round, without thinking, and `end`, which has the answer."""
    parts = []
    for number in range(1, debate.turns[-1].round + 1):
        parts.append(f"Round {number}")
        spoken = [(turn.agent + 1, thinking.strip(turn.call.reply.text).rest.strip()) for turn in debate.round(number)]
        parts += [f"Agent {agent}: {text}" for agent, text in spoken]
    return "\n\n".join([*parts, f"Vote\n\n{end}"])


def _example(debate: Debate, iteration: int, student: str, reply: str) -> Example:
    asked = debate.dialogue(0, num_rounds=1)[:-1]
    return Example(
        iteration=iteration,
        problem_id=debate.problem_id,
        agent=student,
        kind="first",
        messages=(*asked, Message(role="assistant", content=reply)),
    )
