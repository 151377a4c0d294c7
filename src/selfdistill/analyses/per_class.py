"""How accuracy spreads over classes, from stored logits."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from selfdistill.evaluation.inputs import Predictions

ABOUT = {
    "title": "Accuracy by class",
    "needs": ["logits"],
    "settings": {},
    "keys": {"class": "Class"},
    "shown": {"class": None},
    "numbers": {
        "worst": {"title": "Worst class", "unit": "%", "better": "higher", "judged": True},
        "mean": {"title": "Mean over classes", "unit": "%", "better": "higher", "judged": False},
        "best": {"title": "Best class", "unit": "%", "better": "higher", "judged": False},
        "spread": {"title": "Spread over classes", "unit": "points", "better": "lower", "judged": False},
        "accuracy": {"title": "Accuracy", "unit": "%", "better": "higher", "judged": False, "shown": "runs"},
        "images": {"title": "Test images", "unit": "", "better": None, "judged": False, "shown": "runs"},
    },
}


def analyse(inputs: "Predictions") -> list[dict[str, Any]]:
    """Of the deepest exit one row over all classes that have test images, `spread` being the standard deviation of
    their accuracies, and one a class; the accuracy of a class without test images is not defined."""
    names, labels = inputs.run["dataset"]["classes"], inputs.labels
    right = (inputs.logits[-1].argmax(dim=1) == labels).double()
    images = labels.bincount(minlength=len(names)).tolist()
    shares = [right[labels == i].mean().item() if count else None for i, count in enumerate(images)]
    there = [share for share in shares if share is not None]
    mean = sum(there) / len(there)
    spread = 100 * (sum((share - mean) ** 2 for share in there) / len(there)) ** 0.5
    whole = {"class": None, "worst": min(there), "mean": mean, "best": max(there), "spread": spread}
    found = zip(names, shares, images, strict=True)
    return [whole, *({"class": name, "accuracy": share, "images": count} for name, share, count in found)]
