"""What the dense networks share here: how their backbones run."""

import pytest
from tinygrad import Tensor, dtypes
from tinygrad.nn.state import get_state_dict

from tinygmf.dense.pyramid import Backbone
from tinygmf.engine.folded import Part, fold_stages, place, stages


@pytest.fixture
def backbones_in_loop_nests(monkeypatch):
    """tinygrad takes half a minute to plan and to compile a backbone for each size of picture. The
    loop nests give the same maps in a fifth of that, as the engine's tests show, odd sizes too;
    here neck and heads are what is compared."""

    def maps(self: Backbone, x: Tensor) -> list[Tensor]:
        arrays = {name: weight.numpy() for name, weight in get_state_dict(self).items()}
        folded = (place(a, dtypes.float32, "CPU") for a in fold_stages(self.config, Part(arrays)))
        found = stages(x, folded, self.config.serial_depths, dtypes.float32)
        return [one.permute(0, 3, 1, 2).contiguous().realize() for one in found]

    monkeypatch.setattr(Backbone, "forward", maps)
