"""The play of one debate, and of many side by side."""

import pytest
from helpers import boxed, play, problem, rules, run, run_files, settings, user

from maft import config as config_
from maft import files, method, planning, report
from maft.config import prompts
from maft.config.prompts import Prompts
from maft.errors import ConfigError
from maft.method import PROTOCOLS, Protocol, protocol_of
from maft.method.protocol import Ask, Calls, Play, ask, turn
from maft.pipeline import rollouts
from maft.records import Debate, Reply, Request
from maft.runs import manifest
from maft.samplers import Scripted
from maft.samplers.base import Feed, Streaming
from maft.samplers.scripted import guess


def steps(play: Play, say=guess) -> tuple[list[list[Request]], Debate]:
    """Play a debate by hand: return what it asks at each step, and how it ends."""
    asked, replies = [], None
    while True:
        try:
            asked.append(next(play) if replies is None else play.send(replies))
        except StopIteration as end:
            return asked, end.value
        replies = Scripted(say).sample(asked[-1])


@pytest.mark.parametrize(
    ("num_agents", "num_rounds", "summarizer", "shape"),
    [
        (3, 1, "base", [3]),
        (3, 2, "base", [3, 3, 3]),
        (3, 2, "self", [3, 3, 3]),
        (3, 2, "none", [3, 3]),
        (2, 4, "base", [2, 2, 2, 2, 2, 2, 2]),
        (1, 3, "base", [1, 1, 1]),
        (7, 3, "none", [7, 7, 7]),
    ],
)
def test_what_can_be_answered_together_is_asked_together(num_agents, num_rounds, summarizer, shape):
    how = rules(num_agents, num_rounds, summarizer=summarizer)
    asked, held = steps(method.play(problem(), how))
    assert [len(requests) for requests in asked] == shape
    assert [(t.round, t.agent) for t in held.turns] == [
        (m, n) for m in range(1, num_rounds + 1) for n in range(num_agents)
    ]
    assert len(held.calls()) == sum(shape)
    assert (held.error, held.problem_id, held.iteration) == (None, "7*8", 1)


@pytest.mark.parametrize("summarizer", ["base", "self", "none", "other"])
@pytest.mark.parametrize(("num_agents", "num_rounds"), [(1, 1), (1, 3), (2, 2), (3, 1), (5, 4)])
def test_the_plan_knows_the_calls_of_a_debate(num_agents, num_rounds, summarizer):
    from maft import config

    tree = {"num_agents": num_agents, "num_rounds": num_rounds, "summarizer": summarizer}
    settings = config.parse({"task": {"name": "arithmetic"}, "debate": tree}).debate
    planned = protocol_of(settings).calls(settings)
    held, _ = play(rules(num_agents, num_rounds, summarizer=summarizer), guess)
    assert len(held.calls()) == planned


def test_each_turn_knows_what_was_asked_what_was_said_and_what_was_read():
    held, sampler = play(rules(), lambda r: boxed(r.seed % 10))
    by_seed = {request.seed: request for request in sampler.history}
    for call in held.calls():
        assert by_seed[call.seed].messages[-1] == user(call.prompt)
        assert by_seed[call.seed].agent.name == call.agent
        assert call.reply.text == boxed(call.seed % 10)
    assert all(turn.answer == str(turn.call.seed % 10) for turn in held.turns)
    assert [turn.summary is not None for turn in held.turns] == [False] * 3 + [True] * 3


@pytest.mark.parametrize(
    ("role", "round_", "turns_left"), [("generator", 1, 0), ("summarizer", 2, 3), ("critic", 2, 3)]
)
def test_a_call_that_fails_ends_its_debate_with_a_record(role, round_, turns_left):
    def say(request: Request) -> str | Reply:
        if request.agent.role == role:
            return Reply(text="half an ans", finish_reason="error", error="longer than the context")
        return guess(request)

    held, _ = play(rules(), say)
    assert held.error == f"{role}_0, round {round_}: longer than the context"
    assert len(held.turns) == turns_left


@pytest.mark.parametrize("keep", [True, False])
def test_sampled_tokens_are_in_the_record_only_if_they_are_kept(keep):
    reply = Reply(text="4", finish_reason="stop", token_ids=(52, 2), logprobs=(-0.5, -0.1))
    plain = rules(2)
    kept_rules = plain._replace(debate=plain.debate.model_copy(update={"keep_tokens": keep}))
    held, _ = play(kept_rules, lambda _: reply)
    kept = [call.reply for call in held.calls()]
    assert kept and all(got == (reply if keep else reply.without_tokens()) for got in kept)


@pytest.mark.parametrize("summarizer", ["none", "base"])
@pytest.mark.parametrize("show", [True, False])
def test_thinking_is_shown_to_nobody_else_unless_it_is_asked_for(show, summarizer):
    def say(request: Request) -> str:
        return f"<think>Secret {request.agent.name}.</think>It is \\boxed{{{request.agent.index}}}."

    plain = rules(3, 3, summarizer=summarizer)
    held, sampler = play(plain._replace(debate=plain.debate.model_copy(update={"show_thinking": show})), say)
    assert all("<think>Secret" in call.reply.text for call in held.calls())
    last = [request.messages[-1].content for request in sampler.history]
    assert any("It is \\boxed{1}." in text for text in last)
    assert any("Secret" in text for text in last) == show
    own = [request.messages[1].content for request in sampler.history if request.agent.role == "critic"]
    assert all("<think>Secret" in text for text in own), "its own thinking is the template's business"


def test_a_reply_that_is_all_thinking_is_shown_as_no_answer():
    held, sampler = play(rules(2, 2, summarizer="none"), lambda _: "<think>So 5, no, 6")
    assert prompts.quote(["(no answer)"]) in sampler.history[-1].messages[-1].content and held.turns[0].answer is None


def test_the_system_prompt_stands_first_in_every_dialogue_but_not_in_summaries():
    held, sampler = play(rules(system="Be brief."), guess)
    assert held.system == "Be brief."
    for request in sampler.history:
        roles = [message.role for message in request.messages]
        assert roles.count("system") == (request.agent.role != "summarizer") and "system" not in roles[1:]


def test_every_role_is_sampled_in_its_own_way():
    from maft.config import RoleSampling
    from maft.records import SamplingParams

    ways = {role: SamplingParams(max_new_tokens=n) for n, role in enumerate(("generator", "critic", "summarizer"), 7)}
    how = rules()._replace(sampling=RoleSampling(**ways))
    for request in play(how, guess)[1].history:
        assert request.sampling == ways[request.agent.role]


def test_braces_and_placeholders_in_questions_and_answers_are_text():
    asked = problem("{summary} {answers} {0} \\frac{1}{2}")
    sampler = Scripted(lambda r: "{question} {summary} \\boxed{4}")
    (held,) = rollouts.play_all([method.play(asked, rules())], sampler)
    assert asked.question in held.turns[0].call.prompt
    assert held.turns[0].call.prompt.count("{summary}") == 1
    assert held.turns[3].call.prompt.count("{question} {summary}") == 1


def test_every_prompt_asks_for_a_box_and_shows_the_question():
    for name, text in Prompts().model_dump(exclude={"system"}).items():
        assert "{question}" in text
        assert ("\\boxed{" in text) == (name not in ("summarize", "hint", "same", "better"))


def test_later_prompts_win_and_the_rest_stay():
    made = prompts.build({"solve": "{question} A"}, {"solve": "{question} B", "system": "S"})
    assert (made.solve, made.system, made.critic_alone) == ("{question} B", "S", Prompts().critic_alone)


def test_prompts_that_cannot_work_are_refused():
    with pytest.raises(ConfigError, match=r"prompts\.slove does not exist; the prompts are: system, solve"):
        prompts.build({"slove": "{question}"})
    for name, needed in prompts.REQUIRED_PLACEHOLDERS.items():
        with pytest.raises(ConfigError, match=rf"prompts\.{name} must contain \{{{needed[0]}\}}.*; got 'Hm'"):
            prompts.build({name: "Hm"})


def test_the_prompts_of_every_task_are_complete():
    from maft.tasks import TASKS

    for task in TASKS.values():
        assert prompts.build(task.prompts) != Prompts() or not task.prompts


# Protocols


def test_the_protocol_vote_is_the_first_round_of_a_debate():
    ours = rules(3, 2)
    alone = ours._replace(debate=ours.debate.model_copy(update={"protocol": "vote", "num_samples": 2}))
    one_round = rules(3, 1)
    one_round = one_round._replace(debate=one_round.debate.model_copy(update={"num_samples": 2}))
    assert play(alone, guess)[0] == play(one_round, guess)[0]


def test_a_run_of_votes_is_a_run_of_one_round(tmp_path):
    made = [run(settings(tmp_path / name, setting)).path for name, setting in
            (("vote", "debate.protocol=vote"), ("debate", "debate.num_rounds=1"))]  # fmt: skip
    votes, debates = map(run_files, made)
    assert votes.pop("config.json") != debates.pop("config.json")
    assert votes == debates


def test_the_protocols_are_those_that_settings_may_name():
    assert tuple(PROTOCOLS) == config_.method.PROTOCOLS
    with pytest.raises(ConfigError, match=r"debate\.protocol.*'quarrel' is not a protocol.*debate, vote"):
        config_.parse({"task": {"name": "arithmetic"}, "debate": {"protocol": "quarrel"}})


class Relay(Protocol):
    """One generator answers, then one critic after the other reads the answer before it."""

    name = "relay"

    def speak(self, problem, rules, turns, samples):
        (first,) = yield from ask(
            [self._asked(rules, rules.society.generators[0], 0, problem.question)], problem, rules, 1
        )
        turns.append(turn(rules, 0, 1, first))
        for number, critic in enumerate(rules.society.critics[1:], start=2):
            shown = prompts.fill(
                rules.prompts.critic_full, question=problem.question, answers=turns[-1].call.reply.text
            )
            (call,) = yield from ask([self._asked(rules, critic, number - 1, shown)], problem, rules, number)
            turns.append(turn(rules, number - 1, number, call))

    def kinds(self, settings, prompts):
        yield Calls("answer", 1, "generator", 1, ("{question}",))
        for number in range(2, settings.num_agents + 1):
            quoted = {"generator" if number == 2 else "critic": 1}
            yield Calls("answer", number, "critic", 1, (prompts.critic_full,), quoted)

    def _asked(self, rules, agent, place, prompt):
        return Ask(agent, place, prompt, (), rules.sampling.critic, "answer")


def test_a_protocol_that_is_not_n_times_m_is_debated_voted_planned_and_learned(tmp_path, monkeypatch):
    monkeypatch.setattr(method, "find", lambda kind, name, base: {"relay.py:Relay": Relay}[name])
    monkeypatch.setattr(manifest.extensions, "fingerprints", lambda names: dict.fromkeys(names, ""))
    ours = settings(tmp_path, "debate.protocol=relay.py:Relay", "vote.label_from=all", "vote.min_agreement=plurality")
    sampler = Scripted(guess)
    folder = run(ours, sampler)
    plan = planning.make(ours)
    assert plan.calls == len(sampler.history) == 3 * (10 + 2 * 6) and plan.rounds == 3
    assert report.write_page(folder).stat().st_size > 10_000
    held = files.read_records(folder.debates(1), Debate)
    assert all([(t.agent, t.round) for t in d.turns] == [(0, 1), (1, 2), (2, 3)] for d in held)
    counts = files.read_json(folder.examples_summary(1))
    learned = {agent: count["examples"] for agent, count in counts.items()}
    assert learned["generator_0"] and learned["critic_2"] and not learned["generator_1"] and not learned["critic_0"]
    assert sum(counts["critic_0"].values()) == 0, "an agent that said nothing has nothing to leave out"


# Many debates


def test_debates_side_by_side_share_the_calls_of_the_sampler(tmp_path):
    class Plain:
        """An engine that takes batches, and cannot be asked more while it answers."""

        def __init__(self):
            self.sizes: list[int] = []

        def sample(self, requests, on_reply=None):
            self.sizes.append(len(requests))
            return Scripted(guess).sample(requests, on_reply)

        def release(self): ...

    problems, plain = [problem(f"{n}+1") for n in range(7)], Plain()
    in_step = list(rollouts.collect(problems, rules(), plain, tmp_path / "step.jsonl", batch_size=4))
    assert plain.sizes == [12, 12, 12, 9, 9, 9]
    held = list(rollouts.collect(problems, rules(), Scripted(guess), tmp_path / "d.jsonl", batch_size=4))
    assert held == in_step


def test_a_debate_goes_on_as_soon_as_its_own_replies_are_there_and_the_next_begins_when_one_ends(tmp_path):
    """The engine answers the newest request first, so that the last debate to begin is the first to end."""

    class Hasty(Streaming):
        def __init__(self):
            self.order: list[str] = []
            self.most = 0

        def answer(self, requests, on_reply):
            feed = Feed(requests, on_reply)
            waiting = feed.first
            while waiting:
                self.most = max(self.most, len({question(request) for _, request in waiting}))
                number, request = waiting.pop()
                self.order.append(question(request))
                (reply,) = Scripted(guess).sample([request])
                waiting += feed.reply(number, reply)

        def release(self): ...

    def question(request):
        return request.messages[0].content.partition("What is ")[2].partition("?")[0]

    problems, hasty = [problem(f"{n}+1") for n in range(9)], Hasty()
    held = rollouts.collect(problems, rules(), hasty, tmp_path / "d.jsonl", batch_size=3)
    assert hasty.most == 3, "never more debates at a time"
    finished = list(dict.fromkeys(reversed(hasty.order)))[::-1]
    assert finished[:2] == ["2+1", "3+1"], "a new question begins before older ones end"
    assert [d.problem_id for d in held] == [p.id for p in problems], "the file is in the order of the questions"
    straight = rollouts.collect(problems, rules(), Scripted(guess), tmp_path / "straight.jsonl", batch_size=100)
    assert (tmp_path / "d.jsonl").read_bytes() == (tmp_path / "straight.jsonl").read_bytes() and len(
        list(straight)
    ) == 9


def test_a_debate_that_fails_early_leaves_the_others_in_step():
    def say(request: Request) -> str | Reply:
        if "0+1" in request.messages[0].content:
            return Reply(text="", finish_reason="error", error="no")
        return guess(request)

    plays = [method.play(problem(f"{n}+1"), rules()) for n in range(3)]
    held = rollouts.play_all(plays, Scripted(say))
    assert [d.error is None for d in held] == [False, True, True]
    assert [d.problem_id for d in held] == ["0+1", "1+1", "2+1"]


def test_everyone_hears_of_replies_batches_and_what_was_there_already(tmp_path):
    problems = [problem(f"{n}+1") for n in range(7)]
    heard: dict[str, list] = {"reply": [], "resume": [], "batch": []}

    def collect(some):
        rollouts.collect(
            some,
            rules(),
            Scripted(guess),
            tmp_path / "d.jsonl",
            batch_size=3,
            on_reply=heard["reply"].append,
            on_resume=lambda count: heard["resume"].append(count.debates),
            on_batch=lambda count: heard["batch"].append(count.debates),
        )

    collect(problems[:4])
    collect(problems)
    assert heard["resume"] == [0, 4] and heard["batch"] == [3, 1, 3]
    assert len(heard["reply"]) == 7 * 9


def test_a_sampler_that_loses_replies_is_found_out(tmp_path):
    class Losing(Scripted):
        def answer(self, requests, on_reply):
            super().answer(requests[1:], on_reply)

    with pytest.raises(AssertionError, match="the sampler left 1 requests without a reply"):
        rollouts.collect([problem()], rules(), Losing(guess), tmp_path / "d.jsonl", batch_size=1)
    assert not (tmp_path / "d.jsonl").exists()


def test_no_debates_are_no_work():
    assert rollouts.play_all([], Scripted([])) == []


def test_a_script_that_runs_out_raises():
    with pytest.raises(AssertionError, match="the script ran out at request 3"):
        rollouts.play_all([method.play(problem(), rules())], Scripted(["a", "b"]))


def test_further_samples_are_drawn_apart_and_shown_to_nobody():
    ours = rules(2, 2, summarizer="none")
    ours = ours._replace(debate=ours.debate.model_copy(update={"num_samples": 3}))
    said = iter(range(100))
    held, sampler = play(ours, lambda request: f"reply {next(said)} \\boxed{{1}}")
    assert [(turn.agent, turn.round) for turn in held.samples] == [(0, 1), (1, 1), (0, 1), (1, 1)]
    assert len(held.turns) == 4 and len(held.calls()) == 8 and len(held.calls(samples=False)) == 4
    assert len({request.seed for request in sampler.history}) == len(sampler.history) == 8
    shown = "".join(turn.call.prompt for turn in held.round(2))
    assert not any(turn.call.reply.text in shown for turn in held.samples)
    plain, _ = play(rules(2, 2, summarizer="none"), lambda request: "x")
    assert [t.call.seed for t in plain.turns] == [t.call.seed for t in held.turns]


def test_agents_that_are_told_their_number_are_told_their_own():
    texts = prompts.with_agent_number(prompts.build({"solve": "{question}"}))
    held, _ = play(rules(3, 2, summarizer="none", **texts), lambda request: "\\boxed{1}")
    assert [turn.call.prompt.split(". ")[0] for turn in held.turns] == [
        f"You are agent {n}" for n in (1, 2, 3, 1, 2, 3)
    ]


def test_cooperative_critics_are_asked_the_same_question():
    texts = prompts.cooperative(Prompts())
    held, _ = play(rules(3, 2, summarizer="none", **texts), lambda request: "\\boxed{1}")
    assert all("one team" in turn.call.prompt and problem().question in turn.call.prompt for turn in held.round(2))
