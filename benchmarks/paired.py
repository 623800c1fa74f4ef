"""Timing several programs against each other in one process, so that a drifting machine drifts for all."""

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import rich.console
import rich.table

Run = Callable[[], Any]
"""Does the work and waits for its end."""


def interleave(runs: dict[str, Run], repetitions: int) -> dict[str, np.ndarray]:
    """Seconds [repetitions, 2] (wall, CPU of the process) of every run, forwards and backwards in turn.

    Args:
        runs: what to time, by name.
        repetitions: timed rounds, after two rounds that compile and warm up.
    """
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for repetition in range(-2, repetitions):
        for name in list(runs) if repetition % 2 == 0 else reversed(runs):
            wall, cpu = time.perf_counter(), time.process_time()
            runs[name]()
            if repetition >= 0:
                seconds[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return {name: np.asarray(values) for name, values in seconds.items()}


def environment(packages: Iterable[str], device: str | None = None) -> dict[str, Any]:
    """Where and when numbers were taken: date, processor or device, threads, load and versions."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    processor = models[0] if models else platform.processor() or platform.machine()
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "device": device or processor,
        "threads": threads,
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "versions": {
            "python": platform.python_version(),
            **{package: importlib.metadata.version(package) for package in packages},
        },
    }


def caption(where: dict[str, Any]) -> str:
    """One line of :func:`environment` for under a table."""
    versions = ", ".join(f"{name} {version}" for name, version in where["versions"].items())
    return (
        f"{where['device']}, {where['threads']} threads, load average {where['load_average']} at the start; "
        f"{versions}; {where['date']}"
    )


def ratios(seconds: np.ndarray, unit: np.ndarray) -> dict[str, Any]:
    """Median milliseconds and median, least and greatest ratio to ``unit``, round by round, by wall and CPU time.

    Args:
        seconds: of one row, [repetitions, 2] as :func:`interleave` gives them, over whatever is counted.
        unit: the same of the row that is the unit.
    """
    entry: dict[str, Any] = {}
    for column, clock in enumerate(("wall", "cpu")):
        ratio = seconds[:, column] / unit[:, column]
        entry[f"{clock}_ms"] = float(np.median(seconds[:, column]) * 1e3)
        entry[f"{clock}_ratio"] = [float(f(ratio)) for f in (np.median, np.min, np.max)]
    return entry


def print_rows(
    title: str,
    first: str,
    rows: list[dict[str, Any]],
    where: dict[str, Any],
    *,
    digits: int = 2,
    **extra: str,
) -> None:
    """Prints rows of :func:`ratios` with their name under ``"row"``.

    Args:
        title: over the table.
        first: heading of the names.
        rows: what to print.
        where: an :func:`environment`, for under the table.
        digits: of the milliseconds.
        extra: headings of further numbers, by their name in the rows.
    """
    table = rich.table.Table(title=title, caption=caption(where))
    table.add_column(first)
    for heading in ("CPU ms", "CPU ratio", "wall ms", "wall ratio", *extra.values()):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        cells = [
            text
            for clock in ("cpu", "wall")
            for text in (
                f"{row[f'{clock}_ms']:.{digits}f}",
                "{:.2f} \\[{:.2f}, {:.2f}]".format(*row[f"{clock}_ratio"]),
            )
        ]
        table.add_row(row["row"], *cells, *(f"{row[name]:.2f}" for name in extra))
    rich.console.Console(width=None if sys.stdout.isatty() else 120).print(table)


def parser(description: str, repetitions: int) -> argparse.ArgumentParser:
    """The arguments all these benchmarks have: ``--repetitions`` and ``--json``."""
    result = argparse.ArgumentParser(description=description.splitlines()[0])
    result.add_argument(
        "--repetitions", type=_count, default=repetitions, help="timed rounds (default %(default)s)"
    )
    result.add_argument("--json", type=Path, help="also write the rows here")
    return result


def _count(text: str) -> int:
    if int(text) < 1:
        msg = f"must be at least 1, got {text}"
        raise argparse.ArgumentTypeError(msg)
    return int(text)


def here(packages: Iterable[str]) -> dict[str, Any]:
    """The :func:`environment` of JAX's first device."""
    device = jax.devices()[0]
    return environment(packages, None if device.platform == "cpu" else device.device_kind)


def write(path: Path | None, where: dict[str, Any], rows: list[dict[str, Any]], **more: Any) -> None:
    """Writes what was measured as JSON, if a path is given."""
    if path:
        path.write_text(json.dumps({"environment": where, **more, "rows": rows}, indent=2) + "\n")
