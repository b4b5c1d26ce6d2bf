"""Rows of several agents in one forward pass without padding: they are laid end to end, and kept apart in attention.

Everything but attention works on single tokens, so the rows of a part are one sequence of T tokens, sorted by agent.
The tokens that all examples of an agent begin with (its instruction) are computed once for each agent and part: every
row of the agent attends to the same keys and values, and their gradients add up, as if each row had its own copy.

Attention is FlashAttention's for variable lengths on CUDA, where torch has it. Elsewhere rows are padded to the longest
of the part, for attention alone: plain matrix products on short rows (the backward pass of torch's fused kernel is slow
on a CPU), torch's fused kernel on longer ones.
"""

import inspect
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy
import torch
from torch.nn import functional

from maft.trainers.dialogue_tokens import IGNORED, DialogueTokens

NAME = "maft_packed"
"""What transformers calls this attention."""
EAGER_TOKENS = 512
"""Longest row for plain matrix products, whose memory grows with the square of the length."""


class Row(NamedTuple):
    """A row as arrays."""

    ids: Any
    learned: Any
    """Places of the tokens that carry loss."""

    @classmethod
    def of(cls, tokens: DialogueTokens) -> "Row":
        """Make it; a first token has nothing to be predicted from."""
        return cls(numpy.asarray(tokens.input_ids), numpy.flatnonzero(numpy.asarray(tokens.labels[1:]) != IGNORED) + 1)


class Layout(NamedTuple):
    """One part, on the device of the model: T tokens, S sequences (rows and shared beginnings), n tokens with loss."""

    input_ids: torch.Tensor
    """(1, T)"""
    positions: torch.Tensor
    """(1, T): place of each token in its row."""
    agents: torch.Tensor
    """(T): number of the agent of each token."""
    predicting: torch.Tensor
    """(n): place among the T tokens whose output predicts a token with loss."""
    targets: torch.Tensor
    """(n): these tokens."""
    rows: torch.Tensor
    """(n): their rows, in the order in which they were given."""
    attention: "Lengths | Padded"


class Lengths(NamedTuple):
    """Sequences by where they begin, for attention with variable lengths."""

    starts: torch.Tensor
    """(S + 1) in T"""
    key_starts: torch.Tensor
    """(S + 1) in the list of keys"""
    keys: torch.Tensor | None
    """The token of each key; None if keys are the T tokens."""
    longest: int
    longest_keys: int


class Padded(NamedTuple):
    """Sequences as padded matrices of places among the T tokens, for attention by plain products."""

    queries: torch.Tensor
    """(S, Q)"""
    keys: torch.Tensor
    """(S, K): the shared beginning, if there is one, then the row's own tokens."""
    bias: torch.Tensor
    """(S, 1, Q, K): 0 where a query sees a key, minus infinity elsewhere."""
    back: torch.Tensor
    """(T): place of each token in the flattened queries."""


def lay_out(
    rows: Sequence[tuple[int, Row]], shared: Mapping[int, int], device: torch.device, *, padded: bool
) -> Layout:
    """Lay rows end to end.

    Args:
        rows: agent and tokens of each, sorted by agent.
        shared: by agent, how many tokens all its rows begin with.
        device: where the model is.
        padded: lay out attention for plain products, else for variable lengths.
    """
    ids, places, agents, sequences = [], [], [], []
    predicting, targets, numbers = [], [], []
    end, begun = 0, {}
    for number, (agent, row) in enumerate(rows):
        tokens, common = row.ids, shared.get(agent, 0)
        if common and agent not in begun:
            begun[agent] = end
            ids.append(tokens[:common])
            places.append(numpy.arange(common))
            agents.append(numpy.full(common, agent))
            sequences.append((end, common, 0, 0))
            end += common
        own = len(tokens) - common
        ids.append(tokens[common:])
        places.append(numpy.arange(common, len(tokens)))
        agents.append(numpy.full(own, agent))
        sequences.append((end, own, begun.get(agent, 0), common))
        predicting.append(row.learned - 1 - common + end)
        targets.append(tokens[row.learned])
        numbers.append(numpy.full(len(row.learned), number))
        end += own

    def tensor(parts: Sequence[Any]) -> torch.Tensor:
        return torch.from_numpy(numpy.concatenate(parts)).to(device, non_blocking=True)

    return Layout(
        tensor(ids)[None],
        tensor(places)[None],
        tensor(agents),
        tensor(predicting),
        tensor(targets),
        tensor(numbers),
        (_padded if padded else _lengths)(sequences, end, device),
    )


def _lengths(sequences: Sequence[tuple[int, int, int, int]], total: int, device: torch.device) -> Lengths:
    starts = [start for start, *_ in sequences] + [total]
    keys = [length + common for _, length, _, common in sequences]
    index = None
    if any(common for *_, common in sequences):
        pieces = [
            piece
            for start, length, first, common in sequences
            for piece in (numpy.arange(first, first + common), numpy.arange(start, start + length))
        ]
        index = torch.from_numpy(numpy.concatenate(pieces)).to(device)
    return Lengths(
        torch.tensor(starts, dtype=torch.int32, device=device),
        torch.tensor([0, *numpy.cumsum(keys).tolist()], dtype=torch.int32, device=device),
        index,
        max(length for _, length, _, _ in sequences),
        max(keys),
    )


def _padded(sequences: Sequence[tuple[int, int, int, int]], total: int, device: torch.device) -> Padded:
    start, length, first, common = (torch.tensor(column) for column in zip(*sequences, strict=True))
    column = torch.arange(int(length.max()))[None]
    queries = torch.where(column < length[:, None], start[:, None] + column, 0)
    back = torch.empty(total, dtype=torch.long)
    real = column < length[:, None]
    back[queries[real]] = torch.arange(queries.numel()).view_as(queries)[real]
    place = torch.arange(int((length + common).max()))[None]
    own = place - common[:, None]
    keys = torch.where(own < 0, first[:, None] + place, start[:, None] + own.clamp(min=0))
    keys = torch.where(own < length[:, None], keys, 0)
    allowed = own[:, None, None, :] <= column[:, None, :, None]
    bias = torch.zeros(allowed.shape).masked_fill_(~allowed, -torch.inf)
    return Padded(queries.to(device), keys.to(device), bias.to(device), back.to(device))


class Attention:
    """The attention that transformers calls in every layer, by the layout of the part that is under way."""

    def __init__(self) -> None:
        from transformers import AttentionInterface

        self.layout: Lengths | Padded | None = None
        AttentionInterface.register(NAME, self)

    def __call__(
        self,
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: Any = None,
        scaling: float | None = None,
        dropout: float = 0.0,
        **more: Any,
    ) -> tuple[torch.Tensor, None]:
        """Return what each token reads, (1, T, heads, width), and no weights.

        Queries are (1, heads, T, width), keys and values have as many heads or fewer. The layout stands for the mask.

        Raises:
            NotImplementedError: this model's attention is of another kind.
        """
        window = more.get("sliding_window")
        others = [name for name in ("softcap", "s_aux", "position_bias") if more.get(name) is not None]
        how = self.layout
        assert how is not None
        longest = how.keys.shape[1] if isinstance(how, Padded) else how.longest_keys
        if others or dropout or (window and window < longest):
            raise NotImplementedError(f"attention with {', '.join(others) or 'dropout or a sliding window'}")
        q, k, v = (heads[0].transpose(0, 1) for heads in (query, key, value))  # (T, heads, width)
        scale = scaling or query.shape[-1] ** -0.5
        read = _by_products(q, k, v, how, scale) if isinstance(how, Padded) else _by_lengths(q, k, v, how, scale)
        return read[None], None


def has_variable_lengths() -> bool:
    """Say whether torch has attention with variable lengths here: on CUDA, from 2.10."""
    return torch.cuda.is_available() and _varlen() is not None


@cache
def _varlen() -> Any:
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    names = inspect.signature(varlen_attn).parameters
    causal: dict[str, Any] = {"window_size": (-1, 0)} if "window_size" in names else {"is_causal": True}
    grouped = {"enable_gqa": True} if "enable_gqa" in names else {}

    scaled = "scale" in names

    def attend(q: Any, k: Any, v: Any, how: Lengths, scale: float) -> torch.Tensor:
        if not scaled:
            q = q * (scale * q.shape[-1] ** 0.5)
        if not grouped and k.shape[1] != q.shape[1]:
            k, v = (heads.repeat_interleave(q.shape[1] // heads.shape[1], dim=1) for heads in (k, v))
        ends = (how.starts, how.key_starts, how.longest, how.longest_keys)
        more = {"scale": scale} if scaled else {}
        result: torch.Tensor = varlen_attn(q, k, v, *ends, **causal, **grouped, **more)
        return result

    return attend


def _by_lengths(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, how: Lengths, scale: float) -> torch.Tensor:
    if how.keys is not None:
        k, v = k.index_select(0, how.keys), v.index_select(0, how.keys)
    result: torch.Tensor = _varlen()(q.contiguous(), k.contiguous(), v.contiguous(), how, scale)
    return result


def _by_products(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, how: Padded, scale: float) -> torch.Tensor:
    num_heads = q.shape[1]
    rows, longest = how.queries.shape
    k, v = (_take(heads, how.keys) for heads in (k, v))
    if how.keys.shape[1] > EAGER_TOKENS:
        q = _take(q, how.queries)
        out = functional.scaled_dot_product_attention(
            q, k, v, attn_mask=how.bias.to(q.dtype), scale=scale, enable_gqa=k.shape[1] != num_heads
        )
    else:
        groups = num_heads // k.shape[1]
        q = _take(q * scale, how.queries)
        q = q.reshape(rows, k.shape[1], groups * longest, -1)  # queries of heads that share keys lie together
        weights = (q @ k.transpose(-1, -2)).view(rows, num_heads, longest, -1).add_(how.bias).softmax(-1)
        out = weights.view(rows, k.shape[1], groups * longest, -1) @ v
        out = out.view(rows, num_heads, longest, -1)
    flat = out.transpose(1, 2).reshape(rows * longest, -1)
    return flat.index_select(0, how.back).view(len(how.back), num_heads, -1)


def _take(heads: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Return (S, heads, length, width) of (T, heads, width), by an embedding: its backward pass is the fastest."""
    rows = functional.embedding(index, heads.reshape(len(heads), -1))
    return rows.view(*index.shape, *heads.shape[1:]).transpose(1, 2)


class TokenLogprobs(torch.autograd.Function):  # type: ignore[misc]
    """Log-probabilities of given tokens, with few rows at a time in float32 and the gradient in place of the logits."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return (n) of logits (n, vocabulary) and targets (n)."""
        dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
        ctx.size = max(1, (2**22 if logits.device.type == "cpu" else 2**27) // logits.shape[-1])
        log_z = torch.cat([rows.to(dtype).logsumexp(-1) for rows in logits.split(ctx.size)])
        ctx.save_for_backward(logits, targets, log_z)
        return logits.gather(-1, targets[:, None])[:, 0].to(dtype) - log_z

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Write (one-hot - softmax) * gradient over the logits, which nobody needs any more."""
        logits, targets, log_z = ctx.saved_tensors
        result = logits.detach()
        pieces = (tensor.split(ctx.size) for tensor in (result, targets[:, None], log_z[:, None], gradient[:, None]))
        for rows, target, log, grad in zip(*pieces, strict=True):
            part = rows.to(log.dtype, copy=True).sub_(log).exp_().mul_(-grad)
            rows.copy_(part.scatter_add_(-1, target, grad))
        return result, None
