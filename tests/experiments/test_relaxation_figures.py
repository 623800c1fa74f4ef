"""What the two relaxation figures claim holds for their small configurations."""

import numpy as np
import pytest

from experiments import relaxation_1d, relaxation_2d


@pytest.mark.slow
def test_claims_in_one_dimension():
    """All in one test: workers would each run the experiment again."""
    line = {name: np.asarray(array) for name, array in relaxation_1d.run(relaxation_1d.SMOKE).items()}
    check_that_minima_only_vanish(line)
    check_that_the_inviscid_relaxation_falls_with_time(line)
    check_that_the_viscous_relaxation_tends_to_it(line)
    check_that_every_method_agrees_with_the_exact_route(line)
    check_that_one_start_may_fail(line)


@pytest.mark.slow
def test_claims_in_two_dimensions():
    plane = {name: np.asarray(array) for name, array in relaxation_2d.run(relaxation_2d.SMOKE).items()}
    check_that_the_wide_well_wins(plane)
    check_that_exact_descent_goes_downhill(plane)
    check_that_gradients_are_counted(plane)


def check_that_minima_only_vanish(line):
    """In one dimension the number of minima falls with t at every T (Sturm), from that of f."""
    counts = np.concatenate([np.full((len(line["minima"]), 1), line["minima_of_f"]), line["minima"]], axis=1)
    assert np.all(np.diff(counts, axis=1) <= 0)
    assert counts[0, 0] > 5
    assert np.all(counts[:, -1] == 1)


def test_minima_are_counted_once():
    values = np.array([3.0, 1.0, 2.0, 0.0, 0.0, 4.0, 5.0])
    assert relaxation_1d.count_minima(values, 1) == 2
    assert relaxation_1d.count_minima(-values[None], 1).tolist() == [1]


def check_that_the_inviscid_relaxation_falls_with_time(line):
    """From f, which it never exceeds."""
    levels = np.concatenate([line["f"][None], line["inviscid/values"]])
    assert np.all(np.diff(levels, axis=0) <= 1e-5)


def check_that_the_viscous_relaxation_tends_to_it(line):
    """The gap shrinks with T, no slower than in proportion once barriers are high against T."""
    seen = np.abs(line["x"]) < 3
    gaps = np.abs(line["limit"] - line["limit"][0])[:, seen].max(axis=1)
    assert gaps[0] == 0
    assert np.all(np.diff(gaps) > 0)
    assert gaps[1] < 4 * line["temperatures"][1]


def check_that_every_method_agrees_with_the_exact_route(line):
    for name in ("Cole-Hopf", "Langevin", "heat"):
        for quantity in ("value", "gradient"):
            _, ratio = relaxation_1d.deviation(line, name, quantity)
            assert ratio is None or np.abs(ratio).max() < 4, (name, quantity)
    assert np.abs(relaxation_1d.deviation(line, "quadrature", "value")[0]).max() < 1e-4
    assert np.abs(relaxation_1d.deviation(line, "quadrature", "gradient")[0]).max() < 2e-3
    assert np.abs(relaxation_1d.deviation(line, "Hopf-Lax", "value")[0]).max() < 0.02
    seen = np.abs(line["x"]) < 3
    assert np.abs(line["heat/values"] - line["heat/closed_form"])[:, seen].max() < 1e-4


def check_that_one_start_may_fail(line):
    assert np.all(line["Hopf-Lax/alone_value"] >= line["Hopf-Lax/value"])
    assert np.any(line["Hopf-Lax/alone_value"] > line["Hopf-Lax/value"] + 0.1)


def test_labels_keep_their_order_and_their_distance():
    placed = relaxation_1d.spread_out(np.array([1.0, 0.0, 1.1, 5.0]), 0.5)
    assert np.argsort(placed).tolist() == [1, 0, 2, 3]
    assert np.diff(np.sort(placed)).min() > 0.49
    assert placed[3] == 5.0


def check_that_the_wide_well_wins(plane):
    """All with viscosity at the last time; not all on f, fewer without viscosity."""
    hits = dict(
        zip(
            zip(plane["sharp and wide/method"].tolist(), plane["sharp and wide/time"].tolist(), strict=True),
            relaxation_2d.successes(plane, "sharp and wide").tolist(),
            strict=True,
        )
    )
    starts = relaxation_2d.SMOKE.num_starts
    assert hits[relaxation_2d.RELAXED, 2.0] == starts
    assert hits[relaxation_2d.GRADIENT_DESCENT, 0.0] < starts
    assert hits[relaxation_2d.INVISCID, 2.0] < hits[relaxation_2d.GRADIENT_DESCENT, 0.0]


def check_that_exact_descent_goes_downhill(plane):
    """A step h = t never raises u, so every path ends no higher than it starts (up to interpolation)."""
    case = relaxation_2d.make_case("sharp and wide")
    exact = np.vectorize(case.problem.exact, signature="(d),(),()->()")
    for path, time in zip(plane["sharp and wide/path_u"], case.times, strict=True):
        values = exact(path[:6], np.float32(time), np.float32(case.temperature))
        assert np.all(np.diff(values, axis=0) <= 2e-3)


def check_that_gradients_are_counted(plane):
    config, count = (
        relaxation_2d.SMOKE,
        dict(zip(plane["sharp and wide/method"], plane["sharp and wide/spent"], strict=True)),
    )
    assert count[relaxation_2d.GRADIENT_DESCENT] == 5 * config.num_polish
    assert count[relaxation_2d.RELAXED] == config.num_polish
    inner = config.num_updates * config.num_steps * config.num_chains
    assert count[relaxation_2d.ENTROPY] == count[relaxation_2d.HEAT] == inner + config.num_polish


def test_unknown_losses_are_refused():
    with pytest.raises(ValueError, match="problems must be one of 'sharp and wide'"):
        relaxation_2d.make_case("Ackley")
