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


def prepare_environment(level: str, threads: int) -> None:
    """Set what the numerical libraries read once, when they load: call before importing torch."""
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


def apply(recipe) -> str:
    """Set what torch can be told after it is loaded; returns the device to work on, "cpu" or "cuda".

    recipe: `selfdistill.config.Recipe`.
    """
    import torch

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
        # one of several processes has the GPU of its number
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    return device
