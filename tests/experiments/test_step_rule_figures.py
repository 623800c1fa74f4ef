"""What the figures on space-adaptive steps and batches claim, on small configurations."""

import dataclasses

import jax
import numpy as np
import pytest

from experiments import _stochastic_paths as paths
from experiments import adaptive_batch_kmeans, salr_kmeans, salr_logistic
from jaxopt_pde import problems


def test_exact_rule_beats_the_best_schedule_and_estimates_stall():
    """One centre: exact < best schedule ≈ certainty-equivalent, the bound holds, a running mean stops falling."""
    config = dataclasses.replace(salr_kmeans.SMOKE, num_paths=128, num_steps=400, num_checkpoints=17)
    problem = salr_kmeans.make_problem(config, 1)
    chosen = (
        salr_kmeans.ORACLE,
        salr_kmeans.CERTAIN,
        salr_kmeans.SCHEDULE,
        "SALR, running mean",
        "SPS+ (optax)",
    )
    every = salr_kmeans.make_methods(config, problem)
    found = paths.run_paths(problem, {name: every[name] for name in chosen}, jax.random.key(0), 128, 400, 17)
    distance = {}
    for name in chosen:
        excess = found[f"{name}/excess"]
        distance[name] = 2 * excess[paths.best(excess)]
    bound = np.asarray(problems.space_adaptive_bound(found["steps"], **problem.rate_constants))
    claimed = np.asarray(problems.refuted_talk_bound(found["steps"], **problem.rate_constants))
    mean, margin = paths.mean_and_margin(distance[salr_kmeans.ORACLE])
    assert np.all(mean <= bound + 1.5 * margin + 1e-5)
    assert np.all((mean > claimed)[1:])
    reference = distance[salr_kmeans.SCHEDULE]
    ratio, width = paths.paired_ratio(distance[salr_kmeans.ORACLE], reference)
    assert np.all((ratio + width)[found["steps"] >= 10] < 1)
    ratio, _ = paths.paired_ratio(distance[salr_kmeans.CERTAIN], reference)
    assert abs(ratio[-1] - 1) < 0.15
    for name in chosen[3:]:
        assert distance[name][-1].mean() > 20 * reference[-1].mean()
        assert paths.log_slope(found["steps"], distance[name].mean(axis=1)) > -0.6


def test_paired_ratio_has_no_width_where_the_paths_agree():
    values = np.array([[1.0, 2.0, 6.0]])
    ratio, width = paths.paired_ratio(2 * values, values)
    assert ratio == pytest.approx(2.0)
    assert width == pytest.approx(0.0)
    mean, margin = paths.mean_and_margin(values)
    assert mean == pytest.approx(3.0)
    assert margin == pytest.approx(1.96 * np.sqrt(7 / 3))


def test_slope_and_best_variant():
    steps = np.array([0, 1, 10, 30, 100])
    assert paths.log_slope(steps, 3.0 / np.maximum(steps, 1) ** 0.5) == pytest.approx(-0.5)
    excess = np.ones((3, 2, 4))
    excess[1, -1] = 0.5
    excess[2, -1] = np.nan
    assert paths.best(excess) == 1


def test_labels_on_a_logarithmic_axis_keep_order_and_distance():
    placed = paths.spread_labels(np.array([1e-3, 1.0, 1.1e-3]), 0.2)
    assert placed[0] < placed[2] < placed[1]
    assert np.log10(placed[2] / placed[0]) > 0.19
    assert placed[1] == pytest.approx(1.0)


def test_growing_batches_reach_small_errors_with_fewer_samples():
    """With exact losses; losses of microbatches need more samples than the best constant batch."""
    config = dataclasses.replace(
        adaptive_batch_kmeans.SMOKE,
        num_paths=64,
        num_updates=1000,
        num_checkpoints=61,
        batch_sizes=(2, 8, 32, 128),
        targets=(0.02,),
    )
    found = adaptive_batch_kmeans.run(config)
    ratio, low, high = adaptive_batch_kmeans.ratios(found["table_needed"])
    names = found["method"].tolist()
    exact, noisy = names.index(adaptive_batch_kmeans.LOSS), names.index(adaptive_batch_kmeans.NOISY)
    assert low[0, exact] <= ratio[0, exact] <= high[0, exact] < 0.9
    assert low[0, noisy] > 1
    batch = found["batch"][0]
    assert batch[-1] > 10 * batch[batch > 0][0]


def test_crossings_are_interpolated_and_infinite_where_there_are_none():
    samples = np.array([0, 1, 10, 100])
    means = np.array([[1.0, 1.0, 0.1, 0.01], [1.0, 1.0, 0.5, 0.5]])[..., None]
    found = adaptive_batch_kmeans.crossings(samples, means, np.array([0.1**1.5, 0.5]))
    np.testing.assert_allclose(found[:, 0, 0], [10**1.5, 10 ** np.log10(2)])
    assert found[0, 1, 0] == np.inf
    assert found[1, 1, 0] == pytest.approx(10.0)


def test_exact_rule_on_real_data_needs_no_tuning():
    """Breast cancer, early: near the best schedule in hindsight, ahead of all that sees minibatches only."""
    names = (salr_logistic.ORACLE, salr_logistic.SCHEDULE, salr_logistic.SIGNAL, "SALR, instantaneous")
    config = dataclasses.replace(salr_logistic.SMOKE, cancer_paths=16, cancer_steps=300)
    case = salr_logistic.make_case(config, "breast cancer")
    methods = salr_logistic.make_methods(config, case.problem)
    chosen = {name: methods[name] for name in names}
    found = paths.run_paths(case.problem, chosen, jax.random.key(1), case.num_paths, case.num_steps, 9)
    last = {
        name: salr_logistic.errors({f"x/{key}": a for key, a in found.items()}, "x", name)[-1]
        for name in names
    }
    ratio, width = paths.paired_ratio(last[salr_logistic.ORACLE], last[salr_logistic.SCHEDULE])
    assert ratio - width < 1.1
    for name in names[2:]:
        assert last[name].mean() > 2 * last[salr_logistic.ORACLE].mean()
    assert case.problem.dimension == 31
    rate = found[f"{salr_logistic.ORACLE}/learning_rate"][0].mean(axis=-1)
    assert rate[-1] < rate[1:].max() / 3
