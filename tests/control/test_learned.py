"""Learned value functions against the closed form for quadratic f and V."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxopt_pde
from jaxopt_pde import control
from jaxopt_pde.models import ValueNetwork
from tests.riccati import LinearQuadratic

TEMPERATURE = 0.2


def problem(dimension, num_steps=20):
    """Full matrices that do not commute, linear terms, horizon 1."""
    rng = np.random.default_rng(0)

    def symmetric(*spectrum):
        rotation = np.linalg.qr(rng.normal(size=(dimension, dimension)))[0]
        return rotation @ np.diag(np.linspace(*spectrum, dimension)) @ rotation.T

    A, Q = symmetric(0.2, 1.5), symmetric(0.2, 1.2)
    b, q = 0.3 * rng.normal(size=dimension), 0.5 * rng.normal(size=dimension)
    return LinearQuadratic(A, Q, horizon=1.0, temperature=TEMPERATURE, num_steps=num_steps, b=b, q=q)


def backward_loss(exact, value_fn, num_paths):
    return control.backward_sde_loss(
        value_fn,
        exact.terminal,
        loss_fn=exact.loss,
        start=lambda key: jax.random.normal(key, (len(exact.A),)),
        horizon=1.0,
        temperature=TEMPERATURE,
        num_steps=exact.num_steps,
        num_paths=num_paths,
    )


def relative_error(exact, alpha):
    """√(E∫|α − α*|² ds / E∫|α*|² ds) along 200 optimally controlled paths."""
    h, dimension = exact.step_size, len(exact.A)

    def path(key):
        def step(x, index):
            best = exact.control(x, index * h)
            noise = jax.random.normal(jax.random.fold_in(key, index), x.shape)
            later = x - h * (jax.grad(exact.loss)(x) + best) + np.sqrt(TEMPERATURE * h) * noise
            return later, (jnp.sum((alpha(x, index * h) - best) ** 2), jnp.sum(best**2))

        start = jax.random.normal(jax.random.fold_in(key, exact.num_steps), (dimension,))
        return jax.lax.scan(step, start, jnp.arange(exact.num_steps))[1]

    error, size = jax.jit(jax.vmap(path))(jax.random.split(jax.random.key(9), 200))
    return float(jnp.sqrt(error.mean() / size.mean()))


def test_the_loss_vanishes_with_h_at_the_true_value_function_only():
    """The Euler sums of u leave c₁h (their noise) + c₂h² (their bias), so halving h at least halves the loss."""

    def losses(num_steps):
        exact = problem(10, num_steps)
        loss = backward_loss(exact, lambda scale, x, s: scale * exact.value(x, s), 500)
        return jax.jit(jax.vmap(loss, (0, None)))(jnp.array([1.0, 0.5, 2.0]), jax.random.key(0))

    coarse, fine = losses(20), losses(40)
    # Means over 500 paths of squares that spread about as much as their mean: 5 % each, 7 % of the ratio, twice that.
    assert float(coarse[0] / fine[0]) > 2 * (1 - 0.15)
    assert float(jnp.min(fine[1:])) > 50 * fine[0]


@pytest.mark.parametrize(
    ("dimension", "num_updates", "num_paths", "allowed"),
    [(10, 600, 64, 0.05), pytest.param(50, 1200, 256, 0.1, marks=pytest.mark.slow)],
)
def test_training_reaches_the_riccati_control(dimension, num_updates, num_paths, allowed):
    """From the control ∇V, whose error is above 0.3; what is left at d = 10 is mostly O(h) and the degree in s."""
    exact = problem(dimension)
    model = ValueNetwork(exact.terminal, horizon=1.0, features=(16,) if dimension == 10 else ())
    variables = model.init(jax.random.key(0), jnp.zeros(dimension), 0.0)
    assert relative_error(exact, control.learned_control(model.apply, variables)) > 0.3
    fitted, losses = control.fit_value_function(
        backward_loss(exact, model.apply, num_paths),
        variables,
        optax.adam(optax.cosine_decay_schedule(0.1, num_updates)),
        num_steps=num_updates,
        key=1,
    )
    assert float(losses[-20:].mean()) < 0.05 * float(losses[0])
    assert relative_error(exact, control.learned_control(model.apply, fitted)) < allowed


def test_the_network_is_exact_at_the_horizon_and_starts_from_the_terminal_gradient():
    terminal = lambda x: jnp.sum(jnp.cos(x))
    model, x = ValueNetwork(terminal, horizon=2.0, features=(8,)), jnp.linspace(-1, 1, 4)
    variables = model.init(jax.random.key(0), x, 0.0)
    alpha = control.learned_control(model.apply, variables, horizon=2.0, control_cost=2.0)
    np.testing.assert_allclose(alpha(x, 0.5), -jnp.sin(x) / 2, rtol=1e-6)
    np.testing.assert_allclose(alpha(x, 2.0), -jnp.sin(x) / 2, rtol=1e-6)  # ∇V/c, as of every other kind
    np.testing.assert_array_equal(alpha(x, 2.01), 0)
    variables = jax.tree.map(lambda v: v + 0.3, variables)
    assert model.apply(variables, x, 2.0) == terminal(x)
    assert abs(model.apply(variables, x, 1.9) - terminal(x)) > 1e-2
    tx = jaxopt_pde.controlled_sgd(0.1, control.learned_control(model.apply, variables), horizon=2.0)
    updates, _ = tx.update(jnp.zeros(4), tx.init(x), x)
    np.testing.assert_allclose(updates, -0.1 * jax.grad(model.apply, argnums=1)(variables, x, 0.0), rtol=1e-5)


def test_bad_input_is_named():
    good = {"start": jnp.ones(2), "horizon": 1.0, "temperature": 0.1, "num_steps": 2, "num_paths": 2}
    square = lambda x: jnp.sum(x**2)
    value = lambda v, x, s: v * square(x)

    def loss(value_fn=value, terminal_fn=square, **changes):
        return control.backward_sde_loss(value_fn, terminal_fn, **{"loss_fn": square, **good, **changes})

    for argument, number in [
        ("horizon", 0.0),
        ("temperature", -1.0),
        ("num_steps", 0),
        ("control_cost", 0.0),
    ]:
        with pytest.raises(ValueError, match=f"{argument} must be.*{number}"):
            loss(**{argument: number})
    with pytest.raises(ValueError, match=r"temperature must be positive, got 0: without noise"):
        loss(temperature=0)
    with pytest.raises(ValueError, match="needs loss_fn or grad_fn, and not both"):
        loss(loss_fn=None)
    for name in ("value_fn", "terminal_fn"):
        with pytest.raises(TypeError, match=f"{name} must be a function, got 3.0"):
            loss(**{name: 3.0})
    for changes, message in [
        ({"value_fn": lambda v, x, s: x}, "value_fn must return a scalar"),
        ({"terminal_fn": lambda x: x}, "terminal_fn must return a scalar"),
        ({"loss_fn": lambda x: x}, "loss_fn must return a scalar"),
        ({"start": jnp.ones((2, 2))}, r"start must be one point \[d\]"),
    ]:
        with pytest.raises(ValueError, match=message):
            loss(**changes)(1.0, jax.random.key(0))
    for changes, message in [({"features": (0,)}, r"features\[0\]"), ({"horizon": 0.0}, "horizon")]:
        with pytest.raises(ValueError, match=message):
            ValueNetwork(square, **{"horizon": 1.0, **changes})
