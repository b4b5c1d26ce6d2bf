"""The debates that the page holds: what is said of each, that nothing is lost, and how they are packed."""

import base64
import json
import zlib
from typing import Any

import pytest
from helpers import boxed, grade, problem, run, settings

from maft import files
from maft.config import CurateConfig, VoteConfig
from maft.method import vote as voting
from maft.records import Call, Debate, Reply, Score, Turn
from maft.report import data, debates, transcript
from maft.samplers import Scripted


def turn(agent: int, number: int, answer: str | None, text: str = "so") -> Turn:
    role = "generator" if number == 1 else "critic"
    call = Call(agent=f"{role}_{agent}", prompt="?", reply=Reply(text=text, finish_reason="stop"), seed=0)
    return Turn(agent=agent, round=number, call=call, answer=answer)


def shown(first: list[str | None], last: list[str | None], label: str | None, before: str | None, **vote: Any):
    turns = [turn(n, 1, a) for n, a in enumerate(first)] + [turn(n, 2, a) for n, a in enumerate(last)]
    debate = Debate(iteration=1, problem_id="7*8", question="What is 7*8?", system=None, turns=tuple(turns))
    found = voting.vote(debate, VoteConfig(), 0).model_copy(update={"label": label, "dropped": None} | vote)
    return debates.Shown(debate, found, before, dropped=transcript.why_dropped(found, CurateConfig()))


def kinds(one: debates.Shown, gold: str | None = "56") -> set[str]:
    return set(debates.kinds(one, problem(gold=gold), grade))


def test_what_is_said_of_a_debate():
    right, wrong = ["56"] * 3, ["1", "2", "3"]
    assert kinds(shown(right, right, "56", "56")) == set()
    assert kinds(shown(wrong, right, "56", "1")) == {"corrected"}
    assert kinds(shown(right, ["1"] * 3, "1", "56")) == {"spoiled", "wrong"}
    assert kinds(shown(wrong, wrong, "2", "1")) == {"wrong", "split"}
    assert kinds(shown(right, ["56", "56.0", "112/2"], "56", "56")) == set(), "equal answers are no split"
    assert kinds(shown(["56", None, "56"], right, "56", "56")) == {"unparsable"}
    assert kinds(shown(right, [None] * 3, None, "56")) == {"spoiled", "wrong", "split", "unparsable"}
    assert kinds(shown(right, right, "56", "56", dropped="low_agreement")) == {"not used"}


def test_without_a_known_answer_nothing_is_right_or_wrong():
    assert kinds(shown(["1", "2", "3"], ["56"] * 3, "56", "1"), gold=None) == set()


def test_a_debate_that_failed_is_nothing_else():
    failed = shown(["56"], [], None, None)
    failed = failed._replace(debate=failed.debate.model_copy(update={"error": "no connection"}))
    assert kinds(failed) == {"failed"}


def test_answers_that_lost_say_which_words_differ():
    rome, oslo, other = "a bridge fell in Rome", "a bridge fell in Oslo <b>\x1b", "nobody knows anything of it"
    one = shown([rome, oslo, other], [rome, rome, rome], rome, rome)
    turns = debates._debate(one, problem(gold=rome), 0, grade, debates._Texts())[2][0][1]
    assert [turn[-1] for turn in turns] == [
        [],
        [(0, "a bridge fell in "), (-1, "Rome "), (1, "Oslo <b>\\x1b ")],
        [],
    ]


def unpack(packed: debates.Packed) -> dict[str, Any]:
    text = zlib.decompress(base64.b64decode(packed.text)).decode() if packed.is_deflated else packed.text
    return json.loads(text)


def test_every_reply_of_every_debate_is_there(finished_run):
    tree = unpack(debates.pack(finished_run, data.evaluations(finished_run)))
    assert [one["key"] for one in tree["sets"]] == ["eval-2", "eval-0", "eval-1", "train-2", "train-1"]
    texts = tree["texts"]
    assert len(set(texts)) == len(texts), "no text is there twice"
    for one in tree["sets"]:
        side, number = one["key"].split("-")
        home = (
            finished_run.debates(int(number))
            if side == "train"
            else finished_run.evaluation(int(number)) / "debates.jsonl"
        )
        for debate, packed in zip(files.read_records(home, Debate), one["debates"], strict=True):
            question, _, rounds, *_ = packed
            assert tree["questions"][question][0] == debate.problem_id
            turns = [(texts[said[0]], texts[said[3]]) for _, of_round in rounds for said in of_round]
            assert turns == [(t.call.agent, t.call.reply.text.strip()) for t in debate.turns]


def test_corrected_and_spoiled_are_what_lies_between_the_vote_and_the_debate(finished_run):
    tree = unpack(debates.pack(finished_run, data.evaluations(finished_run)))
    names = [name for name, _ in tree["kinds"]]
    for iteration, (first, last) in {0: ("majority@3", "debate"), 2: ("maft_majority@3", "maft")}.items():
        home = finished_run.evaluation(iteration)
        right = [
            sum(score.accuracy or 0 for score in files.read_records(home / f"{method}.jsonl", Score))
            for method in (first, last)
        ]
        packed = next(one for one in tree["sets"] if one["key"] == f"eval-{iteration}")["debates"]
        count = {kind: sum(names.index(kind) in debate[1] for debate in packed) for kind in ("corrected", "spoiled")}
        assert right[1] - right[0] == count["corrected"] - count["spoiled"]


def test_who_learns_is_who_has_an_example(finished_run):
    tree = unpack(debates.pack(finished_run, data.evaluations(finished_run)))
    packed = next(one for one in tree["sets"] if one["key"] == "train-1")["debates"]
    learned = sum(said[8] for _, _, rounds, *_ in packed for _, turns in rounds for said in turns)
    assert learned == sum(counts["examples"] for counts in files.read_json(finished_run.examples_summary(1)).values())


def test_what_does_not_fit_is_named_and_held_out_debates_come_first(finished_run, monkeypatch):
    monkeypatch.setattr(debates, "MAX_TOTAL", 1)
    packed = debates.pack(finished_run, data.evaluations(finished_run))
    assert [one["key"] for one in unpack(packed)["sets"]] == ["eval-2"]
    assert packed.left_out == (
        "Held-out, untrained", "Held-out, iteration 1", "Training, iteration 2", "Training, iteration 1",
    )  # fmt: skip


def test_many_debates_are_compressed_and_the_same(finished_run, monkeypatch):
    found = data.evaluations(finished_run)
    plain = debates.pack(finished_run, found)
    monkeypatch.setattr(debates, "PLAIN", 0)
    small = debates.pack(finished_run, found)
    assert not plain.is_deflated and small.is_deflated
    assert unpack(plain) == unpack(small) and len(small.text) < len(plain.text) / 3
    assert "<" not in plain.text + small.text


@pytest.mark.parametrize("text", ["</script><b>", "<!--<script>", "a\u2028\x00\ud7ff", "]]>", "\\u003c"])
def test_hostile_text_stays_within_its_string(tmp_path, text):
    folder = run(settings(tmp_path), Scripted(lambda _: f"{text} {boxed(1)}"))
    packed = debates.pack(folder, data.evaluations(folder))
    assert "<" not in packed.text
    assert f"{transcript.safe(text)} {boxed(1)}" in unpack(packed)["texts"]


def test_long_replies_are_cut_and_the_rest_is_counted(tmp_path):
    folder = run(settings(tmp_path), Scripted(lambda _: "word " * 2_000 + boxed(1)))
    tree = unpack(debates.pack(folder, data.evaluations(folder)))
    said = tree["sets"][0]["debates"][0][2][0][1][0]
    assert len(tree["texts"][said[3]]) == debates.MAX_CHARACTERS
    assert said[4] == len("word " * 2_000 + boxed(1)) - debates.MAX_CHARACTERS


def test_a_run_without_debates_has_none(tmp_path):
    from maft.runs.folder import RunFolder

    assert debates.pack(RunFolder(tmp_path, settings(tmp_path)), []) is None


def test_of_many_debates_the_page_holds_some_at_equal_distances_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(debates, "MAX_DEBATES", 4)
    folder = run(settings(tmp_path))
    tree = unpack(debates.pack(folder, data.evaluations(folder)))
    assert [one["title"] for one in tree["sets"]] == [
        "Held-out, iteration 1 (3 of 6 debates)",
        "Held-out, untrained (3 of 6 debates)",
        "Training, iteration 1 (4 of 10 debates)",
    ]
    assert [len(one["debates"]) for one in tree["sets"]] == [3, 3, 4]
    assert len(tree["questions"]) == 7
