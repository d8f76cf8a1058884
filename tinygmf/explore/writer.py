"""Write the page to a folder that holds all a browser needs.

For a page opened from disk browsers load neither modules nor data, only plain scripts. So weights,
programs and pictures are scripts too: each calls `receive` with its content in base64.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from tinygmf.config import PUBLISHED_SIZE, STAGES, STRIDES, GroupMixFormerConfig
from tinygmf.explore.shaders import capture_shaders
from tinygmf.export.c import TEMPLATES, weight_offsets, weights_file
from tinygmf.export.program import Program, capture
from tinygmf.export.wasm import REGISTERS, SHARED_PAGES, compile_wasm, info
from tinygmf.image import usual_names
from tinygmf.weights.checkpoint import NetworkWeights

PAGE = files("tinygmf.explore").joinpath("page")
PHOTOGRAPHS = files("tinygmf.explore").joinpath("pictures")
ASSETS = files("tinygmf").joinpath("assets")
LABELS = {"digits": "a handwritten {}", "scenes": "scene {}"}  # of the assets' pictures
SIZES = 128, PUBLISHED_SIZE  # pixels, besides the training size
THREADS = 8  # at most, where the page is isolated: a reader's machine may have more cores
BLOCK_MAPS = "cpe", "att.qkv", "att.aggregator", "att.aggregator.agg0", "att.crpe.conv_list"


def write_page(
    networks: Mapping[str, NetworkWeights],
    folder: Path,
    sizes: tuple[int, ...] = SIZES,
    tell: Callable[[str, int], None] = lambda name, size: None,
) -> None:
    """Write index.html and what it loads to an existing folder.

    Each network is compiled for its own picture size and for `sizes`; `tell` is called before each,
    which takes seconds. Raises ValueError if one cannot be exported or zig is missing; OSError.
    """
    copy(PAGE, folder)
    (folder / "js" / "network.js").write_bytes(TEMPLATES.joinpath("network.js").read_bytes())
    data = folder / "data"
    data.mkdir()
    contents = [describe(name, network, sizes) for name, network in networks.items()]
    write_data(data / "contents.js", "contents", contents)
    write_data(data / "pictures.js", "pictures", list(pictures(networks)))
    for name, network in networks.items():
        for program in programs(network, sizes, partial(tell, name)):
            known = info(program) | shapes(program)
            code = compile_wasm(program, shared=True)
            file = f"{name}_{program.size}"
            write_data(data / f"{file}.js", file, known, code)
            shaders = capture_shaders(program.network, program.size, [m.name for m in program.maps])
            text = json.dumps(shaders).encode()
            write_data(data / f"{file}_webgpu.js", f"{file}_webgpu", None, text)
        write_data(data / f"{name}.js", name, None, weights_file(program))


def programs(
    network: NetworkWeights, sizes: tuple[int, ...], tell: Callable[[int], None]
) -> Iterator[Program]:
    """A program for each size that keeps every map the page shows and has class names."""
    if network.config.num_classes and not network.settings.classes:
        classes = tuple(usual_names(network.config.num_classes))
        network = network._replace(settings=replace(network.settings, classes=classes))
    for size in sizes_of(network, sizes):
        tell(size)
        maps = kept_maps(network.config)
        yield capture(network, size, maps=maps, threads=THREADS, registers=REGISTERS)


def require_showable(network: NetworkWeights, path: str) -> None:
    """Raise ValueError, in one line, for a network that the page cannot run."""
    network.config.require_colour(f"{path}: explore")
    network.config.require_published_form(f"{path}: explore")


def copy(source: Traversable, folder: Path) -> None:
    """Copy a folder of the package to an existing one."""
    for one in source.iterdir():
        if one.is_dir():
            (folder / one.name).mkdir()
            copy(one, folder / one.name)
        else:
            (folder / one.name).write_bytes(one.read_bytes())


def write_data(path: Path, name: str, value: object, content: bytes | None = None) -> None:
    """Write a script that hands a value, and deflated bytes, to the page."""
    arguments = [json.dumps(name), json.dumps(value, separators=(",", ":"))]
    if content is not None:
        arguments.append(json.dumps(base64.b64encode(zlib.compress(content, 9)).decode()))
    path.write_text(f"receive({', '.join(arguments)});\n", encoding="utf-8")


def sizes_of(network: NetworkWeights, sizes: tuple[int, ...]) -> list[int]:
    """The picture sizes in pixels, the network's own first."""
    own = network.settings.image_size or PUBLISHED_SIZE
    return [own, *(size for size in sizes if size != own)]


def kept_maps(config: GroupMixFormerConfig) -> list[str]:
    """The checkpoint names of all maps that the page shows."""
    names = ["conv_stem.act1", "conv_stem.act2"]
    for stage in range(STAGES):
        names.append(f"patch_embed_layers.{stage}.act")
        for j in range(config.serial_depths[stage]):
            block = f"groupmixformer_backbone.{stage}.gma_stage.{j}"
            names += [f"{block}.{part}" for part in BLOCK_MAPS] + [f"{block}.cpe+att", block]
    return names


def describe(name: str, network: NetworkWeights, sizes: tuple[int, ...]) -> dict[str, object]:
    """What the page says about a network before it is loaded."""
    return {
        "name": name,
        "sizes": sizes_of(network, sizes),
        "trained": network.settings.image_size,
        "parameters": sum(
            array.size
            for key, array in network.arrays.items()
            if not key.endswith(("running_mean", "running_var", "num_batches_tracked"))
        ),
    }


def shapes(program: Program) -> dict[str, object]:
    """The architecture, and where each array of weights lies."""
    config = program.network.config
    *offsets, total = weight_offsets(program)
    placed = zip(program.weights, offsets, strict=True)
    return {
        "head": config.num_classes > 0,
        "dims": config.embedding_dims,
        "depths": config.serial_depths,
        "sides": [-(-program.size // stride) for stride in STRIDES],
        "total": total,
        "weights": {weight.name: [at, weight.array.size] for weight, at in placed},
        "pages": SHARED_PAGES,
        "threads": THREADS,
        "mean": program.network.settings.mean,
        "std": program.network.settings.std,
    }


def pictures(networks: Mapping[str, NetworkWeights]) -> Iterator[dict[str, str]]:
    """The bundled pictures: those of each network, and photographs for all."""
    for kind, label in LABELS.items():
        network = next((name for name in networks if name.startswith(kind)), None)
        if network is not None and ASSETS.joinpath(kind).is_dir():
            yield from pictures_in(ASSETS.joinpath(kind), label, network)
    yield from pictures_in(PHOTOGRAPHS, "{}", "")


def pictures_in(folder: Traversable, label: str, network: str) -> Iterator[dict[str, str]]:
    """Each picture, with its network and `label` filled with its name up to the first _."""
    for path in sorted(folder.iterdir(), key=lambda path: path.name):
        stem, _, suffix = path.name.rpartition(".")
        if suffix in ("png", "jpg"):
            data = base64.b64encode(path.read_bytes()).decode()
            url = f"data:image/{suffix.replace('jpg', 'jpeg')};base64,{data}"
            yield {"label": label.format(stem.partition("_")[0]), "network": network, "url": url}
