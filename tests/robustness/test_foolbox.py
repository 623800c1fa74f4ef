"""Against foolbox on its JAX backend: the same weights, images and radii."""

import functools
import math
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxopt_pde.robustness import minimal_distance, pgd

with warnings.catch_warnings():  # foolbox and eagerpy import what their own dependencies deprecate
    warnings.simplefilter("ignore", DeprecationWarning)
    foolbox = pytest.importorskip("foolbox")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:(foolbox|eagerpy).*")
KEY = jax.random.key(1)


def apply(params, x):
    hidden = jax.nn.relu(x @ params[0])
    return hidden @ params[1]


@pytest.fixture(scope="module")
def digits():
    """A ReLU network trained on the digits, and 100 images it was not trained on."""
    datasets = pytest.importorskip("sklearn.datasets")
    pixels, labels = datasets.load_digits(return_X_y=True)
    x, y = jnp.asarray(pixels / 16, jnp.float32), jnp.asarray(labels, jnp.int32)
    keys = jax.random.split(jax.random.key(0))
    params = (jax.random.normal(keys[0], (64, 32)) / 8, jax.random.normal(keys[1], (32, 10)) / 6)
    adam = optax.adam(1e-2)

    def loss(params):
        return optax.softmax_cross_entropy_with_integer_labels(apply(params, x[100:]), y[100:]).mean()

    def step(carry, _):
        params, state = carry
        updates, state = adam.update(jax.grad(loss)(params), state)
        return (optax.apply_updates(params, updates), state), None

    train = jax.jit(lambda params: jax.lax.scan(step, (params, adam.init(params)), None, length=60)[0][0])
    model = functools.partial(apply, train(params))
    assert (model(x[:100]).argmax(-1) == y[:100]).mean() > 0.9
    return model, x[:100], y[:100]


@pytest.mark.parametrize(("norm", "name", "radius"), [(math.inf, "LinfPGD", 0.1), (2, "L2PGD", 0.5)])
def test_pgd_breaks_at_least_as_many_images(digits, norm, name, radius):
    model, x, y = digits
    theirs = getattr(foolbox.attacks, name)(steps=20)
    _, _, broken = theirs(foolbox.JAXModel(jax.jit(model), bounds=(0, 1)), x, y, epsilons=radius)
    ours = pgd(model, x, y, KEY, radius=radius, norm=norm, num_steps=20)
    assert 0.2 < np.mean(broken) < 1
    assert float(ours.success.mean()) >= float(np.mean(broken)) - 0.01


@pytest.mark.parametrize(
    ("norm", "fmn", "deepfool"),
    [(math.inf, "LInf", "Linf"), pytest.param(2, "L2", "L2", marks=pytest.mark.slow)],
)
def test_minimal_distances_are_not_larger_on_the_median(digits, norm, fmn, deepfool):
    model, x, y = digits
    attacks = (
        getattr(foolbox.attacks, f"{fmn}FMNAttack")(steps=30),
        getattr(foolbox.attacks, f"{deepfool}DeepFoolAttack")(steps=10),
    )
    wrapped = foolbox.JAXModel(jax.jit(model), bounds=(0, 1))
    ours = minimal_distance(model, x, y, KEY, norm=norm, num_steps=30)
    assert ours.success.all()
    for attack in attacks:
        with jax.numpy_rank_promotion("allow"):  # foolbox's projection relies on it
            _, found, success = attack(wrapped, x, foolbox.Misclassification(y), epsilons=None)
        theirs = np.where(success, np.linalg.norm(np.asarray(found - x), norm, axis=-1), np.inf)
        assert float(jnp.median(ours.distance)) <= np.median(theirs) * (1 + 1e-3)
