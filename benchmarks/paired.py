"""Timing several programs against each other in one process, so that a drifting machine drifts for all."""

import datetime
import importlib.metadata
import os
import platform
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

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
