"""What the optimisers cost on the device at hand: bandwidth, overhead, chains, and All-CNN's images a second.

    python benchmarks/accelerator.py [--preset cpu|gpu] [--dtype float32|bfloat16] [--json PATH]
    python benchmarks/accelerator.py --markdown PATH

It runs unchanged on a CPU, a GPU and a TPU; without ``--preset`` the sizes are the CPU's on a CPU and fill an
accelerator (of 16 GB or more) elsewhere. Every timing is of compiled programs, warmed up, interleaved, up to
``block_until_ready``; within one no array moves between host and device, as ``jax.transfer_guard`` checks. The parts:

* bandwidth: a kernel's bytes over its seconds, as a share of what ``y ← y + s x`` reaches on the same arrays. *Least
  bytes* are counted by hand: every array that must be read or written, once, random bits and scalars left out; the
  inner step y ← y − ε (g + (y − x)/t) + noise, mean ← mean + w (y − mean) reads y, g, x, mean and writes y, mean.
  *XLA's bytes* are ``cost_analysis()["bytes accessed"]`` of the compiled kernel; more than the least means that it
  reads its own results again. ``langevin`` is the whole function by step, its gradient read from memory and its
  arrays allocated anew in every call;
* overhead: milliseconds a gradient inside Entropy-SGD over those inside plain SGD, in one scan each;
* chains: milliseconds a gradient of K = 1 … 64 chains together, over those of one;
* All-CNN: images a second of gradients with BatchNorm and dropout inside plain SGD and inside Entropy-SGD, in float32
  and with parameters in float32 and the network in bfloat16.

``--dtype`` is that of the network in overhead and chains. ``--markdown`` prints the tables of a stored JSON.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optimizer_overhead
import paired

import jaxopt_pde
from jaxopt_pde import _noise
from jaxopt_pde.models import MLP, AllCNN, LeNet
from jaxopt_pde.smoothing import _kernel

DTYPES = ("float32", "bfloat16")


class Preset(NamedTuple):
    """Sizes for one kind of device.

    Attributes:
        numbers: of an array of the bandwidth kernels; several must not fit in the last cache.
        network: of overhead and chains.
        batch_size: of overhead.
        gradients: of a timing in overhead; a multiple of the 20 inner steps.
        chain_batch_size: of each chain.
        images: of one All-CNN gradient.
        image_gradients: of a timing of All-CNN.
        repetitions: timed rounds.
    """

    numbers: int
    network: str
    batch_size: int
    gradients: int
    chain_batch_size: int
    images: int
    image_gradients: int
    repetitions: int


PRESETS = {
    "cpu": Preset(2**23, "mlp", 128, 200, 32, 16, 2, 5),
    "gpu": Preset(2**26, "lenet", 1024, 200, 128, 256, 20, 9),
}
NETWORKS = {
    "mlp": (MLP((100,)), (28, 28, 1)),
    "lenet": (LeNet(), (28, 28, 1)),
    "allcnn": (AllCNN(), (32, 32, 3)),
}
KERNEL_CALLS = 4


def make_problem(name: str, batch_size: int, gradients: int, dtype: str) -> optimizer_overhead.Problem:
    """Float32 params; the forward and the backward pass in ``dtype``, on images drawn on the device."""
    model, shape = NETWORKS[name]
    images = jax.random.normal(jax.random.key(0), (max(4096, batch_size), *shape), dtype)
    labels = jax.random.randint(jax.random.key(1), images.shape[:1], 0, 10)
    variables = jax.jit(model.init, static_argnames="train")(
        jax.random.key(2), images[:1].astype(jnp.float32), train=False
    )
    statistics = {k: v for k, v in variables.items() if k != "params"}

    def gradient(params, data, key):
        def loss(params, images, labels):
            params = jax.tree.map(lambda p: p.astype(dtype), params)
            logits, _ = model.apply(
                {"params": params, **statistics}, images, train=True, rngs={"dropout": key}, mutable=["batch_stats"]
            )  # fmt: skip
            logits = logits.astype(jnp.float32)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        chosen = jax.random.randint(key, (batch_size,), 0, len(images))
        return jax.grad(loss)(params, data[0][chosen], data[1][chosen])

    return optimizer_overhead.Problem(variables["params"], gradient, (images, labels), gradients)


def seconds_of(runs: dict[str, paired.Run], repetitions: int) -> dict[str, np.ndarray]:
    """Compiles and runs each once, then times all of them with transfers between host and device forbidden."""
    for run in runs.values():
        run()
    with jax.transfer_guard("disallow"):
        return paired.interleave(runs, repetitions)


class Kernel(NamedTuple):
    """What is timed for its bandwidth.

    Attributes:
        run: takes ``steps`` steps and waits.
        steps: of one run.
        least_bytes: of one step, counted by hand.
        xla_bytes: of one step by XLA's own count, None where a loop hides it.
    """

    run: paired.Run
    steps: int
    least_bytes: float
    xla_bytes: float | None = None


UNIT = "y ← y + s x"


def kernels(numbers: int) -> dict[str, Kernel]:
    """The rows of the first part, by name."""
    draw = lambda seed: jax.random.normal(jax.random.key(seed), (numbers,))
    anchor, gradient = draw(0), draw(1)
    key, weight = jax.random.key(2), jnp.asarray(0.1)
    scalars = _kernel.step_scalars(
        smoothing_time=1.0, temperature=1e-4, step_size=0.01, momentum=0.9, dtype=jnp.float32
    )
    sgd, rows = optax.sgd(0.01, 0.9), {}

    def add(name, step, carry, bytes_of_a_number, *arguments):
        compiled = jax.jit(step, donate_argnums=0).lower(carry, *arguments).compile()
        held = [jax.tree.map(jnp.copy, carry)]  # what is donated must be the row's own

        def run():
            for _ in range(KERNEL_CALLS):
                held[0] = compiled(held[0], *arguments)
            jax.block_until_ready(held[0])

        accessed = (compiled.cost_analysis() or {}).get("bytes accessed")
        rows[name] = Kernel(run, KERNEL_CALLS, bytes_of_a_number * numbers, accessed)

    def add_inner_step(name, bytes_of_a_number, noise=None, *, heavy=False, gradient=gradient):
        def step(carry, anchor, gradient, key, scalars, weight):
            y, mean, velocity = carry
            drawn = None if noise is None else _noise.draw_noise(key, y, noise)
            y, velocity = _kernel.langevin_step(y, velocity, gradient, anchor, drawn, scalars)
            return y, _kernel.update_mean(mean, y, weight), velocity

        carry = (anchor, anchor, anchor if heavy else None)
        add(f"inner step, {name}", step, carry, bytes_of_a_number, anchor, gradient, key, scalars, weight)

    def add_langevin(name, **options):
        steps = 4 * KERNEL_CALLS

        @jax.jit
        def whole(params, gradient, key):
            return jaxopt_pde.smoothing.langevin(
                lambda p, s: gradient, params, key, smoothing_time=1.0, step_size=0.01, num_steps=steps,
                estimator="displacement", **options,
            ).gradient  # fmt: skip

        run = lambda: jax.block_until_ready(whole(anchor, gradient, key))
        rows[f"langevin, {name}"] = Kernel(run, steps, 24 * numbers)

    def sgd_step(carry, gradient):
        updates, state = sgd.update(gradient, carry[1], carry[0])
        return optax.apply_updates(carry[0], updates), state

    add(UNIT, lambda y, x, s: y + s * x, anchor, 12, gradient, weight)
    add("y ← s y", lambda y, s: s * y, anchor, 8, weight)
    add("SGD with momentum (optax)", sgd_step, (anchor, sgd.init(anchor)), 20, gradient)
    add_inner_step("T = 0", 24)
    add_inner_step("T = 0, gradient in bfloat16", 22, gradient=gradient.astype(jnp.bfloat16))
    add_inner_step("T = 0, inner momentum", 32, heavy=True)
    add_inner_step("Rademacher", 24, "rademacher")
    add_inner_step("Gaussian", 24, "gaussian")
    add_langevin("T = 0", temperature=0.0)
    add_langevin("Rademacher", temperature=1e-4, noise="rademacher")
    return rows


def bandwidth(preset: Preset, repetitions: int) -> list[dict[str, Any]]:
    """GB/s of every kernel by its least bytes, and its share of the first row's, round by round."""
    rows = kernels(preset.numbers)
    timed = seconds_of({name: row.run for name, row in rows.items()}, repetitions)
    rates = {name: row.least_bytes * row.steps / timed[name] for name, row in rows.items()}  # [rounds, clock]
    spread = lambda name, clock: rates[name][:, clock] / rates[UNIT][:, clock]
    return [
        {
            "part": "bandwidth",
            "row": name,
            "wall_ms": float(np.median(timed[name][:, 0]) / row.steps * 1e3),
            "least_bytes": row.least_bytes,
            "xla_bytes": row.xla_bytes,
            "gb_per_second": float(np.median(rates[name][:, 0]) / 1e9),
            "wall_share": [float(f(spread(name, 0))) for f in (np.median, np.min, np.max)],
            "cpu_share": [float(f(spread(name, 1))) for f in (np.median, np.min, np.max)],
        }
        for name, row in rows.items()
    ]


def overhead(preset: Preset, dtype: str, repetitions: int) -> list[dict[str, Any]]:
    """Milliseconds a gradient, and ratios to plain SGD."""
    problem = make_problem(preset.network, preset.batch_size, preset.gradients, dtype)
    outer = optimizer_overhead.OUTER
    loops = {"SGD": optimizer_overhead.one_gradient_loop(problem, optax.sgd(0.01, **outer), preset.gradients)}
    for name, options in {
        "Entropy-SGD, T = 0": {"temperature": 0.0},
        "Entropy-SGD, Rademacher": {},
        "Entropy-SGD, Gaussian": {"noise": "gaussian"},
        "Entropy-SGD, control variate": {"estimator": "control_variate"},
    }.items():
        tx = jaxopt_pde.entropy_sgd(0.01, 0.1, 0.01, num_steps=20, **outer, **options)
        loops[name] = optimizer_overhead.entropy_loop(problem, tx, preset.gradients)
    return _by_gradient("overhead", loops, repetitions, 1)


def chains(preset: Preset, dtype: str, repetitions: int) -> list[dict[str, Any]]:
    """Milliseconds a gradient of one chain, K together, each with its own minibatch."""
    loops = {}
    for number in (1, 2, 4, 8, 16, 32, 64):
        gradients = optimizer_overhead.NUM_STEPS * number
        problem = make_problem(preset.network, preset.chain_batch_size, gradients, dtype)
        tx = jaxopt_pde.entropy_sgd(0.01, 0.1, 0.01, num_steps=20, num_chains=number)
        loops[f"K = {number}"] = optimizer_overhead.entropy_loop(problem, tx, gradients, num_chains=number)
    return _by_gradient("chains", loops, repetitions, preset.chain_batch_size)


def allcnn(preset: Preset, repetitions: int) -> list[dict[str, Any]]:
    """Images a second."""
    loops, gradients = {}, preset.image_gradients
    for dtype in DTYPES:
        problem = make_problem("allcnn", preset.images, gradients, dtype)
        sgd = optax.sgd(0.01, **optimizer_overhead.OUTER)
        tx = jaxopt_pde.entropy_sgd(0.01, 0.1, 0.01, num_steps=min(20, gradients), **optimizer_overhead.OUTER)
        loops[f"SGD, {dtype}"] = optimizer_overhead.one_gradient_loop(problem, sgd, gradients)
        run, _ = optimizer_overhead.entropy_loop(problem, tx, min(20, gradients))
        loops[f"Entropy-SGD, {dtype}"] = (run, min(20, gradients))
    return _by_gradient("All-CNN", loops, repetitions, preset.images)


def _by_gradient(part: str, loops, repetitions: int, images: int) -> list[dict[str, Any]]:
    """Rows of the loops, with their seconds over their gradients; ratios to the first."""
    seconds = seconds_of({name: run for name, (run, _) in loops.items()}, repetitions)
    each = {name: values / loops[name][1] for name, values in seconds.items()}
    unit = next(iter(each.values()))
    rows = [{"part": part, "row": name} | paired.ratios(values, unit) for name, values in each.items()]
    for row in rows:
        row["images_per_second"] = images / row["wall_ms"] * 1e3
    return rows


def markdown(stored: dict[str, Any]) -> str:
    """The tables of a stored JSON, and under them where it was measured; CPU times only where they mean something."""
    three = "{:.2f} [{:.2f}, {:.2f}]".format
    on_cpu, lines = stored["preset"] == "cpu", []

    def table(part, *heads, cells):
        rows = [row for row in stored["rows"] if row["part"] == part]
        heads = [part, *(head.format(rows[0]["row"]) for head in heads)]
        lines.extend([f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"])
        lines.extend(f"| {' | '.join([row['row'], *cells(row)])} |" for row in rows)
        lines.append("")

    def kernel(row):
        accessed = "–" if row["xla_bytes"] is None else f"{row['xla_bytes'] / 1e6:,.0f}"
        cells = [
            f"{row['wall_ms']:.3g}",
            f"{row['least_bytes'] / 1e6:,.0f}",
            accessed,
            f"{row['gb_per_second']:.1f}",
        ]
        return [*cells, three(*row["wall_share"]), *[three(*row["cpu_share"])] * on_cpu]

    def gradient(row):
        milliseconds = row["wall_ms"]
        cells = [
            f"{milliseconds:.3g}" if milliseconds < 1000 else f"{milliseconds:,.0f}",
            three(*row["wall_ratio"]),
        ]
        return [*cells, *[three(*row["cpu_ratio"])] * on_cpu]

    with_images = lambda row: [*gradient(row), f"{row['images_per_second']:,.0f}"]
    by_cpu = ["by CPU time"] * on_cpu
    table("bandwidth", "ms", "least MB", "XLA's MB", "GB/s", "share of {}", *by_cpu, cells=kernel)
    table("overhead", "ms a gradient", "over {}", *by_cpu, cells=gradient)
    for part in ("chains", "All-CNN"):
        table(part, "ms a gradient", "over {}", *by_cpu, "images/s", cells=with_images)
    note = f"Median [least, greatest] of {stored['repetitions']} rounds; preset `{stored['preset']}`, networks in"
    return "\n".join([*lines, f"{note} {stored['dtype']}. {paired.caption(stored['environment'])}."])


def main() -> None:
    """Times, prints, writes; or prints what was written."""
    parser = paired.parser(__doc__, None)
    parser.add_argument("--preset", choices=tuple(PRESETS), help="sizes (default: by the device)")
    parser.add_argument(
        "--dtype", choices=DTYPES, default="float32", help="of the networks in overhead and chains"
    )
    parser.add_argument("--markdown", type=Path, help="print the tables of this JSON and stop")
    arguments = parser.parse_args()
    if arguments.markdown:
        print(markdown(json.loads(arguments.markdown.read_text(encoding="utf-8"))))
        return
    name = arguments.preset or ("cpu" if jax.default_backend() == "cpu" else "gpu")
    preset = PRESETS[name]
    repetitions = arguments.repetitions or preset.repetitions
    where = paired.here(("jax", "jaxlib", "optax", "flax"))
    rows = bandwidth(preset, repetitions)
    rows += overhead(preset, arguments.dtype, repetitions)
    rows += chains(preset, arguments.dtype, repetitions)
    rows += allcnn(preset, repetitions)
    more = {"preset": name, "sizes": preset._asdict(), "dtype": arguments.dtype, "repetitions": repetitions}
    print(markdown({"environment": where, "rows": rows, **more}))
    paired.write(arguments.json, where, rows, **more)


if __name__ == "__main__":
    main()
