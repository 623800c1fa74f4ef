"""Error of the estimators of ∇u at equal cost: 400 gradients split into chains and steps, on a quadratic.

    python benchmarks/estimator_error.py [--repeats N] [--batch-noise C]

f = ½ Σ λᵢ yᵢ² with 50 eigenvalues from 0.02 to 10, evenly spaced in their logarithm; t = 1, T = 1/50, ε = 0.1, half of
each chain burnt in, all coordinates of x at 1/4. Printed is the relative root-mean-square error of ∇u against the
closed form, ± two standard errors, over repeats with seeds 100, 101, ...
"""

import argparse
import sys

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
import rich.table

from jaxopt_pde.smoothing import langevin

EIGENVALUES = np.geomspace(0.02, 10, 50)
POSITION = 0.25 * np.ones(50)
BUDGET = ((1, 400), (4, 100), (10, 40), (20, 20), (40, 10), (100, 4))
COLUMNS = {
    "displacement": {"estimator": "displacement"},
    "gradient": {"estimator": "gradient"},
    "control variate": {"estimator": "control_variate"},
    "…, trace known": {"estimator": "control_variate", "curvature": float(EIGENVALUES.mean())},
    "displacement, averaging 0.75": {"estimator": "displacement", "averaging": 0.75},
}


def relative_errors(
    num_chains: int, num_steps: int, repeats: int, batch_noise: float, options: dict
) -> np.ndarray:
    """|∇̂u − ∇u|²/|∇u|² of every repeat."""
    eigenvalues, x = jnp.asarray(EIGENVALUES), jnp.asarray(POSITION)
    exact = EIGENVALUES * POSITION / (1 + EIGENVALUES)

    @jax.jit
    @jax.vmap
    def run(key):
        def grad_fn(y, step):
            gradient = eigenvalues * y
            if batch_noise:
                gradient += jnp.sqrt(batch_noise) * jax.random.normal(step.key, y.shape)
            return gradient

        settings = {"smoothing_time": 1.0, "temperature": 1 / 50, "step_size": 0.1}
        return langevin(
            grad_fn, x, key, num_steps=num_steps, num_chains=num_chains, **settings, **options
        ).gradient

    estimates = np.asarray(run(jax.vmap(jax.random.key)(jnp.arange(100, 100 + repeats))))
    return np.sum((estimates - exact) ** 2, axis=1) / np.sum(exact**2)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=200, help="(default %(default)s)")
    parser.add_argument(
        "--batch-noise", type=float, default=0.0, help="variance of a minibatch gradient's coordinates"
    )
    arguments = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    table = rich.table.Table(title=f"relative RMSE ± 2 s.e., {arguments.repeats} repeats")
    for heading in ("K × L", *COLUMNS):
        table.add_column(heading, justify="right")
    for num_chains, num_steps in BUDGET:
        cells = []
        for options in COLUMNS.values():
            errors = relative_errors(num_chains, num_steps, arguments.repeats, arguments.batch_noise, options)
            rmse = np.sqrt(errors.mean())
            cells.append(
                f"{rmse:.3f} ± {errors.std(ddof=1) / np.sqrt(len(errors)) / rmse:.3f}"
            )  # 2 · se/(2 rmse)
        table.add_row(f"{num_chains} × {num_steps}", *cells)
    rich.console.Console(width=None if sys.stdout.isatty() else 120).print(table)


if __name__ == "__main__":
    main()
