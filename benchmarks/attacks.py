"""Projected gradients beside foolbox, on a CPU: the same weights, images, starts, steps and step sizes.

    python benchmarks/attacks.py --data-dir DIR [--num-images 300] [--rounds 5] [--one-core] [--json PATH]

MNIST, from ``--data-dir`` or JAXOPT_PDE_DATA, and a network of two 5x5 convolutions (16 and 32 channels, VALID, each
followed by relu and 2x2 pooling) and a dense layer of 100, trained by 250 steps of Adam. 40 steps in ℓ∞ (radius 0.1,
step radius/30) and ℓ2 (radius 1.5, step radius/40) on test images. The rows:

* jaxopt_pde: one call of `robustness.pgd` on our convolutions with ``form="direct"``, which takes windows in layers as
  small as these. It computes 42 gradients: also those of the image and of the FGSM point.
* foolbox, JAX: the attack of the same name on the network with flax.linen's convolution and pooling, jitted, and on
  the network of our first row, jitted. 40 gradients.
* foolbox, PyTorch: the same weights, frozen, so that no gradient in them is computed. 40 gradients.

All rows run in one process with the same threads, in the order A, B, C, C, B, A, ..., after two rounds that compile.
Ratios are taken in each round. The methods are not the same: foolbox returns its last point, ours the best visited, the
FGSM point among them, and ours drops what pushes against the box before it normalises the gradient. So ours may break
more; the run fails where it breaks fewer by more than 1 % of the images. Run it on an idle machine: beside other
busy processes PyTorch's threads wait for each other, and the times flatter JAX; ``--one-core`` avoids that.
"""

import argparse
import functools
import json
import math
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import paired
from flax import linen as nn
from jaxtyping import Array

from experiments import _datasets
from jaxopt_pde import robustness
from jaxopt_pde.models import Conv, max_pool
from jaxopt_pde.robustness import _attack_arguments, _steps

try:
    import rich.console
    import rich.table
    import torch

    with warnings.catch_warnings():  # foolbox and eagerpy import what their own dependencies deprecate
        warnings.simplefilter("ignore")
        import eagerpy
        import foolbox
except ImportError as error:
    print(f'{error}. Install with: pip install -e ".[benchmarks]"', file=sys.stderr)
    sys.exit(2)

NUM_STEPS = 40
TRAINING_STEPS, BATCH_SIZE, TRAINING_IMAGES = 250, 128, 10_000
OURS = "jaxopt_pde"
PEERS = ("foolbox, JAX, flax.linen", "foolbox, JAX, our network", "foolbox, PyTorch, frozen")


class Attack(NamedTuple):
    """One attack, ours and foolbox's."""

    name: str
    norm: float
    radius: float
    relative_step: float
    theirs: type


ATTACKS = (
    Attack("linf", math.inf, 0.1, 1 / 30, foolbox.attacks.LinfPGD),
    Attack("l2", 2, 1.5, 1 / 40, foolbox.attacks.L2PGD),
)


class Network(nn.Module):
    """The network: ``form`` of our convolution and our pooling, or flax's own of both."""

    form: str | None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Logits."""
        for index, features in enumerate((16, 32)):
            settings = {"padding": "VALID", "name": f"convolution_{index}"}
            if self.form is None:
                convolved = nn.Conv(features, (5, 5), **settings)(x)
                x = nn.max_pool(nn.relu(convolved), (2, 2), strides=(2, 2))
            else:
                convolved = Conv(features, (5, 5), form=self.form, **settings)(x)
                x = max_pool(nn.relu(convolved), (2, 2))
        x = nn.relu(nn.Dense(100, name="hidden")(x.reshape(x.shape[0], -1)))
        return nn.Dense(10, name="logits")(x)


def trained(images: np.ndarray, labels: np.ndarray) -> Any:
    """The variables after Adam on batches drawn with replacement."""
    model, adam = Network("windows"), optax.adam(2e-3)
    variables = model.init(jax.random.key(0), images[:1])

    def loss(variables: Any, batch: Array) -> Array:
        logits = model.apply(variables, jnp.asarray(images)[batch])
        return optax.softmax_cross_entropy_with_integer_labels(logits, jnp.asarray(labels)[batch]).mean()

    def step(carry: Any, key: Array) -> tuple[Any, None]:
        variables, state = carry
        batch = jax.random.randint(key, (BATCH_SIZE,), 0, len(images))
        updates, state = adam.update(jax.grad(loss)(variables, batch), state)
        return (optax.apply_updates(variables, updates), state), None

    keys = jax.random.split(jax.random.key(1), TRAINING_STEPS)
    train = jax.jit(lambda variables: jax.lax.scan(step, (variables, adam.init(variables)), keys)[0][0])
    return train(variables)


def torch_network(variables: Any) -> torch.nn.Module:
    """The same weights in PyTorch: images and channels first, frozen, in evaluation mode."""
    layers, params = torch.nn, jax.tree.map(np.asarray, variables["params"])
    network = layers.Sequential(
        *(layers.Conv2d(1, 16, 5), layers.ReLU(), layers.MaxPool2d(2)),
        *(layers.Conv2d(16, 32, 5), layers.ReLU(), layers.MaxPool2d(2)),
        *(layers.Flatten(), layers.Linear(512, 100), layers.ReLU(), layers.Linear(100, 10)),
    )
    # PyTorch flattens channels first: the rows of the dense kernel in that order.
    hidden = params["hidden"]["kernel"].reshape(4, 4, 32, 100).transpose(2, 0, 1, 3).reshape(512, 100)
    weights = [
        params["convolution_0"]["kernel"].transpose(3, 2, 0, 1),
        params["convolution_0"]["bias"],
        params["convolution_1"]["kernel"].transpose(3, 2, 0, 1),
        params["convolution_1"]["bias"],
        *(hidden.T, params["hidden"]["bias"]),
        *(params["logits"]["kernel"].T, params["logits"]["bias"]),
    ]
    for parameter, weight in zip(network.parameters(), weights, strict=True):
        parameter.data = torch.from_numpy(weight.copy())
    return network.eval().requires_grad_(False)


def foolbox_attack(attack: Attack, start: Any) -> Any:
    """Foolbox's attack from ``start`` in place of a start of its own."""

    class FromStart(attack.theirs):
        def get_random_start(self, x0: Any, epsilon: float) -> Any:
            return eagerpy.astensor(start)

    return FromStart(rel_stepsize=attack.relative_step, steps=NUM_STEPS)


def make_runs(
    attack: Attack, variables: Any, images: np.ndarray, labels: np.ndarray
) -> tuple[dict[str, paired.Run], dict[str, Callable[[], np.ndarray]]]:
    """What is timed, by row, and the images each row ended at."""
    x, y, key = jnp.asarray(images), jnp.asarray(labels), jax.random.key(2)
    # pgd's own first start: the key folded with the index of the image, then with that of the restart.
    keys = jax.vmap(jax.random.fold_in, (0, None))(_attack_arguments.image_keys(key, len(x)), 0)
    radii = jnp.full(len(x), attack.radius)
    start = x + _steps.uniform_in_ball(keys, x, radii, attack.norm)
    start = _steps.project(start, x, radii, attack.norm, (0.0, 1.0))

    def channels_first(array: Array) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(np.moveaxis(np.asarray(array), -1, 1)))

    def ours(form: str) -> Callable[[], Any]:
        logits_fn = functools.partial(Network(form).apply, variables)
        settings = {"radius": attack.radius, "norm": attack.norm, "num_steps": NUM_STEPS}
        settings["step_size"] = attack.relative_step * attack.radius
        return lambda: robustness.pgd(logits_fn, x, y, key, **settings).x.block_until_ready()

    def theirs(model: Any, images: Any, labels: Any, start: Any) -> Callable[[], Any]:
        method = foolbox_attack(attack, start)
        return lambda: method(model, images, labels, epsilons=attack.radius)[1]

    def on_jax(form: str | None) -> Callable[[], Any]:
        logits_fn = jax.jit(functools.partial(Network(form).apply, variables))
        run = theirs(foolbox.JAXModel(logits_fn, bounds=(0, 1)), x, y, start)
        return lambda: run().block_until_ready()

    frozen = foolbox.PyTorchModel(torch_network(variables), bounds=(0, 1), device="cpu")
    in_torch = (channels_first(x), torch.from_numpy(labels.astype(np.int64)), channels_first(start))
    runs = {OURS: ours("direct")}
    runs |= dict(zip(PEERS, (on_jax(None), on_jax("direct"), theirs(frozen, *in_torch)), strict=True))
    last = PEERS[-1]
    ends = {name: (lambda run=run: np.asarray(run())) for name, run in runs.items()}
    return runs, ends | {last: lambda: np.moveaxis(runs[last]().numpy(), 1, -1)}


def measure(
    attack: Attack, variables: Any, images: np.ndarray, labels: np.ndarray, rounds: int
) -> list[dict[str, Any]]:
    """Seconds, ratios to the first row and share of images broken, by one judge for all rows."""
    runs, ends = make_runs(attack, variables, images, labels)
    judge = jax.jit(functools.partial(Network(None).apply, variables))
    success = {}
    for name, end in ends.items():
        points = end()
        moved = np.linalg.norm((points - images).reshape(len(images), -1), attack.norm, axis=1).max()
        if points.min() < 0 or points.max() > 1 or moved > attack.radius * (1 + 1e-4):
            msg = f"{name}, {attack.name}: a point outside the box or the ball (distance {moved})."
            raise AssertionError(msg)
        success[name] = float(np.mean(np.asarray(judge(points)).argmax(1) != labels))
    for peer in PEERS:
        if success[OURS] < success[peer] - 0.01:
            msg = (
                f"{attack.name}: {OURS} breaks {success[OURS]:.1%} of the images, {peer} {success[peer]:.1%}."
            )
            raise AssertionError(msg)
    seconds = paired.interleave(runs, rounds)
    rows = []
    for name, values in seconds.items():
        row: dict[str, Any] = {"attack": attack.name, "row": name, "success": success[name]}
        for column, clock in enumerate(("wall", "cpu")):
            ratio = values[:, column] / seconds[OURS][:, column]
            row[f"{clock}_s"] = float(np.median(values[:, column]))
            row[f"{clock}_ratio"] = [float(f(ratio)) for f in (np.median, np.min, np.max)]
        rows.append(row)
    return rows


def table(results: list[dict[str, Any]], where: dict[str, Any], title: str) -> rich.table.Table:
    """The rows as they are read."""
    result = rich.table.Table(title=title, caption=paired.caption(where))
    for heading in ("attack", "row"):
        result.add_column(heading)
    for heading in ("broken", "wall s", "CPU s", "wall, over ours", "CPU, over ours"):
        result.add_column(heading, justify="right", no_wrap=True)
    for row in results:
        ratios = ("{:.2f} \\[{:.2f}, {:.2f}]".format(*row[f"{clock}_ratio"]) for clock in ("wall", "cpu"))
        numbers = (f"{row['success']:.1%}", f"{row['wall_s']:.2f}", f"{row['cpu_s']:.2f}")
        result.add_row(row["attack"], row["row"], *numbers, *ratios)
    return result


def main() -> None:
    """Trains, attacks, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", help=f"holds MNIST's files (default: ${_datasets.DATA_VARIABLE})")
    parser.add_argument("--num-images", type=int, default=300, help="attacked (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="timed (default %(default)s)")
    parser.add_argument("--one-core", action="store_true", help="pin the process to one core")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    arguments = parser.parse_args()
    for name in ("num_images", "rounds"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, got {getattr(arguments, name)}")
    if arguments.one_core:  # before XLA counts its threads
        os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
    jax.config.update("jax_platforms", "cpu")
    torch.set_num_threads(
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    )
    where = paired.environment(("jax", "flax", "foolbox", "torch"))
    try:
        data = _datasets.mnist(arguments.data_dir).as_float()
    except FileNotFoundError as error:
        parser.error(str(error))
    variables = trained(data.train_images[:TRAINING_IMAGES], data.train_labels[:TRAINING_IMAGES])
    images, labels = data.test_images[: arguments.num_images], data.test_labels[: arguments.num_images]
    accuracy = float(np.mean(np.asarray(Network(None).apply(variables, images)).argmax(1) == labels))
    results = []
    for attack in ATTACKS:
        results += measure(attack, variables, images, labels, arguments.rounds)
    title = f"{NUM_STEPS} steps on {len(images)} images of MNIST ({accuracy:.1%} right); median \\[least, greatest]"
    # A pipe has no width of its own, and 80 columns would cut the ratios.
    rich.console.Console(width=None if sys.stdout.isatty() else 120).print(table(results, where, title))
    if arguments.json:
        record = {
            "environment": where,
            "images": len(images),
            "rounds": arguments.rounds,
            "accuracy": accuracy,
        }
        arguments.json.write_text(json.dumps({**record, "rows": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
