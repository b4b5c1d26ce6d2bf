"""`maft curate`: the votes of one iteration, and each agent's own training set."""

import click

from maft.cli import stage


@click.command(epilog="Example: maft curate runs/arithmetic_cpu")
@stage.arguments
def curate(asked: stage.Asked) -> None:
    """Vote on the debates of one iteration and write each agent's training examples."""
    from maft import tasks
    from maft.pipeline import rollouts
    from maft.pipeline import run as pipeline

    with asked.opened() as (folder, _):
        number = stage.iteration(folder, asked.iteration)
        train = tasks.train_set(pipeline.questions(folder).train, folder.config.task, number)
        debates = rollouts.finished(folder.debates(number), train)
        votes = pipeline.vote(folder, number, debates)
        counts = pipeline.make_examples(folder, number, debates, votes)
        used = sum(vote.dropped is None for vote in votes.values())
        home = folder.examples_summary(number).parent
        lines = [f"Iteration {number}: {used} of {len(votes)} questions have a label to train on."]
        lines += [f"  {agent:<14}{count:>6} examples" for agent, count in counts.items()]
        summary = {"iteration": number, "questions": len(votes), "used": used, "examples": counts, "folder": home}
        asked.say([*lines, f"Examples: {home}"], summary)
