"""One process of a training with Parle and with data-parallel SGD; ``python -m experiments._parle_worker --help``.

By hand, or by a scheduler such as Slurm, start it N times with the same arguments but ``--process-id`` 0 … N − 1::

    python -m experiments._parle_worker --coordinator HOST:PORT --num-processes N --process-id I --directory DIR

HOST is the machine of process 0, and DIR, which all must see, holds the checkpoints and the curves. The same command
after a kill goes on from the newest checkpoint, with any N that divides the replicas.
"""

import argparse
import contextlib
import functools
import hashlib
import json
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments._parle_settings import METHODS, Settings
from experiments._rendezvous import PEER_LOST, Disagreement, Meeting, exit_with_parent, meet, stop

# JAX is imported by `train`, after the processes have met: those started wrongly say so at once.

MISTAKE = 78
"""Exit status for processes started differently; ``sysexits.h`` calls it a configuration error."""


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m experiments._parle_worker")
    parser.add_argument("--directory", type=Path, required=True, help="of the checkpoints and the curves")
    parser.add_argument("--settings", default="{}", help="fields of Settings as JSON; left out: the defaults")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="what to train")
    parser.add_argument(
        "--data", type=Path, help="an .npz with train_images, ...; default: scikit-learn's digits"
    )
    parser.add_argument("--no-checkpoints", action="store_true", help="keep nothing on the way")
    parser.add_argument("--coordinator", default="127.0.0.1:0", help="host:port at which process 0 listens")
    parser.add_argument("--num-processes", type=int, default=1)
    parser.add_argument("--process-id", type=int, default=0)
    parser.add_argument("--platform", help="such as cpu (one device for a process); default: JAX's choice")
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds to wait for the other processes")
    parser.add_argument(
        "--silence", type=float, default=30.0, help="seconds after which a silent one is lost"
    )
    parser.add_argument("--lifeline", action="store_true", help="end when the standard input closes")
    return parser.parse_args(arguments)


class Progress:
    """Where this process is, for its last words."""

    def __init__(self, given: argparse.Namespace):
        self.where = "before the first gradient"
        self._given = given

    def reached(self, method: str, total: int, gradients: int, train_loss: float) -> None:
        """Notes it; process 0 prints it."""
        self.where = f"after {gradients} of {total} gradients of {method}"
        if self._given.process_id == 0:
            print(f"{method}: {gradients} of {total} gradients, training loss {train_loss:.4f}", flush=True)

    def stop(self, sentence: str, status: int) -> None:
        """Ends the process with one line that says what happened, where, and how to go on."""
        given = self._given
        resume = f"the same command on all processes goes on from the last checkpoint in {given.directory}"
        if given.no_checkpoints:
            resume = "nothing was kept (--no-checkpoints)"
        stop(
            f"process {given.process_id} of {given.num_processes} stops {self.where}: {sentence}; {resume}.",
            status,
        )


def loopback_bytes() -> float:
    """Bytes sent over the loopback interface of this machine by anybody since it started; NaN if not known."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/net/dev").read_text().splitlines():
            name, _, counters = line.partition(":")
            if name.strip() == "lo":
                return float(counters.split()[8])
    return float("nan")


def read_data(path: Path | None, seed: int) -> dict[str, np.ndarray]:
    """The split of the data, from a file or made again."""
    from experiments._store import read_arrays

    if path is not None:
        return read_arrays(path)
    from experiments import _datasets

    data = _datasets.digits(validation=0.2, test=0.3, seed=seed)
    parts = ("train", "validation", "test")
    return {
        f"{part}_{what}": getattr(data, f"{part}_{what}") for part in parts for what in ("images", "labels")
    }


def train(
    settings: Settings,
    method: str,
    arrays: Mapping[str, np.ndarray],
    devices: Sequence[Any],
    directory: Path | None = None,
    reached: Callable[[int, float], None] = lambda gradients, train_loss: None,
) -> dict[str, np.ndarray]:
    """Trains a method, from the newest checkpoint if there is one.

    Args:
        settings: what to train.
        method: one of ``METHODS``.
        arrays: the data by the names of ``Data``, the same in every process.
        devices: where the replicas are; in several processes all devices of all.
        directory: of the checkpoints; None keeps none.
        reached: called after every report with the gradients so far and the training loss.

    Returns:
        Curves [report] by name, with the seconds and the loopback bytes of each report; ``counted_bytes``, what all
        devices send in one by the compiled program and the ring algorithm; ``collectives``, rows of payload in bytes
        and times in one report; ``resumed_at``, reports found in the checkpoint.

    Raises:
        ValueError: if the replicas do not spread evenly.
    """
    import jax

    from experiments._checkpoints import Checkpoints
    from experiments._collectives import collectives, ring_bytes
    from experiments._parle_training import Data, first_key, make_mesh, make_programs, place

    settings.check_processes(len(devices))
    mesh = make_mesh(devices)
    programs = make_programs(settings, method, mesh)
    rate = np.float32(settings.rate(method))
    data = place(Data(**{name: arrays[name] for name in Data._fields}), mesh)
    begin = lambda: programs.start(first_key(settings.seed), rate)
    state = jax.jit(begin, out_shardings=programs.shardings)()
    advance = jax.jit(programs.advance, donate_argnums=0, out_shardings=programs.shardings)
    advance = advance.lower(state, rate, data).compile()
    measure = jax.jit(programs.measure, out_shardings=data.train_labels.sharding)
    names = ("train_loss", "validation_error", "test_error", "seconds", "measured_bytes")
    curves = {name: np.full(settings.num_reports, np.nan, np.float32) for name in names}
    done = 0
    with contextlib.ExitStack() as stack:
        checkpoints = None
        if directory is not None:
            config = {"method": method, **settings.as_json()}
            checkpoints = stack.enter_context(Checkpoints(directory, config))
            if (found := checkpoints.restore((state, curves))) is not None:
                done, (state, restored) = found
                curves = {name: np.array(curve) for name, curve in restored.items()}
        for report in range(done, settings.num_reports):
            sent, start = loopback_bytes(), time.perf_counter()
            state = jax.block_until_ready(advance(state, rate, data))
            found = {"seconds": time.perf_counter() - start, "measured_bytes": loopback_bytes() - sent}
            found |= jax.device_get(measure(state, data))
            for name, curve in curves.items():
                curve[report] = found[name]
            if checkpoints is not None:
                checkpoints.save(report + 1, (state, curves))
            reached((report + 1) * settings.gradients_per_report, float(curves["train_loss"][report]))
    said = collectives(advance)
    return {
        **curves,
        "counted_bytes": np.array(sum(map(ring_bytes, said)) * len(devices)),
        "collectives": np.array([(each.num_bytes, each.times) for each in said], int).reshape(-1, 2),
        "resumed_at": np.array(done),
    }


def compute(
    given: argparse.Namespace, settings: Settings, meeting: Meeting | None, progress: Progress
) -> None:
    """Joins the others, trains, and lets process 0 write the curves."""
    import jax

    from experiments._store import write_arrays

    if given.platform:
        jax.config.update("jax_platforms", given.platform)
    if given.platform == "cpu":
        jax.config.update("jax_num_cpu_devices", 1)
    if meeting is not None:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        with contextlib.suppress(AttributeError):  # it would keep SIGTERM from ending a process
            jax.config.update("jax_enable_preemption_service", False)
        jax.distributed.initialize(
            meeting.service,
            given.num_processes,
            given.process_id,
            initialization_timeout=int(given.timeout),
            heartbeat_timeout_seconds=int(2 * given.silence) + 1,  # ours is first, and says who
            shutdown_timeout_seconds=int(given.timeout),
        )
    settings.check_processes(jax.device_count())
    arrays = read_data(given.data, settings.seed)
    kept = None if given.no_checkpoints else given.directory / "checkpoints"
    for method in given.methods:
        total = settings.num_reports * settings.gradients_per_report
        reached = functools.partial(progress.reached, method, total)
        curves = train(settings, method, arrays, jax.devices(), kept and kept / method, reached)
        if given.process_id == 0:
            write_arrays(given.directory / f"{method}.npz", curves)
    if meeting is not None:
        jax.distributed.shutdown()
        meeting.leave()


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one process; returns its exit status."""
    given = parse(arguments)
    if given.lifeline:
        exit_with_parent()
    progress, meeting = Progress(given), None
    try:
        settings = Settings.from_json(json.loads(given.settings))
        settings.check_processes(given.num_processes)
        if given.num_processes > 1:
            meeting = meet(
                given.coordinator,
                given.num_processes,
                given.process_id,
                view(given, settings),
                timeout=given.timeout,
                silence=given.silence,
            )
    except (Disagreement, OSError, TypeError, ValueError) as error:
        print(f"process {given.process_id} of {given.num_processes} did not start: {error}", file=sys.stderr)
        return MISTAKE
    if meeting is None:
        compute(given, settings, None, progress)
        return 0
    meeting.watch(lambda sentence: progress.stop(sentence, PEER_LOST))
    try:
        compute(given, settings, meeting, progress)
    except (Exception, KeyboardInterrupt) as error:
        if type(error).__name__ == "JaxRuntimeError":
            meeting.reason()  # the watch ends this process when it knows who is gone
        traceback.print_exc()
        summary = f"{type(error).__name__}: {error}".partition("\n")[0]
        meeting.leave(summary)
        progress.stop(summary, 1)  # at once: leaving JAX in order would wait for the others
    return 0


def view(given: argparse.Namespace, settings: Settings) -> dict[str, Any]:
    """What must be the same in every process."""
    data = None if given.data is None else hashlib.sha256(given.data.read_bytes()).hexdigest()[:12]
    names = ("methods", "no_checkpoints", "platform")
    return {**settings.as_json(), **{name: getattr(given, name) for name in names}, "data": data}


if __name__ == "__main__":
    sys.exit(main())
