"""The protocols that ship; docs/protocols.md says what each costs.

debate       the paper's: everyone reads everyone, M rounds
vote         the first round only
contested    a debate that ends as soon as all agree
dissenters   only agents outside the largest class of answers speak again
conformist   the same, and they read those in the largest class only
sparse       each critic reads its two neighbours in a ring
aggregator   in the last round one critic reads all answers with their counts, and has the last word
judge        in the last round one critic picks one of the answers
"""

from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence

from maft import seeds
from maft.answers.equality import representative
from maft.config import DebateConfig
from maft.config import prompts as prompts_
from maft.config.prompts import Prompts
from maft.method.protocol import (
    Ask,
    Calls,
    Protocol,
    Rules,
    ask,
    classes,
    drawn,
    record,
    shown,
    system,
    texts,
    turn,
)
from maft.records import Call, Debate, Problem, Reply, Request, Role, Turn

Readers = Mapping[int, Sequence[int]]
"""Who speaks in a round of critics, and whose answers each of them reads, by the agents' places."""


class FirstAnswers(Protocol):
    """Every generator answers alone, and the first answers vote."""

    name = "vote"

    def speak(
        self, problem: Problem, rules: Rules, turns: list[Turn], samples: list[Turn]
    ) -> Generator[list[Request], list[Reply], None]:
        """Play round 1."""
        answered = yield from first_round(problem, rules)
        turns += answered[: rules.debate.num_agents]
        samples += answered[rules.debate.num_agents :]

    def kinds(self, settings: DebateConfig, prompts: Prompts) -> Iterator[Calls]:
        """Yield the first answers."""
        asked = (prompts.solve,) if prompts.system is None else (prompts.system, prompts.solve)
        yield Calls("answer", 1, "generator", settings.num_agents * settings.num_samples, asked)


class SynchronousDebate(FirstAnswers):
    """The paper's debate: generators answer in round 1, critics in every later round.

    Rounds are synchronous: what is shown in round m was said before it. Its kin change who speaks and who reads whom.
    """

    name = "debate"
    share = 1.0
    """Share of the critics' calls to expect."""

    def readers(self, before: Sequence[Turn], problem: Problem, rules: Rules, number: int) -> Readers:
        """Return who speaks in a round and whom each reads, by the agents' answers so far; nobody ends the debate."""
        return {own.agent: [other.agent for other in before if other is not own] for own in before}

    def sizes(self, settings: DebateConfig, number: int) -> tuple[int, int]:
        """Return how many critics speak in a round at most, and how many answers each reads."""
        return settings.num_agents, settings.num_agents - 1

    def quote(self, settings: DebateConfig, number: int) -> str:
        """Return what critics are shown of others in a round, as `debate.quote` names it."""
        return settings.quoted

    def prompt(self, prompts: Prompts, quote: str, number: int, num_rounds: int) -> str:
        """Return the template of what a critic is asked; `quote` is `alone` where it reads nobody."""
        known = {"summary": prompts.critic_summary, "alone": prompts.critic_alone}
        return known.get(quote, prompts.critic_full)

    def speak(
        self, problem: Problem, rules: Rules, turns: list[Turn], samples: list[Turn]
    ) -> Generator[list[Request], list[Reply], None]:
        """Play round 1 and the rounds of the critics."""
        yield from super().speak(problem, rules, turns, samples)
        if rules.debate.wrong_majorities is not None and rules.stage == "train":
            turns[:], samples[:] = choose_context(turns, samples, problem, rules, rules.debate.wrong_majorities)
        for number in range(2, rules.debate.num_rounds + 1):
            readers = self.readers(record(problem, rules, turns).latest, problem, rules, number)
            if not readers:
                return
            turns += yield from self.critic_round(problem, rules, number, turns, readers)

    def critic_round(
        self, problem: Problem, rules: Rules, number: int, said: Sequence[Turn], readers: Readers
    ) -> Generator[list[Request], list[Reply], list[Turn]]:
        """Let critics read what others said before, and answer within their own dialogues."""
        so_far, num_rounds = record(problem, rules, said), rules.debate.num_rounds
        quote = self.quote(rules.debate, number) if any(readers.values()) else "alone"
        read = {n: [own for own in so_far.latest if own.agent in others] for n, others in readers.items()}
        if quote == "answers":
            quoted = {n: count_answers(turns, problem, rules) for n, turns in read.items()}
        else:
            quoted = {n: prompts_.quote(_replies(turns, n, rules, problem, number)) for n, turns in read.items()}
        summaries: Mapping[int, Call] = {}
        if quote == "summary":
            summaries = yield from _summarise(problem, rules, number, quoted)
        asked = []
        for n in readers:
            summary = shown(rules, summaries[n].reply).strip() if summaries else ""
            parts = {"question": problem.question, "agent": f"{n + 1}", "summary": summary}
            critic = rules.society.critics[n]
            template = self.prompt(texts(rules, critic), quote, number, num_rounds)
            prompt = prompts_.fill(template, answers=summary if summaries else quoted[n], **parts)
            how = drawn(rules, critic, rules.sampling.critic)
            asked.append(Ask(critic, n, prompt, so_far.dialogue(n), how, "answer"))
        calls = yield from ask(asked, problem, rules, number)
        return [turn(rules, n, number, call, summaries.get(n)) for n, call in zip(readers, calls, strict=True)]

    def kinds(self, settings: DebateConfig, prompts: Prompts) -> Iterator[Calls]:
        """Yield first answers, then summaries, if there are any, and critics' answers of each round."""
        (first,) = super().kinds(settings, prompts)
        yield first
        asked, quoted, answers = first.texts, Counter[Role](), Counter[Role]()
        for number in range(2, settings.num_rounds + 1):
            times, read = self.sizes(settings, number)
            quote = self.quote(settings, number) if read else "alone"
            most = min(read, settings.max_others)
            before: Role = "generator" if number == 2 else "critic"
            if quote == "summary":
                texts_of_summary = (prompts.summarize,)
                yield Calls("summary", number, "summarizer", times, texts_of_summary, {before: most}, share=self.share)
            asked = (*asked, self.prompt(prompts, quote, number, settings.num_rounds))
            quoted[before] += 1 + most * (quote == "full")
            quoted["summarizer"] += quote == "summary"
            answers[before] += read * (quote == "answers")
            yield Calls("answer", number, "critic", times, asked, dict(+quoted), dict(+answers), self.share)


class Contested(SynchronousDebate):
    """A debate that ends as soon as all agents give the same answer."""

    name = "contested"
    share = 0.5

    def readers(self, before: Sequence[Turn], problem: Problem, rules: Rules, number: int) -> Readers:
        """Return nobody where all agree."""
        return {} if unanimous(classes(before, problem, rules)) else super().readers(before, problem, rules, number)


class Dissenters(SynchronousDebate):
    """A debate in which only agents without the most frequent answer answer again; the others keep theirs.

    Where several classes are the largest, everyone speaks.
    """

    name = "dissenters"
    share = 1 / 3

    def readers(self, before: Sequence[Turn], problem: Problem, rules: Rules, number: int) -> Readers:
        """Return the agents outside the largest class."""
        numbers = classes(before, problem, rules)
        leader = largest(numbers)
        dissent = {own.agent for own, n in zip(before, numbers, strict=True) if n is None or n != leader}
        everyone = super().readers(before, problem, rules, number)
        return {n: read for n, read in everyone.items() if n in dissent}

    def ballots(self, debate: Debate, which: str) -> tuple[Turn, ...]:
        """Return the last answer of each agent, from whichever round it is, where the last round votes."""
        return debate.latest if which == "last" else super().ballots(debate, which)


class Conformist(Dissenters):
    """As dissenters, but those agents read only replies with the most frequent answer.

    Where several classes are the largest, everyone reads everyone.
    """

    name = "conformist"

    def readers(self, before: Sequence[Turn], problem: Problem, rules: Rules, number: int) -> Readers:
        """Return the agents outside the largest class, each with those in it."""
        dissent = super().readers(before, problem, rules, number)
        majority = [own.agent for own in before if own.agent not in dissent]
        return {n: majority or read for n, read in dissent.items()}


class Sparse(SynchronousDebate):
    """A debate in which each critic reads its two neighbours in a ring (Li et al., arXiv 2406.11776)."""

    name = "sparse"

    def readers(self, before: Sequence[Turn], problem: Problem, rules: Rules, number: int) -> Readers:
        """Return everyone, with the neighbours."""
        size = len(before)
        return {n: sorted({(n - 1) % size, (n + 1) % size}) for n in range(size)}

    def sizes(self, settings: DebateConfig, number: int) -> tuple[int, int]:
        """Return N and 2."""
        return settings.num_agents, 2


class Aggregator(SynchronousDebate):
    """A debate whose last round is one random critic, which reads all answers with their counts.

    If its answer cannot be read, the round before votes.
    """

    name = "aggregator"

    def readers(self, before: Sequence[Turn], problem: Problem, rules: Rules, number: int) -> Readers:
        """Return, in the last round, one critic that reads everybody."""
        if number < rules.debate.num_rounds:
            return super().readers(before, problem, rules, number)
        rng = seeds.rng(rules.run_seed, rules.stage, rules.iteration, problem.id, "last word")
        return {rng.randrange(len(before)): [own.agent for own in before]}

    def sizes(self, settings: DebateConfig, number: int) -> tuple[int, int]:
        """Return 1 and N in the last round."""
        return (1, settings.num_agents) if number == settings.num_rounds else super().sizes(settings, number)

    def quote(self, settings: DebateConfig, number: int) -> str:
        """Return `answers` in the last round."""
        return "answers" if number == settings.num_rounds else super().quote(settings, number)

    def ballots(self, debate: Debate, which: str) -> tuple[Turn, ...]:
        """Return the last word, or the round before it if the last word could not be read."""
        last = super().ballots(debate, which)
        if which == "last" and len(last) == 1 and last[0].answer is None:
            return debate.round(max(1, last[0].round - 1))
        return last


class Judge(Aggregator):
    """A debate whose last round is one random critic, which picks one of the answers; not asked where all agree.

    An answer that nobody gave counts as one that could not be read: the round before votes.
    """

    name = "judge"
    share = 0.5

    def readers(self, before: Sequence[Turn], problem: Problem, rules: Rules, number: int) -> Readers:
        """Return nobody where all agree."""
        return {} if unanimous(classes(before, problem, rules)) else super().readers(before, problem, rules, number)

    def quote(self, settings: DebateConfig, number: int) -> str:
        """Return what `debate.quote` says in every round."""
        return settings.quoted

    def prompt(self, prompts: Prompts, quote: str, number: int, num_rounds: int) -> str:
        """Ask for a choice in the last round."""
        return prompts.judge if number == num_rounds else super().prompt(prompts, quote, number, num_rounds)

    def critic_round(
        self, problem: Problem, rules: Rules, number: int, said: Sequence[Turn], readers: Readers
    ) -> Generator[list[Request], list[Reply], list[Turn]]:
        """Read only an answer that was there."""
        before = record(problem, rules, said).latest
        turns = yield from super().critic_round(problem, rules, number, said, readers)
        if number < rules.debate.num_rounds:
            return turns
        *known, picked = classes([*before, *turns], problem, rules)
        return turns if picked in known else [turns[0].model_copy(update={"answer": None})]


def choose_context(
    turns: Sequence[Turn], samples: Sequence[Turn], problem: Problem, rules: Rules, wrong_share: float
) -> tuple[list[Turn], list[Turn]]:
    """Choose which first answers are debated, so that a share of the questions begins with a wrong majority.

    Right is what most first answers say, samples included. Agents change their answer for another of their own until
    more than half are wrong, or right, as drawn for the question; where too few can, all stays as it was drawn.
    """
    every = [*turns, *samples]
    numbers = classes(every, problem, rules)
    label = largest(numbers)
    rng = seeds.rng(rules.run_seed, rules.stage, rules.iteration, problem.id, "context")
    wrong = rng.random() < wrong_share
    fits = [number is not None and (number != label) == wrong for number in numbers]
    options = {
        n: [place for place, own in enumerate(every) if own.agent == n and fits[place]] for n in range(len(turns))
    }
    able = [n for n in options if options[n] and not fits[n]]
    missing = len(turns) // 2 + 1 - sum(fits[: len(turns)])
    if label is not None and 0 < missing <= len(able):
        for n in rng.sample(able, missing):
            every[n], every[options[n][0]] = every[options[n][0]], every[n]
    return every[: len(turns)], every[len(turns) :]


def unanimous(numbers: Sequence[int | None]) -> bool:
    """Say whether all answers could be read and are in one class.

    >>> unanimous((0, 0)), unanimous((0, 1)), unanimous((None, None))
    (True, False, False)
    """
    return len(set(numbers)) == 1 and None not in numbers


def largest(numbers: Sequence[int | None]) -> int | None:
    """Return the class with the most answers; None where several have as many, or there is none.

    >>> largest((0, 1, 1, None)), largest((0, 1)), largest((None,))
    (1, None, None)
    """
    leaders = Counter(number for number in numbers if number is not None).most_common(2)
    return leaders[0][0] if leaders and leaders[0][1] > sum(size for _, size in leaders[1:]) else None


def count_answers(turns: Sequence[Turn], problem: Problem, rules: Rules) -> str:
    """Return answers without their reasoning, each once with the number of agents that gave it, most first."""
    answers: dict[int | None, list[str]] = {}
    for own, number in zip(turns, classes(turns, problem, rules), strict=True):
        answers.setdefault(number, []).append(own.answer or "")
    ordered = sorted(answers.items(), key=lambda item: (item[0] is None, -len(item[1]), representative(item[1])))
    return "\n".join(
        f"{'no readable answer' if number is None else representative(same)}: {len(same)} of {len(turns)} agents"
        for number, same in ordered
    )


def first_round(problem: Problem, rules: Rules) -> Generator[list[Request], list[Reply], list[Turn]]:
    """Every generator answers the question alone, once for the debate and then, for the vote only, as often as asked.

    All at once, since an engine reads a question once for all answers to it.
    """
    purposes = ["answer", *(f"sample {k}" for k in range(1, rules.debate.num_samples))]
    asked = [
        Ask(
            agent,
            n,
            prompts_.fill(texts(rules, agent).solve, question=problem.question, agent=f"{n + 1}"),
            system(rules),
            drawn(rules, agent, rules.sampling.generator),
            purpose,
        )
        for purpose in purposes
        for n, agent in enumerate(rules.society.generators)
    ]
    calls = yield from ask(asked, problem, rules, 1)
    return [turn(rules, one.place, 1, call) for one, call in zip(asked, calls, strict=True)]


def _replies(turns: Sequence[Turn], agent: int, rules: Rules, problem: Problem, number: int) -> list[str]:
    """Return what an agent reads of others' replies: at most `max_others`, in an order drawn by seed."""
    replies = [shown(rules, other.call.reply) for other in turns]
    seeds.rng(rules.run_seed, rules.stage, rules.iteration, problem.id, agent, number, "others").shuffle(replies)
    return replies[: rules.debate.max_others]


def _summarise(
    problem: Problem, rules: Rules, number: int, quoted: Mapping[int, str]
) -> Generator[list[Request], list[Reply], dict[int, Call]]:
    """Have the replies that each agent is shown condensed for it."""
    template, how = rules.prompts.summarize, rules.sampling.summarizer
    asked = [
        Ask(
            rules.society.summarizer or rules.society.critics[n],
            n,
            prompts_.fill(template, question=problem.question, answers=answers),
            rules.history,
            how,
            "summary",
        )
        for n, answers in quoted.items()
    ]
    calls = yield from ask(asked, problem, rules, number)
    return dict(zip(quoted, calls, strict=True))
