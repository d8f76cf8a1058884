"""What Group-Mix Attention does with a picture: responses, attention and group proxies, as arrays.

Stages and blocks are counted from 1, as in the paper; positions are pixels (y, x) of the picture
that the network sees. `figures.py` draws what is computed here. You look at one block at a time:

    [seen] = observe(model, pictures, stage=3, block=5)
    seen.responses()                    # the maps of the paper's figure
    seen.attention_rows([(112, 96)])    # what that place attends to, head by head
    seen.before_and_after(kernel=7)     # tokens, and the group proxies made from them
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tinygrad import Tensor, dtypes

from tinygmf.config import NUM_HEADS, STAGES, STRIDES, GroupMixFormerConfig
from tinygmf.engine.program_cache import load_or_compile, program_key
from tinygmf.gma import GroupMixAttention, Size
from tinygmf.layers import Module, record
from tinygmf.model import GroupMixFormer
from tinygmf.tensors import tensor_from_numpy

KERNELS = (3, 5, 7)  # of the aggregators: the side of a group's window, in tokens
BRANCHES = ("tokens", "groups of 3x3", "groups of 5x5", "groups of 7x7")  # two heads each
PANELS = ("ensemble layer", *BRANCHES, "non-attention")
FEW = 8  # tokens per side, below which a map is too coarse to look at

Position = tuple[int, int]  # (y, x) in pixels


def head_label(head: int) -> str:
    """What a head, 0 to 7, compares with what."""
    branch = BRANCHES[head // 2]
    return f"head {head + 1}: {branch} to {branch.replace('groups of ', '')}"


def rms(x: np.ndarray, axis: int | tuple[int, ...]) -> np.ndarray:
    """The root of the mean square over `axis`: how strong a response is, whatever its sign."""
    return np.sqrt(np.square(x).mean(axis))


@dataclass(frozen=True)
class Observation:
    """One block of the network at work on one picture. N = h * w tokens, D channels."""

    stage: int
    block: int
    picture_size: Size  # (H, W) in pixels
    size: Size  # (h, w) in tokens
    qkv: np.ndarray  # (3, N, D), before the aggregator
    mixed: np.ndarray  # (3, heads, N, head_dim): Q, K and V of tokens and group proxies
    non_attention: np.ndarray  # (N, D/5)
    ensemble: np.ndarray  # (N, D), what the attention adds to the tokens

    @property
    def stride(self) -> int:
        """Pixels from one token to the next."""
        return STRIDES[self.stage - 1]

    def token_at(self, query: Position) -> int:
        """The index of the token at a pixel (y, x); ValueError if that is outside the picture."""
        (y, x), (height, width) = query, self.picture_size
        if not (0 <= y < height and 0 <= x < width):
            raise ValueError(
                f"query: expected y from 0 to {height - 1} and x from 0 to {width - 1}, "
                f"found {y},{x}"
            )
        return y // self.stride * self.size[1] + x // self.stride

    def responses(self) -> dict[str, np.ndarray]:
        """Six maps (h, w) by the names of `PANELS`: root mean square over the channels, and for
        the four branches over Q, K and V too."""
        pairs = self.mixed.reshape(3, len(BRANCHES), 2, *self.mixed.shape[2:])
        branches = rms(pairs, (0, 2, 4))  # (4, N)
        maps = (rms(self.ensemble, 1), *branches, rms(self.non_attention, 1))
        return {name: m.reshape(self.size) for name, m in zip(PANELS, maps, strict=True)}

    def attention_rows(self, queries: Sequence[Position]) -> np.ndarray:
        """The rows of Q softmax(K)ᵀ for some queries: (queries, heads, h, w).

        Linear attention never forms this map, but its result equals a row of the map times V. Only
        the requested rows are computed, so that large maps fit in memory.
        """
        q, k, _ = self.mixed  # (heads, N, head_dim) each
        chosen = q[:, [self.token_at(query) for query in queries]]  # (heads, queries, head_dim)
        exponentials = np.exp(k - k.max(1, keepdims=True))
        places = exponentials / exponentials.sum(1, keepdims=True)  # softmax over the tokens
        rows = chosen @ places.transpose(0, 2, 1)  # (heads, queries, N)
        return rows.transpose(1, 0, 2).reshape(len(queries), NUM_HEADS, *self.size)

    def before_and_after(self, kernel: int) -> tuple[np.ndarray, np.ndarray]:
        """The channels that aggregator `kernel` (3, 5 or 7) reads, and the group proxies that it
        makes from them: two maps (h, w), root mean square over Q, K, V and channels."""
        branch = 1 + _aggregator_index(kernel)
        segments = np.split(self.qkv, 5, axis=2)  # five of (3, N, D/5)
        before = rms(segments[branch], (0, 2)).reshape(self.size)
        return before, self.responses()[BRANCHES[branch]]


def _aggregator_index(kernel: int) -> int:
    if kernel not in KERNELS:
        raise ValueError(f"kernel: expected one of {KERNELS}, found {kernel}")
    return KERNELS.index(kernel)


def choose_block(
    config: GroupMixFormerConfig, picture_size: Size, stage: int | None, block: int | None
) -> tuple[int, int]:
    """A stage and a block that exist, both counted from 1.

    By default the last stage with at least 8x8 tokens, and its fifth block or its last. Raises
    ValueError for a stage or block that does not exist.
    """
    if stage is None:
        fits = [i for i in range(STAGES) if min(picture_size) >= FEW * STRIDES[i]]
        stage = 1 + max(fits, default=0)
    if not 1 <= stage <= STAGES:
        raise ValueError(f"stage: expected 1 to {STAGES}, found {stage}")
    depth = config.serial_depths[stage - 1]
    block = min(5, depth) if block is None else block
    if not 1 <= block <= depth:
        raise ValueError(f"block: expected 1 to {depth} in stage {stage}, found {block}")
    return stage, block


def observe(
    model: GroupMixFormer, pictures: np.ndarray, stage: int | None = None, block: int | None = None
) -> list[Observation]:
    """One block at work on normalized pictures (B, 3, H, W): an observation of each picture.

    `stage` and `block` count from 1; `choose_block` chooses if they are not given. Raises
    ValueError for a stage or block that does not exist, and for pictures the network cannot take.
    """
    model.config.require_published_form("explain")
    pictures = np.asarray(pictures, np.float32)
    picture_size = pictures.shape[2:]
    stage, block = choose_block(model.config, picture_size or (0, 0), stage, block)
    attention = model.groupmixformer_backbone[stage - 1].gma_stage[block - 1].att
    qkv, mixed, non_attention, ensemble = run_until(model, attention, pictures)
    batch, n, dim = ensemble.shape
    qkv = qkv.reshape(batch, n, 3, dim).transpose(0, 2, 1, 3)  # (B, 3, N, D)
    size = tuple(-(-side // STRIDES[stage - 1]) for side in picture_size)  # (h, w), rounded up
    return [
        Observation(stage, block, picture_size, size, *arrays)
        for arrays in zip(qkv, mixed.swapaxes(0, 1), non_attention, ensemble, strict=True)
    ]


def run_until(
    model: GroupMixFormer, attention: GroupMixAttention, pictures: np.ndarray
) -> tuple[np.ndarray, ...]:
    """What the parts of one attention compute for pictures: qkv (B, N, 3D), mixed
    (3, B, heads, N, head_dim), the non-attention branch (B, N, D/5), the ensemble layer (B, N, D).

    The program stops at that block; it is compiled once for the shape of the pictures and kept, as
    a network's own program is.
    """
    weights = [tensor for tensor in model.state_dict().values() if dtypes.is_float(tensor.dtype)]
    x = tensor_from_numpy(pictures, weights[0].device)

    def compute(x: Tensor, weights: list[Tensor]) -> tuple[Tensor, ...]:
        """`weights` are the model's tensors: a program does not keep its arguments."""
        found: dict[Module, Any] = {}

        def note(module: Module, output: Any) -> None:
            if module in (attention.qkv, attention.aggregator, attention.proj):
                found[module] = output

        with record(note):
            model.forward_features(x)
        parts = (found[attention.qkv], *found[attention.aggregator], found[attention.proj])
        return tuple(part.contiguous().realize() for part in parts)

    names = {id(module): name for name, module in model.named_modules()}
    key = program_key(model.config, pictures.shape, observed=names[id(attention)])
    program = load_or_compile(key, compute, x, weights, device=x.device)
    return tuple(part.numpy() for part in program(x, weights))


def response_maps(
    model: GroupMixFormer, image: np.ndarray, stage: int | None = None, block: int | None = None
) -> dict[str, np.ndarray]:
    """`Observation.responses` of one normalized picture (3, H, W)."""
    return observe(model, image[None], stage, block)[0].responses()


def attention_rows(
    model: GroupMixFormer,
    image: np.ndarray,
    stage: int | None,
    block: int | None,
    queries: Sequence[Position],
) -> np.ndarray:
    """`Observation.attention_rows` of one normalized picture (3, H, W)."""
    return observe(model, image[None], stage, block)[0].attention_rows(queries)


# Group proxies, from the weights alone


def effective_kernel(
    model: GroupMixFormer, stage: int, block: int, kernel: int, of: str | None = None
) -> np.ndarray:
    """Aggregator `kernel` (3, 5 or 7) as one dense convolution: (D/5 out, channels in, k, k).

    It multiplies out the depthwise and 1x1 convolutions and BatchNorm's scale. With `of` ("q", "k"
    or "v") it includes the layer `qkv` and reads the D channels of the normalized tokens; otherwise
    it reads the D/5 channels of its segment. The LayerNorm before that is not a convolution.
    """
    stage, block = choose_block(model.config, (0, 0), stage, block)
    index = _aggregator_index(kernel)
    attention = model.groupmixformer_backbone[stage - 1].gma_stage[block - 1].att
    aggregator, name = attention.aggregator, str(index + 1)
    conv, norm = getattr(aggregator, f"agg{name}"), getattr(aggregator, f"norm{name}")
    scale = norm.weight.numpy() / np.sqrt(norm.running_var.numpy() + norm.eps)  # (D/5,)
    mix = scale[:, None] * conv.pointwise_conv.weight.numpy()[:, :, 0, 0]  # (D/5 out, D/5 in)
    taps = conv.conv1.weight.numpy()[:, 0]  # (D/5 in, k, k)
    dense = mix[:, :, None, None] * taps  # (D/5 out, D/5 in, k, k)
    if of is None:
        return dense
    if of not in ("q", "k", "v"):
        raise ValueError(f"of: expected 'q', 'k' or 'v', found {of!r}")
    weights = np.split(attention.qkv.weight.numpy(), 3)["qkv".index(of)]  # (D, D)
    segment = np.split(weights, 5)[index + 1]  # (D/5, D)
    return np.einsum("oikl,id->odkl", dense, segment)  # (D/5 out, D in, k, k)


def receptive_field(model: GroupMixFormer, stage: int, block: int, kernel: int) -> int:
    """The side, in pixels, of what a group proxy sees of the picture through convolutions alone.

    Attention adds to that: from the second block on, every token has seen the whole picture.
    """
    convolutions = [model.conv_stem.proj1, model.conv_stem.proj2]
    for i in range(stage):
        blocks = model.groupmixformer_backbone[i].gma_stage
        convolutions.append(model.patch_embed_layers[i].proj.conv1)
        seen = blocks if i < stage - 1 else blocks[:block]
        convolutions += [one.cpe.proj for one in seen if one.cpe is not None]
    aggregator = blocks[block - 1].att.aggregator
    convolutions.append(getattr(aggregator, f"agg{_aggregator_index(kernel) + 1}").conv1)
    field, step = 1, 1
    for convolution in convolutions:
        field, step = field + (convolution.kernel_size - 1) * step, step * convolution.stride
    return field


# The command
