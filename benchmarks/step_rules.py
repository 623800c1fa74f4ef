"""What a step rule costs: a space-adaptive step over `optax.sgd`, an adaptive batch over plain accumulation.

    python benchmarks/step_rules.py [--repetitions N] [--json PATH]

The MLP of 79,510 parameters at batch 128, minibatches drawn on the device, every row the same number of gradients in
one compiled `lax.scan`; ratios are taken round by round, interleaved in one process. Two tables:

* one step a gradient, the unit `optax.sgd` with Nesterov momentum as in optimizer_overhead.py, its loss kept as well:
  plain SGD, `polyak_sgd`, the space-adaptive step with each estimator that needs one gradient, and accelerated SGD;
* one step every 8 microbatches, the unit a plain accumulation (a scan that adds 8 gradients, then one step):
  `optax.MultiSteps`, and `adaptive_batch` held at 8.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
import paired

import jaxopt_pde
from jaxopt_pde.models import MLP

BATCH_SIZE, NUM_IMAGES, GRADIENTS, ACCUMULATED = 128, 10_000, 400, 8


def make_problem():
    """Params, the loss and gradient on a minibatch drawn by a key, and the data."""
    model = MLP((100,))
    images = jax.random.normal(jax.random.key(0), (NUM_IMAGES, 28, 28, 1))
    labels = jax.random.randint(jax.random.key(1), (NUM_IMAGES,), 0, 10)
    variables = jax.jit(model.init, static_argnames="train")(jax.random.key(2), images[:1], train=False)

    def value_and_grad(params, data, key):
        def loss(params, images, labels):
            logits = model.apply({"params": params}, images, train=True, rngs={"dropout": key})
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        chosen = jax.random.randint(key, (BATCH_SIZE,), 0, NUM_IMAGES)
        return jax.value_and_grad(loss)(params, data[0][chosen], data[1][chosen])

    return variables["params"], value_and_grad, (images, labels)


def one_update_a_gradient(problem, tx) -> paired.Run:
    """A scan with one update a gradient; the losses are kept, so that none of them is left out."""
    params, value_and_grad, data = problem
    tx = optax.with_extra_args_support(tx)

    @jax.jit
    def run(params, state, data):
        def step(carry, key):
            params, state = carry
            value, gradient = value_and_grad(params, data, key)
            updates, state = tx.update(gradient, state, params, value=value)
            return (optax.apply_updates(params, updates), state), value

        return jax.lax.scan(step, (params, state), jax.random.split(jax.random.key(3), GRADIENTS))

    state = tx.init(params)
    return lambda: jax.block_until_ready(run(params, state, data))


def plain_accumulation(problem, tx) -> paired.Run:
    """A scan of steps, each on the mean of the gradients that an inner scan adds up."""
    params, value_and_grad, data = problem

    @jax.jit
    def run(params, state, data):
        def step(carry, keys):
            params, state = carry

            def add(total, key):
                value, gradient = value_and_grad(params, data, key)
                return jax.tree.map(jnp.add, total, gradient), value

            total, values = jax.lax.scan(add, optax.tree.zeros_like(params), keys)
            updates, state = tx.update(optax.tree.scale(1 / ACCUMULATED, total), state, params)
            return (optax.apply_updates(params, updates), state), values

        keys = jax.random.split(jax.random.key(3), GRADIENTS).reshape(-1, ACCUMULATED)
        return jax.lax.scan(step, (params, state), keys)

    state = tx.init(params)
    return lambda: jax.block_until_ready(run(params, state, data))


def tables(problem) -> dict[str, dict[str, paired.Run]]:
    """The rows of both tables; the first of each is its unit."""
    salr = {"max_learning_rate": 0.01}
    held = {"max_microbatches": ACCUMULATED, "min_microbatches": ACCUMULATED}
    step = {
        "optax.sgd, Nesterov": optax.sgd(0.01, momentum=0.9, nesterov=True),
        "optax.sgd, plain": optax.sgd(0.01),
        "optax.polyak_sgd": optax.polyak_sgd(0.01),
        "space_adaptive_sgd, instantaneous": jaxopt_pde.space_adaptive_sgd(**salr),
        "space_adaptive_sgd, ema": jaxopt_pde.space_adaptive_sgd(**salr, estimator="ema"),
        "space_adaptive_sgd, window": jaxopt_pde.space_adaptive_sgd(**salr, estimator="window"),
        "target_level": jaxopt_pde.target_level(jaxopt_pde.space_adaptive_sgd(**salr), 1.0),
        "space_adaptive_sgd, Nesterov": jaxopt_pde.space_adaptive_sgd(**salr, momentum=0.9, nesterov=True),
        "accelerated_sgd": jaxopt_pde.accelerated_sgd(0.01),
    }
    batch = {
        "optax.MultiSteps": optax.MultiSteps(optax.sgd(0.01), ACCUMULATED).gradient_transformation(),
        "adaptive_batch, losses": jaxopt_pde.adaptive_batch(optax.sgd(0.01), 0.01, **held),
        "adaptive_batch, smoothness": jaxopt_pde.adaptive_batch(
            optax.sgd(0.01), 0.01, smoothness=1.0, **held
        ),
    }
    one = lambda rows: {name: one_update_a_gradient(problem, tx) for name, tx in rows.items()}
    plain = {"plain accumulation": plain_accumulation(problem, optax.sgd(0.01))}
    return {"one step a gradient": one(step), f"one step every {ACCUMULATED} gradients": plain | one(batch)}


def measure(name: str, runs: dict[str, paired.Run], repetitions: int) -> list[dict[str, Any]]:
    """Milliseconds a gradient, and the ratio to the first row, for wall and CPU time."""
    seconds = {row: values / GRADIENTS for row, values in paired.interleave(runs, repetitions).items()}
    unit = next(iter(seconds.values()))
    return [{"table": name, "row": row} | paired.ratios(values, unit) for row, values in seconds.items()]


def main() -> None:
    """Times, prints, writes."""
    arguments = paired.parser(__doc__, 15).parse_args()
    where, results = paired.here(("jax", "optax", "flax")), []
    for name, runs in tables(make_problem()).items():
        rows = measure(name, runs, arguments.repetitions)
        title = f"{name}: a gradient, and its ratio to the first row: median \\[least, greatest]"
        paired.print_rows(title, "optimiser", rows, where, digits=3)
        results += rows
    paired.write(arguments.json, where, results)


if __name__ == "__main__":
    main()
