"""Behind gpu_run.sh, which says what this does."""

import argparse
import gzip
import hashlib
import itertools
import json
import lzma
import math
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))
STUDY = ROOT / "studies" / "cifar100-resnet18"
# the parts of the time that checking and measuring may take, each
CHECK_SHARE, SPEED_SHARE = 0.2, 0.25
STARTED = time.monotonic()
CPU_IMAGES, MADE_IMAGES = (1000, 500), (300, 100)  # training and validation images of a small run


def main() -> int:
    options = arguments()
    options.out.mkdir(parents=True, exist_ok=True)
    options.state.mkdir(parents=True, exist_ok=True)
    log = Log(options.out / "log.txt")
    study = read_study(options)
    from selfdistill.training import determinism

    determinism.prepare_environment(study.recipe.determinism, study.recipe.threads)
    os.environ.setdefault("SELFDISTILL_CHECKPOINTS", str(options.state / "checkpoints"))
    import torch

    if not options.cpu and not torch.cuda.is_available():
        print("gpu_run: no GPU that PyTorch can use; add --cpu for a small run without one", file=sys.stderr)
        return 2
    determinism.apply(study.recipe)
    log(f"{device_name()}, PyTorch {torch.__version__}, Python {sys.version.split()[0]}, {options.seconds} s")
    mode = once("check", ["check.json"], options, log, lambda: check(study, options, log))
    study.recipe = changed(study.recipe, **(mode or {"compile": False, "cuda_graphs": False}))
    log(f"cells are trained with {mode}")
    speed = ["speed.json", "speed.md", "speed.png"]
    once("speed", speed, options, log, lambda: measure_speed(study, options, log))
    prepare_data(study, options, log)
    train_cells(study, options, log)
    log(
        f"stopped after {elapsed():.0f} s" + (f"; {log.faults} parts FAILED, see {log.file.name}" if log.faults else "")
    )
    return int(log.faults > 0)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="gpu_run.sh", description=__doc__)
    parser.add_argument("--seconds", type=float, required=True, help="the whole time that this run may take")
    parser.add_argument("--data", type=Path, help="CIFAR-100: a mirror folder, or its mosaics")
    parser.add_argument("--out", type=Path, required=True, help="folder for the few files to bring home")
    state = Path(tempfile.gettempdir()) / f"selfdistill-gpu-run-{os.getuid()}"
    parser.add_argument("--state", type=Path, default=state, help="folder for what the next run goes on from")
    parser.add_argument("--cpu", action="store_true", help="a small run on the CPU, to try this out")
    options = parser.parse_args()
    if options.data is None and not options.cpu:
        parser.error("--data is needed: the folder with CIFAR-100")
    if options.data and not options.data.is_dir():
        parser.error(f"--data {options.data}: no such folder")
    return options


def elapsed() -> float:
    return time.monotonic() - STARTED


class Log:
    """Lines to the screen and to a file, with the seconds since the start; counts the faults."""

    faults = 0

    def __init__(self, path: Path) -> None:
        self.file = open(path, "a", encoding="utf-8")  # noqa: SIM115  (open as long as the run)

    def __call__(self, text: str) -> None:
        self.faults += "FAILED" in text or "WRONG" in text
        line = f"[{elapsed():6.1f} s] {text}"
        print(line, flush=True)
        self.file.write(line + "\n")
        self.file.flush()


def once(part: str, files: list[str], options, log: Log, work) -> object:
    """Do a part in the first run on a machine; later ones take over its answer and files."""
    answer = options.state / f"{part}-done.json"
    if answer.is_file():
        for name in files:
            if (options.state / name).is_file():
                shutil.copy2(options.state / name, options.out / name)
        log(f"{part}: done by an earlier run on this machine")
        return json.loads(answer.read_text())
    result = attempt(log, part, work)
    for name in files:
        if (options.out / name).is_file():
            shutil.copy2(options.out / name, options.state / name)
    answer.write_text(json.dumps(result if result is not None else {}))
    return result or {}


def attempt(log: Log, what: str, work) -> object:
    """A part that fails is noted and does not take the others with it."""
    try:
        return work()
    except Exception as error:
        log(f"{what} FAILED: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
        log.file.write(traceback.format_exc())
        return None


class LightStudy(SimpleNamespace):
    """The study as the training code wants it; without the schema, whose library may be missing here.

    `selfdistill check` and the tests validate the file where it is written.
    """

    own_networks = ()

    def variant(self, name: str) -> SimpleNamespace:
        from selfdistill import methods

        default = {key: spec["default"] for key, spec in methods.executed(name)["hyper"].items()}
        return SimpleNamespace(name=name, method=name, hyper={**default, **self.hyper[name]}, recipe=self.recipe)

    def teacher_of(self, name: str) -> tuple[str | None, None]:
        return (self.teacher if name in self.students else None), None

    def run_folder(self, model: str, variant: str, seed: int) -> Path:
        return self.results / "runs" / model / variant / str(seed)

    def record_file(self, model: str, variant: str, seed: int) -> Path:
        return self.results / "records" / model / variant / f"{seed}.json"

    def host_file(self, model: str, variant: str, seed: int) -> Path:
        return self.results / "hosts" / model / variant / f"{seed}.json"


DEFAULTS = {
    **{"optimiser": "sgd", "beta1": 0.9, "beta2": 0.999, "decay_exempt": False, "cutout": 0, "label_noise": 0.0},
    **{"label_noise_seed": 0, "keep_epochs": [], "precision": "float32", "channels_last": True, "compile": False},
    **{"cuda_graphs": False, "processes": 1, "workers": 0},
}


def read_study(options) -> LightStudy:
    content = yaml.safe_load((STUDY / "params.yaml").read_text())
    recipe = SimpleNamespace(**{**DEFAULTS, **content["recipe"]})
    study = LightStudy(**{"weights": {}, **content, "recipe": recipe})
    study.all_variants = [*study.methods, *study.students]  # not those of a larger teacher, which is a run for hours
    study.root, study.results = str(options.state), options.state / "results"
    study.data_folder = options.state / "data" / "prepared" / study.dataset
    if options.cpu:
        study.models = ["resnet10-slim"]
        study.training_images, study.validation_images = CPU_IMAGES if options.data else MADE_IMAGES
        small = {"epochs": 2, "batch_size": 50, "device": "cpu", "precision": "float32", "compile": False}
        study.recipe = changed(recipe, **small, cuda_graphs=False, warmup_epochs=0)
    else:
        study.recipe = changed(recipe, device="cuda")
    return study


def changed(recipe, **values):
    return type(recipe)(**{**vars(recipe), **values})


def device_name() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


# ---- correctness ----


def check(study, options, log: Log) -> dict:
    """A few dozen steps of every method, in bfloat16; returns the speed switches that work for all.

    A mode is taken if it trains to a finite and falling loss, and one that agrees with the eager mode's
    where both began from the same weights: every method eagerly, those of the study as CUDA graphs, and
    compiled one without exits and one with, since only the network is compiled.  Kept is the mode that
    would be first through a whole plain training, its compilation included.
    """
    import torch

    from selfdistill import methods

    modes = [{"compile": False, "cuda_graphs": False}]
    if not options.cpu:
        modes += [{"compile": False, "cuda_graphs": True}, {"compile": True, "cuda_graphs": True}]
    found, speed, eager = [], {}, {}
    size, steps = (8, 12) if options.cpu else (32, 24)
    for number, mode in enumerate(modes):
        recipe = changed(study.recipe, **mode, precision="bfloat16", epochs=1000, warmup_epochs=0, learning_rate=0.02)
        if number and elapsed() > CHECK_SHARE * options.seconds:
            log(f"mode {mode}: left out, the time for it is over")
            break
        right = True
        for name in [methods.names(), study.all_variants, ["plain", "byot"]][number]:
            entry = {"method": name, **mode}
            try:
                entry |= short_run(study, recipe, name, size, steps)
                entry["right"] = entry["finite"] and entry["last_loss"] < entry["first_loss"]
                if number == 0:
                    eager[name] = entry["losses"]
                else:  # bfloat16 rounds otherwise when kernels are fused
                    apart = abs(entry["losses"][1] - eager[name][1]) / abs(eager[name][1])
                    entry |= {"apart_from_eager": apart, "right": entry["right"] and apart < 0.05}
            except Exception as error:
                entry |= {"right": False, "error": f"{type(error).__name__}: {str(error)[:500]}"}
            log(f"check {entry['method']} {mode}: " + ("right" if entry["right"] else f"WRONG {entry}"))
            right = right and entry["right"]
            found.append(entry)
        plain = [e for e in found if e["method"] == "plain" and e["right"] and e.items() >= mode.items()]
        if right and plain:
            step, whole = plain[-1]["seconds_per_step"], study.recipe.epochs * 45_000 // study.recipe.batch_size
            speed[number] = plain[-1]["first_seconds"] + whole * step
            log(f"mode {mode}: {1000 * step:.2f} ms a step, a training in {speed[number]:.0f} s")
        if not options.cpu:
            torch.cuda.empty_cache()
    best = min(speed, key=speed.get) if speed else 0
    (options.out / "check.json").write_text(json.dumps({"device": device_name(), "checks": found}, indent=1) + "\n")
    return modes[best]


def short_run(study, recipe, name: str, size: int, steps: int) -> dict:
    """Epochs of `steps` steps on made images whose class can be seen; losses by epoch."""
    import torch

    from selfdistill.benchmark import loops

    device = torch.device(recipe.device)
    shape = {"size": size, "channels": 3, "classes": 10, "steps": steps}
    task = loops.Task(study.models[0], name, recipe, device, **shape)
    task.labels = (task.images.float().mean(dim=(1, 2, 3)).argsort().argsort() * 10) // len(task.images)
    task.images = (task.images // 4 + (task.labels * 18).to(torch.uint8).view(-1, 1, 1, 1)).contiguous()
    loop, run = loops.ours(task)
    seconds = [loop() for _ in range(4)]
    losses = [row["loss"] for row in run.history]
    return {
        "finite": all(map(math.isfinite, losses)),
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "losses": losses,
        "first_seconds": seconds[0] + seconds[1],
        "seconds_per_step": seconds[-1] / steps,
    }


# ---- speed ----


def measure_speed(study, options, log: Log) -> None:
    """Plain training and BYOT against the bare loop and the DataLoader; a larger batch while time is left."""
    from selfdistill.benchmark import measure

    shape = {"size": 32, "channels": 3, "classes": 100}
    shape |= {"steps": 4, "rounds": 2, "workers": 0} if options.cpu else {"steps": 100, "rounds": 5, "workers": 8}
    batch = study.recipe.batch_size
    cases = [("plain", batch), ("byot", batch), ("plain", 4 * batch), ("plain", 8 * batch)]
    results, deadline = [], elapsed() + SPEED_SHARE * options.seconds
    for method, size in cases[: 1 if options.cpu else None]:
        if results and elapsed() > deadline:
            log(f"speed of {method} at batch {size}: left out, the time for it is over")
            continue
        recipe = changed(study.recipe, batch_size=size, epochs=100_000)
        case = {**shape, "workers": shape["workers"] if size == batch else -1}
        work = partial(measure.bench, recipe, model=study.models[0], method=method, **case)
        if result := attempt(log, "speed", work):
            results.append(result)
            rate = result["images_per_second"]["ours"]["median"]
            whole = study.recipe.epochs * 45_000 / rate
            log(
                f"{method}, batch {size}: {rate:,.0f} images/s; {study.recipe.epochs} epochs of 45,000 in {whole:.0f} s"
            )
    found = []
    if results and elapsed() < deadline:
        few = {**shape, "rounds": 3, "model": study.models[0], "method": "plain"}
        del few["workers"]
        work = partial(measure.switches, changed(study.recipe, epochs=100_000), **few)
        found = attempt(log, "switches", work) or []
    if results:
        measure.write(options.out, "speed", results, found)
        (options.out / "speed.svg").unlink(missing_ok=True)
        log.file.write(measure.table(results))


# ---- data ----


def prepare_data(study, options, log: Log) -> None:
    """CIFAR-100 as the pipeline prepares it, once; with --cpu a few made images if there is none."""
    if (study.data_folder / "test" / "test.safetensors").is_file():
        return
    from selfdistill.data.prepare import prepare

    raw, prepared = options.state / "data" / "raw", study.data_folder.parent
    if options.data is None:
        make_data(study)
        return
    entry = names(yaml.safe_load((ROOT / "data" / "params.yaml").read_text())["datasets"][study.dataset])
    folder = options.data
    if (folder / "train.prefix.xz").is_file():
        folder = options.state / "data" / "mirror"
        if not (folder / "cifar-100-python" / "meta").is_file():
            unpack_mosaics(options.data, folder / "cifar-100-python")
    os.environ["SELFDISTILL_MIRROR"] = str(folder)
    from selfdistill.data.fetch import fetch

    fetch(study.dataset, entry, raw)  # verifies every file
    prepare(study.dataset, entry, raw, prepared)
    log(f"{study.dataset} prepared")


def names(value):
    """Mappings as objects, which is how the code reads the catalogue."""
    if isinstance(value, dict):
        known = {"md5": None, "unpacked": [], "in_place": False, "image": None, "re_ranking": None, "tests": None}
        known |= {"test": None, "train": None, "validation": None, "seed": 0}  # of a split
        known["target"] = Path(str(value.get("name"))).name
        return SimpleNamespace(**{**known, **{k: names(v) for k, v in value.items()}})
    return [names(v) for v in value] if isinstance(value, list) else value


def unpack_mosaics(folder: Path, target: Path) -> None:
    """The published pickles from lossless mosaics of 5,000 images, 50 a row, and the pickles' beginnings."""
    import numpy as np
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None
    target.mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        with open(target / f"{split}.partial", "wb") as file:
            file.write(lzma.decompress((folder / f"{split}.prefix.xz").read_bytes()))
            for number in itertools.count():
                path = folder / f"{split}-{number}.webp"
                if not path.is_file():
                    break
                with Image.open(path) as image:
                    pixels = np.asarray(image)
                tall, wide = pixels.shape[0] // 32, pixels.shape[1] // 32
                file.write(pixels.reshape(tall, 32, wide, 32, 3).transpose(0, 2, 4, 1, 3).tobytes())
            file.write(b"tbu.")  # the end of the pickle
        os.replace(target / f"{split}.partial", target / split)
    (target / "meta").write_bytes((folder / "meta").read_bytes())


def make_data(study) -> None:
    """Images whose brightness tells the class, in the form of the prepared ones."""
    import torch
    from safetensors.torch import save_file

    chance = torch.Generator().manual_seed(0)
    facts = {"name": study.dataset, "classes": [f"class {i}" for i in range(10)], "channels": 3, "size": [16, 16]}
    facts |= {"mean": [0.5] * 3, "std": [0.25] * 3, "pixels_sha256": {}, "counts": {}}
    facts |= {"quarantined": 0, "shorter_side": None, "white": None}
    for split, folder, count in (("pool", "training", 400), ("test", "test", 200)):
        labels = torch.arange(count) % 10
        noise = torch.randint(60, (count, 3, 16, 16), generator=chance)
        images = (noise + 19 * labels.view(-1, 1, 1, 1)).to(torch.uint8)
        path = study.data_folder / folder / f"{split}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({"images": images, "labels": labels}, path)
        facts["counts"][split] = count
        facts["pixels_sha256"][split] = hashlib.sha256(images.numpy().tobytes()).hexdigest()
    (study.data_folder / "training" / "dataset.json").write_text(json.dumps(facts))


# ---- cells ----


class Deadline:
    """An interruption that comes with the end of the time, and with SIGTERM."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.signal = seconds, 0
        signal.signal(signal.SIGTERM, lambda number, frame: setattr(self, "signal", number))

    @property
    def received(self) -> int:
        return self.signal or (signal.SIGTERM if elapsed() > self.seconds else 0)


def train_cells(study, options, log: Log) -> None:
    """One seed of every method before the second of any; what is done already is not done again."""
    from selfdistill.training.stopping import Interrupted

    margin = max(5.0, 0.03 * options.seconds)  # to save, evaluate and pack
    deadline = Deadline(options.seconds - margin)
    model = study.models[0]
    brought = STUDY / "results" / "records" / "imported" / model
    for seed, method in itertools.product(study.seeds, study.all_variants):
        if deadline.received:
            break
        if study.record_file(model, method, seed).is_file() or (brought / method / f"{seed}.json").is_file():
            continue
        try:
            if method in study.students and not study.run_folder(model, study.teacher, seed).is_dir():
                train(study, model, study.teacher, seed, deadline, log)
            train(study, model, method, seed, deadline, log)
        except Interrupted as stop:
            log(f"{method}, seed {seed}: {stop}")
            break
        except Exception as error:
            log(f"{method}, seed {seed} FAILED: {type(error).__name__}: {str(error)[:300]}")
            log.file.write(traceback.format_exc())
        pack(study, options)
    pack(study, options)


def train(study, model: str, method: str, seed: int, deadline: Deadline, log: Log) -> None:
    """Train and evaluate one cell; prints the time with the accuracy."""
    from selfdistill.stages.evaluate import evaluate_run, open_test
    from selfdistill.stages.plan import training_plan
    from selfdistill.stages.train import train_seed
    from selfdistill.training import determinism
    from selfdistill.training.distributed import ALONE

    device = determinism.apply(study.recipe)
    train_seed(study, training_plan(study, model, method), seed, device, ALONE, deadline, {})  # no DVC there
    test = open_test(study.data_folder / "test", device)
    predictions = study.results / "predictions" / model / method / f"{seed}.safetensors"
    evaluate_run(study.run_folder(model, method, seed), test, predictions, study.record_file(model, method, seed))
    record = json.loads(study.record_file(model, method, seed).read_text())
    host = json.loads(study.host_file(model, method, seed).read_text())
    exits = ", ".join(f"{100 * e['accuracy']:.2f}" for e in record["test"]["last"]["exits"])
    log(f"{method}, seed {seed}: {study.recipe.epochs} epochs in {host['seconds']:.1f} s, test accuracy {exits} %")


def pack(study, options) -> None:
    """All records of this machine, a line each, in the form that `selfdistill records import` reads."""
    model, lines = study.models[0], []
    for path in sorted((study.results / "records" / model).glob("*/*.json")):
        host = study.results / "hosts" / model / path.parent.name / path.name
        entry = {"record": json.loads(path.read_text()), "host": json.loads(host.read_text())}
        lines.append(json.dumps(entry) + "\n")
    if lines:
        packed = gzip.compress("".join(lines).encode(), mtime=0)
        partial = options.out / "records.partial"
        partial.write_bytes(packed)
        os.replace(partial, options.out / "records.jsonl.gz")


if __name__ == "__main__":
    sys.exit(main())
