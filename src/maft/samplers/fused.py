"""The forward pass of Llama-like models with fused weights, and adapters of many agents in one batch.

Queries, keys and values are one matrix product, and so are the two halves of the MLP. The rows of all adapters' A are
appended to each of these matrices, so that one product gives the layer's output and every agent's low-rank part; the
columns of other agents are set to zero before B is applied. The fused matrices replace the weights of the transformers
model, which keeps views of them: both compute with the same memory.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from maft.samplers import plain_ops

Attend = Callable[[int, Tensor], Tensor]
"""Attention of one layer: its number and queries, keys and values as columns -> the heads' outputs as columns."""
Adapter = Mapping[str, Tensor]
"""LoRA weights of one agent by their names in a PEFT file, B times the scale."""

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
PARTS = (("self_attn", "q_proj", "k_proj", "v_proj"), ("self_attn", "o_proj"),
         ("mlp", "gate_proj", "up_proj"), ("mlp", "down_proj"))  # fmt: skip


class Linear:
    """Linear layers with the same input as one matrix, with the adapters of several agents."""

    def __init__(self, modules: Sequence[Any], names: Sequence[str]) -> None:
        """Fuse layers; `names` are theirs in a PEFT file."""
        self.weights = [module.weight for module in modules]
        self.names = names
        biases = [module.bias for module in modules]
        self.bias = None
        if any(bias is not None for bias in biases):
            zeros = (torch.zeros_like(weight[:, 0]) for weight in self.weights)
            self.bias = torch.cat(
                [zero if bias is None else bias.data for bias, zero in zip(biases, zeros, strict=True)]
            )
        self.width = sum(len(weight) for weight in self.weights)
        self.matrix: Tensor | None = None
        self.adapt([], 0)

    def adapt(self, adapters: Sequence[Adapter], rank: int) -> bool:
        """Load the adapters of agents 0, 1, ..., padded to one rank; return whether memory moved."""
        columns = len(adapters) * rank * len(self.weights)
        moved = self.matrix is None or len(self.matrix) != self.width + columns
        if moved:
            like = self.weights[0]
            matrix = like.new_empty(self.width + columns, like.shape[1])
            start = 0
            for weight in self.weights:
                part = matrix[start : start + len(weight)]
                part.copy_(weight.data)
                weight.data = part
                start += len(weight)
            self.matrix, self.up = matrix, like.new_zeros(columns, self.width)
            self.padded_bias = None if self.bias is None else functional.pad(self.bias, (0, columns))
        assert self.matrix is not None
        self.matrix[self.width :].zero_()
        self.up.zero_()
        start, row = 0, 0
        for name, weight in zip(self.names, self.weights, strict=True):
            for adapter in adapters:
                down = adapter.get(f"{name}.lora_A.weight")
                if down is not None:
                    up = adapter[f"{name}.lora_B.weight"]
                    self.matrix[self.width + row : self.width + row + len(down)].copy_(down)
                    self.up[row : row + len(down), start : start + len(weight)].copy_(up.T)
                row += rank
            start += len(weight)
        return moved

    def __call__(self, x: Tensor, agents: Tensor, rank: int, ops: Any) -> Tensor:
        """Return the outputs of all layers, side by side, for rows [rows, inputs] of agents [rows], -1 for none."""
        both = functional.linear(x, self.matrix, self.padded_bias)
        if len(self.up):
            ops.add_adapters(both, self.width, self.up, agents, rank, len(self.up) // (rank * len(self.weights)))
        return both[:, : self.width]


class Fused:
    """A transformers model as a function of rows of tokens, its attention left to the caller."""

    def __init__(self, model: Any, ops: Any = None) -> None:
        """Fuse the weights of a model, which shares its memory from then on.

        Args:
            model: a causal language model of `FAMILIES`.
            ops: `maft.samplers.plain_ops` or `maft.samplers.triton_ops`; None chooses.
        """
        config = model.config
        self.model, self.rank = model, 1
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.width = head_width(config)
        self.hidden_mlp, self.eps = config.intermediate_size, config.rms_norm_eps
        self.ops = ops or _operations(model.device, self.width)
        self.numbers: dict[Path | None, int] = {None: -1}
        """Numbers of the agents by adapter."""
        self.layers = []
        for number, layer in enumerate(model.model.layers):
            linears = []
            for block, *names in PARTS:
                modules = [getattr(getattr(layer, block), name) for name in names]
                linears.append(Linear(modules, [f"base_model.model.model.layers.{number}.{block}.{n}" for n in names]))
            self.layers.append((layer, linears))

    @property
    def names(self) -> set[str]:
        """Names of all tensors that an adapter may have."""
        linears = (linear for _, linears in self.layers for linear in linears)
        return {f"{name}.lora_{side}.weight" for linear in linears for name in linear.names for side in "AB"}

    def adapt(self, adapters: Mapping[Path, Adapter]) -> bool:
        """Load adapters in place of those before; return whether memory moved, so that graphs must be captured anew."""
        ranks = [len(tensor) for one in adapters.values() for name, tensor in one.items() if ".lora_A." in name]
        rank = -(-max(ranks, default=1) // 16) * 16
        moved = [linear.adapt([*adapters.values()], rank) for _, linears in self.layers for linear in linears]
        changed, self.rank = any(moved) or rank != self.rank, rank
        self.numbers = {None: -1} | {adapter: number for number, adapter in enumerate(adapters)}
        return changed

    def rotations(self, length: int) -> tuple[Tensor, Tensor]:
        """Return cosines and sines of the rotary embedding, [length, width of a head] each."""
        at = self.model.model.embed_tokens.weight
        cos, sin = self.model.model.rotary_emb(at, torch.arange(length, device=at.device)[None])
        return cos[0].contiguous(), sin[0].contiguous()

    def hidden(self, tokens: Tensor, agents: Tensor, attend: Attend) -> Tensor:
        """Return the last layer's output, normalised, for rows of tokens [rows]."""
        ops, x, residual = self.ops, self.model.model.embed_tokens(tokens), None
        for number, (layer, (qkv, output, gate_up, down)) in enumerate(self.layers):
            x, residual = ops.add_norm(x, residual, layer.input_layernorm.weight, self.eps)
            x = self._qk_norm(layer, qkv(x, agents, self.rank, ops))
            x = output(attend(number, x), agents, self.rank, ops)
            x, residual = ops.add_norm(x, residual, layer.post_attention_layernorm.weight, self.eps)
            x = ops.silu_mul(gate_up(x, agents, self.rank, ops), self.hidden_mlp)
            x = down(x, agents, self.rank, ops)
        return ops.add_norm(x, residual, self.model.model.norm.weight, self.eps)[0]

    @torch.inference_mode()  # type: ignore[untyped-decorator]
    def likelihoods(self, ids: Sequence[int], agent: int) -> tuple[float, ...]:
        """Return the log-likelihoods of all tokens of a text but the first under an agent, -1 for none."""
        like = self.model.model.embed_tokens.weight
        tokens = torch.tensor(ids, device=like.device)
        positions, rows = torch.arange(len(ids), device=like.device), torch.zeros_like(tokens)
        cos, sin = self.rotations(len(ids))

        def attend(layer: int, qkv: Tensor) -> Tensor:
            keys, values = (like.new_zeros(1, self.kv_heads, len(ids), self.width) for _ in range(2))
            q = self.ops.rotate_and_store(qkv, cos, sin, positions, rows, keys, values, self.heads)
            out = functional.scaled_dot_product_attention(
                q[None].transpose(1, 2), keys, values, is_causal=True, enable_gqa=True
            )
            return out.transpose(1, 2)[0].flatten(1)

        hidden = self.hidden(tokens, torch.full_like(tokens, agent), attend)
        scores = self.logits(hidden[:-1]).float().log_softmax(-1)
        return tuple(scores.gather(1, tokens[1:, None])[:, 0].tolist())

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits [rows, vocabulary]."""
        return self.model.lm_head(hidden)

    def _qk_norm(self, layer: Any, qkv: Tensor) -> Tensor:
        if not hasattr(layer.self_attn, "q_norm"):
            return qkv
        q, k, v = qkv.unflatten(1, (-1, self.width)).split([self.heads, self.kv_heads, self.kv_heads], dim=1)
        return torch.cat([layer.self_attn.q_norm(q), layer.self_attn.k_norm(k), v], dim=1).flatten(1)


def supports(model: Any) -> bool:
    """Say whether `Fused` computes what this transformers model does."""
    config = model.config
    parts = [name for block in PARTS for name in block[1:]]
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    width = head_width(config)
    linears = {name.rpartition(".")[2]: type(m) for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    rope = getattr(config, "rope_parameters", None) or {}
    return (
        config.model_type in FAMILIES
        and config.hidden_act == "silu"
        and not window
        and rope.get("rope_type", "default") in ("default", "linear", "llama3", "yarn")
        and width & (width - 1) == 0
        and all(linears.get(name) is torch.nn.Linear for name in parts)
    )


def head_width(config: Any) -> int:
    """Return the width of an attention head."""
    width: int = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return width


def _operations(device: torch.device, width: int) -> Any:
    """Return Triton's kernels on CUDA, where it is installed; otherwise plain torch."""
    if device.type == "cuda" and width >= 16:
        try:
            from maft.samplers import triton_ops
        except ImportError:
            return plain_ops
        return triton_ops
    return plain_ops
