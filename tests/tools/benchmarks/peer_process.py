"""One peer, in a process and an interpreter of its own: see `peer.Peer`.

    PYTHON peer_process.py KIND FILE SIZES SHAPE

KIND is "eager", "compiled" or "training" for FILE, the published groupmixformer.py, with SIZES as
its arguments, or "upernet" or "retinanet" for the head of mmsegmentation or torchvision on it;
"onnxruntime", "openvino float32" or "openvino" for FILE, the same network as ONNX; or "tinygmf
upernet" or "tinygmf retinanet" for ours. SHAPE is that of the pictures. Prints the version, the
threads and the seconds to the end of the first run, then for each line of input the seconds of one
more run, and at the end of input the most memory that the process has held, in MB.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
import types
from collections.abc import Callable
from typing import Any

BEGAN = time.perf_counter()
Run = Callable[[], Any]


def published(file: str, sizes: dict[str, Any], **options: Any) -> Any:
    """The published network; it imports a few helpers of timm, which get stand-ins here."""
    from torch import nn

    class DropPath(nn.Identity):
        def __init__(self, *rates: float) -> None:
            super().__init__()

    def module(name: str, **contents: Any) -> None:
        sys.modules[name] = types.ModuleType(name)
        vars(sys.modules[name]).update(contents)

    for name in ("ipdb", "timm", "timm.models"):
        module(name)
    grey = (0.5,) * 3
    module("timm.data", IMAGENET_DEFAULT_MEAN=grey, IMAGENET_DEFAULT_STD=grey)
    module(
        "timm.models.layers",
        DropPath=DropPath,
        to_2tuple=lambda x: (x, x),
        trunc_normal_=nn.init.trunc_normal_,
    )
    module("timm.models.registry", register_model=lambda function: function)
    nn.SyncBatchNorm = nn.BatchNorm2d
    official: dict[str, Any] = {}
    with open(file) as source:
        exec(compile(source.read(), file, "exec"), official)
    plain = {"drop_rate": 0.0, "attn_drop_rate": 0.0, "drop_path_rate": 0.0, "pretrained": None}
    return official["GroupMixFormer"](num_stages=4, num_heads=8, **plain, **sizes, **options)


def pytorch(kind: str, file: str, sizes: dict[str, Any], shape: list[int]) -> tuple[str, int, Run]:
    import torch

    if kind in DENSE:
        model = DENSE[kind](published(file, sizes, return_interm_layers=True), sizes)
    else:
        model = published(file, sizes)
    model, x = (one.to(memory_format=torch.channels_last) for one in (model, torch.randn(*shape)))
    run = training_step(model, x, sizes) if kind == "training" else inference(kind, model, x)
    return torch.__version__, torch.get_num_threads(), run


def upernet(backbone: Any, sizes: dict[str, Any]) -> Any:
    """mmsegmentation's head with its usual width, and at last the likeliest class of each pixel."""
    from unittest.mock import MagicMock

    sys.modules["mmcv.ops"] = MagicMock()  # compiled for other heads alone
    from mmseg.models.decode_heads.uper_head import UPerHead
    from torch import nn

    class UPerNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            widths, classes = sizes["embedding_dims"], sizes["num_classes"]
            self.backbone = backbone
            setting = {"channels": 512, "num_classes": classes, "norm_cfg": {"type": "BN"}}
            self.head = UPerHead(in_channels=widths, in_index=[0, 1, 2, 3], **setting)

        def forward(self, x: Any) -> Any:
            logits = self.head(self.backbone(x))
            resized = nn.functional.interpolate(logits, x.shape[2:], mode="bilinear")
            return resized.argmax(1)

    return UPerNet()


def retinanet(backbone: Any, sizes: dict[str, Any]) -> Any:
    """torchvision's, from normalized pictures of any size to boxes after suppression."""
    from torch import nn
    from torchvision.models.detection import RetinaNet
    from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelP6P7

    class Pyramid(nn.Module):
        out_channels = 256

        def __init__(self) -> None:
            super().__init__()
            self.body = backbone
            last = LastLevelP6P7(256, 256)
            self.fpn = FeaturePyramidNetwork(sizes["embedding_dims"][1:], 256, last)

        def forward(self, x: Any) -> Any:
            maps = self.body(x)[1:]
            return self.fpn({str(level): one for level, one in enumerate(maps)})

    as_it_is = {"image_mean": [0.0] * 3, "image_std": [1.0] * 3, "_skip_resize": True}
    return RetinaNet(Pyramid(), sizes["num_classes"], **as_it_is)


DENSE = {"upernet": upernet, "retinanet": retinanet}


def tinygmf(kind: str, sizes: dict[str, Any], shape: list[int]) -> tuple[str, int, Run]:
    """Our network under the same head, through `Segmenter` or `Detector`."""
    from importlib.metadata import version

    from tinygmf import Detector, GroupMixFormerConfig, Segmenter, create_model

    classes = sizes.pop("num_classes")
    config = GroupMixFormerConfig(**{name: tuple(value) for name, value in sizes.items()})
    model = create_model(kind, backbone=config, num_classes=classes)
    network = (Segmenter if kind == "upernet" else Detector)(model, device="CPU", progress=False)
    x = pictures(shape)
    return version("tinygrad"), len(os.sched_getaffinity(0)), lambda: network.run(x)


def inference(kind: str, model: Any, x: Any) -> Run:
    import torch

    model.eval()
    if kind == "compiled":
        model = torch.compile(model)

    def run() -> None:
        with torch.inference_mode():
            model(x)

    return run


def training_step(model: Any, x: Any, sizes: dict[str, Any]) -> Run:
    """Fused AdamW, gradient clipping, label smoothing."""
    import torch
    from torch import nn

    labels = torch.randint(0, sizes["num_classes"], (len(x),))
    loss_of = nn.CrossEntropyLoss(label_smoothing=0.1)
    optimizer = torch.optim.AdamW(model.train().parameters(), 1e-3, weight_decay=0.05, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        loss_of(model(x), labels).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()

    return step


def pictures(shape: list[int]) -> Any:
    import numpy as np

    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def onnxruntime(file: str, shape: list[int]) -> tuple[str, int, Run]:
    import onnxruntime as ort

    threads = len(os.sched_getaffinity(0))
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    x = pictures(shape)
    return ort.__version__, threads, lambda: session.run(None, {"input": x})


def openvino(kind: str, file: str, shape: list[int]) -> tuple[str, int, Run]:
    import openvino as ov

    core = ov.Core()
    model = core.read_model(file)
    model.reshape(shape)
    narrow = {"INFERENCE_PRECISION_HINT": "f32"} if kind == "openvino float32" else {}
    compiled = core.compile_model(model, "CPU", {"PERFORMANCE_HINT": "LATENCY", **narrow})
    request, x = compiled.create_infer_request(), pictures(shape)
    threads = compiled.get_property("INFERENCE_NUM_THREADS")
    return ov.__version__.split("-")[0], threads, lambda: request.infer([x])


def main() -> None:
    kind, file, sizes, shape = sys.argv[1], sys.argv[2], *map(json.loads, sys.argv[3:])
    if kind == "onnxruntime":
        version, threads, run = onnxruntime(file, shape)
    elif kind.startswith("openvino"):
        version, threads, run = openvino(kind, file, shape)
    elif kind.startswith("tinygmf "):
        version, threads, run = tinygmf(kind.removeprefix("tinygmf "), sizes, shape)
    else:
        version, threads, run = pytorch(kind, file, sizes, shape)
    run()
    print(version, threads, time.perf_counter() - BEGAN, flush=True)
    for _ in sys.stdin:
        began = time.perf_counter()
        run()
        print(time.perf_counter() - began, flush=True)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3)


if __name__ == "__main__":
    main()
