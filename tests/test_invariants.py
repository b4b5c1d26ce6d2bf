"""What must not matter: order, batches, engine settings, names of agents, who else takes part."""

from itertools import permutations
from pathlib import Path
from random import Random

import pytest
from helpers import debate, play, problem, rules, run, run_files, settings

from maft.config import CurateConfig, VoteConfig
from maft.method import curate
from maft.method import vote as voting
from maft.pipeline import rollouts
from maft.records import Debate, Request
from maft.samplers import Scripted
from maft.samplers.scripted import guess


def results(folder: Path) -> dict[str, bytes]:
    """Every file but the settings themselves."""
    return {name: data for name, data in run_files(folder).items() if name != "config.json"}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return run(settings(tmp_path_factory.mktemp("plain"), "num_iterations=2"))


@pytest.mark.parametrize(
    "engine",
    ["batch_size=1", "batch_size=3", "batch_size=1000", "max_sequences=1", "cache_gb=7", "dtype=float32"],
)
def test_engine_settings_change_no_file(tmp_path, plain, engine):
    folder = run(settings(tmp_path, "num_iterations=2", f"engine.{engine}"))
    assert results(folder.path) == results(plain.path)


def test_the_same_settings_give_the_same_bytes_in_another_place(tmp_path, plain):
    assert results(run(settings(tmp_path / "else", "num_iterations=2", name="where")).path) == results(plain.path)


def test_another_seed_gives_other_debates_on_the_same_questions(tmp_path, plain):
    folder = run(settings(tmp_path, "num_iterations=2", "seed=1"))
    assert folder.problems("train").read_bytes() == plain.problems("train").read_bytes()
    assert folder.debates(1).read_bytes() != plain.debates(1).read_bytes()


def test_more_iterations_begin_with_the_same_ones(tmp_path, plain):
    folder = run(settings(tmp_path, "num_iterations=1"))
    ours = {name: data for name, data in results(folder.path).items() if name.startswith("iter_")}
    theirs = results(plain.path)
    assert len(ours) > 10 and all(theirs[name] == data for name, data in ours.items())


def test_the_order_of_the_questions_changes_no_debate(tmp_path):
    problems = [problem(f"{n}+{n}", gold=str(2 * n)) for n in range(12)]
    straight = list(rollouts.collect(problems, rules(), Scripted(guess), tmp_path / "a.jsonl", batch_size=5))
    turned = list(rollouts.collect(problems[::-1], rules(), Scripted(guess), tmp_path / "b.jsonl", batch_size=5))
    assert straight == turned[::-1]


def test_the_order_of_the_debates_changes_no_example():
    rng = Random(1)
    held = [
        debate([str(rng.randrange(2)) for _ in range(3)], ["1", str(rng.randrange(2)), "1"], problem_id=f"q{n}")
        for n in range(60)
    ]
    votes = {d.problem_id: voting.vote(d, VoteConfig(), 0) for d in held}
    shuffled = list(held)
    rng.shuffle(shuffled)
    for side in ("cut", "repeat", "use_all"):
        how = CurateConfig(critic_mix=0.3, short_side=side)
        ours = curate.critic_examples(held, votes, 0, how, 0)
        theirs = curate.critic_examples(shuffled, votes, 0, how, 0)
        assert ours.counts == theirs.counts
        assert sorted(e.to_json() for e in ours.examples) == sorted(e.to_json() for e in theirs.examples)
        assert ours.counts.corrected and ours.counts.kept


@pytest.mark.parametrize("order", list(permutations(range(3)))[1:])
def test_renaming_the_agents_permutes_their_sets_and_leaves_the_votes(order):
    rng = Random(2)
    held = [
        debate(*([str(rng.randrange(3)) for _ in range(3)] for _ in range(2)), problem_id=f"q{n}") for n in range(40)
    ]
    renamed = [_renamed(d, order) for d in held]
    votes, others = (
        {d.problem_id: voting.vote(d, VoteConfig(min_agreement="plurality"), 0) for d in s} for s in (held, renamed)
    )
    elected = [
        {name: vote.model_copy(update={"partition": None, "winner": None}) for name, vote in of.items()}
        for of in (votes, others)
    ]
    assert elected[0] == elected[1]
    for new, old in enumerate(order):
        ours = curate.generator_examples(renamed, others, new)
        theirs = curate.generator_examples(held, votes, old)
        assert [e.messages for e in ours.examples] == [e.messages for e in theirs.examples]
        assert ours.counts == theirs.counts
        how = CurateConfig(short_side="use_all")  # what is cut for the mix is drawn by the agent's name
        mine, yours = (
            curate.critic_examples(s, v, n, how, 0) for s, v, n in ((renamed, others, new), (held, votes, old))
        )
        assert [(e.kind, e.messages) for e in mine.examples] == [(e.kind, e.messages) for e in yours.examples]


def _renamed(held: Debate, order: tuple[int, ...]) -> Debate:
    """Let the agent at place `order[n]` sit at place n."""
    turns = [held.round(m)[old].model_copy(update={"agent": new}) for m in (1, 2) for new, old in enumerate(order)]
    return held.model_copy(update={"turns": tuple(turns)})


def first_round(num_agents: int) -> dict[str, Request]:
    sampler = play(rules(num_agents), guess)[1]
    return {r.agent.name: r for r in sampler.history if r.agent.role == "generator"}


def test_another_agent_leaves_the_first_round_of_the_others_alone():
    three, four = first_round(3), first_round(4)
    assert set(four) - set(three) == {"generator_3"}
    assert all(four[name].seed == asked.seed for name, asked in three.items())
    assert all(four[name].messages == asked.messages for name, asked in three.items())


def test_another_round_leaves_the_rounds_before_it_alone():
    two, three = (play(rules(num_rounds=m), guess)[0] for m in (2, 3))
    assert three.turns[: len(two.turns)] == two.turns


def test_a_debate_does_not_depend_on_the_debates_beside_it(tmp_path):
    problems = [problem(f"{n}+1") for n in range(9)]
    together = list(rollouts.collect(problems, rules(), Scripted(guess), tmp_path / "all.jsonl", batch_size=9))
    for place, one in enumerate(problems):
        alone = list(rollouts.collect([one], rules(), Scripted(guess), tmp_path / f"{place}.jsonl", batch_size=1))
        assert alone == [together[place]]
