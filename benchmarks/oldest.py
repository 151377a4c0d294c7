"""Runs the guide to a training loop of one's own and all methods and networks, and says in a line what it ran on.

python benchmarks/oldest.py GUIDE: what `oldest.sh` runs in an environment that holds the wheel and what it brings.
"""

import contextlib
import io
import platform
import re
import sys
from importlib.metadata import version
from pathlib import Path

import torch

import selfdistill

BROUGHT = ("torch", "torchvision", "timm", "numpy", "pillow", "pyyaml", "safetensors", "tqdm")


def main(guide: Path) -> None:
    code = "\n".join(re.findall(r"^```python\n(.*?)^```", guide.read_text(encoding="utf-8"), re.M | re.S))
    with contextlib.redirect_stdout(io.StringIO()):
        exec(compile(code, str(guide), "exec"), {})
    made, refused = 0, []
    for name in selfdistill.list_methods():
        try:
            selfdistill.create_method(name)
            made += 1
        except selfdistill.errors.MissingPackageError as error:
            refused.append(f"{name}: {error}")
    networks = [*selfdistill.list_networks(), "timm:convnext_atto", "timm:vit_tiny_patch16_224"]
    for name in networks:
        network = selfdistill.create_network(name, classes=10, size=(64, 64))
        assert network(torch.zeros(2, 3, 64, 64)).logits[-1].shape == (2, 10), name
    versions = ", ".join(f"{package} {version(package)}" for package in BROUGHT)
    print(f"Python {platform.python_version()}, {versions}: ", end="")
    print(f"the guide ran, {len(networks)} networks ran, {made} methods were made; refused: {refused or 'none'}")


main(Path(sys.argv[1]))
