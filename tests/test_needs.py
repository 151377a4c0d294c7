"""What the engine serves to methods (companions, averages, generations, positives, the last batch), and refuses."""

import copy
import re
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from made import DATASET, FORM, RECIPE, bits, made_images, made_split, stop_after, train

from selfdistill import methods
from selfdistill.closure import PACKAGE, closure, name_of
from selfdistill.models.cut import cut
from selfdistill.models.sections import Outputs
from selfdistill.models.trained import build
from selfdistill.stages.plan import method_files
from selfdistill.training import engine, needs
from selfdistill.training.checkpoint import Checkpoints
from selfdistill.training.method import Step, StepError
from selfdistill.training.plan import draw_plan
from selfdistill.training.source import Resident, batches
from selfdistill.training.stopping import Interrupted


def spied(name: str, look, **hyper):
    """A method that shows each of its steps to `look` first."""

    class Spy(methods.load(name), about=methods.about(name)):
        def terms(self, step):
            look(step)
            return super().terms(step)

    return Spy(**hyper)


def test_the_costs_that_the_methods_state_are_those_that_are_counted():
    plain = train("plain", epochs=6).flops
    for name in methods.names():
        about = methods.about(name)
        teacher = plain if "teacher" in about["needs"] else 0
        assert about["cost"] == pytest.approx((train(name, epochs=6).flops + teacher) / plain, rel=0.01), name


# ---- averages, generations, peers ----


def test_the_average_is_the_mean_of_all_states_and_then_keeps_its_share():
    """The recursion of Mean Teacher's public code, on the student's weights as every step begins with them."""
    states, averages = [], []
    run = []

    class Spy(methods.load("mean_teacher"), about=methods.about("mean_teacher")):
        def terms(self, step):
            states.append([p.detach().clone() for p in run[0].network.parameters()])
            averages.append([p.detach().clone() for p in run[0].needs["average"].network.parameters()])
            return super().terms(step)

    recipe = RECIPE.model_copy(update={"epochs": 2})
    source = Resident(*made_images(28, 1))
    method = Spy(decay=0.7)
    made = lambda s: build(FORM, s)  # noqa: E731
    run.append(engine.Run(method, made, DATASET, source, made_split(16, 2), recipe, 0, None, engine.ALONE))
    while run[0].epoch < 2:
        for _ in run[0].steps():
            pass
    expected = states[0]
    for step, state in enumerate(states[1:], start=1):
        keep = min(1 - 1 / (step + 1), 0.7)
        expected = [keep * e + (1 - keep) * s for e, s in zip(expected, state, strict=True)]
        for mine, theirs in zip(averages[step], expected, strict=True):
            torch.testing.assert_close(mine, theirs)
    assert all(module.training for module in run[0].needs["average"].network.modules())


def test_born_again_keeps_its_generations_and_the_first_is_plain_training():
    trained, plain = train("born_again", epochs=2), train("plain", epochs=2)
    assert list(trained.members) == ["phase_1", "phase_2"]
    assert [row["phase"] for row in trained.history] == [1, 1, 2, 2, 3, 3]
    first = trained.members["phase_1"]
    assert all(torch.equal(first[k], v) for k, v in plain.last.state_dict().items())
    second = trained.members["phase_2"]
    assert not any(torch.equal(first[k], v) for k, v in second.items() if k.endswith("conv1.weight"))


def test_each_generation_learns_from_the_one_before():
    seen = []
    trained = train("born_again", method=spied("born_again", lambda s: seen.append((s.phase, s.teacher))), epochs=1)
    phases = [phase for phase, _ in seen]
    assert phases == [1] * 4 + [2] * 4 + [3] * 4
    assert [teacher is None for _, teacher in seen] == [True] * 4 + [False] * 8
    assert trained.history[-1]["epoch"] == 3


def test_dml_keeps_its_peer_which_began_elsewhere():
    trained = train("dml")
    peer = build(FORM, 0)
    peer.load_state_dict(trained.members["peer"])
    assert not torch.equal(peer.backbone.classifier.weight, trained.last.backbone.classifier.weight)
    images, labels = made_images(16, 2)
    assert engine.accuracy_of(peer, DATASET, engine.Split(images, labels)) > 0.25


def test_the_reference_normalises_as_asked():
    """SRDL's reference in training mode says something else of the same images, and only then."""
    modes = {}
    for mode in ("eval", "train"):
        seen = []
        train("srdl", method=spied("srdl", lambda s, seen=seen: seen.append(s.teacher), reference_mode=mode))
        modes[mode] = next(t.logits[-1] for t in seen if t is not None)
    assert not torch.allclose(modes["eval"], modes["train"])


def test_a_companion_is_trained_and_left_behind():
    seen = []
    trained = train("fitnet", method=spied("fitnet", lambda s: seen.append(s.companion.maps[0])))
    assert seen[0].requires_grad
    assert not any("companion" in name for name in trained.last.state_dict())
    assert trained.parameters > sum(p.numel() for p in trained.last.parameters()) == train("plain").parameters
    assert trained.history[0]["hint"] > trained.history[-1]["hint"]


# ---- positives and the last batch ----


def test_positives_are_other_images_of_the_class():
    _, labels = made_images(28, 1)
    wanted = needs.of(methods.load("bake")(positives=3)).values()
    plan = draw_plan(labels, seed=0, epoch=0, batch_size=8, crop_padding=1, needs=wanted)
    main = plan["main"]["image"]
    streams = [plan[f"positive {i}"]["image"] for i in (1, 2, 3)]
    for others in streams:
        assert (labels[others] == labels[main]).all()
        assert (others != main).all()
    assert not torch.equal(streams[0], streams[1])


def test_the_last_batch_comes_again_augmented_anew():
    images, labels = made_images(28, 1)
    recipe = RECIPE.model_copy(update={"crop_padding": 1})
    plan = draw_plan(
        labels, seed=0, epoch=0, batch_size=8, crop_padding=1, needs=needs.of(methods.load("dlb")()).values()
    )
    wanted = [slice(0, 8), slice(8, 16), slice(16, 24), slice(24, 28)]
    served = list(batches(Resident(images, labels), plan, wanted, recipe, late={"last"}))
    assert "last" not in served[0]
    for before, now in pairwise(served):
        assert torch.equal(now["last/targets"], before["targets"])
        assert now["last"].shape == before["main"].shape
        assert not torch.equal(now["last"], before["main"])
    resumed = list(batches(Resident(images, labels), plan, wanted[2:], recipe, before=wanted[1], late={"last"}))
    assert all(torch.equal(resumed[0][key], served[2][key]) for key in served[2])


def test_dlb_learns_from_what_the_network_said_one_step_ago():
    steps = []

    def look(step):
        said = step.last_logits if step.last_logits is None else step.last_logits.clone()
        steps.append((step.student.logits[-1].detach().clone(), said, step.last, step.last_batch_size))

    train("dlb", method=spied("dlb", look), epochs=1)
    assert steps[0][1] is None
    for (before, *_), (_, said, again, count) in pairwise(steps):
        assert torch.equal(before, said)
        assert again.logits[-1].requires_grad
        assert count == len(before)


# ---- a need of one's own ----

NEED = """
from selfdistill.training.needs import Need

class FirstSeen(Need):
    def begin_phase(self, run, restarted):
        self.count = run.labels.new_zeros(len(run.labels))

    def streams(self, draw):
        return {"again": {**draw.stream(draw.images, "augmentation of again"), "twice": 2 * draw.images}}

    def forwarded(self, batch):
        return ["again"]

    def given(self, run, seen):
        twice = seen.batch["again/twice"]
        return {"again": seen.outputs["again"], "times": self.count[seen.batch["index"]], "twice": twice}

    def end_step(self, run, step, batch):
        self.count[batch["index"]] += 1

    def saved(self, run):
        return {"count": self.count}

    def restore(self, run, tensors):
        self.count.copy_(tensors["count"])
"""


def test_a_need_is_one_file(tmp_path, monkeypatch):
    """It draws a stream, has it forwarded, gives three things to the method, and survives an interruption."""
    (tmp_path / "needs").mkdir()
    (tmp_path / "needs/first_seen.py").write_text(NEED)
    monkeypatch.setattr(needs, "__path__", [*needs.__path__, str(tmp_path / "needs")])
    plain, steps = methods.load("plain"), []

    class Again(plain, about={**methods.about("plain"), "needs": ["first_seen"]}):
        def terms(self, step):
            steps.append(step)
            weight = step.more["times"].float().mean()
            return {**super().terms(step), "again": weight * step.more["again"].logits[-1].square().mean()}

    whole = train("plain", method=Again())
    assert [int(step.more["times"].unique()) for step in steps] == [0] * 4 + [1] * 4 + [2] * 4
    assert steps[0].more["again"].logits[-1].requires_grad
    assert sorted(torch.cat([step.more["twice"] for step in steps[:4]]).tolist()) == list(range(0, 56, 2))
    assert whole.history[0]["again"] == 0 < whole.history[1]["again"]
    assert whole.flops == pytest.approx(2 * train("plain").flops)
    for stop in (6, 3):
        with pytest.raises(Interrupted):
            train("plain", method=Again(), checkpoints=Checkpoints(tmp_path), interruption=stop_after(stop))
    assert bits(train("plain", method=Again(), checkpoints=Checkpoints(tmp_path))) == bits(whole)
    sys.modules.pop("selfdistill.training.needs.first_seen")


def test_a_need_that_there_is_not_or_that_is_not_listed_is_refused():
    class Lost(methods.load("plain"), about={**methods.about("plain"), "needs": ["viewz"]}): ...

    with pytest.raises(needs.NeedError, match=r"no need 'viewz'; there are average, .*, views"):
        train("plain", method=Lost())

    class Unlisted(methods.load("plain"), about=methods.about("plain")):
        needs = frozenset({"views"})

    with pytest.raises(needs.NeedError, match="it needs views; allowed: what its ABOUT lists"):
        train("plain", method=Unlisted())


@pytest.mark.parametrize("name", methods.names())
def test_a_training_rests_on_the_needs_of_its_method_alone(name):
    rests_on = {name_of(path) for path in closure([PACKAGE / "stages/cell.py", *method_files(name)])}
    found = {Path(path).stem for path in rests_on if path.startswith("training/needs/")} - {"__init__"}
    assert found == set(methods.about(name)["needs"])


# ---- what does not fit ----


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": 4}, "training labels from 0 to 4; allowed: 0 to 3, one of 4 classes"),
        ({"labels": -1}, "training labels from -1 to 3; allowed: 0 to 3"),
        ({"teacher": 7}, "the teacher knows 7 classes; allowed: 4, those of made"),
        ({"teacher": None}, "it learns from a trained network, and there is none"),
        ({"method": "byot"}, "the network has 1 exit; allowed: 2 or more"),
        ({"method": "fitnet", "hyper": {"section": 9}}, "section 9; allowed: 1 to 4"),
    ],
)
def test_what_does_not_fit_is_told_before_any_work(changes, message):
    images, labels = made_images(28, 1)
    if "labels" in changes:
        labels[3] = changes["labels"]
    classes = changes.get("teacher", 4)
    teacher = build({**FORM, "classes": classes}, 1) if classes else None
    method = methods.load(changes.get("method", "kd"))(**changes.get("hyper", {}))
    with pytest.raises(ValueError, match=re.escape(message)):
        engine.train(
            method,
            lambda s: build(FORM, s),
            DATASET,
            Resident(images, labels),
            made_split(16, 2),
            RECIPE,
            seed=0,
            teacher=teacher,
        )


def outputs(classes: int = 3, exits: int = 1) -> Outputs:
    generator = torch.Generator().manual_seed(0)
    logits = [torch.randn(4, classes, generator=generator, requires_grad=True) for _ in range(exits)]
    features = [torch.randn(4, 5, generator=generator) for _ in range(exits)]
    return Outputs(logits, features, [torch.randn(4, 5, 2, 2, generator=generator)] * 4)


@pytest.mark.parametrize(
    ("name", "step", "message"),
    [
        ("plain", {"targets": [0, 1, 2, 3]}, "targets from 0 to 3; allowed: 0 to 2, one of 3 classes"),
        ("plain", {"targets": [0, -1, 2, 2]}, "targets from -1 to 2; allowed: 0 to 2"),
        ("plain", {"targets": [0, 1]}, "shape [2]; allowed: torch.int64 of shape [4]"),
        ("plain", {"targets": [0.0, 1, 2, 2]}, "torch.float32"),
        ("byot", {}, "the network has 1 exit"),
        ("kd", {}, "the step has no teacher"),
        ("kd", {"teacher": 4}, "the teacher knows 4 classes; allowed: 3"),
        ("cskd", {}, "no pairs"),
        ("ddgsd", {}, "no views"),
        ("bake", {}, "no positives"),
        ("mixup", {}, "no partners"),
        ("dml", {}, "no companion"),
    ],
)
def test_a_step_that_lacks_something_is_told_so(name, step, message):
    teacher = outputs(step["teacher"]) if "teacher" in step else None
    targets = torch.tensor(step.get("targets", [0, 1, 2, 0]))
    with pytest.raises(StepError) as error:
        methods.load(name)()(Step(torch.zeros(4, 1, 8, 8), targets, outputs(), teacher))
    assert message in str(error.value)
    assert methods.about(name)["class"] in str(error.value)


def test_in_a_loop_of_ones_own_losses_are_whole_under_autocast():
    network = build({**FORM, "exits": True}, 0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = network(torch.randn(4, 1, 8, 8))
        terms = methods.load("byot")()(Step(torch.zeros(4, 1, 8, 8), torch.tensor([0, 1, 2, 3]), found))
    assert found.logits[-1].dtype == torch.bfloat16
    assert {term.dtype for term in terms.values()} == {torch.float32}


# ---- foreign backbones ----


class Backbone(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = torch.nn.ModuleDict(
            {
                "first": torch.nn.Conv2d(1, 4, 3, 1, 1),
                "second": torch.nn.Conv2d(4, 8, 3, 2, 1),
                "unused": torch.nn.Linear(2, 2),
            }
        )
        self.head = torch.nn.Linear(8, 5)

    def forward(self, images):
        x = self.body["second"](self.body["first"](images).relu()).relu()
        return self.head(x.amax(dim=(2, 3)))  # another pooling than ours


def test_any_backbone_is_cut_by_the_names_of_its_modules():
    backbone = Backbone()
    network = cut(backbone, ["body.first", "body.second"], classifier="head", input_shape=(1, 9, 13), exit_width=3)
    images = torch.randn(2, 1, 9, 13)
    found = network(images)
    assert [tuple(m.shape) for m in found.maps] == [(2, 4, 9, 13), (2, 8, 5, 7)]
    assert torch.equal(found.logits[-1], backbone(images))
    assert found.features[-1].shape == (2, 8)
    assert network.section_count == network.exit_count == 2
    sum(z.sum() for z in found.logits).backward()
    assert all(p.grad is not None for n, p in network.named_parameters() if "unused" not in n)
    network.eval()
    other = copy.deepcopy(network)
    assert torch.equal(other(images).logits[0], network(images).logits[0])
    assert torch.equal(network.until(images, 0), network(images).logits[0])
    assert torch.equal(network.until(images, 1), network(images).logits[1])
    assert not any(m._forward_hooks for m in network.modules()), "hooks are there for the time of a pass alone"


def test_an_early_exit_runs_nothing_behind_it():
    backbone = Backbone()
    network = cut(backbone, ["body.first", "body.second"], classifier="head", input_shape=(1, 8, 8), exit_width=3)
    ran = []
    backbone.body["second"].register_forward_hook(lambda *_: ran.append(1))
    network.eval().until(torch.zeros(1, 1, 8, 8), 0)
    assert not ran


@pytest.mark.parametrize(
    ("sections", "classifier", "message"),
    [
        (["body.frist"], "head", "no module 'body.frist' in Backbone; the nearest: body.first"),
        (["body.first"], "haed", "no module 'haed' in Backbone; the nearest: head"),
        (["body.first"], "body.second", "body.second: Conv2d is no classifier"),
        (["body.unused"], "head", "body.unused: this module does not run"),
        (["head"], "head", "head: its output has shape [1, 5]; allowed: N x C x H x W"),
    ],
)
def test_a_cut_that_is_not_there_is_refused(sections, classifier, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        cut(Backbone(), sections, classifier=classifier, input_shape=(1, 8, 8), exit_width=3)


@pytest.mark.parametrize("index", [-1, 4])
def test_an_exit_that_does_not_exist_is_refused(index):
    network = build({**FORM, "exits": True}, 0)
    with pytest.raises(IndexError, match=f"exit {index}: this network has 4; allowed: 0 to 3"):
        network.until(torch.zeros(1, 1, 8, 8), index)


def test_the_order_of_methods_changes_nothing():
    """A run depends on nothing that another left behind."""
    first = bits(train("dlb"))
    train("frskd")
    assert bits(train("dlb")) == first
