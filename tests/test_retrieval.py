"""Retrieval against literal formulations in plain loops."""

import math
import random

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from selfdistill.errors import UserError
from selfdistill.evaluation.retrieval import (
    cosine_distances,
    euclidean_distances,
    nearest,
    of_length_one,
    query_scores,
    re_rank,
    retrieval_metrics,
)

# ---- the literal formulation ----


def literal_metrics(distances, query_identities, query_cameras, gallery_identities, gallery_cameras):
    """The protocol, one image after the other.  Lists of numbers; None where no query has a match."""
    found = {"rank1": [], "rank5": [], "rank10": [], "ap": [], "inp": []}
    skipped = 0
    for q, row in enumerate(distances):
        ranking = sorted(range(len(row)), key=row.__getitem__)  # stable
        answers = []
        for g in ranking:
            if gallery_identities[g] == query_identities[q]:
                if gallery_cameras[g] != query_cameras[q]:
                    answers.append(True)
            else:
                answers.append(False)
        if not any(answers):
            skipped += 1
            continue
        curve = []
        for k in range(len(answers)):
            curve.append(1.0 if any(answers[: k + 1]) else 0.0)
        while len(curve) < 10:
            curve.append(1.0)
        for k in (1, 5, 10):
            found[f"rank{k}"].append(curve[k - 1])
        precisions = []
        for rank in range(1, len(answers) + 1):
            if answers[rank - 1]:
                precisions.append(answers[:rank].count(True) / rank)
                last = rank
        found["ap"].append(sum(precisions) / len(precisions))
        found["inp"].append(len(precisions) / last)
    if not found["ap"]:
        return None
    mean = {name: sum(values) / len(values) for name, values in found.items()}
    return {
        **{f"rank{k}": mean[f"rank{k}"] for k in (1, 5, 10)},
        "mean_average_precision": mean["ap"],
        "mean_inverse_negative_penalty": mean["inp"],
        "queries": len(found["ap"]),
        "skipped": skipped,
    }


def random_case(chance: random.Random):
    """Few values, so that distances tie; identity 0 is nobody's; copies of images; small galleries too."""
    queries, size = chance.randint(1, 9), chance.choice([1, 2, 4, 12, 30])
    distances = [[chance.randint(0, 6) / 4 for _ in range(size)] for _ in range(queries)]
    people = chance.randint(1, 5)
    case = [
        [chance.randint(1, people + 1) for _ in range(queries)],
        [chance.randint(1, 3) for _ in range(queries)],
        [chance.randint(0, people) for _ in range(size)],
        [chance.randint(1, 3) for _ in range(size)],
    ]
    for _ in range(chance.randint(0, size // 2)):  # duplicates: one image twice, to all queries as far
        original, copy = chance.randrange(size), chance.randrange(size)
        case[2][copy], case[3][copy] = case[2][original], case[3][original]
        for row in distances:
            row[copy] = row[original]
    return distances, case


def tensors(distances, case, dtype=torch.float64):
    return torch.tensor(distances, dtype=dtype), *map(torch.tensor, case)


def test_metrics_are_the_literal_ones_with_ties_duplicates_distractors_and_queries_without_a_match():
    chance = random.Random(0)
    seen = {"scored": 0, "skipped": 0, "refused": 0, "gallery of one": 0}
    for _ in range(600):
        distances, case = random_case(chance)
        literal = literal_metrics(distances, *case)
        if literal is None:
            seen["refused"] += 1
            with pytest.raises(UserError, match="has a match"):
                retrieval_metrics(*tensors(distances, case))
            continue
        ours = retrieval_metrics(*tensors(distances, case, chance.choice([torch.float32, torch.float64])))
        assert ours == pytest.approx(literal, abs=1e-9, rel=0)
        seen["scored"] += 1
        seen["skipped"] += literal["skipped"]
        seen["gallery of one"] += len(distances[0]) == 1
    assert min(seen.values()) > 20, seen  # every kind of case was there


def test_metrics_by_hand():
    """Person 1, camera 1.  By distance: its own camera, a distractor, right, another, right."""
    ours = retrieval_metrics(
        torch.tensor([[0.3, 0.5, 0.1, 0.2, 0.4]]),
        torch.tensor([1]),
        torch.tensor([1]),
        torch.tensor([1, 1, 1, 0, 2]),
        torch.tensor([2, 3, 1, 1, 2]),
    )
    assert ours == pytest.approx(
        {
            "rank1": 0.0,
            "rank5": 1.0,
            "rank10": 1.0,
            "mean_average_precision": (1 / 2 + 2 / 4) / 2,
            "mean_inverse_negative_penalty": 2 / 4,
            "queries": 1,
            "skipped": 0,
        }
    )


def test_average_precision_is_scikit_learns_where_nothing_ties():
    generator = torch.Generator().manual_seed(0)
    distances = torch.rand(40, 200, generator=generator, dtype=torch.float64)
    identities = torch.randint(0, 9, (200,), generator=generator)
    queries = torch.randint(1, 9, (40,), generator=generator)
    cameras = torch.ones(200, dtype=torch.int64)
    scores = query_scores(distances, queries, torch.zeros(40, dtype=torch.int64), identities, cameras)
    for q in range(40):
        theirs = average_precision_score((identities == queries[q]).numpy(), -distances[q].numpy())
        assert scores["average_precision"][q].item() == pytest.approx(theirs, abs=1e-12)


def test_scores_do_not_depend_on_the_chunk():
    chance = random.Random(1)
    for _ in range(20):
        case = tensors(*random_case(chance))
        whole = query_scores(*case)
        for chunk in (1, 2, 5):
            for name, values in query_scores(*case, chunk=chunk).items():
                assert torch.equal(values.nan_to_num(), whole[name].nan_to_num()), name


def test_tied_distances_rank_in_the_order_of_the_gallery():
    """40 images at one distance: an unstable sort would move the only right one, which is the last."""
    identities, cameras = torch.arange(1, 41), torch.ones(40, dtype=torch.int64)
    ours = query_scores(torch.zeros(1, 40), torch.tensor([40]), torch.tensor([2]), identities, cameras)
    assert ours["first_rank"].tolist() == [40]


CASE = (torch.rand(2, 3), torch.tensor([1, 2]), torch.tensor([1, 1]), torch.tensor([1, 2, 0]), torch.tensor([2, 2, 2]))


@pytest.mark.parametrize(
    ("place", "value", "part"),
    [
        (0, torch.tensor([[1, 2, 3], [1, math.nan, 3]]), "1 of 2 rows hold NaN or infinity, the first is row 1"),
        (0, torch.rand(3), "distances: shape (3,)"),
        (0, torch.rand(2, 0), "distances: shape (2, 0)"),
        (1, torch.tensor([1]), "query_identities: shape (1,)"),
        (2, None, "query_cameras: missing"),
        (3, torch.tensor([1.0, 2.0, 0.0]), "gallery_identities: torch.float32"),
        (3, torch.tensor([1, -1, 0]), "gallery_identities: -1 in row 1"),
        (3, torch.tensor([3, 3, 0]), "none of the 2 queries has a match among the 3 gallery images"),
        (4, torch.tensor([1, 1, 1]), "none of the 2 queries"),
        (4, torch.tensor([2, 2]), "gallery_cameras: shape (2,)"),
    ],
)
def test_bad_input_gets_one_clear_error(place, value, part):
    case = list(CASE)
    retrieval_metrics(*case)
    case[place] = value
    with pytest.raises(UserError, match="allowed") as error:
        retrieval_metrics(*case)
    assert part in str(error.value)
    assert "\n" not in str(error.value)


# ---- distances ----


def test_distances_are_the_literal_ones():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(7, 5, generator=generator).double(), torch.randn(11, 5, generator=generator).double()
    a[3] = b[4]
    a[5] = 0
    for chunk in (2, 100):
        euclidean, cosine = euclidean_distances(a, b, chunk), cosine_distances(a, b, chunk)
        for i, x in enumerate(a.tolist()):
            for j, y in enumerate(b.tolist()):
                assert euclidean[i, j].item() == pytest.approx(math.dist(x, y), abs=1e-9)
                lengths = math.hypot(*x) * math.hypot(*y)
                product = sum(p * q for p, q in zip(x, y, strict=True))
                assert cosine[i, j].item() == pytest.approx(1 - product / lengths if lengths else 1, abs=1e-9)
        assert euclidean[3, 4] == cosine[3, 4] == 0


@pytest.mark.parametrize("distances_of", [euclidean_distances, cosine_distances])
def test_equal_features_are_as_far_from_everything_wherever_they_stand(distances_of):
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(65, 33, generator=generator), torch.randn(600, 33, generator=generator)
    b[[7, 250, 599]] = b[100].clone()
    b[5] = a[64]
    found = distances_of(a, b, chunk=10)
    assert found.dtype == torch.float32
    for copy in (7, 250, 599):
        assert torch.equal(found[:, copy], found[:, 100])
    assert found[64, 5] == 0
    assert not distances_of(b, b).diagonal().any()
    assert torch.equal(distances_of(a, b), found)


@pytest.mark.parametrize("size", [1e-30, 2e19, 3e37])
def test_features_of_any_size_are_brought_to_length_one(size):
    """2e19 squared is beyond float32: divided by an infinite length, all images would be one point."""
    features = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.normalize(features, dim=2)
    torch.testing.assert_close(of_length_one(features), expected)
    torch.testing.assert_close(of_length_one(features * size), expected)
    a, b = features
    torch.testing.assert_close(cosine_distances(a * size, b * size), cosine_distances(a, b))


def test_a_feature_of_zeros_has_no_length_and_one_of_no_numbers_stays_one():
    assert torch.equal(of_length_one(torch.zeros(1, 8)), torch.zeros(1, 8))
    for bad in (torch.nan, torch.inf):
        assert of_length_one(torch.tensor([[1.0, bad]])).isnan().any()


def test_features_that_are_no_numbers_or_of_another_network_are_refused():
    good = torch.rand(3, 4)
    bad = good.clone()
    bad[1, 2] = math.inf
    with pytest.raises(UserError, match=r"second features: 1 of 3 rows .* row 1 "):
        euclidean_distances(good, bad)
    with pytest.raises(UserError, match="4 numbers an image against 5"):
        cosine_distances(good, torch.rand(3, 5))
    with pytest.raises(UserError, match=r"first features: shape \(4,\)"):
        euclidean_distances(good[0], good)


# ---- re-ranking ----


def literal_re_ranking(distances, queries, k1, k2, weight):
    """Zhong et al. 2017 with sets and dictionaries; distances as N lists of N numbers."""
    count = len(distances)
    scaled = []
    for row in distances:
        top = max(value**2 for value in row)
        scaled.append([value**2 / top if top else 0.0 for value in row])
    ranking = [sorted(range(count), key=row.__getitem__) for row in distances]

    def reciprocal(i, k):  # R(i, k), the point itself in front: k + 1 of them
        return {j for j in ranking[i][: k + 1] if i in ranking[j][: k + 1]}

    half = int(np.around(k1 / 2))
    encodings = []
    for i in range(count):
        own = reciprocal(i, k1)
        extended = set(own)
        for j in own:
            theirs = reciprocal(j, half)
            if 3 * len(own & theirs) > 2 * len(theirs):
                extended |= theirs
        weights = {j: math.exp(-scaled[i][j]) for j in extended}
        encodings.append({j: w / math.fsum(weights.values()) for j, w in weights.items()})
    if k2 != 1:
        expanded = []
        for i in range(count):
            mean = {}
            for j in ranking[i][:k2]:
                for place, value in encodings[j].items():
                    mean[place] = mean.get(place, 0.0) + value / len(ranking[i][:k2])
            expanded.append(mean)
        encodings = expanded
    result = []
    for q in range(queries):
        row = []
        for g in range(queries, count):
            overlap = sum(min(value, encodings[g].get(place, 0.0)) for place, value in encodings[q].items())
            row.append((1 - weight) * (1 - overlap / (2 - overlap)) + weight * scaled[q][g])
        result.append(row)
    return result


def test_re_ranking_is_the_literal_one_with_ties_and_duplicates():
    chance = random.Random(0)
    for case in range(120):
        count = chance.randint(2, 40)
        if case % 2:  # coordinates on a coarse grid: ties and duplicates
            points = [[chance.randint(0, 4), chance.randint(0, 4)] for _ in range(count)]
        else:
            points = [[chance.gauss(0, 1) for _ in range(3)] for _ in range(count)]
        distances = [[math.dist(x, y) for y in points] for x in points]
        arguments = chance.randint(1, count - 1), chance.choice([1, 3, 5, 7, 20]), chance.choice([1, 2, 6, 30])
        weight = chance.choice([0, 0.3, 1])
        ours = re_rank(torch.tensor(distances, dtype=torch.float64), *arguments, weight)
        literal = torch.tensor(literal_re_ranking(distances, *arguments, weight), dtype=torch.float64)
        torch.testing.assert_close(ours, literal, atol=1e-9, rtol=0)


def test_re_ranking_of_points_that_are_all_one_leaves_no_order():
    found = re_rank(torch.zeros(5, 5), 2, k1=4, k2=1)
    assert torch.equal(found, torch.zeros(2, 3))


def test_re_ranking_in_single_precision_is_that_in_double():
    features = torch.randn(60, 8, generator=torch.Generator().manual_seed(0))
    distances = euclidean_distances(features, features)
    torch.testing.assert_close(re_rank(distances, 20), re_rank(distances.double(), 20).float(), atol=1e-6, rtol=0)


def test_nearest_are_the_first_of_a_stable_sort():
    generator = torch.Generator().manual_seed(0)
    distances = torch.randint(0, 9, (50, 41), generator=generator).float()
    for k in (1, 7, 41, 99):
        assert torch.equal(nearest(distances, k, chunk=16), torch.sort(distances, stable=True).indices[:, :k])


@pytest.mark.parametrize(
    ("shape", "arguments", "part"),
    [
        ((4, 5), (2,), "shape (4, 5)"),
        ((4, 4), (4,), "with 4 queries"),
        ((4, 4), (0,), "with 0 queries"),
        ((4, 4), (2, 0), "k1 0"),
        ((4, 4), (2, 20, 0), "k2 0"),
        ((4, 4), (2, 20, 6, 1.5), "weight 1.5"),
    ],
)
def test_re_ranking_refuses_what_it_cannot_use(shape, arguments, part):
    with pytest.raises(UserError, match="allowed") as error:
        re_rank(torch.zeros(shape), *arguments)
    assert part in str(error.value)
