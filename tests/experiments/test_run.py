"""The runner: hashes, atomic files, damage, bitwise resuming after real kills."""

import contextlib
import dataclasses
import functools
import signal
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import _run, _session, _store

# --- hashes ---


def test_hash_sees_every_field_but_the_unhashed_ones(walk):
    config = walk.Config()
    changed = {"stages": 5, "rates": (0.5,), "note": "", "drift": False, "bound": 1.0, "seed": 1}
    hashes = [_run.config_hash("walk", dataclasses.replace(config, **{k: v})) for k, v in changed.items()]
    original = _run.config_hash("walk", config)
    assert len({original, *hashes}) == 1 + len(changed)
    assert _run.config_hash("walk", walk.Config(pause=3.0, log="elsewhere")) == original
    assert _run.config_hash("other", config) != original
    assert _run.config_hash("walk", walk.Config()) == original == _run.config_hash("walk", config)


@pytest.mark.parametrize("value", [[1, 2], {"a": 1}, np.arange(2), (1, [2]), Path("x"), np.int32(3)])
def test_a_config_that_json_would_not_give_back_is_refused(walk, value):
    with pytest.raises(TypeError, match=r"Config\.note must be"):
        _run.config_hash("walk", walk.Config(note=value))


def test_results_do_not_depend_on_where_they_are_kept_nor_on_being_kept(walk, stored_bytes, tmp_path):
    config = walk.SMOKE
    one = _run.execute("walk", walk, config, results_dir=tmp_path / "one")
    two = _run.execute(
        "walk", walk, dataclasses.replace(config, log=str(tmp_path / "log")), results_dir=tmp_path / "two"
    )
    assert stored_bytes(tmp_path / "one") == stored_bytes(tmp_path / "two")
    assert one.config == two.config
    assert "log" not in one.config  # a path of this machine is nobody else's business
    alone = walk.run(config)
    assert list(alone) == list(one.results)
    for name, array in alone.items():
        np.testing.assert_array_equal(array, one.results[name])
        assert isinstance(array, np.ndarray)


# --- files ---


@pytest.mark.parametrize("crash", ["while writing", "before the rename"])
def test_a_crash_leaves_the_old_file_and_no_debris(tmp_path, monkeypatch, crash):
    path = tmp_path / "arrays.npz"
    _run.write_arrays(path, {"x": np.arange(3)})
    before = path.read_bytes()

    def write(file):
        file.write(b"half")
        if crash == "while writing":
            raise KeyboardInterrupt

    def replace(*paths):
        raise KeyboardInterrupt

    if crash == "before the rename":
        monkeypatch.setattr(_store.os, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        _run.write_atomically(path, write)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir() if entry.is_file()] == ["arrays.npz"]


def test_arrays_come_back_as_they_were(tmp_path):
    arrays = {
        "zero-d": np.asarray(1.5, np.float32),
        "text": np.asarray(["a", "ü"]),
        "fortran": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "complex": np.asarray([1j]),
        "a/b (c)": np.asarray([True, False]),
        "empty": np.zeros((0, 3), np.int8),
    }
    _run.write_arrays(tmp_path / "x.npz", arrays)
    back = _run.read_arrays(tmp_path / "x.npz")
    assert list(back) == list(arrays)
    for name, array in arrays.items():
        assert back[name].dtype == array.dtype
        np.testing.assert_array_equal(back[name], array)


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ({"x": [object()]}, TypeError),
        ({"x": jnp.ones(2, jnp.bfloat16)}, TypeError),
        ({"file": np.ones(2)}, ValueError),
    ],
)
def test_what_a_file_would_not_give_back_is_refused(values, error):
    with pytest.raises(error, match="results of walk"):
        _run.as_arrays(values, "results of walk")


def truncate(data):
    return data[: len(data) // 2]


def flip(data):
    place = data.index(b"NUMPY") + 200  # inside the numbers of the first array
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


@pytest.mark.parametrize("damage", [truncate, flip, lambda data: b""])
def test_damaged_results_are_named_with_a_remedy_and_run_again(walk, tmp_path, damage):
    record = _run.execute("walk", walk, walk.SMOKE, results_dir=tmp_path)
    path = record.directory / "results.npz"
    good = path.read_bytes()
    path.write_bytes(damage(good))
    with pytest.raises(_run.StoreError, match=r"results\.npz cannot be read.*experiments run walk"):
        _run.latest("walk", tmp_path)
    with pytest.warns(RuntimeWarning, match="Running again"):
        again = _run.execute("walk", walk, walk.SMOKE, results_dir=tmp_path)
    assert path.read_bytes() == good
    assert not again.reused


# --- resuming ---


@pytest.fixture(scope="module")
def uninterrupted(new_source, stored_bytes, tmp_path_factory):
    """What a process that nobody kills stores."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    process = new_source().command("run", "walk", "--results-dir", folder)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    return stored_bytes(folder)


@pytest.mark.parametrize(
    ("how", "reached"),
    [
        (signal.SIGINT, "walk.scan/carry/2"),
        pytest.param(
            signal.SIGKILL, "noise%2F1.npz", marks=pytest.mark.slow
        ),  # test_kills.py kills at any moment
    ],
)
def test_a_killed_run_resumes_to_the_same_bytes(source, stored_bytes, tmp_path, uninterrupted, how, reached):
    results, log = tmp_path / "results", tmp_path / "log"
    arguments = ["run", "walk", "--results-dir", results, "--log", log, "--always"]
    killed = source.command(*arguments, "--pause", "0.25")
    deadline = time.monotonic() + 60
    while not list(results.glob(f"walk/*/stages/{reached}")):
        assert killed.poll() is None, killed.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    killed.send_signal(how)
    output, _ = killed.communicate(timeout=60)
    assert killed.returncode == (130 if how == signal.SIGINT else -how), output
    assert ("Finished stages and checkpoints are kept" in output) == (how == signal.SIGINT)
    assert not list(results.glob("walk/*/results.npz"))
    before = log.read_text().split("\n")[:-1]

    resumed = source.command(*arguments)
    output, _ = resumed.communicate(timeout=60)
    assert resumed.returncode == 0, output
    assert stored_bytes(results) == uninterrupted
    assert not list(results.glob("walk/*/stages"))
    assert f"interrupted: {4 if how == signal.SIGINT else 2} finished pieces are kept" in output
    assert ("walk: going on after" in output) == (how == signal.SIGINT)
    lines = log.read_text().split("\n")[:-1]
    everything = [f"{kind} {index}" for kind in ("stage", "scan") for index in range(4)]
    assert set(lines) == set(everything)
    # at most the one that the signal fell into is computed twice, and the one whose checkpoint was being written
    assert len(lines) <= len(everything) + 2
    assert before == everything[: len(before)]
    assert len(before) < len(everything)


class StoppedError(Exception):
    pass


@pytest.mark.parametrize("cut", [0, 1, 3, 5])
def test_scan_is_a_loop_and_resumes_from_any_iteration(tmp_path, always, cut):
    @functools.partial(jax.jit, donate_argnums=0)
    def step(carry):
        key, tree = carry
        key, this = jax.random.split(key)
        noise = jax.random.normal(this, tree["x"].shape)
        # `scale` starts as a Python number: weakly typed it would leave bfloat16 alone, strongly it would not
        return key, {"x": tree["x"] + noise, "low": tree["low"] * 1.01, "scale": tree["scale"] * 1.5}

    def body(carry, index, last=99):
        if index == last:
            raise StoppedError
        carry = step(carry)
        promoted = carry[1]["low"] * carry[1]["scale"]
        return carry, {"x": carry[1]["x"].sum(), "bits": str(promoted.dtype), "low": np.float32(promoted[0])}

    def start():
        low = jnp.full(3, 0.1, jnp.bfloat16)
        return jax.random.key(7), {"x": jnp.zeros(4), "low": low, "scale": 1.0}

    expected_carry, expected = _run.NULL_SESSION.scan("s", body, start(), 5)
    if cut < 5:
        with pytest.raises(StoppedError):
            _run.Session(tmp_path).scan("s", functools.partial(body, last=cut), start(), 5)
    else:
        _run.Session(tmp_path).scan("s", body, start(), 5)
    session = _run.Session(tmp_path)
    carry, outputs = session.scan("s", functools.partial(body, last=cut - 1), start(), 5)
    assert session.resumed["s"] == (cut > 0)
    assert outputs.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(outputs[name], expected[name])
    assert jax.tree.structure(carry) == jax.tree.structure(expected_carry)
    for ours, theirs in zip(jax.tree.leaves(carry), jax.tree.leaves(expected_carry), strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(_session._to_host(ours), _session._to_host(theirs))
    assert not carry[1]["scale"].weak_type


@pytest.mark.parametrize("finished", [True, False])
def test_scan_keeps_a_sharded_carry_sharded(tmp_path, always, finished):
    mesh = jax.make_mesh((8,), ("chains",))
    sharding = jax.NamedSharding(mesh, jax.P("chains"))
    start = jax.device_put(jnp.arange(8.0), sharding)

    def body(carry, index, last=9):
        if index == last:
            raise StoppedError
        return carry + 1, {"sum": carry.sum()}

    with contextlib.nullcontext() if finished else pytest.raises(StoppedError):
        _run.Session(tmp_path).scan("s", functools.partial(body, last=9 if finished else 1), start, 2)
    carry, _ = _run.Session(tmp_path).scan("s", body, start, 2)
    assert carry.sharding == sharding
    np.testing.assert_array_equal(carry, np.arange(8) + 2.0)


def test_a_stage_goes_on_from_its_pieces_which_go_with_it(tmp_path, always):
    """Two scans in a stage, interrupted in the second: the first is not done again, the second goes on."""
    done = []

    def compute(last, session):
        def body(name, carry, index):
            if (name, index) == last:
                raise StoppedError
            done.append((name, index))
            return carry * 2 + index, {}

        scan = lambda name, carry: session.scan(name, functools.partial(body, name), carry, 3)[0]
        return {"end": scan("b", scan("a", jnp.float32(1)))}

    expected = compute(None, _run.NULL_SESSION.within("s"))["end"]
    done.clear()
    for last in (("b", 2), None):
        session = _run.Session(tmp_path)
        with contextlib.nullcontext() if last is None else pytest.raises(StoppedError):
            end = session.stage("s", functools.partial(compute, last, session.within("s")))["end"]
    assert end == expected
    assert done == [(name, index) for name in "ab" for index in range(3)]
    assert [path.name for path in tmp_path.iterdir()] == ["s.npz"]


def test_a_scan_whose_outputs_are_damaged_starts_anew(tmp_path, always):
    def body(carry, index, last=9):
        if index == last:
            raise StoppedError
        return carry + 1, {"carry": carry}

    with pytest.raises(StoppedError):
        _run.Session(tmp_path).scan("s", functools.partial(body, last=3), 0, 4)
    (tmp_path / "s.scan" / "outputs" / "000000001.npz").write_bytes(b"")
    session = _run.Session(tmp_path)
    with pytest.warns(RuntimeWarning, match=r"000000001.npz cannot be read.*Starting 's' anew"):
        carry, outputs = session.scan("s", body, 0, 4)
    assert carry == 4
    np.testing.assert_array_equal(outputs["carry"], range(4))
    assert not session.resumed["s"]


def test_a_scan_of_another_precision_is_refused_with_a_remedy(tmp_path, always):
    def body(carry, index, last=9):
        if index == last:
            raise StoppedError
        return {"x": carry["x"] + 1}, {}

    with pytest.raises(StoppedError):
        _run.Session(tmp_path).scan("s", functools.partial(body, last=2), {"x": 0.0}, 4)
    with jax.enable_x64(True), pytest.raises(_run.StoreError, match=r"\['x'\] is float32\[\] there.*--force"):
        _run.Session(tmp_path).scan("s", body, {"x": 0.0}, 4)


def test_scan_refuses_a_carry_that_changes_type(tmp_path):
    with pytest.raises(TypeError, match="body must give back"):
        _run.Session(tmp_path).scan("s", lambda carry, index: (carry * 0.5, {}), jnp.arange(3), 2)


def test_a_damaged_stage_is_computed_again(tmp_path):
    compute = lambda: {"x": np.arange(300)}
    _run.Session(tmp_path).stage("a", compute)
    (path,) = tmp_path.iterdir()
    good = path.read_bytes()
    path.write_bytes(truncate(good))
    session = _run.Session(tmp_path)
    with pytest.warns(RuntimeWarning, match=r"a\.npz cannot be read.*again"):
        session.stage("a", compute)
    assert path.read_bytes() == good
    assert session.resumed == {"a": False}


def test_a_stage_name_serves_once_and_may_be_any_text(tmp_path):
    session = _run.Session(tmp_path)
    for name in ("a/b", "a%2Fb", "../up", "ß (T=0.1, K=4)", "."):
        session.stage(name, lambda name=name: {"name": name})
    assert all(entry.parent == tmp_path for entry in tmp_path.rglob("*"))
    again = _run.Session(tmp_path)
    for name in ("a/b", "a%2Fb", "../up", "ß (T=0.1, K=4)", "."):
        assert again.stage(name, lambda: {})["name"] == name
    with pytest.raises(ValueError, match="named twice"):
        again.stage("a/b", lambda: {})


@pytest.mark.parametrize(
    ("old", "new", "kept"),
    [
        ("0.9, weight.dtype", "0.8, weight.dtype", False),
        ("drawing.subplots().plot", "drawing.subplots().semilogy", True),
        ('f"{array.mean():.3g}"', 'f"{array.mean():.4g}"', True),
    ],
)
def test_stages_of_other_code_are_dropped(source, walk, tmp_path, monkeypatch, old, new, kept):
    def interrupted(config, session):
        session.stage("noise/0", lambda: {"noise": np.full(50, 7.0)})
        raise KeyboardInterrupt

    genuine = walk.run
    monkeypatch.setattr(walk, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _run.execute("walk", walk, walk.SMOKE, results_dir=tmp_path / "results")
    monkeypatch.setattr(walk, "run", genuine)
    assert old in source.walk
    source.write("walk", source.walk.replace(old, new))
    if kept:
        record = _run.execute("walk", walk, walk.SMOKE, results_dir=tmp_path / "results")
    else:
        with pytest.warns(RuntimeWarning, match="changed since the interruption"):
            record = _run.execute("walk", walk, walk.SMOKE, results_dir=tmp_path / "results")
    assert (record.results["noise 0"][0] == 7.0) == kept
    assert record.environment["resumed_stages"] == (["noise/0"] if kept else [])


def test_keys_depend_on_the_seed_and_every_name_alone():
    names = [(), ("a",), ("b",), ("a", 1), ("a", "1"), (1, "a"), ("a", 2)]
    data = {
        tuple(jax.random.key_data(_run.key_for(seed, *name)).tolist()) for seed in (0, 1) for name in names
    }
    assert len(data) == 2 * len(names)
    assert _run.key_for(0, "a", 1) == _run.key_for(0, "a", 1)


def test_the_environment_is_told_whatever_is_missing(walk, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))  # no git
    environment = _run.execute("walk", walk, walk.SMOKE, results_dir=tmp_path).environment
    assert environment["git_commit"] is None
    assert environment["jax"] == jax.__version__
    assert environment["device_count"] == jax.device_count()
    assert {
        "python",
        "jaxlib",
        "optax",
        "flax",
        "numpy",
        "platform",
        "jaxopt_pde",
        "device_kind",
        "date",
    } < set(environment)
    assert environment["wall_seconds"] >= 0
