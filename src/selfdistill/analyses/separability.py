"""How far the classes lie apart in what each exit's classifier sees."""

from typing import TYPE_CHECKING, Any

import torch

from selfdistill.evaluation.splits import extract_features

if TYPE_CHECKING:
    from torch import Tensor

    from selfdistill.evaluation.probed import Probed

ABOUT = {
    "title": "Separability of features",
    "needs": ["network", "images", "own"],
    "settings": {"images": {"default": 10_000, "allowed": [2, 1_000_000]}},
    "keys": {"exit": "Exit"},
    "numbers": {
        "scatter": {
            "title": "Scatter between / within classes",
            "unit": "",
            "better": "higher",
            "judged": True,
            "digits": 3,
        },
        "two": {"title": "Variance in two components", "unit": "%", "better": None, "judged": False},
        "dimensions": {"title": "Effective dimensions", "unit": "", "better": None, "judged": False, "digits": 1},
    },
}


def analyse(inputs: "Probed", images: int) -> list[dict[str, Any]]:
    """One row an exit, of `images` test images at most.

    scatter: `scatter_ratio`; two: the share of the features' variance that their first two principal components hold;
    dimensions: the participation ratio of all components' variances, (sum)^2 / sum of squares.
    """
    shown = inputs.test(images)
    features = extract_features(inputs.network, inputs.dataset, shown.images).double().cpu()
    rows = []
    for name, seen in zip(inputs.exits, features, strict=True):
        variances = component_variances(seen)
        total = variances.sum()
        spread = total.item() > 0
        rows.append(
            {
                "exit": name,
                "scatter": scatter_ratio(seen, shown.labels.cpu()),
                "two": min(1.0, (variances[:2].sum() / total).item()) if spread else None,
                "dimensions": (total.square() / variances.square().sum()).item() if spread else None,
            }
        )
    return rows


def scatter_ratio(features: "Tensor", labels: "Tensor") -> float | None:
    """tr(S_B) / tr(S_W) of N x D features and their labels, int64 N; None where no class has any spread.

    S_B = sum_c n_c (m_c - m)(m_c - m)', S_W = sum_i (x_i - m_{y_i})(x_i - m_{y_i})', of Fisher's discriminant analysis;
    its square root would be a ratio of distances.  Scaling or rotating all features changes nothing.
    """
    features = features.double()
    classes, which = labels.unique(return_inverse=True)
    counts = torch.bincount(which, minlength=len(classes)).double().unsqueeze(1)
    means = torch.zeros(len(classes), features.shape[1], dtype=torch.float64).index_add_(0, which, features) / counts
    between = (counts * (means - features.mean(dim=0)).square()).sum()
    within = (features - means[which]).square().sum()
    return (between / within).item() if within.item() > 0 else None


def component_variances(features: "Tensor") -> "Tensor":
    """Of each principal component of N x D features, the largest first: D values, divided by N - 1."""
    centred = features.double() - features.double().mean(dim=0)
    covariance = centred.T @ centred / max(1, len(features) - 1)
    return torch.linalg.eigvalsh(covariance).flip(0).clamp(min=0)


def draw(ax, table, style) -> None:
    """The ratio against the exit, a line a method with exits, a point for one that has the deepest alone."""
    exits = sorted(dict.fromkeys(table.exit), key=lambda name: int(name.partition("/")[0]))
    for place, (variant, rows) in enumerate(table.groupby("variant", sort=False)):
        look = style.looks[variant]
        ax.errorbar(
            [exits.index(name) + 0.03 * (place - style.variants / 2) for name in rows.exit], rows.scatter,
            yerr=rows.half_width.fillna(0), fmt=f"{look.marker}-", color=look.colour, mfc=look.fill,
            elinewidth=style.thinner(place), label=rows.title.iloc[0],
        )  # fmt: skip
    ax.set_xticks(range(len(exits)), exits)
    ax.set_xlabel("exit after section")
    ax.set_ylabel("scatter between / within classes")
    ax.set_title("Separability of features by exit")
    style.legend(ax)
