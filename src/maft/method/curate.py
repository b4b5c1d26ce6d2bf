"""Who learns from what: debates and votes in, one set of examples for each agent out (paper, eq. 1).

Every response that is not used is counted, by reason. Gold answers are not among the arguments.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Literal, NamedTuple

from maft import seeds
from maft.config import CurateConfig, of_iteration
from maft.records import Debate, Example, Message, Record, Reply, Turn, Vote

Kind = Literal["first", "corrected", "kept", "dissenting"]


class Curated(NamedTuple):
    """The examples of one agent, and what became of the responses that are not among them."""

    examples: tuple[Example, ...]
    counts: "CurateCounts"


class CurateCounts(Record):
    """What became of one agent's responses, one per debate."""

    examples: int
    first: int = 0
    corrected: int = 0
    kept: int = 0
    dissenting: int = 0
    """Examples of a response that dissents from the label, to become less likely."""
    failed: int = 0
    """The debate failed."""
    no_answer: int = 0
    """Nobody's answer could be parsed, so there is no label."""
    tied: int = 0
    """Several answers have the most votes, and `vote.ties` is `abstain`, or examples are weighed by the margin."""
    low_agreement: int = 0
    """Too few agents agreed with the label."""
    unparsed: int = 0
    """There is a label, but this agent's answer could not be parsed."""
    disagrees: int = 0
    """This agent's answer is not the label."""
    unpaired: int = 0
    """Its answers to this question make no pair: all agree, or all dissent."""
    cut: int = 0
    """Agrees with the label, but the reply ended at the limit of tokens: learning it would end in mid-sentence."""
    cut_for_mix: int = 0
    """Agrees with the label, left out so that D- and D+ are mixed as asked."""
    repeated_for_mix: int = 0
    """Examples that are there more than once, so that D- and D+ are mixed as asked."""
    over_limit: int = 0
    """Left out since `curate.max_examples` were there."""
    not_drawn: int = 0
    """Left out since the question is another agent's, or was not drawn, by `curate.questions`."""
    drawn_again: int = 0
    """Examples that are there more than once, since their question was drawn more than once."""


def generator_examples(
    debates: Iterable[Debate],
    votes: Mapping[str, Vote],
    agent: int,
    settings: CurateConfig | None = None,
    run_seed: int = 0,
) -> Curated:
    """Return generator `agent`'s set: (x, y[1, agent]) wherever its own first-round answer equals the label."""
    settings = settings or CurateConfig()
    found: list[Example] = []
    counts: Counter[str] = Counter()
    for debate in debates:
        vote = votes[debate.problem_id]
        turns, label, dropped = (
            debate.first_answers(agent),
            accepted(debate, vote, settings),
            dropped_for(vote, settings),
        )
        reasons = [dropped or unfit(turn, label) for turn in turns] or [dropped]
        if reasons[0] is not None and None not in reasons:
            counts[reasons[0]] += 1
        agreeing: dict[str, Reply] = {}
        for turn, reason in zip(turns, reasons, strict=False):
            if reason is None:
                agreeing.setdefault(turn.call.reply.text, turn.call.reply)
        asked = debate.dialogue(agent, num_rounds=1)[:-1]
        for reply in choose(list(agreeing.values()), debate, agent, settings):
            answer = Message(role="assistant", content=reply.text)
            found.append(example_of(debate, f"generator_{agent}", "first", (*asked, answer), (reply,)))
    examples = weigh(found, debates, votes, settings, run_seed)
    counts["first"] = len(examples)
    return Curated(examples, CurateCounts(examples=len(examples), **counts))


def choose(replies: Sequence[Reply], debate: Debate, agent: int, settings: CurateConfig) -> list[Reply]:
    """Return those of an agent's agreeing first answers that it learns from, by `curate.choose`."""
    others = [_parts(turn.call.reply.text) for turn in debate.first_answers() if turn.agent != agent]
    ordered = list(replies)
    if settings.choose == "distinct" and others:

        def shared(reply: Reply) -> float:
            own = _parts(reply.text)
            return max(len(own & other) / (len(own | other) or 1) for other in others)

        ordered.sort(key=shared)
    return ordered[: settings.examples_per_question]


def _parts(text: str) -> set[tuple[str, ...]]:
    """Return the words of a text, and its pairs of words."""
    words = text.split()
    return {(word,) for word in words} | set(pairwise(words))


def critic_examples(
    debates: Iterable[Debate],
    votes: Mapping[str, Vote],
    agent: int,
    settings: CurateConfig,
    run_seed: int,
    loss_turns: Literal["last", "all"] = "last",
) -> Curated:
    """Return critic `agent`'s set: whole dialogues (x, y[1], ..., y[M]) whose last answer equals the label.

    Those whose first answer was another (D-, corrected) and those whose first answer was the label already (D+, kept)
    are mixed with weight w = `settings.critic_mix`, see `mix`. A reply that carries loss, by `loss_turns`, must have
    ended by itself.
    """
    found: list[Example] = []
    counts: Counter[str] = Counter()
    for debate in debates:
        vote, own = votes[debate.problem_id], debate.turns_of(agent)
        dropped = dropped_for(vote, settings)
        if dropped is None and (not own or own[-1].round == 1):
            continue  # the protocol did not ask it as a critic
        label = accepted(debate, vote, settings)
        reason = dropped or unfit(own[-1], label)
        if reason is None and loss_turns == "all" and any(turn.cut for turn in own):
            reason = "cut"
        if reason is None:
            kind: Kind = "kept" if own[0].answer in label else "corrected"
            dialogue = debate.dialogue(agent)
            found.append(example_of(debate, f"critic_{agent}", kind, dialogue, debate.replies(agent)))
        else:
            counts[reason] += 1
    examples = mix(found, settings, run_seed) if settings.keep == "agreeing" else tuple(found)
    used = {example.problem_id for example in examples}
    counts["cut_for_mix"] = len(found) - len(used)
    counts["repeated_for_mix"] = len(examples) - len(used)
    examples = weigh(examples, debates, votes, settings, run_seed)
    counts.update(example.kind for example in examples)
    return Curated(examples, CurateCounts(examples=len(examples), **counts))


def mix(found: Sequence[Example], settings: CurateConfig, run_seed: int) -> tuple[Example, ...]:
    """Mix corrected (D-) and kept (D+) dialogues of one critic: share w of the first, 1 - w of the second (eq. 1).

    Where one side is too short for that, `settings.short_side` decides: the longer side is cut, the shorter one is
    repeated, or all there is is used as it is. If one side is empty, the other is used whole: an empty side never
    empties the set. Which examples are cut or repeated is drawn by seed and does not depend on their order.
    """
    w = settings.critic_mix
    corrected = [example for example in found if example.kind == "corrected"]
    kept = [example for example in found if example.kind == "kept"]
    if not corrected or not kept:
        return tuple(found)
    if w in (0, 1):
        return tuple(corrected if w else kept)
    if settings.short_side == "use_all":
        return tuple(found)
    pick = min if settings.short_side == "cut" else max
    total = pick(len(corrected) / w, len(kept) / (1 - w))
    chosen = _draw(corrected, round(w * total), run_seed) + _draw(kept, round((1 - w) * total), run_seed)
    place = {example.problem_id: number for number, example in enumerate(found)}
    return tuple(sorted(chosen, key=lambda example: place[example.problem_id]))


def weigh(
    examples: Sequence[Example],
    debates: Iterable[Debate],
    votes: Mapping[str, Vote],
    settings: CurateConfig,
    run_seed: int,
) -> tuple[Example, ...]:
    """Draw as many examples of one agent as there are, each in proportion to its worth by `settings.weight_by`.

    Systematic resampling: an example with k times the mean worth is there floor(k) or ceil(k) times, and which of the
    two is drawn by seed.
    """
    if settings.weight_by == "none" or not examples:
        return tuple(examples)
    if settings.weight_by == "margin":
        worths = [float(votes[example.problem_id].margin) for example in examples]
    elif examples[0].agent.startswith("critic"):  # nobody reads the last answers
        return tuple(examples)
    else:
        place = int(examples[0].agent.rpartition("_")[2])
        gains = {debate.problem_id: gain(debate, votes[debate.problem_id], place) for debate in debates}
        worths = [1 + gains[one.problem_id] * (-1 if one.wanted is False else 1) for one in examples]
    if not any(worths):
        return tuple(examples)
    step = sum(worths) / len(examples)
    position = step * seeds.rng(run_seed, "weigh", examples[0].iteration, examples[0].agent).random()
    drawn: list[Example] = []
    for example, up_to in zip(examples, accumulate(worths), strict=True):
        while position < up_to:
            drawn.append(example)
            position += step
    return tuple(drawn)


def gain(debate: Debate, vote: Vote, agent: int) -> float:
    """Return by how much the share of the other agents with the label grew after they had read an agent's first answer.

    From -1 to 1; an agent that is not asked again keeps its answer. After the partial trajectory rewards of ACC-Collab
    (arXiv 2411.00053): a message is worth what it changes in the next round.
    """
    label = vote.agreeing(debate)
    spoke = {turn.agent: turn for turn in debate.round(2)}
    others = [turn for turn in debate.round(1) if turn.agent != agent]
    came = [(spoke.get(turn.agent, turn).answer in label) - (turn.answer in label) for turn in others]
    return sum(came) / len(came) if came else 0.0


def pool(sets: Iterable[Curated]) -> Curated:
    """Return the examples of all agents as one set, with the sums of their counts."""
    made = list(sets)
    counts: Counter[str] = Counter()
    for one in made:
        counts.update(one.counts.model_dump())
    return Curated(tuple(example for one in made for example in one.examples), CurateCounts(**counts))


def apportion(made: Curated, place: int, num_agents: int, settings: CurateConfig, run_seed: int) -> Curated:
    """Keep the examples on the questions that an agent learns from, see `settings.questions`."""
    if settings.questions == "all" or not made.examples:
        return made
    ids = sorted({example.problem_id for example in made.examples})
    if settings.questions == "shards":
        times = Counter(id for id in ids if seeds.seed(run_seed, "shard", id) % num_agents == place)
    else:
        first = made.examples[0]
        times = Counter(seeds.rng(run_seed, "bootstrap", first.iteration, first.agent).choices(ids, k=len(ids)))
    examples = [example for example in made.examples for _ in range(times[example.problem_id])]
    not_drawn = sum(not times[example.problem_id] for example in made.examples)
    return _only(made, examples, not_drawn=not_drawn, drawn_again=len(examples) + not_drawn - len(made.examples))


def limit(made: Curated, iteration: int, settings: CurateConfig, run_seed: int) -> Curated:
    """Draw at most `settings.max_examples` of the examples, and keep their order."""
    most = of_iteration(settings.max_examples, iteration)
    if most is None or len(made.examples) <= most:
        return made
    rng = seeds.rng(run_seed, "limit", iteration, made.examples[0].agent)
    places = sorted(rng.sample(range(len(made.examples)), most))
    return _only(made, [made.examples[place] for place in places], over_limit=len(made.examples) - most)


def _only(made: Curated, examples: Sequence[Example], **counts: int) -> Curated:
    """Return a set with some of its examples, and its counts with others on top."""
    kinds = dict.fromkeys(("first", "corrected", "kept", "dissenting"), 0)
    kinds |= Counter(example.kind for example in examples)
    return Curated(tuple(examples), made.counts.model_copy(update={**kinds, **counts, "examples": len(examples)}))


def _draw(examples: Sequence[Example], count: int, run_seed: int) -> list[Example]:
    """Return `count` examples, at least one, each used once before any is used again."""
    shuffled = sorted(examples, key=lambda e: seeds.seed(run_seed, "mix", e.iteration, e.agent, e.problem_id))
    return [shuffled[i % len(shuffled)] for i in range(max(1, count))]


def accepted(debate: Debate, vote: Vote, settings: CurateConfig) -> frozenset[str | None]:
    """Return the answers that are learned from, by `settings.keep`: the label; without labels all, or all but None."""
    if settings.keep == "agreeing":
        return vote.agreeing(debate)
    answers = frozenset(turn.answer for turn in debate.all_turns)
    return answers if settings.keep == "all" else answers - {None}


def dropped_for(vote: Vote, settings: CurateConfig) -> str | None:
    """Return why nobody learns from a debate; None if agents may."""
    return vote.dropped if settings.keep == "agreeing" or vote.dropped == "failed" else None


def unfit(turn: Turn, label: frozenset[str | None]) -> str | None:
    """Return why a response does not count as one that agrees with the label; None if it does."""
    if turn.answer not in label:
        return "unparsed" if turn.answer is None else "disagrees"
    return "cut" if turn.cut else None


def example_of(
    debate: Debate, agent: str, kind: Kind, messages: tuple[Message, ...], replies: tuple[Reply, ...]
) -> Example:
    """Return the example whose messages end with the last of an agent's replies."""
    token_ids = tuple(reply.token_ids for reply in replies)
    return Example(
        iteration=debate.iteration,
        problem_id=debate.problem_id,
        agent=agent,
        kind=kind,
        messages=messages,
        token_ids=token_ids if any(token_ids) else None,
        logprobs=replies[-1].logprobs,
    )
