"""The stand-in for CUDA's driver: built once a machine, loaded before torch."""

import ctypes
import hashlib
import os
import subprocess
import tempfile
from importlib.util import find_spec
from pathlib import Path

SOURCE = Path(__file__).with_name("stand_in.cpp")


def torch_folder() -> Path:
    return Path(str(find_spec("torch").origin)).parent


def library() -> Path:
    """Where the stand-in for this very PyTorch lies, once it is built."""
    key = hashlib.sha256(SOURCE.read_bytes() + (torch_folder() / "version.py").read_bytes()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"selfdistill-{os.getuid()}" / f"stand-in-{key}.so"


def build() -> Path:
    """Compile it, 20 s, unless that is done."""
    path, torch = library(), torch_folder()
    if not path.exists():
        path.parent.mkdir(mode=0o700, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}")
        command = ["g++", "-std=c++20", "-shared", "-fPIC", str(SOURCE), "-o", str(partial), f"-I{torch}/include"]
        command += [f"-L{torch}/lib", "-lc10", "-ltorch_cpu", f"-Wl,-rpath,{torch}/lib"]
        subprocess.run(command, check=True)
        partial.rename(path)  # at once: another process may build it, too
    return path


def install() -> None:
    """From here on this process has a GPU that computes nothing.  Before torch is imported."""
    ctypes.CDLL(str(build()), ctypes.RTLD_GLOBAL).install()
