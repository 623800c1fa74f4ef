"""What the figures of optimizer_paths and salr_network claim, on small configurations."""

import dataclasses

import numpy as np
import pytest

from experiments import optimizer_paths, salr_network


@pytest.fixture(scope="module")
def drawn():
    config = dataclasses.replace(optimizer_paths.SMOKE, methods=("SGD", "SALR", "Entropy-SGD"), num_starts=64)
    return optimizer_paths.run(config)


def test_linear_methods_follow_their_exact_theory(drawn):
    """Contraction on the valley to three digits; E|x − x*|² under noise within four standard errors."""
    for m, method in enumerate(drawn["method"]):
        if method == "SALR":
            continue
        distances = drawn["sq_distance"][m, 1, :, -1]
        error = distances.std(ddof=1) / np.sqrt(len(distances))
        assert abs(distances.mean() - drawn["noisy"][m]) < 4 * error
        late = np.sqrt(np.median(drawn["sq_distance"][m, 0, :, -1] / drawn["sq_distance"][m, 0, :, 40]))
        assert late ** (1 / 40) == pytest.approx(float(drawn["contraction"][m]), abs=2e-3)


def test_the_space_adaptive_rate_keeps_its_bound_and_beats_sgd_in_noise(drawn):
    names = list(drawn["method"])
    adaptive, sgd = (drawn["sq_distance"][names.index(name), 1, :, -1] for name in ("SALR", "SGD"))
    assert adaptive.mean() < min(optimizer_paths.proved(drawn), sgd.mean())


def test_every_method_spends_the_same_gradients(drawn):
    assert drawn["excess"].shape[-1] == optimizer_paths.SMOKE.num_gradients + 1
    entropy = drawn["points"][list(drawn["method"]).index("Entropy-SGD"), 0]
    moved = np.flatnonzero(np.any(np.diff(entropy, axis=0) != 0, axis=-1)) + 1
    assert set(moved) <= {20, 40, 60, 80}


def test_the_network_rules_keep_their_greatest_step():
    """Far from fitted, the space-adaptive rate is SGD's constant one."""
    config = dataclasses.replace(
        salr_network.SMOKE,
        methods=("SGD, constant", "SALR, one minibatch"),
        rates=(0.01, 0.1),
        num_gradients=40,
    )
    found = salr_network.run(config)
    assert np.all(found["step"] <= found["rate"][:, None] * (1 + 1e-6))
    np.testing.assert_allclose(found["step"][1], found["step"][0], rtol=0.02)
    np.testing.assert_allclose(found["train_loss"][1], found["train_loss"][0], rtol=0.02)
    assert [len(row) for row in salr_network.table(found)[1]] == [8, 8]
