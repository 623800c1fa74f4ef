"""Files that are whole or absent, read back as they were written: the store of the experiments."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]


class StoreError(RuntimeError):
    """A stored file is missing or damaged; the message names it and says what to run."""


def write_atomically(path: Path, write: Callable[[Any], object]) -> None:
    """Gives ``path`` its new content whole or not at all, whenever the process or the machine dies.

    Args:
        path: the file; its directory is made if missing.
        write: writes the content to the binary file it is given.

    Raises:
        StoreError: if it cannot be written, such as on a full disk; what was there before is intact.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())  # else a power cut may keep the new name and lose the bytes
        os.replace(temporary, path)
    except BaseException as error:  # Ctrl-C too
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            msg = f"{path} cannot be written ({error}); what was there before is intact."
            raise StoreError(msg) from error
        raise


def write_json(path: Path, value: Any) -> None:
    """Writes an indented JSON file atomically."""
    write_atomically(path, lambda file: file.write(json.dumps(value, indent=2).encode()))


def as_arrays(values: dict[str, Any], where: str) -> Arrays:
    """The values as NumPy arrays, refusing what an ``.npz`` file would not give back as it was.

    Raises:
        TypeError: for objects and for dtypes NumPy does not know by itself, such as bfloat16.
        ValueError: for a name that ``np.savez`` keeps for itself.
    """
    arrays = {name: np.asarray(value) for name, value in values.items()}
    for name, array in arrays.items():
        if name in ("file", "allow_pickle"):
            msg = f"{where}: {name!r} cannot name an array (np.savez uses it), choose another name."
            raise ValueError(msg)
        if array.dtype.hasobject or array.dtype.kind == "V":
            msg = f"{where}: {name!r} has dtype {array.dtype}, expected numbers, booleans or strings."
            raise TypeError(msg)
    return arrays


def write_arrays(path: Path, arrays: Arrays) -> None:
    """Writes an ``.npz`` atomically; the same arrays give the same bytes."""
    write_atomically(path, lambda file: np.savez(file, **arrays))


def _read(path: Path, parse: Callable[[Path], Any]) -> Any:
    try:
        return parse(path)
    except Exception as error:  # NumPy, zipfile and json raise half a dozen types for a damaged file
        msg = f"{path} cannot be read ({type(error).__name__}: {error})."
        raise StoreError(msg) from error


def read_arrays(path: Path) -> Arrays:
    """Reads an ``.npz`` without pickle; raises StoreError when it is missing, truncated or altered."""

    def parse(path: Path) -> Arrays:
        # NumPy leaves a damaged file open if it opened it itself
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}

    return _read(path, parse)


def read_json(path: Path) -> Any:
    """Reads a JSON file; raises StoreError when it is missing or is not JSON."""
    return _read(path, lambda path: json.loads(path.read_text(encoding="utf-8")))
