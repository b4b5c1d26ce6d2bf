"""Details of the rules that runs and files of earlier versions depend on: seeds by name, counts of calls, formats."""

import hashlib
import json
from dataclasses import dataclass

import pytest
from helpers import boxed, debate, play, rules, society

from maft import config, method, seeds
from maft.answers import extract_answer
from maft.config import CurateConfig, DebateConfig, VoteConfig
from maft.config.prompts import Prompts
from maft.errors import DataError
from maft.method import PROTOCOLS, Protocol, bases, curate, judge_model, learners, protocol_of
from maft.method.curate import CurateCounts, Curated
from maft.method.formats import read_released, write_dialogues
from maft.method.protocol import Calls
from maft.method.vote import vote
from maft.records import Example, Message


def with_settings(how, **debate_settings):
    return how._replace(debate=how.debate.model_copy(update=debate_settings))


# Debates


def test_every_call_of_a_debate_draws_from_the_seed_of_its_name():
    how = with_settings(rules(3, 3, run_seed=5, iteration=2, stage="eval"), num_samples=2)
    _, sampler = play(how, lambda _: boxed(1))
    calls = [(n, 1, purpose) for purpose in ("answer", "sample 1") for n in range(3)]
    calls += [(n, number, purpose) for number in (2, 3) for purpose in ("summary", "answer") for n in range(3)]
    named = [seeds.seed(5, "eval", 2, "7*8", place, number, purpose) for place, number, purpose in calls]
    assert [request.seed for request in sampler.history] == named


def test_a_critic_reads_the_others_in_the_order_of_a_named_seed():
    how = rules(4, 2, summarizer="none", run_seed=5, iteration=2, stage="eval")
    _, sampler = play(how, lambda request: f"I am {request.agent.name}.")
    for n, request in enumerate(sampler.history[4:]):
        others = [f"I am generator_{m}." for m in range(4) if m != n]
        seeds.rng(5, "eval", 2, "7*8", n, 2, "others").shuffle(others)
        prompt = request.messages[-1].content
        assert sorted(others, key=prompt.index) == others and f"I am generator_{n}." not in prompt


def test_who_summarises_reads_the_question_and_the_answers():
    how = rules(2, 2)._replace(prompts=Prompts(summarize="Q: {question} A: {answers}", solve="{question}"))
    _, sampler = play(how, lambda request: f"from {request.agent.name}")
    asked = [request.messages[-1].content for request in sampler.history[2:4]]
    assert [text.startswith("Q: What is 7*8? A: ") for text in asked] == [True, True]
    assert "from generator_1" in asked[0] and "from generator_0" in asked[1]


# What a protocol says of itself, before anything is asked


def kinds(protocol, settings, prompts):
    return list(PROTOCOLS[protocol]().kinds(settings, prompts))


TEXTS = Prompts(
    system=None,
    solve="solve {question}",
    summarize="sum {answers}",
    critic_summary="read {summary}",
    critic_full="all {answers}",
    critic_alone="check",
)


def test_the_calls_of_a_debate_with_summaries():
    settings = DebateConfig(num_agents=4, num_rounds=3, max_others=2, num_samples=2, summarizer="base")
    assert kinds("debate", settings, TEXTS) == [
        Calls("answer", 1, "generator", 8, ("solve {question}",)),
        Calls("summary", 2, "summarizer", 4, ("sum {answers}",), {"generator": 2}),
        Calls("answer", 2, "critic", 4, ("solve {question}", "read {summary}"), {"generator": 1, "summarizer": 1}),
        Calls("summary", 3, "summarizer", 4, ("sum {answers}",), {"critic": 2}),
        Calls(
            "answer",
            3,
            "critic",
            4,
            ("solve {question}", "read {summary}", "read {summary}"),
            {"generator": 1, "critic": 1, "summarizer": 2},
        ),
    ]
    protocol = PROTOCOLS["debate"]()
    assert (protocol.calls(settings), protocol.rounds(settings)) == (24, 3)
    assert protocol.roles(settings) == ("generator", "critic")


def test_the_calls_of_a_debate_in_full_and_alone_and_of_a_vote():
    full = DebateConfig(num_agents=3, num_rounds=2, summarizer="none")
    system = TEXTS.model_copy(update={"system": "Be brief."})
    first = Calls("answer", 1, "generator", 3, ("Be brief.", "solve {question}"))
    assert kinds("debate", full, system) == [
        first,
        Calls("answer", 2, "critic", 3, ("Be brief.", "solve {question}", "all {answers}"), {"generator": 3}),
    ]
    assert kinds("vote", full, system) == [first]
    assert PROTOCOLS["vote"]().roles(full) == ("generator",)
    alone = DebateConfig(num_agents=1, num_rounds=2)
    checked = kinds("debate", alone, TEXTS)[1]
    assert (checked.texts[-1], sum(checked.quoted.values()), checked.name) == ("check", 1, "answer 2")


def test_the_calls_of_a_debate_whose_last_round_is_one_critic():
    how = DebateConfig(num_agents=4, num_rounds=3, summarizer="none")
    prompts = TEXTS.model_copy(update={"judge": "pick {answers}"})
    solve, read, pick = "solve {question}", "all {answers}", "pick {answers}"
    first = Calls("answer", 1, "generator", 4, (solve,))
    assert kinds("judge", how, prompts) == [
        first,
        Calls("answer", 2, "critic", 4, (solve, read), {"generator": 4}, {}, 0.5),
        Calls("answer", 3, "critic", 1, (solve, read, pick), {"generator": 4, "critic": 5}, {}, 0.5),
    ]
    assert kinds("aggregator", how, prompts) == [
        first,
        Calls("answer", 2, "critic", 4, (solve, read), {"generator": 4}),
        Calls("answer", 3, "critic", 1, (solve, read, read), {"generator": 4, "critic": 1}, {"critic": 4}),
    ]


@pytest.mark.parametrize("name", PROTOCOLS)
def test_the_ballots_are_those_of_the_round_asked_for(name):
    held = debate(["1", "2"], ["3", "4"], samples=["5", "6"])
    protocol = PROTOCOLS[name]()
    answers = {which: sorted(t.answer for t in protocol.ballots(held, which)) for which in ("first", "last", "all")}
    assert answers == {"first": ["1", "2", "5", "6"], "last": ["3", "4"], "all": ["1", "2", "3", "4", "5", "6"]}


def test_a_protocol_from_outside_is_looked_for_by_its_name(monkeypatch):
    asked = []
    monkeypatch.setattr(method, "find", lambda *how: asked.append(how) or PROTOCOLS["vote"])
    assert protocol_of(DebateConfig(protocol="judge")).name == "judge" and not asked
    assert protocol_of(DebateConfig(protocol="mine.py:Mine")).name == "vote"
    assert asked == [("protocol", "mine.py:Mine", Protocol)]


# The base models of a run


def settings(**sections):
    return config.parse({"task": {"name": "arithmetic"}, "model": "own", **sections})


def test_the_bases_of_a_society_are_its_agents_models_and_the_summarisers(tmp_path):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text("{}")
    adapter, model = str(tmp_path / "adapter"), str(tmp_path / "model")
    assert bases(settings()) == ("own",)
    for summarizer, wanted in (("self", ()), ("none", ()), ("base", ()), ("third", ("third",))):
        assert bases(settings(debate={"summarizer": summarizer})) == ("own", *wanted)
    others = {"generators": ["a", {"model": "b"}, {}], "critics": [adapter, model, "c"]}
    assert bases(settings(society=others)) == ("a", "b", "own", model, "c")
    apart = {"generators": ["a", "a", "a"], "critics": ["b", "b", "b"]}
    assert bases(settings(society=apart)) == ("a", "b", "own")  # the summariser is the run's own model
    assert bases(settings(society=apart, debate={"summarizer": "self"})) == ("a", "b")
    assert bases(settings(society=apart, debate={"num_rounds": 1, "summarizer": "self"})) == ("a",)


def test_who_compares_answers_in_the_runs_own_engine():
    def judge(**how: str) -> str | None:
        return judge_model(settings(task={"name": "text", "train_file": "rows.jsonl", **how}))

    assert judge(equality="text") is None
    assert judge(equality="judge") == "own" and judge(equality="judge", judge="third") == "third"
    assert judge(equality="judge", judge="openai:gpt") is None


# Examples


def example(problem_id: str, kind: str = "first", agent: str = "generator_0", iteration: int = 2) -> Example:
    said = (Message(role="user", content="?"), Message(role="assistant", content="!"))
    return Example(iteration=iteration, problem_id=problem_id, agent=agent, kind=kind, messages=said)


def curated(*examples: Example, **counts: int) -> Curated:
    return Curated(examples, CurateCounts(examples=len(examples), **counts))


def test_one_model_is_the_only_learner():
    settings = config.parse({"task": {"name": "arithmetic"}, "society": {"one_model": True}})
    assert learners(settings) == ("generator_0",)


def test_one_model_learns_what_all_agents_would_and_its_counts_are_their_sums():
    first = curated(example("a"), example("b"), first=2, unparsed=1)
    second = curated(example("a", "kept", "critic_0"), kept=1, unparsed=3, disagrees=4)
    together = curate.pool(iter([first, second]))
    assert together.examples == (*first.examples, *second.examples)
    assert together.counts == CurateCounts(examples=3, first=2, kept=1, unparsed=4, disagrees=4)


def test_a_limit_draws_by_a_named_seed_and_keeps_the_order():
    kinds_ = ["corrected", "kept"] * 5
    every = curated(*(example(f"q{n}", kind, "critic_0") for n, kind in enumerate(kinds_)), corrected=5, kept=5, cut=7)
    places = sorted(seeds.rng(3, "limit", 2, "critic_0").sample(range(10), 4))
    some = curate.limit(every, 2, CurateConfig(max_examples=4), 3)
    assert some.examples == tuple(every.examples[place] for place in places)
    corrected = sum(kinds_[place] == "corrected" for place in places)
    assert some.counts == CurateCounts(examples=4, corrected=corrected, kept=4 - corrected, cut=7, over_limit=6)
    for most in (None, 10, 11):
        assert curate.limit(every, 2, CurateConfig(max_examples=most), 3) is every
    assert curate.limit(every, 2, CurateConfig(max_examples=[10, 4]), 3) == some
    assert curate.limit(every, 1, CurateConfig(max_examples=[10, 4]), 3) is every


@pytest.mark.parametrize("kind", ["first", "corrected", "kept", "dissenting"])
def test_a_kind_of_which_a_limit_leaves_nothing_is_counted_as_none(kind):
    other = "kept" if kind == "first" else "first"
    every = curated(example("a", kind), example("b", other), **{kind: 1, other: 1})
    left = {curate.limit(every, 2, CurateConfig(max_examples=1), seed).counts for seed in range(9)}
    assert left == {CurateCounts(examples=1, over_limit=1, **{one: 1}) for one in (kind, other)}


def test_each_question_belongs_to_one_agent_by_a_named_seed_or_is_drawn_with_replacement():
    names = [f"q{n}" for n in (3, 1, 4, 0, 5, 9, 2, 6)]
    every = curated(*(example(name) for name in names), first=8, cut=2)
    owner = {name: seeds.seed(7, "shard", name) % 3 for name in names}
    for place in range(3):
        own = [name for name in names if owner[name] == place]
        part = curate.apportion(every, place, 3, CurateConfig(questions="shards"), 7)
        assert [one.problem_id for one in part.examples] == own
        assert part.counts == CurateCounts(examples=len(own), first=len(own), cut=2, not_drawn=8 - len(own))
    drawn = seeds.rng(7, "bootstrap", 2, "generator_0").choices(sorted(names), k=8)
    some = curate.apportion(every, 0, 3, CurateConfig(questions="bootstrap"), 7)
    assert [one.problem_id for one in some.examples] == sorted(drawn, key=names.index)
    repeated = 8 - len(set(drawn))
    assert some.counts == CurateCounts(examples=8, first=8, cut=2, not_drawn=repeated, drawn_again=repeated)
    nothing = curated(unparsed=3)
    assert curate.apportion(nothing, 0, 3, CurateConfig(questions="bootstrap"), 7) is nothing
    assert curate.apportion(every, 0, 3, CurateConfig(), 7) is every


@dataclass
class Margin:
    margin: int


def test_examples_by_margin_are_drawn_by_systematic_resampling_from_a_named_seed():
    examples = [example(f"q{n}") for n in range(4)]
    votes = {f"q{n}": Margin(m) for n, m in enumerate((1, 0, 5, 2))}
    how = CurateConfig(weight_by="margin")
    for seed in range(9):
        position, wanted = 2 * seeds.rng(seed, "weigh", 2, "generator_0").random(), []
        for n, up_to in enumerate((1, 1, 6, 8)):
            while position < up_to:
                wanted.append(f"q{n}")
                position += 2
        assert [one.problem_id for one in curate.weigh(examples, [], votes, how, seed)] == wanted
    assert curate.weigh(examples, [], votes, CurateConfig(), 3) == tuple(examples)
    nothing = {name: Margin(0) for name in votes}
    assert curate.weigh(examples, [], nothing, how, 3) == tuple(examples)


@pytest.mark.parametrize("side", ["cut", "repeat"])
def test_a_mix_is_drawn_by_a_named_seed(side):
    found = [example(f"c{n}", "corrected", "critic_1") for n in range(5)]
    found += [example(f"k{n}", "kept", "critic_1") for n in range(2)]
    mixed = curate.mix(found, CurateConfig(critic_mix=0.5, short_side=side), 3)

    def drawn(kind, count):
        names = [one.problem_id for one in found if one.kind == kind]
        names.sort(key=lambda name: seeds.seed(3, "mix", 2, "critic_1", name))
        return [names[n % len(names)] for n in range(count)]

    count = 2 if side == "cut" else 5
    assert sorted(one.problem_id for one in mixed) == sorted(drawn("corrected", count) + drawn("kept", count))


def test_reasons_are_counted_once_for_each_debate_and_agent():
    held = [
        debate(["1", "1", "2"], ["1", "1", "1"], problem_id="good"),
        debate(["1", None, "1"], ["1", "1", None], problem_id="unread"),
        debate(["1", "2", "3"], ["1", "2", "3"], problem_id="split"),
        debate(["1", "1", "1"], ["1", "1", "1"], problem_id="failed", error="gone"),
        debate([None, None, None], [None, None, None], problem_id="silent"),
    ]
    votes = {one.problem_id: vote(one, VoteConfig(), 0) for one in held}
    how = CurateConfig(short_side="use_all")
    counts = [curate.generator_examples(held, votes, n).counts for n in range(3)]
    kept = {"failed": 1, "low_agreement": 1, "no_answer": 1}
    assert counts[0] == CurateCounts(examples=2, first=2, **kept)
    assert counts[1] == CurateCounts(examples=1, first=1, unparsed=1, **kept)
    assert counts[2] == CurateCounts(examples=1, first=1, disagrees=1, **kept)
    critics = [curate.critic_examples(held, votes, n, how, 0).counts for n in range(3)]
    assert critics[0] == CurateCounts(examples=2, kept=2, **kept)
    assert critics[1] == CurateCounts(examples=2, kept=1, corrected=1, **kept)
    assert critics[2] == CurateCounts(examples=1, corrected=1, unparsed=1, **kept)


# Votes


def test_a_tie_is_drawn_by_a_named_seed_and_counted_in_a_fixed_order():
    held = debate(["1", "2", "3"], ["2", "1", "3"], problem_id="q", iteration=4)
    drawn = vote(held, VoteConfig(min_agreement="plurality"), 9)
    assert drawn.label == seeds.rng(9, "tie", 4, "q").choice(["1", "2", "3"])
    others = sorted({"1", "2", "3"} - {drawn.label})
    assert drawn.counts == ((drawn.label, 1), *((other, 1) for other in others))
    assert (drawn.tied, drawn.abstained, drawn.num_ballots) == (True, 0, 3)
    assert vote(held, VoteConfig(ties="abstain"), 9).dropped == "tied"


def test_another_label_is_drawn_by_a_named_seed_and_counted_first():
    held = debate(["1", "1", "2", "3", "3"], problem_id="q", iteration=4)
    plain, fewest, random = (
        vote(held, VoteConfig(label=label, min_agreement="plurality"), 9)
        for label in ("majority", "least_frequent", "random")
    )
    assert (fewest.label, fewest.counts[0], fewest.classes(held)["2"]) == ("2", ("2", 1), fewest.winner)
    assert random.label == seeds.rng(9, "label", 4, "q").choice(["1", "2", "3"])
    for other in (fewest, random):
        assert other.counts[1:] == tuple(entry for entry in plain.counts if entry[0] != other.label)
        assert other.classes(held)[other.label] == other.winner
        assert (other.partition, other.num_ballots, other.tied) == (plain.partition, 5, plain.tied)


@pytest.mark.parametrize(
    ("least", "dropped"), [(0.5, None), (0.51, "low_agreement"), ("majority", "low_agreement"), ("plurality", None)]
)
def test_the_share_that_a_label_needs(least, dropped):
    held = debate(["1", "1", "2", None])
    assert vote(held, VoteConfig(min_agreement=least), 0).dropped == dropped


# Files of other programs


def pairs(*said: str, system: str | None = None) -> list[dict[str, str]]:
    first = [] if system is None else [{"role": "system", "content": system}]
    return first + [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(said)]


def test_a_released_debate_keeps_its_prompts_its_system_text_and_what_is_not_known():
    text = json.dumps({"π?": [[pairs("ask 0", "\\boxed{1}", system="s"), pairs("ask 1", "2", system="s")], None]})
    problems, (held,) = read_released(text, society(2), 1, extract_answer, iteration=3)
    name = hashlib.blake2b("π?".encode(), digest_size=6).hexdigest()
    assert (problems[0].gold, problems[0].id, held.problem_id) == (None, name, name)
    assert (held.question, held.system, held.iteration, held.error) == ("π?", "s", 3, None)
    assert [turn.call.prompt for turn in held.turns] == ["ask 0", "ask 1"]
    call = held.turns[0].call
    assert (call.seed, call.reply.text, call.reply.finish_reason) == (0, "\\boxed{1}", "stop")
    assert [(turn.agent, turn.round, turn.answer) for turn in held.turns] == [(0, 1, "1"), (1, 1, None)]


@pytest.mark.parametrize(
    ("answer", "gold"), [("\\boxed{5} #### 6", "5"), ("a #### b #### 7 ", "7"), ("  8 ", "8"), ("####", None), (9, "9")]
)
def test_the_known_answer_of_a_released_debate(answer, gold):
    text = json.dumps({"q": [[pairs("ask", "reply")], answer]})
    assert read_released(text, society(1), 1, extract_answer)[0][0].gold == gold


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([[], "4", "5"], r"""question 'q': expected \[agent_contexts, answer\], got "\[\[\], '4', '5'\]"\."""),
        (["x", "4"], "question 'q': expected"),
        ([[pairs("a", "b")], "4"], "question 'q' was debated by 1 agents, the config has 2. Set debate.num_agents=1"),
        ([[pairs("a", "b", "c")] * 2, "4"], "got user, assistant, user. Set debate.num_rounds"),
        ([[[], pairs("a", "b")], "4"], "question 'q' has a context that is no list of messages"),
    ],
)
def test_what_is_wrong_with_a_released_file_is_said_with_the_question(value, said):
    with pytest.raises(DataError, match=said):
        read_released(json.dumps({"q": value}), society(2), 1, extract_answer)


def test_texts_are_written_as_they_are():
    one = example("π").model_copy(update={"messages": (Message(role="user", content="π"),)})
    assert write_dialogues([one], "messages") == '{"messages": [{"role": "user", "content": "π"}]}\n'
    sharegpt = [{"id": "generator_0_π", "conversations": [{"from": "human", "value": "π"}]}]
    assert write_dialogues([one], "sharegpt") == json.dumps(sharegpt, indent=2, ensure_ascii=False) + "\n"
