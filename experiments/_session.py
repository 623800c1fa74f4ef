"""How an experiment runs in pieces that are kept: stages, trainings that resume, progress, keys."""

import contextlib
import dataclasses
import shutil
import warnings
import zlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote

import numpy as np

from experiments._leaves import is_key
from experiments._store import Arrays, StoreError, as_arrays, read_arrays, write_arrays
from experiments._unfinished import Unfinished, stack

Carry = TypeVar("Carry")

# JAX is imported inside the functions that need it, so that `list` and `report` answer at once.


class Meter(NamedTuple):
    """What a progress context yields: ``meter.advance(steps, loss=0.3)``, host numbers only."""

    advance: Callable[..., None]


Display = Callable[[str, int | None], AbstractContextManager[Meter]]


def no_display(description: str, total: int | None) -> AbstractContextManager[Meter]:
    """Shows nothing."""
    return contextlib.nullcontext(Meter(lambda steps=1, **metrics: None))


@dataclasses.dataclass(frozen=True)
class Session:
    """How a run reports and keeps what it has done. ``NULL_SESSION`` shows nothing and keeps nothing."""

    directory: Path | None = None
    """Where stages are kept; None keeps none."""
    display: Display = no_display
    """Draws progress; the command line gives one made with rich."""
    tell: Callable[[str], object] = lambda line: None
    """Gets a line about each scan that goes on from a checkpoint."""
    resumed: dict[str, bool] = dataclasses.field(default_factory=dict)
    """Names of the stages so far, and whether each was found finished or begun."""

    def stage(self, name: str, compute: Callable[[], dict[str, Any]]) -> Arrays:
        """The arrays of ``compute()``, or those that an interrupted run of the same config left, bit for bit.

        Args:
            name: any text, once per run.
            compute: takes nothing and must draw its randomness from its own key (see :func:`key_for`), since a
                resumed run does not call the stages before it. A long one has pieces: see :meth:`within`.
        """
        stored = self._recall(name)
        if stored is None:
            stored = as_arrays(compute(), f"stage {name!r}")
            self._keep(name, stored)
        return stored

    def within(self, name: str) -> "Session":
        """The session for the pieces of the stage of this name, which are dropped when that is finished.

        ::

            session.stage(name, lambda: train(config, session.within(name)))
        """
        directory = None if self.directory is None else self._path(name, ".pieces")
        return dataclasses.replace(self, directory=directory, resumed={})

    def scan(
        self, name: str, body: Callable[[Carry, int], tuple[Carry, dict[str, Any]]], carry: Carry, length: int
    ) -> tuple[Carry, Arrays]:
        """``jax.lax.scan`` on the host, checkpointed every second or so: a training that may be interrupted.

        Args:
            name: any text, once per run, shared with the stages.
            body: ``(carry, index) -> (carry, {name: array})``; it may donate the carry. Make one iteration
                worth seconds (a checkpoint falls between two): scan many steps on the device inside.
            carry: a pytree of numbers, arrays and typed keys, of the same types after each iteration. A resumed
                one has the shardings of this one, on however many devices.
            length: number of iterations.

        Returns:
            The last carry and the outputs of all iterations, stacked.

        Raises:
            StoreError: if a checkpoint cannot be written; those before it are intact.
            TypeError: if ``body`` changes the types of the carry.
        """
        import jax

        carry = jax.tree.map(_strongly_typed, carry)
        types = _types(carry)
        if (stored := self._recall(name)) is not None:
            outputs = {key.removeprefix("out/"): a for key, a in stored.items() if key.startswith("out/")}
            leaves, treedef = jax.tree.flatten(carry)
            leaves = [_to_device(stored[f"carry/{i}"], leaf) for i, leaf in enumerate(leaves)]
            return treedef.unflatten(leaves), outputs
        kept = None if self.directory is None else Unfinished(self._path(name, ".scan"), name, length)
        with kept or contextlib.nullcontext():
            carry, rows = kept.resume(carry) if kept else (carry, [])
            if rows:
                self.resumed[name] = True
                self.tell(f"{name}: going on after {len(rows)} of {length} iterations.")
            for index in range(len(rows), length):
                carry, output = body(carry, index)
                carry = jax.tree.map(_strongly_typed, carry)
                if _types(carry) != types:
                    msg = f"scan {name!r}: body must give back a carry of {types}, got {_types(carry)}."
                    raise TypeError(msg)
                rows.append(as_arrays(output, f"scan {name!r}"))
                if kept and len(rows) < length:
                    kept.keep(carry, rows)
        outputs = stack(rows)
        if kept:
            state = {f"carry/{i}": _to_host(leaf) for i, leaf in enumerate(jax.tree.leaves(carry))}
            self._keep(name, state | {f"out/{key}": array for key, array in outputs.items()})
            kept.discard()
        return carry, outputs

    def progress(self, description: str, total: int | None = None) -> AbstractContextManager[Meter]:
        """A context whose ``advance(steps=1, **metrics)`` is shown live, or as a few lines in a log."""
        return self.display(description, total)

    def _recall(self, name: str) -> Arrays | None:
        if self.directory is None:
            return None
        if name in self.resumed:  # on resuming, the second would be handed the arrays of the first
            msg = f"The stage {name!r} is named twice in one run; give each its own name."
            raise ValueError(msg)
        path = self._path(name, ".npz")
        self.resumed[name] = path.exists()
        try:
            return read_arrays(path) if path.exists() else None
        except StoreError as error:  # unlike results, a stage can be made again here and now
            warnings.warn(f"{error} Computing it again.", RuntimeWarning, stacklevel=3)
            self.resumed[name] = False
            return None

    def _keep(self, name: str, arrays: Arrays) -> None:
        if self.directory is not None:
            write_arrays(self._path(name, ".npz"), arrays)
            shutil.rmtree(self._path(name, ".pieces"), ignore_errors=True)

    def _path(self, name: str, kind: str) -> Path:
        return self.directory / f"{quote(name, safe=' =,()')}{kind}"


NULL_SESSION = Session()


def _types(tree: Any) -> tuple[Any, ...]:
    import jax

    leaves, treedef = jax.tree.flatten(tree)
    return treedef, [(leaf.dtype, leaf.shape) for leaf in leaves]


def _strongly_typed(leaf: Any) -> Any:
    """Drops JAX's weak types: they do not survive a file, and would promote differently after resuming."""
    import jax.numpy as jnp

    return leaf if is_key(leaf) else jnp.asarray(leaf, dtype=jnp.asarray(leaf).dtype)


def _to_host(leaf: Any) -> np.ndarray:
    """A leaf as numbers an ``.npz`` knows: keys as their data, bfloat16 and the like as raw bytes."""
    import jax

    array = np.asarray(jax.random.key_data(leaf) if is_key(leaf) else leaf)
    return array.view(f"u{array.dtype.itemsize}") if array.dtype.kind == "V" else array


def _to_device(array: np.ndarray, like: Any) -> Any:
    """Inverse of :func:`_to_host`, with the type and the sharding of ``like``."""
    import jax
    import jax.numpy as jnp

    if is_key(like):
        return jax.random.wrap_key_data(jnp.asarray(array), impl=jax.random.key_impl(like))
    array = jnp.asarray(array if array.dtype == like.dtype else array.view(like.dtype))
    return jax.device_put(array, like.sharding) if len(like.sharding.device_set) > 1 else array


def key_for(seed: int, *names: str | int) -> Any:
    """A JAX key for one purpose of a run: the same whichever other stages ran, and in which order.

    Args:
        seed: the config's.
        names: what the key is for, such as ``"training", method, replica``.
    """
    import jax

    key = jax.random.key(seed)
    for name in names:
        key = jax.random.fold_in(key, zlib.crc32(repr(name).encode()))
    return key
