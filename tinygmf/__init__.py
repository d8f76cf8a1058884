"""GroupMixFormer (arXiv 2311.15157) in tinygrad: small, readable, equal to the published network.

>>> model = tinygmf.load_model("groupmixformer_tiny.pth")
>>> predict = tinygmf.Predictor(model)
>>> predict(["cat.jpg"])  # logits (1, 1000)
"""

from tinygmf.engine.clang import prepare_compiler
from tinygmf.engine.user_cache import ignore_foreign_settings, keep_kernels_private

ignore_foreign_settings()  # before tinygrad reads them
prepare_compiler()  # before tinygrad reads which clang there is
keep_kernels_private()

from tinygmf.config import GroupMixFormerConfig  # noqa: E402
from tinygmf.dense.detector import Detector  # noqa: E402
from tinygmf.dense.networks import create_model, list_models, load_model  # noqa: E402
from tinygmf.dense.segmenter import Segmenter  # noqa: E402
from tinygmf.engine.predictor import Predictor  # noqa: E402
from tinygmf.gma import GroupMixAttention  # noqa: E402
from tinygmf.model import GroupMixFormer  # noqa: E402
from tinygmf.weights.checkpoint import load_state_dict, save_model  # noqa: E402

__version__ = "0.1.0"
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
