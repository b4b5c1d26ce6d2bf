r"""Other programs' formats: debates of the paper's released code in, training sets for other trainers out.

A training set is a sequence of dialogues. `messages` is the Hugging Face format, `openai` what the service finetunes
on, `sharegpt` what FastChat reads:

    messages   JSONL  {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}
    openai     JSONL  the same, and "weight": 0 on each reply that is not learned
    sharegpt   JSON   [{"id": "...", "conversations": [{"from": "human", "value": "..."}, {"from": "gpt", ...}]}]

Examples of `kto` and `dpo` have the columns of TRL's trainers in the format `messages`. In the format `openai`, those
of `dpo` have the fields that OpenAI, Together and Fireworks read:

    kto        JSONL  {"prompt": [...], "completion": [...], "label": true}
    dpo        JSONL  {"prompt": [...], "chosen": [...], "rejected": [...]}
    openai     JSONL  {"input": {"messages": [...]}, "preferred_output": [...], "non_preferred_output": [...]}
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

from pydantic import ValidationError

from maft.answers import extract_answer
from maft.errors import DataError
from maft.records import AgentRef, Call, Debate, Example, Message, Problem, Reply, Society, Turn

Format = Literal["messages", "openai", "sharegpt"]
FORMATS: tuple[Format, ...] = get_args(Format)
SUFFIX: Mapping[Format, str] = {"messages": ".jsonl", "openai": ".jsonl", "sharegpt": ".json"}

_SPEAKERS = {"system": "system", "user": "human", "assistant": "gpt"}


def write_dialogues(examples: Sequence[Example], format: Format, *, last_only: bool = True) -> str:
    """Return a training set as the text of a file.

    `openai` marks every reply but the last as not to be learned if `last_only`; the others cannot say so.

    Raises:
        DataError: the format cannot say that a response is unwanted, or less wanted than others.
    """
    pairs = format == "openai" and all(example.rejected is not None for example in examples)
    contrasting = [e for e in examples if e.wanted is not None or e.rejected is not None or e.weight < 0]
    if contrasting and not pairs and (format != "messages" or contrasting[0].weight < 0):
        raise DataError(
            f"{contrasting[0].agent} learns from dissenting responses too (train.objective), which "
            f"the format {format} cannot mark. "
            + ("Use the examples as they are." if format == "messages" else "Use messages.")
        )
    if format == "sharegpt":
        return json.dumps([_sharegpt(example) for example in examples], indent=2, ensure_ascii=False) + "\n"
    rows = [_pair(example) if pairs else trl_row(example) for example in examples]
    if format == "openai" and last_only and not pairs:
        for row in rows:
            for message in row["messages"][:-1]:
                if message["role"] == "assistant":
                    message["weight"] = 0
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _pair(example: Example) -> dict[str, Any]:
    row = trl_row(example)
    return {
        "input": {"messages": row["prompt"]},
        "preferred_output": row["chosen"],
        "non_preferred_output": row["rejected"],
    }


def trl_row(example: Example) -> dict[str, Any]:
    """Return an example as TRL's trainers read it: a pair, a judged response, or a dialogue."""
    messages = [message.model_dump() for message in example.messages]
    if example.rejected is not None:
        rejected = [messages[-1] | {"content": example.rejected}]
        return {"prompt": messages[:-1], "chosen": messages[-1:], "rejected": rejected}
    if example.wanted is not None:
        return {"prompt": messages[:-1], "completion": messages[-1:], "label": example.wanted}
    return {"messages": messages}


class Released(NamedTuple):
    """The debates of a file of the released code, with their questions."""

    problems: list[Problem]
    debates: list[Debate]


def read_released(
    text: str, society: Society, num_rounds: int, extract: Callable[[str], str | None], iteration: int = 1
) -> Released:
    """Read `{question: [agent_contexts, answer]}`, as the released `original_gen.py` and `ft_gen.py` write it.

    An agent's context is its dialogue: user, assistant, user, assistant ... What a critic was shown, a summary
    included, is the text of its user message. The known answer is the last box of `answer`, or what follows `####`, or
    the whole text.

    Raises:
        DataError: not such a file, or debates of another number of agents or rounds than the config has.
    """
    tree = _json(text, "the file")
    if not isinstance(tree, dict) or not tree:
        raise DataError("released debates must be a JSON object {question: [agent_contexts, answer]}.")
    found = Released([], [])
    for question, value in tree.items():
        where = f"question {question[:60]!r}"
        if not isinstance(value, list) or len(value) != 2 or not isinstance(value[0], list):
            raise DataError(f"{where}: expected [agent_contexts, answer], got {str(value)[:80]!r}.")
        dialogues = [_dialogue(context, where) for context in value[0]]
        _check_shape(dialogues, len(society.generators), num_rounds, where)
        problem = Problem(id=_id(question), question=question, gold=_gold(value[1]))
        found.problems.append(problem)
        found.debates.append(_debate(problem, dialogues, society, num_rounds, extract, iteration))
    return found


def _debate(
    problem: Problem,
    dialogues: Sequence[Sequence[Message]],
    society: Society,
    num_rounds: int,
    extract: Callable[[str], str | None],
    iteration: int,
) -> Debate:
    system = dialogues[0][0].content if dialogues[0][0].role == "system" else None
    turns = []
    for number in range(1, num_rounds + 1):
        speakers: Sequence[AgentRef] = society.generators if number == 1 else society.critics
        for n, dialogue in enumerate(dialogues):
            spoken = [message.content for message in dialogue if message.role != "system"]
            prompt, said = spoken[2 * number - 2 : 2 * number]
            call = Call(agent=speakers[n].name, prompt=prompt, reply=Reply(text=said, finish_reason="stop"), seed=0)
            turns.append(Turn(agent=n, round=number, call=call, answer=extract(said)))
    return Debate(
        iteration=iteration, problem_id=problem.id, question=problem.question, system=system, turns=tuple(turns)
    )


def _check_shape(dialogues: Sequence[Sequence[Message]], num_agents: int, num_rounds: int, where: str) -> None:
    if len(dialogues) != num_agents:
        raise DataError(
            f"{where} was debated by {len(dialogues)} agents, the config has {num_agents}. "
            f"Set debate.num_agents={len(dialogues)}."
        )
    for dialogue in dialogues:
        roles = [message.role for message in dialogue if message.role != "system"]
        if roles != ["user", "assistant"] * num_rounds:
            raise DataError(
                f"{where} must have {num_rounds} pairs of user and assistant messages for each agent, got "
                f"{', '.join(roles)}. Set debate.num_rounds to the number of replies."
            )


def _id(question: str) -> str:
    return hashlib.blake2b(question.encode(), digest_size=6).hexdigest()


def _gold(answer: object) -> str | None:
    if answer is None:
        return None
    text = str(answer)
    return extract_answer(text) or text.rpartition("####")[2].strip() or None


def _sharegpt(example: Example) -> dict[str, Any]:
    conversations = [{"from": _SPEAKERS[message.role], "value": message.content} for message in example.messages]
    return {"id": f"{example.agent}_{example.problem_id}", "conversations": conversations}


def _dialogue(said: object, where: str) -> tuple[Message, ...]:
    if not isinstance(said, list) or not said:
        raise DataError(f"{where} has a context that is no list of messages: {str(said)[:80]!r}.")
    try:
        return tuple(Message(role=one["role"], content=one["content"]) for one in said)
    except (ValidationError, KeyError, TypeError):
        raise DataError(f"{where} has a message without a known role and a text: {str(said)[:120]!r}.") from None


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is not JSON: {error}.") from None
