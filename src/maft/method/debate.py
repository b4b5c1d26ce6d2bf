"""The protocols that ship: `debate`, the paper's, and `vote`, which has its first round only."""

from collections import Counter
from collections.abc import Generator, Iterator, Sequence

from maft import seeds
from maft.config import DebateConfig
from maft.config import prompts as prompts_
from maft.config.prompts import Prompts
from maft.method.protocol import Ask, Calls, Protocol, Rules, ask, drawn, record, shown, system, turn
from maft.records import AgentRef, Call, Problem, Reply, Request, Role, Turn


class FirstAnswers(Protocol):
    """Every generator answers the question alone, and nobody is shown what another said."""

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
        texts = (prompts.solve,) if prompts.system is None else (prompts.system, prompts.solve)
        yield Calls("answer", 1, "generator", settings.num_agents * settings.num_samples, texts)


class SynchronousDebate(FirstAnswers):
    """The paper's debate: round 1 is the generators', every later round the critics'.

    Rounds are synchronous: what is shown in round m was said in round m - 1.
    """

    name = "debate"

    def speak(
        self, problem: Problem, rules: Rules, turns: list[Turn], samples: list[Turn]
    ) -> Generator[list[Request], list[Reply], None]:
        """Play round 1 and the rounds of the critics."""
        yield from super().speak(problem, rules, turns, samples)
        for number in range(2, rules.debate.num_rounds + 1):
            turns += yield from critic_round(problem, rules, number, turns)

    def kinds(self, settings: DebateConfig, prompts: Prompts) -> Iterator[Calls]:
        """Yield first answers, then summaries, if there are any, and critics' answers of each round."""
        n, others = settings.num_agents, min(settings.num_agents - 1, settings.max_others)
        summarized = settings.summarizer != "none" and others > 0
        (first,) = super().kinds(settings, prompts)
        yield first
        shown = prompts.critic_summary if summarized else prompts.critic_full if others else prompts.critic_alone
        texts, quoted = first.texts, Counter[Role]()
        for number in range(2, settings.num_rounds + 1):
            before: Role = "generator" if number == 2 else "critic"
            if summarized:
                yield Calls("summary", number, "summarizer", n, (prompts.summarize,), {before: others})
            texts = (*texts, shown)
            quoted[before] += 1
            quoted["summarizer" if summarized else before] += 1 if summarized else others
            yield Calls("answer", number, "critic", n, texts, dict(quoted))


def first_round(problem: Problem, rules: Rules) -> Generator[list[Request], list[Reply], list[Turn]]:
    """Every generator answers the question alone, once for the debate and then, for the vote only, as often as asked.

    All at once, since an engine reads a question once for all answers to it.
    """
    purposes = ["answer", *(f"sample {k}" for k in range(1, rules.debate.num_samples))]
    asked = [
        Ask(
            agent,
            n,
            prompts_.fill(rules.prompts.solve, question=problem.question, agent=f"{n + 1}"),
            system(rules),
            drawn(rules, agent, rules.sampling.generator),
            purpose,
        )
        for purpose in purposes
        for n, agent in enumerate(rules.society.generators)
    ]
    calls = yield from ask(asked, problem, rules, 1)
    return [turn(rules, one.place, 1, call) for one, call in zip(asked, calls, strict=True)]


def critic_round(
    problem: Problem, rules: Rules, number: int, said: Sequence[Turn]
) -> Generator[list[Request], list[Reply], list[Turn]]:
    """Every critic reads what the others said in the round before, then answers within its own dialogue."""
    before = [earlier for earlier in said if earlier.round == number - 1]
    others = [_others(before, n, rules, problem, number) for n in range(len(before))]
    summaries: list[Call] | None = None
    if rules.debate.summarizer != "none" and len(before) > 1:
        asked = [
            Ask(
                _summarizer(rules, n),
                n,
                prompts_.fill(rules.prompts.summarize, question=problem.question, answers=prompts_.quote(texts)),
                (),
                rules.sampling.summarizer,
                "summary",
            )
            for n, texts in enumerate(others)
        ]
        summaries = yield from ask(asked, problem, rules, number)
    so_far = record(problem, rules, said)
    asked = [
        Ask(
            critic,
            n,
            _critic_prompt(problem, rules, n, others[n], shown(rules, summaries[n].reply) if summaries else None),
            so_far.dialogue(n),
            drawn(rules, critic, rules.sampling.critic),
            "answer",
        )
        for n, critic in enumerate(rules.society.critics)
    ]
    calls = yield from ask(asked, problem, rules, number)
    return [turn(rules, n, number, call, summaries[n] if summaries else None) for n, call in enumerate(calls)]


def _others(before: Sequence[Turn], agent: int, rules: Rules, problem: Problem, number: int) -> list[str]:
    """Return what the other agents said in the round before: at most `max_others`, in an order drawn by seed."""
    texts = [shown(rules, turn.call.reply) for turn in before if turn.agent != agent]
    seeds.rng(rules.run_seed, rules.stage, rules.iteration, problem.id, agent, number, "others").shuffle(texts)
    return texts[: rules.debate.max_others]


def _critic_prompt(problem: Problem, rules: Rules, agent: int, others: Sequence[str], summary: str | None) -> str:
    parts = {"question": problem.question, "agent": f"{agent + 1}"}
    if summary is not None:
        return prompts_.fill(rules.prompts.critic_summary, summary=summary.strip(), **parts)
    if others:
        return prompts_.fill(rules.prompts.critic_full, answers=prompts_.quote(others), **parts)
    return prompts_.fill(rules.prompts.critic_alone, **parts)


def _summarizer(rules: Rules, agent: int) -> AgentRef:
    return rules.society.summarizer or rules.society.critics[agent]
