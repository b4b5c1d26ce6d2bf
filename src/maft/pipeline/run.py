"""The whole method: for each iteration debate, vote, curate, finetune; evaluate before and after.

    society 0 = N generators and N critics, all the base model
    for l = 1 .. L:
        debates   = society l-1 debates the training questions              method.play, rollouts.collect
        votes     = majority of the last round, the pseudo-labels           voting.vote
        examples  = each agent's own responses that agree with the vote     examples, curate
        society l = each agent finetuned on its own examples                finetune

Differs from the paper's text or its released code in (all departures: docs/paper.md):
1. Rounds are synchronous; the released code shows an agent what others have just said in the same round.
2. Only questions where more than half of the agents agree are trained on; `vote.min_agreement: plurality` is the paper.
3. Critics carry loss on their last answer only; `train.loss_turns: all` is the released code.
4. Agents are LoRA adapters on one base model, in place of 2N full models.

Every stage is a function from files to files of the run folder, and does nothing where its files are there already.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from maft import files, tasks
from maft.config import AgentSampling, prompts
from maft.errors import StageFailed, UserError
from maft.evaluation import guard, retention
from maft.evaluation.learned import learned, warnings
from maft.evaluation.methods import HeldOut, Scoring, score_all
from maft.evaluation.metrics import summarize
from maft.evaluation.votes import decide, held_out, votes_of
from maft.files import Records
from maft.method import protocol_of
from maft.method import vote as voting
from maft.method.curate import CurateCounts
from maft.method.protocol import Rules
from maft.pipeline import examples, finetune, judging, online, rollouts
from maft.pipeline.rollouts import Count
from maft.records import Debate, Problem, Reply, Society, Vote
from maft.runs import manifest, societies
from maft.runs.folder import RunFolder
from maft.runs.progress import Bar, Progress
from maft.samplers import cached
from maft.samplers.base import Sampler
from maft.samplers.cached import CachedSampler
from maft.tasks import Split, prepare
from maft.trainers.base import Trainer, TrainProgress


def run(folder: RunFolder, sampler: Sampler, trainer: Trainer, progress: Progress, *, keep_going: bool = False) -> None:
    """Carry out a run, or what is left of it; `keep_going` past an iteration that ruined agents.

    Raises:
        StageFailed: a stage could not finish, or an iteration ruined agents, by the limits of `guard`.
    """
    split = questions(folder)
    society = societies.untrained(folder.config)
    evaluate(folder, 0, society, split.eval, sampler, progress)
    for iteration in range(1, folder.config.num_iterations + 1):
        train_questions = tasks.train_set(split.train, folder.config.task, iteration)
        if num_questions := folder.config.train.online_questions:
            with trainer.open() as session:
                turn = partial(learn, sampler=sampler, trainer=session, progress=progress)
                society = online.in_turns(turn, folder, iteration, society, train_questions, num_questions)
        else:
            society = learn(folder, iteration, society, train_questions, sampler, trainer, progress)
        evaluate(folder, iteration, society, split.eval, sampler, progress)
        check_collapse(folder, iteration, progress, keep_going=keep_going)
    sampler.release()


def learn(
    folder: RunFolder,
    iteration: int,
    society: Society,
    problems: Sequence[Problem],
    sampler: Sampler,
    trainer: Trainer,
    progress: Progress,
) -> Society:
    """Let a society debate questions and learn from them: one iteration, or one turn of `online`."""
    debates = debate(folder, iteration, society, problems, sampler, progress)
    votes = vote(folder, iteration, debates)
    counts = make_examples(folder, iteration, debates, votes)
    sampler.release()  # training needs the memory
    return train(folder, iteration, society, counts, trainer, progress)


def questions(folder: RunFolder) -> Split:
    """Return the questions of the run, writing them into the folder at the first start."""
    train_file, eval_file = folder.problems("train"), folder.problems("eval")
    duplicates, task = None, tasks.make(folder.config.task)
    if not eval_file.exists():
        split = prepare(task)
        duplicates = split.duplicates
        files.write_records(train_file, split.train)
        files.write_records(eval_file, split.eval)
    manifest.add_questions(folder, duplicates, task.begin())
    return Split(files.read_records(train_file, Problem), files.read_records(eval_file, Problem))


def debate(
    folder: RunFolder,
    iteration: int,
    society: Society,
    problems: Sequence[Problem],
    sampler: Sampler,
    progress: Progress,
) -> Records[Debate]:
    """Let the society debate the training questions."""
    path = folder.debates(iteration)
    if folder.votes(iteration).exists():
        return Records(path, Debate)
    rules = debate_rules(folder, iteration, society, "train")
    held = collect(folder, rules, problems, path, sampler, progress, f"{folder.part(iteration)}: debate")
    judging.judge(folder, held, sampler, progress, f"{folder.part(iteration)}: judge")
    return held


def vote(folder: RunFolder, iteration: int, debates: Iterable[Debate]) -> dict[str, Vote]:
    """Find the pseudo-label of every question."""
    path = folder.votes(iteration)
    if not path.exists():
        config, equality = folder.config, tasks.make(folder.config.task).equality
        choose = protocol_of(config.debate).ballots
        votes = (voting.vote(d, config.vote, config.seed, equality, choose=choose) for d in debates)
        files.write_records(path, votes)
        folder.log("voted", iteration=iteration)
    return votes_of(folder, iteration, debates)


def make_examples(
    folder: RunFolder, iteration: int, debates: Iterable[Debate], votes: Mapping[str, Vote]
) -> dict[str, int]:
    """Write each agent's own examples, and return how many each has."""
    summary = folder.examples_summary(iteration)
    if not summary.exists():
        counts = {}
        for agent, make in examples.makers(folder.config, iteration, debates, votes).items():
            chosen = make()  # one after the other: the examples of all may be more than memory holds
            files.write_records(folder.examples(iteration, agent), chosen.examples)
            counts[agent] = chosen.counts.model_dump()
        files.write_json(summary, counts)
        folder.log("curated", iteration=iteration)
    return num_examples(folder, iteration)


def num_examples(folder: RunFolder, iteration: int) -> dict[str, int]:
    """Return how many examples each agent has; none before they are made."""
    summary = folder.examples_summary(iteration)
    counts = files.read_json(summary) if summary.exists() else {}
    return {agent: CurateCounts.model_validate(count).examples for agent, count in counts.items()}


def train(
    folder: RunFolder,
    iteration: int,
    society: Society,
    num_examples: Mapping[str, int],
    trainer: Trainer,
    progress: Progress,
) -> Society:
    """Finetune every agent on its own examples, and return the new society; say what kept agents from learning."""
    for warning in warnings([found] if (found := learned(folder, iteration)) else []):
        progress.say(warning)
    missing = societies.missing(folder, iteration)
    if not missing:
        return societies.after(folder, iteration)
    work = {
        agent: num_examples[agent] * societies.num_epochs(folder.config, iteration, agent) for agent in num_examples
    }
    with progress.stage(f"{folder.part(iteration)}: finetune", sum(work.values()), "example") as bar:
        bar.skip(sum(work[agent] for agent in work if agent not in missing))
        report = _training_reporter(folder, iteration, work, bar)
        return finetune.finetune(folder, iteration, society, num_examples, trainer, report)


def evaluate(
    folder: RunFolder,
    iteration: int,
    society: Society,
    problems: Sequence[Problem],
    sampler: Sampler,
    progress: Progress,
) -> None:
    """Let the society debate the held-out questions, and score every method that can be read off these debates.

    Before the first iteration and after the last, its generators answer those of `eval.also`, too.
    """
    config = folder.config
    for other in folder.others if iteration in (0, config.num_iterations) else ():
        if not other.evaluated(iteration):
            progress.say(f"eval.also: {retention.label(other.config.task)}")
            evaluate(other, iteration, society, _held_out_of(other, folder), sampler, progress)
    if folder.evaluated(iteration):
        return
    rules = debate_rules(folder, iteration, society, "eval")
    title = f"iteration {iteration}: evaluate" if iteration else "untrained: evaluate"
    debates = collect(folder, rules, problems, folder.held_out_debates(iteration), sampler, progress, title)
    judging.judge(folder, debates, sampler, progress, f"{title.partition(':')[0]}: judge", problems)
    decided = decide(debates, problems, config)
    files.write_records(folder.held_out_votes(iteration), decided)
    scores = score_all(Scoring(HeldOut(debates, decided), iteration, config))
    for method, of_method in scores.items():
        files.write_records(folder.scores(iteration, method), of_method)
    summary = [summarize(of_method) for of_method in scores.values()]
    files.write_json(folder.results(iteration), [result.model_dump() for result in summary])
    folder.log("evaluated", iteration=iteration)
    right = (f"{one.method} {'no gold' if one.accuracy is None else f'{one.accuracy:.1%}'}" for one in summary)
    progress.say(f"{title.partition(':')[0]}: {', '.join(right)}")


def _held_out_of(other: RunFolder, folder: RunFolder) -> Sequence[Problem]:
    """Return the held-out questions of another task, writing them at first; none may be a training question."""
    path = other.problems("eval")
    if not path.exists():
        held_out = prepare(tasks.make(other.config.task)).eval
        tasks.check_disjoint(files.read_records(folder.problems("train"), Problem), held_out)
        files.write_records(path, held_out)
    return files.read_records(path, Problem)


def check_collapse(folder: RunFolder, iteration: int, progress: Progress, *, keep_going: bool) -> None:
    """Stop where an iteration ruined agents; one that another iteration has begun from is not looked at again.

    Raises:
        StageFailed: it did, and `keep_going` is false. The society before it stays the newest.
    """
    collapsed = []
    if folder.config.guard.enabled and not folder.iteration(iteration + 1).exists():
        before, after = (guard.measures(held_out(folder, number)) for number in (iteration - 1, iteration))
        collapsed = guard.collapses(before, after, folder.config.guard)
    if not collapsed or keep_going:
        folder.collapse(iteration).unlink(missing_ok=True)
        if collapsed:
            progress.say(f"Warning: {guard.sentence(collapsed, iteration)}")
        return
    files.write_json(folder.collapse(iteration), [one._asdict() for one in collapsed])
    raise StageFailed(
        f"{guard.sentence(collapsed, iteration)} The society of iteration {iteration - 1} stays the newest. Try a "
        "lower train.learning_rate or fewer epochs under another name=..., or continue with --keep-going."
    )


def debate_rules(folder: RunFolder, iteration: int, society: Society, stage: str) -> Rules:
    """Return the rules of the debates of a stage, `train` or `eval`."""
    config = folder.config
    task = tasks.make(config.task)
    num_samples = config.debate.num_eval_samples if stage == "eval" else None
    return Rules(
        society=society,
        debate=config.debate.model_copy(update={"num_samples": num_samples or config.debate.num_samples}),
        prompts=prompts.build(task.prompts, config.prompts),
        own_prompts={
            agent.name: prompts.build(task.prompts, config.prompts_of(agent.name))
            for agent in society.agents
            if config.own(agent.role, agent.index).prompts
        },
        extract=task.extract,
        equality=task.equality,
        sampling=config.sampling.of(stage, iteration),
        own_sampling={
            agent.name: own
            for agent in society.agents
            if (own := config.own(agent.role, agent.index).sampling) != AgentSampling()
        },
        run_seed=config.seed,
        iteration=iteration,
        stage=stage,
    )


def answer_rules(folder: RunFolder, iteration: int, society: Society) -> Rules:
    """Return the rules by which a society answers further questions: without first answers that do not vote."""
    rules = debate_rules(folder, iteration, society, "eval")
    num_samples = 1 if folder.config.vote.over == "last" else rules.debate.num_samples
    return rules._replace(debate=rules.debate.model_copy(update={"num_samples": num_samples}))


def collect(
    folder: RunFolder,
    rules: Rules,
    problems: Sequence[Problem],
    path: Path,
    sampler: Sampler,
    progress: Progress,
    title: str,
    part_of: int | None = None,
) -> Records[Debate]:
    """Hold the debates that a file lacks, with progress and resumption.

    Events name `folder`'s iteration `part_of`; None: that of the rules.
    """
    per_debate = protocol_of(rules.debate).calls(rules.debate)
    started, stage = time.monotonic(), {"stage": rules.stage, "iteration": part_of or rules.iteration}

    def log(count: Count) -> None:
        nonlocal started
        now = time.monotonic()
        seconds = round(now - started, 3)
        folder.log("debated", **stage, **vars(count), seconds=seconds)
        started = now

    with progress.stage(title, len(problems) * per_debate, "call") as bar:

        def on_resume(count: Count) -> None:
            bar.skip(count.debates * per_debate)
            if uncounted := _without_events(count, folder, {"event": "debated", **stage}):
                log(uncounted)

        def on_reply(reply: Reply) -> None:
            bar.advance()
            if folder.config.vote.weight == "likelihood" and reply.error is None and reply.logprobs is None:
                raise UserError(
                    f"engine.sampler = {folder.config.engine.sampler} gave a reply without log-probabilities, and "
                    "vote.weight = likelihood needs them. Use an engine that returns them, another name=... for a "
                    "comparison that began without debate.keep_tokens, or vote.weight=none."
                )

        def on_batch(count: Count) -> None:
            bar.advance(max(0, count.debates * per_debate - count.calls))  # calls that the protocol did not need
            log(count)

        with replies_kept(folder, sampler) as kept:
            return rollouts.collect(
                problems,
                rules,
                kept,
                path,
                batch_size=folder.config.engine.batch_size,
                max_failures=folder.config.engine.max_failures,
                on_resume=on_resume,
                on_reply=on_reply,
                on_batch=on_batch,
            )


@contextmanager
def replies_kept(folder: RunFolder, sampler: Sampler) -> Iterator[Sampler]:
    """Keep every reply of a stage on disk as it comes, so that a kill loses those in flight only.

    They are dropped when the stage ends without an error, for its debates hold them. Samplers with a file of their own
    keep them there.
    """
    if isinstance(sampler, CachedSampler):
        yield sampler
        return
    yield CachedSampler(sampler, folder.replies, keep_tokens=folder.config.debate.keep_tokens)
    cached.drop(folder.replies)


def _without_events(count: Count, folder: RunFolder, of: Mapping[str, Any]) -> Count | None:
    """Return what of the debates that are there was not logged: a kill came between them and their event."""
    events = [event for event in folder.events() if of.items() <= event.items()]
    left = Count()
    for name, number in vars(count).items():
        setattr(left, name, max(0, number - sum(event.get(name, 0) for event in events)))
    return left if left.debates else None


def _training_reporter(
    folder: RunFolder, iteration: int, work: Mapping[str, int], bar: Bar
) -> Callable[[TrainProgress], None]:
    """Return a function that moves the bar, and logs every step and every finished agent."""
    shown: dict[str, float] = dict.fromkeys(work, 0.0)
    started = time.monotonic()

    def report(step: TrainProgress) -> None:
        nonlocal started
        share = step.step / step.num_steps if step.num_steps else 1.0
        bar.note(step.agent if step.loss is None else f"{step.agent} loss {step.loss:.3f}")
        so_far = share * work[step.agent]
        bar.advance(so_far - shown[step.agent])
        shown[step.agent] = so_far
        if step.loss is not None:
            folder.log("step", iteration=iteration, **step.model_dump(exclude={"tokens"}, exclude_none=True))
        if step.step == step.num_steps:
            now = time.monotonic()
            seconds = round(now - started, 3)
            folder.log("trained", iteration=iteration, agent=step.agent, tokens=step.tokens, seconds=seconds)
            started = now

    return report
