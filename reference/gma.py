"""Group-Mix Attention (GMA), the paper's contribution, step by step.

Source: "Advancing Vision Transformers with Group-Mix Attention", arXiv 2311.15157, section 3.

Self-attention compares tokens with tokens. In GMA *groups* of neighboring tokens take part too:
Q, K and V are cut into segments of channels, and in three of them each token is replaced by a
*group proxy*, a summary of the tokens around it.

What to know first: a head never leaves its segment. Heads 1 and 2 compare tokens with tokens, 3 and
4 groups of 3x3 with groups of 3x3, and so on. The token-to-group correlations that the paper speaks
of arise one step later: the ensemble layer, and it alone, joins the segments, and the next block
makes its tokens and its groups from the mixture.

Shapes: N = H * W tokens of D channels; `heads` is always 8; head_dim = (4D/5) / 8 = D/10.
Where the published weights differ from the paper, a comment says so.
"""

from . import ops
from .ops import Map, Tokens
from .parameters import Parameters

HEADS = 8
SEGMENTS = 5  # one of tokens, three of group proxies, one for the non-attention branch
POSITION_HEADS = (2, 3, 3)  # heads that see a 3x3, a 5x5 and a 7x7 neighborhood of the values:
#                             not those that hold groups of these sizes, which are two each


def group_mix_attention(p: Parameters, x: Tokens, width: int) -> Tokens:
    """Group-Mix Attention of an image's tokens: [N][D] -> [N][D].

    `width` is W, the length of a row of tokens: groups are neighbors in the image.
    """
    # 1. Query, Key and Value: what a token looks for, what it is found by, what it contributes.
    qkv = p.linear("qkv", x)  # [N][3D]

    # 2. Group aggregation: tokens become group proxies; a fifth of the channels skips attention.
    (q, k, v), non_attention = aggregate(p.at("aggregator"), qkv, width)  # [heads][N][head_dim] x 3

    # 3. Attention, head by head: a head holds tokens, or proxies of one size, and never both. The
    #    scale keeps the sums moderate. The published one assumes D/8 channels per head (rounded
    #    down); a head has D/10, but the weights were trained with this scale.
    scale = (len(x[0]) // HEADS) ** -0.5
    attended = [attend(*head, scale) for head in zip(q, k, v, strict=True)]
    # attended: [heads][N][head_dim]

    # 4. Relative positions of values: a term that the published weights have and the paper lacks.
    position = relative_position(p.at("crpe"), q, v, width)  # [heads][N][head_dim]
    mixed = [ops.add(*head) for head in zip(attended, position, strict=True)]

    # 5. The ensemble layer: one linear layer combines the heads and the non-attention branch. Here,
    #    and nowhere before, tokens meet groups.
    together = ops.join([*mixed, non_attention])  # [N][4D/5 + D/5] = [N][D]
    return p.output(p.linear("proj", together))  # [N][D]


def aggregate(p: Parameters, qkv: Tokens, width: int) -> tuple[list[list[Tokens]], Tokens]:
    """Split Q, K and V into five segments and aggregate groups in four of them.

    [N][3D] -> the mixed Q, K and V, [3][heads][N][head_dim], and the non-attention branch [N][D/5].
    Q, K and V share one set of weights, so that they are grouped alike and stay comparable.
    """
    # Groups are neighbors in two dimensions, so the tokens become a map again.
    channels = ops.to_map(qkv, width)  # [3D][H][W]

    # Split uniformly: channels into Q, K and V, and each of these into five segments.
    query, key, value = (ops.cut(part, SEGMENTS) for part in ops.cut(channels, 3))
    segments = [list(three) for three in zip(query, key, value, strict=True)]
    # segments: [5][3][D/5][H][W], the 3 being Q, K and V

    # The first segment remains the tokens themselves (in the paper, an identity mapping;
    # in the published weights, normalization and activation, as in the other segments).
    tokens = p.hardswish("act0", p.batch_norm("norm0", segments[0]))  # [3][D/5][H][W]

    # The next three become group proxies of 3x3, 5x5 and 7x7 tokens: objects in an image have
    # various sizes, so groups do, too.
    proxies = [group_proxies(p, i, segments[i]) for i in (1, 2, 3)]  # 3 x [3][D/5][H][W]

    # Tokens and proxies, concatenated for Q, K and V in turn, are what the attention sees.
    mixtures = [[*t, *a, *b, *c] for t, a, b, c in zip(tokens, *proxies, strict=True)]
    # mixtures: [3][4D/5][H][W]
    heads = p.output([split_heads(mixture) for mixture in mixtures], part=0)
    # heads: [3][heads][N][head_dim]; two heads of tokens, and two of each group size

    branch = p.output(non_attention_branch(p.at("agg0"), segments[4]), part=1)  # [N][D/5]
    return heads, branch


def group_proxies(p: Parameters, i: int, segment: list[Map]) -> list[Map]:
    """Aggregator i replaces each token by a proxy of its group: [3][D/5][H][W], same shape.

    The sliding window has 3, 5 or 7 tokens a side and moves by one token, so that each token has
    a proxy in its place.
    """
    x = p.separable_conv(f"agg{i}", segment)  # [3][D/5][H][W]
    x = p.batch_norm(f"norm{i}", x)
    return p.hardswish(f"act{i}", x)


def non_attention_branch(p: Parameters, segment: list[Map]) -> Tokens:
    """The fifth segments of Q, K and V, aggregated without attention: [3][D/5][H][W] -> [N][D/5].

    A path for local detail that attention would blur: one convolution mixes Q, K and V.
    """
    q, k, v = segment
    x = p.separable_conv("conv", [*q, *k, *v])  # [3D/5][H][W] -> [D/5][H][W]
    x = p.layer_norm("norm", ops.to_tokens(x), eps=1e-5)  # [N][D/5]
    return p.output(p.hardswish("act", x))  # [N][D/5]


def split_heads(x: Map) -> list[Tokens]:
    """[4D/5][H][W] -> [heads][N][head_dim]."""
    return [ops.to_tokens(head) for head in ops.cut(x, HEADS)]


def attend(q: Tokens, k: Tokens, v: Tokens, scale: float) -> Tokens:
    """The attention of one head: three of [N][head_dim] -> [N][head_dim].

    The paper writes softmax attention, softmax(QKᵀ/√d) V. The published weights hold linear
    attention, whose map is Q softmax(K)ᵀ: N x N numbers, applied to V. Multiplied in the other
    order, Q (softmax(K)ᵀ V), the result is the same, the matrix in between is only
    head_dim x head_dim, and the cost grows with N instead of N squared.
    """
    # The softmax runs over the tokens: each channel of K says where in the image to look.
    where = [ops.softmax(channel) for channel in ops.transpose(k)]  # [head_dim][N], rows sum to 1

    # What is found there: each channel of V, averaged with the weights of each channel of K.
    found = [[ops.dot(channel, places) for places in where] for channel in ops.transpose(v)]
    # found: [head_dim of V][head_dim of K], which is (softmax(K)ᵀ V)ᵀ

    # Each query combines what was found, weighted by its own channels.
    return [[scale * value for value in token] for token in ops.linear(q, found)]  # [N][head_dim]


def relative_position(p: Parameters, q: list[Tokens], v: list[Tokens], width: int) -> list[Tokens]:
    """Convolutional relative position encoding: Q times a convolution of V.

    q and v [heads][N][head_dim] -> [heads][N][head_dim]. The convolution weighs each value by
    where it lies relative to the query, over 3x3, 5x5 or 7x7 tokens according to the head.
    """
    maps = [ops.to_map(head, width) for head in v]  # [heads][head_dim][H][W]
    nearby: Map = []
    for i, count in enumerate(POSITION_HEADS):
        heads, maps = maps[:count], maps[count:]  # the next `count` heads
        channels = [channel for head in heads for channel in head]  # [count * head_dim][H][W]
        nearby += p.depthwise_conv(f"conv_list.{i}", channels)
    # nearby: [4D/5][H][W]
    around = split_heads(nearby)  # [heads][N][head_dim]
    return p.output([ops.multiply(*head) for head in zip(q, around, strict=True)])
