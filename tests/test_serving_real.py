"""The server with the packaged model on openvino: agents with adapters of their own, streams, several clients at once."""

from concurrent.futures import ThreadPoolExecutor

import adapters
import pytest
from helpers import SMALL_ENGINE, settings
from served import served

from maft import engines, models
from maft.config import parse
from maft.runs.folder import RunFolder

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

GREEDY = {"temperature": 0, "max_tokens": 12}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    home = tmp_path_factory.mktemp("served")
    model = models.resolve("smollm2-135m-instruct")
    made = [str(adapters.make(home / f"{seed}", model, strength=1.5, seed=seed, probed=True)) for seed in (1, 2)]
    small = {"temperature": 0.8, "max_new_tokens": 24}
    config = parse(
        settings(home, "engine.sampler=openvino", *SMALL_ENGINE).model_dump(mode="json")
        | {
            "model": "smollm2-135m-instruct",
            "debate": {"num_agents": 2, "protocol": "vote"},
            "sampling": {"train": {"generator": small, "critic": small}},
            "society": {"generators": made},
        }
    )
    with RunFolder.open(config) as folder:
        pass
    with served(folder, engines.make_sampler(config)) as opened:
        yield opened


def test_each_agent_speaks_with_its_own_adapter_whoever_asks_at_the_same_time(server):
    names = list(server.society.agents)
    alone = {name: server.ask(name, **GREEDY).choices[0].message.content for name in names}
    assert len(set(alone.values())) == len(names) == 3, "the test shows nothing where two say the same"
    with ThreadPoolExecutor(10) as clients:
        asked = [name for _ in range(3) for name in names]
        answers = list(clients.map(lambda name: server.ask(name, **GREEDY).choices[0].message.content, asked))
    assert [alone[name] for name in asked] == answers


def test_a_stream_comes_in_pieces_and_says_the_same(server):
    plain = server.ask("base", **GREEDY)
    chunks = list(server.ask("base", **GREEDY, stream=True, stream_options={"include_usage": True}))
    pieces = [choice.delta.content for chunk in chunks for choice in chunk.choices if choice.delta.content]
    assert len(pieces) > 4 and "".join(pieces) == plain.choices[0].message.content
    assert chunks[-1].usage == plain.usage


def test_a_vote_is_answered_with_all_its_calls(server):
    answer = server.ask("debate", "What is 2 + 3?", seed=1)
    assert answer.model_extra["maft"]["calls"] == 2 and answer.usage.completion_tokens > 4
    assert server.ask("vote@4", seed=1).model_extra["maft"]["ballots"] == 4
