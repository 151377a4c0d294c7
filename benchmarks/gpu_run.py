"""Behind gpu_run.sh, which says what this does.

Data, then trainings, then measurements, then trainings for as long as there is time.  What might break what comes after
it, or not end in time, runs in a process of its own (`gpu_measure`).
"""

import argparse
import gzip
import itertools
import json
import os
import shutil
import signal
import subprocess
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
TRAIN_SHARE = 0.7  # of the time, before anything is measured; a later run on the machine trains alone
PACKING = 2.0  # seconds kept for the last file
LONGEST = 300  # seconds that a process of its own may take
FIRST_EVALUATION = 2.0  # seconds that saving and evaluating a cell is expected to take before one has
CPU_IMAGES, MADE_IMAGES = (1000, 500), (300, 100)  # training and validation images of a small run
TRIES = 2  # of a cell that fails, on one machine
# A device's fault may spoil all that its process does later: the program then begins again with what is left of the
# time, and of its count of faults.
BEGUN, FAULTS = "SELFDISTILL_GPU_RUN_BEGUN", "SELFDISTILL_GPU_RUN_FAULTS"
STARTED = float(os.environ.get(BEGUN) or time.monotonic())


class TimeUp(BaseException):
    """The time is over; whatever runs ends here."""


def main() -> int:
    options = arguments()
    options.out.mkdir(parents=True, exist_ok=True)
    # what was found and trained in one mode, or of made images, is nothing to another
    options.state /= ("cpu" if options.cpu else "gpu") + ("" if options.data else "-made")
    options.state.mkdir(parents=True, exist_ok=True)
    log = Log(options.out / "log.txt")
    study = read_study(options)
    os.environ.setdefault("SELFDISTILL_CHECKPOINTS", str(options.state / "checkpoints"))
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(options.state / "compiled"))
    signal.signal(signal.SIGALRM, time_is_up)
    signal.signal(signal.SIGTERM, asked_to_stop)
    signal.setitimer(signal.ITIMER_REAL, max(options.seconds - PACKING - elapsed(), 0.1), 1)  # again, if one is lost
    try:
        from selfdistill.training import determinism

        determinism.prepare_environment(study.recipe.determinism, study.recipe.threads)
        import torch

        if not options.cpu and not torch.cuda.is_available():
            print("gpu_run: no GPU that PyTorch can use; add --cpu for a small run without one", file=sys.stderr)
            return 2
        determinism.apply(study.recipe)
        log(f"{device_name()}, PyTorch {torch.__version__}, Python {sys.version.split()[0]}, {options.seconds:g} s")
        work(study, options, log)
    except TimeUp:
        pass
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    pack(study, options, log)
    gather_checks(options)
    for file in options.state.glob("speed.*"):
        shutil.copy2(file, options.out / file.name)
    faults = f"; {log.faults} parts FAILED, see {log.file.name}" if log.faults else ""
    log(f"stopped after {elapsed():.0f} s{faults}")
    return int(log.faults > 0)


def work(study, options, log) -> None:
    import gpu_data

    from selfdistill import methods

    if not attempt(log, "data", lambda: gpu_data.prepare(study, options, log)):
        return
    measured = options.state / "measured"
    if not measured.is_file():
        train_cells(study, options, log, until=TRAIN_SHARE * options.seconds)
        for name in methods.names():
            check(name, study, options, log)
        if measure_speed(study, options, log):
            measured.touch()
    train_cells(study, options, log, until=options.seconds)


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


def time_is_up(*_: object) -> None:
    raise TimeUp


def asked_to_stop(number: int, _: object) -> None:
    """A training saves its state first; whatever else runs ends here."""
    Deadline.signal = number
    if not Deadline.training:
        raise TimeUp


class Log:
    """Lines to the screen and to a file, with the seconds since the start; counts the faults."""

    faults = int(os.environ.get(FAULTS) or 0)

    def __init__(self, path: Path) -> None:
        self.file = open(path, "a", encoding="utf-8")  # noqa: SIM115  (open as long as the run)

    def __call__(self, text: str) -> None:
        self.faults += "FAILED" in text or "WRONG" in text
        line = f"[{elapsed():6.1f} s] {text}"
        print(line, flush=True)
        self.file.write(line + "\n")
        self.file.flush()


def attempt(log: Log, what: str, work) -> bool:
    """Whether a part was done; one that fails is noted and does not take the others with it."""
    try:
        work()
    except Exception as error:
        log(f"{what} FAILED: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}")
        log.file.write(traceback.format_exc())
        return False
    return True


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
        return self.results / "records" / "measured" / model / variant / f"{seed}.json"

    def prediction_file(self, model: str, variant: str, seed: int) -> Path:
        return self.results / "predictions" / model / variant / f"{seed}.json"

    def host_file(self, model: str, variant: str, seed: int) -> Path:
        return self.results / "hosts" / model / variant / f"{seed}.json"


# of a recipe: what `selfdistill.config.Recipe` takes for a key that a study leaves out
DEFAULTS = {
    **{"optimiser": "sgd", "beta1": 0.9, "beta2": 0.999, "decay_exempt": False, "cutout": 0},
    **{"policy": "none", "policy_operations": 2, "policy_magnitude": 9},
    **{"label_noise": 0.0, "label_noise_seed": 0, "keep_epochs": [], "precision": "float32", "channels_last": True},
    **{"compile": False, "cuda_graphs": False, "processes": 1, "workers": 0},
}


def read_study(options) -> LightStudy:
    content = yaml.safe_load((STUDY / "params.yaml").read_text())
    recipe = SimpleNamespace(**{**DEFAULTS, **content["recipe"]})
    study = LightStudy(**{"weights": {}, "analyses": {}, **content, "recipe": recipe})
    study.seeds = [seed for block in content["seeds"] for seed in seeds_of(block)]
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


def seeds_of(block: int | str) -> range:
    first, _, last = str(block).partition("-")
    return range(int(first), int(last or first) + 1)


def changed(recipe, **values):
    return type(recipe)(**{**vars(recipe), **values})


def device_name() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


# ---- processes of their own ----


def apart(options, *arguments: str) -> subprocess.CompletedProcess:
    """Run gpu_measure.py to its end, or until the time is up."""
    command = [sys.executable, str(Path(__file__).with_name("gpu_measure.py")), *arguments]
    flags = ["--cpu"] if options.cpu else []
    try:
        return subprocess.run([*command, *flags], capture_output=True, text=True, check=False, timeout=LONGEST)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, "", f"took more than {LONGEST} s")


def check(method: str, study, options, log: Log) -> list[dict]:
    """A few dozen steps of a method in each mode, once on a machine; what was found of each mode."""
    file = options.state / "checks" / f"{method}-{code_of(method)}.jsonl"
    if not file.is_file():
        file.parent.mkdir(exist_ok=True)
        half = file.with_suffix(".partial")
        half.unlink(missing_ok=True)
        done = apart(options, "check", method, str(half))
        if done.returncode:
            error = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            with open(half, "a") as lines:
                lines.write(json.dumps({"method": method, "right": False, "error": error}) + "\n")
            log.file.write(done.stderr)
        entries = [json.loads(line) for line in half.read_text().splitlines()]
        if any("left_out" in entry for entry in entries):  # the package may be there another time
            half.unlink()
        else:
            half.replace(file)
        for entry in entries:
            said = "left out: " + entry["left_out"] if "left_out" in entry else ""
            said = said or ("right" if entry["right"] else f"WRONG {entry}")
            log(f"check {method} {entry.get('mode', '')}: {said}")
        return entries
    return [json.loads(line) for line in file.read_text().splitlines()]


def code_of(method: str) -> str:
    """A hash of the code that a training with this method executes."""
    from selfdistill.stages import plan

    return plan.code_of(*plan.TRAINING, *plan.method_files(method))[:12]


def gather_checks(options) -> None:
    files = sorted((options.state / "checks").glob("*.jsonl"))
    entries = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    if entries:
        content = {"device": device_name(), "checks": entries}
        (options.out / "check.json").write_text(json.dumps(content, indent=1) + "\n")


def mode_of(method: str, study, options, log: Log) -> dict | None:
    """The fastest right way to take this method's steps, or None where it cannot be trained here.

    Compiling is judged by plain and byot, a network without and one with exits: only the network is compiled.
    """
    eager = {"compile": False, "cuda_graphs": False}
    if options.cpu:
        return eager
    found = check(method, study, options, log)
    alike = check("byot" if "exits" in needs_of(method) else "plain", study, options, log)
    right = [entry for entry in found if entry["right"]]
    if not right:
        return None
    best = min(right, key=lambda entry: entry["training_seconds"])["mode"]
    compiled = min((e for e in alike if e["right"]), key=lambda entry: entry["training_seconds"], default=None)
    graphs = any(entry["mode"]["cuda_graphs"] for entry in right)
    if compiled and compiled["mode"]["compile"] and graphs:
        return compiled["mode"]
    return best


def needs_of(method: str) -> list[str]:
    from selfdistill import methods

    return methods.executed(method)["needs"]


def measure_speed(study, options, log: Log) -> bool:
    modes = {method: mode_of(method, study, options, log) for method in ("plain", "byot")}
    done = apart(options, "speed", str(options.state), json.dumps(modes))
    log.file.write(done.stdout + done.stderr)
    if done.returncode:
        log(f"speed FAILED: {(done.stderr.strip().splitlines() or [str(done.returncode)])[-1]}")
        return False
    log("speed measured")
    return True


# ---- cells ----


class Deadline:
    """An interruption that comes when it is time to save and evaluate, and with SIGTERM."""

    signal = 0  # that came, in any part of this run
    training = False

    def __init__(self, until: float) -> None:
        self.until = until
        self.evaluating: list[float] = []  # seconds that each cell took to save and evaluate

    @property
    def received(self) -> int:
        over = elapsed() > self.until - PACKING - 1.5 * max(self.evaluating, default=FIRST_EVALUATION)
        return self.signal or (signal.SIGTERM if over else 0)


def train_cells(study, options, log: Log, until: float) -> None:
    """One seed of every method before the second of any; what is done already is not done again."""
    from selfdistill.training.stopping import Interrupted

    deadline = Deadline(until)
    model = study.models[0]
    brought = STUDY / "results" / "records" / "imported" / model
    failed = Failed(options.state / "failed.json")
    cells = list(itertools.product(study.seeds, study.all_variants))
    # a cell that failed comes after all others: it may take the device with it
    for seed, method in sorted(cells, key=lambda cell: failed.times(*cell)):
        if deadline.received:
            break
        if study.record_file(model, method, seed).is_file() or (brought / method / f"{seed}.json").is_file():
            continue
        if failed.times(seed, method) >= TRIES:
            log(f"{method}, seed {seed}: left out, it failed {TRIES} times")
            continue
        if lacks := missing_package(method):
            if seed == study.seeds[0] and not deadline.received:
                log(f"{method}: left out, {lacks} is not installed here")
            continue
        try:
            if method in study.students and not study.run_folder(model, study.teacher, seed).is_dir():
                train(study, options, model, study.teacher, seed, deadline, log)
            train(study, options, model, method, seed, deadline, log)
        except Interrupted as stop:
            log(f"{method}, seed {seed}: {stop}")
            if Deadline.signal:
                raise TimeUp from None
            break
        except Exception as error:
            log(f"{method}, seed {seed} FAILED: {type(error).__name__}: {str(error)[:300]}")
            log.file.write(traceback.format_exc())
            failed.note(seed, method)
            if not device_works(study):
                begin_again(log)
        pack(study, options, log)


class Failed:
    """How often each cell failed on this machine."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.counts: dict[str, int] = json.loads(path.read_text()) if path.is_file() else {}

    def times(self, seed: int, method: str) -> int:
        return self.counts.get(f"{method}/{seed}", 0)

    def note(self, seed: int, method: str) -> None:
        self.counts[f"{method}/{seed}"] = self.times(seed, method) + 1
        self.path.write_text(json.dumps(self.counts))


def device_works(study) -> bool:
    """Whether this process can still compute on its device, which an illegal access ends for good."""
    import torch

    try:
        return torch.ones(8, device=study.recipe.device).sum().item() == 8
    except RuntimeError:
        return False


def begin_again(log: Log) -> None:
    """The same command in a fresh process, for as long as is left."""
    log("the device is lost to this process; the run begins again in another one")
    signal.setitimer(signal.ITIMER_REAL, 0)
    os.environ |= {BEGUN: str(STARTED), FAULTS: str(log.faults)}
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def missing_package(method: str) -> str | None:
    """What a method imports and this machine lacks."""
    from selfdistill import methods

    try:
        methods.load(method)
    except ModuleNotFoundError as error:
        return error.name
    return None


def train(study, options, model: str, method: str, seed: int, deadline: Deadline, log: Log) -> None:
    """Train and evaluate one cell; prints the time with the accuracy."""
    from selfdistill.evaluation.inputs import FILES, Stored
    from selfdistill.evaluation.splits import open_test
    from selfdistill.files import write_atomically
    from selfdistill.stages.evaluate import evaluate_run
    from selfdistill.stages.evaluate_seeds import validation_of
    from selfdistill.stages.measure import measured
    from selfdistill.stages.plan import measure_plan, training_plan
    from selfdistill.stages.train import train_seed
    from selfdistill.training import determinism
    from selfdistill.training.distributed import ALONE

    mode = mode_of(method, study, options, log)
    if mode is None:
        log(f"{method}, seed {seed}: not trained, its check was wrong")
        return
    study.recipe = changed(study.recipe, **mode)
    device = determinism.apply(study.recipe)
    Deadline.training = True
    try:
        train_seed(study, training_plan(study, model, method), seed, device, ALONE, deadline, {})  # no DVC there
    finally:
        Deadline.training = False
    started = elapsed()
    test = open_test(study.data_folder / "test", device)
    told, staged = study.prediction_file(model, method, seed), options.state / "evaluated"
    evaluate_run(study.run_folder(model, method, seed), test, validation_of(study, seed, device), staged)
    told.parent.mkdir(parents=True, exist_ok=True)
    for name, ending in (FILES | {"record.json": ".json"}).items():
        shutil.move(staged / name, told.with_name(f"{seed}{ending}"))
    content, _ = measured(Stored(told, device), measure_plan(study))
    write_atomically(study.record_file(model, method, seed), content)
    deadline.evaluating.append(elapsed() - started)
    record = json.loads(study.record_file(model, method, seed).read_text())
    host = json.loads(study.host_file(model, method, seed).read_text())
    rows = record["measures"]["accuracy"]["rows"]["last"]
    exits = ", ".join(f"{100 * row['accuracy']:.2f}" for row in rows if row["exit"] != "ensemble")
    log(f"{method}, seed {seed}, {mode}: {study.recipe.epochs} epochs in {host['seconds']:.1f} s, test {exits} %")


def pack(study, options, log: Log) -> None:
    """All records of this machine, a line each, in the form that `selfdistill records import` reads; but for cells that
    were brought from elsewhere before, of which a teacher may have been trained here again."""
    model, lines = study.models[0], []
    for path in sorted((study.results / "records" / "measured" / model).glob("*/*.json")):
        cell = f"{model}/{path.parent.name}/{path.stem}"
        if (STUDY / f"results/records/imported/{cell}.json").is_file():
            continue
        line = options.state / "lines" / f"{cell}.json"
        work = partial(write_line, study, path, cell, line)
        fresh = line.is_file() and line.stat().st_mtime_ns >= path.stat().st_mtime_ns
        if fresh or attempt(log, f"packing {cell}", work):
            lines.append(line.read_text())
    if lines:
        packed = gzip.compress("".join(lines).encode(), mtime=0)
        half = options.out / "records.partial"
        half.write_bytes(packed)
        os.replace(half, options.out / "records.jsonl.gz")


def write_line(study, record_file: Path, cell: str, line: Path) -> None:
    """A run as `selfdistill records export` packs it, with what it says of each test image."""
    from selfdistill.files import write_atomically
    from selfdistill.reporting import per_image

    record = json.loads(record_file.read_text())
    host = json.loads((study.results / f"hosts/{cell}.json").read_text())
    found = per_image.of_predictions(study.results / f"predictions/{cell}.safetensors", record)
    entry = {"record": record, "host": host, "images": per_image.encoded(found)}
    write_atomically(line, (json.dumps(entry) + "\n").encode())


if __name__ == "__main__":
    sys.exit(main())
