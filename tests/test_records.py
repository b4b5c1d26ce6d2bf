"""Records: one line of JSON each, and back, unchanged."""

import inspect
import json

import pytest
from helpers import boxed, call, debate, grade, problem, scored, society, user
from pydantic import ValidationError

from maft import files, records
from maft.config import CurateConfig, VoteConfig
from maft.config.prompts import Prompts
from maft.errors import DataError
from maft.evaluation.labels import label_quality
from maft.evaluation.metrics import summarize
from maft.method import curate
from maft.method import vote as voting
from maft.method.curate import CurateCounts
from maft.records import (
    AgentRef,
    CodeQuestion,
    Debate,
    Example,
    GradedVote,
    Record,
    Reply,
    Request,
    SamplingParams,
    Turn,
    Vote,
)
from maft.trainers import TrainJob, TrainProgress

NASTY = 'a\nb\r\n\u2028\u2029\x85\x00"\\ü𝒙 \\boxed{½}'

HELD = debate(["1", None, "2"], ["2", "2", None], problem_id=NASTY)
VOTE = voting.vote(HELD, VoteConfig(), 0)
CURATED = curate.critic_examples([HELD], {NASTY: VOTE}, 0, CurateConfig(), 0)
SCORES = scored([HELD], {NASTY: problem(NASTY, gold="2")}, 0)
JOB = TrainJob(
    agent="critic_0",
    role="critic",
    iteration=1,
    examples="a/b.jsonl",
    num_examples=3,
    base_model="m",
    init_adapter=None,
    output="c",
    seed=2**63 - 1,
)
SAMPLES: list[Record] = [
    user(NASTY),
    problem(NASTY, gold=None),
    CodeQuestion(name="add", signature="def add(a: int)", inputs=("(1,)",), tests=(NASTY,)),
    SamplingParams(temperature=0.1 + 0.2),
    AgentRef(role="critic", index=2, model=NASTY, adapter=NASTY),
    society(),
    society(summarizer="self"),
    Request(agent=society().generators[0], messages=(user(NASTY),), sampling=SamplingParams(), seed=2**63 - 1),
    Reply(text=NASTY, finish_reason="error", error=NASTY),
    Reply(text=NASTY, finish_reason="stop", token_ids=(1, 2), logprobs=(-0.5, -1.0)),
    call(NASTY, NASTY),
    Turn(agent=0, round=1, call=call("a", "b"), answer=None, summary=call(NASTY, "d")),
    HELD,
    debate(error=NASTY),
    VOTE,
    GradedVote(**dict(VOTE), grades=(False, True)),
    CURATED.examples[0],
    CURATED.examples[0].model_copy(
        update={"token_ids": ((1, 2), None), "weight": -0.5, "wanted": False, "rejected": NASTY}
    ),
    CURATED.counts,
    SCORES["base"][0],
    SCORES["base"][0].model_copy(update={"correct": None}),
    summarize(SCORES["base"]),
    label_quality([VOTE], {NASTY: problem(NASTY)}, grade),
    Prompts(system=NASTY),
    JOB,
    TrainProgress(agent="critic_0", step=1, num_steps=2, loss=None, tokens=3),
]


@pytest.mark.parametrize("record", SAMPLES, ids=lambda record: type(record).__name__)
def test_a_record_comes_back_from_its_line_unchanged(record):
    line = record.to_json()
    again = type(record).from_json(line)
    assert "\n" not in line and again == record and again.to_json() == line
    assert type(record).from_json(line.encode()) == record


def test_every_kind_of_record_is_among_the_samples():
    kinds = {kind for _, kind in inspect.getmembers(records, inspect.isclass) if issubclass(kind, Record)}
    assert kinds - {Record} <= {type(sample) for sample in SAMPLES}


@pytest.mark.parametrize("record", SAMPLES, ids=lambda record: type(record).__name__)
def test_a_record_is_frozen_and_knows_its_fields(record):
    name = next(iter(type(record).model_fields))
    with pytest.raises(ValidationError, match="frozen"):
        setattr(record, name, None)
    with pytest.raises(ValidationError, match="Extra inputs"):
        type(record).from_json(record.to_json().replace("{", '{"no_such_field": 1, ', 1))


@pytest.mark.parametrize("kind", [Debate, Vote, Example])
def test_what_is_kept_on_the_disk_has_a_version(kind):
    newest = records.VOTE_SCHEMA_VERSION if kind is Vote else records.SCHEMA_VERSION
    assert kind.model_fields["schema_version"].default == newest


@pytest.mark.parametrize("record", [HELD, VOTE, CURATED.examples[0], SCORES["base"][0]], ids=lambda r: type(r).__name__)
def test_a_record_of_a_newer_maft_is_refused(record, tmp_path):
    file = tmp_path / "records.jsonl"
    tree = record.model_dump(mode="json") | {"schema_version": 99, "of_tomorrow": 1}
    file.write_text(f"{record.to_json()}\n{json.dumps(tree)}\n")
    with pytest.raises(DataError, match=r"records.jsonl, line 2, was written by a newer maft: schema_version is 99"):
        files.read_records(file, type(record))


def test_fields_that_few_use_are_not_written_where_they_have_their_default():
    reply = Reply(text="a", finish_reason="stop", token_ids=(1,), logprobs=(-0.5,))
    assert {"token_ids", "logprobs"} <= reply.model_dump().keys()
    assert not {"token_ids", "logprobs"} & reply.without_tokens().model_dump().keys()
    assert list(CURATED.examples[0].model_dump())[-1] == "messages"


def test_equal_records_are_equal_keys():
    assert len({problem(), problem(), problem(gold=None)}) == 2


def test_a_dialogue_is_the_agents_own_prompts_and_replies_in_turn():
    held = debate(["1", "2"], ["3", "4"]).model_copy(update={"system": "Hm"})
    assert [(m.role, m.content) for m in held.dialogue(1)] == [
        ("system", "Hm"),
        ("user", "ask 1 in 1"),
        ("assistant", boxed("2")),
        ("user", "ask 1 in 2"),
        ("assistant", boxed("4")),
    ]
    assert held.dialogue(1, num_rounds=1) == held.dialogue(1)[:3]


def test_rounds_are_counted_from_one_and_minus_one_is_the_last():
    held = debate(["1", "2"], ["3", "4"], ["5", "6"])
    assert [t.answer for t in held.round(1)] == ["1", "2"]
    assert [t.answer for t in held.round(-1)] == ["5", "6"]
    assert debate().round(-1) == () == held.round(4)


def test_agents_are_named_by_role_and_number():
    assert [agent.name for agent in society(2).agents] == ["generator_0", "generator_1", "critic_0", "critic_1"]


@pytest.mark.parametrize(
    ("answers", "agreement", "margin"),
    [(["1", "1", "2"], 2 / 3, 1), (["1", "2", None], 1 / 3, 0), ([None] * 3, 0, 0), (["1"] * 3, 1, 3)],
)
def test_agreement_is_a_share_of_all_agents_and_a_tie_has_no_margin(answers, agreement, margin):
    vote = voting.vote(debate(answers), VoteConfig(), 0)
    assert (vote.agreement, vote.margin) == (agreement, margin)


def test_a_count_of_responses_starts_at_none():
    assert CurateCounts(examples=0).model_dump() == dict.fromkeys(CurateCounts.model_fields, 0)
