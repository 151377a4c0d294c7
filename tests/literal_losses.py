"""Every method's loss once more, written out number by number, to hold the fast ones against.

Loops over images and classes, `math`, and float64 tensors of no dimension; nothing of the package's
losses.  What learns is a nested list of such tensors, through which autograd yields the reference
gradient (`learns`); what teaches is a nested list of floats, through which none can flow (`teaches`).

Each function of a method's name takes a float64 `Step` and the method's hyper-parameters, whose defaults
stand here as the papers or their public codes have them, and returns the method's named terms.
"""

import itertools
import math

from torch import Tensor


def learns(tensor: Tensor):
    return [learns(part) for part in tensor.unbind()] if tensor.ndim else tensor


def teaches(tensor: Tensor):
    return tensor.tolist()


def value(x) -> float:
    return x.item() if isinstance(x, Tensor) else x


def exp(x):
    return x.exp() if isinstance(x, Tensor) else math.exp(x)


def log(x):
    return x.log() if isinstance(x, Tensor) else math.log(x)


def root(x):
    """The square root, with gradient 0 at 0."""
    if isinstance(x, Tensor):
        return x.sqrt() if x.item() > 0 else x * 0
    return math.sqrt(x)


def mean(values):
    values = list(values)
    return sum(values) / len(values)


# ---- distributions ----


def log_softmax(row, temperature=1.0):
    row = [x / temperature for x in row]
    largest = max(value(x) for x in row)
    normaliser = largest + log(sum(exp(x - largest) for x in row))
    return [x - normaliser for x in row]


def softmax(row, temperature=1.0):
    return [exp(x) for x in log_softmax(row, temperature)]


def of_each(rows, temperature):
    return [softmax(row, temperature) for row in rows]


def cross_entropies(rows, labels):
    return [-log_softmax(row)[label] for row, label in zip(rows, labels, strict=True)]


def cross_entropy(rows, labels):
    return mean(cross_entropies(rows, labels))


def cross_entropy_to(targets, rows, temperature=1.0):
    """-sum_k t_k log p_k, averaged over the images; targets: rows of probabilities."""
    return mean(
        -sum(t * lp for t, lp in zip(target, log_softmax(row, temperature), strict=True))
        for target, row in zip(targets, rows, strict=True)
    )


def divergence(targets, rows, temperature=1.0):
    """sum_k t_k log(t_k / p_k), averaged over the images alone; 0 log 0 is 0."""

    def of_one(target, row):
        log_p = log_softmax(row, temperature)
        return sum(t * (math.log(t) - lp) for t, lp in zip(target, log_p, strict=True) if t > 0)

    return mean(of_one(target, row) for target, row in zip(targets, rows, strict=True))


def kl(teacher, student, temperature):
    """KL(softmax(v/T) || softmax(z/T)), mean over the images, no T^2."""
    return divergence(of_each(teacher, temperature), student, temperature)


def one_hot(label, classes):
    return [1.0 if k == label else 0.0 for k in range(classes)]


def per(reduction, rows):
    """What a divergence is divided by beside the number of images."""
    return {"batchmean": 1, "mean": len(rows[0])}[reduction]


def swapped(rows, labels):
    """The largest, of equals the first, exchanged with the label's."""
    new = []
    for row, label in zip(rows, labels, strict=True):
        largest = 0
        for k in range(len(row)):
            if value(row[k]) > value(row[largest]):
                largest = k
        changed = [row[label] if k == largest else row[largest] if k == label else row[k] for k in range(len(row))]
        new.append(changed)
    return new


def virtual(labels, classes, correct, temperature):
    """A softmax of probabilities."""
    rest = (1 - correct) / (classes - 1)
    return [softmax([correct if k == label else rest for k in range(classes)], temperature) for label in labels]


# ---- maps: C x H x W nested lists, one an image ----


def blocks(plane, height, width):
    """An H x W plane averaged over even blocks to height x width."""
    tall, wide = len(plane) // height, len(plane[0]) // width
    assert (tall * height, wide * width) == (len(plane), len(plane[0])), "only even blocks are literal"
    return [
        [mean(plane[i * tall + a][j * wide + b] for a in range(tall) for b in range(wide)) for j in range(width)]
        for i in range(height)
    ]


def size(one):
    return len(one[0]), len(one[0][0])


def energy(one):
    """H x W: the mean over channels of the square."""
    height, width = size(one)
    return [[mean(plane[i][j] ** 2 for plane in one) for j in range(width)] for i in range(height)]


def attention(one):
    flat = [x for line in energy(one) for x in line]
    length = root(sum(x**2 for x in flat))
    return [x / length if value(length) > 1e-12 else x / 1e-12 for x in flat]


def attention_distance(students, teachers, distance="mean_square"):
    apart = []
    for student, teacher in zip(students, teachers, strict=True):
        to = min(size(student), size(teacher))
        pair = ([blocks(plane, *to) for plane in one] for one in (student, teacher))
        mine, theirs = (attention(one) for one in pair)
        apart.append([a - b for a, b in zip(mine, theirs, strict=True)])
    if distance == "l2":
        return mean(root(sum(x**2 for x in one)) for one in apart)
    return mean(x**2 for one in apart for x in one)


# ---- what steps hold ----


def deepest(outputs):
    return outputs.logits[-1]


def ingredients(step):
    """The student's deepest logits, the teacher's, and the labels."""
    teacher = teaches(deepest(step.teacher)) if step.teacher is not None else None
    return learns(deepest(step.student)), teacher, step.targets.tolist()


# ---- controls ----


def plain(step):
    z, _, y = ingredients(step)
    return {"cross_entropy": cross_entropy(z, y)}


def plain_equal_cost(step, factor=2.333):
    return plain(step)


def label_smoothing(step, epsilon=0.1, spread="all"):
    z, _, y = ingredients(step)
    classes = len(z[0])
    elsewhere = {"all": epsilon / classes, "others": epsilon / (classes - 1)}[spread]
    on_label = {"all": 1 - epsilon + epsilon / classes, "others": 1 - epsilon}[spread]
    targets = [[on_label if k == label else elsewhere for k in range(classes)] for label in y]
    return {"cross_entropy": cross_entropy_to(targets, z)}


def deep_supervision(step, weight=1.0):
    y = step.targets.tolist()
    *shallow, last = (cross_entropy(learns(z), y) for z in step.student.logits)
    return {"deepest_cross_entropy": last, "shallow_cross_entropy": weight * sum(shallow)}


def mixup(step, alpha=1.0):
    z, _, y = ingredients(step)
    classes = len(z[0])
    targets = []
    for own, other, share in zip(y, step.partner_targets.tolist(), step.share.tolist(), strict=True):
        a, b = one_hot(own, classes), one_hot(other, classes)
        targets.append([share * p + (1 - share) * q for p, q in zip(a, b, strict=True)])
    return {"cross_entropy": cross_entropy_to(targets, z)}


cutmix = mixup


# ---- with a teacher ----


def kd(step, alpha=0.9, temperature=4.0):
    z, v, y = ingredients(step)
    return {
        "cross_entropy": (1 - alpha) * cross_entropy(z, y),
        "distillation": alpha * temperature**2 * kl(v, z, temperature),
    }


def fitnet(step, weight=100.0, section=2, two_stages=False, split=0.5, kd_weight=1.0, temperature=3.0):
    z, v, y = ingredients(step)

    def flat(nested):
        return [x for part in nested for x in flat(part)] if isinstance(nested, list) else [nested]

    mine, theirs = flat(learns(step.companion.maps[0])), flat(teaches(step.teacher.maps[section - 1]))
    hint = weight * mean((a - b) ** 2 for a, b in zip(mine, theirs, strict=True))
    if not two_stages:
        return {"cross_entropy": cross_entropy(z, y), "hint": hint}
    terms = {
        "cross_entropy": cross_entropy(z, y),
        "distillation": kd_weight * temperature**2 * kl(v, z, temperature),
        "hint": hint,
    }
    return {name: term if (name == "hint") == (step.phase == 1) else 0 * term for name, term in terms.items()}


def attention_transfer(step, weight=1000.0, distance="mean_square"):
    z, _, y = ingredients(step)
    sections = zip(step.student.maps, step.teacher.maps, strict=True)
    apart = sum(attention_distance(learns(s), teaches(t), distance) for s, t in sections)
    return {"cross_entropy": cross_entropy(z, y), "attention": weight * apart}


def dml(step, temperature=1.0, weight=1.0):
    one, other, y = deepest(step.student), deepest(step.companion), step.targets.tolist()
    scale = weight * temperature**2
    return {
        "cross_entropy": cross_entropy(learns(one), y),
        "peer_cross_entropy": cross_entropy(learns(other), y),
        "from_peer": scale * kl(teaches(other), learns(one), temperature),
        "to_peer": scale * kl(teaches(one), learns(other), temperature),
    }


# ---- the four papers ----


BYOT = {  # alpha, weight of the hint, T, whether times T^2
    "luanyunteng": (0.1, 1e-6, 3.0, True),
    "journal": (0.3, 0.03, 3.0, False),
    "mmrazor": (0.3, 0.03, 3.0, True),
    "conference": (0.3, 1e-6 * 128, 3.0, False),
}


def byot(step, reading="luanyunteng", alpha=None, hint=None, temperature=None, t_squared=None):
    own = zip(BYOT[reading], (alpha, hint, temperature, t_squared), strict=True)
    alpha, hint, temperature, t_squared = (published if given is None else given for published, given in own)
    y, factor = step.targets.tolist(), temperature**2 if t_squared else 1
    *shallow, last = step.student.logits
    *features, deepest = step.student.features
    teacher, deep = teaches(last), teaches(deepest)
    labels_of_deepest = 1 - alpha if reading == "luanyunteng" else 1
    terms = {
        "deepest_cross_entropy": labels_of_deepest * cross_entropy(learns(last), y),
        "shallow_cross_entropy": sum((1 - alpha) * cross_entropy(learns(z), y) for z in shallow),
    }

    def squared(mine, counts=lambda a, b: True):
        """Of each image, over the entries that count."""
        rows = zip(learns(mine), deep, strict=True)
        return [sum((a - b) ** 2 for a, b in zip(p, q, strict=True) if counts(value(a), b)) for p, q in rows]

    if reading in ("conference", "mmrazor"):
        terms["distillation"] = sum(alpha * factor * kl(teacher, learns(z), temperature) for z in shallow)
    else:
        soft = of_each(teacher, temperature)
        terms["distillation"] = sum(alpha * factor * cross_entropy_to(soft, learns(z), temperature) for z in shallow)
    if reading == "conference":
        terms["hint"] = sum(hint * mean(squared(f)) for f in features)
    elif reading == "luanyunteng":
        terms["hint"] = sum(hint * sum(squared(f, lambda a, b: a > 0 or b > 0)) for f in features)
    else:  # norms, of exits 1 and 2 of four: that of exit 3 is skipped
        compared = step.companion.features if reading == "journal" else features
        terms["hint"] = sum(hint * root(sum(squared(f))) for f in compared[: len(shallow) - 1])
    return terms


def srdl(step, temperature=3.0, weight=1.0, split=0.5, restart=True, reference_mode="eval"):
    z, v, y = ingredients(step)
    if v is None:
        return {"cross_entropy": cross_entropy(z, y)}
    return {"cross_entropy": cross_entropy(z, y), "self_reference": weight * temperature**2 * kl(v, z, temperature)}


def drkd(
    step,
    swap="teacher",
    alpha=0.95,
    temperature=6.0,
    multiplier=50.0,
    reduction="mean",
    combined=False,
    reg_alpha=0.1,
    reg_temperature=20.0,
):
    z, v, y = ingredients(step)
    if swap == "teacher":
        v = swapped(v, y)
    if swap == "student":
        z = swapped(z, y)
    distillation = temperature**2 * multiplier * kl(v, z, temperature) / per(reduction, z)
    if not combined:
        return {"cross_entropy": (1 - alpha) * cross_entropy(z, y), "rectified_distillation": alpha * distillation}
    regularisation = multiplier * divergence(virtual(y, len(z[0]), 0.99, reg_temperature), z) / per(reduction, z)
    return {
        "cross_entropy": (1 - reg_alpha) * cross_entropy(z, y),
        "rectified_distillation": 0.45 * distillation,
        "virtual_teacher": 0.45 * regularisation,
    }


def sd(step, feature_weight=1.0, distance="emd", smoothing=0.1, dynamics="linear"):
    z, _, y = ingredients(step)
    classes = len(z[0])
    *shallow, last = step.student.maps
    targets = []
    for label, row in zip(y, teaches(deepest(step.student)), strict=True):
        epsilon = smoothing * (step.progress.item() if dynamics == "linear" else softmax(row)[label])
        targets.append([(1 - epsilon) * q + epsilon / classes for q in one_hot(label, classes)])
    apart = {"emd": earth_movers, "cdf": cumulated_squares}[distance]
    distances = [mean(apart(a, b) for a, b in zip(learns(f), teaches(last), strict=True)) for f in shallow]
    return {"cross_entropy": cross_entropy_to(targets, z), "local_features": feature_weight * sum(distances)}


def positions(one, channels, height, width):
    """One descriptor of `channels` numbers a position, row by row: even blocks and even groups of channels."""
    planes = [blocks(plane, height, width) for plane in one]
    group = len(planes) // channels
    assert group * channels == len(planes), "only even groups are literal"
    return [
        [mean(planes[c * group + g][i][j] for g in range(group)) for c in range(channels)]
        for i in range(height)
        for j in range(width)
    ]


def earth_movers(shallow, deep):
    """Every one-to-one flow is tried; equal masses need no other (Birkhoff)."""
    channels, to = min(len(shallow), len(deep)), size(deep)
    mine, theirs = positions(shallow, channels, *to), positions(deep, channels, *to)
    costs = [[mean((a - b) ** 2 for a, b in zip(p, q, strict=True)) for q in theirs] for p in mine]
    numbers = [[value(cost) for cost in row] for row in costs]
    flows = itertools.permutations(range(len(theirs)))
    best = min(flows, key=lambda flow: sum(numbers[i][j] for i, j in enumerate(flow)))
    return mean(costs[i][j] for i, j in enumerate(best))


def cumulated_squares(shallow, deep):
    def cumulated(one):
        flat = [x for line in blocks(energy(one), *size(deep)) for x in line]
        return [sum(flat[: i + 1]) / sum(flat) for i in range(len(flat))]

    return sum((a - b) ** 2 for a, b in zip(cumulated(shallow), cumulated(deep), strict=True))


# ---- teacher-free rivals ----


def tfkd_self(step, alpha=0.95, temperature=6.0, multiplier=50.0, reduction="mean"):
    z, v, y = ingredients(step)
    return {
        "cross_entropy": (1 - alpha) * cross_entropy(z, y),
        "self_distillation": alpha * temperature**2 * multiplier * kl(v, z, temperature) / per(reduction, z),
    }


def tfkd_reg(step, alpha=0.1, temperature=20.0, multiplier=100.0, correct=0.99, soften_student=False, reduction="mean"):
    z, _, y = ingredients(step)
    target = virtual(y, len(z[0]), correct, temperature)
    apart = divergence(target, z, temperature if soften_student else 1.0) / per(reduction, z)
    return {"cross_entropy": (1 - alpha) * cross_entropy(z, y), "virtual_teacher": alpha * multiplier * apart}


def born_again(step, generations=3, labels=True, temperature=1.0):
    z, v, y = ingredients(step)
    if v is None:
        return {"cross_entropy": cross_entropy(z, y)}
    terms = {"cross_entropy": cross_entropy(z, y)} if labels else {}
    return {**terms, "previous_generation": temperature**2 * kl(v, z, temperature)}


def snapshot(step, cycles=2, temperature=2.0, label_weight=1.5, weight=1.0):
    z, v, y = ingredients(step)
    if v is None:
        return {"cross_entropy": cross_entropy(z, y)}
    return {
        "cross_entropy": label_weight * cross_entropy(z, y),
        "snapshot": weight * divergence(of_each(v, temperature), z),
    }


def cskd(step, temperature=4.0, weight=1.0):
    z, _, y = ingredients(step)
    pair = teaches(deepest(step.pair))
    return {"cross_entropy": cross_entropy(z, y), "class_wise": weight * temperature**2 * kl(pair, z, temperature)}


def pskd(step, alpha=0.8, epochs=10):
    z, _, y = ingredients(step)
    if step.past is None:
        return {"cross_entropy": cross_entropy(z, y)}
    epoch = round(step.progress.item() * epochs)  # from 0
    share = alpha * (epoch + 1) / epochs
    targets = [
        [(1 - share) * q + share * p for q, p in zip(one_hot(label, len(past)), softmax(past), strict=True)]
        for label, past in zip(y, teaches(step.past), strict=True)
    ]
    return {"cross_entropy": cross_entropy_to(targets, z)}


def ddgsd(step, temperature=3.0, weight=1.0, feature_weight=5e-4, as_self_kd_lib=False):
    one, other = step.views
    a, b, y = deepest(one), deepest(other), step.targets.tolist()
    both = cross_entropy(learns(a) + learns(b), y + y)
    mutual = kl(teaches(b), learns(a), temperature) + kl(teaches(a), learns(b), temperature)
    f, g = learns(one.features[-1]), learns(other.features[-1])
    if as_self_kd_lib:
        both = both / 2
        apart = (mean(x for row in f for x in row) - mean(x for row in g for x in row)) ** 2
    else:
        columns = zip(zip(*f, strict=True), zip(*g, strict=True), strict=True)
        apart = sum((mean(p) - mean(q)) ** 2 for p, q in columns)
    return {"cross_entropy": both, "mutual": weight * temperature**2 * mutual, "features": feature_weight * apart}


def dlb(step, temperature=3.0, alpha=1.0):
    z, _, y = ingredients(step)
    if step.last is None:
        return {"cross_entropy": cross_entropy(z, y), "last_batch": 0.0}
    again, before = learns(deepest(step.last)), teaches(step.last_logits)
    return {
        "cross_entropy": cross_entropy(again + z, step.last_targets.tolist() + y),
        "last_batch": alpha * temperature**2 * kl(before, again, temperature),
    }


def bake(step, temperature=4.0, weight=1.0, omega=0.5, positives=3):
    groups = [step.student, *step.positives]
    features = [row for g in groups for row in teaches(g.features[-1])]
    z = [row for g in groups for row in learns(deepest(g))]
    teacher = [row for g in groups for row in teaches(deepest(g))]
    target = propagated_by_inverse(features, of_each(teacher, temperature), omega)
    return {
        "cross_entropy": cross_entropy(z, step.targets.tolist() * len(groups)),
        "batch_ensemble": weight * temperature**2 * divergence(target, z, temperature),
    }


def affinities(features):
    """Row by row the softmax of an image's cosines to all the others."""

    def cosine(a, b):
        lengths = [math.sqrt(sum(x**2 for x in row)) for row in (a, b)]
        return sum(x * y for x, y in zip(a, b, strict=True)) / (lengths[0] * lengths[1])

    rows = []
    for i, one in enumerate(features):
        others = iter(softmax([cosine(one, other) for j, other in enumerate(features) if j != i]))
        rows.append([0.0 if j == i else next(others) for j in range(len(features))])
    return rows


def product(a, b):
    return [[sum(x * row[j] for x, row in zip(line, b, strict=True)) for j in range(len(b[0]))] for line in a]


def inverse(matrix):
    """By Gauss and Jordan, with pivots."""
    n = len(matrix)
    rows = [[*line, *one_hot(i, n)] for i, line in enumerate(matrix)]
    for i in range(n):
        pivot = max(range(i, n), key=lambda r, i=i: abs(rows[r][i]))
        rows[i], rows[pivot] = rows[pivot], rows[i]
        rows[i] = [x / rows[i][i] for x in rows[i]]
        for r in range(n):
            if r != i:
                rows[r] = [x - rows[r][i] * y for x, y in zip(rows[r], rows[i], strict=True)]
    return [line[n:] for line in rows]


def propagated_by_inverse(features, predictions, omega):
    """(1 - w) (I - w A)^-1 P."""
    n, a = len(features), affinities(features)
    system = [[one_hot(i, n)[j] - omega * a[i][j] for j in range(n)] for i in range(n)]
    return [[(1 - omega) * x for x in row] for row in product(inverse(system), predictions)]


def propagated_by_turns(features, predictions, omega, turns):
    """Q <- w A Q + (1 - w) P, again and again: the geometric series (1 - w) sum_t (w A)^t P."""
    a, found = affinities(features), predictions
    for _ in range(turns):
        found = [
            [omega * q + (1 - omega) * p for q, p in zip(moved, own, strict=True)]
            for moved, own in zip(product(a, found), predictions, strict=True)
        ]
    return found


def mean_teacher(step, decay=0.97, consistency="mse", weight=100.0, rampup_epochs=5, epochs=10):
    z, v, y = ingredients(step)
    over = step.progress.item() * epochs
    short = 1 - min(over, rampup_epochs) / rampup_epochs if rampup_epochs else 0
    if consistency == "kl":
        apart = kl(v, z, 1.0)
    else:
        pairs = zip(of_each(z, 1.0), of_each(v, 1.0), strict=True)
        apart = mean((p - q) ** 2 for mine, theirs in pairs for p, q in zip(mine, theirs, strict=True))
    return {"cross_entropy": cross_entropy(z, y), "consistency": weight * math.exp(-5 * short**2) * apart}


def frskd(step, alpha=2.0, beta=100.0, temperature=4.0, width=2):
    z, _, y = ingredients(step)
    refined = step.companion
    sections = zip(step.student.maps, refined.maps, strict=True)
    return {
        "cross_entropy": cross_entropy(z, y),
        "self_teacher_cross_entropy": cross_entropy(learns(deepest(refined)), y),
        "distillation": alpha * temperature**2 * kl(teaches(deepest(refined)), z, temperature),
        "attention": beta * sum(attention_distance(learns(f), teaches(r)) for f, r in sections),
    }
