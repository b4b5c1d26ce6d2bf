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
    """Add each row's low-rank part to its output, in place; see `plain_ops`. The rank is a multiple of 16.

    Few agents should meet in 64 neighbouring rows, since the others' columns are left out.
    """
    rows, (columns, _) = len(both), up.shape
    block = 16 if rows <= 16 else 64
    _add_adapters[(triton.cdiv(rows, block), triton.cdiv(width, 64))](
        both, up, agents, rows, width, columns, both.stride(0), up.stride(0), rank, count, block, 64
    )


@triton.jit
def _add_adapters(both, up, agents, rows, width, columns, row_stride, up_stride, rank, count,
                  ROWS: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    at = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    agent = tl.load(agents + row, mask=row < rows, other=-1).to(tl.int32)
    base = both + row.to(tl.int64)[:, None] * row_stride
    first = tl.maximum(tl.min(tl.where(row < rows, agent, count), 0), 0)
    last = tl.max(agent, 0)
    total = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for layer in range(0, columns // (rank * count)):
        for start in range((layer * count + first) * rank, (layer * count + last + 1) * rank, 16):
            inner = start + tl.arange(0, 16)
            own = (agent == start // rank % count)[:, None]
            low = tl.load(base + width + inner[None, :], mask=own, other=0.0)
            part = tl.load(up + inner[:, None] * up_stride + at[None, :], mask=(at < width)[None, :], other=0.0)
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


def attend(
    qkv: Tensor, cos: Tensor, sin: Tensor, slots: Tensor, keys: Tensor, values: Tensor, lengths: Tensor, heads: int
) -> Tensor:
    """Store one new token in each row and return its attention over its slot; see `plain_ops`."""
    kv_heads, width = keys.shape[1], keys.shape[3]
    out = torch.empty(len(qkv), heads * width, dtype=qkv.dtype, device=qkv.device)
    group = heads // kv_heads
    _attend[(len(qkv), kv_heads)](
        qkv, cos, sin, keys, values, out, slots, lengths, width**-0.5, qkv.stride(0), keys.stride(0), keys.stride(1),
        heads, kv_heads, group, width, max(16, triton.next_power_of_2(group)), 64, num_warps=4,
        num_stages=3)  # fmt: skip
    return out


@triton.jit
def _rotated(source, c, s, at, mask, WIDTH: tl.constexpr):
    """Return rows of one position, rotated; `c` and `s` are its cosines and sines."""
    other = (at + WIDTH // 2) % WIDTH
    x, y = tl.load(source + at, mask=mask, other=0.0), tl.load(source + other, mask=mask, other=0.0)
    turned = x.to(tl.float32) * c + tl.where(at < WIDTH // 2, -1.0, 1.0) * y.to(tl.float32) * s
    return turned.to(x.dtype)


@triton.jit
def _attend(qkv, cos, sin, keys, values, out, slots, lengths, scale, row_stride, slot_stride, head_stride, heads,
            kv_heads, group, WIDTH: tl.constexpr, GROUP: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    row, kv_head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    slot = tl.load(slots + row).to(tl.int64)
    length = tl.load(lengths + slot).to(tl.int32)
    head, at = tl.arange(0, GROUP), tl.arange(0, WIDTH)
    c = tl.load(cos + length * WIDTH + at).to(tl.float32)
    s = tl.load(sin + length * WIDTH + at).to(tl.float32)
    source, mine = qkv + row * row_stride, (head < group)[:, None]
    first = source + (kv_head * group + head)[:, None] * WIDTH
    queries = _rotated(first, c[None, :], s[None, :], at[None, :], mine, WIDTH)
    key = _rotated(source + (heads + kv_head) * WIDTH, c, s, at, at < WIDTH, WIDTH)
    value = tl.load(source + (heads + kv_heads + kv_head) * WIDTH + at)
    base = slot * slot_stride + kv_head * head_stride
    tl.store(keys + base + length * WIDTH + at, key)
    tl.store(values + base + length * WIDTH + at, value)
    top = tl.sum(queries.to(tl.float32) * key.to(tl.float32)[None, :], 1) * scale
    weight = tl.full((GROUP,), 1.0, tl.float32)
    total = tl.zeros((GROUP, WIDTH), tl.float32) + value.to(tl.float32)[None, :]
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
    target = out + (row * heads + kv_head * group + head)[:, None] * WIDTH + at[None, :]
    tl.store(target, (total / weight[:, None]).to(queries.dtype), mask=mine)


def advance(logits: Tensor, slots: Tensor, state: dict[str, Tensor], stops: Tensor) -> None:
    """Draw the next token of each row and store it in the state of its slot; see `plain_ops`."""
    s = state
    _advance[(len(logits),)](
        logits, slots, s["tokens"], s["lengths"], s["steps"], s["limits"], s["done"], s["draws"], s["output"],
        s["logprobs"], s["temperature"], s["top_k"], s["top_p"], stops, logits.stride(0), logits.shape[1],
        s["output"].shape[1], len(stops), logits.dtype == torch.bfloat16, 8192, num_warps=16)  # fmt: skip


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
def _value(key, SHORT: tl.constexpr):
    """Return the logit with a key."""
    if SHORT:
        bits = key << 16
        bits = bits ^ ((bits >> 31) & 0x7FFF0000)
    else:
        bits = key.to(tl.int32)
        bits = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def _weight(x, top, rate):
    """Return weights relative to the likeliest token's; `rate` is log2(e) / temperature."""
    return tl.exp2(x * rate - top * rate)


@triton.jit
def _load(row, start, size, BLOCK: tl.constexpr):
    """Return a block of logits and their tokens; past the end they are never drawn."""
    at = start + tl.arange(0, BLOCK)
    return tl.load(row + at, mask=at < size, other=-float("inf")).to(tl.float32), at


@triton.jit
def _likeliest(row, size, BLOCK: tl.constexpr):
    """Return the highest logit and the first token that has it. The next block is loaded while one is looked at."""
    best, where = tl.full((BLOCK,), -float("inf"), tl.float32), tl.full((BLOCK,), 2147483647, tl.int32)
    x, at = _load(row, 0, size, BLOCK)
    for start in range(0, size, BLOCK):
        ahead, after = _load(row, start + BLOCK, size, BLOCK)
        where = tl.where(x > best, at, where)
        best = tl.maximum(best, x)
        x, at = ahead, after
    top = tl.max(best, 0)
    return top, tl.min(tl.where(best == top, where, 2147483647), 0)


@triton.jit
def _count(row, size, border, BLOCK: tl.constexpr):
    """Return the number of tokens at or above a border."""
    count = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, size, BLOCK):
        count += (_load(row, start, size, BLOCK)[0] >= border).to(tl.int32)
    return tl.sum(count, 0)


@triton.jit
def _masses(row, size, top, rate, low, middle, high, BLOCK: tl.constexpr):
    """Return the weights of the tokens at or above each of three borders."""
    over_low, over_middle = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    over_high = tl.zeros((BLOCK,), tl.float32)
    x, _ = _load(row, 0, size, BLOCK)
    for start in range(0, size, BLOCK):
        ahead, _ = _load(row, start + BLOCK, size, BLOCK)
        w = _weight(x, top, rate)
        over_low += tl.where(x >= low, w, 0.0)
        over_middle += tl.where(x >= middle, w, 0.0)
        over_high += tl.where(x >= high, w, 0.0)
        x = ahead
    return tl.sum(over_low, 0), tl.sum(over_middle, 0), tl.sum(over_high, 0)


@triton.jit
def _first_k(row, size, top, rate, floor, high, whole, k, SHORT: tl.constexpr, BLOCK: tl.constexpr):
    """Return the lowest border with k tokens at or above it, how many of those at it are kept, and all their weight."""
    a, b = floor - 1, high
    while b - a > 1:
        middle = a + (b - a) // 2
        if _count(row, size, _value(middle, SHORT), BLOCK) >= k:
            a = middle
        else:
            b = middle
    keep, goal = tl.full((), 0, tl.int32), whole
    if a >= floor:
        border = _value(a + 1, SHORT)
        keep = k - _count(row, size, border, BLOCK)
        above, _, _ = _masses(row, size, top, rate, border, border, border, BLOCK)
        goal = above + keep * _weight(_value(a, SHORT), top, rate)
    return a, keep, goal


@triton.jit
def _narrow(a, at_a, b, at_b, key, mass, wanted):
    """Move an end of the range [a, b) to a border inside it, with the weights at or above both ends."""
    up = (key > a) & (key < b) & (mass >= wanted)
    down = (key > a) & (key < b) & (mass < wanted)
    return tl.where(up, key, a), tl.where(up, mass, at_a), tl.where(down, key, b), tl.where(down, mass, at_b)


@triton.jit
def _nucleus(row, size, top, rate, a, keep, goal, b, p, one, at_one, two, at_two,
             SHORT: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """Return the same for the fewest tokens that have a share p of the weight, among those that top-k has left.

    The border is in [a, b). `one` and `two` are borders whose weights are known. Each pass takes three new ones: about
    where the weight is, if it grows evenly in the range, or at its quarters, if the last guess was wrong.
    """
    low, wanted = a, goal * p
    at_a, at_b, slow = goal, 0.0, 0
    # Tokens this far down weigh less than the share that is left out, all together.
    a = tl.maximum(a, _key(top + tl.log2((1 - p) * goal / size) / rate, SHORT) - 1)
    a, at_a, b, at_b = _narrow(a, at_a, b, at_b, one, at_one, wanted)
    a, at_a, b, at_b = _narrow(a, at_a, b, at_b, two, at_two, wanted)
    while b - a > 1:
        length, start = b - a, _value(a, SHORT)
        width = _value(b, SHORT) - start
        guess = start + width * (at_a - wanted) / (at_a - at_b)
        error = width * tl.minimum(0.2 * width * rate, 0.25)
        two = tl.where(slow > 0, a + length // 2, _key(guess, SHORT))
        two = tl.minimum(tl.maximum(two, a + 1), b - 1)
        one = tl.where(slow > 0, a + (length + 3) // 4, tl.minimum(_key(guess - error, SHORT), two - 1))
        three = tl.where(slow > 0, b - (length + 3) // 4, tl.maximum(_key(guess + error, SHORT), two + 1))
        first, second, third = _masses(
            row, size, top, rate, _value(one, SHORT), _value(two, SHORT), _value(three, SHORT), BLOCK
        )
        a, at_a, b, at_b = _narrow(a, at_a, b, at_b, one, first, wanted)
        a, at_a, b, at_b = _narrow(a, at_a, b, at_b, two, second, wanted)
        a, at_a, b, at_b = _narrow(a, at_a, b, at_b, three, third, wanted)
        slow = ((slow == 0) & (b - a > length // 4)).to(tl.int32)
    each = _weight(_value(a, SHORT), top, rate)
    ties = tl.maximum(tl.ceil((wanted - at_b) / each).to(tl.int32), 1)
    if a == low:
        ties = tl.minimum(ties, keep)
    return a, ties, at_b + ties * each


@triton.jit
def _kept(x, border, left):
    """Say which tokens of a block are kept: those above a border, and the first few at it."""
    tie = (x == border).to(tl.int32)
    return (x > border) | ((tie == 1) & (tl.cumsum(tie, 0) <= left))


@triton.jit
def _draw(row, size, top, rate, border, keep, u, BLOCK: tl.constexpr):
    """Return the token at which the weights of those that are kept, in the order of their numbers, exceed u."""
    each = _weight(border, top, rate)
    # Names that share a value before a loop are one variable in Triton 3.6, so none do.
    start, reached, left = 0, 0.0, keep
    block, before, left_before = 0, 0.0, 0  # of the last block with weight
    while (start < size) & (reached <= u):
        x, _ = _load(row, start, size, BLOCK)
        ties = tl.minimum(tl.sum((x == border).to(tl.int32), 0), left)
        weight = tl.sum(tl.where(x > border, _weight(x, top, rate), 0.0), 0) + ties * each
        block = tl.where(weight > 0, start, block)
        before = tl.where(weight > 0, reached, before)
        left_before = tl.where(weight > 0, left, left_before)
        reached += weight
        left -= ties
        start += BLOCK
    # Rounding may put u past the last token.
    x, at = _load(row, block, size, BLOCK)
    ok = _kept(x, border, left_before)
    past = ok & (before + tl.cumsum(tl.where(ok, _weight(x, top, rate), 0.0), 0) > u)
    return tl.minimum(tl.min(tl.where(past, at, 2147483647), 0), tl.max(tl.where(ok, at, -1), 0))


@triton.jit
def _advance(logits, slots, tokens, lengths, steps, limits, done, draws, output, logprobs, temperature, top_k, top_p,
             stops, row_stride, size, width, num_stops, SHORT: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    slot = tl.load(slots + tl.program_id(0))
    if tl.load(done + slot) == 0:
        row = logits + tl.program_id(0).to(tl.int64) * row_stride
        step = tl.load(steps + slot)
        t = tl.load(temperature + slot)
        top, chosen = _likeliest(row, size, BLOCK)
        rate = 1.4426950408889634 / tl.where(t > 0, t, 1.0)
        # Two borders where that of the nucleus often is between.
        one, two = _key(top - 4.0 * t, SHORT), _key(top - 1.5 * t, SHORT)
        all_tokens = -float("inf")
        whole, at_one, at_two = _masses(row, size, top, rate, all_tokens, _value(one, SHORT), _value(two, SHORT), BLOCK)
        plain = whole
        if t > 0:
            if t != 1:
                plain, _, _ = _masses(row, size, top, 1.4426950408889634, all_tokens, all_tokens, all_tokens, BLOCK)
            k = tl.load(top_k + slot).to(tl.int32)
            p = tl.load(top_p + slot)
            # Of 40 * t below the likeliest token nothing is ever drawn.
            floor, high = _key(top - 40.0 * t, SHORT), _key(top, SHORT) + 1
            border, keep, goal = floor - 1, tl.full((), 0, tl.int32), whole
            if k > 0:
                border, keep, goal = _first_k(row, size, top, rate, floor, high, goal, k, SHORT, BLOCK)
            if p < 1:
                border, keep, goal = _nucleus(row, size, top, rate, border, keep, goal, high, p, one, at_one, two,
                                              at_two, SHORT, BLOCK)  # fmt: skip
            u = tl.load(draws + slot * width + step) * goal
            chosen = _draw(row, size, top, rate, _value(border, SHORT), keep, u, BLOCK)
        logprob = tl.load(row + chosen).to(tl.float32) - top - tl.log(plain)
        ended = step + 1 >= tl.load(limits + slot)
        for n in range(0, num_stops):
            ended = ended | (tl.load(stops + n) == chosen)
        tl.store(output + slot * width + step, chosen.to(tl.int64))
        tl.store(logprobs + slot * width + step, logprob)
        tl.store(tokens + slot, chosen.to(tl.int64))
        tl.store(steps + slot, step + 1)
        tl.store(lengths + slot, tl.load(lengths + slot) + 1)
        tl.store(done + slot, ended)
