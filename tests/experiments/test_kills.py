"""Scans that are interrupted: resumed on other devices, at what cost, and after real kills at random moments."""

import functools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import experiments
from experiments import _run, _unfinished
from tests.experiments import killed_training

ROOT = Path(experiments.__file__).parents[1]


def on(number, spec=("x",)):
    mesh = jax.make_mesh((number,), ("x",), devices=jax.devices()[:number])
    return jax.NamedSharding(mesh, jax.P(*spec))


class Stopped(Exception):  # noqa: N818
    pass


def test_a_scan_resumes_on_other_numbers_of_devices(tmp_path, always):
    """Each element on its own, by operations without rounding: the devices cannot matter."""

    @jax.jit
    def step(carry):
        key, x = carry
        key, this = jax.random.split(key)
        return key, x / 2 + jax.random.uniform(this, x.shape)

    def body(carry, index, last=99):
        if index == last:
            raise Stopped
        carry = step(carry)
        return carry, {"x": carry[1]}

    start = lambda number: (
        jax.device_put(jax.random.key(0), on(number, ())),
        jax.device_put(jnp.arange(16.0), on(number)),
    )
    (_, expected), path = _run.NULL_SESSION.scan("s", body, start(8), 9)
    for number, after, last in ((8, 0, 3), (4, 3, 6), (1, 6, 99)):
        told = []
        scan = functools.partial(_run.Session(tmp_path, tell=told.append).scan, "s", length=9)
        stop = functools.partial(body, last=last)
        if number > 1:
            with pytest.raises(Stopped):
                scan(stop, start(number))
            written = sorted(path.name for path in (tmp_path / "s.scan" / "outputs").iterdir())
            assert written == [f"{index:09d}.npz" for index in range(last)], "each output once"
        else:
            (_, found), outputs = scan(stop, start(number))
        assert told == [f"s: going on after {after} of 9 iterations."] * (after > 0)
    assert found.sharding == on(1)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(outputs["x"], path["x"])


@pytest.mark.parametrize(
    ("iteration", "cost", "every"), [(0.3, 0.01, 4), (2.0, 0.01, 1), (0.5, 1.0, 40), (5.0, 0.1, 1)]
)
def test_checkpoints_cost_a_twentieth_of_the_time_at_most(tmp_path, monkeypatch, iteration, cost, every):
    clock, saved = [0.0], []

    class Slow:
        def save(self, step, carry):
            clock[0] += cost
            saved.append(step)

        def close(self):
            pass

    monkeypatch.setattr(_unfinished.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(_unfinished.Unfinished, "_open", lambda self: Slow())

    with _unfinished.Unfinished(tmp_path, "s", 99) as unfinished:
        rows = []
        for _ in range(200):
            clock[0] += iteration
            rows.append({"index": np.asarray(len(rows))})
            unfinished.keep(None, rows)
    assert set(np.diff(saved)) == {every}
    total = cost * len(saved)
    assert total <= 0.05 * clock[0] + cost
    # every output is written once
    assert sorted(int(path.stem) for path in (tmp_path / "outputs").iterdir()) == [0, *saved[:-1]]


# --- kills ---


def life(directory, iterations):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "error", killed_training.__file__, str(directory), str(iterations)]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def committed(directory):
    steps = (directory / "kept" / "training.scan" / "carry").glob("[0-9]*")
    return max((int(path.name) for path in steps if path.name.isdigit()), default=0)


def lives(directory):
    """Of each process: the lines it wrote after "begin"."""
    text = (directory / "log").read_text() if (directory / "log").exists() else ""
    return [part.split("\n")[1:-1] for part in text.split("begin")[1:]]


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_random_kills_lose_nothing(tmp_path, kills):
    """Of a training that makes a checkpoint after every iteration, so that most kills fall into one being written.

    An iteration has begun when the checkpoint of the one before it has been copied, hence that before is whole.
    """
    undisturbed, directory = tmp_path / "undisturbed", tmp_path / "killed"
    undisturbed.mkdir(), directory.mkdir()
    iterations, random = 6 + 7 * kills, np.random.default_rng(kills)
    killed_training.main(undisturbed, iterations)
    before, amid = 0, 0
    for kill in range(kills):
        process = life(directory, iterations)
        if kill % 5 == 4:  # at any moment of its start, too
            time.sleep(random.uniform(0, 3))
        else:
            number, target = len(lives(directory)), random.integers(1, 5)
            deadline = time.monotonic() + 120
            while not (len(lives(directory)) > number and len(lives(directory)[-1]) >= target):
                assert process.poll() is None, process.stdout.read()
                assert time.monotonic() < deadline
                time.sleep(0.002)
            time.sleep(random.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL
        amid += bool(list(directory.glob("kept/training.scan/carry/*tmp*")))
        assert committed(directory) >= before, "a checkpoint was lost"
        before = committed(directory)
        begun = [int(line) for line in lives(directory)[-1] if line.isdigit()] if lives(directory) else []
        assert not begun or before >= begun[-1] - 1
    assert kills < 20 or amid >= 3, "no kill fell into a save: the test is not testing that"
    process = life(directory, iterations)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert not output
    *_, (told, first, *_) = lives(directory)
    assert told == f"training: going on after {before} of {iterations} iterations."
    assert first == str(before)
    assert (directory / "result.npz").read_bytes() == (undisturbed / "result.npz").read_bytes()
