"""Every study of studies/ in a dry run, and the commands that list, cost and make studies.

Networks, exits and methods are exercised once each at the shapes of the studies' images, not in every combination.
"""

import json
import re
import shutil
import time
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import copy_of_sources
from dvc.repo import Repo
from dvc.utils.serialize import load_yaml
from PIL import Image

from selfdistill import methods, studies
from selfdistill.cli import main
from selfdistill.data.catalogue import read_catalogue
from selfdistill.data.prepared import Dataset
from selfdistill.models.trained import build
from selfdistill.params import read_study
from selfdistill.showing import show
from selfdistill.training.distributed import ALONE
from selfdistill.training.engine import Run, Split, frozen
from selfdistill.training.source import Resident

pytestmark = pytest.mark.filterwarnings("ignore:_NoneStep.value:DeprecationWarning")  # in DVC itself
ROOT = Path(__file__).parents[1]
NAMES = sorted(path.parent.name for path in ROOT.glob("studies/*/params.yaml"))
# of the data sets whose classes only their files know
CLASSES = {"tiny-imagenet": 200, "imagenet": 1000, "market1501": 751}


@cache
def catalogue():
    return read_catalogue(ROOT / "data" / "params.yaml")


@cache
def study_of(name: str):
    return read_study(ROOT / "studies" / name / "params.yaml")


@cache
def shape_of(dataset: str) -> tuple[tuple[int, int, int], int]:
    """(C, H, W) and the number of classes."""
    shape, classes = studies.image_shape(ROOT, dataset, catalogue().datasets[dataset])
    return shape, classes or CLASSES[dataset]


def form_of(model: str, dataset: str, exits: bool) -> dict:
    (channels, *size), classes = shape_of(dataset)
    return {"name": model, "channels": channels, "classes": classes, "size": size, "exits": exits}


# ---- the dry run ----


@pytest.mark.parametrize("name", NAMES)
def test_the_file_reads_like_a_document_and_is_in_order(name):
    study, text = study_of(name), (ROOT / "studies" / name / "params.yaml").read_text()
    assert (ROOT / "studies" / name / "dvc.yaml").readlink() == Path("../../dvc.yaml")
    head = text.split("root:")[0]
    assert all(line.startswith("#") and len(line) <= 120 for line in head.splitlines())
    assert f"make study STUDY={name}" in head
    assert 5 < len(studies.purpose(ROOT / "studies" / name / "params.yaml").split()) < 40
    cells = re.search(r"GPU-hours for (\d+) cells", " ".join(head.split()))
    assert cells is None or int(cells[1]) == len(study.cells())


@pytest.fixture(scope="module")
def resolved(tmp_path_factory) -> dict[str, list]:
    """The names and outputs of all stages of every study, as DVC resolves them together in one repository."""
    project = copy_of_sources(tmp_path_factory.mktemp("studies"))
    for name in NAMES:
        show(project / f"studies/{name}", read_study(project / f"studies/{name}/params.yaml"))
    started = time.perf_counter()
    with Repo(str(project.folder)) as repo:
        assert len(repo.index.graph) == len(repo.index.stages)  # no cycle, no output of two stages
        found = {name: [] for name in NAMES}
        for stage in repo.index.stages:
            folder = Path(stage.path_in_repo).parent
            if folder.parent == Path("studies"):
                found[folder.name].append(stage.name)
    print(f"{sum(map(len, found.values()))} stages in {time.perf_counter() - started:.1f} s")
    return found


@pytest.mark.parametrize("name", NAMES)
def test_dvc_resolves_its_stages(name, resolved):
    study = study_of(name)
    kinds = Counter(stage.split("@")[0] for stage in resolved[name])
    seeds, count = len(study.blocks), len(study.models)
    wanted = {
        "train": count * len(study.methods) * seeds,
        "distill": count * len(study.students) * seeds,
        "train_teachers": len(study.teacher_models) * seeds,
        "distill_from": count * len(study.taught) * seeds,
        "evaluate": count * len(study.methods),
        "evaluate_students": count * len(study.students),
        "evaluate_taught": count * len(study.taught),
        "evaluate_teachers": len(study.teacher_models),
        "tune": count * len(study.tuning.methods),
        "tune_students": count * len(study.tuning.students),
        "evaluate_tuned": count * len(study.tuning.methods),
        "evaluate_tuned_students": count * len(study.tuning.students),
        "probe": len(study.probes),
        **dict.fromkeys(("check", "measure", "tables", "figures", "page"), 1),
    }
    assert kinds == Counter(wanted)
    trainings = sum(kinds[k] for k in ("train", "distill", "train_teachers", "distill_from"))
    winners = (kinds["tune"] + kinds["tune_students"]) * study.tuning.replicates
    assert trainings * len(study.seeds) == (len(study.cells()) - winners) * seeds


def networks() -> list[tuple[str, str, bool]]:
    """(network, data set, exits), each once at the same shape."""
    found = {}
    for name in NAMES:
        study = study_of(name)
        for model, variant, _ in study.cells():
            case = (model, study.dataset, "exits" in methods.about(study.variant(variant).method)["needs"])
            found.setdefault((model, shape_of(study.dataset)[0], case[2]), case)
    return sorted(found.values())


@pytest.mark.parametrize(("model", "dataset", "exits"), networks())
def test_every_network_of_a_study_is_built_for_its_images(model, dataset, exits):
    """With every layer computed in shape, on torch's meta device; numbers are computed below."""
    form = form_of(model, dataset, exits)
    with torch.device("meta"):
        network = build(form, 0)
        outputs = network(torch.zeros(2, form["channels"], *form["size"]))
    assert network.exit_count == len(outputs.logits) == (network.section_count if exits else 1)
    assert {z.shape for z in outputs.logits} == {(2, form["classes"])}
    assert len({f.shape for f in outputs.features}) == 1


def steps() -> list:
    """(study, network, method) for every method of every study, each once for the same hyper-parameters,
    images and teacher, with the study's first network, which is a small one."""
    found = {}
    for name in NAMES:
        study = study_of(name)
        for method in study.all_variants:
            hyper = json.dumps(study.variant(method).hyper)
            key = (method, shape_of(study.dataset), hyper, study.teacher_of(method))
            found.setdefault(key, (name, study.models[0], method))
    return [pytest.param(*case, id="-".join(case)) for case in found.values()]


@cache
def macs(model: str, dataset: str) -> int:
    shape, classes = shape_of(dataset)
    return studies.size_of(model, shape, classes, []).macs


@pytest.mark.parametrize(("name", "model", "method"), steps())
def test_a_step_of_every_method_of_a_study(name, model, method):
    """A batch of two images, the study's recipe and hyper-parameters, and its real teacher."""
    study = study_of(name)
    speed = {"device": "cpu", "precision": "float32", "compile": False, "cuda_graphs": False, "workers": 0}
    speed |= {"batch_size": 2, "warmup_epochs": 0}  # a warm-up's first rate is next to nothing
    variant = study.variant(method)
    rule = methods.load(variant.method)(**variant.hyper)
    form = form_of(model, study.dataset, "exits" in rule.needs)
    teacher, network = study.teacher_of(method)
    taught_by = frozen(build(form_of(network or model, study.dataset, False), 1)) if teacher else None
    chance = torch.Generator().manual_seed(0)
    images = torch.randint(256, (4, form["channels"], *form["size"]), generator=chance, dtype=torch.uint8)
    labels = torch.tensor([0, 1, 0, 1])
    facts = [0.5] * form["channels"]
    dataset = Dataset(
        "made", [str(i) for i in range(form["classes"])], form["channels"], form["size"], facts, facts, {}
    )
    recipe = study.recipe.model_copy(update=speed)
    run = Run(
        rule,
        lambda seed: build(form, seed),
        dataset,
        Resident(images, labels),
        Split(images[:2], labels[:2]),
        recipe,
        0,
        taught_by,
        ALONE,
    )
    before = next(run.network.parameters()).clone()
    next(iter(run.steps()))
    assert torch.isfinite(run.table).all()
    assert run.step_flops
    assert not torch.equal(before, next(run.network.parameters()))


# ---- selfdistill study ----


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A repository of its own with one study, as the working folder; the code is this checkout's."""
    (tmp_path / "repository/src").mkdir(parents=True)
    (tmp_path / "repository/src/selfdistill").symlink_to(ROOT / "src/selfdistill")
    for name in ("params.yaml", "dvc.yaml", "data/params.yaml", "studies/byot-vs-teachers/params.yaml"):
        target = tmp_path / "repository" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text((ROOT / name).read_text())
    monkeypatch.chdir(tmp_path / "repository")
    return tmp_path / "repository"


def photos(folder: Path, classes: int = 2, each: int = 24) -> Path:
    rng = np.random.default_rng(0)
    for label in range(classes):
        (folder / f"class{label}").mkdir(parents=True)
        for i in range(each):
            pixels = rng.integers(0, 120, (40, 40, 3), dtype=np.uint8) + np.uint8(100 * label)
            Image.fromarray(pixels).save(folder / f"class{label}/{i}.png")
    return folder


def snapshot(folder: Path) -> dict:
    return {p: p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*")) if "src" not in p.parts}


def test_the_studies_are_listed_with_what_they_are_for(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert main(["study", "list", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert set(rows) == {"default", *NAMES}
    assert rows["default"]["cells"] == 105
    assert rows["byot-vs-teachers"]["models"] == ["resnet18", "resnet50", "resnet152"]
    assert main(["study", "list"]) == 0
    text = capsys.readouterr().out
    assert all(row["purpose"] in text for row in rows.values())


def test_a_broken_study_is_listed_as_such(here, capsys):
    (here / "studies/byot-vs-teachers/params.yaml").write_text("root: ../..\n")
    assert main(["study", "list"]) == 0
    assert "byot-vs-teachers  not in order" in capsys.readouterr().out


def test_the_estimate_is_what_the_engine_counted():
    """Of every method on the default network: the factors of `selfdistill methods` and the counts of its runs."""
    for folder in (ROOT, ROOT / "studies/digits-all"):
        metrics = json.loads((folder / "results/metrics.json").read_text())
        counted = metrics["training_gflops"] + metrics.get("tuning_gflops", 0)
        estimated = sum(studies.estimate(ROOT, read_study(folder / "params.yaml"), None)["flops"].values()) / 1e9
        assert estimated == pytest.approx(counted, rel=0.02)


def test_a_larger_teacher_costs_its_training_once_and_a_forward_pass_a_step():
    study = study_of("byot-vs-teachers")
    share = macs("resnet152", "cifar100") / macs("resnet18", "cifar100")
    assert studies.training_passes(study, "kd", share) == pytest.approx(1 + share / 3, abs=0.01)
    assert studies.training_passes(study, "plain", share) == 1
    flops = studies.estimate(ROOT, study, None)["flops"]
    assert flops["resnet152"] == pytest.approx(3 * 6 * macs("resnet152", "cifar100") * 45000 * 200)


def test_what_a_study_would_cost_and_what_has_run(tiny_study, capsys):
    text = tiny_study.run("selfdistill", "study", "show", "default", "--tflops", "2").stdout
    assert "6 records of this checkout, 0 imported; weights of 6 cells in place, of 6 in DVC's cache" in text
    assert "at 2 TFLOP/s (given" in text
    done = tiny_study.run("selfdistill", "study", "show", "nothing", ok=False)
    assert "known: default, " in done.stderr
    done = tiny_study.run("selfdistill", "study", "show", "default", "--tflops", "0", ok=False)
    assert "--tflops 0.0 is not allowed" in done.stderr
    # the shapes that are told before data is prepared are those of prepared data
    for name, entry in catalogue().datasets.items():
        if name == "digits":
            assert studies.image_shape(Path("nowhere"), name, entry) == studies.image_shape(
                tiny_study.folder, name, entry
            )


def test_a_new_study_of_a_folder_of_images(here, capsys):
    folder = photos(here.parent / "photos")
    before = (here / "data/params.yaml").read_text()
    assert main(["study", "new", "photos", "--data", str(folder)]) == 0
    assert "make study STUDY=photos" in capsys.readouterr().out
    study = read_study(here / "studies/photos/params.yaml")
    assert (study.dataset, len(study.cells())) == ("photos", 9)
    assert (here / "studies/photos/dvc.yaml").resolve() == here / "dvc.yaml"
    text = (here / "data/params.yaml").read_text()
    assert text.startswith(before.rstrip("\n"))
    assert read_catalogue(here / "data/params.yaml").datasets["photos"].classes == ["class0", "class1"]


@pytest.mark.parametrize("name", ["a\nb: c", "a\rb", "#: \"'", "\u2028x", "größe"])
def test_a_folder_of_any_name_stands_in_a_comment(name, here):
    folder = photos(here.parent / name)
    assert main(["study", "new", "photos", "--data", str(folder)]) == 0
    first = (here / "studies/photos/params.yaml").read_text().splitlines()[0]
    shown = name.encode("unicode_escape").decode() if not name.isprintable() else name
    assert first == f"# {shown}: your own images, from {here.parent / shown}."
    sources = read_catalogue(here / "data/params.yaml").datasets["photos"].files[0].sources
    assert sources == [f"folder://{folder}"]


def test_a_size_that_is_not_allowed_is_told_as_it_was_given(here, capsys):
    before = snapshot(here)
    for command in (["study", "new", "photos", "--data"], ["describe", "photos"]):
        assert main([*command, str(photos(here.parent / command[0])), "--size", "0", "0"]) == 1
        said = capsys.readouterr().err
        assert "--size 0 0 is not allowed; allowed: H and W from 4 to 4096" in said
        assert len(said.splitlines()) == 1
    assert snapshot(here) == before


def test_a_folder_that_is_described_already_gets_its_study(here, capsys):
    """Also after a run that was killed between the two; with other images it is refused."""
    folder = photos(here.parent / "photos")
    assert main(["study", "new", "no", "--data", str(folder)]) == 0  # "no" is a truth in YAML
    described = (here / "data/params.yaml").read_bytes()
    shutil.move(here / "studies/no", here / "studies/.no.partial")
    assert main(["study", "new", "no", "--data", str(folder)]) == 0
    assert (here / "data/params.yaml").read_bytes() == described
    assert read_study(here / "studies/no/params.yaml").dataset == "no"
    shutil.rmtree(here / "studies/no")
    (folder / "class0/0.png").unlink()
    before = snapshot(here)
    assert main(["study", "new", "no", "--data", str(folder)]) == 1
    assert "has another data set 'no'" in capsys.readouterr().err
    assert snapshot(here) == before


@pytest.mark.parametrize("name", ["08", "1e3", "on"])
def test_a_name_that_looks_like_a_number_is_a_name_for_dvc_too(name, here):
    """And so are classes."""
    folder = photos(here.parent / "photos")
    for label in (0, 1):
        (folder / f"class{label}").rename(folder / f"0{label}8")
    assert main(["study", "new", name, "--data", str(folder)]) == 0
    assert load_yaml(here / f"studies/{name}/params.yaml")["dataset"] == name
    assert load_yaml(here / "data/params.yaml")["datasets"][name]["classes"] == ["008", "018"]
    assert main(["study", "use", name]) == 0
    assert load_yaml(here / f"data/sets/{name}/params.yaml") == {"name": name, "reader": "folder"}
    assert read_study(here / f"studies/{name}/params.yaml").dataset == name


@pytest.mark.parametrize(
    ("name", "classes", "part"),
    [
        ("byot-vs-teachers", 2, "there already; choose another name"),
        ("default", 2, "there already; choose another name"),
        ("cifar100", 2, "has another data set 'cifar100'"),
        ("../photos", 2, "is not a name for a study; allowed: letters, digits, - and _"),
        ("my.photos", 2, "is not a name for a study"),
        ("photos", 1, "two or more classes"),
        ("photos", 0, "two or more classes"),
        ("photos", None, "no such folder"),
    ],
)
def test_a_new_study_that_cannot_be_is_refused_and_leaves_nothing(name, classes, part, here, capsys):
    folder = here.parent / "photos"
    if classes is not None:
        folder.mkdir()
        photos(folder, classes)
    before = snapshot(here)
    assert main(["study", "new", name, "--data", str(folder)]) == 1
    assert part in capsys.readouterr().err
    assert snapshot(here) == before


def test_a_new_study_that_fails_in_the_middle_leaves_nothing(here, monkeypatch):
    folder = photos(here.parent / "photos")
    before = snapshot(here)
    monkeypatch.setattr(studies, "TEMPLATE", studies.TEMPLATE.replace("epochs: 30", "epochs: 0"))
    assert main(["study", "new", "photos", "--data", str(folder)]) == 2
    assert snapshot(here) == before


def test_the_batches_of_a_new_study_fit_its_images():
    for train in [*range(6, 2000), 45000]:
        batch = studies.batch_size(train)
        assert 2 <= batch <= train
        assert train % batch != 1
