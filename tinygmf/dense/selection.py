"""The best k of many values, inside a program.

Sorting thousands of anchors takes hundreds of kernels. Finding the k-th largest value takes 32
counts, one for each bit, and the values that reach it are then located by counting, too.
"""

from __future__ import annotations

from tinygrad import Tensor, dtypes

from tinygmf.loops.sampling import take

BLOCK = 128  # values that are counted together
SIGN = 1 << 31


def best(values: Tensor, k: int) -> Tensor:
    """The places of the k largest of values (B, N) float32, k < N: (B, k) int32, not by size.

    Of equal values the first are taken. The places are in order, except that those of values equal
    to the smallest one taken come last.
    """
    keys = ordered_bits(values)
    least = kth_largest(keys, k)
    reach = Tensor.cat(keys > least, keys.eq(least), dim=1)  # (B, 2 N): above, then equal
    return (first_set(reach, k) % int(values.shape[1])).contiguous()


def ordered_bits(values: Tensor) -> Tensor:
    """Floats -> uint32 in the same order."""
    bits = values.contiguous().bitcast(dtypes.uint32)
    return (bits >= SIGN).where(bits ^ 0xFFFFFFFF, bits | SIGN).contiguous()


def kth_largest(keys: Tensor, k: int) -> Tensor:
    """(B, N) uint32 -> (B, 1): the largest number that at least k keys reach."""
    found = (keys[:, :1] * 0).contiguous()
    bit = (found + SIGN).contiguous()
    for _ in range(32):  # the same two kernels every time
        tried = found + bit
        enough = (keys >= tried).sum(1, keepdim=True) >= k
        found, bit = enough.where(tried, found).contiguous(), (bit >> 1).contiguous()
    return found


def first_set(flags: Tensor, k: int) -> Tensor:
    """The places of the first k set flags in each row of (B, N): (B, k) int32, in order."""
    batch, n = map(int, flags.shape)
    blocks = -(-n // BLOCK)
    flags = flags.cast(dtypes.int32).pad((None, (0, blocks * BLOCK - n)))
    flags = flags.reshape(batch * blocks, 1, BLOCK).contiguous()
    place = Tensor.arange(BLOCK)
    counts = (flags * (place <= place.reshape(BLOCK, 1))).sum(2).contiguous()  # up to each place
    totals = counts[:, -1].reshape(batch, 1, blocks).contiguous()
    numbers = Tensor.arange(blocks)
    ends = (totals * (numbers <= numbers.reshape(blocks, 1))).sum(2).contiguous()  # (B, blocks)

    wanted = Tensor.arange(k).reshape(1, k, 1) + 1
    passed = ends.reshape(batch, 1, blocks) < wanted  # (B, k, blocks)
    block = passed.sum(2).cast(dtypes.int32).contiguous()
    rest = (wanted.squeeze(2) - (passed * totals).sum(2)).reshape(batch, k, 1)
    row = block + Tensor.arange(batch).reshape(batch, 1) * blocks
    inside = take(counts, row.reshape(-1).cast(dtypes.int32).contiguous()).reshape(batch, k, BLOCK)
    return (block * BLOCK + (inside < rest).sum(2)).cast(dtypes.int32)
