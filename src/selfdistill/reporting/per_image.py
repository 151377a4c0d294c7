"""What a run says of each test image, so that intervals and calibration need neither its weights nor its logits.

Of a run of this checkout it is computed from `results/predictions`; an imported run carries it in its entry, `images`.
Both are rounded in the same way, so that an analysis gives the same numbers wherever it is made.

Found: for `last` and for `validation`, the weights a study may select, arrays exits x N, exits shallow to deep:

- of classes, N test images in the order of the test split: correct (bool), nll (float16, nats; above 65,504 it is
  65,504) and confidence (float16, the probability of the class that is told);
- of persons, N queries in their order: first_rank (uint32, of the first right answer, from 1; 0: the gallery has none)
  and average_precision (float16; 0 where first_rank is).  Not re-ranked.

Of several exits also 1 x N, of all together, as `accuracy` and `retrieval` have them: ensemble_correct or
ensemble_first_rank; a run that was packed before these were there lacks them.  Members are not carried.  Nothing here
needs a package of the extra `pipeline` to compute and encode what classes need: a machine that only trains packs its
runs, too.
"""

import base64
import binascii
import hashlib
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from selfdistill.errors import UserError
from selfdistill.outside import json_object

if TYPE_CHECKING:  # torch takes a second to load, pydantic may be missing on a machine that only trains
    from torch import Tensor

    from selfdistill.config import Study

Found = dict[str, dict[str, np.ndarray]]
SELECTIONS = ("last", "validation")
CLASSES = {"correct": "bits", "nll": "float16", "confidence": "float16"}
PERSONS = {"first_rank": "uint32", "average_precision": "float16"}
TOGETHER = {"correct": "ensemble_correct", "first_rank": "ensemble_first_rank"}  # the same of all exits together
LARGEST = {"nll": 65504.0, "confidence": 1.0, "average_precision": 1.0}  # 65504: the largest float16
MOST_VALUES = 10_000_000  # of a column: ImageNet's 50,000 test images have 200,000 at four exits


class PerImageError(UserError):
    """What is said of each image is not here, or is none; the message says of which run, or in which key."""


def read(study: "Study", record: dict) -> Found:
    """Of a run, by its record as `reporting.records.read_record` gives it: computed here, or as it was carried.

    Raises PerImageError where the predictions are missing or others, and where nothing was carried.
    """
    cell = record["model"], record["variant"], record["seed"]
    if not record["imported"]:
        return of_predictions(file_of(study, cell), record)
    file = study.imported_file(*cell)
    carried = json_object(file, "bring it back from Git, or import it again").get("images")
    if carried is None:
        raise PerImageError(
            f"{file}: this imported run carries nothing per image; export it again where its predictions are"
        )
    return decoded(carried, persons="gallery" in record["dataset"]["pixels_sha256"])


def right(study: "Study", record: dict, selection: str) -> np.ndarray:
    """Whether each exit is right about each test image, or, of persons, its first answer to each query that has one;
    then the same of all exits together, where there are several and it is known.  (exits or exits + 1) x N, 0 or 1.
    Raises PerImageError as `read` does."""
    found = read(study, record)[selection]
    name = "correct" if "correct" in found else "first_rank"
    values = np.concatenate([found[key] for key in (name, TOGETHER[name]) if key in found])
    if name == "correct":
        return values.astype(np.uint8)
    return (values[:, (values > 0).any(axis=0)] == 1).astype(np.uint8)


def file_of(study: "Study", cell: tuple[str, str, int]) -> Path:
    """The predictions of a cell that ran here."""
    model, variant, seed = cell
    return study.results / "predictions" / model / variant / f"{seed}.safetensors"


def of_predictions(path: Path, record: dict) -> Found:
    """Of the predictions that an evaluation left; record: the evaluation's.

    Raises PerImageError where the file is missing or is not the one that the record was made with.
    """
    from safetensors.torch import load

    from selfdistill.evaluation.classification import ensemble

    try:
        content = path.read_bytes()
    except OSError as error:
        raise PerImageError(f"{path}: {error.strerror}; `dvc checkout` or `dvc repro` brings it back") from None
    told = record.get("evaluation", {}).get("files", {}).get("predictions.safetensors")
    if hashlib.sha256(content).hexdigest() != told:
        raise PerImageError(f"{path}: not the predictions that its record was made with; evaluate the run again")
    tensors = load(content)
    persons = "identities" in tensors
    scores, name = (scores_of_persons, "first_rank") if persons else (scores_of_classes, "correct")
    found = {}
    for selection in SELECTIONS:
        outputs = tensors[selection]
        exits = [scores(one, tensors) for one in outputs]
        found[selection] = {name: np.stack([one[name] for one in exits]) for name in exits[0]}
        if len(outputs) > 1:
            together = outputs.transpose(0, 1).flatten(1) if persons else ensemble(outputs)
            found[selection][TOGETHER[name]] = scores(together, tensors)[name][None]
    return found


def scores_of_classes(logits: "Tensor", truth: "dict[str, Tensor]") -> dict[str, np.ndarray]:
    """Of one exit, N x K; in double precision before they are rounded, as `evaluation.classification.metrics`."""
    log_probabilities = logits.double().log_softmax(dim=1)
    confidence, told = log_probabilities.exp().max(dim=1)
    nll = log_probabilities.gather(1, truth["labels"][:, None])[:, 0].abs().clamp(max=LARGEST["nll"])
    return {
        "correct": (told == truth["labels"]).numpy(),
        "nll": nll.numpy().astype(np.float16),
        "confidence": confidence.numpy().astype(np.float16),
    }


def scores_of_persons(features: "Tensor", truth: "dict[str, Tensor]") -> dict[str, np.ndarray]:
    """Of one exit, N x D, the queries in front."""
    from selfdistill.evaluation.retrieval import euclidean_distances, query_scores

    (query, gallery), (identities, others), (cameras, other_cameras) = (
        values.tensor_split([int(truth["queries"])]) for values in (features, truth["identities"], truth["cameras"])
    )
    scores = query_scores(euclidean_distances(query, gallery), identities, cameras, others, other_cameras)
    answered = scores["positives"] > 0
    precision = scores["average_precision"].where(answered, 0)  # 0 of 0 otherwise
    return {
        "first_rank": scores["first_rank"].numpy().astype(np.uint32),
        "average_precision": precision.numpy().astype(np.float16),
    }


# ---- in an entry of a packed file ----


def encoded(found: Found) -> dict[str, dict[str, dict]]:
    """For JSON: each array as `dtype`, `shape`, and `data`: base64 of zlib of its values, row after row, little-endian.

    bits: booleans, eight a byte, the first in the highest bit; the last byte is filled up with zeros.
    """
    return {
        selection: {name: encoded_array(values) for name, values in columns.items()}
        for selection, columns in found.items()
    }


def encoded_array(values: np.ndarray) -> dict[str, Any]:
    if values.dtype == bool:
        dtype, content = "bits", np.packbits(values).tobytes()
    else:
        dtype, content = str(values.dtype), values.astype(values.dtype.newbyteorder("<")).tobytes()
    data = base64.b64encode(zlib.compress(content, 9)).decode()
    return {"dtype": dtype, "shape": list(values.shape), "data": data}


def decoded(content: dict[str, dict[str, dict]], persons: bool) -> Found:
    """What `encoded` was given; content: of the form of `reporting.transfer.Images`, but otherwise from anywhere.

    Columns that are not known here are left out.  Raises PerImageError for columns that are missing or of another type
    or shape, for data that do not have just that length (no more than it is unpacked), and numbers out of range.
    """
    kinds = PERSONS if persons else CLASSES
    shape: list[int] = next((content["last"][name]["shape"] for name in kinds if name in content["last"]), [])
    together = {TOGETHER[name]: dtype for name, dtype in kinds.items() if name in TOGETHER}
    found: Found = {}
    for selection in SELECTIONS:
        found[selection] = {}
        for name, dtype in {**kinds, **together}.items():
            place, column = f"images.{selection}.{name}", content[selection].get(name)
            if column is None and name in together:
                continue
            if column is None:
                raise PerImageError(f"{place}: missing; there are to be {', '.join(kinds)}")
            for key, wanted in (("dtype", dtype), ("shape", [1, *shape[1:]] if name in together else shape)):
                if column[key] != wanted:
                    text = f"{column[key]} is not allowed; allowed: {wanted}"
                    raise PerImageError(f"{place}.{key}: {text}")
            found[selection][name] = decoded_array(column, place, LARGEST.get(name))
    return found


def decoded_array(column: dict, place: str, largest: float | None) -> np.ndarray:
    """One array; largest: of its values, None for any."""
    dtype, (rows, count) = column["dtype"], column["shape"]
    if rows * count > MOST_VALUES:
        raise PerImageError(f"{place}.shape: {rows * count} values are not allowed; allowed: at most {MOST_VALUES}")
    size = (rows * count + 7) // 8 if dtype == "bits" else rows * count * np.dtype(dtype).itemsize
    try:
        unpacking = zlib.decompressobj()
        content = unpacking.decompress(base64.b64decode(column["data"], validate=True), size + 1)  # and not a byte more
        whole = len(content) == size and unpacking.eof and not unpacking.unused_data
    except (binascii.Error, ValueError, zlib.error):
        whole = False
    if not whole:
        raise PerImageError(f"{place}.data: not allowed; allowed: base64 of zlib of {size} bytes")
    if dtype == "bits":
        bits = np.unpackbits(np.frombuffer(content, np.uint8), count=rows * count)
        return bits.astype(bool).reshape(rows, count)
    values = np.frombuffer(content, np.dtype(dtype).newbyteorder("<")).astype(dtype).reshape(rows, count)
    if largest is not None and (wrong := int((~((values >= 0) & (values <= largest))).sum())):  # NaN is neither
        raise PerImageError(f"{place}: {wrong} values are not allowed; allowed: numbers from 0 to {largest:g}")
    return values
