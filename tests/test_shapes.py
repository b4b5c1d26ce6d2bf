"""Sizes of models, against numbers worked out by hand and counted by their makers."""

import json
from pathlib import Path

import pytest

from maft.errors import DataError
from maft.models import shapes
from maft.models.shapes import Shape

LLAMA = shapes.known("llama-3-8b")
CONFIG = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": False,
}


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("HuggingFaceTB/SmolLM2-135M-Instruct", 134_515_008),
        ("smollm2-135m-instruct", 134_515_008),
        ("meta-llama/Meta-Llama-3-8B-Instruct", 8_030_261_248),
        ("meta-llama/Llama-3.2-1B", 1_235_814_400),
        ("meta-llama/Llama-3.1-70B-Instruct", 70_553_706_496),
        ("Qwen/Qwen2.5-0.5B-Instruct", 494_032_768),
        ("Qwen/Qwen2.5-7B-Instruct", 7_615_616_512),
        ("Qwen/Qwen3-8B", 8_190_735_360),
        ("mistralai/Mistral-7B-Instruct-v0.1", 7_241_732_096),
        ("mistralai/Mixtral-8x7B-Instruct-v0.1", 46_702_792_704),
        ("microsoft/Phi-3-mini-4k-instruct", 3_821_079_552),
    ],
)
def test_well_known_models_have_the_parameters_that_their_makers_tell(name, parameters):
    assert shapes.known(name).parameters == parameters


def test_a_name_that_is_not_known_has_no_shape():
    assert shapes.known("somebody/a-model") is None
    assert shapes.of_model("somebody/a-model") is None


def test_the_cache_of_llama_3_8b_by_hand():
    """Keys and values of 32 layers with 8 heads of 128, two bytes each."""
    assert 2 * 32 * 8 * 128 * 2 == LLAMA.kv_bytes_per_token() == 131_072
    assert LLAMA.kv_bytes_per_token("float32") == 262_144


def test_a_config_json_gives_the_same_shape_as_the_table():
    assert shapes.of_config(CONFIG) == LLAMA


def test_experts_are_counted_in_memory_and_only_the_active_ones_in_work():
    config = CONFIG | {"model_type": "mixtral", "vocab_size": 32000, "num_local_experts": 8, "num_experts_per_tok": 2}
    mixtral = shapes.of_config(config)
    assert mixtral.parameters == 46_702_792_704
    assert 12e9 < mixtral.active_parameters < 13e9


def test_a_config_json_of_another_family_says_what_is_lacking(tmp_path):
    with pytest.raises(DataError, match="lacks layers, hidden"):
        shapes.of_config({"model_type": "gpt2", "n_embd": 768, "n_layer": 12, "vocab_size": 50257})
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    assert shapes.of_model(str(tmp_path)) is None


def test_weights_that_are_there_are_counted(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    header = json.dumps({"w": {"dtype": "F32", "shape": [3, 4], "data_offsets": [0, 48]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(48))
    assert shapes.of_model(str(tmp_path)).parameters == 12
    (tmp_path / "model.safetensors").write_bytes(b"torn")
    assert shapes.of_model(str(tmp_path)).parameters == 8_030_261_248


def test_an_adapter_of_smollm2_has_the_size_that_peft_writes():
    """30 layers, rank 16: q and o 576 -> 576, k and v 576 -> 192, three of the MLP between 576 and 1536."""
    each = 16 * (2 * (576 + 576) + 2 * (576 + 192) + 3 * (576 + 1536))
    small = shapes.known("smollm2-135m")
    assert small.lora_parameters(16) == 30 * each == 4_884_480
    assert small.lora_parameters(16, ["q_proj"]) == 30 * 16 * (576 + 576)


TINY = Shape(layers=1, hidden=8, heads=2, kv_heads=1, head_dim=4, intermediate=16, vocab=10)


def test_the_work_of_a_tiny_model_by_hand():
    """Attention 8x8 + 2 of 8x4 + 8x8, MLP 3 of 8x16, two norms and a last one of 8, embeddings 2 of 10x8."""
    linear = 64 + 32 + 32 + 64 + 3 * 128
    assert TINY.parameters == linear + 24 + 160
    assert TINY.active_parameters == TINY.parameters - 80
    assert TINY.linear_parameters == linear
    # 10 tokens; each with those before it: 4 x 8 wide, 10 x 10 / 2 pairs
    assert TINY.forward_flops(7, 3) == 2 * TINY.active_parameters * 10 + 4 * 8 * 50


def test_lora_saves_the_gradients_of_the_weights():
    full, lora = (TINY.training_flops(100, 0, method, lora=5) for method in ("full", "lora"))
    assert full == 6 * TINY.active_parameters * 100
    assert lora == (4 * TINY.active_parameters + 6 * 5) * 100


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "mistral", "mixtral", "gemma2"])
def test_the_formulas_count_what_transformers_builds(kind, tmp_path):
    from transformers import AutoConfig, AutoModelForCausalLM

    numbers = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "vocab_size": 64,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    config = AutoConfig.for_model(kind, **numbers)
    model = AutoModelForCausalLM.from_config(config)
    config.save_pretrained(tmp_path)
    assert shapes.of_model(str(Path(tmp_path))).parameters == model.num_parameters()
