"""The published network in training, in a process and an interpreter of its own: see
`compare_training.TrainingPeer`.

    PYTHON training_process.py FILE SIZES WEIGHT_DECAY CLIP

FILE is the published groupmixformer.py and SIZES its arguments. Standard input is a row of pickles,
the first of them a state dict. For each (rate, decay, pictures (B, 3, S, S), targets (B, classes))
it makes a step of AdamW, and of the moving averages of the weights and of BatchNorm's statistics,
and prints the loss; for each (None, None, pictures, classes), how many the averages get right; then
the seconds.
"""

from __future__ import annotations

import json
import pickle
import sys
import time
from typing import Any

import torch
from peer_process import published
from torch import nn


class Training:
    """The network, its optimizer, and the averages of its weights and statistics."""

    def __init__(self, model: Any, weight_decay: float, clip: float) -> None:
        self.model, self.clip, self.weights = model, clip, list(model.parameters())
        statistics = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
        self.averaged = [*self.weights, *statistics]
        self.average = [tensor.detach().clone() for tensor in self.averaged]
        decayed = [weight for weight in self.weights if weight.ndim > 1]
        others = [weight for weight in self.weights if weight.ndim == 1]
        groups = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, weight_decay=weight_decay, fused=True)

    def step(self, rate: float, decay: float, pictures: Any, targets: Any) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad()
        loss = nn.functional.cross_entropy(self.model.train()(pictures), targets)
        loss.backward()
        nn.utils.clip_grad_norm_(self.weights, self.clip)
        self.optimizer.step()
        torch._foreach_lerp_(self.average, [t.detach() for t in self.averaged], 1 - decay)
        return loss.item()

    def right(self, pictures: Any, labels: Any) -> int:
        self.swap()
        with torch.inference_mode():
            count = int((self.model.eval()(pictures).argmax(1) == labels).sum())
        self.swap()
        return count

    def swap(self) -> None:
        """The averages take the place of what they are of, and the other way round."""
        for tensor, other in zip(self.averaged, self.average, strict=True):
            tensor.data, other.data = other.data, tensor.data


def main() -> None:
    model = published(sys.argv[1], json.loads(sys.argv[2]))
    model.to(memory_format=torch.channels_last)  # a step takes two thirds of the time
    state = pickle.load(sys.stdin.buffer)
    model.load_state_dict({name: torch.from_numpy(array) for name, array in state.items()})
    training = Training(model, *map(float, sys.argv[3:]))
    while True:
        try:
            rate, decay, *arrays = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        began, tensors = time.perf_counter(), list(map(torch.from_numpy, arrays))
        tensors[0] = tensors[0].contiguous(memory_format=torch.channels_last)
        answer = training.right(*tensors) if rate is None else training.step(rate, decay, *tensors)
        print(answer, time.perf_counter() - began, flush=True)


if __name__ == "__main__":
    main()
