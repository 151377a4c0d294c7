"""Latency, a probe of the network: it is declared as one, and tells medians of what it measured."""

import torch
from made_run import made_run

from selfdistill import analyses
from selfdistill.data.prepared import Dataset
from selfdistill.evaluation.probed import Probed
from selfdistill.host import hardware
from selfdistill.models.trained import load_network
from selfdistill.stages.measure import carried_out


def test_every_exit_is_measured_with_one_thread(tmp_path, monkeypatch):
    folder = made_run(tmp_path, steps=0)
    network, run = load_network(folder)
    threads, passes = torch.get_num_threads(), []
    network.backbone.stem.register_forward_hook(
        lambda _, images, __: passes.append((len(images[0]), torch.get_num_threads()))
    )
    torch.set_num_threads(2)
    try:
        probed = Probed(run, network, Dataset(**run["dataset"]), folder, tmp_path, "cpu", tmp_path)
        rows = carried_out("latency", probed, {"repeats": 5})
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert [(row["exit"], row["batch"]) for row in rows] == [
        (f"{i}/4", batch) for i in (1, 2, 3, 4) for batch in (1, 64)
    ]
    assert {row["host"] for row in rows} == {hardware("cpu")}
    assert all(0 < row["first_quartile"] <= row["median"] <= row["third_quartile"] for row in rows)
    assert passes == (5 + 3) * 4 * [(1, 1), (64, 1)]
    assert analyses.is_probe("latency")
