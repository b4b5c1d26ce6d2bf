"""Dissenting responses beside agreeing ones, as `kto`, `dpo` and `grpo` learn from them; each agent has its own only.

The paper has none of this. Responses whose answer cannot be read, or that were cut, are left out on both sides.
"""

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from maft.config import CurateConfig, Training
from maft.method.curate import CurateCounts, Curated, choose, example_of, mix, unfit, weigh
from maft.records import Debate, Example, Message, Reply, Turn, Vote

Shape = Literal["judged", "pairs", "advantages"]
_Sides = tuple[list[Reply], list[Reply]]


def generator_contrasts(
    debates: Iterable[Debate],
    votes: Mapping[str, Vote],
    agent: int,
    settings: CurateConfig,
    run_seed: int,
    shape: Shape,
) -> Curated:
    """Return generator `agent`'s first answers: judged, in pairs to one question, or with advantages.

    Pairs and advantages need several first answers to a question (`debate.num_samples`). Of a question there are at
    most `curate.examples_per_question` agreeing ones and as many dissenting ones, or pairs; for advantages, all
    answers that were not cut.
    """
    found: list[Example] = []
    counts: Counter[str] = Counter()
    name = f"generator_{agent}"
    for debate in debates:
        vote = votes[debate.problem_id]
        turns, most = debate.first_answers(agent), settings.examples_per_question
        if vote.dropped is not None:
            counts[vote.dropped] += 1
            continue
        asked = debate.dialogue(agent, num_rounds=1)[:-1]
        (agreeing, dissenting), reasons = _sides(turns, vote.agreeing(debate))
        if shape == "advantages":
            made = _with_advantages(debate, name, asked, turns, vote.agreeing(debate))
        else:
            made = _examples(
                debate, name, asked, (), (choose(agreeing, debate, agent, settings), dissenting[:most]), shape
            )
        found += made
        if not made and reasons:
            counts["unpaired" if agreeing + dissenting else str(reasons[0])] += 1
    return _curated(weigh(found, debates, votes, settings, run_seed), counts)


def critic_contrasts(
    debates: Iterable[Debate],
    votes: Mapping[str, Vote],
    agent: int,
    settings: CurateConfig,
    run_seed: int,
    shape: Shape,
) -> Curated:
    """Return critic `agent`'s dialogues by their last answer, or pairs of its last answer and an earlier one.

    Judged: agreeing dialogues are mixed as `curate.critic_mix` says; dissenting ones are unwanted. Pairs: where its
    last answer agrees and an earlier one dissents, or the reverse, both are responses to the last prompt, so that it
    learns to correct a wrong answer and to keep a right one.
    """
    found: list[Example] = []
    unwanted: list[Example] = []
    counts: Counter[str] = Counter()
    name = f"critic_{agent}"
    for debate in debates:
        vote, own = votes[debate.problem_id], debate.turns_of(agent)
        if vote.dropped is not None:
            counts[vote.dropped] += 1
            continue
        if not own or own[-1].round == 1:
            continue  # the protocol did not ask it as a critic
        label = vote.agreeing(debate)
        reason = unfit(own[-1], label)
        if own[-1].cut or reason == "unparsed":
            counts["unparsed" if reason == "unparsed" else "cut"] += 1
            continue
        asked, earlier = debate.dialogue(agent)[:-1], debate.replies(agent)[:-1]
        (agreeing, dissenting), _ = _sides(own[-1:] if shape == "judged" else own[::-1], label)
        sides = agreeing[:1], dissenting[:1]
        kind = "dissenting" if reason else "kept" if shape == "judged" and own[0].answer in label else "corrected"
        made = [e.model_copy(update={"kind": kind}) for e in _examples(debate, name, asked, earlier, sides, shape)]
        (unwanted if reason else found).extend(made)
        counts["unpaired"] += not made
    mixed = mix(found, settings, run_seed) if shape == "judged" else tuple(found)
    used = {example.problem_id for example in mixed}
    counts["cut_for_mix"] = len(found) - len(used)
    counts["repeated_for_mix"] = len(mixed) - len(used)
    return _curated(weigh([*mixed, *unwanted], debates, votes, settings, run_seed), counts)


def of_society(debate: Debate, vote: Vote, shape: Literal["judged", "pairs"]) -> list[Example]:
    """Return what anybody could learn from a debate: its first answers against each other, and each critic's answers.

    First answers are judged, or paired with those of other agents to the same prompt; critics are as in
    `critic_contrasts`.
    """
    if vote.dropped is not None:
        return []
    asked = debate.dialogue(0, num_rounds=1)[:-1]
    alike = [turn for turn in debate.first_answers() if turn.call.prompt == asked[-1].content]
    sides, _ = _sides(alike, vote.agreeing(debate))
    made = _examples(debate, "generators", asked, (), sides, shape)
    everybody, votes = CurateConfig(short_side="use_all"), {debate.problem_id: vote}
    for agent in sorted({turn.agent for turn in debate.turns if turn.round > 1}):
        made += critic_contrasts([debate], votes, agent, everybody, 0, shape).examples
    return made


def class_weights(examples: Sequence[Example], settings: Training) -> tuple[Example, ...]:
    """Give each judged example the weight of its class.

    That is `train.desirable_weight` or `undesirable_weight`; null is half of all examples by the number of this class,
    or 1 where there is one class only.
    """
    counts = Counter(example.wanted for example in examples)
    given = {True: settings.desirable_weight, False: settings.undesirable_weight}
    balanced = {wanted: len(examples) / (2 * count) if len(counts) > 1 else 1.0 for wanted, count in counts.items()}
    return tuple(
        example
        if example.wanted is None
        else example.model_copy(update={"weight": given[example.wanted] or balanced[example.wanted]})
        for example in examples
    )


def margin_weights(made: Curated, votes: Mapping[str, Vote]) -> Curated:
    """Give each example the margin of its vote as a share of all ballots; without a margin it is not learned."""
    shares = {e.problem_id: votes[e.problem_id].margin / votes[e.problem_id].num_ballots for e in made.examples}
    kept = [e.model_copy(update={"weight": shares[e.problem_id]}) for e in made.examples if shares[e.problem_id]]
    left_out = len(made.examples) - len(kept)
    return _curated(kept, Counter(made.counts.model_dump()) + Counter(tied=left_out))


def _sides(turns: Sequence[Turn], label: frozenset[str | None]) -> tuple[_Sides, list[str | None]]:
    """Return the different agreeing and dissenting replies, and why each turn does not agree."""
    reasons = [unfit(turn, label) for turn in turns]
    sides: _Sides = ([], [])
    for turn, reason in zip(turns, reasons, strict=True):
        if reason in (None, "disagrees") and not turn.cut:
            side = sides[reason is not None]
            if turn.call.reply.text not in [reply.text for reply in side]:
                side.append(turn.call.reply)
    return sides, reasons


def _examples(
    debate: Debate, agent: str, asked: tuple[Message, ...], earlier: tuple[Reply, ...], sides: _Sides, shape: Shape
) -> list[Example]:
    """Return each response to a prompt as an example, or each agreeing one with a dissenting one."""

    def example(reply: Reply, wanted: bool, changes: Mapping[str, object]) -> Example:
        answer = Message(role="assistant", content=reply.text)
        made = example_of(debate, agent, "first" if wanted else "dissenting", (*asked, answer), (*earlier, reply))
        return made.model_copy(update=changes)

    agreeing, dissenting = sides
    if shape == "pairs":
        return [
            example(good, True, {"rejected": bad.text, "rejected_token_ids": bad.token_ids})
            for good, bad in zip(agreeing, dissenting, strict=False)
        ]
    judged = [(reply, True) for reply in agreeing] + [(reply, False) for reply in dissenting]
    return [example(reply, wanted, {"wanted": wanted}) for reply, wanted in judged]


def _with_advantages(
    debate: Debate, agent: str, asked: tuple[Message, ...], turns: Sequence[Turn], label: frozenset[str | None]
) -> list[Example]:
    """Return an agent's answers to one question, each with its reward's distance from the mean in standard deviations.

    The reward is 1 for an answer that is the label, 0 for any other and for none. Equal rewards teach nothing.
    """
    whole = [turn for turn in turns if not turn.cut]
    rewards = [float(turn.answer is not None and turn.answer in label) for turn in whole]
    if len(set(rewards)) < 2:
        return []
    mean, deviation = statistics.mean(rewards), statistics.stdev(rewards)
    made = []
    for turn, reward in zip(whole, rewards, strict=True):
        reply = turn.call.reply
        messages = (*asked, Message(role="assistant", content=reply.text))
        example = example_of(debate, agent, "first" if reward else "dissenting", messages, (reply,))
        made.append(example.model_copy(update={"weight": (reward - mean) / (deviation + 1e-4)}))
    return made


def _curated(examples: Sequence[Example], counts: Mapping[str, int]) -> Curated:
    kinds = dict.fromkeys(("first", "corrected", "kept", "dissenting"), 0) | Counter(e.kind for e in examples)
    return Curated(tuple(examples), CurateCounts(**{**counts, **kinds, "examples": len(examples)}))
