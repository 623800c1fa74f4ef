"""Gradients of the networks beside PyTorch's, on a CPU.

    python benchmarks/models.py [--repetitions 9] [--allcnn] [--json PATH]

Each row times the gradient of the cross-entropy in training mode (BatchNorm, dropout) of one network, written
the same way in both libraries, accumulated over several batches. All forms of a network run in one process with
the same number of threads, in the order A, B, C, C, B, A, ...; a ratio is taken in each repetition, and the
table gives the median, the least and the greatest of them. JAX's gradients run in one ``lax.scan`` with the data
as arguments: step by step, a large temporary buffer may be mapped and zeroed anew in every call. Run it on an
idle machine: beside other busy processes PyTorch's threads wait for each other, and the ratios flatter JAX.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import paired
from flax import linen as nn

from jaxopt_pde.models import MLP, AllCNN, LeNet

try:
    import rich.console
    import rich.table
    import torch
except ImportError as error:
    print(f'{error}. Install with: pip install -e ".[benchmarks]"', file=sys.stderr)
    sys.exit(2)


class Comparison(NamedTuple):
    """One network in several forms; the form called ``torch`` is the denominator of the ratios."""

    name: str
    image_shape: tuple[int, ...]
    batch_size: int
    gradients: int  # a timing: enough for some tens of milliseconds
    jax_forms: dict[str, nn.Module]
    torch_form: Callable[[], torch.nn.Module]


class FlaxLeNet(nn.Module):
    """LeNet with flax.linen's own convolution, pooling and dropout: XLA's gradients of both."""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Logits."""

        def normalise(x: jax.Array) -> jax.Array:
            x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
            return nn.Dropout(0.25, deterministic=not train)(x)

        for features, window in ((20, (3, 3)), (50, (2, 2))):
            x = nn.Conv(features, (5, 5), padding="VALID")(x)
            x = normalise(nn.max_pool(x, window, window))
        return nn.Dense(10)(normalise(nn.Dense(500)(x.reshape(x.shape[0], -1))))


def torch_mlp() -> torch.nn.Module:
    """MLP((100,)) on 784 inputs."""
    layers = torch.nn
    return layers.Sequential(layers.Flatten(), layers.Linear(784, 100), layers.ReLU(), layers.Linear(100, 10))


def torch_lenet() -> torch.nn.Module:
    """LeNet()."""
    layers = torch.nn

    def block(channels: int, features: int, window: int) -> list[torch.nn.Module]:
        convolution = layers.Conv2d(channels, features, 5)
        pool, norm = layers.MaxPool2d(window), layers.BatchNorm2d(features)
        return [convolution, pool, norm, layers.ReLU(), layers.Dropout(0.25)]

    return layers.Sequential(
        *block(1, 20, 3),
        *block(20, 50, 2),
        layers.Flatten(),
        layers.Linear(200, 500),
        layers.BatchNorm1d(500),
        layers.ReLU(),
        layers.Dropout(0.25),
        layers.Linear(500, 10),
    )


def torch_allcnn() -> torch.nn.Module:
    """AllCNN()."""
    layers = torch.nn

    def block(channels: int, features: int, size: int = 3, stride: int = 1) -> list[torch.nn.Module]:
        convolution = layers.Conv2d(channels, features, size, stride=stride, padding=size // 2)
        return [convolution, layers.BatchNorm2d(features), layers.ReLU()]

    return layers.Sequential(
        layers.Dropout(0.2),
        *block(3, 96),
        *block(96, 96),
        *block(96, 96, stride=2),
        layers.Dropout(0.5),
        *block(96, 192),
        *block(192, 192),
        *block(192, 192, stride=2),
        layers.Dropout(0.5),
        *block(192, 192),
        *block(192, 192),
        *block(192, 10, size=1),
        layers.AdaptiveAvgPool2d(1),
        layers.Flatten(),
    )


LENET = Comparison(
    "LeNet", (28, 28, 1), 128, 8, {"jaxopt_pde": LeNet(), "flax.linen": FlaxLeNet()}, torch_lenet
)
MLP100 = Comparison("MLP(100)", (28, 28, 1), 128, 100, {"jaxopt_pde": MLP((100,))}, torch_mlp)
ALLCNN = Comparison("AllCNN", (32, 32, 3), 32, 2, {"jaxopt_pde": AllCNN()}, torch_allcnn)


def jax_run(model: nn.Module, images: np.ndarray, labels: np.ndarray) -> tuple[paired.Run, int]:
    """A call that sums the gradients of all batches, and the number of parameters."""
    init = jax.jit(model.init, static_argnames="train")
    variables = init(jax.random.key(0), images[0], train=False)
    statistics = variables.get("batch_stats", {})

    def loss(params: Any, statistics: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, Any]:
        logits, updated = model.apply(
            {"params": params, "batch_stats": statistics},
            batch[0],
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": key},
        )
        mean = optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()
        return mean, updated.get("batch_stats", {})

    @jax.jit
    def gradients(params: Any, statistics: Any, batches: Any, keys: jax.Array) -> Any:
        def step(carry: Any, inputs: Any) -> tuple[Any, None]:
            total, statistics = carry
            gradient, statistics = jax.grad(loss, has_aux=True)(params, statistics, *inputs)
            return (jax.tree.map(jnp.add, total, gradient), statistics), None

        start = (jax.tree.map(jnp.zeros_like, params), statistics)
        return jax.lax.scan(step, start, (batches, keys))[0]

    batches = (jnp.asarray(images), jnp.asarray(labels))
    keys = jax.random.split(jax.random.key(1), len(images))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    return lambda: jax.block_until_ready(
        gradients(variables["params"], statistics, batches, keys)
    ), parameters


def torch_run(network: torch.nn.Module, images: np.ndarray, labels: np.ndarray) -> tuple[paired.Run, int]:
    """The same in PyTorch, which accumulates in ``.grad``; images channels first, as PyTorch has them."""
    batches = [
        (torch.from_numpy(np.ascontiguousarray(np.moveaxis(image, -1, 1))), torch.from_numpy(label).long())
        for image, label in zip(images, labels, strict=True)
    ]

    def run() -> None:
        network.zero_grad()
        for image, label in batches:
            torch.nn.functional.cross_entropy(network(image), label).backward()

    return run, sum(parameter.numel() for parameter in network.parameters())


def rows(comparison: Comparison, repetitions: int) -> list[dict[str, Any]]:
    """Times and ratios of every form of one network."""
    random = np.random.default_rng(0)
    gradients = comparison.gradients
    images = random.standard_normal((gradients, comparison.batch_size, *comparison.image_shape), np.float32)
    labels = random.integers(0, 10, images.shape[:2], np.int32)
    forms = {name: jax_run(model, images, labels) for name, model in comparison.jax_forms.items()}
    forms["torch"] = torch_run(comparison.torch_form(), images, labels)
    sizes = {name: parameters for name, (_, parameters) in forms.items()}
    if len(set(sizes.values())) > 1:
        msg = f"{comparison.name}: the forms differ in their number of parameters: {sizes}"
        raise AssertionError(msg)
    seconds = paired.interleave({name: run for name, (run, _) in forms.items()}, repetitions)
    result = []
    for name, values in seconds.items():
        row = {"network": comparison.name, "form": name, "parameters": sizes[name]}
        row["batch_size"] = comparison.batch_size
        for column, clock in enumerate(("wall", "cpu")):
            ratio = values[:, column] / seconds["torch"][:, column]
            row[f"{clock}_ms"] = float(np.median(values[:, column]) / gradients * 1e3)
            row[f"{clock}_ratio"] = [float(f(ratio)) for f in (np.median, np.min, np.max)]
        row["images_per_second"] = comparison.batch_size / row["wall_ms"] * 1e3
        result.append(row)
    return result


def table(results: list[dict[str, Any]], where: dict[str, Any]) -> rich.table.Table:
    """The rows as they are read."""
    result = rich.table.Table(
        title="One gradient; ratios to torch: median \\[least, greatest]",
        caption=paired.caption(where),
    )
    for heading in ("network", "form", "parameters", "batch", "wall ms", "CPU ms", "images/s"):
        result.add_column(heading, justify="left" if heading in ("network", "form") else "right")
    for heading in ("wall ratio", "CPU ratio"):
        result.add_column(heading, justify="right", no_wrap=True)
    for row in results:
        ratios = ("{:.2f} \\[{:.2f}, {:.2f}]".format(*row[f"{clock}_ratio"]) for clock in ("wall", "cpu"))
        result.add_row(
            row["network"],
            row["form"],
            f"{row['parameters']:,}",
            str(row["batch_size"]),
            f"{row['wall_ms']:.2f}",
            f"{row['cpu_ms']:.2f}",
            f"{row['images_per_second']:,.0f}",
            *ratios,
        )
    return result


def main() -> None:
    """Times, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=9, help="at least 1 (default %(default)s)")
    parser.add_argument("--allcnn", action="store_true", help="also AllCNN, at batch 32")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    arguments = parser.parse_args()
    if arguments.repetitions < 1:
        parser.error(f"--repetitions must be at least 1, got {arguments.repetitions}")
    # PyTorch's timings below are a CPU's. XLA takes all cores the process may use; so does PyTorch here.
    jax.config.update("jax_platforms", "cpu")
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    torch.set_num_threads(threads)
    where = paired.environment(("jax", "flax", "torch"))
    results = []
    for comparison in (LENET, MLP100, *([ALLCNN] if arguments.allcnn else [])):
        results += rows(comparison, arguments.repetitions)
    # A pipe has no width of its own, and 80 columns would cut the ratios.
    rich.console.Console(width=None if sys.stdout.isatty() else 120).print(table(results, where))
    if arguments.json:
        arguments.json.write_text(json.dumps({"environment": where, "rows": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
