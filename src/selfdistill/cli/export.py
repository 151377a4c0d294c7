"""Take a trained network away: as ONNX, or as a folder of its own."""

from argparse import Namespace
from pathlib import Path

from selfdistill.cli.common import Commands, add_command


def add(commands: Commands) -> None:
    sub = add_command(
        commands,
        "export",
        export,
        "write a trained network as ONNX, or as a folder of its own",
        "Write the network of a trained run to a file that ends in .onnx, or to a folder of safetensors and "
        "config.json that `selfdistill.load` opens, each with a model card. An ONNX file is held against PyTorch by "
        "ONNX Runtime before it is kept.",
        "Example: selfdistill export results/runs/resnet10-slim/byot/0-9/0 byot.onnx --exit 2",
    )
    sub.add_argument("folder", type=Path, metavar="RUN", help="folder of a trained run, or one that was exported")
    sub.add_argument("out", type=Path, metavar="OUT", help="a file that ends in .onnx, or a new folder")
    sub.add_argument(
        "--exit", type=int, metavar="K", help="of .onnx: the exit to cut at, 1 the shallowest (default: the deepest)"
    )
    sub.add_argument(
        "--selection", metavar="EPOCH", help="of a run's weights: last (default), or validation, the best there"
    )
    sub.add_argument("--force", action="store_true", help="replace what an earlier export left there")


def export(options: Namespace) -> None:
    from selfdistill.exports.folder import export_folder
    from selfdistill.exports.network import ExportError, open_network

    onnx = options.out.name.lower().endswith(".onnx")
    if options.out.name.lower() == ".onnx":
        raise ExportError(f"{options.out}: an ending without a name; allowed: such as network.onnx, or a folder")
    if options.exit is not None and not onnx:
        raise ExportError(
            f"--exit {options.exit}: a folder holds every exit; allowed: of a file that ends in .onnx "
            "(`selfdistill.load(FOLDER, exit=K)` cuts a folder's network)"
        )
    opened = open_network(options.folder, options.selection)
    if onnx:
        from selfdistill.exports.onnx import export_onnx

        number = opened.number(options.exit)
        difference = export_onnx(opened, options.folder, options.out, options.exit, options.force)
        print(
            f"{options.out}: exit {opened.exit_name(number)}, within {difference:.1g} of PyTorch; "
            f"card: {options.out.with_suffix('.md')}"
        )
    else:
        export_folder(opened, options.folder, options.out, options.force)
        print(f"{options.out}: {opened.exits} exit{'s' if opened.exits > 1 else ''}; card: {options.out / 'README.md'}")
