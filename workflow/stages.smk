# The resolved stages of the study, and how Snakemake sees their outputs.

import atexit
import os
import re
import sys
from pathlib import Path

sys.path.insert(0, str(ROOT / "src"))

from dvc.exceptions import DvcException
from dvc.lock import LockError

from selfdistill.closure import invalid
from selfdistill.errors import ConfigError, lacking
from selfdistill.locks import restore, wait_for_others
from selfdistill.pipeline import asked, claim, clear_locks, forced, read_stages
from selfdistill.pruning import forget
from selfdistill.questions import Question

FORCED = "SELFDISTILL_FORCED"  # what Snakefile's command reads

def refuse(error):
    sys.stderr.write(f"{error}\n")
    sys.exit(2)


try:
    FOLDER, ASKED = asked(config)
    if workflow.is_main_process:
        clear_locks()
        for line in restore(ROOT):
            sys.stderr.write(f"{line}\n")
    question = Question(FOLDER)
    STAGES = read_stages(FOLDER, mark=workflow.is_main_process)
    if workflow.is_main_process:  # a job writes nothing when it reads them, others meanwhile do
        question.answered()
        atexit.register(question.put_back)
except ConfigError as error:
    refuse(error)
except SyntaxError as error:
    refuse(invalid(error))
except LockError:
    refuse("another DVC runs a stage of this checkout; wait for it, and give the same command again")
except DvcException as error:
    refuse(str(error).partition("\n")[0])
except OSError as error:  # a disk that is full or cannot be written
    refuse(lacking(error) or error)


def begin():
    """What a run does before its first job, and a question (-n, --dag, --report) does not."""
    try:
        claim(FOLDER)
    except (ConfigError, OSError) as error:
        refuse(lacking(error) or error)
    atexit.unregister(question.put_back)  # it was none
    wait_for_others(ROOT, jobs=False)  # a DVC that began while this file was read; one that begins now is refused
    forget(FOLDER)
    names = forced(workflow.dag_settings)
    stages = (s.address for s in STAGES if names & {"all", rule_name(s), *s.outs})
    os.environ |= {FORCED: " ".join(stages)}  # for the jobs, also those on other machines


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
