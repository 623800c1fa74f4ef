"""What the figure of scaling claims, and its predictions against numbers worked out by hand."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from experiments import _link_times, _sharded_programs, scaling
from experiments._collectives import Collective
from experiments._published import published

ROOT = Path(scaling.__file__).parents[1]
GUIDE = ROOT / "docs" / "guides" / "scaling.md"
LINK = _link_times.Link(bytes_per_second=10e9, ring_step=3e-6, tree_step=20e-6)


@pytest.fixture(scope="module")
def results(smoke):
    return smoke("scaling").results


def test_ring_and_tree_by_hand():
    """1 GB among 8 at 10 GB/s: 14 steps of 125 MB are 175 ms, and 14 × 3 µs; a tree 200 ms and 6 × 20 µs."""
    assert _link_times.ring_seconds(1e9, 8, LINK) == pytest.approx(0.175042)
    assert _link_times.tree_seconds(1e9, 8, LINK) == pytest.approx(0.20012)
    assert _link_times.tree_seconds(1e9, 5, LINK) == pytest.approx(0.20012)  # three levels hold five
    assert _link_times.ring_seconds(1e9, 1, LINK) == _link_times.tree_seconds(1e9, 1, LINK) == 0


def test_two_levels_by_hand():
    """32 devices of 4 nodes of 8: inside 1.75 B/w, between 1.5 (B/8)/v; of tiny messages the tree's latency."""
    fabric = _link_times.Fabric(8, LINK._replace(bytes_per_second=100e9), LINK)
    inside, between = 0.0175 + 14 * 3e-6, 1.5 * 0.0125 + 6 * 3e-6
    assert _link_times.all_reduce_seconds(1e9, 32, fabric) == pytest.approx(inside + between)
    assert _link_times.all_reduce_seconds(1e9, 8, fabric) == pytest.approx(inside)
    assert _link_times.all_reduce_seconds(0, 8 * 128, fabric) == pytest.approx(14 * 3e-6 + 2 * 7 * 20e-6)
    for devices, broken in ((12, fabric), (32, fabric._replace(outer=None))):
        with pytest.raises(ValueError, match="devices must be one node of 8 or whole nodes"):
            _link_times.all_reduce_seconds(1.0, devices, broken)


def test_link_speeds_are_those_printed_by_direction_and_by_accelerator():
    speeds = {row["link"]: row["GB/s"] for row in published("link_speeds").where()}
    assert speeds == {
        "NVLink 4": 900 / 2,
        "PCIe 5.0 x16": 128 / 2,
        "InfiniBand NDR, a port a GPU": 400 / 8,
        "100 GbE, a port a node of 8": 100 / 8 / 8,
        "TPU v5p ICI": 1200 / 2,
        "TPU v5e ICI": 400 / 2,
        "TPU v5e data center network": 6400 / 8 / 256,
    }
    assert speeds["TPU v5e ICI"] * 256 == 51.2e3  # and Google's own all-reduce bandwidth of a pod
    assert all(row["address"].startswith("https://") for row in published("link_speeds").where())


def test_sgd_sends_two_models_a_gradient_and_the_others_once_in_a_call(results):
    """On n devices 2 (n − 1)/n models; the rest of a call is flags and counters, below 1/100 of a model."""
    steps = scaling.SMOKE.num_steps
    for place, devices in enumerate(results["devices"]):
        share = 2 * (devices - 1) / devices
        assert scaling.models_per_step(results, scaling.SGD)[place] == pytest.approx(share)
        for name, trees in ((scaling.CHAINS, 1), (scaling.PARLE, 1), (scaling.CONTROLLED, 3)):
            sent = scaling.models_per_step(results, name)[place] * steps / share
            assert trees <= sent < trees + 0.02, name
            found, _ = scaling.found_in(results, name, place)
            assert {(c.kind, c.times) for c in found} == {("all-reduce", 1)}, name
        slices, _ = scaling.found_in(results, "landscape slice", place)
        assert {c.kind for c in slices} == {"all-gather"}
        assert sum(c.num_bytes for c in slices) < 0.1 * results["model_bytes"]


def test_one_message_in_a_call_takes_one_nth_of_the_time(results):
    """Latency included, and to the share of flags and counters."""
    seconds = results["predicted_seconds"]
    sgd, chains, controlled = (list(results["method"]).index(n) for n in scaling.PREDICTED[:3])
    ratio = seconds[0, :, :, sgd] / seconds[0, :, :, chains]
    np.testing.assert_allclose(ratio, scaling.SMOKE.num_steps, rtol=1e-3)
    assert np.all(seconds[0, :, :, controlled] <= 3 * seconds[0, :, :, chains] * (1 + 1e-3))
    assert np.all(np.diff(seconds, axis=-1) >= 0)
    width = seconds[1] / seconds[0]
    assert np.all((width[:, :, sgd] >= 0.5) & (width[:, :, sgd] < 1))
    np.testing.assert_array_equal(width[:, :, chains], 1)


def test_a_prediction_by_hand():
    """ResNet-50 in float32, 102 MB, on 8 TPU v5p: 1.75 × 102.228128 MB at 600 GB/s; flags keep their bytes."""
    fabric = _link_times.fabric("TPU v5p")
    found = [Collective("all-reduce", 1000, 5, 8), Collective("all-reduce", 4, 1, 8)]
    expected = 1.75 * (5 * 102_228_128 + 4) / 600e9 / 5
    assert scaling.seconds_per_step(found, 5, 102_228.128, 1000, 8, fabric) == pytest.approx(expected)
    with pytest.raises(ValueError, match="only all-reduces are predicted, got 'all-to-all'"):
        scaling.seconds_per_step([Collective("all-to-all", 1, 1, 8)], 1, 1.0, 1, 8, fabric)


def test_too_few_devices_and_missing_programs_are_named():
    with pytest.raises(
        RuntimeError, match=r"64 CPU devices are needed and JAX has started with 8.*XLA_FLAGS"
    ):
        _sharded_programs.cpu_devices(64)
    with pytest.raises(ValueError, match=r"programs must hold .*SGD, data-parallel"):
        scaling.run(dataclasses.replace(scaling.SMOKE, programs=("landscape slice",)))
    with pytest.raises(ValueError, match="programs"):
        scaling.run(dataclasses.replace(scaling.SMOKE, programs=("SGD",)))


def test_the_guides_tables_are_those_of_the_formulas_and_of_the_stored_benchmark(monkeypatch):
    """A model in one message a call for the chains, and at every step for SGD; the benchmark's as it prints them."""
    text = GUIDE.read_text(encoding="utf-8")
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith(tuple(
        f"| {model} | {fabric} |" for model in scaling.MODELS for fabric in _link_times.FABRICS))]  # fmt: skip
    assert len(rows) == len(scaling.MODELS) * len(_link_times.FABRICS)
    for model, fabric, *cells in rows:
        num_bytes, fabric = 4 * scaling.MODELS[model], _link_times.fabric(fabric)
        each = [_link_times.all_reduce_seconds(num_bytes, n, fabric) * 1e3 for n in (8, 128, 1024)]
        expected = [*each, *(ms / scaling.Config().num_steps for ms in each)]
        assert cells == [f"{ms:.3g}" for ms in expected]
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import accelerator

    stored = json.loads((ROOT / "benchmarks" / "results" / "accelerator.json").read_text(encoding="utf-8"))
    assert accelerator.markdown(stored) in text


@pytest.mark.slow
def test_no_kernel_of_the_benchmark_moves_less_than_its_least_bytes(monkeypatch):
    """Counted by XLA in compiled code; where nothing is read twice, the two counts agree but for some scalars."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import accelerator

    rows = accelerator.kernels(2**14)
    for name, row in rows.items():
        row.run()
        assert row.xla_bytes is None or row.xla_bytes > row.least_bytes, name
    for name in (accelerator.UNIT, "y ← s y"):
        assert rows[name].xla_bytes < rows[name].least_bytes + 64
