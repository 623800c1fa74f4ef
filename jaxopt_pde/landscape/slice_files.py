"""Slices that take hours: rows kept in a file as they come, and taken up again after an interruption."""

import functools
import hashlib
import json
import os
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Array, Float, Key

from .. import _validate
from ._slice_arguments import Arguments, check_arguments
from .estimate import Estimate
from .relaxation import Relaxation
from .slices import evaluate_points, finish_slice

__all__ = ["resumable_slice"]

_VERSION = 1
_FINGERPRINT, _POINTS = "arguments", "points_done"


def resumable_slice(
    path: str | os.PathLike[str],
    loss_fn: Callable[..., Float[Array, ""]],
    params: Any,
    directions: Sequence[Any],
    coordinates: Sequence[Float[Array, " points"]],
    *,
    smoothing: Relaxation | None = None,
    key: Key[Array, ""] | None = None,
    data: Any = None,
    batch_size: int | None = None,
    points_at_once: int = 1,
    sharding: NamedSharding | None = None,
    rows_at_once: int = 1,
    progress: Callable[[int, int], Any] | None = None,
) -> Float[Array, "..."] | Estimate:
    """:func:`slice` that keeps its finished rows in a file, and after an interruption goes on from there.

    A row is all points with one index along the first direction. The file is replaced as a whole after every group of
    rows, so that it is never half written; it remembers (as hashes) what it was made from. The result is that of
    :func:`slice` to the last bit, however often it was interrupted.

    Args:
        path: of the ``.npz`` file. It is made if it is not there; its directory must be.
        loss_fn: as for :func:`slice`. Of it the file knows only the module and name: a function that was edited between
            two runs is taken for the same.
        params: as there.
        directions: as there.
        coordinates: as there.
        smoothing: as there.
        key: as there.
        data: as there. It is hashed once, which for a loader takes one more pass, and every group of rows passes
            through it once.
        batch_size: as there.
        points_at_once: as there.
        sharding: as there; another one may be given when the slice is resumed.
        rows_at_once: rows between two writings of the file; may change between runs. With few columns or a loader take
            more.
        progress: called as ``progress(rows done, rows in all)`` after every writing, and at the start.

    Returns:
        What :func:`slice` returns.

    Raises:
        ValueError: the file belongs to other arguments (the message names them) or is damaged; and what :func:`slice`
            raises.
        TypeError: as :func:`slice`; also under ``jit``, where nothing can be written.

    Example:
        >>> import pathlib, tempfile
        >>> import jax.numpy as jnp
        >>> from jaxopt_pde import landscape
        >>> def loss(params):
        ...     return jnp.sum(params**2)
        >>> directions, axes = tuple(jnp.eye(2)), (jnp.linspace(-1.0, 1.0, 5), jnp.linspace(0.0, 1.0, 3))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder) / "plane.npz"
        ...     first = landscape.resumable_slice(path, loss, jnp.zeros(2), directions, axes)
        ...     again = landscape.resumable_slice(
        ...         path, loss, jnp.zeros(2), directions, axes, progress=lambda done, rows: print(done, "of", rows))
        5 of 5
        >>> print(again[:, 0], bool(jnp.all(first == again)))
        [1.   0.25 0.   0.25 1.  ] True
    """
    _validate.check_count("rows_at_once", rows_at_once)
    if progress is not None and not callable(progress):
        msg = f"progress must be a function of two numbers, got {progress!r}."
        raise TypeError(msg)
    path = Path(path)
    checked = check_arguments(
        loss_fn, params, directions, coordinates, smoothing, key, data, batch_size, points_at_once, sharding
    )
    traced = (checked.params, checked.directions, checked.points, checked.smoothing, checked.key, data)
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(traced)):
        msg = "resumable_slice writes a file and cannot run under jit, vmap or grad: use slice there."
        raise TypeError(msg)
    fingerprint = _fingerprint(checked, data, batch_size)
    total, rows = checked.points.shape[0], checked.shape[0]
    columns = total // rows
    done, parts = 0, {}
    if path.exists():
        done, parts = _read(path, fingerprint, total)
    if progress is not None:
        progress(done // columns, rows)
    group = rows_at_once * columns
    while done < total:
        # The last group is filled up with its last point: all have one shape and run one program.
        index = np.minimum(np.arange(done, done + group), total - 1)
        new = jax.device_get(evaluate_points(checked, checked.points[index]))
        taken = min(group, total - done)
        new = {name: part[:taken] for name, part in new.items()}
        parts = {name: np.concatenate([parts[name], part]) for name, part in new.items()} if parts else new
        done += taken
        _write(path, fingerprint, done, parts)
        if progress is not None:
            progress(done // columns, rows)
    return finish_slice(jax.tree.map(jnp.asarray, parts), checked)


def _fingerprint(checked: Arguments, data: Any, batch_size: int | None) -> dict[str, str]:
    """One short text for each argument that the values depend on."""
    function = checked.loss_fn
    while isinstance(function, functools.partial):
        function = function.func
    name = f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', type(function).__qualname__)}"
    smoothing, seed = checked.smoothing, "none"
    if checked.key is not None:
        seed = f"{jax.random.key_impl(checked.key)} {_hash(jax.random.key_data(checked.key))}"
    fixed = "none"
    if smoothing is not None:
        fixed = f"{smoothing.method} {smoothing.num_samples} {smoothing.scale} {smoothing.boundary} "
        fixed += _hash([np.float64(smoothing.smoothing_time), np.float64(smoothing.temperature)])
    return {
        "version": str(_VERSION),
        "loss_fn": name,
        "params": _hash(checked.params),
        "directions": _hash(checked.directions),
        "coordinates": f"{checked.shape} {_hash(checked.points)}",
        "smoothing": fixed,
        "key": seed,
        "data": "none" if data is None else _hash_batches(data) if callable(data) else _hash(data),
        "batch_size": str(batch_size),
        "points_at_once": str(checked.points_at_once),
    }


def _hash(tree: Any) -> str:
    """SHA-256 of paths, dtypes, shapes and bytes of all leaves."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree.leaves_with_path(tree):
        array = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape};".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _hash_batches(data: Callable[[], Any]) -> str:
    return hashlib.sha256(" ".join(map(_hash, data())).encode()).hexdigest()


def _write(path: Path, fingerprint: dict[str, str], done: int, parts: dict[str, np.ndarray]) -> None:
    """Replaces the file in one step: whoever stops the program finds the old or the new one."""
    handle, temporary = tempfile.mkstemp(prefix=path.name + ".", suffix=".partial", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(file, **{_FINGERPRINT: json.dumps(fingerprint), _POINTS: done}, **parts)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _read(path: Path, fingerprint: dict[str, str], total: int) -> tuple[int, dict[str, np.ndarray]]:
    """The points done and their parts; raises if the file is damaged or of other arguments."""
    try:
        with path.open("rb") as handle, np.load(handle, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        found = json.loads(str(arrays.pop(_FINGERPRINT)))
        done = int(arrays.pop(_POINTS))
        whole = 0 < done <= total if found == fingerprint else done > 0
        if not whole or not arrays or any(array.shape[:1] != (done,) for array in arrays.values()):
            raise KeyError("points")
        differing = [name for name in fingerprint if found.get(name) != fingerprint[name]]
    except (OSError, EOFError, KeyError, ValueError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        msg = f"path must be a file made by resumable_slice, got {str(path)!r}, which is damaged or another: delete it."
        raise ValueError(msg) from error
    if differing:
        msg = (
            f"path={str(path)!r} holds a slice made with another {', '.join(differing)}: give the same arguments to "
            "resume it, or another path."
        )
        raise ValueError(msg)
    return done, arrays
