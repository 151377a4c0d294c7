"""Several processes that train one network: each takes its rows of every batch.

The batch stays what the recipe says, and gradients, batch statistics, losses and accuracies are those
of the whole batch; so the number of processes changes the result by rounding only.
"""

import os
import signal
import warnings
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from selfdistill.training.stopping import RESUME_ME


@dataclass(frozen=True)
class World:
    """The processes of this run: this one's number, and how many there are."""

    rank: int = 0
    size: int = 1

    def share(self, start: int, stop: int) -> slice:
        """This process's part of the rows from `start` to `stop`: parts differ by one row at most,
        none is dropped and none repeated."""
        count = stop - start
        return slice(start + count * self.rank // self.size, start + count * (self.rank + 1) // self.size)

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes; `values` is not changed."""
        if self.size == 1:
            return values
        total = values.clone()
        dist.all_reduce(total)
        return total

    def sum_with_gradient(self, values: Tensor) -> Tensor:
        """The sum over all processes, through which gradients flow back to each."""
        return values if self.size == 1 else SumOverProcesses.apply(values)

    def rows_of_all(self, values: Tensor, count: int) -> tuple[Tensor, slice]:
        """Rows that are shared out, `count` over all processes, put together without gradient; and where
        this process's are."""
        mine = self.share(0, count)
        if self.size == 1:
            return values.detach(), mine
        together = values.new_zeros(count, *values.shape[1:])
        together[mine] = values.detach()
        dist.all_reduce(together)
        return together, mine

    def most(self, value: int) -> int:
        """The largest of a small number over all processes."""
        return self.most_of_each([value])[0]

    def most_of_each(self, values: list[int]) -> list[int]:
        """The largest over all processes of each of some small numbers."""
        if self.size == 1:
            return values
        highest = torch.tensor(values)
        dist.all_reduce(highest, dist.ReduceOp.MAX, group=_on_cpu())
        return highest.tolist()

    def gather(self, value: Any) -> list[Any]:
        """A small Python object of every process, by rank."""
        if self.size == 1:
            return [value]
        gathered: list[Any] = [None] * self.size
        dist.all_gather_object(gathered, value, group=_on_cpu())
        return gathered


ALONE = World()


@cache
def _on_cpu() -> dist.ProcessGroup:
    """Control messages travel beside the GPU's queue, so that asking never waits for it."""
    return dist.new_group(backend="gloo")


def join(device: str) -> World:
    """Meet the other processes that torchrun started, if it did; NCCL on GPUs, gloo on CPUs."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return ALONE
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    return World(dist.get_rank(), size)


def launch(processes: int, command: list[str]) -> int:
    """Run a command as so many processes on this machine by torchrun; returns the exit code."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main

    try:
        main(["--standalone", f"--nproc-per-node={processes}", "--no-python", *command])
    except SignalException as error:
        return RESUME_ME if error.sigval == signal.SIGTERM else 130
    except ChildFailedError as error:
        return max(failure.exitcode for failure in error.failures.values())
    return 0


class SumOverProcesses(torch.autograd.Function):
    """The sum over all processes; backward, the sum of what every process wants of it."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return SumOverProcesses.apply(gradient.contiguous())


class NormaliseAcrossProcesses(torch.autograd.Function):
    """Batch normalisation with the statistics of the whole batch, rounded as torch's own CPU kernels
    round: sums in float64, each image in its own precision.

    So one process and several differ by no more than the order of the weights' gradients' sums.  What
    is saved there is not cosmetic: a rounding that moves one activation across ReLU's zero changes a
    loss by 1e-5 and more.  Returns the output, the mean and the variance, C each, in float64.
    """

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, weight: Tensor, bias: Tensor, epsilon: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        values = images.double()
        count = torch.full((1,), images.numel() / images.shape[1], dtype=torch.float64)
        total = torch.cat([values.sum(dim=(0, 2, 3)), count])
        dist.all_reduce(total)
        mean, count = total[:-1] / total[-1], total[-1]
        variance = (values - mean.view(1, -1, 1, 1)).square().sum(dim=(0, 2, 3))
        dist.all_reduce(variance)
        variance /= count
        mean_, variance_ = mean.to(weight.dtype), variance.to(weight.dtype)
        ctx.save_for_backward(images, weight, mean_, (variance + epsilon).rsqrt().to(weight.dtype))
        ctx.count = count.item()
        output = nn.functional.batch_norm(images, mean_, variance_, weight, bias, eps=epsilon)
        return output, mean, variance * count / (count - 1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        images, weight, mean, scale = ctx.saved_tensors
        centred = images - mean.view(1, -1, 1, 1)
        exact = gradient.double()
        local = torch.stack([exact.sum(dim=(0, 2, 3)), (exact * centred.double()).sum(dim=(0, 2, 3))])
        total = local.clone()
        dist.all_reduce(total)
        shift, slope = total / ctx.count
        slope = (slope * scale.double().square()).to(images.dtype).view(1, -1, 1, 1)
        wanted = gradient - shift.to(images.dtype).view(1, -1, 1, 1) - centred * slope
        by_weight = local[1] * scale.double()
        return wanted * (scale * weight).view(1, -1, 1, 1), by_weight.to(weight.dtype), local[0].to(weight.dtype), None


class BatchNormAcrossProcesses(nn.BatchNorm2d):
    """nn.BatchNorm2d over all processes' images, on CPUs, where nn.SyncBatchNorm does not run."""

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    momentum: float

    def forward(self, images: Tensor) -> Tensor:
        if not self.training:
            return super().forward(images)
        output, mean, variance = NormaliseAcrossProcesses.apply(images, self.weight, self.bias, self.eps)
        with torch.no_grad():
            self.num_batches_tracked += 1
            for running, found in ((self.running_mean, mean), (self.running_var, variance)):
                running.copy_((1 - self.momentum) * running.double() + self.momentum * found)
        return output


def synchronised(network: nn.Module, device: str) -> nn.Module:
    """The network with batch statistics over all processes; its state keeps its names."""
    if device.startswith("cuda"):
        return nn.SyncBatchNorm.convert_sync_batchnorm(network)
    for module in network.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = BatchNormAcrossProcesses  # same parameters and buffers, another forward
    return network


def shared(network: nn.Module) -> nn.Module:
    """The network whose gradients are averaged over all processes while they are computed.

    Every output must enter the loss, if with weight 0: a parameter without gradient ends in an error.
    """
    from torch.nn.parallel import DistributedDataParallel

    with warnings.catch_warnings():
        # the argument has another name from PyTorch 2.13 on, which 2.11 does not know
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        # no buffer is sent around: batch statistics are the same everywhere already
        return DistributedDataParallel(network, broadcast_buffers=False, gradient_as_bucket_view=True)
