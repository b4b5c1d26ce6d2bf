"""Several base models: an engine for each, side by side as far as memory allows."""

import pytest
from test_samplers_memory import GB, Chat, Engine, ask

from maft.config import EngineConfig
from maft.errors import DataError, TooLarge
from maft.models.memory import Ledger
from maft.records import Reply
from maft.samplers import local
from maft.samplers.bases import Bases

LLAMA, QWEN = "meta-llama/Llama-3-8B", "Qwen/Qwen2.5-0.5B-Instruct"


class Many:
    """Engines that write down what they load and free."""

    def __init__(self, most: int = 2) -> None:
        self.log: list[str] = []
        self.free = 0.0
        self.ledger = Ledger()
        self.sampler = Bases(self.make, most)

    def make(self, num_engines: int) -> Engine:
        log, mine = self.log, self

        class Noting(Engine):
            model = ""

            def room(self):
                return mine.free, "main memory"

            def load(self, model, chat):
                self.model = model
                log.append(f"load {model}")

            def unload(self):
                if self.model:
                    log.append(f"free {self.model}")
                self.model = ""

        return Noting(EngineConfig(max_sequences=1), self.ledger)

    def step(self, *names: str) -> list[Reply]:
        return self.sampler.sample([request for name in names for request in ask(1, name)])


@pytest.fixture
def many(monkeypatch) -> Many:
    monkeypatch.setattr(local, "Chat", Chat)
    return Many()


def test_bases_that_fit_stay_loaded_from_step_to_step(many):
    many.free = 40 * GB
    for _ in range(3):
        assert len(many.step(LLAMA, QWEN, LLAMA)) == 3
    assert many.log == [f"load {LLAMA}", f"load {QWEN}"]
    many.sampler.release()
    assert sorted(many.log[2:]) == [f"free {QWEN}", f"free {LLAMA}"]
    many.step(QWEN)
    assert many.log[4:] == [f"load {QWEN}"]


def test_a_base_that_does_not_fit_beside_the_others_has_them_freed(many):
    """16.2 GB for one and 1 GB for the other; what is free does not change, for a cache is filled later."""
    many.free = 17 * GB
    many.step(QWEN, LLAMA)
    assert many.log == [f"load {QWEN}", f"free {QWEN}", f"load {LLAMA}"]
    many.step(QWEN, LLAMA)
    assert many.log[3:] == [f"free {LLAMA}", f"load {QWEN}"]
    many.free = 10 * GB
    with pytest.raises(DataError, match=r"Llama-3-8B does not fit .* 10\.0 GB are available"):
        many.step(LLAMA)
    many.free = 17 * GB
    many.step(LLAMA)
    assert many.log[-1] == f"load {LLAMA}"


def test_replies_are_in_the_order_of_the_requests_and_told_at_once():
    class Echo:
        def sample(self, requests, on_reply=None):
            replies = [Reply(text=f"{one.agent.model} {one.seed}", finish_reason="stop") for one in requests]
            return replies

        def release(self):
            pass

    told: list[str] = []
    requests = [request.model_copy(update={"seed": n}) for n, name in enumerate("bab") for request in ask(1, name)]
    replies = Bases(lambda _: Echo(), 2).sample(requests, lambda reply: told.append(reply.text))
    assert [reply.text for reply in replies] == ["b 0", "a 1", "b 2"]
    assert told == ["b 0", "b 2", "a 1"]


def test_a_base_too_large_for_its_part_of_the_memory_gets_all_of_it_in_turn():
    log: list[str] = []

    class Part:
        def __init__(self, num_engines: int) -> None:
            self.room = 24 / num_engines

        def sample(self, requests, on_reply=None):
            if self.room < 16:
                raise TooLarge("more than a half")
            log.append(requests[0].agent.model)
            return [Reply(text="", finish_reason="stop") for _ in requests]

        def release(self):
            log.append("free")

    sampler = Bases(Part, 2)
    for _ in range(2):
        sampler.sample([*ask(1, "a"), *ask(1, "b")])
    assert [name for name in log if name != "free"] == ["a", "b", "b", "a"]
    assert log[-2:] == ["free", "a"]


def test_no_more_engines_than_the_society_has_bases(many):
    many.free = 99 * GB
    many.step(QWEN)
    many.step(LLAMA)
    many.step("Qwen/Qwen2.5-1.5B-Instruct")
    assert many.log[2:] == [f"free {QWEN}", "load Qwen/Qwen2.5-1.5B-Instruct"]


def test_the_ledger_counts_what_is_not_filled_yet():
    ledger = Ledger()
    assert ledger.room(10.0) == 10.0
    ledger.enter("first", 6.0)
    assert ledger.room(9.0) == 4.0 and ledger.room(3.0) == 3.0
    ledger.strike("first")
    ledger.strike("unknown")
    assert ledger.room(9.0) == 9.0


def test_what_is_too_large_is_a_mistake_of_data():
    assert issubclass(TooLarge, DataError)
