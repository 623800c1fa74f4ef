"""What adversarial_table and adversarial_curves claim, on a small configuration."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import _adversarial_training as training
from experiments import adversarial_curves, adversarial_table
from jaxopt_pde import robustness

CONFIG = adversarial_curves.SMOKE


def test_the_objective_has_the_gradient_of_the_fused_route():
    """J of 2-Lip & tanh, term by term, against robustness.regularized_value_and_grad."""
    network = training.make_network(CONFIG)
    _, parts = training.draw_images(CONFIG)
    xs, ys = parts["train"].x[0, :7], parts["train"].y[0, :7]
    params = network.init(jax.random.key(0), xs, train=False)["params"]

    def losses(params, xs, ys):
        logits = CONFIG.tanh * jnp.tanh(network.apply({"params": params}, xs, train=False) / CONFIG.tanh)
        return optax.softmax_cross_entropy_with_integer_labels(logits, ys)

    fused = robustness.regularized_value_and_grad(losses, mean_weight=0.3, max_weight=0.2, batched=True)
    (expected, _), gradient = jax.jit(fused)(params, xs, ys)
    setting = training.Setting(0.0, 0.3, 0.2, True)
    ours = jax.jit(
        jax.value_and_grad(lambda p: training.objective(CONFIG, network, p, {}, xs, ys, setting)[0])
    )
    value, found = ours(params)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    chex.assert_trees_all_close(found, gradient, atol=1e-5)


@pytest.fixture(scope="module")
def curves(smoke):
    return smoke("adversarial_curves").results


def test_each_setting_weighs_the_terms_of_its_defence():
    index, weight, setting = training.settings((0.1, 0.4))
    names = np.array(list(training.DEFENCES))[index]
    assert list(weight[names == "J⁰"]) == list(weight[names == "tanh"]) == [0.0]
    row = {
        name: tuple(float(part[(names == name) & (weight == 0.4)][0]) for part in setting)
        for name in names[2:]
    }
    assert row["J¹"] == (0.4, 0, 0, 0)
    assert row["J²"] == (0, 0.4, 0, 0)
    assert row["Lip"] == (0, 0, 0.4, 0)
    assert row["2-Lip"] == (0, 0.4, 0.4, 0)
    assert row["2-Lip & tanh"] == (0, 0.4, 0.4, 1)


def test_the_chosen_weight_is_the_largest_within_the_margin():
    index = np.array([0, 1, 1, 1, 2, 2])
    errors = np.array([0.10, 0.08, 0.109, 0.2, 0.3, 0.4])[:, None] + np.array([[-0.01, 0.01]])
    assert list(training.choose(index, errors, 0.01)) == [0, 2, 4]  # of the last none is: its smallest
    assert list(training.choose(index, errors, 0.5)) == [0, 3, 5]


def test_images_of_a_seed_are_disjoint_and_those_of_two_seeds_differ():
    _, parts = training.draw_images(CONFIG)
    together = np.concatenate([parts[name].x[0].reshape(-1, 64) for name in ("train", "validation", "test")])
    _, whole = training.draw_images(dataclasses.replace(CONFIG, num_seeds=1, num_train=1697))
    _, copies = np.unique(
        np.concatenate([part.x[0].reshape(-1, 64) for part in whole.values()]), axis=0, return_counts=True
    )
    # scikit-learn's own images hold few duplicates; every image is drawn once.
    assert len(np.unique(together, axis=0)) >= len(together) - (copies - 1).sum()
    assert not np.array_equal(parts["train"].x[0], parts["train"].x[1])
    with pytest.raises(ValueError, match="more images than digits"):
        training.draw_images(dataclasses.replace(CONFIG, num_train=1698))


def test_the_distances_are_not_weaker_than_pgd_at_any_radius(curves):
    """In the share of images, and nearly image by image; nor PGD than FGSM; and no curve falls."""
    assert adversarial_curves.missed(curves, 0).mean() <= 0.01
    assert np.all(curves["pgd"][0] >= curves["fgsm"][0])
    shares = adversarial_curves.errors(curves, 0, np.linspace(0, 2, 50))
    assert np.all(np.diff(shares, axis=-1) >= 0)
    at = adversarial_curves.errors(curves, 0, curves["radius"][0] * 1.0001)
    assert np.all(at >= curves["pgd"][0].mean(-1) - 1e-6)


def test_the_talks_numbers_stand_beside_ours_and_differences_are_those_of_a_seed():
    random = np.random.default_rng(0)
    names = list(training.DEFENCES)
    distance = random.uniform(0.1, 1, (7, 3, 11))
    results = {
        "note": np.array("digits"), "defence": np.array(names), "chosen": np.arange(7), "weight": np.arange(7) / 10,
        "setting": np.arange(7), "test_error": random.uniform(0, 0.1, (7, 3)), "distance_2": distance,
        "distance_inf": distance / 5, "through_tanh": distance[:2], "radii": np.array([0.5, 0.1]),
        "by_tanh": np.array([False, True, False, False, False, False, True]),
    }  # fmt: skip
    headers, rows = adversarial_table.table(results)
    assert [row[1] for row in rows[:7]] == names
    assert len(rows) == 7 + 8
    assert "0.56" in rows[10]  # the last row of CIFAR-10
    middle = np.median(distance, -1)
    before, difference = adversarial_table.paired(results)["2-Lip"]
    assert before == "J²"
    np.testing.assert_allclose(difference, middle[names.index("2-Lip")] - middle[names.index("J²")])
    assert rows[0][headers.index("% error at ℓ2 0.5 (talk 0.1)")].startswith(
        f"{100 * (distance[0] <= 0.5).mean():.1f}"
    )
