"""Images that trained networks are shown, and what they make of them."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from selfdistill.data.prepared import Dataset, read_split
from selfdistill.errors import UserError
from selfdistill.models.sections import SectionedNetwork
from selfdistill.models.trained import predict


@dataclass(frozen=True)
class ClassImages:
    """A split of images of classes: uint8 N x C x H x W, and labels, int64 N, on one device."""

    images: Tensor
    labels: Tensor

    @classmethod
    def read(cls, folder: Path, device: str) -> "ClassImages":
        """The test split of a prepared data set."""
        return cls(*read_split(folder, "test", device))

    def truth(self) -> dict[str, Tensor]:
        return {"labels": self.labels.cpu()}

    def outputs(self, network: SectionedNetwork, dataset: Dataset) -> Tensor:
        """Logits, exits x N x K floats, on the CPU."""
        return predict(network, dataset, self.images).cpu()


@dataclass(frozen=True)
class PersonImages:
    """A test split of persons to be found again: the queries in front and the gallery behind them.

    images: uint8 N x C x H x W, on one device; identities, cameras: int64 N, on the CPU; queries: how many
    of the N; re_ranking: k1, k2 and weight of `retrieval.re_rank`, or None for no re-ranked distances.

    An image is told by its feature, brought to length 1: what the classifier of an exit sees.
    """

    images: Tensor
    identities: Tensor
    cameras: Tensor
    queries: int
    re_ranking: dict | None

    @classmethod
    def read(cls, folder: Path, device: str) -> "PersonImages":
        """What `data.prepare` left of query and gallery."""
        query, gallery = (load_file(folder / f"{part}.safetensors") for part in ("query", "gallery"))
        both = {key: torch.cat([query[key], gallery[key]]) for key in ("images", "identities", "cameras")}
        protocol = json.loads((folder / "protocol.json").read_text())
        return cls(
            both["images"].to(device), both["identities"], both["cameras"], len(query["images"]), protocol["re_ranking"]
        )

    def truth(self) -> dict[str, Tensor]:
        return {"identities": self.identities, "cameras": self.cameras, "queries": torch.tensor(self.queries)}

    def outputs(self, network: SectionedNetwork, dataset: Dataset) -> Tensor:
        """Features, exits x N x D, on the CPU.  float16: half the space in the cache for what has 11 bits of
        every number; metrics are computed from these very numbers."""
        return of_length_one(extract_features(network, dataset, self.images)).half().cpu()


def open_test(folder: Path, device: str) -> ClassImages | PersonImages:
    """The test split of a prepared data set, on a device: of persons to be found again where there is a
    gallery, otherwise of classes.  Raises UserError where it has no image."""
    persons = (folder / "gallery.safetensors").is_file()
    test = PersonImages.read(folder, device) if persons else ClassImages.read(folder, device)
    if not len(test.images):
        raise UserError(f"{folder}: 0 test images; allowed: at least 1; prepare the data set again")
    return test


@torch.no_grad()
def extract_features(network: SectionedNetwork, dataset: Dataset, images: Tensor, batch_size: int = 250) -> Tensor:
    """What the classifier of every exit of a `SectionedNetwork` sees, exits x N x D floats, of uint8
    N x C x H x W."""
    network.eval()
    normalise = dataset.normaliser(images.device)
    batches = (torch.stack(network(normalise(batch)).features).float() for batch in images.split(batch_size))
    return torch.cat(list(batches), dim=1)


def of_length_one(features: Tensor) -> Tensor:
    """Features, ... x D, divided by their lengths, in their own precision; a feature that is not finite keeps a NaN or
    gets one, one of zeros stays.

    Lengths are taken in double precision: in single the square of 2e19 is infinite and that of 1e-23 is zero.
    """
    lengths = torch.linalg.vector_norm(features, dim=-1, keepdim=True, dtype=torch.float64)
    return (features / lengths.where(lengths > 0, 1)).to(features.dtype)
