"""Starts N processes of a module on this machine, hands on what they print, and leaves none behind.

``python -m experiments._launcher N MODULE ARGUMENTS...`` runs ``python -m MODULE ARGUMENTS...`` N times with
``--coordinator``, ``--num-processes`` and ``--process-id`` appended, and ``--lifeline``, which asks the process to end
when its standard input closes: so it does even where the launcher is killed by SIGKILL. When one process fails, the
others get ``grace`` seconds to say so and go; the rest is terminated, then killed, and all are waited for.
"""

import argparse
import collections
import contextlib
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from experiments._rendezvous import PEER_LOST, free_port

__all__ = ["ProcessFailed", "Worker", "launch"]

LAST_LINES = 15
TERMINATION_SECONDS = 2.0


class ProcessFailed(RuntimeError):  # noqa: N818
    """A process did not end well; the message names it, how it ended, what it printed last, and how to go on.

    Attributes:
        process_id: the one that failed first.
        status: its exit status, negative for a signal.
        statuses: of all processes.
        seconds: from its end to that of the last other.
    """

    def __init__(self, message: str, process_id: int, statuses: Sequence[int], seconds: float):
        super().__init__(message)
        self.process_id = process_id
        self.status = statuses[process_id]
        self.statuses = tuple(statuses)
        self.seconds = seconds


class Worker(NamedTuple):
    """A process that was started, and its last lines."""

    process_id: int
    process: subprocess.Popen
    lines: collections.deque
    reader: threading.Thread


def launch(
    module: str,
    arguments: Sequence[str],
    num_processes: int,
    *,
    on_line: Callable[[int, str], None] = lambda process_id, line: None,
    on_start: Callable[[Sequence[int]], None] = lambda pids: None,
    grace: float = 15.0,
    environment: Mapping[str, str] | None = None,
    each: Callable[[int], Sequence[str]] = lambda process_id: (),
) -> None:
    """Runs ``python -m module arguments`` as N processes until all have ended.

    Args:
        module: what each process runs.
        arguments: the same for all.
        num_processes: N.
        on_line: ``(process_id, line)`` for every line printed, called from a thread for each process.
        on_start: is given the process ids of the operating system, in order.
        grace: seconds that the others have to end by themselves after one has failed.
        environment: variables added to this process's own.
        each: process_id -> further arguments, after all others.

    Raises:
        ProcessFailed: if one ended with another status than 0. None is left when this returns or raises anything.
    """
    shared = [*arguments, "--coordinator", f"127.0.0.1:{free_port()}", "--num-processes", str(num_processes)]
    workers: list[Worker] = []
    try:
        for process_id in range(num_processes):
            command = [*shared, "--process-id", str(process_id), "--lifeline", *each(process_id)]
            workers.append(_start([sys.executable, "-m", module, *command], process_id, environment, on_line))
        on_start([worker.process.pid for worker in workers])
        failed, when = _wait(workers, grace)
    finally:
        _reap(workers)
    if failed is not None:
        statuses = [worker.process.returncode for worker in workers]
        again = shlex.join(["python", "-m", "experiments._launcher", str(num_processes), module, *arguments])
        raise ProcessFailed(_report(workers, failed, again), failed, statuses, time.monotonic() - when)


def _start(command, process_id: int, environment, on_line) -> Worker:
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,  # never written to: its end is what --lifeline waits for
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        cwd=Path(__file__).parents[1],
        env={**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})},
        start_new_session=True,  # Ctrl-C reaches the launcher alone, which ends the others in order
    )
    lines: collections.deque = collections.deque(maxlen=LAST_LINES)

    def read() -> None:
        for line in process.stdout:
            lines.append(line.rstrip("\n"))
            on_line(process_id, lines[-1])

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    return Worker(process_id, process, lines, reader)


def _wait(workers: Sequence[Worker], grace: float) -> tuple[int | None, float]:
    """Waits for all, or for ``grace`` seconds from the first failure; who failed first, and when."""
    failures: list[int] = []
    when, running = 0.0, list(workers)
    while running and not (failures and time.monotonic() > when + grace):
        time.sleep(0.02)
        for worker in [worker for worker in running if worker.process.poll() is not None]:
            running.remove(worker)
            if worker.process.returncode:
                when = when or time.monotonic()
                failures.append(worker.process_id)
    if not failures:
        return None, when
    # Those that ended because of another say so by their status; the runtime of JAX aborts, where it is quicker. If
    # there are no others, it is one that hangs.
    consequences = (PEER_LOST, -signal.SIGABRT)
    causes = [i for i in failures if workers[i].process.returncode not in consequences]
    return [*causes, *(worker.process_id for worker in running), *failures][0], when


def _reap(workers: Sequence[Worker]) -> None:
    for end in (subprocess.Popen.terminate, subprocess.Popen.kill):
        deadline = time.monotonic() + TERMINATION_SECONDS
        for worker in workers:
            end(worker.process)
        for worker in workers:
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.process.wait(max(deadline - time.monotonic(), 0.0))
    for worker in workers:
        worker.process.wait()
        worker.reader.join()
        worker.process.stdin.close()
        worker.process.stdout.close()


def _report(workers: Sequence[Worker], failed: int, again: str) -> str:
    parts = [f"process {failed} of {len(workers)} {_ending(workers[failed].process.returncode)}."]
    for worker in (workers[failed], *(w for w in workers if w.process_id != failed)):
        if worker.process.returncode or worker.process_id == failed:
            parts.append(f"last lines of process {worker.process_id} ({_ending(worker.process.returncode)}):")
            parts.extend(f"  {line}" for line in worker.lines)
    return "\n".join([*parts, f"To start again, from the last checkpoint if any are kept: {again}"])


def _ending(status: int) -> str:
    if status >= 0:
        return f"ended with status {status}"
    with contextlib.suppress(ValueError):
        return f"was ended by {signal.Signals(-status).name}"
    return f"was ended by signal {-status}"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m experiments._launcher", description=__doc__)
    parser.add_argument("num_processes", type=int, metavar="N", help="how many processes to start")
    parser.add_argument("module", metavar="MODULE", help="what each runs, such as experiments._parle_worker")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="its arguments")
    given = parser.parse_args(arguments)
    if given.num_processes < 1:
        parser.error(f"N must be at least 1, got {given.num_processes}")

    def show(process_id: int, line: str) -> None:
        print(f"[{process_id}] {line}", file=sys.stderr, flush=True)

    try:
        launch(given.module, given.arguments, given.num_processes, on_line=show)
    except ProcessFailed as failure:
        print(failure, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted; all processes were ended.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
