"""With the mapped parameters one outer step is the papers' algorithm, written out in NumPy with the same noise."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxopt_pde
from jaxopt_pde import _noise
from jaxopt_pde.smoothing import _kernel

RNG = np.random.default_rng(3)
X = RNG.normal(size=6)
BATCHES = RNG.normal(size=(8, 5, 6))  # [inner step, example, feature]


def gradient(x, batch):
    """∇ of the mean of log cosh(a·x − 1) over the minibatch."""
    return np.tanh(batch @ x - 1) @ batch / len(batch)


def grad_fn(x, step):
    batch = jnp.asarray(BATCHES)[step.step]
    return jnp.tanh(batch @ x - 1) @ batch / len(batch)


def normals(num_steps):
    """The standard normals of the optimiser's first update with key 0, chain 0."""
    key = jax.random.fold_in(jax.random.key(0), 0)
    draw = lambda l: _noise.draw_noise(_kernel.inner_keys(key, l, jnp.int32(0))[0], jnp.zeros(6), "gaussian")
    return np.stack([draw(l) for l in range(num_steps)])


def one_update(tx, x=X):
    x = jnp.asarray(x)
    updates, _ = tx.update(x, tx.init(x), x, grad_fn=grad_fn)
    return np.asarray(optax.apply_updates(x, updates))


@pytest.mark.parametrize("num_steps", [1, 8])
def test_entropy_sgd_of_iclr_2017(num_steps, x64):
    """Algorithm 1 of arXiv:1611.01838, symbols as printed there: γ, η, η', ε, α, L."""
    gamma, eta, eta_prime, epsilon, alpha = 1.7, 0.9, 0.1, 0.3, 0.75
    noise = normals(num_steps)
    x_prime = mu = X
    for step in range(num_steps):
        dx_prime = gradient(x_prime, BATCHES[step]) - gamma * (X - x_prime)
        x_prime = x_prime - eta_prime * dx_prime + np.sqrt(eta_prime) * epsilon * noise[step]
        mu = (1 - alpha) * mu + alpha * x_prime
    expected = X - eta * gamma * (X - mu)
    mapped = {
        "smoothing_time": 1 / gamma,
        "inner_learning_rate": eta_prime,
        "temperature": epsilon**2 / 2,
        "averaging": 1 - alpha,
        "num_steps": num_steps,
        "noise": "gaussian",
    }
    np.testing.assert_allclose(one_update(jaxopt_pde.entropy_sgd(eta, **mapped)), expected, rtol=1e-12)
    # Section 4.3 scales the step by 1/γ: x ← x − η (x − μ), which is h = η/γ.
    scaled = jaxopt_pde.entropy_sgd(eta / gamma, **mapped)
    np.testing.assert_allclose(one_update(scaled), X - eta * (X - mu), rtol=1e-12)


def test_the_published_code_without_its_momentum(x64):
    """Increment ε √(2 η') N(0, I), μ ← 0.75 μ + 0.25 x', x ← x − lr (x − μ), for a scope g."""
    g, learning_rate, eta_prime, epsilon = 0.4, 0.7, 0.1, 0.2
    noise = normals(8)
    x_prime = mu = X
    for step in range(8):
        x_prime = x_prime - eta_prime * (gradient(x_prime, BATCHES[step]) + g * (x_prime - X))
        x_prime = x_prime + epsilon * np.sqrt(2 * eta_prime) * noise[step]
        mu = 0.75 * mu + 0.25 * x_prime
    tx = jaxopt_pde.entropy_sgd(
        learning_rate / g,
        1 / g,
        eta_prime,
        temperature=epsilon**2,
        averaging=0.75,
        num_steps=8,
        noise="gaussian",
    )
    np.testing.assert_allclose(one_update(tx), X - learning_rate * (X - mu), rtol=1e-12)


def test_deep_relaxation(x64):
    """arXiv:1704.04932: inner diffusion at inverse temperature β, uniform average, x ← x − η (x − ⟨y⟩)/γ."""
    gamma, eta, eta_y, beta = 0.8, 0.5, 0.1, 4.0
    noise = normals(8)
    y, visited = X, []
    for step in range(8):
        y = (
            y
            - eta_y * (gradient(y, BATCHES[step]) + (y - X) / gamma)
            + np.sqrt(2 * eta_y / beta) * noise[step]
        )
        visited.append(y)
    tx = jaxopt_pde.entropy_sgd(
        eta, gamma, eta_y, temperature=1 / beta, averaging=None, burn_in=0, num_steps=8, noise="gaussian"
    )
    np.testing.assert_allclose(one_update(tx), X - eta * (X - np.mean(visited, axis=0)) / gamma, rtol=1e-12)


def test_the_published_codes_nesterov_momentum_makes_its_time_ten_times_longer(x64):
    """Its buffer multiplies the loss's force by 1/(1 − 0.9) = 10 and not the pull to x, so the particle settles at the
    prox of 10 f with scope g, to 1e-3: what ours computes with smoothing_time 10/g and no momentum.
    """
    g, eta_prime, x = 1.0, 0.01, np.array([1.5])
    force = lambda y: y**3 - y + 0.2
    y = mu = x
    buffer = np.zeros(1)
    for _ in range(20_000):
        f = force(y)
        buffer = 0.9 * buffer + f
        y = y - eta_prime * (f + 0.9 * buffer + g * (y - x))
        mu = 0.75 * mu + 0.25 * y
    estimate = jaxopt_pde.smoothing.langevin(
        lambda p, step: force(p), jnp.asarray(x), 0, smoothing_time=10 / g, temperature=0.0, step_size=0.01,
        num_steps=20_000, estimator="displacement",
    )  # fmt: skip
    np.testing.assert_allclose(x - (10 / g) * np.asarray(estimate.gradient), mu, atol=1e-3)
    shorter = jaxopt_pde.smoothing.langevin(
        lambda p, step: force(p), jnp.asarray(x), 0, smoothing_time=1 / g, temperature=0.0, step_size=0.01,
        num_steps=20_000, estimator="displacement",
    )  # fmt: skip
    assert np.all(np.abs(x - np.asarray(shorter.gradient) / g - mu) > 0.02)


@pytest.mark.parametrize(
    ("temperature", "t"),
    [
        (0.02, 0.5),
        (0.5, 0.1),
        *(pytest.param(h, t, marks=pytest.mark.slow) for h, t in ((0.02, 0.1), (0.5, 0.5))),
    ],
)
def test_an_outer_step_of_the_smoothing_time_never_increases_u(temperature, t, x64):
    """∇²u ≤ I/t gives u(x − h p) ≤ u − h ∇u·p + h² |p|²/(2t) for every p; u and ∇u by quadrature, p by chains.

    For h = t that is u − t |p|²/2 + t (p − ∇u)·p, a decrease as soon as the estimate errs by less than half of itself.
    """
    loss = lambda y: 0.25 * y**4 - y**2 / 2 + 0.3 * np.cos(5 * y)
    grid = np.linspace(-6, 6, 20_001)

    def u(x):
        """The value and the gradient."""
        exponent = -(loss(grid) + (x - grid) ** 2 / (2 * t)) / temperature
        top = exponent.max()
        weights = np.exp(exponent - top)
        density = weights.sum() * (grid[1] - grid[0]) / np.sqrt(2 * np.pi * t * temperature)
        return -temperature * (top + np.log(density)), np.sum(weights * (x - grid)) / weights.sum() / t

    grad = lambda y, step: y**3 - y - 1.5 * jnp.sin(5 * y)
    for x in (-1.7, -0.4, 0.9, 2.0):
        smoothed = jaxopt_pde.smoothing.langevin(
            grad, jnp.array(x), 1, smoothing_time=t, temperature=temperature, step_size=2e-3,
            num_steps=3000, num_chains=200, burn_in=500,
        )  # fmt: skip
        (value, gradient), p = u(x), float(smoothed.gradient)
        after, _ = u(x - t * p)
        assert after <= value - t * p**2 / 2 + t * (p - gradient) * p + 1e-12
        if abs(p - gradient) < abs(p) / 2:
            assert after < value
        assert abs(p - gradient) < 0.5 * abs(gradient) + 4 * float(smoothed.info["standard_error"])
