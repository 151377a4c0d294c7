"""Speed of training: measure it."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from selfdistill.cli.common import Commands, add_command


def add(commands: Commands) -> None:
    sub = add_command(
        commands,
        "bench",
        bench,
        "how fast training is, against a bare loop and the ordinary one",
        "Train on made images and compare, in turns within one run: this project's loop, a bare loop of the same "
        "network on resident tensors (the floor), and PIL images through torchvision's transforms and a DataLoader. "
        "Prints images a second, the share of a step beside forward, backward and update, achieved FLOP/s against "
        "a measured matrix product, and peak memory.",
        "Example: selfdistill bench --model resnet20 --batch 64 --switches --out docs/bench --name cpu",
    )
    add_options(sub)


def add_options(sub: ArgumentParser) -> None:
    sub.add_argument(
        "--model", nargs="+", default=["resnet20", "resnet10-slim"], help="networks (default: %(default)s)"
    )
    sub.add_argument("--method", default="plain", help="method (default: %(default)s)")
    sub.add_argument("--size", type=int, default=32, help="height and width of the images (default: %(default)s)")
    sub.add_argument("--channels", type=int, default=3, help="of the images (default: %(default)s)")
    sub.add_argument("--classes", type=int, default=100, help="(default: %(default)s)")
    sub.add_argument("--batch", type=int, default=64, help="images a step (default: %(default)s)")
    sub.add_argument("--steps", type=int, default=30, help="steps a round (default: %(default)s)")
    sub.add_argument("--rounds", type=int, default=7, help="rounds, each loop once in each (default: %(default)s)")
    sub.add_argument("--workers", type=int, default=0, help="of the ordinary loop's DataLoader (default: %(default)s)")
    sub.add_argument("--device", choices=["cpu", "cuda", "auto"], default="auto", help="(default: %(default)s)")
    sub.add_argument("--threads", type=int, default=1, help="CPU threads (default: %(default)s)")
    sub.add_argument("--precision", choices=["float32", "bfloat16"], default="float32", help="(default: %(default)s)")
    sub.add_argument("--compile", action="store_true", help="with torch.compile")
    sub.add_argument("--cuda-graphs", action="store_true", help="with CUDA graphs")
    sub.add_argument("--switches", action="store_true", help="also measure each speed switch alone (first network)")
    sub.add_argument("--out", type=Path, metavar="FOLDER", help="also write NAME.json, .md, .svg and .png there")
    sub.add_argument("--name", default="bench", help="of those files (default: %(default)s)")


def bench(options: Namespace) -> None:
    from selfdistill.config import Recipe
    from selfdistill.training import determinism

    recipe = Recipe(
        epochs=100_000,
        batch_size=options.batch,
        learning_rate=0.01,
        momentum=0.9,
        nesterov=True,
        weight_decay=5e-4,
        schedule="cosine",
        milestones=[],
        decay=0.1,
        warmup_epochs=0,
        crop_padding=4,
        flip=True,
        device=options.device,
        threads=options.threads,
        determinism="off",
        precision=options.precision,
        compile=options.compile,
        cuda_graphs=options.cuda_graphs,
    )
    determinism.prepare_environment(recipe.determinism, recipe.threads)
    from selfdistill.benchmark import measure

    shape = {key: getattr(options, key) for key in ("method", "size", "channels", "classes", "steps", "rounds")}
    results = [measure.bench(recipe, model=model, workers=options.workers, **shape) for model in options.model]
    print(f"{measure.sentence(results[0])}\n\n{measure.table(results)}")
    found = measure.switches(recipe, model=options.model[0], **shape) if options.switches else []
    if found:
        print(measure.switch_table(found))
    if options.out:
        measure.write(options.out, options.name, results, found)
