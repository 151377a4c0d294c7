"""A kill at any moment of a lock's rewriting loses nothing, and a question changes nothing."""

import fcntl
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, wait_until
from dvc.fs import localfs
from dvc.lock import make_lock
from dvc.repo import Repo
from dvc.rwlock import RWLockFileCorruptedError, rwlock

from selfdistill import locks, pipeline
from selfdistill.cli import main
from selfdistill.questions import Question
from selfdistill.schema import ConfigError


@pytest.fixture
def repository(tmp_path) -> Path:
    """Two stages committed in Git, and a third that was run since."""

    def git(*arguments: str) -> None:
        subprocess.run(["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@b", *arguments], check=True)

    git("init", "--quiet")
    Repo.init(str(tmp_path)).close()
    (tmp_path / "dvc.lock").write_text(lock_of("check", "train@plain"))
    git("add", "dvc.lock")
    git("commit", "--quiet", "--message", "two stages")
    (tmp_path / "dvc.lock").write_text(lock_of("check", "train@plain", "train@byot"))
    return tmp_path


def lock_of(*names: str) -> str:
    stages = {}
    for i, name in enumerate(names):
        outs = [{"path": f"{name}/{kind}", "md5": f"{i}" * 32, "size": 5} for kind in ("weights", "history")]
        stages[name] = {"cmd": f"run {name}", "deps": [{"path": "data", "md5": "e" * 32 + ".dir"}], "outs": outs}
    return yaml.safe_dump({"schema": "2.0", "stages": stages}, sort_keys=False)


def test_a_lock_cut_anywhere_is_put_back_from_its_copy(repository):
    lock = repository / "dvc.lock"
    locks.keep(repository)
    before, after = lock.read_bytes(), lock_of("check", "train@plain", "train@byot", "tables").encode()
    kept = yaml.safe_load(before)["stages"]
    for cut in [*range(0, len(after), 13), *range(len(after) - 13, len(after))]:
        if after[:cut] in (before, lock_of("check", "train@plain").encode()):
            continue  # as before the stage, or after a `git checkout`: not to be told from a cut
        lock.write_bytes(after[:cut])
        lines = locks.restore(repository)
        found = yaml.safe_load(lock.read_bytes())["stages"]
        # of the stage whose entry was being written its last lines may be missing: DVC then has it in its run cache
        assert all(found[name] == entry for name, entry in kept.items()), cut
        assert bool(lines) == (lock.read_bytes() == before)
        assert not lines or locks.copy_of(repository, lock).with_suffix(".cut").read_bytes() == after[:cut]
    lock.write_bytes(after)
    assert locks.restore(repository) == []
    assert lock.read_bytes() == after


def test_a_lock_of_other_stages_is_left_alone_and_copied(repository):
    lock = repository / "dvc.lock"
    locks.keep(repository)
    for other in (lock_of("check", "train@byot", "tables"), lock_of("check", "train@plain", "x").replace("x/", "y/")):
        lock.write_text(other)
        assert locks.restore(repository) == []
        locks.keep(repository)
        assert locks.copy_of(repository, lock).read_text() == lock.read_text() == other


def test_nothing_is_put_back_while_a_dvc_is_alive(repository):
    locks.keep(repository)
    (repository / "dvc.lock").write_bytes(b"")
    with Repo(str(repository)) as repo, repo.lock:
        assert locks.restore(repository) == []
    assert locks.restore(repository)


def test_a_cut_list_of_the_files_in_use_is_emptied(repository):
    path = repository / ".dvc/tmp/rwlock"
    for cut in ("", '{"read": {"/x": [{"pid"'):
        path.write_text(cut)
        with pytest.raises(RWLockFileCorruptedError), used(repository):
            pass
        assert locks.restore(repository) == [".dvc/tmp/rwlock: it was cut by a kill; emptied"]
        with used(repository):
            assert locks.restore(repository) == []


def used(root: Path, name: str = "a", written: bool = False):
    """As if another DVC read the file, or wrote it."""
    files = [], [str(root / name)]
    return rwlock(str(root / ".dvc/tmp"), localfs, "test", files[not written], files[written], hardlink=False)


def test_without_a_copy_the_lock_of_git_is_put_back(repository):
    (repository / "dvc.lock").write_bytes(b"")
    assert locks.restore(repository) == ["dvc.lock: it was cut by a kill; put back from Git"]
    assert (repository / "dvc.lock").read_text() == lock_of("check", "train@plain")


def test_another_commits_lock_and_a_merge_are_left_alone(repository):
    lock = repository / "dvc.lock"
    locks.keep(repository)
    subprocess.run(["git", "-C", repository, "checkout", "--quiet", "--", "dvc.lock"], check=True)
    for content in (lock.read_text(), "<<<<<<< HEAD\n" + lock.read_text()):
        lock.write_text(content)
        assert locks.restore(repository) == []
        assert lock.read_text() == content
    lock.write_text(lock_of("check", "train@plain"))
    locks.keep(repository)
    assert locks.copy_of(repository, lock).read_text() == lock.read_text()


def test_a_lock_that_another_dvc_left_cut_is_whole_when_a_stage_ends(repository, capsys):
    """The DVC that has started the stage would take an empty file for a lock without entries."""
    lock = repository / "dvc.lock"
    before = lock.read_bytes()
    with locks.guarded(repository, "train@plain"):
        lock.write_bytes(b"")
    assert lock.read_bytes() == before
    assert capsys.readouterr().err == "dvc.lock: it was cut by a kill; put back from its copy in .work\n"


def test_a_stage_waits_for_its_double_and_for_no_other(repository):
    """A training that goes on after its engine was killed, and the same command again."""
    code = f"""
from pathlib import Path
from selfdistill.locks import turn
with turn(Path({str(repository)!r}), "train@a"):
    print("its turn", flush=True)
    input()
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-c", code]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    first = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, **pipes)
    assert first.stdout.readline() == b"its turn\n"
    second = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, **pipes)  # ends as soon as it has it
    said = second.stderr.readline().decode()
    assert said == f"train@a: process {first.pid} of an earlier command is still at it; waiting\n"
    with locks.turn(repository, "train@b"):
        assert second.poll() is None
    first.kill()
    assert second.communicate()[0] == b"its turn\n"
    assert (repository / ".work/turns/train_a").read_text() == str(second.pid)
    first.communicate()


def test_prune_and_snakemake_wait_for_the_dvc_of_this_checkout_alone(repository, tmp_path_factory, capfd):
    """It removes what one that was left behind might be writing."""
    program = tmp_path_factory.mktemp("bin") / "dvc"
    program.write_text("#!/bin/sh\nread line\n")
    program.chmod(0o755)
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    job_of_snakemake = {**os.environ, locks.TERMINAL: "/dev/null"}
    here, there, status = (
        subprocess.Popen([program, *words], cwd=folder, stdin=subprocess.PIPE, env=environment)
        for words, folder, environment in (
            (["--wait-for-lock", "repro"], repository, job_of_snakemake),
            (["repro"], elsewhere, None),
            (["status"], repository, None),
        )
    )
    wait_until(lambda: locks.running(repository) == [here.pid])
    assert locks.running(repository, jobs=False) == []
    waiting = threading.Thread(target=locks.wait_for_others, args=[repository])
    waiting.start()
    waiting.join(0.2)
    assert waiting.is_alive()
    here.communicate(b"\n")
    waiting.join(300)
    assert not waiting.is_alive()
    assert capfd.readouterr().err.count(f"still at work here, process {here.pid}; waiting") == 1
    for process in (there, status):
        process.communicate(b"\n")
    assert {os.getpid(), os.getppid()} <= set(locks.ourselves())  # a stage does not wait for the DVC that runs it


def test_a_killed_dvc_is_waited_for_until_the_system_has_cleared_it_away(repository):
    """DVC takes it for alive until then, and refuses the files that it has listed as in use."""
    dead = subprocess.Popen(["sleep", "600"])
    place = str(repository / "results")
    listed = {"read": {place: [{"pid": os.getpid(), "cmd": "dvc"}]}, "write": {place: {"pid": dead.pid, "cmd": "dvc"}}}
    (repository / ".dvc/tmp/rwlock").write_text(json.dumps(listed))
    locks.wait_for_others(repository)  # both are alive; DVC says so
    dead.kill()
    waiting = threading.Thread(target=locks.wait_for_others, args=[repository])
    wait_until(lambda: locks.dying(repository) == [dead.pid])  # nobody has asked how it ended
    waiting.start()
    waiting.join(0.3)
    assert waiting.is_alive()
    dead.wait()
    waiting.join(locks.BUSY / 2)
    assert not waiting.is_alive()
    for content in ("", "[]", '{"read": 1}', '{"write": {"/a": {"pid": "x"}}}'):
        (repository / ".dvc/tmp/rwlock").write_text(content)
        assert locks.dying(repository) == []


def test_dvcs_list_of_readers_that_a_kill_cut_is_emptied(repository):
    """DVC does nothing with one that is no JSON."""
    file = repository / ".dvc/tmp/rwlock"
    for content, after in ((b"", b"{}"), (b'{"write": {"/a', b"{}"), (b'{"read": {}}', b'{"read": {}}')):
        file.write_bytes(content)
        locks.restore(repository)
        assert file.read_bytes() == after
    file.write_bytes(b"")
    with make_lock(str(file.with_name("rwlock.lock"))):  # a DVC is rewriting it
        locks.restore(repository)
        assert file.read_bytes() == b""


def test_a_study_goes_on_after_its_lock_was_cut(project):
    lock = project / "dvc.lock"
    whole = lock.read_bytes()
    project.run("dvc", "repro", "--quiet", "--force", "--single-item", "page")
    for content in (b"", whole[: len(whole) // 2]):
        lock.write_bytes(content)
        done = project.run("selfdistill", "check")
        assert "dvc.lock: it was cut by a kill; put back" in done.stdout
        assert project.changed() == set()
    lock.write_bytes(content)
    done = project.run("snakemake", "--cores", "1")
    assert "put back" in done.stderr
    assert "Nothing to be done" in done.stdout + done.stderr
    assert yaml.safe_load(lock.read_bytes())["stages"].keys() == yaml.safe_load(whole)["stages"].keys()


def test_snakemake_goes_on_where_another_was_killed_and_recomputes_what_is_forced(project, monkeypatch, capsys):
    """Its locks and its list of half-made files stay behind a SIGKILL."""
    stale = project / ".snakemake/locks"
    stale.mkdir(parents=True, exist_ok=True)
    for name in ("0.input.lock", "0.output.lock"):
        (stale / name).write_text("results/index.html\n")
    page, said = project / "results/index.html", project / ".work/said"
    rendered = page.stat().st_mtime_ns
    command = ["snakemake", "--cores", "1", "--forcerun", "page"]
    with said.open("w") as file, used(project.folder, "results/index.html"):  # another DVC reads it, and is waited for
        forced = subprocess.Popen(command, cwd=project.folder, env=project.environment, stderr=file)
        wait_until(lambda: "page: waiting for another DVC" in said.read_text(), forced)
    assert forced.wait(timeout=600) == 0
    assert page.stat().st_mtime_ns > rendered
    assert project.run("git", "status", "--porcelain").stdout == ""
    lock = project / ".work/snakemake/default.lock"
    with open(lock, "r+") as file:  # another one is alive
        fcntl.flock(file, fcntl.LOCK_EX)
        done = project.run("snakemake", "--cores", "1", "--forcerun", "page", ok=False)
        assert done.returncode != 0
        assert f"another snakemake (process {lock.read_text().strip()}) runs this study" in done.stderr
        assert "Traceback" not in done.stderr
        done = project.run("dvc", "repro", "--force", "--single-item", "page", ok=False)
        monkeypatch.chdir(project.folder)
        assert (done.returncode != 0, main(["prune"])) == (True, 1)
        line = f"snakemake (process {lock.read_text().strip()}) runs this study; wait for it"
        assert line in done.stderr
        assert line in capsys.readouterr().err
    with used(project.folder, "results/index.html", written=True):
        with Repo(str(project.folder)) as repo, repo.lock:  # a DVC that is at work is waited for
            with said.open("w") as file:
                waiting = subprocess.Popen(
                    ["snakemake", "-n"], cwd=project.folder, env=project.environment, stderr=file
                )
            wait_until(lambda: "waiting for another DVC" in said.read_text(), waiting)
        # so is one that has a file; of a killed one DVC says so, too, until the system has cleared it away
        wait_until(lambda: "that has a file of this study" in said.read_text(), waiting)
    assert waiting.wait(timeout=600) == 0


def test_a_question_puts_nothing_back_that_another_has_written(repository, monkeypatch):
    monkeypatch.chdir(repository)
    plan, lock = repository / "results/plan/a.json", repository / "dvc.lock"
    plan.parent.mkdir(parents=True, exist_ok=True)

    def written(plan_says: str, **entries: int) -> None:
        plan.write_text(plan_says)
        lock.write_text(yaml.safe_dump({"schema": "2.0", "stages": entries}))

    for own, others, since, left in (
        ("new", 1, "new", "old"),  # by `check` alone
        ("new", 2, "new", "new"),  # while the stages were read, another DVC ended a stage
        ("new", 1, "newer", "newer"),
    ):
        written("old", check=0, train=1)
        question = Question(Path())
        written(own, check=1, train=others)
        question.answered()
        plan.write_text(since)
        question.put_back()
        assert plan.read_text() == left
        assert yaml.safe_load(lock.read_text())["stages"] == {"check": int(left != "old"), "train": others}


@pytest.mark.parametrize(
    "question",
    ["-n", *(pytest.param(q, marks=pytest.mark.nightly) for q in ("--dag", "--summary", "--list"))],  # go as -n goes
)
def test_a_question_removes_nothing_and_a_run_says_what_it_removes(project, question):
    content = yaml.safe_load((project / "params.yaml").read_text())
    gone = content["methods"].pop()
    (project / "params.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    hosts = sorted((project / "results/hosts").rglob(f"{gone}/*.json"))
    records = sorted((project / "results/records").rglob(f"{gone}/*.json"))
    assert hosts
    assert records
    before = project.run("git", "diff").stdout  # params.yaml's alone
    project.run("snakemake", question)
    assert project.run("git", "diff").stdout == before  # also what `check` writes, which is run to answer
    assert all(path.is_file() for path in records)
    done = project.run("snakemake", "--cores", "2")
    assert "results of cells that params.yaml no longer lists" in done.stderr
    assert not any(path.is_file() for path in records)
    assert all(path.is_file() for path in hosts)  # in Git, and measured once


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"study": "x" * 256}, "--config study: .*known: default"),
        ({"studdy": "x"}, "--config studdy: unknown key; did you mean 'study'?"),
        ({"study": "digit-all"}, "did you mean 'digits-all'?"),
        ({"runtime": "2h"}, "--config runtime: '2h' is not allowed; allowed: whole minutes, from 1"),
        ({"mem_mb": 0}, "--config mem_mb: '0' is not allowed; allowed: whole MB, from 1"),
    ],
)
def test_what_snakemake_is_told_is_checked(config, said, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(ConfigError, match=said.replace("?", r"\?")):
        pipeline.asked(config)


def test_what_snakemake_is_told_is_taken(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert pipeline.asked({"study": "digits-all", "runtime": 30}) == (Path("studies/digits-all"), {"runtime": 30})
    assert pipeline.asked({}) == (Path(), {})
