"""The protocols beside the paper's: who speaks, what is read, what is voted on, and that everything after can read it."""

import pytest
from helpers import ROOT, boxed, grade, play, problem, rules, run, settings

from maft import config as config_
from maft import files, planning, report, seeds
from maft.answers.equality import Exact
from maft.config import prompts
from maft.config.prompts import Prompts
from maft.errors import ConfigError
from maft.evaluation.agents import agent_accuracies
from maft.evaluation.flow import flows
from maft.method import PROTOCOLS, protocol_of
from maft.records import Debate, Request, Role, Vote
from maft.report import data, transcript
from maft.samplers import Scripted
from maft.samplers.scripted import guess

CONTESTED = ("contested", "dissenters", "conformist", "judge")


def held(protocol, first, later="9", num_rounds=2, **debate):
    """Hold a debate in which generators give the answers `first`, and critics `later` (by agent, where it is a list)."""
    how = rules(len(first), num_rounds, summarizer=debate.pop("summarizer", "none"))
    how = how._replace(debate=how.debate.model_copy(update={"protocol": protocol, **debate}))

    def say(request: Request) -> str:
        answers = first if request.agent.role == "generator" else later
        answer = answers if isinstance(answers, str) else answers[request.agent.index]
        return "hm" if answer is None else f"Reasons of {request.agent.name}. {boxed(answer)}"

    return play(how, say)


def speakers(debate: Debate) -> list[tuple[int, int]]:
    return [(turn.round, turn.agent) for turn in debate.turns if turn.round > 1]


def ballots(protocol, debate: Debate) -> list[str | None]:
    return [turn.answer for turn in PROTOCOLS[protocol]().ballots(debate, "last")]


def test_a_contested_debate_ends_where_all_agree():
    assert speakers(held("contested", ["56", "56.0", "112/2"])[0]) == [], "equal answers agree"
    assert speakers(held("contested", ["56", "56", "7"])[0]) == [(2, 0), (2, 1), (2, 2)]
    assert len(speakers(held("contested", ["56", "56", None])[0])) == 3, (
        "an answer that cannot be read agrees with none"
    )
    assert len(speakers(held("contested", ["1", "2", "3"], num_rounds=4)[0])) == 3, "all say 9 after round 2"
    assert len(speakers(held("contested", ["1", "2", "3"], ["1", "2", "3"], num_rounds=4)[0])) == 9


def test_what_agrees_is_the_tasks_equality():
    how = rules(2, 2, summarizer="none")._replace(equality=Exact())
    how = how._replace(debate=how.debate.model_copy(update={"protocol": "contested"}))
    debate, _ = play(how, lambda r: boxed(["0.5", "1/2"][r.agent.index]))
    assert len(debate.turns) == 4


def test_only_dissenters_speak_again_and_the_others_keep_their_answers():
    debate, _ = held("dissenters", ["56", "7", "56", None])
    assert speakers(debate) == [(2, 1), (2, 3)]
    assert ballots("dissenters", debate) == ["56", "9", "56", "9"]
    tied, _ = held("dissenters", ["56", "56", "7", "7"])
    assert [agent for _, agent in speakers(tied)] == [0, 1, 2, 3], "no class is the largest"
    assert speakers(held("dissenters", ["56"] * 3)[0]) == []
    three, _ = held("dissenters", ["56", "7", "56"], ["9", "8", "9"], num_rounds=4)
    assert speakers(three) == [(2, 1), (3, 1), (4, 1)]
    assert [turn.round for turn in three.latest] == [1, 4, 1]
    assert [m.role for m in three.dialogue(1)] == ["user", "assistant"] * 4 and len(three.dialogue(0)) == 2


def test_conformists_read_the_majority_only():
    debate, _ = held("conformist", ["56", "7", "56", "8"])
    assert speakers(debate) == [(2, 1), (2, 3)] and ballots("conformist", debate) == ["56", "9", "56", "9"]
    prompt = debate.round(2)[0].call.prompt
    assert "Reasons of generator_0" in prompt and "Reasons of generator_2" in prompt
    assert "Reasons of generator_3" not in prompt
    tied, _ = held("conformist", ["56", "7"])
    assert speakers(tied) == [(2, 0), (2, 1)] and "Reasons of generator_1" in tied.round(2)[0].call.prompt


def test_in_a_sparse_debate_each_reads_its_two_neighbours():
    debate, _ = held("sparse", ["0", "1", "2", "3", "4"], num_agents=5)
    for turn in debate.round(2):
        read = {n for n in range(5) if f"Reasons of generator_{n}." in turn.call.prompt}
        assert read == {(turn.agent - 1) % 5, (turn.agent + 1) % 5}


def test_the_aggregator_reads_all_answers_with_counts_and_has_the_last_word():
    debate, _ = held("aggregator", ["56", "7", "56.0", None])
    (last,) = debate.round(2)
    assert "56: 2 of 4 agents\n7: 1 of 4 agents\nno readable answer: 1 of 4 agents" in last.call.prompt
    assert "Reasons" not in last.call.prompt
    assert ballots("aggregator", debate) == ["9"]
    silent, _ = held("aggregator", ["56", "7", "56"], [None] * 3)
    assert ballots("aggregator", silent) == ["56", "7", "56"], "the round before votes"
    three, _ = held("aggregator", ["56", "7", "56"], num_rounds=3)
    assert [number for number, _ in speakers(three)] == [2, 2, 2, 3]
    chosen = {held("aggregator", ["1", "2", "3"])[0].turns[-1].agent} | {
        play(rules()._replace(debate=three_agents("aggregator")), guess, problem(f"{n}+1"))[0].turns[-1].agent
        for n in range(12)
    }
    assert chosen == {0, 1, 2}, "every critic is drawn for some question"


def test_who_has_the_last_word_is_drawn_by_the_name_of_the_debate():
    how = rules(run_seed=5, iteration=2, stage="eval")._replace(debate=three_agents("aggregator"))
    names = [f"{n}+1" for n in range(6)]
    drawn = [play(how, guess, problem(name))[0].turns[-1].agent for name in names]
    assert drawn == [seeds.rng(5, "eval", 2, name, "last word").randrange(3) for name in names]


def three_agents(protocol):
    return config_.DebateConfig(num_agents=3, protocol=protocol, summarizer="none")


def test_the_judge_picks_one_of_the_answers_and_is_not_asked_where_there_is_one():
    debate, _ = held("judge", ["56", "7", "56"], "7")
    (last,) = debate.round(2)
    assert last.call.prompt == prompts.fill(
        Prompts().judge,
        question=problem().question,
        answers=last.call.prompt.split("answers:\n\n")[1].split("\n\nWh")[0],
    )
    assert all(f"Reasons of generator_{n}." in last.call.prompt for n in range(3))
    assert ballots("judge", debate) == ["7"]
    stray, _ = held("judge", ["56", "7", "56"], "9")
    assert stray.turns[-1].answer is None and ballots("judge", stray) == ["56", "7", "56"]
    assert speakers(held("judge", ["56", "56", "56"])[0]) == []


def test_answers_may_be_quoted_without_their_reasoning():
    debate, sampler = held("debate", ["56", "7", "7"], quote="answers")
    assert "7: 2 of 2 agents" in debate.round(2)[0].call.prompt
    assert "56: 1 of 2 agents\n7: 1 of 2 agents" in debate.round(2)[1].call.prompt
    assert not any("Reasons" in turn.call.prompt for turn in debate.round(2))
    assert len(sampler.history) == 6
    summarised, sampler = held("dissenters", ["56", "7", "7"], quote="summary", summarizer="base")
    assert [r.agent.role for r in sampler.history] == ["generator"] * 3 + ["summarizer", "critic"]
    assert summarised.turns[-1].summary is not None
    assert {r.agent.role for r in held("debate", ["1", "2", "3"], quote="full", summarizer="base")[1].history} == {
        "generator",
        "critic",
    }


def test_a_config_without_these_settings_keeps_its_identity():
    plain = config_.parse({"task": {"name": "arithmetic"}})
    tree = config_.identity(plain, defaults=False)
    assert "quote" not in tree["debate"] and tree["debate"]["protocol"] == "debate"
    other = config_.parse({"task": {"name": "arithmetic"}, "debate": {"quote": "answers"}})
    assert config_.digest(other) != config_.digest(plain)
    assert config_.differences(plain, other) == {"debate.quote": (None, "answers")}


@pytest.mark.parametrize(
    ("debate", "words"),
    [
        ({"protocol": "sparse"}, "debate.num_agents to 4"),
        ({"quote": "summary", "summarizer": "none"}, "debate.summarizer is none"),
        ({"quote": "counts"}, "one of full, answers, summary"),
    ],
)
def test_what_cannot_be_held_is_refused_at_the_start(debate, words):
    with pytest.raises(ConfigError, match=words):
        config_.parse({"task": {"name": "arithmetic"}, "debate": debate})


@pytest.mark.parametrize("quote", ["full", "answers", "summary"])
@pytest.mark.parametrize("num_rounds", [1, 2, 3])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_plan_bounds_the_calls_of_every_protocol(protocol, num_rounds, quote):
    """Agents that never agree and cannot be read make all calls that there may be; agents that agree make the fewest."""
    how = rules(4, num_rounds)
    how = how._replace(debate=how.debate.model_copy(update={"protocol": protocol, "quote": quote}))
    kinds = list(protocol_of(how.debate).kinds(how.debate, Prompts()))
    debate, _ = play(how, lambda r: boxed(r.seed))
    assert len(debate.calls()) == protocol_of(how.debate).calls(how.debate)
    for kind in kinds:
        calls = [t.call if kind.kind == "answer" else t.summary for t in debate.round(kind.round)]
        assert len(calls) == kind.times, kind
    alike, _ = play(how, lambda r: boxed(1))
    fewest = sum(kind.times for kind in kinds if protocol not in CONTESTED or kind.round == 1)
    assert len(alike.calls()) == fewest
    assert all((kind.share < 1) == (protocol in CONTESTED and kind.round > 1) for kind in kinds)


@pytest.mark.parametrize("quote", ["full", "answers", "summary"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_no_prompt_is_longer_than_the_plan_allows(protocol, quote, tmp_path):
    """Replies of 20 words each, of which the answer is one; prompts are counted in words."""
    how = rules(4, 3)
    how = how._replace(debate=how.debate.model_copy(update={"protocol": protocol, "quote": quote}))
    debate, _ = play(how, lambda r: " ".join(["word"] * 17 + [boxed(r.seed)]))
    for kind in protocol_of(how.debate).kinds(how.debate, Prompts()):
        most = sum(len(text.split()) + len(problem().question.split()) for text in kind.texts)
        most += 24 * (sum(kind.quoted.values()) + sum(kind.answers.values()))  # 20 words, `Agent 1:` or `1 of 4 agents`
        calls = [t.call if kind.kind == "answer" else t.summary for t in debate.round(kind.round)]
        read = max(call.reply.prompt_tokens for call in calls if call is not None)
        assert most / 3 < read <= most, (kind.name, read, most)


def test_the_plan_expects_that_not_every_question_is_contested(tmp_path):
    def planned(*overrides):
        return planning.make(settings(tmp_path, "debate.summarizer=none", *overrides))

    plain, contested = planned(), planned("debate.protocol=contested")
    debates = 10 + 2 * 6
    assert plain.calls == 6 * debates and contested.calls == round(4.5 * debates)
    assert any("debate.protocol = contested, 50%" in text for text in contested.assumptions)
    short = planned("debate.protocol=debate", "debate.quote=answers")
    assert short.calls == plain.calls and short.prompt_tokens < plain.prompt_tokens


@pytest.mark.parametrize("protocol", [name for name in PROTOCOLS if name not in ("debate", "vote")])
def test_a_run_of_every_protocol_is_voted_learned_shown_and_reported(protocol, tmp_path, monkeypatch):
    size = "debate.num_agents=4" if protocol == "sparse" else "debate.num_agents=3"
    folder = run(
        settings(tmp_path, f"debate.protocol={protocol}", size, "task.num_train=12", "task.num_eval=6", "task.high=5",
                 "vote.min_agreement=plurality"),
        Scripted(guess),
    )  # fmt: skip
    debates, votes = files.read_records(folder.debates(1), Debate), files.read_records(folder.votes(1), Vote)
    counts = files.read_json(folder.examples_summary(1))
    spoke: dict[Role, int] = {"generator": 0, "critic": 0}
    for debate, vote in zip(debates, votes, strict=True):
        chosen = PROTOCOLS[protocol]().ballots(debate, "last")
        assert vote.num_ballots == len(chosen) and vote.label in [turn.answer for turn in chosen]
        told = transcript.load(folder, debate.problem_id, 1)
        text = transcript.render(told)
        assert text.count("critic_") >= len(speakers(debate))
        critics = {turn.agent for turn in debate.turns if turn.round > 1}
        assert {fate.agent for fate in told.fates} == {
            *(f"generator_{n}" for n in range(folder.config.debate.num_agents)),
            *(f"critic_{n}" for n in critics),
        }
        spoke["critic"] += len(critics)
    learned = sum(sum(count.values()) for name, count in counts.items() if name.startswith("critic"))
    assert learned >= spoke["critic"] > 0
    for one in data.evaluations(folder):
        of = flows(one.held.debates, one.problems, one.iteration, one.held.grade)
        assert [sum(flow[2:]) for flow in of] == [6] * folder.config.debate.num_agents
        agents = agent_accuracies(
            one.held.debates, one.problems, one.iteration, folder.config.debate.num_agents, one.held.grade
        )
        critics = next(agent for agent in agents if (agent.role, agent.agent) == ("critic", None))
        right = sum(flow.stayed_right + flow.corrected for flow in of)
        assert critics.accuracy == pytest.approx(right / (6 * folder.config.debate.num_agents))
    assert report.write_page(folder).stat().st_size > 10_000
    assert "only critic_" in text or protocol in ("sparse", "contested")


def test_an_agent_that_is_silent_keeps_its_answer_in_flows_and_accuracies():
    debate, _ = held("dissenters", ["56", "7", "56"], "56")
    problems = {"7*8": problem()}
    of = flows([debate], problems, 1, grade)
    assert [(flow.stayed_right, flow.corrected) for flow in of] == [(1, 0), (0, 1), (1, 0)]
    agreed, _ = held("contested", ["56"] * 3)
    assert flows([agreed], problems, 1, grade) == [], "nobody spoke twice"
    assert len(flows([agreed, debate], problems, 1, grade)) == 3


def test_the_page_of_protocols_names_them_all():
    text = (ROOT / "docs" / "protocols.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in text for name in PROTOCOLS)
