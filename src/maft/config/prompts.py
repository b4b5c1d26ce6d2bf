"""Every prompt text, in one place; a task or the `prompts` section of a config can replace each by name.

The structure follows the released code (question; summary of others; critic with a summary, with others in full, or
alone); the wording is ours. A dialogue is [solve, y1, critic..., y2, ...].
"""

import re
from collections.abc import Mapping, Sequence

from maft.errors import ConfigError
from maft.records import Record

_PLACEHOLDER = re.compile(r"\{(question|answers|summary|agent|hint|first|second)\}")


class Prompts(Record):
    """The templates of a run; placeholders in braces are filled in, other braces are text.

    They are `{question}`, `{answers}`, `{summary}`, and `{agent}`: the number of the agent that is asked, from 1.
    """

    system: str | None = None
    """System message of every dialogue; None leaves it to the model's chat template."""
    solve: str = "{question}\n\nReason step by step. End with one final answer, written as \\boxed{answer}."
    """P1, round 1."""
    summarize: str = (
        "Several agents have answered this question:\n\n{question}\n\nTheir answers:\n\n{answers}\n\n"
        "Summarise the different opinions, with the reasoning behind each. Do not add an opinion of your own."
    )
    """P2, to the summariser."""
    critic_summary: str = (
        "Here is a summary of the solutions of other agents:\n\n{summary}\n\nExamine it as advice, not as the truth, "
        "and solve the question again:\n\n{question}\n\n"
        "Reason step by step. End with one updated final answer, written as \\boxed{answer}."
    )
    """P3, rounds 2 and on, with a summary."""
    critic_full: str = (
        "Here are the solutions of other agents:\n\n{answers}\n\nExamine them as advice, not as the truth, "
        "and solve the question again:\n\n{question}\n\n"
        "Reason step by step. End with one updated final answer, written as \\boxed{answer}."
    )
    """P4, rounds 2 and on, with the others' answers in full."""
    critic_alone: str = (
        "Check your answer to the question:\n\n{question}\n\nCorrect it where it is wrong, and restate it. "
        "End with one final answer, written as \\boxed{answer}."
    )
    """P5, rounds 2 and on, when there is no other agent."""
    judge: str = (
        "Several agents have answered this question:\n\n{question}\n\nTheir answers:\n\n{answers}\n\n"
        "Which of them is right? Choose one of them, and end with it as the one final answer, written as "
        "\\boxed{answer}."
    )
    """To the critic that has the last word in the protocol `judge`."""
    same: str = (
        "Question: {question}\n\nFirst answer: {first}\n\nSecond answer: {second}\n\n"
        "Do both answers say the same? Answer yes or no."
    )
    """To the judge that compares answers, with `task.equality: judge`."""
    better: str = (
        "Question: {question}\n\nFirst answer: {first}\n\nSecond answer: {second}\n\n"
        "Which answer is better? Answer with one of: first, second, equal."
    )
    """To the judge that says which of two answers is better, with `maft judge`."""
    hint: str = "{question} (The right answer is {hint}. Show how to find it.)"
    """What STaR, a baseline, asks in place of a question that was answered wrongly; `{hint}` is the right answer."""


_REQUEST = "final answer, written as \\boxed{answer}"


def asking(request: str) -> dict[str, str]:
    """Return the prompts of all rounds with another request at their end, for tasks that want one kind of answer.

    >>> asking("letter, in brackets")["critic_alone"][-33:]
    'End with one letter, in brackets.'
    """
    texts = {name: str(text) for name, text in Prompts() if text and _REQUEST in text}
    return {name: text.replace(_REQUEST, request) for name, text in texts.items()}


def brief(request: str) -> dict[str, str]:
    """Return short prompts of all rounds that end in a request, for answers without reasoning.

    >>> brief("Answer yes or no.")["solve"]
    '{question} Answer yes or no.'
    """
    question = f"{{question}} {request}".strip()
    asked = f"Use them as advice. {question}"
    return {
        "solve": question,
        "critic_summary": f"This is a summary of the answers of other agents:\n\n{{summary}}\n\n{asked}",
        "critic_full": f"These are the answers of other agents:\n\n{{answers}}\n\n{asked}",
        "critic_alone": f"Check your answer. {question}",
        "judge": f"These are the answers of several agents:\n\n{{answers}}\n\nChoose the best. {question}",
    }


REQUIRED_PLACEHOLDERS: Mapping[str, tuple[str, ...]] = {
    "solve": ("question",),
    "summarize": ("answers",),
    "critic_summary": ("summary",),
    "critic_full": ("answers",),
    "judge": ("answers",),
    "hint": ("question", "hint"),
    "same": ("first", "second"),
    "better": ("first", "second"),
}


def build(*overrides: Mapping[str, str]) -> Prompts:
    """Return the default prompts with `overrides` on top, later ones winning.

    Raises:
        ConfigError: an unknown prompt name, or a text without a placeholder that it needs.
    """
    texts = {name: text for override in overrides for name, text in override.items()}
    unknown = sorted(set(texts) - set(Prompts.model_fields))
    if unknown:
        raise ConfigError(f"prompts.{unknown[0]} does not exist; the prompts are: {', '.join(Prompts.model_fields)}.")
    for name, needed in REQUIRED_PLACEHOLDERS.items():
        missing = [f"{{{part}}}" for part in needed if name in texts and f"{{{part}}}" not in texts[name]]
        if missing:
            raise ConfigError(f"prompts.{name} must contain {' and '.join(missing)}; got {texts[name]!r}.")
    return Prompts(**texts)


def known_prompts(texts: dict[str, str]) -> dict[str, str]:
    """Refuse names that no prompt has, and texts that lack what must be filled in."""
    build(texts)
    return texts


def longest(several: Sequence[Prompts]) -> Prompts:
    """Return the longest text of each prompt."""
    trees = [one.model_dump() for one in several]
    texts = {name: max((tree[name] or "" for tree in trees), key=len) for name in Prompts.model_fields}
    return Prompts(**{name: text for name, text in texts.items() if text})


def cooperative(prompts: Prompts) -> dict[str, str]:
    """Return the critics' prompts with a sentence that asks for cooperation (the paper's ablation)."""
    plea = "You and the other agents are one team: build on what is right in their answers, and agree if you can. "
    return {name: plea + getattr(prompts, name) for name in ("critic_summary", "critic_full")}


def with_agent_number(prompts: Prompts) -> dict[str, str]:
    """Return the prompts with the agent's number in them (the paper's unique ID)."""
    asked = ("solve", "critic_summary", "critic_full", "critic_alone")
    return {name: "You are agent {agent}. " + getattr(prompts, name) for name in asked}


def fill(template: str, **parts: str) -> str:
    r"""Put `parts` into `template` in one pass, so that braces inside a part stay as they are.

    >>> fill("{question} Write \\boxed{answer}.", question="What is {summary}?")
    'What is {summary}? Write \\boxed{answer}.'
    """
    return _PLACEHOLDER.sub(lambda match: parts.get(match[1], match[0]), template)


def quote(answers: Sequence[str]) -> str:
    """Lay out other agents' answers for a prompt, numbered in the order given."""
    return "\n\n".join(f"Agent {number}: {answer.strip()}" for number, answer in enumerate(answers, 1))
