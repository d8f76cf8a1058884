"""The command `tinygmf`: one function for each subcommand.

A user's mistake ends with one line on standard error and exit code 2, never with a traceback.
"""

from __future__ import annotations

import argparse
import json
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tinygmf import __version__, list_models
from tinygmf import ablation as ablations
from tinygmf import explain as explanations
from tinygmf.config import VARIANTS, GroupMixFormerConfig
from tinygmf.devices import DeviceError, do_without_kernel_cache
from tinygmf.files import replacing
from tinygmf.training import command as training


def classify(args: argparse.Namespace) -> int:
    """Name what pictures show."""
    from tinygmf.checkpoint import load_model
    from tinygmf.image import load_image
    from tinygmf.predictor import Predictor, probabilities

    pictures = [load_image(path) for path in args.images]  # mistakes first, compiling later
    predict = Predictor(load_model(args.weights), args.size, device=args.device, dtype=args.dtype)
    if not predict.config.num_classes:
        raise ValueError(f"{args.weights}: expected a network with a head, found one without")
    names = class_names(predict.config.num_classes)
    topk = min(args.topk, len(names))
    answers: list[dict[str, Any]] = []
    for path, row in zip(args.images, probabilities(predict(pictures)), strict=True):
        best = [int(i) for i in (-row).argsort(kind="stable")[:topk]]
        top = [{"class": i, "name": names[i], "probability": float(row[i])} for i in best]
        answers.append({"image": str(path), "top": top})
    if args.json:
        print(json.dumps(answers, indent=2))
        return 0
    for answer in answers:
        print(answer["image"])
        for entry in answer["top"]:
            print(f"  {entry['probability']:8.2%}  {entry['class']:4}  {entry['name']}")
    return 0


def class_names(num_classes: int) -> list[str]:
    """ImageNet's names for 1,000 classes; else the classes' numbers."""
    from tinygmf.image import imagenet_labels

    return imagenet_labels() if num_classes == 1000 else [str(i) for i in range(num_classes)]


def explain(args: argparse.Namespace) -> int:
    """Draw what the attention makes of pictures."""
    return explanations.run(args)


def ablate(args: argparse.Namespace) -> int:
    """Train networks with parts of the attention taken away, and compare them."""
    return ablations.run(args)


def evaluate(args: argparse.Namespace) -> int:
    """Measure accuracy on a folder of labelled pictures."""
    from tinygmf.checkpoint import load_model
    from tinygmf.evaluate import evaluate, find_pictures
    from tinygmf.predictor import Predictor

    model = load_model(args.weights)
    samples = find_pictures(args.folder, model.config.num_classes, args.labels)
    predict = Predictor(
        model, args.size, batch_size=args.batch_size, dtype=args.dtype, device=args.device
    )
    result = evaluate(predict, samples)
    for line in result.unreadable:
        print(f"passed over: {line}", file=sys.stderr)
    figures = result.as_json()
    if args.json:
        with replacing(args.json) as file:
            file.write(json.dumps(figures, indent=1).encode())
    print(
        f"top-1 {figures['top1']:.2%}, top-5 {figures['top5']:.2%} of {result.count} pictures, "
        f"{figures['pictures_per_second']:.1f} pictures/s, {len(result.unreadable)} unreadable"
    )
    return 0


def tune(args: argparse.Namespace) -> int:
    """Search once for faster kernels of a network, and keep them."""
    from tinygmf.checkpoint import load_model
    from tinygmf.predictor import Predictor

    predict = Predictor(
        load_model(args.weights),
        args.size,
        batch_size=args.batch_size,
        dtype=args.dtype,
        device=args.device,
    )
    before, after = predict.tune(args.beam)
    kept = "kept" if after < before else "nothing faster found, the program stays as it was"
    print(f"{1000 * before:.1f} ms before, {1000 * after:.1f} ms after: {kept}")
    return 0


def info(args: argparse.Namespace) -> int:
    """Show what a network is made of, stage by stage."""
    from tinygmf.summary import format_summary

    if args.model is None:
        for name in list_models():
            print(f"{name}\n{format_summary(VARIANTS[name], (args.size, args.size))}\n")
        return 0
    config = VARIANTS.get(args.model) or _file_config(args.model)
    print(format_summary(config, (args.size, args.size)))
    return 0


def _file_config(path: str) -> GroupMixFormerConfig:
    from tinygmf.checkpoint import load_model

    if not Path(path).exists():
        raise ValueError(
            f"{path}: expected a weight file or one of {', '.join(VARIANTS)}, found neither"
        )
    return load_model(path).config


def convert(args: argparse.Namespace) -> int:
    """Rewrite weights in the other format, or strip a training checkpoint to its network."""
    from tinygmf.checkpoint import load_model, save_model

    model = load_model(args.input)
    save_model(model, args.output)
    print(f"{args.output}: {_describe(model.config)}")
    return 0


def _describe(config: GroupMixFormerConfig) -> str:
    from tinygmf.config import variant_name

    name = variant_name(config) or f"GroupMixFormer {config.embedding_dims} {config.serial_depths}"
    return f"{name}, {config.num_classes} classes"


def devices(args: argparse.Namespace) -> int:
    """List what tinygrad can compute on here, and prove it with one kernel each."""
    if args.test:
        from tinygmf.device_suite import print_suites

        return 0 if print_suites(args.names) else 1
    from tinygmf.devices import list_devices

    for report in list_devices():
        state = f"works ({report.proof:.0f} ms)" if report.proof is not None else "no"
        print(f"{report.name:7} {state:16} {report.detail}")
        if not report.available:
            print(f"{'':24} needs {report.needs}")
    return 0


def verify(args: argparse.Namespace) -> int:
    """Compare this port with the pure-Python reference, stage by stage."""
    from tinygmf.demo import DIGITS_WEIGHTS
    from tinygmf.verify import verify_network

    weights = args.weights or DIGITS_WEIGHTS
    return 0 if verify_network(weights, args.size, args.device, args.dtype) else 1


def cache(args: argparse.Namespace) -> int:
    """Show or clear the compiled programs that are kept."""
    from tinygmf import program_cache

    if args.clear:
        print(f"removed {program_cache.clear()} files from {program_cache.programs_directory()}")
        return 0
    entries = program_cache.list_entries()
    for path, key in entries:
        network, rows = key.get("network", {}), "x".join(map(str, key.get("input", ())))
        dims = ",".join(map(str, network.get("embedding_dims", ())))
        print(
            f"{path.name[:8]}  {path.stat().st_size / 1e6:6.1f} MB  {key['device']:6} "
            f"{key.get('dtype', ''):8}  {rows:14} widths {dims}"
        )
    total = sum(path.stat().st_size for path, _ in entries) / 1e6
    print(f"{len(entries)} programs, {total:.1f} MB, in {program_cache.programs_directory()}")
    return 0


def demo(args: argparse.Namespace) -> int:
    """Classify twelve handwritten digits with the network that comes with tinygmf."""
    from tinygmf.demo import run_demo

    return run_demo(args.out, args.device)


def train(args: argparse.Namespace) -> int:
    """Train a network on pictures."""
    return training.run(args)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, found {text!r}")
    return int(text)


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", help="CPU, CUDA, METAL, AMD, CL, …; by default the best one")


def build_parser() -> argparse.ArgumentParser:
    """Every subcommand with its options."""
    parser = argparse.ArgumentParser(prog="tinygmf", description="GroupMixFormer in tinygrad.")
    parser.add_argument("--version", action="version", version=f"tinygmf {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(run: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
        text = (run.__doc__ or "").strip()
        command = commands.add_parser(run.__name__, help=text, description=text)
        command.set_defaults(run=run)
        return command

    sub = add(demo)
    sub.add_argument("--out", default="tinygmf_demo.png", help="where the picture is saved")
    _add_device(sub)

    sub = add(classify)
    sub.add_argument("images", nargs="+", metavar="IMAGE", help="JPEG, PNG, WebP, …")
    sub.add_argument("--weights", required=True, metavar="FILE", help=".pth or .safetensors")
    sub.add_argument("--topk", type=_positive, default=5, help="answers for each picture")
    sub.add_argument("--size", type=_positive, default=224, help="picture size in pixels")
    sub.add_argument("--dtype", default="float32", choices=["float32", "float16", "bfloat16"])
    sub.add_argument("--json", action="store_true", help="print JSON")
    _add_device(sub)

    explanations.add_arguments(add(explain))
    training.add_arguments(add(train))
    ablations.add_arguments(add(ablate))

    sub = add(evaluate)
    sub.add_argument("folder", type=Path, metavar="DIR", help="one folder for each class")
    sub.add_argument("--weights", required=True, metavar="FILE", help=".pth or .safetensors")
    sub.add_argument("--labels", type=Path, metavar="FILE", help="lines PICTURE CLASS instead")
    sub.add_argument("--size", type=_positive, default=224, help="picture size in pixels")
    sub.add_argument("--batch-size", type=_positive, default=16, help="pictures in one run")
    sub.add_argument("--dtype", default="float32", choices=["float32", "float16", "bfloat16"])
    sub.add_argument("--json", type=Path, metavar="FILE", help="write figures and confusion table")
    _add_device(sub)

    sub = add(tune)
    sub.add_argument("--weights", required=True, metavar="FILE", help=".pth or .safetensors")
    sub.add_argument("--size", type=_positive, default=224, help="picture size in pixels")
    sub.add_argument("--batch-size", type=_positive, default=1, help="pictures in one run")
    sub.add_argument("--dtype", default="float32", choices=["float32", "float16", "bfloat16"])
    sub.add_argument("--beam", type=_positive, default=2, help="candidates that are followed")
    _add_device(sub)

    sub = add(info)
    sub.add_argument("model", nargs="?", metavar="MODEL|FILE", help="all models without it")
    sub.add_argument("--size", type=_positive, default=224, help="picture size in pixels")

    sub = add(verify)
    sub.add_argument("--weights", metavar="FILE", help="by default the network of the demo")
    sub.add_argument("--size", type=_positive, default=32, help="picture size in pixels")
    sub.add_argument("--dtype", default="float32", choices=["float32", "float16", "bfloat16"])
    _add_device(sub)

    sub = add(convert)
    sub.add_argument("input", metavar="IN", help=".pth or .safetensors")
    sub.add_argument("output", metavar="OUT", help=".pth or .safetensors")

    sub = add(devices)
    sub.add_argument("names", nargs="*", metavar="DEVICE", help="those to test; all without it")
    sub.add_argument("--test", action="store_true", help="run a whole network on each device")

    sub = add(cache)
    sub.add_argument("--clear", action="store_true", help="remove them")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Runs one subcommand; returns its exit code."""
    args = build_parser().parse_args(arguments)
    try:
        try:
            return args.run(args)
        except sqlite3.Error as error:  # tinygrad's own cache of kernels, on a full disk
            if not do_without_kernel_cache(error):
                raise
            return args.run(args)
    except (ValueError, DeviceError, OSError) as error:
        print(f"tinygmf: {error}", file=sys.stderr)
        return 2
    except MemoryError:
        print("tinygmf: too little memory: a smaller batch or picture needs less", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("tinygmf: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
