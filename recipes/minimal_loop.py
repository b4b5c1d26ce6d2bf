"""The whole algorithm in one file: read it first. No resuming, no settings, no files except the adapters.

    python recipes/minimal_loop.py            # about ten minutes on two CPU cores
    python recipes/minimal_loop.py --fake     # one second, without a model

`maft run` does the same with a run folder, every setting of the paper, evaluation with intervals, and a report.
"""

import sys
import tempfile
from pathlib import Path

from maft import NullTrainer, Scripted, seeds
from maft.config import RunConfig, TaskConfig, TrainConfig
from maft.engines import make_sampler, make_trainer
from maft.files import write_records
from maft.method.vote import tally
from maft.records import AgentRef, Example, Message, Request, SamplingParams
from maft.samplers.scripted import guess
from maft.tasks import make as make_task
from maft.tasks import prepare
from maft.trainers import TrainJob

FAKE = "--fake" in sys.argv
MODEL = "smollm2-135m-instruct"
N, ITERATIONS, SEED = 3, 2, 0
SAMPLING = SamplingParams(temperature=0.8, top_p=0.9, max_new_tokens=128)

config = RunConfig(task=TaskConfig(name="arithmetic", num_train=120, num_eval=60))
task = make_task(config.task)
train, held_out, _ = prepare(task)
sampler = Scripted(guess) if FAKE else make_sampler(config)
trainer = NullTrainer() if FAKE else make_trainer(config)
home = Path(tempfile.mkdtemp(prefix="maft-"))


def ask(agents, dialogues, *seed):
    """Let agent n continue dialogues[n]; dialogues is a list of (problem, messages) for each agent."""
    requests = [
        Request(
            agent=agent,
            messages=messages,
            sampling=SAMPLING,
            seed=seeds.seed(SEED, *seed, problem.id, n),
        )
        for n, agent in enumerate(agents)
        for problem, messages in dialogues[n]
    ]
    texts = iter(reply.text for reply in sampler.sample(requests))
    return [
        [(*messages, Message(role="assistant", content=next(texts))) for _, messages in dialogues[n]] for n in range(N)
    ]


def debate(problems, generators, critics, *seed):
    """Two rounds; return dialogues[n][i] = (x, y1, x', y2) of agent n on problem i."""
    opening = [
        [(p, (Message(role="user", content=f"{p.question} Answer as \\boxed{{answer}}."),)) for p in problems]
    ] * N
    first = ask(generators, opening, *seed, 1)
    second = []
    for n in range(N):
        second.append([])
        for i, problem in enumerate(problems):
            others = "\n".join(first[m][i][-1].content for m in range(N) if m != n)
            prompt = (
                f"Other agents said:\n{others}\nTheir words are advice. {problem.question} Answer as \\boxed{{answer}}."
            )
            second[n].append((problem, (*first[n][i], Message(role="user", content=prompt))))
    return ask(critics, second, *seed, 2)


def vote(problems, dialogues, *seed):
    """Return the majority of the last round and how many voted for it, for each problem."""
    answers = [[task.extract(dialogues[n][i][-1].content) for n in range(N)] for i in range(len(problems))]
    tallies = [
        tally(a, seeds.rng(SEED, "tie", *seed, p.id), equality=task.equality)
        for a, p in zip(answers, problems, strict=True)
    ]
    return [(t.winner, t.counts[0][1] if t.counts else 0) for t in tallies]


def accuracy(generators, critics, iteration):
    """Share of held-out questions whose debate ends in a vote for the gold answer."""
    dialogues = debate(held_out, generators, critics, "eval", iteration)
    votes = vote(held_out, dialogues, "eval", iteration)
    right = [w is not None and task.correct(p, w) for (w, _), p in zip(votes, held_out, strict=True)]
    return sum(right) / len(right)


def finetune(agent, dialogues, iteration):
    """Train one agent on its own dialogues, from where it stands."""
    examples, output = home / f"{agent.name}.jsonl", home / f"iter_{iteration}" / agent.name
    write_records(
        examples,
        [
            Example(iteration=iteration, problem_id=p.id, agent=agent.name, kind="first", messages=messages)
            for p, messages in dialogues
        ],
    )
    job = TrainJob(
        agent=agent.name,
        role=agent.role,
        iteration=iteration,
        examples=examples,
        num_examples=len(dialogues),
        base_model=MODEL,
        init_adapter=Path(agent.adapter) if agent.adapter else None,
        output=output,
        seed=seeds.seed(SEED, "train", iteration, agent.name),
    )
    trainer.train([job], TrainConfig(num_epochs=2), lambda step: None)
    return agent.model_copy(update={"adapter": str(output)})


def is_label(message, winner):
    """Say whether a message's answer is the pseudo-label."""
    answer = task.extract(message.content)
    return answer is not None and task.equality.same(answer, winner)


generators = [AgentRef(role="generator", index=n, model=MODEL) for n in range(N)]
critics = [AgentRef(role="critic", index=n, model=MODEL) for n in range(N)]
print(f"untrained debate: {accuracy(generators, critics, 0):.2f}")

for iteration in range(1, ITERATIONS + 1):
    dialogues = debate(train, generators, critics, "train", iteration)
    votes = vote(train, dialogues, "train", iteration)
    agreed = [(i, p, w) for i, (p, (w, count)) in enumerate(zip(train, votes, strict=True)) if 2 * count > N]
    print(f"iteration {iteration}: more than half agree on {len(agreed)} of {len(train)} questions")
    sampler.release()
    # A generator learns its first answers that are the label, a critic its dialogues that end in the label.
    firsts = [[(p, dialogues[n][i][:2]) for i, p, w in agreed if is_label(dialogues[n][i][1], w)] for n in range(N)]
    wholes = [[(p, dialogues[n][i]) for i, p, w in agreed if is_label(dialogues[n][i][-1], w)] for n in range(N)]
    generators = [finetune(generators[n], firsts[n], iteration) for n in range(N)]
    critics = [finetune(critics[n], wholes[n], iteration) for n in range(N)]
    print(f"debate after iteration {iteration}: {accuracy(generators, critics, iteration):.2f}")
print(f"The agents are in {home}")
