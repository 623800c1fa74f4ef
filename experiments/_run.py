"""Runs an experiment (the package docstring says what one is): seeds, times, saves and resumes it."""

import contextlib
import dataclasses
import datetime
import hashlib
import json
import shutil
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from experiments._report import code_origin, devices, git_commit

# Experiments find the names of a session here too.
from experiments._session import NULL_SESSION, Display, Meter, Session, key_for, no_display  # noqa: F401
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
    tell: Callable[[str], object] = lambda line: None,
) -> Record:
    """Runs an experiment and stores it, or hands back what is stored for this config.

    Args:
        name: of the experiment, whose module and ``Config`` follow.
        module: what :func:`experiments.__main__.load` returns.
        config: may differ in the fields that are not hashed from the one whose result is stored.
        results_dir: everything is kept in ``results_dir / name``.
        force: discard what is stored for this config first.
        display: how progress is shown.
        tell: gets a line about everything that an interrupted run left and this one goes on from.

    Raises:
        StoreError: if something cannot be written, such as on a full disk; what was kept before is intact.
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
    if finished := len(list(stages.glob("*.npz"))):
        tell(f"Going on with the run that was interrupted: {finished} finished pieces are kept.")
    session = Session(stages, display, tell)
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
