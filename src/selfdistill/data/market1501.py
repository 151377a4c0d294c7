"""Where Market-1501 goes from its verified zip to its reader, `selfdistill.data.market.read(folder)`.

Its splits are of persons and cameras, not of classes: what is prepared of it is retrieval's to say, and this
stage prepares nothing.  `unpack` gives the folder that the reader wants.
"""

from pathlib import Path

from selfdistill.data import archives


def unpack(raw: Path, into: Path) -> Path:
    """Write the published files below `into`, and return their top folder, Market-1501-v15.09.15."""
    (path,) = raw.glob("*.zip")
    for name, _, content in archives.members(path):
        target = into / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content.read())
    return into / path.name.removesuffix(".zip")
