"""Runs an experiment (the package docstring says what one is): seeds, times, saves and resumes it."""

import contextlib
import dataclasses
import datetime
import hashlib
import json
import shutil
import time
import warnings
import zlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote

import numpy as np

from experiments._report import code_origin, devices, git_commit
from experiments._store import (
    Arrays,
    StoreError,
    as_arrays,
    read_arrays,
    read_json,
    write_arrays,
    write_atomically,
    write_json,
)

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
    resumed: dict[str, bool] = dataclasses.field(default_factory=dict)
    """Names of the stages so far, and whether each was found finished or begun."""

    def stage(self, name: str, compute: Callable[[], dict[str, Any]]) -> Arrays:
        """The arrays of ``compute()``, or those that an interrupted run of the same config left, bit for bit.

        Args:
            name: any text, once per run.
            compute: takes nothing and must draw its randomness from its own key (see :func:`key_for`),
                since a resumed run does not call the stages before it.
        """
        stored = self._recall(name)
        if stored is None:
            stored = as_arrays(compute(), f"stage {name!r}")
            self._keep(name, stored)
        return stored

    def scan(
        self, name: str, body: Callable[[Carry, int], tuple[Carry, dict[str, Any]]], carry: Carry, length: int
    ) -> tuple[Carry, Arrays]:
        """``jax.lax.scan`` on the host, kept after every iteration: a training that may be interrupted.

        Args:
            name: any text, once per run, shared with the stages.
            body: ``(carry, index) -> (carry, {name: array})``; it may donate the carry. Make one iteration
                worth seconds (it writes the carry to disk): scan many steps on the device inside.
            carry: a pytree of numbers, arrays and typed keys, of the same types after each iteration.
            length: number of iterations.

        Returns:
            The last carry and the outputs of all iterations, stacked.
        """
        import jax

        carry = jax.tree.map(_strongly_typed, carry)
        like, treedef = jax.tree.flatten(carry)
        types, rows = [(leaf.dtype, leaf.shape) for leaf in like], []
        if (stored := self._recall(name)) is not None:
            carry = treedef.unflatten(_to_device(stored[f"carry/{i}"], leaf) for i, leaf in enumerate(like))
            outputs = {key.removeprefix("out/"): a for key, a in stored.items() if key.startswith("out/")}
            rows = [{key: a[i] for key, a in outputs.items()} for i in range(int(stored["iterations"]))]
        for index in range(len(rows), length):
            carry, output = body(carry, index)
            carry = jax.tree.map(_strongly_typed, carry)
            leaves, after = jax.tree.flatten(carry)
            if after != treedef or [(leaf.dtype, leaf.shape) for leaf in leaves] != types:
                msg = f"scan {name!r}: body must give back a carry of {treedef} with {types}, got {carry}."
                raise TypeError(msg)
            rows.append(as_arrays(output, f"scan {name!r}"))
            if self.directory is not None:
                state = {f"carry/{i}": _to_host(leaf) for i, leaf in enumerate(leaves)}
                outputs = {f"out/{key}": array for key, array in _stack(rows).items()}
                self._keep(name, {"iterations": np.asarray(len(rows)), **state, **outputs})
        return carry, _stack(rows)

    def progress(self, description: str, total: int | None = None) -> AbstractContextManager[Meter]:
        """A context whose ``advance(steps=1, **metrics)`` is shown live, or as a few lines in a log."""
        return self.display(description, total)

    def _recall(self, name: str) -> Arrays | None:
        if self.directory is None:
            return None
        if name in self.resumed:  # on resuming, the second would be handed the arrays of the first
            msg = f"The stage {name!r} is named twice in one run; give each its own name."
            raise ValueError(msg)
        path = self.directory / _file_name(name)
        self.resumed[name] = path.exists()
        try:
            return read_arrays(path) if path.exists() else None
        except StoreError as error:  # unlike results, a stage can be made again here and now
            warnings.warn(f"{error} Computing it again.", RuntimeWarning, stacklevel=3)
            self.resumed[name] = False
            return None

    def _keep(self, name: str, arrays: Arrays) -> None:
        if self.directory is not None:
            write_arrays(self.directory / _file_name(name), arrays)


NULL_SESSION = Session()


def _file_name(stage: str) -> str:
    return quote(stage, safe=" =,()") + ".npz"


def _stack(rows: list[Arrays]) -> Arrays:
    return {key: np.stack([row[key] for row in rows]) for key in (rows[0] if rows else {})}


def _is_key(leaf: Any) -> bool:
    import jax

    return isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _strongly_typed(leaf: Any) -> Any:
    """Drops JAX's weak types: they do not survive a file, and would promote differently after resuming."""
    import jax.numpy as jnp

    return leaf if _is_key(leaf) else jnp.asarray(leaf, dtype=jnp.asarray(leaf).dtype)


def _to_host(leaf: Any) -> np.ndarray:
    """A leaf as numbers an ``.npz`` knows: keys as their data, bfloat16 and the like as raw bytes."""
    import jax

    array = np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)
    return array.view(f"u{array.dtype.itemsize}") if array.dtype.kind == "V" else array


def _to_device(array: np.ndarray, like: Any) -> Any:
    """Inverse of :func:`_to_host`, with the type and the sharding of ``like``."""
    import jax
    import jax.numpy as jnp

    if _is_key(like):
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


class Record(NamedTuple):
    """One finished run, as stored; ``reused`` if it was already there when asked for."""

    name: str
    directory: Path
    config: dict[str, Any]
    environment: dict[str, Any]
    results: Arrays
    reused: bool = False


def hashed_fields(config: Any) -> dict[str, Any]:
    """The fields that make the result, ready for JSON (tuples become lists).

    Raises:
        TypeError: for a field that is neither a number, a string, a bool, None, nor a tuple of those.
    """

    def plain(name: str, value: Any) -> Any:
        if isinstance(value, tuple):
            return [plain(name, item) for item in value]
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        msg = f"Config.{name} must be a number, a string, a bool, None or a tuple of those, got {value!r}."
        raise TypeError(msg)

    fields = (field.name for field in dataclasses.fields(config) if field.metadata.get("hash", True))
    return {name: plain(name, getattr(config, name)) for name in fields}


def config_hash(name: str, config: Any) -> str:
    """Twelve hexadecimal digits for the experiment and the hashed fields of its config."""
    text = json.dumps([name, hashed_fields(config)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def execute(
    name: str,
    module: ModuleType,
    config: Any,
    *,
    results_dir: Path = Path("results"),
    force: bool = False,
    display: Display = no_display,
) -> Record:
    """Runs an experiment and stores it, or hands back what is stored for this config.

    Args:
        name: of the experiment, whose module and ``Config`` follow.
        module: what :func:`experiments.__main__.load` returns.
        config: may differ in the fields that are not hashed from the one whose result is stored.
        results_dir: everything is kept in ``results_dir / name``.
        force: discard what is stored for this config first.
        display: how progress is shown.

    Raises:
        TypeError: for a config or results that cannot be stored.
    """
    directory = Path(results_dir) / name / config_hash(name, config)
    stages = directory / "stages"
    origin = code_origin(module)
    if force and directory.exists():
        shutil.rmtree(directory)
    if (directory / "results.npz").exists():
        try:
            record = read_record(directory)
        except StoreError as error:
            warnings.warn(f"{error} Running again.", RuntimeWarning, stacklevel=2)
        else:
            _finish(directory)
            return record._replace(reused=True)
    _keep_stages_of(stages, origin)
    session = Session(stages, display)
    start = time.perf_counter()
    results = as_arrays(module.run(config, session=session), f"results of {name}")
    wall_seconds = round(time.perf_counter() - start, 3)
    environment = {
        **(origin | devices()),
        "git_commit": git_commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "wall_seconds": wall_seconds,  # of this process: the resumed stages took theirs before
        "resumed_stages": [stage for stage, found in session.resumed.items() if found],
    }
    write_json(directory / "config.json", {"experiment": name, "config": hashed_fields(config)})
    write_json(directory / "environment.json", environment)
    write_arrays(directory / "results.npz", results)  # last: its presence says that the run is finished
    _finish(directory)
    return read_record(directory)


def _keep_stages_of(stages: Path, origin: dict[str, Any]) -> None:
    """Drops stages left by other code or other versions: a result is never a mixture of two."""
    made_by = stages / "made_by.json"
    if stages.exists():
        with contextlib.suppress(StoreError):
            if read_json(made_by) == origin:
                return
        shutil.rmtree(stages)
        message = f"{stages}: the experiment or a library changed since the interruption, so starting anew."
        warnings.warn(message, RuntimeWarning, stacklevel=3)
    write_json(made_by, origin)


def _finish(directory: Path) -> None:
    """Makes this run the latest of its experiment and drops its stages."""
    write_atomically(directory.parent / "latest", lambda file: file.write(directory.name.encode()))
    shutil.rmtree(directory / "stages", ignore_errors=True)


def read_record(directory: Path) -> Record:
    """The finished run stored in a directory.

    Raises:
        StoreError: if one of its files is missing or damaged.
    """
    try:
        config = read_json(directory / "config.json")
        environment = read_json(directory / "environment.json")
        results = read_arrays(directory / "results.npz")
    except StoreError as error:
        msg = f"{error} `python -m experiments run {directory.parent.name}` with its flags makes it again."
        raise StoreError(msg) from error
    return Record(config["experiment"], directory, config["config"], environment, results)


def latest(name: str, results_dir: Path = Path("results")) -> Record:
    """The run of an experiment that was asked for last.

    Raises:
        StoreError: if there is none or it is damaged.
    """
    pointer = Path(results_dir) / name / "latest"
    if not pointer.exists():
        msg = f"No result of {name} in {results_dir}: `python -m experiments run {name}` makes one."
        raise StoreError(msg)
    return read_record(pointer.parent / pointer.read_text(encoding="utf-8"))
