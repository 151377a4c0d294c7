"""What a question to Snakemake (-n, --dag, --report) leaves as it was, though reading the stages writes it."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from dvc.lock import LockError
from dvc.repo import Repo

from selfdistill.files import write_atomically
from selfdistill.locks import running


class Question:
    """The plan and the lock file of the study in `folder`, as they are now; the working folder is the repository's top.

    What is stale depends on the outputs of the stage `check`, so it is run, if it is stale, whenever the stages
    are read.  Its outputs are in Git, and whoever only asks wants nothing changed.
    """

    def __init__(self, folder: Path):
        self.folder, self.lock = folder, folder / "dvc.lock"
        self.before = self.after = self.content()

    def answered(self) -> None:
        """The stages have been read."""
        self.after = self.content()

    def put_back(self) -> None:
        """Every file as it was, unless another DVC is at work here, or has written one of them since we began."""
        if self.after == self.before or running(Path(".")):
            return
        with suppress(LockError), Repo(".") as repo, repo.lock:
            if self.after != self.content() or self.of_others(self.before) != self.of_others(self.after):
                return
            for path in self.after.keys() - self.before.keys():
                path.unlink()
            for path, content in self.before.items():
                if self.after.get(path) != content:
                    write_atomically(path, content)

    def content(self) -> dict[Path, bytes]:
        files = [self.lock, *(self.folder / "results" / "plan").rglob("*.json")]
        return {path: path.read_bytes() for path in files if path.is_file()}

    def of_others(self, content: dict[Path, bytes]) -> dict[str, Any]:
        """The entries of the lock file that reading the stages does not write."""
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        entries = (yaml.load(content.get(self.lock, b""), loader) or {}).get("stages", {})
        return {name: entry for name, entry in entries.items() if name != "check"}
