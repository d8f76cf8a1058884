"""GroupMixFormer, leaf to whole: stem, patch embedding, block, four stages, head.

Source: arXiv 2311.15157, section 3; names are those of the published checkpoints.
Shapes: an image is [3][H][W]; stage i has maps of D_i channels at a stride of 4, 8, 16 and 32.
"""

from . import ops
from .config import VARIANTS, Config, config_of
from .gma import group_mix_attention
from .ops import Map, Nested, Tokens, Vector
from .parameters import Parameters

__all__ = ["VARIANTS", "Config", "Network"]

SMALLEST_SIDE = 32  # the last stage's stride: a smaller image would leave it less than one token


def stem(p: Parameters, x: Map) -> Map:
    """Two 3x3 convolutions of stride 2: [3][H][W] -> [D_1][H/4][W/4], sizes rounded up."""
    for i in (1, 2):
        x = p.conv(f"proj{i}", x, stride=2)
        x = p.batch_norm(f"norm{i}", x)
        x = p.hardswish(f"act{i}", x)
    return p.output(x)


def patch_embedding(p: Parameters, x: Map, stride: int) -> tuple[Tokens, int]:
    """Halve the map (stride 2) and widen it: [C][H][W] -> tokens [N][D], and the width W."""
    x = p.separable_conv("proj", x, stride)  # [D][ceil(H/stride)][ceil(W/stride)]
    x = p.batch_norm("norm", x)
    x = p.hardswish("act", x)
    return p.output(ops.to_tokens(x)), len(x[0][0])


def position_encoding(p: Parameters, x: Tokens, width: int) -> Tokens:
    """x + depthwise3x3(x), [N][D]: a token's position, learned from its neighbors.

    The paper uses no position encoding; the published weights have this one.
    """
    around = p.depthwise_conv("proj", ops.to_map(x, width))  # [D][H][W]
    return p.output(ops.add(x, ops.to_tokens(around)))


def mlp(p: Parameters, x: Tokens) -> Tokens:
    """Each token on its own, through a wider layer and back: [N][D] -> [N][D]."""
    x = p.linear("fc1", x)  # [N][ratio * D]
    x = p.gelu("act", x)
    return p.output(p.linear("fc2", x))  # [N][D]


def block(p: Parameters, x: Tokens, width: int) -> Tokens:
    """A GMA block: position, attention and MLP, each a residual branch: [N][D] -> [N][D]."""
    x = position_encoding(p.at("cpe"), x, width)
    x = ops.add(x, group_mix_attention(p.at("att"), p.layer_norm("norm1", x), width))
    x = ops.add(x, mlp(p.at("mlp"), p.layer_norm("norm2", x)))
    return p.output(x)


def stage(p: Parameters, x: Tokens, width: int, depth: int) -> Tokens:
    """The blocks of one stage in turn: [N][D] -> [N][D]."""
    for j in range(depth):
        x = block(p.at(f"gma_stage.{j}"), x, width)
    return p.output(x)


def pyramid(p: Parameters, image: Map, config: Config) -> list[Map]:
    """Stem and four stages: [3][H][W] -> four maps [D_i][h][w] at strides 4, 8, 16 and 32."""
    x = stem(p.at("conv_stem"), image)
    maps = []
    for i, depth in enumerate(config.serial_depths):
        stride = 1 if i == 0 else 2  # the stem's output already has stage 1's stride
        tokens, width = patch_embedding(p.at(f"patch_embed_layers.{i}"), x, stride)
        tokens = stage(p.at(f"groupmixformer_backbone.{i}"), tokens, width, depth)
        x = ops.to_map(tokens, width)
        maps.append(x)
    return maps


def head(p: Parameters, x: Map) -> Vector:
    """Normalize the last map, average it and classify: [D_4][h][w] -> [classes]."""
    pooled = ops.global_average(p.batch_norm("norm4", x))  # [D_4]
    [logits] = ops.linear([pooled], p.tensor("head.weight"), p.tensor("head.bias"))
    return p.output(logits, "head")


class Network:
    """A GroupMixFormer for inference, built from its weights: checkpoint name -> nested lists.

    The configuration is inferred from the weights. Raises ValueError, in one line, if a tensor is
    missing, unknown, misshapen or not finite.

    An image is [3][H][W] of normalized floats (see `picture.normalize`), H and W at least 32;
    anything else raises ValueError.
    """

    def __init__(self, weights: dict[str, Nested]):
        self.config = config_of(weights)
        self.weights = weights

    def __call__(self, image: Map) -> Vector:
        """The logits of an image: [3][H][W] -> [classes]."""
        return self.head(self.features(image)[-1])

    def features(self, image: Map) -> list[Map]:
        """[3][H][W] -> four maps [D_i][ceil(H/s)][ceil(W/s)], s = 4, 8, 16, 32."""
        _check_image(image)
        return pyramid(Parameters(self.weights), image, self.config)

    def head(self, last_map: Map) -> Vector:
        """The logits of the last map of `features`: [D_4][h][w] -> [classes]."""
        return head(Parameters(self.weights), last_map)

    def trace(self, image: Map) -> dict[str, Nested]:
        """Every module's output under its checkpoint name, in the order of computation.

        Maps are [C][H][W] ([3][C][H][W] where q, k and v go through one layer), tokens [N][D],
        heads [heads][N][head_dim]. The aggregator has two outputs: `...aggregator#0` holds
        q, k and v [3][heads][N][head_dim], `...aggregator#1` the non-attention branch [N][D/5].
        """
        _check_image(image)
        outputs: dict[str, Nested] = {}
        p = Parameters(self.weights, outputs)
        head(p, pyramid(p, image, self.config)[-1])
        return outputs


def _check_image(image: Map) -> None:
    if len(image) != 3:
        raise ValueError(f"image: expected 3 channels, [3][H][W], found {len(image)}")
    height = len(image[0])
    widths = {len(row) for channel in image for row in channel}
    if len(widths) > 1 or any(len(channel) != height for channel in image):
        raise ValueError("image: expected rows of one length, channels of one height, found others")
    width = max(widths, default=0)
    if min(height, width) < SMALLEST_SIDE:
        raise ValueError(
            f"image: expected at least {SMALLEST_SIDE} x {SMALLEST_SIDE} pixels, "
            f"found {width} x {height}; enlarge it"
        )
