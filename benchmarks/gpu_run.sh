#!/bin/sh
# What a machine with one GPU can do in a given time, with its system Python alone (torch, torchvision, numpy, pandas,
# seaborn, timm, safetensors, PyYAML; SciPy for SD): cells of studies/cifar100-resnet18, one seed of every method before
# the second of any, each method checked on the GPU before its first; then, once on a machine, the training speed.
#
#     benchmarks/gpu_run.sh --seconds 540 --data FOLDER --out FOLDER [--state FOLDER] [--cpu]
#
# --data   CIFAR-100: a mirror folder (cifar-100-python.tar.gz, or cifar-100-python/{train,test,meta}), or the
#          folder with its lossless mosaics (train-0.webp ..., train.prefix.xz, meta); with --cpu it may be left out
# --out    a few small files: records.jsonl.gz, check.json, speed.json, speed.md, speed.png, log.txt
# --state  where checkpoints and weights wait for the next run (default: the system's temporary folder)
# --cpu    the same from end to end with a small network, two epochs and few images
#
# A run stops in time and the next one goes on from where it stopped. Bring records.jsonl.gz home and, in
# studies/cifar100-resnet18:    selfdistill records import records.jsonl.gz
PYTHON=${PYTHON:-python3}
exec "$PYTHON" "$(dirname "$0")/gpu_run.py" "$@"
