"""What a step of a path-integral rollout costs over a plain vmapped step of the SGD diffusion.

    python benchmarks/control.py [--repetitions N] [--json PATH]

4,096 rollouts of 50 Euler steps in 100 dimensions, one `jit` each, interleaved in one process; ratios are taken round
by round. The unit is a plain scan of vmapped steps x ← x − h ∇f(x) + √(hT) ξ with as many Gaussians. Then

* forward: the rollouts of `control.path_integral` with their exponents and log-sum-exp, the value alone;
* with the adjoint: `control.path_integral(...).estimate`, value and control, which runs each step again in reverse;
* guided: the same along a linear feedback, with its Girsanov terms.

Two losses: a quadratic, where the noise is most of a step, and a network of 101 parameters on 32 examples. XLA's own
count of operations for a gradient and for its reverse pass says what an adjoint step is in gradients; the noise is not
in.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import paired

from jaxopt_pde import control
from jaxopt_pde.control import _rollouts

ROLLOUTS, STEPS, HORIZON, TEMPERATURE = 4096, 50, 1.0, 0.1
QUADRATIC, NETWORK = "quadratic, d = 100", "network, d = 101"


def losses() -> dict[str, tuple[Callable[[jax.Array], jax.Array], int]]:
    """Both losses as functions of one vector, and its length."""
    curvature = jnp.linspace(0.1, 2.0, 100)
    inputs = jax.random.normal(jax.random.key(0), (32, 8))
    labels = jnp.sin(inputs[:, 0]) * inputs[:, 1]

    def network(x):
        weights, biases, last = x[:80].reshape(8, 10), x[80:90], x[90:]
        outputs = jnp.tanh(inputs @ weights + biases) @ last[:10] + last[10]
        return jnp.mean((outputs - labels) ** 2) / 2

    return {QUADRATIC: (lambda x: jnp.sum(curvature * x**2) / 2, 100), NETWORK: (network, 101)}


def plain(loss) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """The unit: the same steps and noise as any user would write them, with the loss at the end."""
    step_size = HORIZON / STEPS

    def run(x, key):
        def step(positions, number):
            # Keys as in the rollouts, one for each of them and each step.
            noise_key = jax.random.split(jax.random.fold_in(key, number), 3)[0]
            keys = jax.vmap(functools.partial(jax.random.fold_in, noise_key))(jnp.arange(ROLLOUTS))
            move = lambda y, k: (
                y
                - step_size * jax.grad(loss)(y)
                + (step_size * TEMPERATURE) ** 0.5 * jax.random.normal(k, y.shape)
            )
            return jax.vmap(move)(positions, keys), None

        positions, _ = jax.lax.scan(step, jnp.broadcast_to(x, (ROLLOUTS, *x.shape)), jnp.arange(STEPS))
        return jax.vmap(loss)(positions)

    return run


def forward(loss, guide=None) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """The value without its gradient: the library's rollouts and a log-sum-exp."""
    numbers = (jnp.asarray(a, jnp.float32) for a in (1.0, TEMPERATURE, 0.0, HORIZON / STEPS))
    dynamics = _rollouts.Dynamics(lambda y, step: jax.grad(loss)(y), loss, guide, *numbers, STEPS, None)

    def run(x, key):
        rollout = functools.partial(_rollouts.rollout, dynamics, x, key, x)
        exponents = jax.vmap(rollout)(jnp.arange(ROLLOUTS, dtype=jnp.int32))
        return -TEMPERATURE * (jax.nn.logsumexp(-exponents / TEMPERATURE) - jnp.log(ROLLOUTS))

    return run


def rows(loss) -> dict[str, Callable[[jax.Array, jax.Array], Any]]:
    """What is timed for a loss; the first is the unit."""
    settings = {
        "horizon": HORIZON,
        "temperature": TEMPERATURE,
        "num_rollouts": ROLLOUTS,
        "num_steps": STEPS,
    }
    guide = lambda x, time, key=None: 0.1 * x

    def estimate(guide, x, key):
        return control.path_integral(loss, loss, guide=guide, **settings).estimate(x, 0.0, key)

    return {
        "plain vmapped steps": plain(loss),
        "path_integral, forward": forward(loss),
        "path_integral, forward, guided": forward(loss, guide),
        "path_integral, with the adjoint": functools.partial(estimate, None),
        "path_integral, with the adjoint, guided": functools.partial(estimate, guide),
    }


def gradients_in_an_adjoint_step(loss, dimension: int) -> float:
    """Operations of a Hessian-vector product over those of a gradient, as XLA counts them."""
    x = jnp.ones(dimension)
    gradient = jax.grad(loss)
    product = lambda x, v: jax.vjp(gradient, x)[1](v)[0]
    count = lambda f, *a: jax.jit(f).lower(*a).compile().cost_analysis()
    operations = lambda analysis: analysis["flops"] + analysis.get("transcendentals", 0.0)
    return operations(count(product, x, x)) / operations(count(gradient, x))


def measure(name: str, loss, dimension: int, repetitions: int) -> list[dict[str, Any]]:
    """Milliseconds a step of all rollouts, and the ratio to the unit, for wall and CPU time."""
    x, key = jnp.full(dimension, 0.5), jax.random.key(1)

    def timed(run):
        compiled = jax.jit(run).lower(x, key).compile()
        return lambda: jax.block_until_ready(compiled(x, key))

    seconds = paired.interleave({row: timed(run) for row, run in rows(loss).items()}, repetitions)
    unit = next(iter(seconds.values())) / STEPS
    return [
        {"loss": name, "row": row} | paired.ratios(values / STEPS, unit) for row, values in seconds.items()
    ]


def main() -> None:
    """Times, prints, writes."""
    arguments = paired.parser(__doc__, 9).parse_args()
    where, results, adjoint = paired.here(("jax",)), [], {}
    for name, (loss, dimension) in losses().items():
        measured = measure(name, loss, dimension, arguments.repetitions)
        adjoint[name] = gradients_in_an_adjoint_step(loss, dimension)
        title = (
            f"{name}: a step of {ROLLOUTS} rollouts, and its ratio to the first row: median \\[least, greatest]; "
            f"an adjoint step counts {adjoint[name]:.2f} gradients"
        )
        paired.print_rows(title, "", measured, where)
        results += measured
    paired.write(arguments.json, where, results, gradients_in_an_adjoint_step=adjoint)


if __name__ == "__main__":
    main()
