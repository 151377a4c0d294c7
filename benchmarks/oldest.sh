#!/bin/sh
# Tries the light installation in fresh environments: with the oldest versions that pyproject.toml allows, and
# with the newest that the registry has. Needs uv and a network, and 5 GB of disk where torch is a CUDA build.
#
#     benchmarks/oldest.sh [PYTHON]
#
# Builds the wheel, installs it with what it brings and nothing else, and prints for each environment the versions
# and what ran there: docs/own-training-loop.md as printed, every method made, every network run (oldest.py).
set -eu
cd "$(dirname "$0")/.."
here=$(pwd) python=${1:-3.11}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/source" "$work/empty"
cp -R pyproject.toml README.md LICENSE src "$work/source"
uv build --quiet --wheel --out-dir "$work" "$work/source"
for versions in lowest-direct highest; do
    uv venv --quiet --python "$python" "$work/$versions"
    uv pip install --quiet --python "$work/$versions" --resolution "$versions" -r pyproject.toml "$work"/*.whl
    (cd "$work/empty" && env -u PYTHONPATH "$work/$versions/bin/python" "$here/benchmarks/oldest.py" "$here/docs/own-training-loop.md")
    rm -rf "${work:?}/$versions"
done
