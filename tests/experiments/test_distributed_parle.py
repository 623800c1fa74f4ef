"""Processes that share the replicas of Parle: the losses of one process, what they exchange, what a dead one does."""

import concurrent.futures
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest

import experiments
from experiments import _rendezvous
from experiments._launcher import TERMINATION_SECONDS, ProcessFailed, launch
from experiments._parle_settings import PARLE, Settings
from experiments._parle_training import Data, first_key, make_programs
from experiments._parle_worker import MISTAKE, train
from experiments._rendezvous import PEER_LOST, Disagreement, free_port, meet
from experiments._store import read_arrays, write_arrays

WORKER = "experiments._parle_worker"
SETTINGS = Settings(num_steps=3, num_updates=20, report_every=2, batch_size=4, features=(), parle_rate=0.2)
NUM_PARAMS = 64 * 10 + 10
CURVES = ("train_loss", "validation_error", "test_error")


@pytest.fixture(scope="module")
def arrays():
    random = np.random.default_rng(0)
    classes, found = random.normal(size=(10, 8, 8, 1)), {}
    for part in ("train", "validation", "test"):
        labels = random.integers(0, 10, 60).astype(np.int32)
        images = classes[labels] + random.normal(size=(60, 8, 8, 1))
        found |= {f"{part}_images": images.astype(np.float32), f"{part}_labels": labels}
    assert set(found) == set(Data._fields)
    return found


@pytest.fixture(scope="module")
def alone(arrays):
    """The curves of one process with one device."""
    return train(SETTINGS, PARLE, arrays, jax.devices()[:1])


@pytest.fixture
def arguments(arrays, tmp_path):
    write_arrays(tmp_path / "data.npz", arrays)
    return [
        *("--directory", str(tmp_path), "--data", str(tmp_path / "data.npz"), "--platform", "cpu"),
        *("--settings", json.dumps(SETTINGS.as_json()), "--methods", PARLE),
    ]


def assert_same_curves(found, alone):
    """The order of a sum of four numbers, in 20 updates on a convex loss: a few units in the last place of each."""
    for name in CURVES:
        np.testing.assert_allclose(found[name], alone[name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_one_process_learns(alone):
    """Else equal curves would say little."""
    assert alone["train_loss"][-1] < 0.8 * alone["train_loss"][0]
    assert len(np.unique(alone["train_loss"])) == SETTINGS.num_reports


def test_every_replica_has_its_own_minibatches(arrays):
    """All start from the same weights, and the temperature is 0: nothing else can part them."""
    programs = make_programs(SETTINGS, PARLE)
    start = programs.start(first_key(0), 0.2)
    after = jax.jit(programs.advance)(start, 0.2, Data(**arrays))
    for before, weights in zip(jax.tree.leaves(start.params), jax.tree.leaves(after.params), strict=True):
        assert len(np.unique(np.asarray(before).reshape(SETTINGS.num_replicas, -1), axis=0)) == 1
        assert len(np.unique(np.asarray(weights).reshape(SETTINGS.num_replicas, -1), axis=0)) == 4


def test_four_processes_equal_one_and_exchange_one_model_an_update(alone, arguments, tmp_path):
    launch(WORKER, [*arguments, "--no-checkpoints"], 4)
    found = read_arrays(tmp_path / f"{PARLE}.npz")
    assert_same_curves(found, alone)
    assert found["collectives"].tolist() == [
        [4 * NUM_PARAMS + 4, SETTINGS.report_every]
    ]  # a model and a number


def test_a_killed_process_stops_the_others_and_the_command_goes_on(alone, arguments, tmp_path):
    pids = []

    def kill_the_second(_, line):
        if line.startswith(f"{PARLE}: {2 * SETTINGS.gradients_per_report} of"):
            os.kill(pids[1], signal.SIGKILL)

    with pytest.raises(ProcessFailed) as caught:
        launch(WORKER, arguments, 2, on_start=pids.extend, on_line=kill_the_second, grace=10.0)
    failure = caught.value
    assert failure.statuses == (PEER_LOST, -signal.SIGKILL)
    assert (
        failure.seconds < 10.0
    )  # by itself: a process that is terminated after the grace has another status
    message = str(failure)
    assert message.startswith("process 1 of 2 was ended by SIGKILL.")
    assert f"process 1 (pid {pids[1]} on {socket.gethostname()}) is gone; the same command on all" in message
    assert f"python -m experiments._launcher 2 {WORKER} --directory {tmp_path}" in message
    assert not (tmp_path / f"{PARLE}.npz").exists()

    launch(WORKER, arguments, 2)
    found = read_arrays(tmp_path / f"{PARLE}.npz")
    assert 1 <= found["resumed_at"] < SETTINGS.num_reports
    assert_same_curves(found, alone)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("victim", "how"),
    [(0, signal.SIGKILL), (3, signal.SIGKILL), (1, signal.SIGTERM), (0, signal.SIGSTOP), (2, signal.SIGSTOP)],
)
def test_whoever_is_lost_and_however(alone, arrays, arguments, tmp_path, victim, how):
    """Among four, and one process takes over. A stopped one is noticed by its silence."""
    pids, when, silence, grace = [], [], 10.0, 5.0

    def lose(_, line):
        if line.startswith(f"{PARLE}: {2 * SETTINGS.gradients_per_report} of"):
            os.kill(pids[victim], how)
            when.append(time.monotonic())

    with pytest.raises(ProcessFailed, match=f"process {victim} of 4 was ended by") as caught:
        launch(
            WORKER,
            [*arguments, "--silence", str(silence)],
            4,
            on_start=pids.extend,
            on_line=lose,
            grace=grace,
        )
    assert caught.value.process_id == victim
    assert time.monotonic() - when[0] < 1.2 * silence + grace + 2 * TERMINATION_SECONDS + 2.0
    found = train(SETTINGS, PARLE, arrays, jax.devices()[:1], tmp_path / "checkpoints" / PARLE)
    assert found["resumed_at"] >= 1
    assert_same_curves(found, alone)


def test_processes_that_are_started_differently_say_so(arguments):
    """Before they import JAX; the message is in all."""
    other = {"--settings": json.dumps({**SETTINGS.as_json(), "batch_size": 5})}
    each = lambda process_id: [word for pair in other.items() for word in pair] if process_id else []
    with pytest.raises(ProcessFailed) as caught:
        launch(WORKER, arguments, 2, each=each)
    assert caught.value.statuses == (MISTAKE, MISTAKE)
    assert str(caught.value).count("batch_size is 4 in process 0") == 2


def test_replicas_that_do_not_divide_are_refused(arguments, arrays):
    with pytest.raises(ProcessFailed, match="num_replicas=4 must be a multiple of 3") as caught:
        launch(WORKER, arguments, 3)
    assert set(caught.value.statuses) == {MISTAKE}
    with pytest.raises(ValueError, match="num_replicas=4 must be a multiple of 3"):
        train(SETTINGS, PARLE, arrays, jax.devices()[:3])
    with pytest.raises(ValueError, match="report_every=4 must divide num_updates=30"):
        Settings(num_updates=30, report_every=4)


def test_a_process_that_does_not_go_by_itself_is_ended(arguments):
    """The first refuses its settings, the second waits for it a minute."""
    each = lambda process_id: () if process_id else ("--settings", '{"num_replicas": 3}')
    with pytest.raises(ProcessFailed, match="process 0 of 2 ended with status 78") as caught:
        launch(WORKER, arguments, 2, each=each, grace=0.5)
    assert caught.value.statuses == (MISTAKE, -signal.SIGTERM)
    assert caught.value.seconds < 0.5 + 2 * TERMINATION_SECONDS


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_no_process_outlives_the_launcher(how):
    """Two workers that wait for a third."""
    program = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from experiments._launcher import launch\n"
        f"launch('{WORKER}', ['--directory', '.'], 2, each=lambda i: ['--num-processes', '4'],"
        "on_start=lambda pids: print(*pids, flush=True))"
    )
    launcher = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=Path(experiments.__file__).parents[1],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with launcher:
        pids = [int(word) for word in launcher.stdout.readline().split()]
        launcher.send_signal(how)
        launcher.wait(10)
    deadline = time.monotonic() + 10
    while any(map(running, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert len(pids) == 2
    assert not any(map(running, pids))


def running(pid):
    """Whether a process runs; a dead one that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


# The meeting, between threads.


def meet_in_threads(starts, **settings):
    """What ``meet`` gives or raises for each ``(num_processes, process_id, view)``."""
    address = f"127.0.0.1:{free_port()}"

    def one(start):
        try:
            return meet(address, *start, **settings)
        except Disagreement as error:
            return str(error)

    with concurrent.futures.ThreadPoolExecutor(len(starts)) as pool:
        return list(pool.map(one, starts))


@pytest.mark.parametrize(
    ("starts", "said"),
    [
        ([(2, 0, {}), (3, 1, {})], "num_processes is 2 in process 0"),
        ([(3, 0, {}), (2, 1, {})], "num_processes is 3 in process 0"),
        ([(2, 0, {}), (3, 1, {}), (3, 2, {})], "num_processes is 2 in process 0"),
        ([(2, 0, {"rate": 0.1}), (2, 1, {"rate": 0.2})], "rate is 0.1 in process 0"),
        ([(2, 0, {}), (2, 1, {"rate": 0.2})], "rate is nothing in process 0"),
        ([(3, 0, {}), (3, 1, {}), (3, 1, {})], "process_id 1 was given twice"),
    ],
    ids=["more", "fewer", "more, all", "field", "missing field", "twice"],
)
def test_all_are_told_what_differs(starts, said, monkeypatch):
    monkeypatch.setattr(_rendezvous, "GRACE_SECONDS", 0.3)
    begin = time.monotonic()
    errors = meet_in_threads(starts, timeout=2.0)
    assert time.monotonic() - begin < 4.0
    assert all(isinstance(error, str) and said in error for error in errors), errors


def test_who_does_not_come_is_named():
    (error,) = meet_in_threads([(3, 0, {})], timeout=0.3)
    assert "of the 3 processes, [1, 2] did not come" in error
    (error,) = meet_in_threads([(3, 1, {})], timeout=0.3)
    assert "process 0 did not answer at 127.0.0.1" in error
    with pytest.raises(ValueError, match=r"coordinator must be host:port .* got 'here'"):
        meet("here", 2, 0, {})
    with pytest.raises(ValueError, match=r"process_id must be in 0 … num_processes − 1 = 1, got 2"):
        meet("127.0.0.1:1", 2, 2, {})


@pytest.mark.parametrize("lost", [0, 2])
@pytest.mark.parametrize("how", ["dies", "fails", "is silent", "leaves"])
def test_the_others_learn_what_became_of_a_process(lost, how):
    """A silent one does not watch, hence says nothing, nor does a dead one; those that leave are not mourned."""
    meetings = meet_in_threads(
        [(3, i, {}) for i in range(3)], timeout=5.0, silence=1.0 if how == "is silent" else 10.0
    )
    assert meetings[1].service == meetings[2].service == meetings[0].service
    news = {i: [] for i in range(3)}
    told = {i: threading.Event() for i in range(3)}

    def note(i, sentence):
        news[i].append(sentence)
        meetings[i].close()  # a process ends here
        told[i].set()

    for i, meeting in enumerate(meetings):
        if how not in ("is silent", "dies") or i != lost:
            meeting.watch(lambda sentence, i=i: note(i, sentence))
    if how == "dies":
        for line in meetings[lost]._connections.values():
            line.socket.shutdown(socket.SHUT_RDWR)
    elif how == "fails":
        meetings[lost].leave("ValueError: no")
    elif how == "leaves":
        with concurrent.futures.ThreadPoolExecutor(3) as pool:
            list(pool.map(_rendezvous.Meeting.leave, meetings))
    others = [i for i in range(3) if i != lost]
    expected = {"dies": "is gone", "fails": "failed: ValueError: no", "is silent": "nothing was heard of"}
    for i in others:
        assert told[i].wait(0.2 if how == "leaves" else 5.0) == (how != "leaves")
        if how != "leaves":
            assert len(news[i]) == 1
            assert f"process {lost}" in news[i][0]
            assert expected[how] in news[i][0]
            assert meetings[i].reason(0.0) == news[i][0]
    for meeting in meetings:
        meeting.close()


# The experiment.


def test_parle_exchanges_a_twentyfifth_of_the_bytes(smoke):
    """And the two processes train the first of the seeds, as one does."""
    results = smoke("distributed_parle").results
    parle, sgd = results["counted_bytes_per_gradient"][:, 0]
    assert results["num_steps"] == 25
    assert 24.5 < sgd / parle <= 25.0
    np.testing.assert_array_equal(results["exchanges_per_update"], [[1], [25]])
    alone = results["seeds_train_loss"][:, :, 0, 0]
    np.testing.assert_allclose(results["train_loss"][:, 0], alone, rtol=1e-5)
    measured = results["measured_bytes_per_gradient"][:, 0]
    assert np.isnan(measured).all() or (measured > [parle, sgd]).all()  # what was counted, and headers
