"""Looks at every operation on fake tensors: what a GPU would refuse, wait for, or keep as it was in a CUDA graph."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch._inductor.utils import FORBIDDEN_CUDAGRAPH_OPS
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode

# what makes the CPU wait for the GPU, or has a shape that depends on values
WAITS = {
    "_local_scalar_dense", "argwhere", "bincount", "equal", "histc", "is_nonzero", "is_pinned", "item",
    "masked_scatter", "masked_select", "multinomial", "nonzero", "_pin_memory", "repeat_interleave",
    "unique_consecutive", "_unique2", "unique_dim",
}  # fmt: skip
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"}
SOLVERS = ("_linalg_", "linalg_", "cholesky", "lu_", "triangular_solve")
HARMLESS = {"linalg_vector_norm"}
CONVOLUTIONS = {"convolution", "convolution_backward"}
# What `torch.use_deterministic_algorithms` says will raise on a GPU, by the names of its documentation, and the
# operations behind each.
RAISES_IF_STRICT = {
    "torch.nn.AvgPool3d": {"avg_pool3d_backward"},
    "torch.nn.AdaptiveAvgPool2d": {"_adaptive_avg_pool2d_backward"},
    "torch.nn.AdaptiveAvgPool3d": {"_adaptive_avg_pool3d_backward"},
    "torch.nn.AdaptiveMaxPool2d": {"adaptive_max_pool2d_backward"},
    "torch.nn.FractionalMaxPool2d": {"fractional_max_pool2d_backward"},
    "torch.nn.FractionalMaxPool3d": {"fractional_max_pool3d_backward"},
    "torch.nn.MaxUnpool1d": {"max_unpool2d"},
    "torch.nn.MaxUnpool2d": {"max_unpool2d"},
    "torch.nn.MaxUnpool3d": {"max_unpool3d"},
    "torch.nn.functional.interpolate": {
        "upsample_linear1d_backward", "upsample_bilinear2d_backward", "_upsample_bilinear2d_aa_backward",
        "upsample_bicubic2d_backward", "_upsample_bicubic2d_aa_backward", "upsample_trilinear3d_backward",
    },
    "torch.nn.ReflectionPad1d": {"reflection_pad1d_backward"},
    "torch.nn.ReflectionPad2d": {"reflection_pad2d_backward"},
    "torch.nn.ReflectionPad3d": {"reflection_pad3d_backward"},
    "torch.nn.NLLLoss": {"nll_loss2d_forward", "nll_loss2d_backward"},  # of maps; that of N x K does not raise
    "torch.nn.CTCLoss": {"_ctc_loss_backward"},
    "torch.nn.EmbeddingBag": {"_embedding_bag_dense_backward"},
    "torch.Tensor.put_": {"put_"},
    "torch.histc": {"histc"},
    "torch.bincount": {"bincount"},
    "torch.median": {"median", "nanmedian"},
    "torch.nn.functional.grid_sample": {"grid_sampler_2d_backward", "grid_sampler_3d_backward"},
    "torch.cumsum": {"cumsum", "cumsum_"},  # of floats
    "torch.Tensor.scatter_reduce": {"scatter_reduce", "scatter_reduce_"},  # of reduce="prod"
    "torch.Tensor.resize_": set(),  # of quantised tensors, which there are none of
}  # fmt: skip
RAISING = set().union(*RAISES_IF_STRICT.values())
NO_KERNEL = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach", "alias", "lift_fresh"}
VIEWS = ("view", "_unsafe_view", "reshape")


@dataclass
class Operation:
    """key: what a graph keeps of it: the operation, its numbers, and of each tensor memory, shape, strides, dtype and
    device.  bytes: inputs read and outputs written by a kernel, 0 where there is none, as for a view."""

    name: str
    key: tuple
    kernel: bool
    bytes: int


@dataclass
class Region:
    """A stretch of a run: its operations and what is wrong with them.

    born: memory made inside; unread: what made memory that no kernel has read, by memory.  Memory is known by its
    address, so that `alive` keeps all of it: none is used again for something else.
    """

    name: str
    operations: list[Operation] = field(default_factory=list)
    born: set[int] = field(default_factory=set)
    unread: dict[int, Operation] = field(default_factory=dict)
    alive: list[Any] = field(default_factory=list)

    @property
    def dead_casts(self) -> list[Operation]:
        return [made for made in self.unread.values() if made.name == "_to_copy"]

    @property
    def kernels(self) -> int:
        return sum(operation.kernel for operation in self.operations)

    @property
    def bytes(self) -> int:
        return sum(operation.bytes for operation in self.operations)

    def differences(self, again: "Region") -> Iterator[str]:
        """What a replay of this region would do otherwise than `again` has done; the first one."""
        if len(self.operations) != len(again.operations):
            yield f"{len(self.operations)} operations were captured, there are {len(again.operations)} now"
        for captured, now in zip(self.operations, again.operations, strict=False):
            for a, b in zip(captured.key, now.key, strict=False):
                if a != b and isinstance(a, tuple) and isinstance(b, tuple) and a[1:] == b[1:]:
                    yield f"{captured.name}: a tensor was captured, another took its place"
                    return
                if a != b:
                    yield f"{captured.name}: {a} was captured, it is {b} now"
                    return


class Watch(TorchDispatchMode):
    """faults: what was found, and how often.  Inside of a step the CPU may not wait, unless `may_wait`."""

    def __init__(self, may_wait: bool) -> None:
        super().__init__()
        self.may_wait = may_wait
        self.faults: Counter[str] = Counter()
        self.region = Region("")

    @contextmanager
    def inside(self, name: str) -> Iterator[Region]:
        """ "step", "captured", or "" for what is neither."""
        before, self.region = self.region, Region(name)
        try:
            yield self.region
        finally:
            self.region = before

    def fault(self, text: str) -> None:
        self.faults[f"{self.region.name}: {text}" if self.region.name else text] += 1

    def waits(self, text: str) -> None:
        if self.region.name and not self.may_wait:
            self.fault(f"waits for the GPU: {text}")

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.removeprefix("aten::")
        if name.startswith("prim::"):  # asks a tensor for its device
            return func(*args, **kwargs)
        inputs = tensors([args, kwargs])
        on_gpu = any(map(lies_on_gpu, inputs))
        masks = name in INDEXING and any(t.dtype in (torch.bool, torch.uint8) for t in tensors(args[1]))
        unsafe = str(func) in FORBIDDEN_CUDAGRAPH_OPS or torch.Tag.cudagraph_unsafe in func.tags
        if on_gpu and (name in WAITS or masks or (unsafe and self.region.name == "captured")):
            self.waits(name)
        if on_gpu and raises_if_strict(name, inputs, [*args, *kwargs.values()]):
            self.fault(f"raises if strict: {name}")
        if name in ("_local_scalar_dense", "item"):  # any number will do
            return {torch.bool: True, torch.int64: 0}.get(inputs[0].dtype, 0.5)
        # fused updates have no fake kernel; they write into what they are given and return nothing
        output = None if name.startswith("_fused_") else func(*args, **kwargs)
        outputs = tensors(output)
        if on_gpu and name in ("_to_copy", "copy_") and not all(map(lies_on_gpu, outputs)):
            self.waits("a copy to the CPU")
        if self.region.name == "captured":
            self.look(func, name, args, kwargs, output)
        return output

    def look(self, func: Any, name: str, args: tuple, kwargs: dict, output: Any) -> None:
        region, inputs, outputs = self.region, tensors([args, kwargs]), tensors(output)
        for tensor in (*inputs, *outputs):
            if not lies_on_gpu(tensor):
                self.fault(f"a tensor on the CPU: {name}")
        if torch.Tag.nondeterministic_seeded in func.tags:
            self.fault(f"draws: {name}")
        if name.startswith(SOLVERS) and name not in HARMLESS:
            self.fault(f"a solver's library: {name}")
        if name in CONVOLUTIONS and any(t.dtype == torch.float32 for t in inputs[:2]):
            self.fault(f"outside of autocast: {name}")
        read = {memory(t) for t in inputs}
        made = [t for t in outputs if memory(t) not in read]
        kernel = name not in NO_KERNEL and name != "t" and not name.startswith(VIEWS)
        kernel = kernel and (bool(made) or name.endswith("_") or "out" in kwargs)
        size = sum(t.numel() * t.element_size() for t in (*inputs, *made)) if kernel else 0
        key = (str(func), *(kept(value, region) for value in leaves([args, kwargs])))
        operation = Operation(name, key, kernel, size)
        region.operations.append(operation)
        region.alive += [t.untyped_storage() for t in (*inputs, *outputs)]
        if kernel:
            for place in read:
                region.unread.pop(place, None)
        for tensor in made:
            region.born.add(memory(tensor))
            region.unread[memory(tensor)] = operation


def raises_if_strict(name: str, inputs: list[Tensor], arguments: list) -> bool:
    if name.startswith("cumsum"):
        return inputs[0].is_floating_point()
    if name.startswith("scatter_reduce"):
        return "prod" in [a for a in arguments if isinstance(a, str)]
    return name in RAISING


def lies_on_gpu(tensor: Tensor) -> bool:
    """`tensor.is_cuda`, which of a fake one is an operation itself."""
    return (tensor.fake_device if isinstance(tensor, FakeTensor) else tensor.device).type == "cuda"


def memory(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def kept(value: Any, region: Region) -> Any:
    """What a graph keeps of an argument."""
    if not isinstance(value, Tensor):
        return value if isinstance(value, int | float | str | None) else str(value)
    place = memory(value)
    where = "made inside" if place in region.born else place
    return where, tuple(value.shape), value.stride(), value.storage_offset(), value.dtype, lies_on_gpu(value)


def leaves(value: Any) -> list:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [leaf for part in value for leaf in leaves(part)]
    return [value]


def tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in leaves(value) if isinstance(leaf, Tensor)]
