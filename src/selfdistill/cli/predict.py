"""Image files: classify them with a trained network."""

from argparse import Namespace
from pathlib import Path

from selfdistill.cli.common import Commands, add_command


def add(commands: Commands) -> None:
    sub = add_command(
        commands,
        "predict",
        predict,
        "classify image files with a trained network",
        "Classify image files with a trained run, from its deepest exit or any other. Images are converted to the "
        "channels and size that the network was trained on. Prints file, class, probability and exit.",
        "Example: selfdistill predict results/runs/resnet10-slim/byot/0-4/0 photo.png --exit 2",
    )
    sub.add_argument(
        "folder", type=Path, metavar="RUN", help="folder of a trained run, results/runs/MODEL/VARIANT/BLOCK/SEED"
    )
    sub.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help="image files")
    sub.add_argument("--exit", type=int, metavar="N", help="exit to read, 1 the shallowest (default: the deepest)")
    sub.add_argument(
        "--invert", action="store_true", help="for dark strokes on white, where training had white on dark"
    )
    sub.add_argument("--json", action="store_true", help="machine-readable, with the probabilities of all classes")


def predict(options: Namespace) -> None:
    import json

    from selfdistill.evaluation.images import classify

    answers = classify(options.folder, options.images, options.exit, options.invert)
    if options.json:
        print(json.dumps(answers, indent=1, allow_nan=False))
        return
    for answer in answers:
        print(
            f"{answer['file']}\t{answer['class']}\t{answer['probability']:.3f}\texit {answer['exit']}/{answer['exits']}"
        )
