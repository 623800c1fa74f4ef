"""Gradient penalties: first-order identities, the two routes against each other, zero gradients, batches."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from jaxopt_pde import robustness

NORMS = (1, 2, math.inf)
DUAL = {1: math.inf, 2: 2, math.inf: 1}
INPUTS, HIDDEN, CLASSES, EXAMPLES = 5, 7, 3, 6


def network(params, x):
    return jnp.tanh(x @ params["first"] + params["bias"]) @ params["second"]


def cross_entropy(params, x, y):
    return -jax.nn.log_softmax(network(params, x))[y]


def make_problem():
    """Params, inputs and labels in the default dtype."""
    keys = jax.random.split(jax.random.key(0), 4)
    params = {
        "first": jax.random.normal(keys[0], (INPUTS, HIDDEN)),
        "bias": jax.random.normal(keys[1], (HIDDEN,)),
        "second": jax.random.normal(keys[2], (HIDDEN, CLASSES)),
    }
    xs = jax.random.normal(keys[3], (EXAMPLES, INPUTS))
    return params, xs, jnp.arange(EXAMPLES) % CLASSES


ROUTES = {
    "exact": {},
    "max": {"reduce": "max"},
    "forward": {"method": "finite_difference"},
    "central": {"method": "finite_difference", "difference": "central"},
}


@jax.jit
def routes(params, xs, ys, step):
    """Value and parameter gradient for every norm and route, as one program."""

    def objective(params, options):
        return robustness.gradient_penalty(functools.partial(cross_entropy, params), **options, step=step)(
            xs, ys
        )

    return {
        route: {norm: jax.value_and_grad(objective)(params, options | {"norm": norm}) for norm in NORMS}
        for route, options in ROUTES.items()
    }


@pytest.fixture
def problem(x64):
    """In float64."""
    return make_problem()


def distance(a, b):
    """Relative, of two trees as vectors."""
    a, b = (jax.flatten_util.ravel_pytree(tree)[0] for tree in (a, b))
    return float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b))


def worst_gain(loss, x, attack_norm, radius):
    """max_{‖a‖_p ≤ radius} loss(x + a) − loss(x) by SLSQP on a = radius·u, started from four points."""
    value, gradient = jax.jit(jax.value_and_grad(loss))(x)[0], jax.jit(jax.value_and_grad(loss))

    def negated(u):
        gain, slope = gradient(x + radius * u[: x.size])
        return -(float(gain) - float(value)) / radius, -np.r_[slope, np.zeros(u.size - x.size)]

    n, starts = x.size, np.random.default_rng(0).normal(size=(4, x.size)) / 10
    if attack_norm == 2:
        ball = {"type": "ineq", "fun": lambda u: 1 - u @ u, "jac": lambda u: -2 * u}
        runs = [
            scipy.optimize.minimize(negated, s, jac=True, method="SLSQP", constraints=[ball]) for s in starts
        ]
    elif math.isinf(attack_norm):
        runs = [
            scipy.optimize.minimize(negated, s, jac=True, bounds=[(-1, 1)] * n, method="SLSQP")
            for s in starts
        ]
    else:  # u = a − b with a, b ≥ 0, Σ a + b ≤ 1
        split = lambda w: (lambda v, d: (v, np.r_[d[:n], -d[:n]]))(*negated(w[:n] - w[n:]))
        simplex = {"type": "ineq", "fun": lambda w: 1 - w.sum(), "jac": lambda w: -np.ones(2 * n)}
        runs = [
            scipy.optimize.minimize(
                split,
                abs(np.r_[s, s]) / 4,
                jac=True,
                bounds=[(0, 1)] * 2 * n,
                method="SLSQP",
                constraints=[simplex],
            )
            for s in starts
        ]
    return -radius * min(run.fun for run in runs)


@pytest.mark.parametrize("norm", NORMS)
def test_attacks_gain_the_dual_norm_to_first_order(problem, norm):
    """(max_{‖a‖_p ≤ ε} ℓ(x + a) − ℓ(x) − ε‖∇ℓ‖_q)/ε² is the same at ε = 1e-2, 1e-3: pair (p, q) and order."""
    params, xs, ys = problem
    x, y = xs[0], ys[0]
    loss = lambda x: cross_entropy(params, x, y)
    slope = robustness.gradient_penalty(lambda x, y: cross_entropy(params, x, y), norm=norm)(xs[:1], ys[:1])
    gaps = [worst_gain(loss, x, DUAL[norm], radius) - radius * float(slope) for radius in (1e-2, 1e-3)]
    # The next term is O(ε³): between ε = 1e-2 and 1e-3 the quotient moves by about 1e-2 of a third derivative.
    assert gaps[0] / 1e-4 == pytest.approx(gaps[1] / 1e-6, rel=0.2)


def test_the_expansion_underestimates_a_convex_loss(x64):
    """Logistic loss of a linear model: exactly ℓ(margin − ε‖w‖₁) against the tangent, and never below it."""
    w, x = jnp.array([2.0, -1.5, 1.0]), jnp.array([-0.2, 0.1, 0.1])
    loss = lambda x, y: jax.nn.softplus(-y * (w @ x))
    tangent = loss(x, 1.0) + 0.3 * robustness.j1(loss)(x[None], jnp.ones(1))
    exact = jax.nn.softplus(-(w @ x) + 0.3 * jnp.abs(w).sum())
    assert float(loss(x - 0.3 * jnp.sign(w), 1.0)) == pytest.approx(float(exact), rel=1e-14)
    assert tangent < exact - 0.05


def test_finite_differences_converge_to_the_exact_route(problem):
    """In value and parameter gradient: error ratio 10 for forward, 100 for central, when h falls tenfold."""
    coarse, fine = (routes(*problem, h) for h in (1e-3, 1e-4))
    for norm in NORMS:
        exact = fine["exact"][norm]
        for route, ratio in (("forward", 10), ("central", 100)):
            both = coarse[route][norm], fine[route][norm]
            values = [abs(float(value - exact[0])) for value, _ in both]
            gradients = [distance(gradient, exact[1]) for _, gradient in both]
            # The next order of h, a part in 10 of the first at the larger step, is all that bends the ratio; rounding,
            # eps/h, is 1e-12 against errors of 1e-9 and more.
            assert values[0] / values[1] == pytest.approx(ratio, rel=0.1)
            assert gradients[0] / gradients[1] == pytest.approx(ratio, rel=0.1)
            assert gradients[1] < 1e-2


def test_exact_parameter_gradient_against_differences_in_the_parameters(problem):
    """d/dθ of the written-out penalty along a direction by central differences, for every norm and reduction."""
    params, xs, ys = problem
    along = jax.tree.map(
        lambda leaf: jnp.cos(jnp.arange(leaf.size, dtype=leaf.dtype)).reshape(leaf.shape), params
    )
    moved = lambda h: jax.tree.map(lambda p, d: p + h * d, params, along)

    @jax.jit
    def written_out(p):
        gradients = jax.vmap(jax.grad(cross_entropy, argnums=1), (None, 0, 0))(p, xs, ys)
        norms = jnp.stack([jnp.linalg.norm(gradients, norm, axis=1) for norm in NORMS])
        return norms.mean(1), norms.max(1)

    h = 1e-5
    slopes = jax.tree.map(lambda a, b: (a - b) / (2 * h), written_out(moved(h)), written_out(moved(-h)))
    got = routes(params, xs, ys, 1e-3)
    for route, slope, value in zip(("exact", "max"), slopes, written_out(params), strict=True):
        for i, norm in enumerate(NORMS):
            penalty, gradient = got[route][norm]
            inner = sum(jnp.vdot(a, b) for a, b in zip(*map(jax.tree.leaves, (gradient, along)), strict=True))
            assert float(penalty) == pytest.approx(float(value[i]), rel=1e-13)
            # h² truncation and eps/h rounding are both near 1e-10.
            assert float(inner) == pytest.approx(float(slope[i]), rel=1e-7, abs=1e-8)


@pytest.mark.slow
def test_float32_differences_at_the_recommended_step():
    """The docstring's number: a parameter gradient within 4e-3 at h = 1e-3; rounding spoils 1e-5, curvature 1e-1."""
    params, xs, ys = make_problem()
    at = {h: routes(params, xs, ys, jnp.float32(h)) for h in (1e-1, 1e-3, 1e-5)}
    error = {h: distance(got["forward"][2][1], got["exact"][2][1]) for h, got in at.items()}
    assert error[1e-3] < 4e-3
    assert min(error[1e-1], error[1e-5]) > 3 * error[1e-3]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("method", ["exact", "finite_difference"])
def test_a_zero_gradient_gives_zero_and_no_nan(norm, method):
    """ℓ = w·relu(x): at x < 0 the input gradient and everything behind it vanish; beside a steep example too."""

    def objective(w, xs):
        penalty = robustness.gradient_penalty(lambda x, y: w @ jax.nn.relu(x), norm=norm, method=method)
        return penalty(xs, jnp.zeros(len(xs)))

    flat = -jnp.ones((2, 3))
    w = jnp.array([1.0, 2.0, 3.0])
    both = jax.jit(jax.value_and_grad(objective, argnums=(0, 1)))
    value, gradients = both(w, flat)
    assert value == 0
    assert all(not leaf.any() for leaf in gradients)
    value, gradients = both(w, flat.at[0].set(1.0))
    assert float(value) == pytest.approx(float(jnp.linalg.norm(w, norm)) / 2, rel=1e-3)
    assert all(jnp.isfinite(leaf).all() for leaf in gradients)


def test_tiny_and_huge_gradients_survive_squaring_and_nan_is_not_hidden():
    linear = lambda w: robustness.j2(lambda x, y: w @ x)(jnp.ones((1, 2)), jnp.ones(1))
    for scale in (1e-30, 1e30):
        value, gradient = jax.value_and_grad(linear)(scale * jnp.array([3.0, 4.0]))
        np.testing.assert_allclose(value, 5 * scale, rtol=1e-6)
        np.testing.assert_allclose(gradient, [0.6, 0.8], rtol=1e-6)
    assert jnp.isnan(linear(jnp.array([jnp.nan, 1.0])))


def test_batches_split_join_and_permute(problem):
    """The mean of the halves' means, the maximum of the halves' maxima; order, form and jit change nothing."""
    params, xs, ys = problem
    loss_fn = functools.partial(cross_entropy, params)
    penalty = lambda route, **options: robustness.gradient_penalty(
        options.pop("loss", loss_fn), **ROUTES[route], **options, step=1e-6
    )

    @jax.jit
    def ways(xs, ys):
        def one(route, join):
            halves = [penalty(route)(xs[part], ys[part]) for part in (slice(0, 3), slice(3, 6))]
            return jnp.stack(
                [
                    penalty(route)(xs, ys),
                    join(jnp.stack(halves)),
                    penalty(route)(xs[::-1], ys[::-1]),
                    penalty(route, loss=jax.vmap(loss_fn), batched=True)(xs, ys),
                    jax.vmap(penalty(route))(xs[None], ys[None])[0],
                ]
            )

        return {
            "exact": one("exact", jnp.mean),
            "max": one("max", jnp.max),
            "forward": one("forward", jnp.mean),
        }

    for route, values in ways(xs, ys).items():
        # A quotient's own rounding is eps·|ℓ|/h.
        np.testing.assert_allclose(values, values[0], rtol=1e-8 if route == "forward" else 1e-12)
    np.testing.assert_allclose(penalty("exact")(xs, ys), ways(xs, ys)["exact"][0], rtol=1e-12)


def test_the_maximum_is_differentiated_at_one_example(x64):
    """Two examples tie: the derivative is that of the first, ∂|3 w₀| = 3, not half of each."""
    penalty = lambda w: robustness.two_lip(lambda x, y: 3 * (w[y] * x[0]))(jnp.ones((2, 1)), jnp.arange(2))
    np.testing.assert_allclose(jax.grad(penalty)(jnp.ones(2)), [3.0, 0.0])


def test_named_members_and_the_lower_bound(problem):
    params, xs, ys = problem
    loss_fn = functools.partial(cross_entropy, params)

    @jax.jit
    def numbers(xs, ys):
        gradients = jax.vmap(jax.grad(loss_fn))(xs, ys)
        norms = [jnp.linalg.norm(gradients, norm, axis=1) for norm in NORMS]
        largest = norms[1].max()
        expected = [norms[0].mean(), norms[1].mean(), largest, *(norm.max() for norm in norms), 0.0, 0.25]
        named = (robustness.j1, robustness.j2, robustness.two_lip)
        bounds = [robustness.largest_gradient(loss_fn, xs, ys, norm=norm, chunk_size=4) for norm in NORMS]
        excess = [robustness.lipschitz_excess(loss_fn, largest + shift)(xs, ys) for shift in (0.25, -0.25)]
        return [term(loss_fn)(xs, ys) for term in named] + bounds + excess, expected

    np.testing.assert_allclose(*numbers(xs, ys), rtol=1e-12)


def test_the_excess_has_the_gradient_of_the_largest_where_it_exceeds():
    """The model w·x² at x = 1, 2 has slopes 2|w|, 4|w|: excess over 6 is 4|w| − 6, of derivative 4 or 0."""
    excess = lambda w: robustness.lipschitz_excess(lambda x, y: w * x[0] ** 2, 6.0)(
        jnp.array([[1.0], [2.0]]), jnp.zeros(2)
    )
    np.testing.assert_allclose(
        jax.vmap(jax.value_and_grad(excess))(jnp.array([2.0, 1.0])), [[2.0, 0.0], [4.0, 0.0]]
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": 3}, "norm must be one of 1, 2, inf, got 3"),
        ({"reduce": "sum"}, "reduce must be one of 'mean', 'max'"),
        ({"method": "forward"}, "method must be one of 'exact', 'finite_difference'"),
        ({"difference": "backward"}, "difference must be one of"),
        ({"step": 0.0}, "step must be positive"),
    ],
)
def test_bad_settings_name_the_choices(options, message):
    with pytest.raises(ValueError, match=message):
        robustness.gradient_penalty(lambda x, y: x.sum(), **options)


def test_bad_batches():
    penalty = robustness.j2(lambda x, y: x.sum())
    with pytest.raises(ValueError, match=r"xs must have shape \[n ≥ 1"):
        penalty(jnp.zeros((0, 2)), jnp.zeros(0))
    with pytest.raises(ValueError, match="as many examples as xs, 2"):
        penalty(jnp.zeros((2, 2)), jnp.zeros(3))
    with pytest.raises(ValueError, match="loss_fn must return a scalar"):
        robustness.j2(lambda x, y: x)(jnp.zeros((2, 2)), jnp.zeros(2))
    with pytest.raises(ValueError, match=r"losses \[2\] if batched"):
        robustness.gradient_penalty(lambda x, y: x, batched=True)(jnp.zeros((2, 2)), jnp.zeros(2))
    with pytest.raises(TypeError, match="xs has dtype int32"):
        penalty(jnp.zeros((2, 2), jnp.int32), jnp.zeros(2))
    with pytest.raises(ValueError, match="lipschitz_bound must be finite and at least 0"):
        robustness.lipschitz_excess(lambda x, y: x.sum(), -1.0)
