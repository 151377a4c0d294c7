"""What a probe is given of one run: the network itself, and images."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from selfdistill.data.prepared import Dataset, Splits, open_splits
from selfdistill.errors import UserError
from selfdistill.evaluation.exits import exit_names
from selfdistill.evaluation.finite import finite
from selfdistill.evaluation.inputs import Classes
from selfdistill.evaluation.splits import ClassImages
from selfdistill.models.sections import SectionedNetwork
from selfdistill.models.trained import load_network, predict
from selfdistill.seeds import derived_seed
from selfdistill.training.noise import noisy_labels


@dataclass(frozen=True)
class Probed:
    """The network of one run, with the weights that the study selects, and the data set that a probe looks at.

    run: what training said of it; dataset: that it was trained on; file: of its weights, in the run's folder;
    prepared: of the probe's data set; own: of the run's; teacher: the folder of the run that it learnt from, None
    where there is none, or where it is not here.
    """

    run: dict[str, Any]
    network: SectionedNetwork
    dataset: Dataset
    file: Path
    prepared: Path
    device: str
    own: Path
    teacher: Path | None = None

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What preparing said of the probe's data set."""
        return json.loads((self.prepared / "training" / "dataset.json").read_text())

    @property
    def exits(self) -> list[str]:
        return exit_names(self.run)

    # ---- test images ----

    def test_sets(self) -> Iterator[tuple[str, int | None, ClassImages]]:
        """(set, severity, images) of the probe's test images; severities count from 1, None where a set has none.

        Raises UserError where their classes are not those of the run's data set.
        """
        if list(self.dataset.classes) != self.facts["classes"]:
            raise UserError(f"{self.facts['name']}: its classes are not those of {self.dataset.name}, in their order")
        for part in self.facts["counts"]:
            path = self.prepared / "test" / f"{part}.safetensors"
            if not path.is_file():  # a split for training
                continue
            tensors = load_file(path, device=self.device)
            images, labels, severities = tensors["images"], tensors["labels"], tensors.get("severity")
            if severities is None:
                yield part, None, ClassImages(images, labels)
                continue
            for severity in severities.unique().tolist():
                rows = severities == severity
                yield part, severity, ClassImages(images[rows], labels[rows])

    def test(self, most: int, folder: Path | None = None) -> ClassImages:
        """`most` images at most of the test split of the run's data set, or of another prepared one: the same for every
        run."""
        whole = ClassImages.read((folder or self.own) / "test", self.device)
        return some(whole, most, derived_seed(0, "images of a probe"))

    def logits(self, images: ClassImages, words: str) -> Tensor:
        """Of every exit, exits x N x K, on the CPU; words: which images they are, for messages."""
        with torch.no_grad():
            return finite(predict(self.network, self.dataset, images.images).cpu(), self.file, words)

    def truth(self, images: ClassImages) -> Classes:
        return Classes(images.labels.cpu())

    # ---- what the run was trained with ----

    def splits(self) -> Splits:
        """Its training and validation images, as the training saw them."""
        told = self.run
        return open_splits(
            self.own / "training",
            split=told["split"]["split"],
            training_images=told["training_images"],
            validation_images=told["validation_images"],
            seed=told["seed"],
            device=self.device,
        )

    def training(self, most: int) -> ClassImages:
        """`most` of its training images at most, without augmentation, with the labels that it was trained on: of one
        seed the same for every method.  Of packed images the centre."""
        splits, recipe = self.splits(), self.run["recipe"]
        if splits.training is not None:
            images, labels = splits.training
            return some(ClassImages(images, self.noisy(labels, recipe)), most, self.seed("images"))
        from selfdistill.data.prepared.packed import PackedSplit, centre_cropped

        packed = PackedSplit.read(splits.folder, "train")
        labels = self.noisy(torch.from_numpy(packed.labels), recipe)
        rows = chosen(len(packed), most, self.seed("images"))
        size = (self.dataset.size[0], self.dataset.size[1])
        pixels = np.stack([centre_cropped(packed.encoded(i), size, self.dataset.channels) for i in rows.tolist()])
        return ClassImages(torch.from_numpy(pixels).permute(0, 3, 1, 2).to(self.device), labels[rows].to(self.device))

    def noisy(self, labels: Tensor, recipe: dict[str, Any]) -> Tensor:
        share, seed = recipe.get("label_noise", 0.0), recipe.get("label_noise_seed", 0)
        return noisy_labels(labels, len(self.dataset.classes), share, seed)

    def seed(self, purpose: str) -> int:
        """One for a use of chance of this run: the same for every method."""
        return derived_seed(self.run["seed"], f"probe/{purpose}")

    def weights(self, name: str) -> SectionedNetwork:
        """The network with other weights of the run, by the name of their file (`models.trained.load_network`)."""
        return load_network(self.file.parent, self.device, name)[0]


def chosen(count: int, most: int, seed: int) -> Tensor:
    """The rows of `most` of so many images at most, in a random order, so that the first are a sample, too: int64."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:most]


def some(images: ClassImages, most: int, seed: int) -> ClassImages:
    rows = chosen(len(images.labels), most, seed).to(images.labels.device)
    return ClassImages(images.images[rows], images.labels[rows])
