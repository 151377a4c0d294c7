"""Determinism in four levels; docs/determinism.md says what each guarantees and costs.

off       the fastest kernels, chosen by trial (cuDNN's benchmark mode), TF32 on a GPU
seeded    no choice by trial; a GPU's kernels may still sum in another order each time
strict    deterministic kernels: the same bits again on the same machine
portable  also the same kernels on every x86-64 CPU with AVX2: no dispatch on the CPU's model

Initial weights, batch order and augmentation come from the run's seed at every level.
"""

import os
import platform
import sys
from pathlib import Path
from typing import Any

from selfdistill.errors import UserError

# what the environment was when torch had been loaded before anyone could prepare it
AT_LOAD = dict(os.environ) if "torch" in sys.modules else None
PREPARED: list[str] = []  # levels that the environment was set for, before torch was loaded; the last one holds
LEVELS = ("off", "seeded", "strict", "portable")

# The libraries under torch choose kernels by the CPU's model, and each choice rounds differently.
# MKL_CBWR is COMPATIBLE, not AVX2: with AVX2, MKL still takes other kernels on AMD than on Intel
# (seen: other bits after one step), with COMPATIBLE both gave the same.
PORTABLE = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_CBWR": "COMPATIBLE",
    "NPY_DISABLE_CPU_FEATURES": "X86_V4 AVX512_ICL AVX512_SPR",
}


class DeterminismError(UserError):
    """A level that this process can no longer have; the message says why and what to do."""


def prepare_environment(level: str, threads: int) -> None:
    """Set what the numerical libraries read once, when they load: call before importing torch.

    Does nothing where torch is loaded already: what its libraries have read stays, and `apply` refuses what does
    not fit it.
    """
    if "torch" in sys.modules:
        return
    PREPARED.append(level)
    os.environ.update({"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)})
    if level == "portable":
        if has_avx2():
            os.environ.update(PORTABLE)
        else:
            print("determinism: portable needs an x86-64 CPU with AVX2; this run's bits are its own", file=sys.stderr)
    if level in ("strict", "portable"):
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"


def has_avx2() -> bool:
    """Whether this is an x86-64 CPU with AVX2 (all since 2013 or 2015); without, ATen would crash."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return False
    try:
        return " avx2 " in Path("/proc/cpuinfo").read_text()
    except OSError:
        return True


def apply(recipe: Any) -> str:
    """Set what torch can be told after it is loaded; returns the device to work on, "cpu" or "cuda:0", numbered.

    recipe: `selfdistill.config.Recipe`.
    """
    import torch

    if fault := misfit(recipe.determinism):
        raise DeterminismError(f"recipe.determinism: {recipe.determinism} cannot be had here: {fault}")
    strict = recipe.determinism in ("strict", "portable")
    torch.set_num_threads(recipe.threads)
    # use_deterministic_algorithms() would also import torch._inductor, 1.5 s at the start of every run
    torch.set_deterministic_debug_mode("error" if strict else "default")
    torch.backends.cudnn.benchmark = recipe.determinism == "off"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = not strict
    device = recipe.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        # one of several processes has the GPU of its number; with the number, because safetensors takes a bare
        # "cuda" for the first one
        rank = int(os.environ.get("LOCAL_RANK", "0"))
        torch.cuda.set_device(rank)
        return f"cuda:{rank}"
    return device


def misfit(level: str) -> str | None:
    """Why a level does not hold in this process, if so: torch's libraries read some variables once.

    They do so when torch is loaded, or at the first convolution: a variable that is set later has no effect.  So
    the environment is compared with what it was when this module was first loaded with torch, or before it.
    """
    if PREPARED and PREPARED[-1] == "portable" != level:
        return "this process was set up for portable; allowed: a process of its own"
    if level not in ("strict", "portable") or (level == "portable" and not has_avx2()):
        return None
    wanted = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", **(PORTABLE if level == "portable" else {})}
    import torch

    seen = os.environ if AT_LOAD is None else AT_LOAD  # torch may have been there before this module
    for name, value in wanted.items():
        if name == "CUBLAS_WORKSPACE_CONFIG" and not torch.cuda.is_available():
            continue
        if seen.get(name) != value:
            return (
                f"PyTorch was loaded with {name}={seen.get(name)}, not {value}; allowed: a process of its own, such as "
                "`selfdistill train`, or this variable set before Python starts"
            )
    if level == "portable" and "AVX512" in torch.backends.cpu.get_cpu_capability():
        return "PyTorch computes with AVX-512; allowed: a process of its own, such as `selfdistill train`"
    return None
