"""The methods that are compared, as settings on top of the config of the run they are compared with.

An arm is a run of its own, and gives one or more rows of the table: what its finetuned agents answer alone, by a vote
over first answers, and by debate. What two arms share is computed once, since a request or a training that was seen
before is looked up (`samplers.cached`, `trainers.cached`).
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

from maft import tasks
from maft.config import RunConfig, prompts

Budget = Literal["one", "all"]
Row = Literal["single", "debate"]


class Arm(NamedTuple):
    """One method."""

    name: str
    what: str
    """In a few words."""
    settings: Callable[[RunConfig], dict[str, Any]]
    """Dotted keys and values on top of the config."""
    row: Row = "debate"
    """How the agents answer in the row that has the arm's name."""
    budget: Budget | None = None
    """Maximum number of training examples in an iteration: those of `one` agent of maft, or of `all` its agents; None:
    no limit."""
    star: Literal["gold", "vote"] | None = None
    """STaR, with gold answers or with the vote in their place."""
    teaches: Literal["answers", "debates"] | None = None
    """What the base model learns from the debates of the reference's finetuned society, see `comparison.distil`."""


def _set(**values: Any) -> Callable[[RunConfig], dict[str, Any]]:
    """Return settings that do not depend on the config; `__` in a key is a dot."""
    tree = {key.replace("__", "."): value for key, value in values.items()}
    return lambda config: tree


def _prompts(
    change: Callable[[prompts.Prompts], Mapping[str, str]], **more: Any
) -> Callable[[RunConfig], dict[str, Any]]:
    """Return settings with changed prompts."""

    def settings(config: RunConfig) -> dict[str, Any]:
        task = tasks.make(config.task).prompts
        return {"prompts": {**config.prompts, **change(prompts.build(task, config.prompts))}, **_set(**more)(config)}

    return settings


_ONE_MODEL = {"society__one_model": True}
_ONE_ROUND = {"debate__num_rounds": 1, "debate__wrong_majorities": None}  # there are no critics to show them to
_NO_DEBATE = {**_ONE_MODEL, **_ONE_ROUND}
_STAR = {**_NO_DEBATE, "train__objective": "sft", "train__generator__objective": None}
_STUDENT = {**_STAR, "train__start_from": "base"}
_SFT = {"train__objective": "sft", "train__generator__objective": None, "train__critic__objective": None}


def _room_for_debates(config: RunConfig) -> dict[str, Any]:
    """Return the settings of a student that writes a whole debate before its answer."""
    given = [of for of in (config.sampling.train, config.sampling.eval) if of]
    longest = max(role.max_new_tokens for of in given for role in (of.generator, of.critic))
    length = config.debate.num_agents * config.debate.num_rounds * longest + 100
    stages = ["train", *(["eval"] if config.sampling.eval else [])]
    return {
        **_set(**_STUDENT)(config),
        **{f"sampling.{stage}.generator.max_new_tokens": length for stage in stages},
        "train.max_length": max(config.train.max_length, 2 * length),
        "debate.num_eval_samples": None,  # an answer is as long as a debate
    }


_ARMS = (
    Arm("maft", "the paper's method", _set()),
    Arm("single_agent_ft", "one model, finetuned on debates", _set(**_ONE_MODEL), "single", "one"),
    Arm("single_agent_ft_all", "the same, on as many examples as all agents", _set(**_ONE_MODEL), "single", "all"),
    Arm(
        "majority_ft",
        "one model, finetuned on answers that agree with its own majority vote",
        _set(**_NO_DEBATE),
        "single",
        "one",
    ),
    Arm("majority_ft_all", "the same, on as many examples as all agents", _set(**_NO_DEBATE), "single", "all"),
    Arm(
        "star",
        "one model, finetuned on its right answers (needs known answers)",
        _set(**_STAR),
        "single",
        "one",
        "gold",
    ),
    Arm("star_label_free", "the same, with the vote in place of known answers", _set(**_STAR), "single", "one", "vote"),
    Arm(
        "distil",
        "base model, finetuned on replies that agree with the finetuned society's votes",
        _set(**_STUDENT),
        "single",
        "one",
        teaches="answers",
    ),
    Arm(
        "distil_debates",
        "the same, but trained to write a whole debate before its answer",
        _room_for_debates,
        "single",
        "one",
        teaches="debates",
    ),
    Arm("maft_wo_summary", "critics read the others' full replies, no summaries", _set(debate__summarizer="none")),
    Arm("maft_wo_critic", "only generators are finetuned", _set(train__critics=False)),
    Arm("maft_wo_debate", "each agent finetuned on the vote over first answers", _set(**_ONE_ROUND), "single"),
    Arm("cooperative", "critics are asked to agree", _prompts(prompts.cooperative)),
    Arm(
        "unique_id",
        "one model, with the agent's number in its prompt",
        _prompts(prompts.with_agent_number, **_ONE_MODEL),
    ),
    Arm("label_first", "labels from first answers", _set(vote__label_from="first")),
    Arm("label_first_then_last", "the same, in iteration 1 only", _set(vote__label_from=["first", "last"])),
    Arm("label_all", "labels from all rounds", _set(vote__label_from="all")),
    Arm(
        "label_samples",
        "labels from a vote over three first answers per agent",
        _set(vote__label_from="first", debate__num_samples=3),
    ),
    Arm(
        "maft_wo_debate_samples",
        "the same, without debates",
        _set(vote__label_from="first", debate__num_samples=3, **_ONE_ROUND),
        "single",
    ),
    Arm(
        "majority_ft_samples",
        "majority_ft with labels from three answers per agent",
        _set(vote__label_from="first", debate__num_samples=3, **_NO_DEBATE),
        "single",
        "one",
    ),
    Arm("contested", "only questions on which agents differ are debated", _set(debate__protocol="contested")),
    Arm(
        "contested_answers",
        "the same, and critics see answers with counts only",
        _set(debate__protocol="contested", debate__quote="answers"),
    ),
    Arm("dissenters", "only agents outside the majority speak again", _set(debate__protocol="dissenters")),
    Arm("conformist", "the same, and they read the majority only", _set(debate__protocol="conformist")),
    Arm("sparse", "critics read their two neighbours only", _set(debate__protocol="sparse")),
    Arm("aggregator", "one critic reads all answers, and has the last word", _set(debate__protocol="aggregator")),
    Arm("judge", "one critic picks an answer", _set(debate__protocol="judge")),
    Arm("answers_only", "critics see answers with counts, no reasoning", _set(debate__quote="answers")),
    Arm("vote_over_all", "all rounds vote", _set(vote__over="all")),
    Arm(
        "vote_by_likelihood",
        "votes are weighted by the likelihood of the replies",
        _set(vote__weight="likelihood", debate__keep_tokens=True),
    ),
    Arm("random_labels", "control: the label is drawn among the answers given", _set(vote__label="random")),
    Arm("least_frequent", "control: the label is the answer with the fewest votes", _set(vote__label="least_frequent")),
    Arm("unfiltered", "control: agents learn from all own responses", _set(curate__keep="all", **_SFT), budget="one"),
    Arm(
        "format_only",
        "control: agents learn from all own responses with a readable answer",
        _set(curate__keep="readable", **_SFT),
        budget="one",
    ),
    Arm("weighted", "examples weighted by the margin of their vote", _set(train__objective="weighted")),
    Arm("kto", "dissenting answers are made less likely", _set(train__objective="kto")),
    Arm(
        "kto_dpo",
        "the same for generators; critics learn from pairs (DPO)",
        _set(train__generator__objective="kto", train__critic__objective="dpo"),
    ),
    Arm(
        "most_distinct",
        "label_samples, and each agent learns its first answer that is least like those of others",
        _set(vote__label_from="first", debate__num_samples=3, curate__choose="distinct"),
    ),
    Arm(
        "fresh_questions",
        "other training questions in each iteration (made tasks)",
        lambda config: {"task.train_sets": config.num_iterations},
    ),
    Arm("bootstrap", "each agent learns from questions drawn with replacement", _set(curate__questions="bootstrap")),
    Arm("shards", "each agent learns from a part of the questions", _set(curate__questions="shards")),
    Arm(
        "large_vote_contested",
        "labels from a vote over four answers per agent; contested debates, half from a wrong majority",
        _set(
            vote__label_from="first",
            debate__num_samples=4,
            debate__wrong_majorities=0.5,
            debate__protocol="contested",
            debate__quote="answers",
        ),
    ),
    Arm(
        "cooling",
        "training debates at temperature 1, then 0.7, then 0.4",
        _set(sampling__train_temperature=[1.0, 0.7, 0.4]),
    ),
    Arm("weight_by_margin", "examples are repeated by the margin of their vote", _set(curate__weight_by="margin")),
    Arm(
        "weight_by_gain", "first answers are repeated by how many agents they win over", _set(curate__weight_by="gain")
    ),
    Arm(
        "two_examples",
        "up to two of three first answers per question",
        _set(curate__examples_per_question=2, debate__num_samples=3),
    ),
)

ARMS: Mapping[str, Arm] = {arm.name: arm for arm in _ARMS}

PAPER = (
    *("maft", "single_agent_ft", "single_agent_ft_all", "majority_ft", "majority_ft_all", "star", "star_label_free"),
    *("maft_wo_summary", "maft_wo_critic", "cooperative", "unique_id"),
)
"""The default methods: those of the paper, and its ablations."""
