"""Checkpoints of a training that may be killed at any moment: orbax, with the checks it leaves to its caller."""

import contextlib
import functools
import json
import logging
import os
import re
import shutil
import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

from experiments import _leaves
from experiments._store import StoreError, read_json, write_json

# JAX and orbax are imported inside the functions that need them, so that `list` and `report` answer at once.

PyTree = Any


class CheckpointMismatch(StoreError):  # noqa: N818
    """A stored checkpoint belongs to another configuration or to another state; the message names the difference."""


class Checkpoints(AbstractContextManager):
    """The newest checkpoints of one training, in one directory.

    A save copies the state to the host, returns, and writes in the background into a temporary directory that gets
    its name when it is whole. Older checkpoints go only after that, so a kill at any moment leaves the newest whole
    one. Under ``jax.distributed`` every process makes one with the same arguments, on a file system they share, and
    calls it at the same places with the same global arrays.

    Args:
        directory: made if missing; nothing else may be kept there, and one process (or one group) writes at a time.
        config: what makes the state, as JSON knows it; stored beside the checkpoints.
        keep: how many to keep. With one, a damaged file loses everything.

    Raises:
        CheckpointMismatch: if the checkpoints there are of another configuration.
        StoreError: if the stored configuration is missing or damaged.
        ValueError: for ``keep`` below one.

    Example:
        >>> import tempfile
        >>> import jax
        >>> state = {"key": jax.random.key(0), "x": jax.numpy.ones(3)}
        >>> with tempfile.TemporaryDirectory() as directory, Checkpoints(directory, {"rate": 0.1}) as checkpoints:
        ...     checkpoints.save(7, state)
        ...     step, restored = checkpoints.restore(state)
        >>> step, restored["x"].tolist()
        (7, [1.0, 1.0, 1.0])
    """

    def __init__(self, directory: Path, config: Mapping[str, Any], *, keep: int = 2):
        if keep < 1:
            msg = f"keep must be at least 1, got {keep}."
            raise ValueError(msg)
        import jax

        self.directory, self._keep = Path(directory).resolve(), keep
        new = not self._refuse_others(dict(config))
        self._damaged: set[int] = set()
        self._manager = self._new_manager()
        if new and jax.process_index() == 0:  # the others have read by now: orbax waited for everybody
            write_json(self.directory / "config.json", dict(config))

    def _new_manager(self) -> Any:
        import jax
        import orbax.checkpoint

        _silence()
        if jax.process_index() == 0:
            # What a killed save left. Orbax would do it in a thread, which complains if the program ends before it.
            for path in self.directory.glob(f"*{orbax.checkpoint.utils.TMP_DIR_SUFFIX}*"):
                shutil.rmtree(path)
        return orbax.checkpoint.CheckpointManager(
            self.directory,
            item_handlers=orbax.checkpoint.StandardCheckpointHandler(),  # which else it guesses
            options=orbax.checkpoint.CheckpointManagerOptions(
                max_to_keep=self._keep,
                lightweight_initialize=True,  # else it fails here if one of them is damaged
            ),
        )

    def _refuse_others(self, config: dict[str, Any]) -> bool:
        """Whether there are checkpoints, which then are of this configuration."""
        if not _committed(self.directory):
            return False
        stored, asked = _fields(read_json(self.directory / "config.json")), _fields(config)
        for name in [*stored, *asked]:
            there, here = (fields.get(name, "absent") for fields in (stored, asked))
            if there != here:
                msg = (
                    f"The checkpoints in {self.directory} are of another configuration: {name} is {there} there, "
                    f"{here} here. Ask for that configuration, or give this one its own directory."
                )
                raise CheckpointMismatch(msg)
        return True

    def latest(self) -> int | None:
        """The step of the newest whole checkpoint, or None; one still being written does not count."""
        return max(self._steps(), default=None)

    def _steps(self) -> list[int]:
        """The whole checkpoints on disk (orbax gives them their names last), without those found damaged."""
        return sorted(set(_committed(self.directory)) - self._damaged)

    def save(self, step: int, state: PyTree) -> None:
        """Copies the state and writes it in the background; what it was copied from may be donated at once.

        Args:
            step: larger than those saved before.
            state: a pytree of JAX and NumPy arrays (sharded, of any dtype, typed keys) and numbers.

        Raises:
            StoreError: if the save before this one could not be written, such as on a full disk. The older
                checkpoints are intact, and saving may be tried again.
            TypeError: for a leaf that is neither an array nor a number, or that belongs to one of several processes.
            ValueError: for a step not larger than the last one.
        """
        import jax
        import orbax.checkpoint

        leaves = _leaves.named(state)
        for name, leaf in leaves:
            if jax.process_count() > 1 and isinstance(leaf, jax.Array) and leaf.is_fully_addressable:
                msg = (
                    f"{name} must be an array over all processes, or a NumPy array, got one of this process."
                )
                raise TypeError(msg)
        types = [[name, _leaves.describe(name, leaf)] for name, leaf in leaves]
        arrays = {name: _leaves.as_array(leaf) for name, leaf in leaves}
        self._wait()
        # What was passed over must not stand in the way of the steps that are made again.
        for damaged in self._damaged.intersection(self._manager.all_steps()):
            self._manager.delete(damaged)
        self._damaged.clear()
        if (last := self._manager.latest_step()) is not None and step <= last:
            msg = f"step must be larger than that of the last checkpoint in {self.directory}, {last}, got {step}."
            raise ValueError(msg)
        sums = [_leaves.checksum(array) for array in arrays.values()]
        self._guard(
            lambda: self._manager.save(
                step,
                args=orbax.checkpoint.args.StandardSave(_leaves.storable(arrays)),
                custom_metadata={"leaves": [[*each, check] for each, check in zip(types, sums, strict=True)]},
                force=True,
            )
        )

    def restore(self, like: PyTree) -> tuple[int, PyTree] | None:
        """The newest whole checkpoint, bit for bit; a damaged one is passed over with a warning.

        Args:
            like: the state that was saved, or one of its structure and types: arrays or
                ``jax.ShapeDtypeStruct``. What is restored has its shardings, on whatever devices they are;
                weakly typed arrays come back strongly typed.

        Returns:
            The step and the state; None if there is no checkpoint.

        Raises:
            CheckpointMismatch: if a leaf is missing, or of another shape, dtype or kind of key.
            StoreError: if the save before could not be written.
        """
        import jax

        self._wait()
        leaves = _leaves.named(like)
        for step in reversed(self._steps()):
            arrays, error = {}, None
            try:
                arrays = self._read(step, leaves)
            except CheckpointMismatch:
                raise
            except Exception as caught:  # half a dozen types for damaged files
                error = caught
            if _everywhere(error is None):
                state = [_leaves.like_leaf(arrays[name], leaf) for name, leaf in leaves]
                return step, jax.tree.unflatten(jax.tree.structure(like), state)
            self._damaged.add(step)
            reason = _reason(error) if error else "in another process"
            warnings.warn(
                f"{self.directory / str(step)} cannot be read ({reason}). Taking the checkpoint before it.",
                RuntimeWarning,
                stacklevel=2,
            )
        return None

    def _read(self, step: int, leaves: _leaves.Leaves) -> dict[str, Any]:
        import orbax.checkpoint

        about = self._manager.metadata(step).custom_metadata["leaves"]
        self._refuse_other_leaves(step, about, {name: _leaves.describe(name, leaf) for name, leaf in leaves})
        targets = {name: _leaves.target(leaf) for name, leaf in leaves}
        arrays = self._manager.restore(
            step, args=orbax.checkpoint.args.StandardRestore(_leaves.storable(targets))
        )
        for name, _, written in about:
            found = _leaves.checksum(arrays[name]) if name in arrays else None
            if None not in (found, written) and found != written:
                msg = f"the bytes of {name} are not those that were written"
                raise ValueError(msg)
        return arrays | {n: np.empty(t.shape, t.dtype) for n, t in targets.items() if not t.size}

    def _refuse_other_leaves(self, step: int, about: list[list[Any]], asked: dict[str, str]) -> None:
        stored = {name: kind for name, kind, _ in about}
        for name in [*stored, *asked]:
            there, here = stored.get(name, "absent"), asked.get(name, "absent")
            if there != here:
                msg = (
                    f"{self.directory / str(step)} holds another state: {name} is {there} there, {here} here."
                )
                raise CheckpointMismatch(msg)

    def close(self) -> None:
        """Waits for what is being written.

        Raises:
            StoreError: if it could not be written; older checkpoints are intact.
        """
        try:
            self._wait()
        finally:
            self._manager.close()

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _wait(self) -> None:
        self._guard(self._manager.wait_until_finished)

    def _guard(self, act: Callable[[], object]) -> None:
        import jax

        try:
            act()
        except Exception as error:
            if jax.process_count() == 1:
                # The old one remembers the error of each of its threads, and would raise another at the next restore.
                with contextlib.suppress(Exception):
                    self._manager.close()
                self._manager = self._new_manager()
            msg = (
                f"A checkpoint could not be written to {self.directory} ({_reason(error)}). "
                f"The newest whole one there is of step {self.latest()}."
            )
            raise StoreError(msg) from error


@functools.cache
def _silence() -> None:
    """Keeps from the log what orbax reports in each of its threads before it raises it: here it is told once."""
    logging.getLogger("absl").addFilter(lambda record: f"{os.sep}orbax{os.sep}" not in record.pathname)


def _reason(error: Exception) -> str:
    """One line; tensorstore puts the number of the system's error behind pages of settings."""
    if code := re.search(r"os_error_code='(\d+)'", str(error)):
        return os.strerror(int(code[1]))
    return f"{type(error).__name__}: {error}".partition("\n")[0][:300]


def _committed(directory: Path) -> list[int]:
    names = [path.name for path in directory.iterdir()] if directory.exists() else []
    return [int(name) for name in names if name.isdigit()]


def _fields(config: Any, name: str = "") -> dict[str, str]:
    """The fields of nested mappings by their dotted names, as JSON text (in which NaN equals itself)."""
    if isinstance(config, Mapping) and (config or not name):
        nested = (_fields(value, f"{name}.{key}" if name else str(key)) for key, value in config.items())
        return {field: text for fields in nested for field, text in fields.items()}
    return {name: json.dumps(config)}


def _everywhere(here: bool) -> bool:
    """Whether it is so in all processes."""
    import jax
    from jax.experimental import multihost_utils

    if jax.process_count() == 1:
        return here
    return bool(np.all(multihost_utils.process_allgather(np.asarray(here))))
