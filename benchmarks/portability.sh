#!/bin/sh
# Trains one cell of the default study for some epochs under emulated CPUs of several makes, and natively,
# and prints the hash of the weights of each. Needs qemu-user. Some minutes a CPU.
#
#     benchmarks/portability.sh [EPOCHS] [METHOD]
#
# Portable determinism promises one hash for all; the last line says whether it was kept.
cd "$(dirname "$0")/.." || exit 1
epochs=${1:-2} method=${2:-byot} python=${PYTHON:-.venv/bin/python}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
sed "s/^root: .*/root: $(pwd | sed 's#/#\\/#g')/; s/epochs: [0-9]*/epochs: $epochs/; s/warmup_epochs: [0-9]*/warmup_epochs: 0/; s/- 0-4$/- 0/" \
    params.yaml > "$work/params.yaml"
here=$(pwd)
hash() {
    rm -rf "$work/results"
    export SELFDISTILL_FRESH=1
    (cd "$work" && "$@" "$here/$python" "$here/src/selfdistill" train --model resnet10-slim --variant "$method" --seeds 0) \
        > "$work/log" 2>&1 || { tail -3 "$work/log"; return 1; }
    sha256sum "$work/results/runs/resnet10-slim/$method/0/weights.safetensors" | cut -c1-16
}
for cpu in native Haswell Skylake-Client EPYC-Rome EPYC-Milan; do
    if [ $cpu = native ]; then found=$(hash env); else found=$(hash qemu-x86_64 -cpu $cpu); fi
    echo "$cpu $found" | tee -a "$work/hashes"
done
[ "$(cut -d' ' -f2 "$work/hashes" | sort -u | wc -l)" = 1 ] && echo "one hash for all" || { echo "hashes differ"; exit 1; }
