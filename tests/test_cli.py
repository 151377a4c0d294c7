"""The command line itself, whatever the command."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from selfdistill import __version__, methods
from selfdistill.cli import NOUNS, main

ROOT = Path(__file__).parents[1]
STARTS = {
    "as a module": ["-m", "selfdistill"],
    "as the installed command": ["-c", "import sys; from selfdistill.cli import main; sys.exit(main())"],
}


@pytest.mark.parametrize("start", STARTS.values(), ids=list(STARTS))
@pytest.mark.parametrize("command", ["methods byot", "methods --json", "check", "--help", "methods --help"])
def test_a_reader_that_has_gone_ends_a_command_without_a_word(command, start):
    reading, writing = os.pipe()
    os.close(reading)  # what `| head -1` comes to, without its race
    try:
        done = subprocess.run(
            [sys.executable, *start, *command.split()],
            cwd=ROOT,
            env={key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"},
            stdout=writing,
            stderr=subprocess.PIPE,
            text=True,
            timeout=300,
            check=False,
        )
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


def test_what_is_read_to_its_end_is_whole():
    done = subprocess.run(
        [sys.executable, "-m", "selfdistill", "--version"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, f"selfdistill {__version__}\n", "")


def test_every_noun_has_its_file_and_every_file_is_listed():
    files = {path.stem for path in (ROOT / "src/selfdistill/cli").glob("*.py")}
    assert {noun.__name__.rpartition(".")[2] for noun in NOUNS} == files - {"__init__", "common"}


def test_code_that_is_no_python_is_told_in_a_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.py").write_text("ABOUT = {}\n<<<<<<< HEAD\n")
    monkeypatch.setattr(methods, "FOLDER", tmp_path)
    monkeypatch.setattr(methods, "names", lambda: ["mine"])
    assert main(["methods"]) == 1
    assert (
        capsys.readouterr().err == f"selfdistill methods: {tmp_path}/mine.py: line 2: no valid Python: invalid syntax\n"
    )
