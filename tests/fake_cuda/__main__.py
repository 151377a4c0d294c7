"""python -m fake_cuda FILE < CELLS

Reads cells as JSON, {label: [what, of what, ...]}: ["method", name, hyper-parameters, changes to the recipe],
["planted", fault] and ["cost", method].  Writes {label: `audit.Found`} into FILE.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path

from fake_cuda import device


def main() -> None:
    device.install()
    from fake_cuda import audit, planted
    from selfdistill import methods

    kinds = {
        "method": lambda name, hyper, recipe: audit.audit(methods.create(name, **hyper), **recipe),
        "planted": planted.found,
        "cost": audit.cost,
    }
    found = {label: asdict(kinds[kind](*rest)) for label, (kind, *rest) in json.load(sys.stdin).items()}
    Path(sys.argv[1]).write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
