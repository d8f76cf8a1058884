"""The network's weights as one of its modules sees them: a layer's name leads to its numbers.

`p.at("att").linear("qkv", x)` applies the layer whose weights are `<p>.att.qkv.weight` and
`<p>.att.qkv.bias`. Names are those of the published checkpoints. Every output passes through
`Parameters.output`, which alone records the trace.
"""

from collections.abc import Callable

from . import ops
from .ops import Nested


class Parameters:
    """A flat dictionary of weights under a prefix, and a trace of outputs if one is wanted.

    A layer on maps takes a map [C][H][W], or a list of maps and treats each alike.
    """

    def __init__(
        self, weights: dict[str, Nested], trace: dict[str, Nested] | None = None, prefix: str = ""
    ):
        self.weights, self.trace, self.prefix = weights, trace, prefix

    def at(self, name: str) -> "Parameters":
        """The same weights seen from the module `name` below this one."""
        return Parameters(self.weights, self.trace, f"{self.prefix}{name}.")

    def tensor(self, name: str) -> Nested:
        """The weight `name`, or None where the layer has none (a convolution without bias)."""
        return self.weights.get(self.prefix + name)

    def output(self, value: Nested, name: str = "", part: int | None = None) -> Nested:
        """Return `value`, the output of this module (or of `name` below it), and trace it.

        A module with several outputs numbers them by `part`: they are traced as `name#part`.
        """
        if self.trace is not None:
            full_name = (self.prefix + name).removesuffix(".")
            self.trace[full_name if part is None else f"{full_name}#{part}"] = value
        return value

    def linear(self, name: str, x: ops.Tokens) -> ops.Tokens:
        """[N][D_in] -> [N][D_out]."""
        weight, bias = self.tensor(f"{name}.weight"), self.tensor(f"{name}.bias")
        return self.output(ops.linear(x, weight, bias), name)

    def conv(self, name: str, x: Nested, stride: int = 1) -> Nested:
        """[C_in][H][W] -> [C_out][ceil(H / stride)][ceil(W / stride)]."""
        weight, bias = self.tensor(f"{name}.weight"), self.tensor(f"{name}.bias")
        return self.output(on_maps(lambda m: ops.conv2d(m, weight, bias, stride), x), name)

    def depthwise_conv(self, name: str, x: Nested, stride: int = 1) -> Nested:
        """[C][H][W] -> [C][ceil(H / stride)][ceil(W / stride)]."""
        weight, bias = self.tensor(f"{name}.weight"), self.tensor(f"{name}.bias")
        return self.output(
            on_maps(lambda m: ops.depthwise_conv2d(m, weight, bias, stride), x), name
        )

    def separable_conv(self, name: str, x: Nested, stride: int = 1) -> Nested:
        """A depthwise convolution, which mixes places, and a 1x1, which mixes channels."""
        p = self.at(name)
        x = p.depthwise_conv("conv1", x, stride)  # [C_in][H'][W']
        x = p.conv("pointwise_conv", x)  # [C_out][H'][W']
        return p.output(x)

    def batch_norm(self, name: str, x: Nested) -> Nested:
        """[C][H][W] -> [C][H][W]."""
        parts = ("weight", "bias", "running_mean", "running_var")
        tensors = [self.tensor(f"{name}.{part}") for part in parts]
        return self.output(on_maps(lambda m: ops.batch_norm(m, *tensors), x), name)

    def layer_norm(self, name: str, x: ops.Tokens, eps: float = 1e-6) -> ops.Tokens:
        """[N][D] -> [N][D]."""
        weight, bias = self.tensor(f"{name}.weight"), self.tensor(f"{name}.bias")
        return self.output(ops.layer_norm(x, weight, bias, eps), name)

    def hardswish(self, name: str, x: Nested) -> Nested:
        """Any shape."""
        return self.output(ops.each(ops.hardswish, x), name)

    def gelu(self, name: str, x: Nested) -> Nested:
        """Any shape."""
        return self.output(ops.each(ops.gelu, x), name)


def on_maps(layer: Callable[[ops.Map], ops.Map], x: Nested) -> Nested:
    """Apply a layer to a map [C][H][W], or to each map of a list of them."""
    is_one_map = not isinstance(x[0][0][0], list)
    return layer(x) if is_one_map else [layer(one) for one in x]
