"""Model cards: what is said, and where a card is silent."""

import pytest
from huggingface_hub import ModelCard

from maft import models
from maft.config import TrainConfig
from maft.trainers import cards

SUMMARY = {
    "init_adapter": "critic_0",
    "num_examples": 71,
    "num_dropped_too_long": 2,
    "tokens": 29710,
    "completion_tokens": 4094,
    "losses": [0.834, 0.612, 0.559],
    "versions": {"maft": "0.1.0", "torch": "2.13.0"},
}


def finetuned(method: str = "lora", *, merged: bool = False, **changes) -> cards.Finetuned:
    training = TrainConfig(method=method, learning_rate=2e-4).of("critic", 2)
    return cards.Finetuned("critic_0", "critic", 2, "org/base", training, SUMMARY | changes, merged)


def test_a_card_tells_base_role_iteration_data_and_settings():
    card = ModelCard(cards.card(finetuned()))
    assert card.data.to_dict() == {
        "base_model": "org/base",
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["maft", "multiagent-finetuning", "lora"],
    }
    for said in (
        "# critic_0, iteration 2",
        "A LoRA adapter of `org/base`",
        "the adapter `critic_0`",
        "71 examples, 2 dropped as longer than 2048 tokens; 29710 tokens",
        "loss 0.8340 at the first of 3 steps, 0.5590 at the last",
        "learning_rate 0.0002",
        "maft 0.1.0, torch 2.13.0",
        "@inproceedings{subramaniam2025multiagent",
    ):
        assert said in card.text


@pytest.mark.parametrize(
    ("method", "merged", "library", "what"),
    [
        ("qlora", False, "peft", "A LoRA adapter, trained on a base in 4 bits (NF4), of `org/base`"),
        ("lora", True, "transformers", "A LoRA adapter merged into `org/base`"),
        ("qlora", True, "transformers", "A LoRA adapter, trained on a base in 4 bits (NF4), merged into the unquantised `org/base`"),
        ("full", False, "transformers", "All weights, finetuned, of `org/base`"),
    ],
)  # fmt: skip
def test_a_card_says_what_the_weights_are(method, merged, library, what):
    card = ModelCard(cards.card(finetuned(method, merged=merged)))
    assert card.data.library_name == library and what in card.text
    assert ("merged" in card.data.tags) == merged and ("lora.rank" in card.text) == (method != "full")


def test_an_agent_without_examples_is_said_to_be_untrained():
    text = cards.card(finetuned(losses=[], num_examples=0, init_adapter=None))
    assert "not trained" in text and "| Started from | the base model |" in text


def test_a_folder_has_no_path_in_its_public_name(tmp_path):
    assert models.public_name(str(tmp_path)) == tmp_path.name
    assert models.public_name("org/base") == "org/base"
