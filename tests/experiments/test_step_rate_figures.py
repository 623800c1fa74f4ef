"""What the figures of salr_quadratic, rate_constants and minibatch_gradients claim, on small configurations."""

import dataclasses

import jax
import numpy as np
import pytest

from experiments import rate_constants, salr_quadratic


@pytest.fixture(scope="module")
def quadratics():
    config = dataclasses.replace(salr_quadratic.SMOKE, limit_steps=2000, limit_paths=500)
    return salr_quadratic.run(config)


def standard_error(samples):
    return samples.std(axis=-1, ddof=1) / np.sqrt(samples.shape[-1])


def test_rule_stays_below_the_proved_bound_and_above_the_claimed_one(quadratics):
    errors = quadratics["sq_distance"][:, 0]
    four = 4 * standard_error(errors)
    assert np.all(errors.mean(axis=-1) <= quadratics["provable"] + four)
    isotropic = list(quadratics["condition_number"]).index(1.0)
    assert np.all(errors.mean(axis=-1)[isotropic] > quadratics["claimed"][isotropic])
    assert errors.mean(axis=-1)[isotropic, 0] > (quadratics["claimed"][isotropic] + four[isotropic])[0]


def test_rule_beats_the_best_schedule_and_the_plug_in_stalls(quadratics):
    isotropic = list(quadratics["condition_number"]).index(1.0)
    ratio, half = salr_quadratic.ratios(quadratics, isotropic, salr_quadratic.RULE)
    assert ratio[0] == pytest.approx(1, abs=1e-5)
    assert np.all((ratio + half)[quadratics["steps"] >= 5] < 1)
    for problem in range(len(quadratics["condition_number"])):
        end = {
            name: salr_quadratic.ratios(quadratics, problem, name)[0][-1] for name in salr_quadratic.COLOURS
        }
        assert end[salr_quadratic.RULE] < 1
        assert end[salr_quadratic.CERTAIN] < 1.15
        assert end[salr_quadratic.SPS] > 2


def test_error_tends_to_its_limit(quadratics):
    gap = quadratics["scaled_mean"][:, -1] - quadratics["limit"]
    # In one dimension the limit is reached slowly, from below
    assert np.all(np.abs(gap) < 4 * quadratics["scaled_error"][:, -1] + 0.02)


def test_no_configuration_is_below_the_proved_constant(smoke):
    results = smoke("rate_constants").results
    assert results["provable_score"].max() < results["critical"]
    assert np.all(results["provable_sure"] < 1 + 1e-9)
    isotropic = results["smoothness"] == results["strong_convexity"]
    assert rate_constants.violated(results)[isotropic].all()
    tangential = rate_constants.LAWS.index("tangential")
    exact = isotropic & (results["law"] == tangential)
    np.testing.assert_allclose(results["measured"][exact], results["provable"][exact], rtol=1e-9)
    first = results["one_step"].min()
    assert first == pytest.approx(results["one_step_provable"])
    assert first > 1.49 * results["one_step_claimed"]


def test_control_variate_leaves_the_mean_and_lowers_the_error():
    control, rest = jax.random.normal(jax.random.key(0), (2, 3, 4000))
    mean, error = rate_constants.controlled(1 + control + 0.1 * rest, control)
    np.testing.assert_allclose(mean, 1, atol=5 * float(error.max()))
    np.testing.assert_allclose(error, 0.1 / np.sqrt(4000), rtol=0.1)


def test_measured_noise_and_step_are_the_exact_ones(smoke):
    results = smoke("minibatch_gradients").results
    np.testing.assert_allclose(results["measured_noise"], results["noise"], rtol=0.15)
    np.testing.assert_allclose(np.linalg.norm(results["gradient"], axis=1), results["distance"], rtol=1e-6)
    expected = (1 - results["rate"]) * results["distance"] ** 2
    assert np.all(np.abs(results["next_sq_distance"] - expected) < 5 * results["next_error"])
    assert np.all(results["step_effect"].min(axis=1) > 1 - results["rate"] - 1e-9)
