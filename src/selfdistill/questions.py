"""What a question to Snakemake (-n, --dag, --report) leaves as it was, though reading the stages writes it."""

from pathlib import Path

from selfdistill.files import write_atomically


class Question:
    """The plan and the lock file of the study in `folder`, as they are now.

    What is stale depends on the outputs of the stage `check`, so it is run, if it is stale, whenever the stages
    are read.  Its outputs are in Git, and whoever only asks wants nothing changed.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.before = self.after = self.content()

    def answered(self) -> None:
        """The stages have been read."""
        self.after = self.content()

    def put_back(self) -> None:
        """Every file as it was, unless somebody else has written one since."""
        if self.after == self.before or self.after != self.content():
            return
        for path in self.after.keys() - self.before.keys():
            path.unlink()
        for path, content in self.before.items():
            if self.after.get(path) != content:
                write_atomically(path, content)

    def content(self) -> dict[Path, bytes]:
        files = [self.folder / "dvc.lock", *(self.folder / "results" / "plan").rglob("*.json")]
        return {path: path.read_bytes() for path in files if path.is_file()}
