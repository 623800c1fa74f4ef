"""What the figures of optimizer_paths claim, on small configurations."""

import dataclasses

import numpy as np
import pytest

from experiments import optimizer_paths


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
