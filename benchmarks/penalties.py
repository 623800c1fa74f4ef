"""What a gradient penalty costs: a training step on E ℓ + ε E‖∇ₓℓ‖₂ over a plain step, exactly and by differences.

    python benchmarks/penalties.py [--repetitions N] [--json PATH]

LeNet (132,220 parameters, BatchNorm on its running statistics) and the MLP of 79,510 parameters at batch 128; value and
gradient of the objective in the parameters, one compiled program a row. Ratios to the plain step are taken round by
round, interleaved in one process. "batched" rows hand over losses of a whole batch, the others the loss of one example.
"fused" rows are regularized_value_and_grad (batched), the others add the penalty as a separate term.

XLA asks for scratch memory at every call (52 MB for LeNet's exact step, twice the plain one's). Where glibc hands
it back to the system each time, the page faults cost as much as the arithmetic: 3.4 plain steps instead of 2.0. The
numbers in results/ are on one core, with an allocator that keeps what it has:

    export MALLOC_MMAP_THRESHOLD_=2000000000 MALLOC_TRIM_THRESHOLD_=4000000000 MALLOC_TOP_PAD_=500000000
    taskset -c 0 python benchmarks/penalties.py
"""

from collections.abc import Callable
from typing import Any

import jax
import optax
import paired

from jaxopt_pde import robustness
from jaxopt_pde.models import MLP, LeNet

BATCH_SIZE, WEIGHT, STEP = 128, 0.1, 1e-3

# Keyword arguments of regularized_value_and_grad, by row.
FUSED = {
    "fused, exact": {"mean_weight": WEIGHT},
    "fused, finite differences": {"mean_weight": WEIGHT, "method": "finite_difference"},
    "fused, exact, largest of the batch": {"max_weight": WEIGHT},
}

# Keyword arguments of gradient_penalty, by row.
ROWS = {
    "exact, batched": {"batched": True},
    "finite differences, batched": {"method": "finite_difference", "batched": True},
    "central differences, batched": {
        "method": "finite_difference",
        "difference": "central",
        "batched": True,
    },
    "exact": {},
    "finite differences": {"method": "finite_difference"},
    "largest of the batch, batched": {"reduce": "max", "batched": True},
}


def make_runs(model: Any) -> dict[str, paired.Run]:
    """The plain step and every row, on random images."""
    images = jax.random.uniform(jax.random.key(0), (BATCH_SIZE, 28, 28, 1))
    labels = jax.random.randint(jax.random.key(1), (BATCH_SIZE,), 0, 10)
    variables = dict(jax.jit(model.init, static_argnames="train")(jax.random.key(2), images[:1], train=False))
    params = variables.pop("params")

    def losses(params, xs, ys):
        logits = model.apply({"params": params, **variables}, xs, train=False)
        return optax.softmax_cross_entropy_with_integer_labels(logits, ys)

    def objective(options: dict[str, Any] | None) -> Callable:
        def value(params, xs, ys):
            batch = lambda xs, ys: losses(params, xs, ys)
            one = lambda x, y: losses(params, x[None], y[None])[0]
            if options is None:
                return batch(xs, ys).mean()
            batched = options.get("batched", False)
            mean = (batch(xs, ys) if batched else jax.vmap(one)(xs, ys)).mean()
            penalty = robustness.gradient_penalty(batch if batched else one, step=STEP, **options)
            return mean + WEIGHT * penalty(xs, ys)

        return jax.jit(jax.value_and_grad(value))

    def run(program: Callable) -> paired.Run:
        return lambda: jax.block_until_ready(program(params, images, labels))

    def fused(options: dict[str, Any]) -> Callable:
        return jax.jit(robustness.regularized_value_and_grad(losses, step=STEP, batched=True, **options))

    separate = {name: run(objective(options)) for name, options in {"plain": None, **ROWS}.items()}
    return separate | {name: run(fused(options)) for name, options in FUSED.items()}


def measure(name: str, runs: dict[str, paired.Run], repetitions: int) -> list[dict[str, Any]]:
    """Milliseconds a step, and the ratio to the plain one, for wall and CPU time."""
    seconds = paired.interleave(runs, repetitions)
    unit = seconds["plain"]
    return [{"table": name, "row": row} | paired.ratios(values, unit) for row, values in seconds.items()]


def main() -> None:
    """Times, prints, writes."""
    arguments = paired.parser(__doc__, 11).parse_args()
    where, results = paired.here(("jax", "optax", "flax")), []
    for name, model in {"LeNet": LeNet(), "MLP": MLP((100,))}.items():
        rows = measure(name, make_runs(model), arguments.repetitions)
        title = f"{name}: a step, and its ratio to the plain one: median \\[least, greatest]"
        paired.print_rows(title, "penalty", rows, where)
        results += rows
    paired.write(arguments.json, where, results)


if __name__ == "__main__":
    main()
