"""Hessian spectra beside PyHessian, and a plane beside plain evaluations, on a CPU: same weights and images.

    python benchmarks/landscape.py [--images 500] [--data-dir DIR] [--repetitions N] [--one-core] [--json PATH]

MNIST, from ``--data-dir`` or JAXOPT_PDE_DATA, or scikit-learn's digits scaled up to 28 by 28 where there is none; the
network of benchmarks/attacks.py (two 5x5 convolutions, 65,558 parameters), trained by 250 steps of Adam, and its
cross-entropy over the first training images, all in one batch. The tables:

* top eigenvalue: `landscape.top_eigenvalues`, a round of 8 products at tolerance 1e-2, and with its defaults, a round
  of 12 at 1e-4, against PyHessian's power iteration with tolerances 1e-4 and 1e-6, which are changes from one step to
  the next and not errors. PyHessian's rows make its `hessian` too, whose stored graph every product uses. Errors are
  relative to the greatest Ritz value of 40 Lanczos steps: compare rows of about the same, the first with the third and
  the second with the last. What PyHessian takes and returns depends on the start it draws, another each time.
* density: 30 steps from one probe, against PyHessian's `density(30, 1)`. The extreme Ritz values of both are compared
  with each other and the run fails where they differ by more than 1e-2 of the greatest: 30 steps are not enough for
  the least eigenvalue, which so depends on the probe.
* plane: `landscape.slice` of --points by --points (51) points against as many calls of the jitted loss. Divided by
  their number, so that a smaller plane gives nearly the same ratio.

PyHessian 0.1 calls torch.eig, which PyTorch no longer has; this file puts one in its place. All rows run in one process
in the order A, B, B, A, ..., after two rounds that compile. Beside other busy processes PyTorch's threads wait for each
other: use ``--one-core``, which also pins XLA to one thread. The allocator's settings of benchmarks/penalties.py matter
here as well.
"""

import functools
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any

import attacks
import jax
import jax.numpy as jnp
import numpy as np
import optax
import paired

from experiments import _datasets
from jaxopt_pde import landscape

try:
    import pyhessian
    import torch
except ImportError as error:
    print(f'{error}. Install with: pip install -e ".[benchmarks]"', file=sys.stderr)
    sys.exit(2)

STEPS = 30  # of Lanczos, for the density
EXACT_STEPS = 40

model = attacks.Network("windows")


def loss_fn(variables: Any, batch: Any) -> jax.Array:
    """Mean cross-entropy."""
    images, labels = batch
    return optax.softmax_cross_entropy_with_integer_labels(model.apply(variables, images), labels).mean()


def torch_eig(matrix: torch.Tensor, eigenvectors: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """PyTorch's former function, for a symmetric matrix."""
    values, vectors = torch.linalg.eigh(matrix)
    return torch.stack([values, torch.zeros_like(values)], dim=1), vectors


def images_of(arguments: Any) -> tuple[str, np.ndarray, np.ndarray]:
    """Name, images [n, 28, 28, 1] and labels."""
    try:
        data = _datasets.mnist(arguments.data_dir).as_float()
        return "MNIST", data.train_images, data.train_labels
    except FileNotFoundError:
        data = _datasets.digits()
        scaled = jax.image.resize(data.train_images, (len(data.train_images), 28, 28, 1), "linear")
        return "digits", np.asarray(scaled), data.train_labels


class Peers:
    """The same network in PyTorch, under PyHessian."""

    def __init__(self, variables: Any, images: np.ndarray, labels: np.ndarray) -> None:
        self.network = attacks.torch_network(variables).requires_grad_(True)
        images = torch.from_numpy(np.ascontiguousarray(np.moveaxis(images, -1, 1)))
        self.data = (images, torch.from_numpy(labels.astype(np.int64)))

    def hessian(self) -> Any:
        """PyHessian's object, with the graph of the gradient."""
        self.network.zero_grad(set_to_none=True)
        with warnings.catch_warnings():  # PyTorch's, of a backward pass that keeps its graph
            warnings.simplefilter("ignore")
            return pyhessian.hessian(self.network, torch.nn.CrossEntropyLoss(), data=self.data, cuda=False)

    def top(self, tolerance: float) -> float:
        """By power iteration."""
        return self.hessian().eigenvalues(tol=tolerance)[0][0]

    def density(self) -> tuple[float, float]:
        """The extreme Ritz values."""
        (nodes,), _ = self.hessian().density(iter=STEPS, n_v=1)
        return float(min(nodes)), float(max(nodes))


def spectra(variables: Any, images: np.ndarray, labels: np.ndarray, repetitions: int) -> list[dict[str, Any]]:
    """The first two tables."""
    data, key = (jnp.asarray(images), jnp.asarray(labels)), jax.random.key(5)
    peers = Peers(variables, images, labels)
    density = functools.partial(landscape.spectral_density, loss_fn, variables, data, num_probes=1)
    exact = float(jnp.max(density(jax.random.key(6), num_matvecs=EXACT_STEPS).nodes))
    values: dict[str, np.ndarray] = {}

    def kept(name: str, run: Callable[[], Any]) -> paired.Run:
        def keep() -> None:
            values[name] = np.asarray(run())

        return keep

    def top(**settings: Any) -> jax.Array:
        return landscape.top_eigenvalues(loss_fn, variables, data, key, **settings).mean

    tables = {
        "top eigenvalue": {
            "jaxopt_pde, 8 products": functools.partial(top, num_matvecs=8, tolerance=1e-2),
            "jaxopt_pde, defaults": top,
            "PyHessian, 1e-4": functools.partial(peers.top, 1e-4),
            "PyHessian, 1e-6": functools.partial(peers.top, 1e-6),
        },
        "density": {
            "jaxopt_pde": lambda: density(key, num_matvecs=STEPS).nodes,
            "PyHessian": peers.density,
        },
    }
    rows = []
    for table, runs in tables.items():
        seconds = paired.interleave({name: kept(name, run) for name, run in runs.items()}, repetitions)
        first = next(iter(runs))
        for name in runs:
            least, greatest = float(values[name].min()), float(values[name].max())
            row = {"table": table, "row": name} | paired.ratios(seconds[name], seconds[first])
            rows.append(
                row | {"least": least, "greatest": greatest, "error_ppm": abs(greatest / exact - 1) * 1e6}
            )
            apart = max(abs(least - float(values[first].min())), abs(greatest - float(values[first].max())))
            if apart > 1e-2 * exact:
                msg = f"{table}, {name}: {least} to {greatest}, {apart} apart from {first}."
                raise AssertionError(msg)
    return rows


def plane(
    variables: Any, images: np.ndarray, labels: np.ndarray, points: int, repetitions: int
) -> list[dict[str, Any]]:
    """The third."""
    data = (jnp.asarray(images), jnp.asarray(labels))
    directions = landscape.random_directions(jax.random.key(3), variables)
    line = jnp.linspace(-1.0, 1.0, points)
    jitted = jax.jit(loss_fn)
    values: dict[str, Any] = {}

    def ours() -> None:
        values["plane"] = landscape.slice(loss_fn, variables, directions, (line, line), data=data)
        jax.block_until_ready(values["plane"])

    def plain() -> None:
        for _ in range(points**2):
            jitted(variables, data).block_until_ready()

    seconds = paired.interleave({"loss": plain, "slice": ours}, repetitions)
    centre = values["plane"][points // 2, points // 2]
    if points % 2 and not np.isclose(centre, jitted(variables, data), rtol=1e-4):
        msg = f"the plane's centre is {centre}, the loss {jitted(variables, data)}."
        raise AssertionError(msg)
    return [
        {"table": "plane", "row": name} | paired.ratios(taken / points**2, seconds["loss"] / points**2)
        for name, taken in seconds.items()
    ]


def main() -> None:
    """Trains, times, prints, writes."""
    parser = paired.parser(__doc__, 5)
    parser.add_argument("--images", type=int, default=500, help="in the loss (default %(default)s)")
    parser.add_argument("--points", type=int, default=51, help="of the plane each way (default %(default)s)")
    parser.add_argument("--data-dir", help=f"holds MNIST's files (default: ${_datasets.DATA_VARIABLE})")
    parser.add_argument("--one-core", action="store_true", help="pin the process to one core")
    arguments = parser.parse_args()
    for name in ("images", "points"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(arguments, name)}")
    if arguments.one_core:  # before XLA counts its threads
        os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
    jax.config.update("jax_platforms", "cpu")
    torch.set_num_threads(
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    )
    torch.manual_seed(0)
    torch.eig = torch_eig
    where = paired.environment(("jax", "matfree", "torch", "pyhessian"))
    source, images, labels = images_of(arguments)
    variables = attacks.trained(images[: attacks.TRAINING_IMAGES], labels[: attacks.TRAINING_IMAGES])
    images, labels = images[: arguments.images], labels[: arguments.images]
    rows = spectra(variables, images, labels, arguments.repetitions)
    rows += plane(variables, images, labels, arguments.points, arguments.repetitions)
    title = f"{len(images)} images of {source}: median \\[least, greatest]"
    for table in ("top eigenvalue", "density"):
        chosen = [row for row in rows if row["table"] == table]
        extra = {"least": "least", "greatest": "greatest", "error_ppm": "error, 1e-6"}
        paired.print_rows(f"{table}, {title}", "row", chosen, where, **extra)
    chosen = [row for row in rows if row["table"] == "plane"]
    paired.print_rows(
        f"{arguments.points}x{arguments.points} points, by point, {title}", "row", chosen, where
    )
    paired.write(arguments.json, where, rows, images=len(images), data=source)


if __name__ == "__main__":
    main()
