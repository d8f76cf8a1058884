"""Classify an image: `python -m reference WEIGHTS.safetensors IMAGE.ppm`."""

import argparse
import json
import sys

from . import load_network
from .ops import Map, Vector, softmax
from .picture import normalize, read_ppm


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m reference",
        description="Classify an image with GroupMixFormer and print the five likeliest classes.",
    )
    parser.add_argument("weights", help="the network's weights, a .safetensors file")
    parser.add_argument("image", help="a PPM image, 8 bits a colour, at least 32 x 32 pixels")
    parser.add_argument(
        "--json", action="store_true", help="print the four maps and the logits as JSON instead"
    )
    arguments = parser.parse_args()
    try:
        image = normalize(read_ppm(arguments.image))  # before the weights, which take longer
        features, logits = run(arguments.weights, arguments.image, image)
    except OSError as error:
        found = f"expected a file to read, found: {error.strerror}; check the name"
        print(f"{error.filename}: {found}", file=sys.stderr)
        return 2
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    if arguments.json:
        json.dump({"features": features, "logits": logits}, sys.stdout)
        return 0
    probabilities = softmax(logits)
    print("class  probability")
    ranked = sorted(range(len(probabilities)), key=lambda i: probabilities[i], reverse=True)
    for index in ranked[:5]:
        print(f"{index:5d}  {probabilities[index]:11.4f}")
    return 0


def run(weights_path: str, image_path: str, image: Map) -> tuple[list[Map], Vector]:
    """The four maps and the logits. Raises ValueError, which names the file at fault."""
    network = load_network(weights_path)
    try:
        features = network.features(image)
        return features, network.head(features[-1])
    except ValueError as error:
        raise ValueError(f"{image_path}: {error}") from None


if __name__ == "__main__":
    sys.exit(main())
