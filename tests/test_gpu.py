"""What only a GPU can show; `benchmarks/gpu_run.sh` shows it, too, where there is no pytest."""

import pytest
import torch
from made import bits, stop_after, train

from selfdistill import methods
from selfdistill.training.checkpoint import Checkpoints
from selfdistill.training.stopping import Interrupted

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
GRAPHED = {"device": "cuda", "cuda_graphs": True, "epochs": 6}


@pytest.mark.parametrize("name", methods.names())
def test_a_graphed_training_is_the_eager_one(name):
    eager, graphed = (train(name, **{**GRAPHED, "cuda_graphs": graphs}) for graphs in (False, True))
    for a, b in zip(eager.history[:2], graphed.history[:2], strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-3)


@pytest.mark.parametrize("name", methods.names())
def test_resume_on_a_gpu_is_bit_equal(name, tmp_path):
    torch.set_deterministic_debug_mode("error")
    try:
        whole = train(name, **GRAPHED)
        with pytest.raises(Interrupted):
            train(name, checkpoints=Checkpoints(tmp_path), interruption=stop_after(7), **GRAPHED)
        resumed = train(name, checkpoints=Checkpoints(tmp_path), **GRAPHED)
    finally:
        torch.set_deterministic_debug_mode("default")
    assert bits(resumed) == bits(whole)
