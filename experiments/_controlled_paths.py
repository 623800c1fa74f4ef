"""Problems with a control for each, and paths of controlled SGD under it: the parts of csgd_improvement."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxopt_pde
from experiments import _run
from jaxopt_pde import control, models, pde, problems

HORIZON = 1.0


@dataclasses.dataclass(frozen=True)
class Case:
    """One problem and one way to its control."""

    method: str
    dimension: int
    label: str
    loss: Callable[[jax.Array], jax.Array]
    terminal: Callable[[jax.Array], jax.Array]
    start: jax.Array
    temperature: float
    controls: tuple[Callable[..., Any], ...]
    """For each number of steps; one object unless the control depends on it."""
    value: np.ndarray
    """u(x₀, 0) as the method has it, for each number of steps, and its standard error [2, 2]."""
    steps: tuple[int, int]
    paths: int
    gradients: tuple[int, int]
    """Gradients of f that one controlled path takes."""


def known(coarse, fine) -> np.ndarray:
    """Values without a statistical error."""
    return np.array([[float(coarse), 0.0], [float(fine), 0.0]])


def wells(dimension: int):
    """A ring of double wells, f = Σ ¼(xᵢ² − 1)² + xᵢ/10 + ⅛(xᵢ − xᵢ₊₁)², and V = |x + 1|²/(4√d), and x₀."""

    def loss(x):
        return jnp.sum((x**2 - 1) ** 2 / 4 + x / 10 + (x - jnp.roll(x, 1)) ** 2 / 8)

    return loss, lambda x: jnp.sum((x + 1) ** 2) / (4 * dimension**0.5), jnp.full(dimension, 0.8)


def bowls(dimension: int):
    """A convex ring, f = Σ ½xᵢ² + xᵢ⁴/16 + (xᵢ − xᵢ₊₁)²/16, V = f/2 and x₀; A and ℓ of f near ½ for a model of it."""
    loss = lambda x: jnp.sum(x**2 / 2 + x**4 / 16 + (x - jnp.roll(x, 1)) ** 2 / 16)
    curvature = 1 + 3 / 16 + 1 / 4  # of a coordinate alone
    return loss, lambda x: loss(x) / 2, jnp.full(dimension, 0.8), curvature, 0.5 + 1 / 32 - curvature / 2


def on_grid(config, dimension: int, points: int) -> Case:
    """A tilted double well with V = f, and in the plane one in a bent valley with V = ½|x − (−1, 0)|²."""
    well, half_width = problems.double_well(barrier=0.5), 3.0 if dimension == 1 else 2.5
    if dimension == 1:
        loss = terminal = well.loss
    else:
        loss = lambda x: well.loss(x[:1]) + (x[1] - x[0] ** 2 / 2) ** 2
        terminal = lambda x: ((x[0] + 1) ** 2 + x[1] ** 2) / 2
    grid = pde.Grid.uniform(*((side,) * dimension for side in (-half_width, half_width)), (points,) * dimension,
                            boundary="extrapolate")  # fmt: skip
    gradient, start = jax.grad(loss), jnp.array([0.8, 0.3])[:dimension]
    solution = pde.solve_bellman(
        grid.evaluate(terminal), grid, jnp.linspace(0.0, HORIZON, 201),
        drift=lambda x: -gradient(x), temperature=config.temperature,
    ).check()  # fmt: skip
    return Case(
        "grid", dimension, f"grid, d = {dimension}", loss, terminal, start, config.temperature,
        (control.feedback(solution),) * 2, known(*[solution.value(start, 0.0)] * 2),
        config.grid_steps, config.paths * (4 if dimension == 1 else 1), config.grid_steps,
    )  # fmt: skip


def quadratic(config, dimension: int):
    """A indefinite, a Q that does not commute with it, and ℓ in f = ½x'Ax + ℓ·x, V = ½x'Qx; the solution."""
    rng = np.random.default_rng(dimension)

    def rotated(low, high):
        rotation = np.linalg.qr(rng.normal(size=(dimension, dimension)))[0]
        return rotation @ np.diag(np.linspace(low, high, dimension)) @ rotation.T

    A, Q, linear = rotated(-0.3, 1.5), rotated(0.2, 2.0), rng.normal(size=dimension) / 3
    exact = control.linear_quadratic(A, Q, linear=linear, horizon=HORIZON, temperature=config.temperature)
    return A, Q, linear, exact


def by_riccati(config, dimension: int) -> Case:
    """Quadratic f and V."""
    *given, exact = quadratic(config, dimension)
    (A, Q, linear), start = (jnp.asarray(a, jnp.float32) for a in given), jnp.ones(dimension)
    return Case(
        "Riccati", dimension, f"Riccati, d = {dimension}",
        lambda x: x @ A @ x / 2 + linear @ x, lambda x: x @ Q @ x / 2, start, config.temperature,
        (exact.control,) * 2, known(*[exact.value(start, 0.0)] * 2),
        config.steps, config.paths if dimension <= 10 else config.paths // 5, config.steps,
    )  # fmt: skip


def by_path_integral(config, dimension: int, rollouts: int, paths: int, guided: bool) -> Case:
    """A ring of wells; guided, a convex ring with V = f/2, whose variance grows with d."""
    guide = None
    if guided:
        loss, terminal, start, A, linear = bowls(dimension)
        label = f"path integral, guided, d = {dimension}"
        guide = control.linear_quadratic(A, A / 2, linear=linear, terminal_linear=linear / 2, horizon=HORIZON,
                                         temperature=config.temperature).control  # fmt: skip
    else:
        loss, terminal, start = wells(dimension)
        label = f"path integral, d = {dimension}"
    estimators = tuple(
        control.path_integral(
            loss, terminal, horizon=HORIZON, temperature=config.temperature, num_rollouts=rollouts,
            num_steps=steps, guide=guide,
        )
        for steps in config.sampled_steps
    )  # fmt: skip
    values = []
    for steps, estimator in zip(config.sampled_steps, estimators, strict=True):
        key = _run.key_for(config.seed, "value", label, steps)
        many = dataclasses.replace(estimator, num_rollouts=config.value_rollouts)
        values.append(jax.jit(lambda x, k, e=many: e.estimate(x, 0.0, k)[1:3])(start, key))  # no reverse pass
    gradients = tuple(n + n * rollouts * (3 * n + 1) for n in config.sampled_steps)
    return Case(
        "path integral", dimension, label, loss, terminal, start, config.temperature, estimators,
        np.array(values, float), config.sampled_steps, paths, gradients,
    )  # fmt: skip


def by_training(config, dimension: int) -> Case:
    """The ring of wells, by networks trained on the backward equation's residual."""
    loss, terminal, start = wells(dimension)
    model = models.ValueNetwork(terminal, horizon=HORIZON, features=(32,))
    start_variables = model.init(_run.key_for(config.seed, "network", dimension), start, 0.0)

    def trained(steps):
        residual = control.backward_sde_loss(
            model.apply, terminal, loss_fn=loss, start=start, horizon=HORIZON, temperature=config.temperature,
            num_steps=steps, num_paths=64,
        )  # fmt: skip
        variables, _ = control.fit_value_function(
            residual, start_variables, optax.adam(optax.cosine_decay_schedule(0.03, config.updates)),
            num_steps=config.updates, key=_run.key_for(config.seed, "training", dimension, steps),
        )  # fmt: skip
        return variables

    fitted = [trained(steps) for steps in config.sampled_steps]
    return Case(
        "learned", dimension, f"learned, d = {dimension}", loss, terminal, start, config.temperature,
        tuple(control.learned_control(model.apply, variables) for variables in fitted),
        known(*(model.apply(variables, start, 0.0) for variables in fitted)),
        config.sampled_steps, config.paths, config.sampled_steps,
    )  # fmt: skip


def simulate(case: Case, level: int, scales, step_size, num_steps, keys) -> dict[str, jax.Array]:
    """Paths [scale, path] under scale·α, their noise common: V(x(S)), √T∫α·dW, ½∫|α|² and its noise, ...

    α is the method's own, whatever scale of it is applied. Of an estimated one also the mean effective sample size.
    """
    gradient, steering = jax.grad(case.loss), case.controls[level]
    optimiser = lambda alpha, key: jaxopt_pde.controlled_sgd(
        step_size, lambda x, time, key: alpha, horizon=HORIZON, temperature=case.temperature, key=key
    )

    def path(scale, key):
        def step(index, carry):
            x, state, sums = carry
            time, control_key = index * step_size, jax.random.fold_in(jax.random.fold_in(key, index), 1)
            variance, size = 0.0, 0.0
            if hasattr(steering, "estimate"):
                found = steering.estimate(x, time, control_key)
                alpha, variance, size = (
                    found.control,
                    found.control_standard_error**2,
                    found.effective_sample_size,
                )
            else:
                alpha = steering(x, time)
            g = gradient(x)
            updates, state = optimiser(scale * alpha, key).update(g, state, x)
            noise = updates + step_size * (g + scale * alpha)  # √(Th) ξ
            square = step_size / 2 * (alpha @ alpha - variance)
            gains = jnp.array([alpha @ noise, square, step_size / 2 * variance, step_size * size])
            return optax.apply_updates(x, updates), state, sums + gains

        start = (case.start, optimiser(case.start, key).init(case.start), jnp.zeros(4))
        x, _, sums = jax.lax.fori_loop(0, num_steps, step, start)
        return jnp.concatenate([case.terminal(x)[None], sums])

    found = jax.vmap(lambda scale: jax.vmap(lambda key: path(scale, key))(keys))(scales)
    names = ("terminal", "martingale", "energy", "noise_energy", "sample_size")
    return dict(zip(names, jnp.moveaxis(found, -1, 0), strict=True))


def both_sides(paths, scales) -> dict[str, np.ndarray]:
    """Mean and standard error, [2, scale], of each side and what follows; ``paths`` have scales 0, then ``scales``."""
    paths = {name: np.asarray(array, np.float64) for name, array in paths.items()}
    squares = np.asarray(scales)[:, None] ** 2
    without = paths["terminal"] - paths["martingale"]
    spent, shadow = squares * paths["energy"][1:], squares * paths["energy"][:1]
    gain, plain = without[:1] - without[1:], paths["terminal"][:1] - paths["terminal"][1:]
    samples = {
        "improvement": gain,
        "plain_improvement": plain,
        "spent": spent,
        "shadow": shadow,
        "residual": gain - spent - shadow,
        "plain_residual": plain - spent - shadow,
        "slack": gain - spent,
        "cost": without[1:] + spent,
        "noise_energy": squares * (paths["noise_energy"][1:] + paths["noise_energy"][:1]),
        "sample_size": paths["sample_size"][1:],
    }
    count = np.sqrt(without.shape[1])
    return {name: np.stack([a.mean(1), a.std(1, ddof=1) / count]) for name, a in samples.items()}


def squared_controls(config, d: int, scales: np.ndarray, num_steps: int = 400) -> np.ndarray:
    """E∫|α|² ds under scale·α for quadratic f and V, from mean and covariance by Heun's rule [scale]."""
    A, _, b, exact = quadratic(config, d)
    T, h, times = config.temperature, HORIZON / num_steps, jnp.linspace(0, HORIZON, num_steps + 1)
    basis = jnp.concatenate([jnp.zeros((1, d)), jnp.eye(d)])
    columns = np.asarray(jax.jit(jax.vmap(lambda time: exact.control(basis, time)))(times), np.float64)
    r, P = columns[:, 0], np.swapaxes(columns[:, 1:] - columns[:, :1], 1, 2)  # α = Px + r
    k = scales[:, None, None]
    m, C = np.ones((len(scales), d)), np.zeros((len(scales), d, d))

    def rates(i, m, C):
        M = A + k * P[i]
        MC = M @ C
        return -np.einsum("kij,kj->ki", M, m) - b - k[:, :, 0] * r[i], T * np.eye(d) - MC - np.swapaxes(
            MC, 1, 2
        )

    def square(i, m, C):
        return np.sum((m @ P[i] + r[i]) ** 2, axis=1) + np.einsum("ij,kji->k", P[i] @ P[i], C)

    total = 0.0
    for i in range(num_steps):
        here = rates(i, m, C)
        there = rates(i + 1, m + h * here[0], C + h * here[1])
        before = square(i, m, C)
        m, C = (a + h / 2 * (p + q) for a, p, q in zip((m, C), here, there, strict=True))
        total = total + h / 2 * (before + square(i + 1, m, C))
    return total
