"""How flat the loss is around the trained weights: accuracy and loss under noise on them, and the Hessian's trace."""

import copy
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

if TYPE_CHECKING:
    from selfdistill.evaluation.probed import Probed

ABOUT = {
    "title": "Flatness",
    "needs": ["network", "own"],
    "settings": {
        "images": {"default": 1000, "allowed": [50, 1_000_000]},
        "draws": {"default": 10, "allowed": [1, 1000]},
        "sigmas": {"default": 6, "allowed": [1, 100]},
        "largest": {"default": 0.6, "allowed": [0.001, 100.0]},
        "vectors": {"default": 10, "allowed": [1, 10_000]},
    },
    "keys": {"sigma": "Noise"},
    "shown": {"sigma": "all"},
    "beside": True,
    "numbers": {
        "accuracy": {"title": "Training accuracy under noise", "unit": "%", "better": "higher", "judged": True},
        "loss": {"title": "Loss under noise", "unit": "nats", "better": "lower", "judged": False},
        "trace": {"title": "Hessian trace", "unit": "", "better": "lower", "judged": True, "digits": 0},
    },
}
BATCH = 250  # images that go through the network together, and of which the statistics of normalisation are taken
Batches = list[tuple[Tensor, Tensor]]  # normalised images, N x C x H x W, and labels, int64 N


def analyse(
    inputs: "Probed", images: int, draws: int, sigmas: int, largest: float, vectors: int
) -> list[dict[str, Any]]:
    """One row a strength of noise, 0 and `sigmas` steps up to `largest`, the mean over `draws` directions, and one of
    `all`: the area under both curves divided by `largest`, by the trapezoidal rule, and the Hessian's trace.

    Of the deepest exit and of `images` training images at most, without augmentation.
    """
    network, batches = inputs.network.deepest(), batched(inputs, images)
    strengths = [largest * step / sigmas for step in range(sigmas + 1)]
    found = torch.zeros(len(strengths), 2, dtype=torch.float64)
    found[0] = tested(network, batches)
    for draw in range(draws):
        direction = filter_noise(network, generator_of(inputs, f"noise/{draw}"))
        for step, strength in enumerate(strengths[1:], start=1):
            found[step] += tested(moved(network, direction, strength), batches)
    found[1:] /= draws
    area = (found[1:].sum(dim=0) + (found[0] - found[-1]) / 2) / sigmas
    trace = hessian_trace(network, batches, [inputs.seed(f"vector/{i}") for i in range(vectors)])
    curve = zip([f"{strength:g}" for strength in strengths], found.tolist(), strict=True)
    rows = [{"sigma": sigma, "accuracy": accuracy, "loss": loss} for sigma, (accuracy, loss) in curve]
    return [*rows, {"sigma": "all", "accuracy": area[0].item(), "loss": area[1].item(), "trace": trace}]


def batched(inputs: "Probed", most: int) -> Batches:
    shown, normalise = inputs.training(most), inputs.dataset.normaliser(inputs.device)
    return [
        (normalise(images), labels)
        for images, labels in zip(shown.images.split(BATCH), shown.labels.split(BATCH), strict=True)
    ]


def generator_of(inputs: "Probed", purpose: str) -> torch.Generator:
    return torch.Generator().manual_seed(inputs.seed(purpose))


# ---- noise ----


def filter_noise(network: nn.Module, generator: torch.Generator) -> dict[str, Tensor]:
    """A Gaussian direction for each tensor of weights, filter-normalised (Li et al. 2018, arXiv 1712.09913, section 4):
    each filter, a row of its first dimension, is as long as the filter that it is added to.

    Biases and the scales of normalisations, of one dimension, are left as they are, as in the authors' figures.
    """
    found = {}
    for name, weight in network.named_parameters():
        if weight.ndim < 2:
            continue
        noise = torch.randn(weight.shape, generator=generator).to(weight.device).flatten(1)
        length = noise.norm(dim=1, keepdim=True).clamp(min=1e-30)
        wanted = weight.detach().flatten(1).norm(dim=1, keepdim=True)
        found[name] = (noise * (wanted / length)).view(weight.shape)
    return found


def moved(network: nn.Module, direction: dict[str, Tensor], strength: float) -> nn.Module:
    """A copy of the network with weights w + strength x direction."""
    copied = copy.deepcopy(network)
    with torch.no_grad():
        for name, weight in copied.named_parameters():
            if name in direction:
                weight.add_(direction[name], alpha=strength)
    return copied


@torch.no_grad()
def tested(network: nn.Module, batches: Batches) -> Tensor:
    """Accuracy and mean cross-entropy, float64 of 2, once the statistics of batch normalisation are those of the first
    batch."""
    network = with_statistics_of(network, batches[0][0])
    right = loss = 0.0
    for images, labels in batches:
        logits = network(images).double()
        right += (logits.argmax(dim=1) == labels).sum().item()
        loss += F.cross_entropy(logits, labels, reduction="sum").item()
    return torch.tensor([right, loss], dtype=torch.float64) / sum(len(labels) for _, labels in batches)


def with_statistics_of(network: nn.Module, images: Tensor) -> nn.Module:
    """A copy of the network whose batch normalisation has the mean and variance of these images, in evaluation mode."""
    copied = copy.deepcopy(network).eval()
    norms = [m for m in copied.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    for norm in norms:
        norm.momentum = 1.0  # nothing of the statistics before
        norm.train()
    if norms:
        copied(images)
    return copied.eval()


# ---- curvature ----


def hessian_trace(network: nn.Module, batches: Batches, seeds: list[int]) -> float:
    """The trace of the Hessian of the mean cross-entropy in all weights of the network, which is in evaluation mode:
    the mean of v' H v over vectors v of +1 and -1, one a seed (Hutchinson 1990).

    H v is exact, by differentiating twice.  A vector is drawn again for each batch: all of a large network's would not
    fit into memory.
    """
    # contiguous: twice differentiated, convolutions of a CPU are faster than with channels last
    network = copy.deepcopy(network).to(memory_format=torch.contiguous_format)
    parameters = [p for p in network.parameters() if p.requires_grad]
    total = 0.0
    for images, labels in batches:
        loss = F.cross_entropy(network(images.contiguous()), labels, reduction="sum")
        slopes = torch.autograd.grad(loss, parameters, create_graph=True)
        for seed in seeds:
            generator = torch.Generator().manual_seed(seed)
            vector = [signs(p, generator) for p in parameters]
            products = torch.autograd.grad(slopes, parameters, vector, retain_graph=True, allow_unused=True)
            total += sum((v * h).sum().item() for v, h in zip(vector, products, strict=True) if h is not None)
    return total / len(seeds) / sum(len(labels) for _, labels in batches)


def signs(like: Tensor, generator: torch.Generator) -> Tensor:
    drawn = torch.randint(2, like.shape, generator=generator)
    return (2 * drawn - 1).to(like)
