"""What a gradient costs inside Entropy-SGD, over what it costs inside plain SGD with Nesterov momentum.

    python benchmarks/optimizer_overhead.py [--network mlp|lenet] [--repetitions N] [--json PATH]

Every row runs the same number of gradients of the same network at batch 128, minibatches drawn on the device,
in one compiled `lax.scan`; ratios are taken round by round, interleaved in one process. `state` is the
optimiser's persistent state in units of the parameters; SGD's own momentum is 1. The rows:

* SGD in a scan (the unit), and with one dispatch a step;
* Entropy-SGD with one chain, no noise, Rademacher and Gaussian noise, and the control variate;
* the stepwise form;
* K chains: together, one after another (`chain_batch_size=1`), and together with a shared minibatch.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import paired

import jaxopt_pde
from jaxopt_pde.models import MLP, LeNet

BATCH_SIZE, NUM_IMAGES, NUM_STEPS = 128, 10_000, 20
OUTER = {"momentum": 0.9, "nesterov": True}


class Problem(NamedTuple):
    """A network's gradient and where to start: ``gradient(params, data, key)`` draws its own minibatch."""

    params: Any
    gradient: Callable[[Any, Any, jax.Array], Any]
    data: tuple[jax.Array, jax.Array]
    gradients: int


def make_problem(name: str) -> Problem:
    """The MLP of 79,510 parameters or LeNet of 132,220, on random images (the time does not depend on them)."""
    model, gradients = {"mlp": (MLP((100,)), 400), "lenet": (LeNet(), 20)}[name]
    images = jax.random.normal(jax.random.key(0), (NUM_IMAGES, 28, 28, 1))
    labels = jax.random.randint(jax.random.key(1), (NUM_IMAGES,), 0, 10)
    variables = jax.jit(model.init, static_argnames="train")(jax.random.key(2), images[:1], train=False)
    statistics = {k: v for k, v in variables.items() if k != "params"}

    def gradient(params, data, key):
        def loss(params, images, labels):
            logits, _ = model.apply(
                {"params": params, **statistics},
                images,
                train=True,
                rngs={"dropout": key},
                mutable=["batch_stats"],
            )
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        chosen = jax.random.randint(key, (BATCH_SIZE,), 0, NUM_IMAGES)
        return jax.grad(loss)(params, data[0][chosen], data[1][chosen])

    return Problem(variables["params"], gradient, (images, labels), gradients)


def one_gradient_loop(problem: Problem, tx, gradients: int) -> tuple[paired.Run, int]:
    """A scan with one gradient an update."""

    @jax.jit
    def run(params, state, data):
        def step(carry, key):
            params, state = carry
            updates, state = tx.update(problem.gradient(params, data, key), state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, state), jax.random.split(jax.random.key(3), gradients))[0]

    state = tx.init(problem.params)
    return lambda: jax.block_until_ready(run(problem.params, state, problem.data)), gradients


def dispatched_loop(problem: Problem, tx, gradients: int) -> tuple[paired.Run, int]:
    """The same loop in Python: one call of a compiled, donating step for each gradient."""

    def step(params, state, data, key):
        updates, state = tx.update(problem.gradient(params, data, key), state, params)
        return optax.apply_updates(params, updates), state

    step = jax.jit(step, donate_argnums=(0, 1))
    keys = list(jax.random.split(jax.random.key(3), gradients))

    def run():
        params = jax.tree.map(jnp.copy, problem.params)
        state = tx.init(params)
        for key in keys:
            params, state = step(params, state, problem.data, key)
        jax.block_until_ready(params)

    return run, gradients


def entropy_loop(
    problem: Problem, tx, gradients: int, *, num_chains=1, shared=False
) -> tuple[paired.Run, int]:
    """A scan of outer steps, each of ``NUM_STEPS · num_chains`` gradients."""
    updates = max(gradients // (NUM_STEPS * num_chains), 1)

    @jax.jit
    def run(params, state, data):
        def outer_step(carry, key):
            params, state = carry

            def grad_fn(p, s):
                inner = jax.random.fold_in(key, s.step)
                return problem.gradient(p, data, inner if shared else jax.random.fold_in(inner, s.chain))

            updates, state = tx.update(params, state, params, grad_fn=grad_fn)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(outer_step, (params, state), jax.random.split(jax.random.key(3), updates))[0]

    state = tx.init(problem.params)
    run_and_wait = lambda: jax.block_until_ready(run(problem.params, state, problem.data))
    return run_and_wait, updates * NUM_STEPS * num_chains


def contenders(problem: Problem) -> dict[str, tuple[paired.Run, int, Any]]:
    """Every row: what to run, how many gradients that is, and the optimiser."""
    gradients = problem.gradients
    sgd = optax.sgd(0.01, **OUTER)
    rows = {
        "SGD, scan": (*one_gradient_loop(problem, sgd, gradients), sgd),
        "SGD, one dispatch a step": (*dispatched_loop(problem, sgd, gradients), sgd),
    }

    def add(name, *, num_chains=1, shared=False, **options):
        tx = jaxopt_pde.entropy_sgd(
            0.01, 0.1, 0.01, num_steps=NUM_STEPS, num_chains=num_chains, **OUTER, **options
        )
        loop = entropy_loop(problem, tx, gradients, num_chains=num_chains, shared=shared)
        rows[f"Entropy-SGD, {name}"] = (*loop, tx)

    add("T = 0", temperature=0.0)
    add("Rademacher")
    add("Gaussian", noise="gaussian")
    add("Rademacher, control variate", estimator="control_variate")
    for label, options in {
        "T = 0": {"temperature": 0.0},
        "Rademacher": {},
        "Gaussian": {"noise": "gaussian"},
    }.items():
        tx = jaxopt_pde.entropy_sgd_stepwise(sgd, 0.1, 0.01, num_steps=NUM_STEPS, **options)
        rows[f"stepwise, {label}"] = (*one_gradient_loop(problem, tx, gradients), tx)
    for num_chains in (2, 4, 8):
        add(f"K = {num_chains} together", num_chains=num_chains)
        add(f"K = {num_chains} in turn", num_chains=num_chains, chain_batch_size=1)
        add(f"K = {num_chains}, shared minibatch", num_chains=num_chains, shared=True)
    return rows


def measure(name: str, repetitions: int) -> list[dict[str, Any]]:
    """Milliseconds a gradient, and the ratio to SGD in a scan, for wall and CPU time."""
    problem = make_problem(name)
    rows = contenders(problem)
    size = sum(leaf.size for leaf in jax.tree.leaves(problem.params))
    seconds = paired.interleave({name: run for name, (run, _, _) in rows.items()}, repetitions)
    per_gradient = {name: seconds[name] / rows[name][1] for name in rows}
    result = []
    for row, values in per_gradient.items():
        state = jax.eval_shape(rows[row][2].init, problem.params)
        entry = {
            "network": name,
            "row": row,
            "state": sum(leaf.size for leaf in jax.tree.leaves(state)) / size,
        }
        result.append(entry | paired.ratios(values, per_gradient["SGD, scan"]))
    return result


def main() -> None:
    """Times, prints, writes."""
    parser = paired.parser(__doc__, 9)
    parser.add_argument("--network", choices=("mlp", "lenet"), action="append", help="default: both")
    arguments = parser.parse_args()
    where, results = paired.here(("jax", "optax", "flax")), []
    for name in arguments.network or ("mlp", "lenet"):
        rows = measure(name, arguments.repetitions)
        title = f"{name}: a gradient, and its ratio to SGD in a scan: median \\[least, greatest]"
        paired.print_rows(title, "optimiser", rows, where, digits=3, state="state / params")
        results += rows
    paired.write(arguments.json, where, results)


if __name__ == "__main__":
    main()
