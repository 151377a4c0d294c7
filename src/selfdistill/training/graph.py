"""A whole training step as one CUDA graph.

A small network's step is some 400 kernels of a few microseconds: launched one by one they keep the
CPU busier than the GPU.  A graph is launched once.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from selfdistill.errors import UserError

# Steps before a capture: kernels are chosen, compiled and given their workspaces in them.
WARM_UP = 3


class GraphError(UserError, RuntimeError):
    """A step that no CUDA graph can hold; the message says why and what to do."""


class GraphedStep:
    """`step` captured once and replayed: reads its inputs from tensors that stay, writes one that stays."""

    def __init__(self, step: Callable[[dict[str, Tensor]], Tensor], example: dict[str, Tensor]) -> None:
        self.inputs = {name: t.clone() for name, t in example.items()}
        self.graph = torch.cuda.CUDAGraph()
        # thread_local: the thread that pins a DataLoader's batches may go on meanwhile
        try:
            with torch.cuda.graph(self.graph, stream=torch.cuda.current_stream(), capture_error_mode="thread_local"):
                self.output = step(self.inputs)
        except RuntimeError as error:
            # what began in this process is neither captured nor computed, and a later capture may fail of it
            raise GraphError(
                f"the step cannot be captured as a CUDA graph: {str(error).splitlines()[0]}; set recipe.cuda_graphs: "
                'false, or list "host" among the needs of a method that looks at numbers on the CPU'
            ) from error

    def __call__(self, inputs: dict[str, Tensor]) -> Tensor:
        for name, tensor in inputs.items():
            self.inputs[name].copy_(tensor)
        self.graph.replay()
        return self.output.clone()
