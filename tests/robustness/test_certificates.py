"""Certificates against brute-force attacks: sound with a global bound, false with what looks like one."""

import functools
import math
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_pde import robustness

DIRECTIONS = 360
"""Angles of the search in two dimensions; a circle of radius r is met within r·π/360 < .009 r."""


def network(params, x):
    """A tanh network of two inputs and three classes."""
    return jnp.tanh(x @ params[0] + params[1]) @ params[2]


@functools.cache
def trained():
    """Weights fitted to three separated blobs until they are confident, the points and labels; float64 arrays."""
    keys = jax.random.split(jax.random.key(0), 4)
    centres = 1.2 * jnp.array([[1.0, 0.0], [-0.5, 0.87], [-0.5, -0.87]])
    ys = jnp.arange(150) % 3
    xs = centres[ys] + 0.3 * jax.random.normal(keys[0], (150, 2))
    params = (
        1.5 * jax.random.normal(keys[1], (2, 16)),
        jax.random.normal(keys[2], (1, 16)),
        jax.random.normal(keys[3], (16, 3)),
    )

    @jax.jit
    def train(params):
        loss = lambda p: -jnp.take_along_axis(jax.nn.log_softmax(network(p, xs)), ys[:, None], 1).mean()
        descend = lambda p, _: (jax.tree.map(lambda w, g: w - 0.3 * g, p, jax.grad(loss)(p)), None)
        return jax.lax.scan(descend, params, length=1500)[0]

    return jax.tree.map(np.asarray, (train(params), xs, ys))


@functools.cache
def landscape():
    """Everything the soundness tests share, as one program: logits, attacked distances, slopes on data and grid."""
    params, xs, ys = trained()
    axis = np.linspace(-4, 4, 321)  # spacing .025
    grid = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)

    @jax.jit
    def everything(params, xs, ys, grid):
        jacobian = jax.vmap(jax.jacrev(lambda x: network(params, x[None])[0]))
        lengths = lambda j: jnp.linalg.norm(j, axis=2).max(1)
        probabilities = lambda x: jax.nn.softmax(network(params, x[None]))[0]
        across, data = jax.lax.map(lambda x: jacobian(x[None])[0], grid, batch_size=8192), jacobian(xs)
        pairs = jnp.linalg.norm(across[:, :, None] - across[:, None], axis=3).max(0)
        spectral = jnp.linalg.eigvalsh(across @ across.transpose(0, 2, 1))[:, -1].max() ** 0.5
        return {
            "logits": network(params, xs),
            "attacked": attacked(params, xs, ys),
            "grid": lengths(across).max(),
            "spectral": spectral,
            "pairs": pairs,
            "data": lengths(data).max(),
            "local": lengths(data),
            "softmax": lengths(jax.vmap(jax.jacrev(probabilities))(xs)).max(),
        }

    def attacked(params, xs, ys):
        """The smallest radius at which some ray changes the class, inf if none does: each is a successful attack."""
        radii = jnp.linspace(0.02, 4, 200)
        angles = 2 * jnp.pi * jnp.arange(DIRECTIONS) / DIRECTIONS
        rays = jnp.stack([jnp.cos(angles), jnp.sin(angles)], 1)

        def fooled(radius):
            points = (xs[:, None] + radius * rays[None]).reshape(-1, 2)
            return (jnp.argmax(network(params, points), 1).reshape(len(xs), -1) != ys[:, None]).any(1)

        hit = jax.lax.map(fooled, radii)
        return jnp.where(hit.any(0), radii[jnp.argmax(hit, 0)], jnp.inf)

    return jax.tree.map(np.asarray, everything(params, xs, ys, grid)), xs, ys


# The grid's maximum may miss the supremum between its points by a second derivative times half its diagonal.
GRID_DIAGONAL = 0.036


def false_certificates(radii, attacked):
    """How many of the radii are larger than an attack that succeeded."""
    return int((radii > attacked).sum())


def test_no_attack_beats_a_global_bound():
    """All three rules with the suprema of a fine grid: 150 points, 72 000 attacks on each, no violation."""
    found, _, ys = landscape()
    assert (found["logits"].argmax(1) == ys).mean() > 0.95  # there is something to certify
    rules = {"max_norm": "grid", "spectral": "spectral", "pairwise": "pairs"}
    for rule, slope in rules.items():
        radii = np.asarray(
            robustness.certified_radius(
                found["logits"], ys, lipschitz=found[slope] * (1 + GRID_DIAGONAL), rule=rule
            )
        )
        assert false_certificates(radii, found["attacked"]) == 0, rule
        # Not vacuous: more than a tenth of the way to the attack in the median (.27 for max_norm).
        assert np.median(radii / found["attacked"]) > 0.1, rule


def test_the_product_of_norms_is_a_global_bound():
    found, _, ys = landscape()
    params, _, _ = trained()
    layers = [robustness.DenseLayer(params[0]), robustness.DenseLayer(params[2])]
    bound = robustness.lipschitz_upper_bound(layers)
    assert bound > found["grid"]
    radii = robustness.certified_radius(found["logits"], ys, lipschitz=bound)
    assert false_certificates(np.asarray(radii), found["attacked"]) == 0
    pairs = robustness.difference_norms(params[2]) * robustness.dense_norm(params[0])
    pairwise = robustness.certified_radius(found["logits"], ys, lipschitz=pairs, rule="pairwise")
    assert false_certificates(np.asarray(pairwise), found["attacked"]) == 0
    # ‖K_i − K_j‖ ≤ 2 max‖K_i‖: the pairwise rule is never the weaker one.
    assert (pairwise >= radii * (1 - 1e-5)).all()


def test_the_popular_unsound_versions_make_false_certificates():
    """The largest gradient over data, the local gradient, and probabilities; each with the margin rule itself."""
    found, _, ys = landscape()
    logits, attacked = found["logits"], found["attacked"]
    radii = lambda values, slope: np.asarray(robustness.certified_radius(values, ys, lipschitz=slope))
    assert found["data"] < found["grid"]
    margins = 2 * radii(logits, 1.0)
    assert false_certificates(margins / (2 * found["local"]), attacked) > 0
    with pytest.warns(UserWarning, match="look like probabilities"):
        saturated = radii(jax.nn.softmax(logits), float(found["softmax"]))
    assert false_certificates(saturated, attacked) > 0
    # Confident points alone: what a well-fitted data set looks like.
    confident = margins > np.quantile(margins, 0.7)
    slope = found["local"][confident].max()
    assert false_certificates((margins / (2 * slope))[confident], attacked[confident]) > 0


@pytest.mark.parametrize("norm", [1, 2, math.inf])
def test_a_linear_classifier_is_certified_exactly(x64, norm):
    """Pairwise = min_j (f_y − f_j)/‖w_y − w_j‖_q, the true distance; with f₂ = −f₁ the factor 2 is exact too."""
    kernel = jax.random.normal(jax.random.key(0), (4, 3))
    x = jax.random.normal(jax.random.key(1), (50, 4))
    dual = {1: math.inf, 2: 2, math.inf: 1}[norm]
    logits = x @ kernel
    y = jnp.argmax(logits, 1)
    pairs = robustness.difference_norms(kernel, norm)
    got = robustness.certified_radius(logits, y, lipschitz=pairs, rule="pairwise")
    gaps = np.asarray(jnp.max(logits, 1, keepdims=True) - logits)
    lengths = np.linalg.norm(np.asarray(kernel[:, y, None] - kernel[:, None, :]), dual, axis=0)
    own = np.arange(3)[None] == np.asarray(y)[:, None]
    true = np.where(own, np.inf, gaps / np.where(own, 1, lengths)).min(1)
    ratio = np.asarray(got) / true
    assert ratio.max() <= 1 + 1e-12
    assert ratio.min() >= 1 - 1e-12
    opposite = jnp.stack([kernel[:, 0], -kernel[:, 0]], 1)
    slope = robustness.dense_norm(opposite, norm, "inf")
    got = robustness.certified_radius(x @ opposite, jnp.argmax(x @ opposite, 1), lipschitz=slope)
    true = np.abs(x @ kernel[:, 0]) / np.linalg.norm(kernel[:, 0], dual)
    np.testing.assert_allclose(got, true, rtol=1e-12)


def test_the_factors_are_the_least_that_are_sound(x64):
    """Opposite logits lose 2 L δ of margin, orthogonal ones √2 L δ: the radius equals the distance."""
    for columns, rule, slope in (([[1.0, -1.0], [0.0, 0.0]], "max_norm", 1.0), (jnp.eye(2), "spectral", 1.0)):
        kernel = jnp.asarray(columns)
        logits = jnp.array([[3.0, 0.0]]) @ kernel
        got = robustness.certified_radius(logits, jnp.array([0]), lipschitz=slope, rule=rule)
        difference = kernel[:, 0] - kernel[:, 1]
        distance = (logits[0, 0] - logits[0, 1]) / jnp.linalg.norm(difference)
        assert float(got[0]) == pytest.approx(float(distance), rel=1e-14)


def test_the_loss_version(x64):
    """Misclassified logits have ℓ ≥ log 2; for logits ±x the loss log(1 + e^{−2x}) has slope 2: sound."""
    logits = 5 * jax.random.normal(jax.random.key(0), (2000, 3))
    losses = -jax.nn.log_softmax(logits)[:, 0]
    assert float(losses[jnp.argmax(logits, 1) != 0].min()) >= math.log(2)
    x = jnp.linspace(-1, 4, 101)
    radii = robustness.certified_radius_from_loss(jnp.logaddexp(0.0, -2 * x), lipschitz=2.0)
    assert (radii <= jnp.maximum(x, 0)).all()
    assert float(radii[-1]) == pytest.approx(math.log(2) / 2, rel=1e-3)
    assert float(radii[10]) == 0


def test_nothing_is_certified_where_the_label_loses_ties_or_logits_are_not_finite():
    logits = jnp.array([[1.0, 2.0], [1.0, 1.0], [jnp.nan, 0.0], [jnp.inf, 0.0], [3.0, 1.0]])
    radii = jax.jit(functools.partial(robustness.certified_radius, lipschitz=2.0))(
        logits, jnp.zeros(5, jnp.int32)
    )
    np.testing.assert_array_equal(radii, [0, 0, 0, 0, 0.5])
    assert float(robustness.certified_radius_from_loss(jnp.array([jnp.nan]), lipschitz=1.0)[0]) == 0
    # Two logits that differ by a constant: no x changes their order.
    pairs = jnp.zeros((2, 2))
    radii = robustness.certified_radius(logits[:2], jnp.array([1, 0]), lipschitz=pairs, rule="pairwise")
    np.testing.assert_array_equal(radii, [jnp.inf, 0])


def test_a_traced_bound_that_bounds_nothing_certifies_nothing():
    """Inside jit nothing can raise: L < 0 or NaN gives 0, not ∞."""
    logits, y, losses = jnp.array([[3.0, 1.0]]), jnp.array([0]), jnp.array([0.1, 2.0])
    by_margin = jax.jit(lambda slope: robustness.certified_radius(logits, y, lipschitz=slope))
    by_loss = jax.jit(lambda slope: robustness.certified_radius_from_loss(losses, lipschitz=slope))
    for slope in (-1.0, math.nan):
        assert float(by_margin(slope)[0]) == 0
        np.testing.assert_array_equal(by_loss(slope), [0, 0])
    assert float(by_margin(2.0)[0]) == 0.5


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.bfloat16])
def test_the_dtype_of_the_logits_does_not_round_the_bound_down(dtype):
    """2.7 would be 2 as an integer, and 2.505 is 2.5 in bfloat16: radii that are too long."""
    for slope in (2.7, 2.505):
        radius = robustness.certified_radius(jnp.array([[3, 0]], dtype), jnp.array([0]), lipschitz=slope)
        assert float(radius[0]) == pytest.approx(3 / (2 * slope), rel=1e-6)
        radius = robustness.certified_radius_from_loss(jnp.zeros(1, dtype), lipschitz=slope)
        assert float(radius[0]) == pytest.approx(math.log(2) / slope, rel=1e-6)


def test_bad_input():
    logits, y = jnp.array([[2.0, 0.5], [0.1, 0.2]]), jnp.array([0, 1])
    for slope in (0.0, -1.0, math.inf, math.nan, jnp.float32(0)):
        with pytest.raises(ValueError, match="lipschitz must be positive and finite"):
            robustness.certified_radius(logits, y, lipschitz=slope)
    with pytest.raises(ValueError, match=r"lipschitz must have shape \(2, 2\)"):
        robustness.certified_radius(logits, y, lipschitz=1.0, rule="pairwise")
    with pytest.raises(ValueError, match=r"y must lie in \[0, 2\), got labels from 0 to 2"):
        robustness.certified_radius(logits, jnp.array([0, 2]), lipschitz=1.0)
    with pytest.raises(TypeError, match="y must be integer class labels"):
        robustness.certified_radius(logits, jnp.zeros(2), lipschitz=1.0)
    with pytest.raises(ValueError, match=r"y must have shape \(2,\)"):
        robustness.certified_radius(logits, jnp.zeros(3, jnp.int32), lipschitz=1.0)
    with pytest.raises(ValueError, match=r"logits must have shape \[n, classes ≥ 2\]"):
        robustness.certified_radius(jnp.ones((2, 1)), y, lipschitz=1.0)
    with pytest.raises(ValueError, match="rule must be one of 'max_norm', 'spectral', 'pairwise'"):
        robustness.certified_radius(logits, y, lipschitz=1.0, rule="l2")
    with pytest.raises(ValueError, match=r"losses must have shape \[n\]"):
        robustness.certified_radius_from_loss(logits, lipschitz=1.0)
    with warnings.catch_warnings():  # logits in [0, 1] that do not sum to 1 are logits
        warnings.simplefilter("error")
        robustness.certified_radius(jnp.array([[0.3, 0.4], [0.5, 0.5]]), y, lipschitz=1.0)
