# The resolved stages of the study, and how Snakemake sees their outputs.

import re
import sys
from pathlib import Path

sys.path.insert(0, str(ROOT / "src"))

from selfdistill.config import ConfigError
from selfdistill.locks import restore
from selfdistill.pipeline import asked, clear_stale_locks, read_stages
from selfdistill.pruning import forget

try:
    FOLDER, ASKED = asked(config)
    if workflow.is_main_process:
        clear_stale_locks()
        for line in restore(ROOT):
            sys.stderr.write(f"{line}\n")
    STAGES = read_stages(FOLDER, mark=workflow.is_main_process)
except ConfigError as error:
    sys.stderr.write(f"{error}\n")
    sys.exit(2)


def resources_of(stage):
    return stage.resources | (ASKED if stage.trains else {})


def rule_name(stage):
    return re.sub(r"\W", "_", stage.address)


# what enters the report, by the output's name: category, and the files of a folder
REPORTED = {"tables": ("Tables", "{name}.csv"), "figures": ("Figures", "{name}.png"), "index.html": ("Page", None)}


def produced(path):
    """An output as Snakemake sees it; tables, figures and page enter the report with a caption."""
    name = Path(path).name
    seen = path if Path(path).suffix else directory(path)
    if name not in REPORTED or Path(path).parent.name != "results":
        return seen
    category, files = REPORTED[name]
    caption = str(ROOT / "workflow" / "report" / f"{Path(path).stem}.rst")
    return report(seen, patterns=[files] if files else [], caption=caption, category=category)
