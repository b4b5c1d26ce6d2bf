"""The operations of `maft.samplers.fused` in plain torch: for machines without Triton, and to test Triton against."""

import torch
from torch import Tensor
from torch.nn import functional


def add_norm(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return the RMS norm of x + residual, and the sum."""
    total = x if residual is None else x + residual
    wide = total.float()
    normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight * normed.to(x.dtype), total


def silu_mul(both: Tensor, width: int) -> Tensor:
    """Return silu(first half) * second half of columns [rows, 2 * width]."""
    return functional.silu(both[:, :width]) * both[:, width : 2 * width]


def add_adapters(both: Tensor, width: int, up: Tensor, agents: Tensor, rank: int, count: int) -> None:
    """Add each row's low-rank part to its output, in place.

    Args:
        both: [rows, width + columns]: outputs, then the low-rank parts of each layer and agent.
        width: of the outputs.
        up: [columns, width].
        agents: [rows], -1 for none.
        rank: columns of one agent and layer.
        count: of agents.
    """
    owner = torch.arange(len(up), device=both.device) // rank % count
    own = both[:, width:] * (owner[None] == agents[:, None])
    both[:, :width] += own @ up


def rotate_and_store(
    qkv: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, slots: Tensor, keys: Tensor, values: Tensor, heads: int
) -> Tensor:
    """Rotate queries and keys, put keys and values into the cache, and return queries [rows, heads, width of a head].

    Args:
        qkv: [rows, (heads + 2 * key-value heads) * width of a head].
        cos: [positions, width of a head].
        sin: as cos.
        positions: [rows].
        slots: [rows].
        keys: [slots, key-value heads, positions, width of a head].
        values: as keys.
        heads: of queries.
    """
    kv_heads, width = keys.shape[1], keys.shape[3]
    q, k, v = qkv.unflatten(1, (-1, width)).split([heads, kv_heads, kv_heads], dim=1)
    cos, sin = cos[positions][:, None], sin[positions][:, None]
    keys[slots, :, positions] = _rotate(k, cos, sin)
    values[slots, :, positions] = v
    return _rotate(q, cos, sin)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def attend(
    qkv: Tensor, cos: Tensor, sin: Tensor, slots: Tensor, keys: Tensor, values: Tensor, lengths: Tensor, heads: int
) -> Tensor:
    """Store one new token in each row and return its attention over its slot, [rows, heads * width of a head].

    `lengths` [slots] are the tokens before the new one; for the others see `rotate_and_store`.
    """
    q = rotate_and_store(qkv, cos, sin, lengths[slots], slots, keys, values, heads)
    k, v = keys[slots], values[slots]
    seen = torch.arange(k.shape[2], device=q.device)[None] <= lengths[slots][:, None]
    grouped = q.unflatten(1, (k.shape[1], -1))
    return functional.scaled_dot_product_attention(grouped, k, v, attn_mask=seen[:, None, None]).flatten(1)


def choose(logits: Tensor, draws: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """Return a token for each row: its uniform number inverts the distribution after temperature, top-k and top-p.

    The cumulative distribution is in the order of token numbers; of equally likely tokens at the border of top-k or
    top-p those with lower numbers are kept.

    Args:
        logits: [rows, vocabulary].
        draws: [rows], from [0, 1).
        temperature: [rows]; 0 takes the likeliest token.
        top_k: [rows]; 0 is no limit.
        top_p: [rows].
    """
    logits = logits.float()
    likeliest = logits.argmax(-1)
    scaled = (logits - logits.amax(-1, keepdim=True)) / temperature.clamp(min=1e-6)[:, None]
    values, order = scaled.sort(dim=-1, descending=True, stable=True)
    ranks = torch.arange(values.shape[1], device=values.device)[None]
    k = torch.where(top_k > 0, top_k, values.shape[1])[:, None]
    weights = values.exp().masked_fill(ranks >= k, 0)
    reached = weights.cumsum(-1)
    weights = weights.masked_fill((reached - weights >= top_p[:, None] * reached[:, -1:]) & (ranks > 0), 0)
    kept = torch.zeros_like(weights).scatter(1, order, weights)
    reached = kept.cumsum(-1)
    chosen = (reached <= draws[:, None] * reached[:, -1:]).sum(-1)
    # Rounding may put the number past the last possible token.
    possible = torch.where(kept > 0, torch.arange(kept.shape[1], device=kept.device), 0).amax(-1)
    return torch.where(temperature > 0, chosen.minimum(possible), likeliest)


def advance(logits: Tensor, slots: Tensor, state: "dict[str, Tensor]", stops: Tensor) -> None:
    """Draw the next token of each row and store it in the state of its slot; finished slots do not change.

    Args:
        logits: [rows, vocabulary].
        slots: [rows].
        state: see `maft.samplers.slots`.
        stops: tokens that end a reply.
    """
    steps, going = state["steps"][slots], ~state["done"][slots]
    at = steps.clamp(max=state["draws"].shape[1] - 1).long()
    how = (state[name][slots] for name in ("temperature", "top_k", "top_p"))
    token = choose(logits, state["draws"][slots, at], *how)
    wide = logits.float()
    logprob = wide.gather(1, token[:, None])[:, 0] - wide.logsumexp(-1)
    ended = torch.isin(token, stops) | (steps + 1 >= state["limits"][slots])
    news = {"tokens": token, "steps": steps + 1, "lengths": state["lengths"][slots] + 1, "done": ended}
    for name, new in news.items():
        state[name][slots] = torch.where(going, new, state[name][slots])
    state["output"][slots, at] = torch.where(going, token, state["output"][slots, at])
    state["logprobs"][slots, at] = torch.where(going, logprob, state["logprobs"][slots, at])
