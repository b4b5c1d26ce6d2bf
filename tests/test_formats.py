"""Dialogues in other programs' formats, and debates of the released code."""

import json

import pytest
from helpers import dialogues, society

from maft.answers import extract_answer
from maft.errors import DataError
from maft.method.formats import FORMATS, SUFFIX, read_released, write_dialogues
from maft.records import Example, Message

ODD = 'π ≤ \u2028 4\n"quoted" \\boxed{\\frac{1}{2}} {braces}'
MESSAGES = tuple(
    Message(role=role, content=text)
    for role, text in (
        ("system", "Be brief."),
        ("user", ODD),
        ("assistant", "no"),
        ("user", "Again."),
        ("assistant", ODD),
    )
)
EXAMPLES = [
    Example(iteration=1, problem_id=name, agent="critic_0", kind="corrected", messages=messages)
    for name, messages in (("a", MESSAGES), ("b", MESSAGES[1:3]))
]


@pytest.mark.parametrize("format", FORMATS)
def test_what_is_written_is_read_back(format):
    text = write_dialogues(EXAMPLES, format)
    assert dialogues(text, format) == [example.messages for example in EXAMPLES]


@pytest.mark.parametrize("format", FORMATS)
def test_an_empty_set_is_an_empty_file_that_can_be_read(format):
    assert dialogues(write_dialogues([], format), format) == []


def test_the_service_learns_the_last_reply_only():
    row = json.loads(write_dialogues(EXAMPLES, "openai").split("\n")[0])
    assert [message.get("weight") for message in row["messages"]] == [None, None, 0, None, None]
    row = json.loads(write_dialogues(EXAMPLES, "openai", last_only=False).split("\n")[0])
    assert all("weight" not in message for message in row["messages"])


def test_sharegpt_has_the_keys_that_fastchat_reads():
    rows = json.loads(write_dialogues(EXAMPLES, "sharegpt"))
    assert [turn["from"] for turn in rows[0]["conversations"]] == ["system", "human", "gpt", "human", "gpt"]
    assert rows[0]["id"] == "critic_0_a" and rows[1]["conversations"][1] == {"from": "gpt", "value": "no"}


@pytest.mark.slow
@pytest.mark.parametrize("format", ["messages", "openai"])
def test_the_sets_can_be_loaded_as_hugging_face_data_sets(tmp_path, monkeypatch, format):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    from datasets import load_dataset

    path = tmp_path / f"set{SUFFIX[format]}"
    path.write_text(write_dialogues(EXAMPLES, format), encoding="utf-8")
    rows = load_dataset("json", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
    assert [[message["content"] for message in row["messages"]] for row in rows] == [
        [message.content for message in example.messages] for example in EXAMPLES
    ]


def context(*said: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(said)]


RELEASED = {
    "What is 1 + 1?": [
        [context("solve", "\\boxed{2}", "others say", "\\boxed{2}"), context("solve", "\\boxed{3}", "others", "dunno")],
        "The sum is $\\boxed{2}$.",
    ],
    "What is 2 + 2?": [[context("solve", "4", "others", "\\boxed{4}")] * 2, "so #### 4"],
}


def test_released_debates_become_debates_of_ours():
    problems, debates = read_released(json.dumps(RELEASED), society(2), 2, extract_answer)
    assert [(problem.question, problem.gold) for problem in problems] == [
        ("What is 1 + 1?", "2"),
        ("What is 2 + 2?", "4"),
    ]
    assert [debate.problem_id for debate in debates] == [problem.id for problem in problems]
    first = debates[0]
    assert first.iteration == 1
    assert [turn.answer for turn in first.round(1)] == ["2", "3"]
    assert [turn.answer for turn in first.round(-1)] == ["2", None]
    assert [turn.call.agent for turn in first.turns] == ["generator_0", "generator_1", "critic_0", "critic_1"]
    contents = [message.content for message in first.dialogue(0)]
    assert contents == ["solve", "\\boxed{2}", "others say", "\\boxed{2}"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ([], "must be a JSON object"),
        ({"q": "x"}, r"expected \[agent_contexts, answer\]"),
        (
            {"q": [[context("a", "b", "c", "d")], "4"]},
            "was debated by 1 agents, the config has 2. Set debate.num_agents=1",
        ),
        ({"q": [[context("a", "b")] * 2, "4"]}, "must have 2 pairs of user and assistant messages"),
        ({"q": [[[{"role": "user"}]] * 2, "4"]}, "has a message without a known role and a text"),
    ],
)
def test_a_file_of_another_shape_is_refused(change, said):
    with pytest.raises(DataError, match=said):
        read_released(json.dumps(change), society(2), 2, extract_answer)


def test_judged_responses_and_pairs_have_the_columns_of_trl():
    first = EXAMPLES[0]
    prompt, last = [m.model_dump() for m in first.messages[:-1]], first.messages[-1].model_dump()
    judged, pair = first.model_copy(update={"wanted": False}), first.model_copy(update={"rejected": "No."})
    kto, dpo = map(json.loads, write_dialogues([judged, pair], "messages").strip().split("\n"))
    assert kto == {"prompt": prompt, "completion": [last], "label": False}
    assert dpo == {"prompt": prompt, "chosen": [last], "rejected": [last | {"content": "No."}]}
    (row,) = map(json.loads, write_dialogues([pair], "openai").strip().split("\n"))
    assert row == {
        "input": {"messages": prompt},
        "preferred_output": [last],
        "non_preferred_output": [last | {"content": "No."}],
    }


@pytest.mark.parametrize(
    ("changes", "format", "remedy"),
    [
        ({"wanted": False}, "openai", "Use messages"),
        ({"rejected": "No."}, "sharegpt", "Use messages"),
        ({"weight": -1.0}, "messages", "Use the examples as they are"),
    ],
)
def test_a_response_that_is_unwanted_is_never_written_as_one_to_learn(changes, format, remedy):
    with pytest.raises(DataError, match=rf"dissenting.*{remedy}\."):
        write_dialogues([*EXAMPLES, EXAMPLES[0].model_copy(update=changes)], format)


@pytest.mark.parametrize("format", FORMATS)
def test_examples_that_count_for_less_are_written_like_others(format):
    for weight in (0.0, 0.5):
        lighter = [example.model_copy(update={"weight": weight}) for example in EXAMPLES]
        assert write_dialogues(lighter, format) == write_dialogues(EXAMPLES, format)
