"""A tiny model made here, and examples to train it on."""

from pathlib import Path

import pytest

from maft.records import Example, Message
from maft.trainers.base import TrainJob

CHATML = (
    "{{ '<s>' }}{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
SPECIAL = ["<s>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
TURN_END = "<|end|>\n"


def dialogue(*contents: str) -> tuple[Message, ...]:
    roles = ("user", "assistant")
    return tuple(
        Message.model_validate({"role": roles[place % 2], "content": content}) for place, content in enumerate(contents)
    )


CRITIC = dialogue("What is 3 + 4?", "\\boxed{8}", "Others say 7. Check.", "It is \\boxed{7}.")


GENERATOR = [dialogue(f"What is {n} + 1?", f"It is \\boxed{{{n + 1}}}.") for n in range(8)]
MIXED = [*GENERATOR[:5], CRITIC, dialogue("Go on.", "word " * 30)]


def write_examples(file: Path, dialogues) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    examples = [
        Example(iteration=1, problem_id=str(n), agent=file.stem, kind="first", messages=messages)
        for n, messages in enumerate(dialogues)
    ]
    file.write_text("".join(example.to_json() + "\n" for example in examples))
    return file


def make_job(folder: Path, agent: str, dialogues=(CRITIC,), model: str = "none", **changes) -> TrainJob:
    job = TrainJob(
        agent=agent,
        role=agent.split("_")[0],
        iteration=1,
        examples=write_examples(folder / "examples" / f"{agent}.jsonl", dialogues),
        num_examples=len(dialogues),
        base_model=model,
        init_adapter=None,
        output=folder / "agents" / agent,
        seed=2**62 + 1,
    )
    return job.model_copy(update=changes)


def slow(test):
    """Mark a test that loads TRL, which warns about many things."""
    return pytest.mark.slow(pytest.mark.filterwarnings("ignore")(test))


def build(folder: Path, **changes) -> str:
    """Make a Llama of a few thousand parameters with a byte tokenizer and the template above."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = Tokenizer(models.BPE({token: number for number, token in enumerate(alphabet)}, []))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.add_special_tokens(SPECIAL)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<s>", eos_token="<|end|>", pad_token="<|end|>", chat_template=CHATML
    )
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        initializer_range=0.5,  # large enough that an adapter can move the logits
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **sizes | changes,
    )
    tokenizer.save_pretrained(folder)
    LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


def build_exact(folder: Path, llama: str) -> str:
    """Make a small model in which nothing is computed in float32 when it is loaded in float64, with the tokenizer of `build`."""
    import torch
    from transformers import AutoTokenizer, Starcoder2Config, Starcoder2ForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(llama)
    torch.manual_seed(0)
    config = Starcoder2Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
        sliding_window=None,
        embedding_dropout=0.0,
        residual_dropout=0.0,
        attention_dropout=0.0,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    Starcoder2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
