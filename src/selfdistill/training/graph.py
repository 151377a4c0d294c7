"""A whole training step as one CUDA graph.

A small network's step is some 400 kernels of a few microseconds: launched one by one they keep the
CPU busier than the GPU.  A graph is launched once.
"""

from collections.abc import Callable

import torch
from torch import Tensor

# Steps before a capture: kernels are chosen, compiled and given their workspaces in them.
WARM_UP = 3


class GraphedStep:
    """`step` captured once and replayed: reads its inputs from tensors that stay, writes one that stays."""

    def __init__(self, step: Callable[[dict[str, Tensor]], Tensor], example: dict[str, Tensor]) -> None:
        self.inputs = {name: t.clone() for name, t in example.items()}
        self.graph = torch.cuda.CUDAGraph()
        # thread_local: the thread that pins a DataLoader's batches may go on meanwhile
        with torch.cuda.graph(self.graph, stream=torch.cuda.current_stream(), capture_error_mode="thread_local"):
            self.output = step(self.inputs)

    def __call__(self, inputs: dict[str, Tensor]) -> Tensor:
        for name, tensor in inputs.items():
            self.inputs[name].copy_(tensor)
        self.graph.replay()
        return self.output.clone()
