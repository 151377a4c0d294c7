"""A trained run and its stored predictions, where a study keeps them, in a second."""

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path

import torch
import torch.nn.functional as F
import yaml
from made import DATASET, FORM, made_images
from safetensors.torch import save_file

from selfdistill.evaluation.inputs import FILES
from selfdistill.evaluation.splits import ClassImages
from selfdistill.models.trained import build
from selfdistill.stages.evaluate import evaluate_run
from selfdistill.training.cost import inference_macs

MODEL = "resnet10-slim"
TEST_IMAGES = 200
CATALOGUE = {
    "datasets": {
        "made": {
            "title": "Made images, 8x8",
            "reader": "folder",
            "licence": "CC0 1.0",
            "citation": "Nobody, Made images, 2026",
            "obtain": "by hand",
            "files": [{"name": "made.zip", "bytes": None, "sha256": None, "verified": False}],
            "image": {"size": [8, 8], "channels": 1},
        }
    }
}


def made_run(study: Path, variant: str = "byot", form: dict = FORM, steps: int = 40, block: str = "0-1") -> Path:
    """The folder of the run, below `study`/results/runs; its predictions lie beside."""
    form = {**form, "exits": True, "classes": 4}
    torch.manual_seed(0)
    network = build(form, seed=0)
    dataset = replace(DATASET, channels=form["channels"], size=tuple(form["size"]))
    images, labels = seen(form, 160, seed=0)
    optimiser = torch.optim.SGD(network.parameters(), lr=0.02, momentum=0.9)
    network.train()
    for step in range(steps):
        rows = slice(32 * (step % 5), 32 * (step % 5) + 32)
        logits = network(dataset.normalise(images[rows])).logits
        optimiser.zero_grad()
        sum(F.cross_entropy(z, labels[rows]) for z in logits).backward()
        optimiser.step()
    folder = study / "results/runs" / form["name"].replace(":", "_") / variant / block / "0"
    folder.mkdir(parents=True)
    for name in ("weights", "validation_best"):
        state = {key: tensor.contiguous() for key, tensor in network.state_dict().items()}
        save_file(state, folder / f"{name}.safetensors")
    sha256 = hashlib.sha256((folder / "weights.safetensors").read_bytes()).hexdigest()
    upto, together = inference_macs(network, network.input_shape)
    (folder / "history.csv").write_text("epoch,phase,loss\n1,1,0.5\n")
    run = {
        **{"protocol": 2, "model": form["name"], "variant": variant, "method": "byot", "seed": 0, "key": "5" * 64},
        **{
            "teacher": None,
            "split": {"split": "per_seed", "training": 160, "validation": 120},
            "hyper": {"alpha": 0.1},
        },
        **{
            "recipe": {"epochs": 3, "batch_size": 32, "learning_rate": 0.02, "optimiser": "sgd"},
            "code_sha256": "c" * 64,
        },
        **{"network": form, "dataset": asdict(dataset), "sections": network.section_count},
        **{"weights_sha256": sha256, "validation_best_sha256": sha256, "validation_best_epoch": 3},
        **{"members": {}, "kept": {}, "cost": {"parameters": 1, "inference_macs": upto, "ensemble_macs": together}},
    }
    (folder / "run.json").write_text(json.dumps(run))
    (study / "data").mkdir(exist_ok=True)
    (study / "data/params.yaml").write_text(yaml.safe_dump(CATALOGUE))
    predictions = study / "results/predictions" / folder.relative_to(study / "results/runs").parts[0] / variant
    evaluate_run(
        folder, ClassImages(*seen(form, TEST_IMAGES, seed=1)), ClassImages(*seen(form, 120, seed=2)), predictions
    )
    for name, ending in FILES.items():
        (predictions / name).rename(predictions / f"0{ending}")
    (predictions / "record.json").rename(predictions / "0.json")
    return folder


def seen(form: dict, count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images of `made`, in the form's channels and size, under noise, so that no exit is sure of all."""
    images, labels = made_images(count, seed)
    size, generator = tuple(form["size"]), torch.Generator().manual_seed(seed)
    images = F.interpolate(images.float(), size=size).expand(-1, form["channels"], -1, -1)
    noise = 90 * torch.randn(images.shape, generator=generator)
    return (images + noise).clamp(0, 255).to(torch.uint8), labels
