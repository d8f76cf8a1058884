"""GroupMixFormer in plain Python: the network of arXiv 2311.15157, to be read beside the paper.

Standard library only, one image at a time, nested lists of floats. Begin with `gma.py`.

    network = reference.load_network("nano.safetensors")
    logits = network(image)  # image: [3][H][W] floats
"""

from pathlib import Path

from .network import VARIANTS, Config, Network
from .weights import read_safetensors

__all__ = ["VARIANTS", "Config", "Network", "load_network"]


def load_network(path: str | Path) -> Network:
    """Load a network from a .safetensors file; its configuration is inferred from the weights.

    Raises OSError if the file cannot be read, and ValueError, in one line that names the file, if
    it is malformed or holds anything but a GroupMixFormer's weights.
    """
    weights = read_safetensors(path)
    try:
        return Network(weights)
    except ValueError as error:
        raise ValueError(f"{path}: {error}; use the whole weights of a GroupMixFormer") from None
