"""Evaluate the trained runs of a method on other test images: new ones, or the test images corrupted.

Hendrycks and Dietterich, Benchmarking Neural Network Robustness to Common Corruptions and Perturbations, ICLR
2019 (arXiv 1903.12261): a set of test images for each corruption, at severities 1 to 5.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from safetensors.torch import load_file
from tqdm import tqdm

from selfdistill.data.prepared import Dataset
from selfdistill.evaluation.classification import ClassTest
from selfdistill.evaluation.run import WEIGHTS
from selfdistill.files import write_atomically
from selfdistill.models.trained import load_network, run_folder
from selfdistill.training import determinism


def evaluate_robustness(study, *, model: str, method: str, name: str) -> None:
    """Test every seed's run on the data set `name`, with the weights that the study selects.

    records/robustness/<name>/<model>/<method>/<seed>.json: whose weights, the SHA-256 of the pixels of each set,
    and for each set and severity (null where there are none) the metrics of every exit.
    ValueError: the data set's classes are not those of the network.
    """
    prepared, device = study.prepared(name), determinism.apply(study.recipe)
    facts = json.loads((prepared / "training" / "dataset.json").read_text())
    found = {}
    for seed in study.seeds:
        network, record = load_network(run_folder(study.results, model, method, seed), device, WEIGHTS[study.selection])
        if record["dataset"]["classes"] != facts["classes"]:
            raise ValueError(f"{name}: its classes are not those of {record['dataset']['name']}, in their order")
        found[seed] = network, record, []
    bar = tqdm(total=len(facts["counts"]) * len(found), unit="set", disable=None, leave=False)
    with bar:
        for part in facts["counts"]:  # each is read once for all seeds: 150 MB of CIFAR-10-C's
            for severity, test in tests_of(prepared / "test" / f"{part}.safetensors", device):
                for network, record, rows in found.values():
                    outputs = test.outputs(network, Dataset(**record["dataset"]))
                    rows.append({"set": part, "severity": severity, **test.of_exits(outputs)})
            bar.update(len(found))
    for seed, (_, record, rows) in found.items():
        content = {
            "weights_sha256": record["weights_sha256"],
            "selection": study.selection,
            "pixels_sha256": facts["pixels_sha256"],
            "tests": rows,
        }
        path = study.results / "records" / "robustness" / name / model / method / f"{seed}.json"
        write_atomically(path, (json.dumps(content) + "\n").encode())


def tests_of(path: Path, device: str) -> Iterator[tuple[int | None, ClassTest]]:
    """A prepared test set at each of its severities, from 1; (None, all of it) where it has none."""
    tensors = load_file(path, device=device)
    images, labels, severities = tensors["images"], tensors["labels"], tensors.get("severity")
    if severities is None:
        yield None, ClassTest(images, labels)
        return
    for severity in severities.unique().tolist():
        rows = severities == severity
        yield severity, ClassTest(images[rows], labels[rows])
