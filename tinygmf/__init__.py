"""GroupMixFormer (arXiv 2311.15157) in tinygrad: small, readable, equal to the published network.

>>> model = tinygmf.load_model("groupmixformer_tiny.pth")
>>> predict = tinygmf.Predictor(model)
>>> predict(["cat.jpg"])  # logits (1, 1000)
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from tinygmf.engine.clang import compiler_identity, prepare_compiler
from tinygmf.engine.user_cache import ignore_foreign_settings, keep_kernels_private

ignore_foreign_settings()  # before tinygrad reads them
prepare_compiler()  # before tinygrad reads which clang there is
keep_kernels_private(compiler_identity())

if TYPE_CHECKING:
    from tinygmf.config import GroupMixFormerConfig
    from tinygmf.dense.detector import Detector
    from tinygmf.dense.networks import create_model, list_models, load_model
    from tinygmf.dense.segmenter import Segmenter
    from tinygmf.engine.predictor import Predictor
    from tinygmf.gma import GroupMixAttention
    from tinygmf.model import GroupMixFormer
    from tinygmf.weights.checkpoint import load_state_dict, save_model

__version__ = "0.1.0"
PLACES = {  # the module of each name, imported when the name is first used
    "tinygmf.config": ["GroupMixFormerConfig"],
    "tinygmf.dense.detector": ["Detector"],
    "tinygmf.dense.networks": ["create_model", "list_models", "load_model"],
    "tinygmf.dense.segmenter": ["Segmenter"],
    "tinygmf.engine.predictor": ["Predictor"],
    "tinygmf.gma": ["GroupMixAttention"],
    "tinygmf.model": ["GroupMixFormer"],
    "tinygmf.weights.checkpoint": ["load_state_dict", "save_model"],
}
__all__ = [
    "Detector",
    "GroupMixAttention",
    "GroupMixFormer",
    "GroupMixFormerConfig",
    "Predictor",
    "Segmenter",
    "create_model",
    "list_models",
    "load_model",
    "load_state_dict",
    "save_model",
]


def __getattr__(name: str) -> Any:
    for module, names in PLACES.items():
        if name in names:
            return globals().setdefault(name, getattr(import_module(module), name))
    if not name.startswith("_") and find_spec(f"tinygmf.{name}"):
        return import_module(f"tinygmf.{name}")
    raise AttributeError(f"module 'tinygmf' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
