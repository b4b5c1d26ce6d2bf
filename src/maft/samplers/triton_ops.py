# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"
"""The operations of `maft.samplers.plain_ops` as Triton kernels, for CUDA: few launches, no copies of the cache."""

import torch
import triton
import triton.language as tl
from torch import Tensor


def add_norm(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return the RMS norm of x + residual, and the sum."""
    rows, width = x.shape
    normed = torch.empty(rows, width, dtype=x.dtype, device=x.device)
    total = torch.empty_like(normed)
    other = x if residual is None else residual
    _add_norm[(rows,)](x, other, weight, normed, total, width, x.stride(0), other.stride(0), eps,
                       residual is not None, triton.next_power_of_2(width))  # fmt: skip
    return normed, total


@triton.jit
def _add_norm(x, other, weight, normed, total, width, x_row, other_row, eps, ADD: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < width
    value = tl.load(x + row * x_row + at, mask=inside, other=0.0)
    wide = value.to(tl.float32)
    if ADD:
        wide += tl.load(other + row * other_row + at, mask=inside, other=0.0).to(tl.float32)
        wide = wide.to(value.dtype).to(tl.float32)  # as rounded as the sum that is stored
    tl.store(total + row * width + at, wide.to(value.dtype), mask=inside)
    wide = (wide * tl.rsqrt(tl.sum(wide * wide, 0) / width + eps)).to(value.dtype).to(tl.float32)
    scale = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(normed + row * width + at, (scale * wide).to(value.dtype), mask=inside)


def silu_mul(both: Tensor, width: int) -> Tensor:
    """Return silu(first half) * second half of columns [rows, 2 * width]."""
    out = torch.empty(len(both), width, dtype=both.dtype, device=both.device)
    _silu_mul[(len(both), triton.cdiv(width, 1024))](both, out, width, both.stride(0), 1024)
    return out


@triton.jit
def _silu_mul(both, out, width, row_stride, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < width
    gate = tl.load(both + row * row_stride + at, mask=inside, other=0.0).to(tl.float32)
    value = tl.load(both + row * row_stride + width + at, mask=inside, other=0.0)
    gate = (gate * tl.sigmoid(gate)).to(value.dtype).to(tl.float32)
    tl.store(out + row * width + at, (gate * value.to(tl.float32)).to(value.dtype), mask=inside)


def add_adapters(both: Tensor, width: int, up: Tensor, agents: Tensor, rank: int, count: int) -> None:
    """Add each row's low-rank part to its output, in place; see `plain_ops`."""
    rows, (columns, _) = len(both), up.shape
    block = 16 if rows <= 16 else 64
    _add_adapters[(triton.cdiv(rows, block), triton.cdiv(width, 64))](
        both, up, agents, rows, width, columns, both.stride(0), up.stride(0), rank, count, block, 64,
        16 if columns < 32 else 32)  # fmt: skip


@triton.jit
def _add_adapters(both, up, agents, rows, width, columns, row_stride, up_stride, rank, count,
                  ROWS: tl.constexpr, COLUMNS: tl.constexpr, INNER: tl.constexpr):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    at = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    agent = tl.load(agents + row, mask=row < rows, other=-1)
    base = both + row.to(tl.int64)[:, None] * row_stride
    total = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for start in range(0, columns, INNER):
        inner = start + tl.arange(0, INNER)
        own = ((inner // rank) % count)[None, :] == agent[:, None]
        own = own & (row < rows)[:, None] & (inner < columns)[None, :]
        low = tl.load(base + width + inner[None, :], mask=own, other=0.0)
        part = tl.load(up + inner[:, None] * up_stride + at[None, :],
                       mask=(inner < columns)[:, None] & (at < width)[None, :], other=0.0)  # fmt: skip
        total += tl.dot(low, part, input_precision="ieee")
    inside = (row < rows)[:, None] & (at < width)[None, :]
    old = tl.load(base + at[None, :], mask=inside, other=0.0)
    tl.store(base + at[None, :], (old.to(tl.float32) + total).to(old.dtype), mask=inside)


def rotate_and_store(
    qkv: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, slots: Tensor, keys: Tensor, values: Tensor, heads: int
) -> Tensor:
    """Rotate queries and keys, put keys and values into the cache, and return queries; see `plain_ops`."""
    kv_heads, width = keys.shape[1], keys.shape[3]
    q = torch.empty(len(qkv), heads, width, dtype=qkv.dtype, device=qkv.device)
    _rotate_and_store[(len(qkv),)](
        qkv, cos, sin, positions, slots, keys, values, q, qkv.stride(0), keys.stride(0), keys.stride(1), heads,
        kv_heads, width, width // 2, triton.next_power_of_2(heads + 2 * kv_heads))  # fmt: skip
    return q


@triton.jit
def _rotate_and_store(qkv, cos, sin, positions, slots, keys, values, q, row_stride, slot_stride, head_stride, heads,
                      kv_heads, WIDTH: tl.constexpr, HALF: tl.constexpr, HEADS: tl.constexpr):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    position, slot = tl.load(positions + row), tl.load(slots + row)
    head, at = tl.arange(0, HEADS)[:, None], tl.arange(0, HALF)[None, :]
    inside = (head < heads + 2 * kv_heads) & (at < HALF)
    source = qkv + row * row_stride + head * WIDTH + at
    first, second = tl.load(source, mask=inside, other=0.0), tl.load(source + HALF, mask=inside, other=0.0)
    c = tl.load(cos + position * WIDTH + at).to(tl.float32)
    s = tl.load(sin + position * WIDTH + at).to(tl.float32)
    turned = head < heads + kv_heads
    a, b = first.to(tl.float32), second.to(tl.float32)
    first = tl.where(turned, (a * c - b * s).to(first.dtype), first)
    second = tl.where(turned, (b * c + a * s).to(second.dtype), second)
    is_q = (head < heads) & (at < HALF)
    target = q + row * heads * WIDTH + head * WIDTH + at
    tl.store(target, first, mask=is_q)
    tl.store(target + HALF, second, mask=is_q)
    place = slot.to(tl.int64) * slot_stride + position * WIDTH + at
    is_key = (head >= heads) & turned & (at < HALF)
    target = keys + place + (head - heads) * head_stride
    tl.store(target, first, mask=is_key)
    tl.store(target + HALF, second, mask=is_key)
    is_value = (head >= heads + kv_heads) & inside
    target = values + place + (head - heads - kv_heads) * head_stride
    tl.store(target, first, mask=is_value)
    tl.store(target + HALF, second, mask=is_value)


def attend(q: Tensor, keys: Tensor, values: Tensor, slots: Tensor, lengths: Tensor) -> Tensor:
    """Return attention of one new token in each row over its slot; see `plain_ops`."""
    rows, heads, width = q.shape
    kv_heads = keys.shape[1]
    out = torch.empty(rows, heads * width, dtype=q.dtype, device=q.device)
    group = heads // kv_heads
    _attend[(rows, kv_heads)](
        q, keys, values, out, slots, lengths, width**-0.5, keys.stride(0), keys.stride(1), heads, group, width,
        max(16, triton.next_power_of_2(group)), 64, num_warps=4, num_stages=3)  # fmt: skip
    return out


@triton.jit
def _attend(q, keys, values, out, slots, lengths, scale, slot_stride, head_stride, heads, group,
            WIDTH: tl.constexpr, GROUP: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    row, kv_head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    slot = tl.load(slots + row).to(tl.int64)
    length = tl.load(lengths + slot).to(tl.int32) + 1
    head, at = tl.arange(0, GROUP), tl.arange(0, WIDTH)
    mine = (row * heads + kv_head * group + head)[:, None] * WIDTH + at[None, :]
    queries = tl.load(q + mine, mask=(head < group)[:, None], other=0.0)
    base = slot * slot_stride + kv_head * head_stride
    top = tl.full((GROUP,), -float("inf"), tl.float32)
    weight = tl.zeros((GROUP,), tl.float32)
    total = tl.zeros((GROUP, WIDTH), tl.float32)
    for start in range(0, length, BLOCK):
        place = start + tl.arange(0, BLOCK)
        inside = (place < length)[:, None]
        k = tl.load(keys + base + place[:, None] * WIDTH + at[None, :], mask=inside, other=0.0)
        v = tl.load(values + base + place[:, None] * WIDTH + at[None, :], mask=inside, other=0.0)
        score = tl.dot(queries, tl.trans(k), input_precision="ieee") * scale
        score = tl.where((place < length)[None, :], score, -float("inf"))
        higher = tl.maximum(top, tl.max(score, 1))
        p = tl.exp(score - higher[:, None])
        fade = tl.exp(top - higher)
        weight = weight * fade + tl.sum(p, 1)
        total = total * fade[:, None] + tl.dot(p.to(v.dtype), v, input_precision="ieee")
        top = higher
    total = total / weight[:, None]
    tl.store(out + mine, total.to(queries.dtype), mask=(head < group)[:, None])


def advance(logits: Tensor, slots: Tensor, state: dict[str, Tensor], stops: Tensor) -> None:
    """Draw the next token of each row and store it in the state of its slot; see `plain_ops`."""
    s = state
    block, warps = (8192, 16) if logits.shape[1] > 65536 else (4096, 8)
    _advance[(len(logits),)](
        logits, slots, s["tokens"], s["lengths"], s["steps"], s["limits"], s["done"], s["draws"], s["output"],
        s["logprobs"], s["temperature"], s["top_k"], s["top_p"], stops, logits.stride(0), logits.shape[1],
        s["output"].shape[1], len(stops), logits.dtype == torch.bfloat16, block, num_warps=warps)  # fmt: skip


@triton.jit
def _key(x, SHORT: tl.constexpr):
    """Return an integer in the order of the logits; of bfloat16 the upper half suffices."""
    bits = x.to(tl.int32, bitcast=True)
    bits = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    if SHORT:  # noqa: SIM108 - Triton compiles one of them
        key = bits >> 16
    else:
        key = bits.to(tl.int64)  # for a difference of two
    return key


@triton.jit
def _weight(x, top, rate):
    """Return weights relative to the likeliest token's; `rate` is log2(e) / temperature."""
    return tl.exp2((x - top) * rate)


@triton.jit
def _mass(row, size, top, rate, low, SHORT: tl.constexpr, BLOCK: tl.constexpr):
    """Return the weight and the number of the tokens above a border, and of those at it."""
    above, at_border = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    num_above, num_at = tl.zeros((BLOCK,), tl.int32), tl.zeros((BLOCK,), tl.int32)
    for start in range(0, size, BLOCK):
        at = start + tl.arange(0, BLOCK)
        x = tl.load(row + at, mask=at < size, other=-float("inf")).to(tl.float32)
        w, key = _weight(x, top, rate), _key(x, SHORT)
        higher, equal = (at < size) & (key > low), (at < size) & (key == low)
        above += tl.where(higher, w, 0.0)
        at_border += tl.where(equal, w, 0.0)
        num_above += higher.to(tl.int32)
        num_at += equal.to(tl.int32)
    return tl.sum(above, 0), tl.sum(num_above, 0), tl.sum(at_border, 0), tl.sum(num_at, 0)


@triton.jit
def _masses(row, size, top, rate, low, middle, high, SHORT: tl.constexpr, BLOCK: tl.constexpr):
    """Return the weights of the tokens at or above each of three borders, all above that of no token."""
    over_low, over_middle = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    over_high = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, size, BLOCK):
        at = start + tl.arange(0, BLOCK)
        x = tl.load(row + at, mask=at < size, other=-float("inf")).to(tl.float32)
        w, key = _weight(x, top, rate), _key(x, SHORT)
        over_low += tl.where(key >= low, w, 0.0)
        over_middle += tl.where(key >= middle, w, 0.0)
        over_high += tl.where(key >= high, w, 0.0)
    return tl.sum(over_low, 0), tl.sum(over_middle, 0), tl.sum(over_high, 0)


@triton.jit
def _first_k(row, size, top, rate, floor, high, whole, k, SHORT: tl.constexpr, BLOCK: tl.constexpr):
    """Return the lowest border with k tokens at or above it, how many of those at it are kept, and their weight."""
    low, keep, goal = floor - 1, tl.full((), 0, tl.int32), whole
    a, b = floor - 1, high
    while b - a > 1:
        middle = a + (b - a) // 2
        _, n, _, n_ties = _mass(row, size, top, rate, middle, SHORT, BLOCK)
        if n + n_ties >= k:
            a = middle
        else:
            b = middle
    if a >= floor:
        upper, n, ties_weight, n_ties = _mass(row, size, top, rate, a, SHORT, BLOCK)
        low, keep = a, k - n
        goal = upper + ties_weight * (k - n) / n_ties
    return low, keep, goal


@triton.jit
def _nucleus(row, size, top, rate, low, keep, goal, floor, high, p, SHORT: tl.constexpr, BLOCK: tl.constexpr):
    """Return the same for the fewest tokens that have a share p of the weight, among those that top-k has left."""
    # Tokens this far down weigh less than the share that is left out, all together.
    lowest = top + tl.log2((1 - p) * goal / size) / rate
    a, b = tl.maximum(tl.maximum(low, floor), _key(lowest, SHORT) - 1), high
    wanted = goal * p
    while b - a > 1:
        part = (b - a + 3) // 4
        one, two, three = a + part, a + 2 * part, a + 3 * part
        first, second, third = _masses(row, size, top, rate, one, two, three, SHORT, BLOCK)
        if third >= wanted:
            a = three
        elif second >= wanted:
            a, b = two, tl.minimum(b, three)
        elif first >= wanted:
            a, b = one, tl.minimum(b, two)
        else:
            b = tl.minimum(b, one)
    upper, _, ties_weight, n_ties = _mass(row, size, top, rate, a, SHORT, BLOCK)
    each = ties_weight / tl.maximum(n_ties, 1)
    ties = tl.minimum(tl.maximum(tl.ceil((wanted - upper) / each).to(tl.int32), 1), n_ties)
    if a == low:
        ties = tl.minimum(ties, keep)
    return a, ties, upper + ties * each


@triton.jit
def _draw(row, size, top, rate, low, keep, u, SHORT: tl.constexpr, BLOCK: tl.constexpr):
    """Return the token at which the weights of those that are kept, in the order of their numbers, exceed u."""
    reached = 0.0
    tied = 0
    chosen = 2147483647
    last = -1
    for start in range(0, size, BLOCK):
        at = start + tl.arange(0, BLOCK)
        x = tl.load(row + at, mask=at < size, other=-float("inf")).to(tl.float32)
        key = _key(x, SHORT)
        tie = ((at < size) & (key == low)).to(tl.int32)
        ok = (at < size) & ((key > low) | ((tie == 1) & (tied + tl.cumsum(tie, 0) <= keep)))
        w = tl.where(ok, _weight(x, top, rate), 0.0)
        past = ok & (reached + tl.cumsum(w, 0) > u)
        chosen = tl.minimum(chosen, tl.min(tl.where(past, at, 2147483647), 0))
        last = tl.maximum(last, tl.max(tl.where(ok, at, -1), 0))
        reached += tl.sum(w, 0)
        tied += tl.sum(tie, 0)
    return tl.minimum(chosen, last)  # rounding may put the number past the last possible token


@triton.jit
def _advance(logits, slots, tokens, lengths, steps, limits, done, draws, output, logprobs, temperature, top_k, top_p,
             stops, row_stride, size, width, num_stops, SHORT: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    slot = tl.load(slots + tl.program_id(0))
    if tl.load(done + slot) == 0:
        row = logits + tl.program_id(0).to(tl.int64) * row_stride
        step = tl.load(steps + slot)
        t = tl.load(temperature + slot)
        # The likeliest token, and the sums.
        best = tl.full((BLOCK,), -float("inf"), tl.float32)
        where = tl.full((BLOCK,), 2147483647, tl.int32)
        for start in range(0, size, BLOCK):
            at = start + tl.arange(0, BLOCK)
            x = tl.load(row + at, mask=at < size, other=-float("inf")).to(tl.float32)
            where = tl.where(x > best, at, where)
            best = tl.maximum(best, x)
        top = tl.max(best, 0)
        chosen = tl.min(tl.where(best == top, where, 2147483647), 0)
        rate = 1.4426950408889634 / tl.where(t > 0, t, 1.0)
        plain, warmed = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
        for start in range(0, size, BLOCK):
            at = start + tl.arange(0, BLOCK)
            x = tl.load(row + at, mask=at < size, other=-float("inf")).to(tl.float32)
            plain += tl.exp(x - top)
            warmed += _weight(x, top, rate)
        if t > 0:
            k = tl.load(top_k + slot).to(tl.int32)
            p = tl.load(top_p + slot)
            # Of 40 * t below the likeliest token nothing is ever drawn.
            floor = _key(top - 40.0 * t, SHORT)
            high = _key(top, SHORT) + 1
            low, keep, goal = floor - 1, tl.full((), 0, tl.int32), tl.sum(warmed, 0)
            if k > 0:
                low, keep, goal = _first_k(row, size, top, rate, floor, high, goal, k, SHORT, BLOCK)
            if p < 1:
                low, keep, goal = _nucleus(row, size, top, rate, low, keep, goal, floor, high, p, SHORT, BLOCK)
            u = tl.load(draws + slot * width + step) * goal
            chosen = _draw(row, size, top, rate, low, keep, u, SHORT, BLOCK)
        logprob = tl.load(row + chosen).to(tl.float32) - top - tl.log(tl.sum(plain, 0))
        ended = step + 1 >= tl.load(limits + slot)
        for n in range(0, num_stops):
            ended = ended | (tl.load(stops + n) == chosen)
        tl.store(output + slot * width + step, chosen.to(tl.int64))
        tl.store(logprobs + slot * width + step, logprob)
        tl.store(tokens + slot, chosen.to(tl.int64))
        tl.store(steps + slot, step + 1)
        tl.store(lengths + slot, tl.load(lengths + slot) + 1)
        tl.store(done + slot, ended)
