"""Image files: classify them with a trained network."""

import json
import sys
from argparse import Namespace
from pathlib import Path

from selfdistill.cli.common import Commands, add_command


def add(commands: Commands) -> None:
    sub = add_command(
        commands,
        "predict",
        predict,
        "classify image files with a trained network",
        "Classify image files with a trained run, from its deepest exit or any other, or each from the first exit that "
        "is sure. Images are converted to the channels and size that the network was trained on. Prints file, class, "
        "probability and exit; what an image cost on average is a line of standard error. Of a folder every file is "
        "taken, those of its folders, too, but hidden ones. A file that cannot be read is told in a line of standard "
        "error; the others are classified all the same, and the exit code is 1.",
        "Example: selfdistill predict results/runs/resnet10-slim/byot/0-4/0 photo.png --exit 2",
    )
    sub.add_argument(
        "folder",
        type=Path,
        metavar="RUN",
        help="folder of a trained run, results/runs/MODEL/VARIANT/BLOCK/SEED, or one that was exported",
    )
    sub.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help="image files, or folders of them")
    sub.add_argument("--exit", type=int, metavar="N", help="exit to read, 1 the shallowest (default: the deepest)")
    sub.add_argument(
        "--confidence",
        type=float,
        metavar="P",
        help="stop each image at the first exit that gives a class at least this probability",
    )
    sub.add_argument(
        "--budget",
        type=float,
        metavar="M",
        help="stop images early so that one costs at most M million multiply-adds on average, by thresholds that hold "
        "on the run's validation images",
    )
    sub.add_argument(
        "--invert", action="store_true", help="for dark strokes on white, where training had white on dark"
    )
    sub.add_argument("--json", action="store_true", help="machine-readable, with the probabilities of all classes")


def predict(options: Namespace) -> int:
    from selfdistill.errors import printable
    from selfdistill.evaluation.images import PredictError, classify

    refused, before, macs = 0, "[", []
    limits = {"confidence": options.confidence, "budget": options.budget}
    for answer in classify(options.folder, options.images, options.exit, options.invert, **limits):
        if isinstance(answer, PredictError):
            refused += 1
            print(f"selfdistill predict: {printable(str(answer))}", file=sys.stderr)
            continue
        macs += [answer["million_macs"]] if "million_macs" in answer else []
        if options.json:
            print(before + "\n " + json.dumps(answer, allow_nan=False), end="")
            before = ","
        else:
            told = f"{answer['probability']:.3f}\texit {answer['exit']}/{answer['exits']}"
            print(f"{printable(answer['file'])}\t{printable(answer['class'])}\t{told}")
    if options.json:
        print("[]" if before == "[" else "\n]")
    if macs:
        mean = f"{sum(macs) / len(macs):.4g} million multiply-adds an image on average"
        print(f"selfdistill predict: {mean}, {len(macs)} image{'s' if len(macs) > 1 else ''}", file=sys.stderr)
    return int(refused > 0)
