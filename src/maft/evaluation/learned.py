"""What the agents of an iteration learned from, and warnings where that was little."""

from collections.abc import Sequence

from maft import files
from maft.config.training import EXAMPLES
from maft.records import Record, Vote
from maft.runs import societies
from maft.runs.folder import RunFolder

MANY_CUT = 0.2
"""Share of cut replies at which a warning begins."""
FEW_USED = 0.1
"""Share of questions used below which there is a warning."""


class Learned(Record):
    """The training questions, replies and examples of one iteration."""

    iteration: int
    part: str
    """What the iteration is called in messages, such as `iteration 2, turn 3`."""
    labels: bool
    """Whether responses are learned for their label (`curate.keep: agreeing`)."""
    questions: int
    used: int
    """Questions with a label to train on."""
    dropped: dict[str, int]
    """The other questions, by reason."""
    replies: int
    """Of the training debates."""
    cut: int | None
    """Replies that ended at the length limit; None where an older maft did not count them."""
    without_examples: tuple[str, ...]
    """Agents that had no examples and keep their weights."""
    one_sided: tuple[str, ...] = ()
    """Agents whose objective learns from both sides, and which have agreeing or dissenting responses only."""

    @property
    def share_cut(self) -> float | None:
        """Share of replies that ended at the length limit."""
        return None if self.cut is None or not self.replies else self.cut / self.replies


def learned(folder: RunFolder, iteration: int) -> Learned | None:
    """Return what an iteration (from 1) had to learn from; None before its examples are made."""
    if not folder.examples_summary(iteration).exists() or not folder.votes(iteration).exists():
        return None
    votes = files.read_records(folder.votes(iteration), Vote)
    reasons = [vote.dropped for vote in votes if vote.dropped is not None]
    debated = [
        event
        for event in folder.events()
        if event["event"] == "debated" and (event.get("stage"), event.get("iteration")) == ("train", iteration)
    ]
    counted = [event["cut"] for event in debated if "cut" in event]
    return Learned(
        iteration=iteration,
        part=folder.part(iteration),
        labels=folder.config.curate.keep == "agreeing",
        questions=len(votes),
        used=len(votes) - len(reasons),
        dropped={reason: reasons.count(reason) for reason in sorted(set(reasons))},
        replies=sum(event.get("calls", 0) for event in debated),
        cut=sum(counted) if debated and len(counted) == len(debated) else None,
        without_examples=tuple(societies.without_examples(folder, iteration)),
        one_sided=_one_sided(folder, iteration),
    )


def _one_sided(folder: RunFolder, iteration: int) -> tuple[str, ...]:
    counts: dict[str, dict[str, int]] = files.read_json(folder.examples_summary(iteration))
    return tuple(
        agent
        for agent, count in counts.items()
        if EXAMPLES.get(folder.config.train.of(agent.partition("_")[0], iteration).objective) == "judged"
        and count["examples"]
        and count.get("dissenting", 0) in (0, count["examples"])
    )


def of_run(folder: RunFolder) -> list[Learned]:
    """Return `learned` for every iteration whose examples are made."""
    every = (learned(folder, number) for number in range(1, folder.config.num_iterations + 1))
    return [one for one in every if one is not None]


def warnings(iterations: Sequence[Learned]) -> list[str]:
    """Return a line for each thing that kept agents from learning, with the likely remedy."""
    return [line for one in iterations for line in _warnings(one)]


def _warnings(of: Learned) -> list[str]:
    lines = []
    place = f"{of.part.capitalize()}:"
    if of.labels and of.used < FEW_USED * of.questions:
        reason = max(of.dropped, key=lambda name: of.dropped[name])
        lines.append(
            f"{place} {'nothing was learned, and all agents stay as they were: ' if not of.used else ''}"
            f"{of.used} of {of.questions} questions have a label to train on. {_REMEDIES.get(reason, '')}".rstrip()
        )
    if of.share_cut is not None and of.share_cut >= MANY_CUT:
        lines.append(
            f"{place} {of.cut} of {of.replies} replies were cut at the length limit, and a cut reply seldom has an "
            "answer. Allow more tokens (sampling.train.*.max_new_tokens)."
        )
    if of.without_examples and (of.used or not of.labels):
        lines.append(
            f"{place} {', '.join(of.without_examples)} had no examples and keep{'s' * (len(of.without_examples) == 1)} "
            "the weights of before."
        )
    if of.one_sided:
        lines.append(
            f"{place} {', '.join(of.one_sided)} learned by kto from one class of responses alone, which may ruin an "
            "agent: look at its answers. More questions (task.num_train) or agents give both classes."
        )
    return lines


_REMEDIES = {
    "no_answer": "In most debates no answer could be read: look at some with `maft show`, and set prompts or a task "
    "that fit what the model writes.",
    "low_agreement": "The agents seldom agree: vote.min_agreement=plurality uses more questions; easier questions or a "
    "stronger model help as well.",
    "failed": "Most debates failed: `maft show` prints their errors.",
}
