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

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import paired
import rich.console
import rich.table

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
    result = []
    for row, values in seconds.items():
        entry: dict[str, Any] = {"table": name, "row": row}
        for column, clock in enumerate(("wall", "cpu")):
            ratio = values[:, column] / seconds["plain"][:, column]
            entry[f"{clock}_ms"] = float(np.median(values[:, column]) * 1e3)
            entry[f"{clock}_ratio"] = [float(f(ratio)) for f in (np.median, np.min, np.max)]
        result.append(entry)
    return result


def shown(name: str, results: list[dict[str, Any]], where: dict[str, Any]) -> rich.table.Table:
    """The rows as they are read."""
    title = f"{name}: a step, and its ratio to the plain one: median \\[least, greatest]"
    table = rich.table.Table(title=title, caption=paired.caption(where))
    table.add_column("penalty")
    for heading in ("CPU ms", "CPU ratio", "wall ms", "wall ratio"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in results:
        ratio = {c: "{:.2f} \\[{:.2f}, {:.2f}]".format(*row[f"{c}_ratio"]) for c in ("cpu", "wall")}
        table.add_row(
            row["row"], f"{row['cpu_ms']:.2f}", ratio["cpu"], f"{row['wall_ms']:.2f}", ratio["wall"]
        )
    return table


def main() -> None:
    """Times, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=11, help="timed rounds (default %(default)s)")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    arguments = parser.parse_args()
    if arguments.repetitions < 1:
        parser.error(f"--repetitions must be at least 1, got {arguments.repetitions}")
    device = jax.devices()[0]
    where = paired.environment(
        ("jax", "optax", "flax"), None if device.platform == "cpu" else device.device_kind
    )
    results = []
    for name, model in {"LeNet": LeNet(), "MLP": MLP((100,))}.items():
        rows = measure(name, make_runs(model), arguments.repetitions)
        rich.console.Console(width=None if sys.stdout.isatty() else 120).print(shown(name, rows, where))
        results += rows
    if arguments.json:
        arguments.json.write_text(json.dumps({"environment": where, "rows": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
