"""Slices: equal to the loss at the points however they are evaluated, and where relaxed to u in closed form."""

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxopt_pde import landscape, smoothing

KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (22, 3))
DATA = {"x": X, "y": jnp.sin(3 * X[:, :2])}
PARAMS = {
    "first": {"kernel": jax.random.normal(jax.random.key(2), (3, 6)), "bias": jnp.linspace(-0.5, 0.5, 6)},
    "second": {"kernel": jax.random.normal(jax.random.key(3), (6, 2)), "bias": jnp.array([0.1, -0.2])},
}
DIRECTIONS = landscape.random_directions(jax.random.key(4), PARAMS, vectors="keep")
AXES = (jnp.linspace(-1.0, 1.0, 5), jnp.linspace(-0.5, 0.75, 3))


def mlp(params, batch):
    hidden = jax.nn.relu(batch["x"] @ params["first"]["kernel"] + params["first"]["bias"][None])
    output = hidden @ params["second"]["kernel"] + params["second"]["bias"][None]
    return jnp.mean((output - batch["y"]) ** 2)


def whole(params):
    return mlp(params, DATA)


def loader():
    return iter([{name: leaf[start : start + 8] for name, leaf in DATA.items()} for start in (0, 8, 16)])


def mlp_slice(**settings):
    return landscape.slice(mlp, PARAMS, DIRECTIONS, AXES, **{"data": DATA, **settings})


@pytest.fixture(scope="module")
def batched():
    return mlp_slice(batch_size=8)


def position(i, j):
    a, b = AXES[0][i], AXES[1][j]
    return jax.tree.map(lambda p, d, e: p + a * d + b * e, PARAMS, *DIRECTIONS)


def test_values_are_those_of_the_loss_at_the_points():
    expected = [[float(whole(position(i, j))) for j in range(3)] for i in range(5)]
    values = landscape.slice(whole, PARAMS, DIRECTIONS, AXES)
    assert values.shape == (5, 3)
    np.testing.assert_allclose(values, expected, rtol=1e-5)
    np.testing.assert_allclose(mlp_slice(), expected, rtol=1e-5)


def test_batches_are_weighted_by_their_examples_and_give_the_textbooks_error(batched):
    """22 examples in 8, 8 and 6."""
    values = np.array([float(mlp(position(1, 2), batch)) for batch in loader()])
    shares = np.array([8, 8, 6]) / 22
    mean = values @ shares
    assert batched.mean[1, 2] == pytest.approx(mean, rel=1e-5)
    assert batched.mean[1, 2] == pytest.approx(float(whole(position(1, 2))), rel=1e-5)
    error = np.sqrt(np.sum((shares * (values - mean)) ** 2) / (1 - np.sum(shares**2)))
    assert batched.batch_error[1, 2] == pytest.approx(error, rel=1e-4)
    assert batched.probe_error is None


@pytest.mark.parametrize("way", ["at once", "sharded", "sharded at once", "loader", "loader sharded", "jit"])
def test_every_way_of_evaluation_gives_the_same(way, batched):
    """To the last bit where the devices run the same program, else to 1e-5 (float32 sums of 22 terms)."""
    sharding = NamedSharding(Mesh(np.array(jax.devices()[:4]), ("points",)), PartitionSpec("points"))
    settings = {
        "at once": {"points_at_once": 4, "batch_size": 8},
        "sharded": {"sharding": sharding, "batch_size": 8},
        "sharded at once": {"sharding": sharding, "points_at_once": 2, "batch_size": 8},
        "loader": {"data": loader},
        "loader sharded": {"data": loader, "sharding": sharding},
        "jit": {"batch_size": 8},
    }[way]
    got = jax.jit(lambda: mlp_slice(**settings))() if way == "jit" else mlp_slice(**settings)
    tolerance = 0 if way == "sharded" else 1e-5
    np.testing.assert_allclose(got.mean, batched.mean, rtol=tolerance)
    np.testing.assert_allclose(got.batch_error, batched.batch_error, rtol=10 * tolerance)


@pytest.mark.parametrize("way", ["plain", "loader"])
def test_a_second_slice_traces_nothing(way):
    """Nor with other parameters, another time or temperature, and another key."""
    traces = []

    def loss(params, batch):
        traces.append(1)
        return mlp(params, batch)

    data = {"plain": {"data": DATA, "batch_size": 8}, "loader": {"data": loader}}[way]
    for number in range(3):
        params = {name: jax.tree.map(jnp.exp, layer) if number else layer for name, layer in PARAMS.items()}
        relaxation = landscape.Relaxation(0.1 + number, 0.2 + number, "heat", num_samples=4)
        landscape.slice(loss, params, DIRECTIONS, AXES, smoothing=relaxation, key=number, **data)
        if not number:
            first = len(traces)
    assert len(traces) == first > 0


@pytest.mark.parametrize("factor", [4.0, 3.7])
def test_filter_normalised_slices_do_not_see_the_scale_of_relu_layers(factor):
    """The same network: exactly so for a power of two. Unnormalised directions see another landscape."""
    first, second = PARAMS["first"], PARAMS["second"]
    rescaled = {
        "first": jax.tree.map(lambda leaf: leaf * factor, first),
        "second": {"kernel": second["kernel"] / factor, "bias": second["bias"]},
    }

    def pictures(params):
        return [
            landscape.slice(
                mlp, params, landscape.random_directions(5, params, normalization=n), AXES, data=DATA
            )
            for n in ("filter", "none")
        ]

    (normalised, raw), (again, other) = pictures(PARAMS), pictures(rescaled)
    np.testing.assert_allclose(again, normalised, rtol=0 if factor == 4 else 1e-4)
    assert np.max(np.abs(other - raw)) > 0.3 * np.ptp(raw)


@pytest.mark.parametrize(("scale", "same"), [("filter", True), ("elementwise", True), ("none", False)])
def test_relaxations_in_units_of_the_filters_do_not_see_it_either(scale, same):
    first, second = PARAMS["first"], PARAMS["second"]
    rescaled = {
        "first": jax.tree.map(lambda leaf: leaf * 4, first),
        "second": second | {"kernel": second["kernel"] / 4},
    }
    relaxation = landscape.Relaxation(0.5, 0.2, "cole_hopf", num_samples=6, scale=scale)

    def relaxed(params):
        directions = landscape.random_directions(5, params)
        return landscape.slice(mlp, params, directions, AXES, data=DATA, smoothing=relaxation, key=KEY).mean

    assert np.array_equal(relaxed(PARAMS), relaxed(rescaled)) == same


def quadratic(dimension):
    """½ xᵀAx − bᵀx with eigenvalues from 0.2 to 2, and a point."""
    basis = np.linalg.qr(np.random.default_rng(dimension).normal(size=(dimension, dimension)))[0]
    A = jnp.asarray(basis @ np.diag(np.linspace(0.2, 2.0, dimension)) @ basis.T, jnp.float32)
    return A, jnp.linspace(-0.5, 1.0, dimension), jnp.linspace(1.0, 0.0, dimension)


def quadratic_loss(params, batch):
    return params @ batch["A"][0] @ params / 2 - batch["b"][0] @ params


@pytest.mark.parametrize("dimension", [2, 6])
@pytest.mark.parametrize("method", ["cole_hopf", "heat"])
def test_sampled_relaxations_of_quadratics(method, dimension):
    """The closed form within 4 standard errors at every point, the bias T/(2 ESS) of the logarithm allowed for."""
    A, b, x = quadratic(dimension)
    time, temperature = 0.4, 1.0
    directions, axes = tuple(jnp.eye(dimension)[:2]), (jnp.linspace(-1.0, 1.0, 3), jnp.array([0.0, 0.5]))
    got = landscape.slice(
        quadratic_loss, x, directions, axes, data={"A": A[None], "b": b[None]}, key=7,
        smoothing=landscape.Relaxation(time, temperature, method, num_samples=2_000),
    )  # fmt: skip
    for i, first in enumerate(axes[0]):
        for j, second in enumerate(axes[1]):
            point = x + first * directions[0] + second * directions[1]
            if method == "heat":
                exact, bias = point @ A @ point / 2 - b @ point + time * temperature * jnp.trace(A) / 2, 0
            else:
                exact = smoothing.gaussian(A, b, point, smoothing_time=time, temperature=temperature).value
                bias = temperature / 2 / got.info["effective_sample_size"][i, j]
            assert got.probe_error[i, j] < 0.1
            assert abs(got.mean[i, j] - exact) < 4 * got.probe_error[i, j] + bias


def linear_loss(params):
    return jnp.array([1.0, -2.0, 0.5]) @ params


@pytest.mark.parametrize("method", ["cole_hopf", "heat"])
def test_every_point_has_the_same_samples(method):
    """For f = a·x differences are exact; the level is a guess, but for the mean of pairs ±ξ."""
    got = landscape.slice(
        linear_loss, jnp.zeros(3), (jnp.ones(3),), (jnp.linspace(-2.0, 2.0, 5),), key=3,
        smoothing=landscape.Relaxation(1.0, 0.5, method, num_samples=6),
    )  # fmt: skip
    np.testing.assert_allclose(np.diff(got.mean), -0.5, atol=5e-6)
    if method == "heat":
        np.testing.assert_allclose(got.mean, [1.0, 0.5, 0.0, -0.5, -1.0], atol=5e-6)
    else:
        assert np.all(got.probe_error > 0.01)


@pytest.mark.parametrize("temperature", [0, 0.3])
def test_the_plane_is_relaxed_as_the_function_restricted_to_it(temperature):
    """Skew quadratic in 4 dimensions, orthogonal directions of lengths 2 and ½: u of its 2×2 restriction.

    Compared √(tT) + t|∇u| and more away from the edges. float32 and a grid that resolves exp(−f/T): 2e-3 of the range.
    """
    A, b, x = quadratic(4)
    directions = (jnp.array([2.0, 0.0, 0.0, 0.0]), jnp.array([0.0, 0.0, 0.3, 0.4]))
    axes = (np.linspace(-3.0, 3.0, 61), np.linspace(-12.0, 12.0, 49))
    got = landscape.slice(
        quadratic_loss, x, directions, axes, data={"A": A[None], "b": b[None]},
        smoothing=landscape.Relaxation(0.6, temperature, "plane"),
    )  # fmt: skip
    frame = jnp.stack([d / jnp.linalg.norm(d) for d in directions])
    reduced, slope = frame @ A @ frame.T, frame @ (b - A @ x)
    level = x @ A @ x / 2 - b @ x
    for i, j in ((30, 24), (20, 30), (40, 16)):
        point = jnp.array([2.0 * axes[0][i], 0.5 * axes[1][j]])
        exact = smoothing.gaussian(reduced, slope, point, smoothing_time=0.6, temperature=temperature)
        assert got[i, j] == pytest.approx(float(exact.value + level), abs=2e-3)


def shifted(params, batch):
    """½|x|² − b·x + c: u moves by −δb·y*, to first order, and by δc."""
    return jnp.mean(jnp.sum(params**2) / 2 - batch["b"] @ params + batch["c"])


@pytest.mark.parametrize("method", ["plane", "heat", "cole_hopf"])
def test_the_error_over_batches_goes_through_the_relaxation(method):
    """Batches of 10 differ in b and c; ρ's mean is y* = (x + t b)/(1 + t), for heat x itself."""
    rng = np.random.default_rng(0)
    data = {
        "b": 0.1 * rng.normal(size=(40, 1)).astype(np.float32),
        "c": 0.1 * rng.normal(size=40).astype(np.float32),
    }
    axis, index = (np.linspace(-6.0, 6.0, 49), 32) if method == "plane" else (np.array([2.0]), 0)
    relaxation = landscape.Relaxation(0.5, 0.4, method, num_samples=2_000)
    got = landscape.slice(
        shifted, jnp.zeros(1), (jnp.ones(1),), (axis,), data=data, batch_size=10, smoothing=relaxation, key=1
    )
    centre = 2.0 if method == "heat" else (2.0 + 0.5 * np.mean(data["b"])) / 1.5
    changes = (data["c"] - data["b"][:, 0] * centre).reshape(4, 10).mean(axis=1)
    # The sampled mean of ρ has an error of √(tT/1.5/1000) ~ 0.012, the b of a batch a standard error of 0.016.
    assert got.batch_error[index] == pytest.approx(float(np.std(changes, ddof=1)) / 2, abs=1e-3)
    assert (got.probe_error is None) == (method == "plane")


def test_flax_trees():
    """Linen's dict and nnx's State: a line from one network to another ends there."""
    model = linen.Dense(2)
    start, end = (model.init(jax.random.key(k), X)["params"] for k in (0, 1))
    loss = lambda params: jnp.mean((model.apply({"params": params}, X) - DATA["y"]) ** 2)
    line = landscape.slice(loss, start, (jax.tree.map(jnp.subtract, end, start),), (np.linspace(0, 1, 3),))
    np.testing.assert_allclose(line[np.array([0, -1])], [loss(start), loss(end)], rtol=1e-5)

    graph, state = nnx.split(nnx.Linear(3, 2, rngs=nnx.Rngs(0)))
    loss = lambda state: jnp.mean((nnx.merge(graph, state)(X) - DATA["y"]) ** 2)
    (direction,) = landscape.random_directions(1, state, 1)
    line = landscape.slice(loss, state, (direction,), (np.array([-1.0, 0.0]),))
    np.testing.assert_allclose(line[1], loss(state), rtol=1e-5)
    assert line[0] != line[1]


def square(params):
    return jnp.sum(params**2)


ORIGIN, EAST, NORTH = jnp.zeros(2), jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0])
SIX = np.linspace(0.0, 1.0, 6)
PLANE = {"smoothing": landscape.Relaxation(1.0, 1.0, "plane")}


@pytest.mark.parametrize(
    ("directions", "coordinates", "settings", "error", "message"),
    [
        (EAST, (SIX,), {}, ValueError, r"directions must be a tuple.*\(direction,\)"),
        ((), (), {}, ValueError, "directions must be a tuple of at least one tree.*got none"),
        (({"a": EAST},), (SIX,), {}, ValueError, r"directions\[0\] must give a tree like params"),
        ((EAST, jnp.ones(3)), (SIX, SIX), {}, ValueError, r"directions\[1\] gave a leaf of shape \(3,\)"),
        ((EAST, ORIGIN), (SIX, SIX), {}, ValueError, r"directions\[1\] must be finite and not zero"),
        ((EAST * np.nan,), (SIX,), {}, ValueError, r"directions\[0\] must be finite"),
        ((EAST,), SIX, {}, ValueError, "coordinates must be a tuple"),
        ((EAST, NORTH), (SIX,), {}, ValueError, r"one 1-D array a direction \(2\), got 1"),
        ((EAST,), (np.zeros((2, 2)),), {}, ValueError, r"coordinates\[0\] must be a 1-D array"),
        ((EAST,), ([],), {}, ValueError, r"coordinates\[0\] must be a 1-D array of at least one"),
        ((EAST,), ([0.0, np.inf],), {}, ValueError, r"coordinates\[0\] must be finite, got inf"),
        ((EAST,), (["a"],), {}, TypeError, r"coordinates\[0\] must hold real numbers"),
        ((EAST,), (SIX,), {"points_at_once": 0}, ValueError, "points_at_once must be at least 1"),
        ((EAST,), (SIX,), {"sharding": "points"}, ValueError, "sharding must be NamedSharding"),
        ((EAST,), (SIX,), {"batch_size": 3}, ValueError, "batch_size must be None without data"),
        ((EAST,), (SIX,), {"smoothing": "heat"}, TypeError, "smoothing must be a landscape.Relaxation"),
        ((EAST,), (SIX,), {"smoothing": landscape.Relaxation(1.0, 1.0)}, ValueError, "key must be given"),
        ((EAST,), (SIX**2,), PLANE, ValueError, r"coordinates\[0\] must be equally spaced"),
        ((EAST,), (SIX[:5],), PLANE, ValueError, r"coordinates\[0\] must have at least 6 points"),
        ((EAST, EAST + NORTH), (SIX, SIX), PLANE, ValueError, r"directions\[1\] must be orthogonal"),
    ],
)  # fmt: skip
def test_bad_input(directions, coordinates, settings, error, message):
    with pytest.raises(error, match=message):
        landscape.slice(square, ORIGIN, directions, coordinates, **settings)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((0.0, 1.0), ValueError, "smoothing_time must be positive"),
        ((1.0, 0.0), ValueError, "temperature must be positive"),
        ((1.0, -1.0, "plane"), ValueError, "temperature must be finite and at least 0"),
        (("1", 1.0), TypeError, "smoothing_time must be a number"),
        ((1.0, 1.0, "langevin"), ValueError, "method must be one of"),
        ((1.0, 1.0, "heat", 5), ValueError, "num_samples must be even"),
        ((1.0, 1.0, "heat", 2), ValueError, "num_samples must be at least 4"),
        ((1.0, 1.0, "heat", 4, "layer"), ValueError, "scale must be one of"),
        ((1.0, 1.0, "plane", 4, "filter"), ValueError, "scale must be 'none'"),
        ((1.0, 1.0, "plane", 4, "none", "zero"), ValueError, "boundary must be one of"),
    ],
)
def test_relaxations_out_of_range(arguments, error, message):
    with pytest.raises(error, match=message):
        landscape.Relaxation(*arguments)


def test_losses_that_are_not_scalars_are_refused():
    with pytest.raises(ValueError, match=r"loss_fn must return a scalar loss, got shape \(2,\)"):
        landscape.slice(lambda params: params**2, ORIGIN, (EAST,), (SIX,))
    with pytest.raises(TypeError, match="loss_fn must be a function"):
        landscape.slice(3.0, ORIGIN, (EAST,), (SIX,))
