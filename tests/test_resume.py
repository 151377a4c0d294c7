"""A run that is stopped and resumed ends with the bits of one that never stopped."""

import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, TINY, Project, present, wait_until
from made import VARIANTS, bits, stop_after, train

from selfdistill import methods
from selfdistill.training.checkpoint import Checkpoints
from selfdistill.training.stopping import RESUME_ME, Interrupted


def result(trained) -> tuple:
    best = b"".join(t.numpy().tobytes() for t in trained.validation_best.values())
    members = [(n, k, t.numpy().tobytes()) for n, state in trained.members.items() for k, t in state.items()]
    return bits(trained), best, trained.best_epoch, repr(trained.history), trained.flops, members


@pytest.mark.parametrize("name", [*methods.names(), *VARIANTS])
def test_resume_is_bit_equal_for_every_method(name, tmp_path):
    """Stopped in the middle of an epoch, between epochs and between phases, again and again."""
    whole = result(train(name, epochs=4))
    checkpoints = Checkpoints(tmp_path)
    for steps in (2, 2, 5, 1, 3):  # 2, 4 (epoch over), 9, 10 of 16 (SRDL's second phase begins with 9)
        with pytest.raises(Interrupted, match="the same command"):
            train(name, epochs=4, checkpoints=checkpoints, interruption=stop_after(steps))
    assert result(train(name, epochs=4, checkpoints=checkpoints)) == whole


def test_a_method_that_forgets_to_declare_its_state_is_caught(tmp_path):
    """The promise above can fail: a method that keeps a number outside `state` loses it."""

    class Forgetful(methods.load("plain"), about=methods.about("plain")):
        seen = 0

        def terms(self, step):
            self.seen += 1
            return {"cross_entropy": super().terms(step)["cross_entropy"] * self.seen}

    class Faithful(methods.load("plain"), about=methods.about("plain")):
        def terms(self, step):
            self.state.setdefault("seen", torch.zeros(())).add_(1)
            return {"cross_entropy": super().terms(step)["cross_entropy"] * self.state["seen"]}

    for kind, kept in ((Forgetful, False), (Faithful, True)):
        whole = result(train("plain", method=kind()))
        checkpoints = Checkpoints(tmp_path / kind.__name__)
        with pytest.raises(Interrupted):
            train("plain", method=kind(), checkpoints=checkpoints, interruption=stop_after(6))
        assert (result(train("plain", method=kind(), checkpoints=checkpoints)) == whole) is kept


def test_networks_that_draw_while_they_train_resume_with_their_generators(tmp_path):
    class Noisy(methods.load("plain"), about=methods.about("plain")):
        def terms(self, step):
            import numpy as np

            noise = torch.rand(()) + random.random() + np.random.rand()
            return {"cross_entropy": super().terms(step)["cross_entropy"] * noise}

    whole = result(train("plain", method=Noisy()))
    with pytest.raises(Interrupted):
        train("plain", method=Noisy(), checkpoints=Checkpoints(tmp_path), interruption=stop_after(6))
    assert result(train("plain", method=Noisy(), checkpoints=Checkpoints(tmp_path))) == whole


def stop_twice(folder) -> Checkpoints:
    for steps in (3, 4):
        with pytest.raises(Interrupted):
            train("byot", checkpoints=Checkpoints(folder), interruption=stop_after(steps))
    assert len(Checkpoints(folder).files()) == 2
    return Checkpoints(folder)


@pytest.mark.parametrize("damage", ["truncated", "emptied", "flipped", "header flipped"])
def test_a_damaged_checkpoint_is_noticed_and_the_older_one_used(damage, tmp_path, capsys):
    whole = result(train("byot"))
    newest, older = stop_twice(tmp_path).files()
    content = bytearray(newest.read_bytes())
    if damage == "truncated":
        del content[-100:]
    elif damage == "emptied":
        content.clear()
    else:
        content[10 if damage.startswith("header") else len(content) // 2] ^= 1
    newest.write_bytes(content)
    assert Checkpoints(tmp_path).newest()[1]["steps_done"] == int(older.name.split("-")[0])
    assert f"{newest}: damaged" in capsys.readouterr().err
    assert result(train("byot", checkpoints=Checkpoints(tmp_path))) == whole
    for path in Checkpoints(tmp_path).files():
        path.write_bytes(b"")
    assert Checkpoints(tmp_path).newest() is None


def test_the_newest_two_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for steps in range(5):
        checkpoints.save({"a": torch.tensor(steps)}, {"steps": steps}, steps)
    assert [int(path.name.split("-")[0]) for path in checkpoints.files()] == [4, 3]
    tensors, state = checkpoints.newest()
    assert (int(tensors["a"]), state) == (4, {"steps": 4})
    checkpoints.clear()
    assert not tmp_path.exists()


# ---- real processes, with the command that the pipeline runs ----


def cells(tiny_study: Project, folder: Path, **changes) -> Project:
    """A folder with the prepared digits and a study of 120 epochs."""
    (folder / "data").mkdir(parents=True)
    for name in ("data/prepared", "data/params.yaml", "src"):
        (folder / name).symlink_to(tiny_study.folder / name)
    project = Project(folder)
    known = {f"hyper.{name}": {} for name in methods.names()}
    project.params_from(ROOT / "params.yaml", **{**TINY, **known, "recipe.epochs": 120, "seeds": [0, 1], **changes})
    return project


@pytest.fixture(scope="module")
def study(tiny_study, tmp_path_factory) -> Project:
    listed = [name for name in methods.names() if "teacher" not in methods.about(name)["needs"]]
    return cells(tiny_study, tmp_path_factory.mktemp("cells") / "study", methods=listed)


def start(study: Project, method: str, seed: int = 0, **environment) -> subprocess.Popen:
    command = [sys.executable, "src/selfdistill", "train", "--model", "resnet10-slim", "--variant", method]
    return subprocess.Popen(
        [*command, "--seeds", str(seed)],
        cwd=study.folder,
        env={**study.environment, "SELFDISTILL_FRESH": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def outputs(study: Project, method: str) -> dict[str, bytes]:
    folder = study / "results/runs/resnet10-slim" / method / "0"
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def wait_for_checkpoint(
    study: Project, method: str, process: subprocess.Popen, other_than: set[str] = frozenset()
) -> set[str]:
    def found() -> set[str]:
        return {p.name for p in present(study.folder, f".work/checkpoints/*-{method}-*/*.safetensors")}

    wait_until(lambda: found() - other_than, process)
    return found()


# in this process: test_resume_is_bit_equal_for_every_method; a kill -9: test_a_block_killed_in_its_second_run_...
@pytest.mark.nightly
@pytest.mark.parametrize("method", ["byot", "srdl", "pskd"])
def test_kill_minus_nine_loses_nothing(study, method):
    process = start(study, method)
    assert process.wait(timeout=600) == 0, process.communicate()
    whole = outputs(study, method)
    seen = set()
    chance = random.Random(method)
    for _ in range(2):
        process = start(study, method)
        seen |= wait_for_checkpoint(study, method, process, seen)
        time.sleep(chance.uniform(0, 0.5))
        process.send_signal(signal.SIGKILL)
        process.communicate()
    process = start(study, method)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    assert outputs(study, method) == whole
    assert not present(study.folder, f".work/checkpoints/*-{method}-*")


def catches(pid: int, number: signal.Signals) -> bool:
    """Whether a process has a handler for a signal."""
    (mask,) = re.findall(r"^SigCgt:\t(\w+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return bool(int(mask, 16) >> (number - 1) & 1)


def test_sigterm_saves_and_says_resume_me(study):
    process = start(study, "cskd")
    wait_until(lambda: catches(process.pid, signal.SIGTERM), process)  # torch is still being loaded, or it trains
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == RESUME_ME == 75
    assert "its state is saved; the same command goes on from there" in errors
    assert present(study.folder, ".work/checkpoints/*-cskd-*/*.safetensors")


def test_control_c_says_how_to_resume(study):
    process = start(study, "sd")
    wait_for_checkpoint(study, "sd", process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 130
    assert "the same command goes on from there" in errors
    assert "Traceback" not in errors


def test_changed_inputs_never_resume_an_old_run(study, tmp_path):
    process = start(study, "plain", SELFDISTILL_CHECKPOINTS=str(tmp_path))
    wait_until(lambda: present(tmp_path, "*/*.safetensors"), process)
    process.kill()
    process.communicate()
    (old,) = tmp_path.iterdir()
    content = (study / "params.yaml").read_text()
    study.params(**{"recipe.learning_rate": 0.02, "recipe.epochs": 2})
    process = start(study, "plain", SELFDISTILL_CHECKPOINTS=str(tmp_path))
    assert process.wait(timeout=600) == 0, process.communicate()
    (study / "params.yaml").write_text(content)
    history = outputs(study, "plain")["history.csv"].decode().splitlines()
    assert len(history) == 3
    assert old.is_dir()


def full_disk() -> None:
    """No file of this process may grow beyond 100 kB: what a full disk does to a write."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))


def test_a_full_disk_is_one_clear_line_and_the_last_checkpoint_stays(study, tmp_path):
    command = [
        sys.executable,
        "src/selfdistill",
        "train",
        "--model",
        "resnet10-slim",
        "--variant",
        "plain",
        "--seeds",
        "1",
    ]
    environment = {**study.environment, "SELFDISTILL_CHECKPOINTS": str(tmp_path)}
    process = start(study, "plain", 1, SELFDISTILL_CHECKPOINTS=str(tmp_path))
    wait_until(lambda: present(tmp_path, "*/*.safetensors"), process)
    process.kill()
    process.communicate()
    before = {p: p.read_bytes() for p in tmp_path.glob("*/*")}
    done = subprocess.run(
        command, cwd=study.folder, env=environment, capture_output=True, text=True, preexec_fn=full_disk, check=False
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "File too large" in line
    assert str(tmp_path) in line
    assert "the same command goes on" in line
    assert {p: p.read_bytes() for p in tmp_path.glob("*/*")} == before


@pytest.mark.parametrize("place", ["results", ".work"])
def test_a_folder_that_cannot_be_written_is_said_before_the_work(study, tmp_path, place):
    folder = tmp_path / "cells"
    folder.mkdir()
    for name in ("data", "src", "params.yaml"):
        (folder / name).symlink_to(study / name)
    (folder / place).symlink_to("/sys")  # read-only for everyone, root included
    done = start(Project(folder), "plain")
    _, errors = done.communicate(timeout=600)
    assert done.returncode == 1
    (line,) = errors.splitlines()
    assert place in line
    assert ("writable" if place == ".work" else "a link to /sys") in line


def test_running_out_of_memory_is_one_clear_line(study):
    content = (study / "params.yaml").read_text()
    # torch is loaded before the command here, which portable does not allow
    study.params(**{"recipe.epochs": 1, "recipe.determinism": "seeded"})
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_AS, ({3 * 2**30},) * 2)"
    code = (
        "import sys; sys.path.insert(0, 'src'); import torch; from selfdistill.models import resnet\n"
        "resnet.ResNet.forward = None\n"
        "whole = resnet.BasicBlock.forward\n"
        "resnet.BasicBlock.forward = lambda self, x: whole(self, x) + torch.empty(10**11).sum()\n"
        f"{limit}\nfrom selfdistill.cli import main\n"
        "sys.exit(main(['train', '--model', 'resnet10-slim', '--variant', 'plain', '--seeds', '0']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=study.folder,
        env=study.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    (study / "params.yaml").write_text(content)
    assert done.returncode == 1, done.stderr
    (line,) = done.stderr.splitlines()
    assert "out of memory" in line
    assert "batch_size" in line


def test_the_pipeline_resumes_what_it_started(project):
    """`dvc repro` removes a stage's outputs before it runs it; the checkpoints lie elsewhere."""
    project.params(**{"recipe.epochs": 121, "seeds": [0]})
    stage = "train@resnet10-slim-byot-0"
    project.run("dvc", "repro", "--quiet", "check")
    process = subprocess.Popen(
        ["dvc", "repro", "--single-item", stage],
        cwd=project.folder,
        env=project.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    wait_for_checkpoint(project, "byot", process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    done = project.run("dvc", "repro", "--single-item", stage)
    assert "resumed at epoch" in done.stdout + done.stderr
    record = json.loads((project / "results/runs/resnet10-slim/byot/0/run.json").read_text())
    assert record["recipe"]["epochs"] == 121
