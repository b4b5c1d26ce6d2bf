"""The shape of a model, and what follows from it: parameters, bytes of the key-value cache, operations per token.

Read from a model's config.json; a few models are known by name, for plans without the model. The formulas are those of
decoder-only transformers with grouped queries and a gated MLP (Llama, Qwen, Mistral, Gemma, Phi-3, SmolLM and alike),
with or without experts.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from maft.errors import DataError
from maft.models.adapters import shapes_of
from maft.records import Record

BYTES = {"bfloat16": 2, "float16": 2, "float32": 4, "float64": 8}
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class Shape(Record):
    """The numbers of a config.json that determine a model's size and operations."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    """Of the MLP, or of each expert."""
    vocab: int
    tied: bool = False
    """Whether input and output embeddings are one matrix, counted once."""
    qkv_bias: bool = False
    qk_norm: bool = False
    norms: int = 2
    """Norms in a layer, not counting those of queries and keys."""
    experts: int = 1
    active_experts: int = 1
    """Experts per token."""
    context: int = 0
    """Longest sequence in tokens; 0 if unknown."""
    given_parameters: int = 0
    """Number of parameters counted in the weights, which overrides the formula."""

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """Return the linear layers of one block, or of one expert, by name, as (inputs, outputs)."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        h, i = self.hidden, self.intermediate
        sizes = ((h, q), (h, kv), (h, kv), (q, h), (h, i), (h, i), (i, h))
        return dict(zip(LINEAR, sizes, strict=True))

    @property
    def parameters(self) -> int:
        """Return the number of all parameters."""
        return self.given_parameters or self._parameters(self.experts)

    @property
    def embedding_parameters(self) -> int:
        """Return the number of parameters of input and output embeddings."""
        return self.vocab * self.hidden * (1 if self.tied else 2)

    @property
    def linear_parameters(self) -> int:
        """Return the number in the linear layers of all blocks, which QLoRA quantises."""
        return self.layers * self._linears(self.experts)

    @property
    def active_parameters(self) -> int:
        """Return the number that one token is multiplied with; the input embedding is a look-up."""
        idle = 0 if self.tied else self.vocab * self.hidden
        if self.given_parameters and self.experts == 1:
            return self.given_parameters - idle
        return self._parameters(self.active_experts) - idle

    def _linears(self, experts: int) -> int:
        sizes = {name: inputs * outputs for name, (inputs, outputs) in self.linears.items()}
        attention = sum(sizes[name] for name in LINEAR[:4])
        return attention + experts * sum(sizes[name] for name in LINEAR[4:])

    def _parameters(self, experts: int) -> int:
        router = self.hidden * self.experts if self.experts > 1 else 0
        bias = (self.heads + 2 * self.kv_heads) * self.head_dim if self.qkv_bias else 0
        norms = self.norms * self.hidden + (2 * self.head_dim if self.qk_norm else 0)
        return self.layers * (self._linears(experts) + router + bias + norms) + self.embedding_parameters + self.hidden

    def kv_bytes_per_token(self, dtype: str = "bfloat16") -> int:
        """Return the bytes that one token takes in the key-value cache.

        >>> known("llama-3-8b").kv_bytes_per_token()
        131072
        """
        return 2 * self.layers * self.kv_heads * self.head_dim * BYTES[dtype]

    def weight_bytes(self, dtype: str = "bfloat16") -> int:
        """Return the bytes of all weights."""
        return self.parameters * BYTES[dtype]

    def lora_parameters(self, rank: int, targets: str | Sequence[str] = "all-linear") -> int:
        """Return the number of parameters of a LoRA adapter, which is on all experts."""
        chosen = LINEAR if targets == "all-linear" else [targets] if isinstance(targets, str) else targets
        sizes = {name: rank * sum(size) * (self.experts if name in LINEAR[4:] else 1)
                 for name, size in self.linears.items()}  # fmt: skip
        return self.layers * sum(size for name, size in sizes.items() if name in chosen)

    def forward_flops(self, prompt: float, generated: float) -> float:
        """Return the operations of reading a prompt and writing a reply: 2 per parameter and token, and attention.

        A token that attends to n tokens costs 4 n operations per unit of each head's width and layer.
        """
        seen = (prompt + generated) ** 2 / 2
        return 2 * self.active_parameters * (prompt + generated) + self._attention * seen

    def training_flops(self, tokens: float, row: float, method: str, lora: int = 0) -> float:
        """Return the operations of training on tokens in rows of a length.

        Full finetuning takes 6 per parameter and token: 2 forward, 2 backward to the inputs, 2 for the weights'
        gradients. LoRA saves the last, since the weights are frozen: 4, and 6 per parameter of the adapter.
        """
        per_token = 6 * self.active_parameters if method == "full" else 4 * self.active_parameters + 6 * lora
        return per_token * tokens + 3 * self._attention * tokens * row / 2

    @property
    def _attention(self) -> int:
        return 4 * self.layers * self.heads * self.head_dim


def of_config(config: dict[str, Any], name: str = "the model") -> Shape:
    """Read the content of a config.json.

    Raises:
        DataError: it lacks a number that determines the size, as those of other families do.
    """
    text = config.get("text_config") or config
    kind = str(text.get("model_type", ""))
    heads = text.get("num_attention_heads") or 1
    experts = text.get("num_local_experts") or text.get("num_experts") or 1
    width = text.get("moe_intermediate_size") if experts > 1 else None
    tree = {
        "layers": text.get("num_hidden_layers"),
        "hidden": text.get("hidden_size"),
        "heads": text.get("num_attention_heads"),
        "kv_heads": text.get("num_key_value_heads") or text.get("num_attention_heads"),
        "head_dim": text.get("head_dim") or (text.get("hidden_size") or 0) // heads,
        "intermediate": width or text.get("intermediate_size"),
        "vocab": text.get("vocab_size"),
        "tied": text.get("tie_word_embeddings", config.get("tie_word_embeddings", kind.startswith("gemma"))),
        "qkv_bias": text.get("attention_bias", False) or kind.startswith("qwen2"),
        "qk_norm": kind.startswith(("qwen3", "gemma3")),
        "norms": 4 if kind in ("gemma2", "gemma3", "gemma3_text") else 2,
        "experts": experts,
        "active_experts": text.get("num_experts_per_tok") or 1,
        "context": text.get("max_position_embeddings") or 0,
    }
    try:
        return Shape.model_validate(tree)
    except ValidationError as errors:
        lacking = ", ".join(str(error["loc"][0]) for error in errors.errors())
        raise DataError(f"the config.json of {name} lacks {lacking}. Give the numbers by options.") from None


def of_model(model: str) -> Shape | None:
    """Return the shape of a model by its local folder or its name in `KNOWN`; None if it is unknown.

    None as well for a config.json of a family that these formulas do not cover. Parameters are counted in the weights
    if they are there.
    """
    folder = Path(model).expanduser()
    if (folder / "config.json").is_file():
        try:
            shape = of_config(json.loads((folder / "config.json").read_text(encoding="utf-8")), model)
        except DataError:
            return None
        counted = count(folder)
        return shape.model_copy(update={"given_parameters": counted}) if counted else shape
    return known(model)


def count(folder: Path) -> int:
    """Return the number of weights in a folder's safetensors files, from their headers; 0 if there are none."""
    try:
        return sum(sum(map(math.prod, shapes_of(file).values())) for file in folder.glob("*.safetensors"))
    except (ValueError, OSError):
        return 0


def known(model: str) -> Shape | None:
    """Return the shape of a model in `KNOWN` by its name on the hub, with or without its owner and `-Instruct`.

    >>> known("meta-llama/Meta-Llama-3-8B-Instruct").parameters
    8030261248
    """
    name = model.lower().rpartition("/")[2].removeprefix("meta-")
    for ending in ("-v0.1", "-v0.2", "-v0.3", "-instruct", "-chat", "-it", "-4k", "-128k", "-2507"):
        name = name.replace(ending, "")
    return Shape.model_validate(KNOWN[name]) if name in KNOWN else None


_COLUMNS = ("layers", "hidden", "heads", "kv_heads", "head_dim", "intermediate", "vocab", "context")
_TIED: dict[str, Any] = {"tied": True}
_QWEN2: dict[str, Any] = {"qkv_bias": True}
_QWEN3: dict[str, Any] = {"qk_norm": True}
_TABLE: tuple[tuple[Any, ...], ...] = (
    ("smollm2-135m", _TIED, 30, 576, 9, 3, 64, 1536, 49152, 8192),
    ("smollm2-360m", _TIED, 32, 960, 15, 5, 64, 2560, 49152, 8192),
    ("smollm2-1.7b", _TIED, 24, 2048, 32, 32, 64, 8192, 49152, 8192),
    ("llama-3.2-1b", _TIED, 16, 2048, 32, 8, 64, 8192, 128256, 131072),
    ("llama-3.2-3b", _TIED, 28, 3072, 24, 8, 128, 8192, 128256, 131072),
    ("llama-3-8b", {}, 32, 4096, 32, 8, 128, 14336, 128256, 8192),
    ("llama-3.1-8b", {}, 32, 4096, 32, 8, 128, 14336, 128256, 131072),
    ("llama-3-70b", {}, 80, 8192, 64, 8, 128, 28672, 128256, 8192),
    ("llama-3.1-70b", {}, 80, 8192, 64, 8, 128, 28672, 128256, 131072),
    ("llama-3.3-70b", {}, 80, 8192, 64, 8, 128, 28672, 128256, 131072),
    ("llama-3.1-405b", {}, 126, 16384, 128, 8, 128, 53248, 128256, 131072),
    ("mistral-7b", {}, 32, 4096, 32, 8, 128, 14336, 32000, 32768),
    ("mixtral-8x7b", {"experts": 8, "active_experts": 2}, 32, 4096, 32, 8, 128, 14336, 32000, 32768),
    ("phi-3-mini", {}, 32, 3072, 32, 32, 96, 8192, 32064, 4096),
    ("qwen2.5-0.5b", _QWEN2 | _TIED, 24, 896, 14, 2, 64, 4864, 151936, 32768),
    ("qwen2.5-1.5b", _QWEN2 | _TIED, 28, 1536, 12, 2, 128, 8960, 151936, 32768),
    ("qwen2.5-7b", _QWEN2, 28, 3584, 28, 4, 128, 18944, 152064, 32768),
    ("qwen2.5-32b", _QWEN2, 64, 5120, 40, 8, 128, 27648, 152064, 32768),
    ("qwen2.5-72b", _QWEN2, 80, 8192, 64, 8, 128, 29568, 152064, 32768),
    ("qwen3-8b", _QWEN3, 36, 4096, 32, 8, 128, 12288, 151936, 40960),
    ("qwen3-32b", _QWEN3, 64, 5120, 64, 8, 128, 25600, 151936, 40960),
)
KNOWN = {name: dict(zip(_COLUMNS, numbers, strict=True)) | more for name, more, *numbers in _TABLE}
"""The numbers of `Shape` by the name of a model."""
