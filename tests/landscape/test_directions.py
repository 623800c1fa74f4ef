"""Directions: the norm of every filter, orthogonality, what happens to vectors and zeros, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_pde import landscape

KEYS = jax.random.split(jax.random.key(0), 8)
PARAMS = {
    "conv": {"kernel": 0.1 * jax.random.normal(KEYS[0], (3, 3, 2, 4)), "bias": jnp.arange(4.0)},
    "dense": {"kernel": jax.random.normal(KEYS[1], (7, 5)).at[:, 2].set(0.0), "scale": jnp.full(5, -2.0)},
}
DIRECTION = jax.tree.map(lambda p: jnp.cos(jnp.arange(p.size) ** 2.0).reshape(p.shape) + 2.0, PARAMS)


def filters(kernel, axis=-1):
    """[filters, entries]."""
    kernel = np.moveaxis(np.asarray(kernel, np.float64), axis, 0)
    return kernel.reshape(kernel.shape[0], -1)


def norms(kernel, axis=-1):
    return np.linalg.norm(filters(kernel, axis), axis=1)


@pytest.mark.parametrize("axis", [-1, 0])
def test_every_filter_points_where_it_did_and_has_the_norm_of_the_parameters(axis):
    scaled = landscape.filter_normalized(DIRECTION, PARAMS, filter_axis=axis)
    for layer in PARAMS:
        got, given = filters(scaled[layer]["kernel"], axis), filters(DIRECTION[layer]["kernel"], axis)
        wanted = norms(PARAMS[layer]["kernel"], axis)
        np.testing.assert_allclose(norms(scaled[layer]["kernel"], axis), wanted, rtol=2e-6)
        np.testing.assert_allclose(
            np.sum(got * given, axis=1), wanted * np.linalg.norm(given, axis=1), rtol=2e-6
        )


def test_vectors_are_left_out_or_get_the_norm_of_their_leaf():
    zero = landscape.filter_normalized(DIRECTION, PARAMS)
    keep = landscape.filter_normalized(DIRECTION, PARAMS, vectors="keep")
    for layer, name in (("conv", "bias"), ("dense", "scale")):
        assert not np.any(zero[layer][name])
        ratio = keep[layer][name] / DIRECTION[layer][name]
        np.testing.assert_allclose(ratio, ratio[0], rtol=1e-6)
        np.testing.assert_allclose(
            np.linalg.norm(keep[layer][name]), np.linalg.norm(PARAMS[layer][name]), rtol=1e-6
        )


def test_filters_that_are_zero_in_the_direction_or_the_parameters_stay_finite():
    direction = DIRECTION | {
        "dense": {"kernel": DIRECTION["dense"]["kernel"].at[:, 0].set(0), "scale": jnp.zeros(5)}
    }
    scaled = landscape.filter_normalized(direction, PARAMS, vectors="keep")
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(scaled))
    assert not np.any(scaled["dense"]["kernel"][:, [0, 2]])
    assert np.all(scaled["dense"]["kernel"][:, [1, 3, 4]] != 0)


@pytest.mark.parametrize(
    ("normalization", "vectors"), [("filter", "zero"), ("filter", "keep"), ("leaf", "keep"), ("none", "zero")]
)
def test_orthogonal_directions_are_so_and_keep_the_norms(normalization, vectors):
    settings = {"normalization": normalization, "vectors": vectors}
    params = {"kernel": PARAMS["conv"]["kernel"], "bias": PARAMS["conv"]["bias"]}
    three = landscape.random_directions(3, params, 3, orthogonal=True, **settings)
    flat = [
        np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]).astype(float) for tree in three
    ]
    lengths = [np.linalg.norm(x) for x in flat]
    for i in range(3):
        for j in range(i):
            assert abs(flat[i] @ flat[j]) < 1e-6 * lengths[i] * lengths[j]
        kernel = three[i]["kernel"]
        if normalization == "filter":
            np.testing.assert_allclose(norms(kernel), norms(params["kernel"]), rtol=2e-6)
        if normalization == "leaf":
            assert np.linalg.norm(kernel) == pytest.approx(np.linalg.norm(params["kernel"]), rel=2e-6)
        assert bool(np.any(three[i]["bias"])) == (vectors == "keep" or normalization == "none")


def test_random_directions_are_standard_normal_and_nearly_orthogonal():
    """10⁴ entries: mean, variance and fourth moment within 4 standard errors (1, √2, √96 over √n); |cos| < 4/√n."""
    n = 10_000
    first, second = (np.asarray(d) for d in landscape.random_directions(1, jnp.ones(n), normalization="none"))
    for direction in (first, second):
        for power, moment, variance in ((1, 0, 1), (2, 1, 2), (4, 3, 96)):
            assert abs(np.mean(direction**power) - moment) < 4 * np.sqrt(variance / n)
    cosine = first @ second / np.linalg.norm(first) / np.linalg.norm(second)
    assert 0 < abs(cosine) < 4 / np.sqrt(n)


def test_other_keys_other_directions_and_the_dtypes_are_the_parameters():
    params = {"a": jnp.ones((3, 4), jnp.bfloat16), "b": jnp.ones((2, 2))}
    one, other = (landscape.random_directions(k, params, 1)[0] for k in (0, 1))
    assert (one["a"].dtype, one["b"].dtype) == (jnp.bfloat16, jnp.float32)
    assert not np.allclose(one["b"], other["b"])
    np.testing.assert_array_equal(landscape.random_directions(0, params, 1)[0]["b"], one["b"])


def test_works_under_jit():
    run = lambda p: landscape.filter_normalized(p, p)
    compiled, plain = jax.jit(run)(PARAMS), run(PARAMS)
    for a, b in zip(jax.tree.leaves(compiled), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: landscape.filter_normalized(jax.tree.map(jnp.zeros_like, PARAMS), PARAMS),
            "direction must not be zero",
        ),
        (lambda: landscape.filter_normalized(jnp.ones(3), jnp.ones(3)), "vectors='keep'"),
        (
            lambda: landscape.filter_normalized(DIRECTION["conv"], PARAMS),
            "direction must give a tree like params",
        ),
        (lambda: landscape.filter_normalized(jnp.ones((2, 3)), jnp.ones((3, 2))), r"shape \(2, 3\)"),
        (lambda: landscape.filter_normalized(DIRECTION, PARAMS, vectors="drop"), "vectors must be one of"),
        (
            lambda: landscape.filter_normalized(DIRECTION, PARAMS, filter_axis=2),
            "filter_axis must be an axis",
        ),
        (lambda: landscape.random_directions(0, PARAMS, 0), "num must be at least 1"),
        (
            lambda: landscape.random_directions(0, PARAMS, normalization="layer"),
            "normalization must be one of",
        ),
        (lambda: landscape.random_directions(0, jnp.ones(9)), "params must not be zero but for its vectors"),
        (lambda: landscape.random_directions(0, jnp.zeros((2, 3))), "params must not be zero: it"),
        (lambda: landscape.random_directions(0, jnp.ones((1, 3)), orthogonal=True), "orthogonal=True needs"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_integer_leaves_are_refused():
    with pytest.raises(TypeError, match="expected a floating dtype"):
        landscape.random_directions(0, {"a": jnp.ones((2, 2)), "count": jnp.arange(3)})
