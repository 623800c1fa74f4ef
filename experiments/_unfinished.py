"""What a scan of the host has done so far: its carry in checkpoints, its outputs in files that are only added."""

import shutil
import time
import warnings
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from experiments._checkpoints import CheckpointMismatch, Checkpoints
from experiments._store import Arrays, StoreError, read_arrays, write_arrays

Carry = TypeVar("Carry")

SECONDS = 1.0  # a checkpoint is made after the first iteration that ends so long after the last one,
COST = 0.05  # and so late that checkpoints hold up the training for at most this share of its time


class Unfinished(AbstractContextManager):
    """The state of a scan on disk, from which a killed process goes on.

    Every checkpoint first adds one file with the outputs since the one before, then saves the carry; the outputs
    count only up to the iteration of the newest whole carry.

    Args:
        directory: of this scan alone; made at the first checkpoint.
        name: of the scan.
        length: its number of iterations.
    """

    def __init__(self, directory: Path, name: str, length: int):
        self.directory = directory
        self._config = {"scan": name, "length": length}
        self._checkpoints: Checkpoints | None = None  # made when needed: most scans are over before
        self._kept = 0
        self._last, self._cost = time.monotonic(), 0.0

    def resume(self, carry: Carry) -> tuple[Carry, list[Arrays]]:
        """The carry and the outputs to go on from; those given and none if nothing whole was kept."""
        if not self.directory.exists():
            return carry, []
        try:
            step, restored = self._open().restore(carry) or (0, carry)
            rows = self._read_outputs(step)
        except CheckpointMismatch as error:  # such as of a run in float64, asked for in float32
            msg = f"{error} `--force` starts the run anew."
            raise CheckpointMismatch(msg) from error
        except StoreError as error:  # unlike results, it can be made again here and now
            warnings.warn(f"{error} Starting {self._config['scan']!r} anew.", RuntimeWarning, stacklevel=4)
            self.discard()
            return carry, []
        self._kept = len(rows)
        return restored, rows

    def _open(self) -> Checkpoints:
        if self._checkpoints is None:
            self._checkpoints = Checkpoints(self.directory / "carry", self._config)
        return self._checkpoints

    def _outputs(self, start: int) -> Path:
        return self.directory / "outputs" / f"{start:09d}.npz"

    def _read_outputs(self, step: int) -> list[Arrays]:
        rows: list[Arrays] = []
        while len(rows) < step:
            stored = read_arrays(self._outputs(len(rows)))
            iterations = int(stored.pop("iterations"))
            outputs = {key.removeprefix("out/"): array for key, array in stored.items()}
            rows += [{key: array[i] for key, array in outputs.items()} for i in range(iterations)]
        return rows[:step]

    def keep(self, carry: Any, rows: list[Arrays]) -> None:
        """Makes a checkpoint, if it is time.

        Args:
            carry: after the last of the rows; it may be donated at once.
            rows: the outputs of all iterations so far.

        Raises:
            StoreError: if this or the checkpoint before cannot be written.
        """
        if time.monotonic() - self._last < max(SECONDS, self._cost / COST):
            return
        checkpoints = self._open()  # once, and not counted: the first time imports orbax
        started = time.monotonic()
        new = rows[self._kept :]
        outputs = {f"out/{key}": array for key, array in stack(new).items()}
        write_arrays(self._outputs(self._kept), {"iterations": np.asarray(len(new)), **outputs})
        checkpoints.save(len(rows), carry)
        self._kept, self._last = len(rows), time.monotonic()
        self._cost = self._last - started

    def discard(self) -> None:
        """Removes everything."""
        try:
            self.close()
        finally:
            shutil.rmtree(self.directory, ignore_errors=True)

    def close(self) -> None:
        """Waits for the checkpoint that is being written; raises StoreError if it cannot be."""
        if self._checkpoints is not None:
            checkpoints, self._checkpoints = self._checkpoints, None
            checkpoints.close()

    def __exit__(self, *exception: object) -> None:
        self.close()


def stack(rows: list[Arrays]) -> Arrays:
    """The outputs of iterations along a new first axis."""
    return {key: np.stack([row[key] for row in rows]) for key in (rows[0] if rows else {})}
