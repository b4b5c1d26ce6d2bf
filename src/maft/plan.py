"""What a run will cost, before anything runs."""

from maft.config import DebateConfig, RunConfig


def calls_per_debate(debate: DebateConfig) -> int:
    """Return the calls of one debate, summaries and further first answers included."""
    per_critic = 1 if debate.summarizer == "none" or debate.num_agents == 1 else 2
    return debate.num_agents * (debate.num_samples + (debate.num_rounds - 1) * per_critic)


def plan(config: RunConfig) -> str:
    """Return the plan of a run as text: calls, tokens at most, trainings."""
    train, held_out = config.task.num_train, config.task.num_eval
    if train is None or held_out is None:
        return "Plan: set task.num_train and task.num_eval to have calls and tokens counted beforehand."
    more = config.debate.num_eval_samples or config.debate.num_samples
    evaluated = config.debate.model_copy(update={"num_samples": more})
    calls = train * config.num_iterations * calls_per_debate(config.debate)
    calls += held_out * (config.num_iterations + 1) * calls_per_debate(evaluated)
    longest = max(
        how.max_new_tokens
        for role in filter(None, (config.sampling.train, config.sampling.eval))
        for how in (role.generator, role.critic, role.summarizer)
    )
    return (
        f"Plan: {config.num_iterations} iterations of {train} debates, {config.num_iterations + 1} evaluations of "
        f"{held_out} debates; {calls:,} calls, at most {calls * longest:,} generated tokens; "
        f"{config.num_iterations * len(config.learners)} finetunings."
    )
