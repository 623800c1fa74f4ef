"""Checkpoints: bits, other devices, other configurations, full disks, damaged files; the kills are in test_kills.py."""

import resource
import subprocess
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import _run
from experiments._checkpoints import CheckpointMismatch, Checkpoints

CONFIG = {"rate": 0.1, "widths": [32, 32], "task": {"name": "digits", "noise": float("nan")}}


def on(number, spec=("x",)):
    mesh = jax.make_mesh((number,), ("x",), devices=jax.devices()[:number])
    return jax.NamedSharding(mesh, jax.P(*spec))


def bits(leaf):
    if hasattr(leaf, "dtype") and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf).tobytes()


def assert_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert type(ours) is type(theirs)
        assert getattr(ours, "dtype", None) == getattr(theirs, "dtype", None)
        assert np.shape(ours) == np.shape(theirs)
        assert bits(ours) == bits(theirs)
        if isinstance(ours, jax.Array):
            assert (ours.sharding, ours.committed) == (theirs.sharding, theirs.committed)


class State(NamedTuple):
    jax: dict
    host: tuple


def every_kind(number=8):
    arrays = {
        "typed key": jax.random.key(3),
        "sharded keys": jax.device_put(jax.random.split(jax.random.key(4, impl="rbg"), 8), on(number)),
        "bfloat16": jnp.full(3, 0.1, jnp.bfloat16),
        "float8": jnp.asarray([1.5, -0.0], jnp.float8_e4m3fn),
        "int4": jnp.arange(-2, 2).astype(jnp.int4),
        "special": jnp.asarray([jnp.nan, -jnp.inf, -0.0, 1e-45]),
        "bool": jnp.asarray(True),
        "empty": jnp.zeros((0, 3)),
        "sharded": jax.device_put(jnp.arange(24.0).reshape(8, 3), on(number)),
        "replicated": jax.device_put(jnp.arange(3), on(number, ())),
        "sharded, empty": jax.device_put(jnp.zeros((8, 0)), on(number)),
        "a/b.c[0]": jnp.ones(2),
    }
    return State(arrays, (np.arange(6.0)[::-2], np.float32(0.1), 0.1, 2**60, True, None, np.asarray(1j)))


# --- what is saved comes back ---


def test_every_kind_of_leaf_comes_back_bit_for_bit(tmp_path):
    state = every_kind()
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        assert checkpoints.restore(state) is None
        assert checkpoints.latest() is None
        checkpoints.save(5, state)
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        assert checkpoints.latest() == 5
        step, found = checkpoints.restore(state)
        assert step == 5
        assert_same(found, state)
        for number in (4, 1):
            assert_same(checkpoints.restore(every_kind(number))[1], every_kind(number))
        types = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state.jax)
        expected = {
            key: leaf for key, leaf in state.jax.items() if "sharded" not in key and key != "replicated"
        }
        bare = checkpoints.restore(State(types, state.host))[1]
        assert_same({key: bare.jax[key] for key in expected}, expected)
    assert Checkpoints(tmp_path / "none", {}).restore(None) is None
    with Checkpoints(tmp_path / "none", {}) as checkpoints:
        checkpoints.save(1, {"nothing": (), "empty": np.zeros(0)})
        assert_same(checkpoints.restore({"nothing": (), "empty": np.ones(0)})[1]["empty"], np.zeros(0))


def test_what_was_saved_may_be_overwritten_at_once(tmp_path):
    overwrite = jax.jit(lambda x: x * 0 - 1, donate_argnums=0)
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        for step in range(3):
            on_device, on_host = jnp.arange(200_000.0) + step, np.arange(200_000.0) + step
            checkpoints.save(step, (on_device, on_host))
            overwrite(on_device).block_until_ready()
            on_host[:] = -1
            found = checkpoints.restore((jnp.zeros(200_000), on_host))[1]
            for array in found:
                np.testing.assert_array_equal(array, np.arange(200_000.0) + step)


def test_the_last_ones_are_kept_and_steps_only_rise(tmp_path):
    numbers = lambda: sorted(int(path.name) for path in tmp_path.iterdir() if path.name.isdigit())
    with Checkpoints(tmp_path, CONFIG, keep=3) as checkpoints:
        for step in (1, 2, 4, 8, 16):
            checkpoints.save(step, step)
        with pytest.raises(ValueError, match=r"step must be larger .*, 16, got 16"):
            checkpoints.save(16, 16)
    assert numbers() == [4, 8, 16]
    with pytest.raises(ValueError, match="keep must be at least 1, got 0"):
        Checkpoints(tmp_path, CONFIG, keep=0)
    for wrong in ("text", np.array([object()]), np.datetime64(1, "s"), 2**70):
        with (
            Checkpoints(tmp_path, CONFIG, keep=3) as checkpoints,
            pytest.raises(TypeError, match=r"\['x'\] must be"),
        ):
            checkpoints.save(17, {"x": wrong})


# --- refused ---


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"rate": 0.2}, r"rate is 0\.1 there, 0\.2 here"),
        ({"task": {"name": "mnist", "noise": float("nan")}}, 'task.name is "digits" there, "mnist" here'),
        ({"momentum": 0.9}, r"momentum is absent there, 0\.9 here"),
        ({"widths": (32, 32)}, None),
    ],
)
def test_a_checkpoint_of_another_configuration_is_refused_with_the_field(tmp_path, other, message):
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        checkpoints.save(1, jnp.ones(2))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    if message is None:
        assert Checkpoints(tmp_path, CONFIG | other).latest() == 1
        return
    with pytest.raises(CheckpointMismatch, match=message):
        Checkpoints(tmp_path, CONFIG | other)
    with pytest.raises(CheckpointMismatch, match=r"is .* there, absent here"):
        Checkpoints(tmp_path, {})
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    # Without a checkpoint there is nothing to protect.
    Checkpoints(tmp_path / "new", CONFIG).close()
    Checkpoints(tmp_path / "new", CONFIG | other).close()


def test_a_state_of_other_leaves_is_refused_with_the_leaf(tmp_path):
    state = {"w": jnp.ones((2, 3)), "key": jax.random.key(0)}
    cases = {
        r"\['w'\] is float32\[2, 3\] there, float32\[3, 2\] here": {"w": jnp.ones((3, 2))},
        r"\['w'\] is float32\[2, 3\] there, bfloat16\[2, 3\] here": {"w": jnp.ones((2, 3), jnp.bfloat16)},
        r"\['key'\] is key<fry>\[\] there, key<rbg>\[\] here": {"key": jax.random.key(0, impl="rbg")},
        r"\['b'\] is absent there, float32\[2\] here": {"b": jnp.ones(2)},
    }
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        checkpoints.save(1, state)
        for message, other in cases.items():
            with pytest.raises(CheckpointMismatch, match=message):
                checkpoints.restore(state | other)
        with pytest.raises(CheckpointMismatch, match=r"\['w'\] is float32\[2, 3\] there, absent here"):
            checkpoints.restore({"key": state["key"]})


# --- trouble ---


@pytest.fixture(params=["limit", pytest.param("tmpfs", marks=pytest.mark.slow)])
def full_disk(request, tmp_path):
    """A directory, and a context in which files cannot grow: by the kernel's limit, or on a disk that is full."""
    if request.param == "tmpfs":
        mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)]
        if subprocess.run(mount, capture_output=True, check=False).returncode:
            pytest.skip("only root may mount a disk")
    filler = tmp_path / "filler"

    class Full:
        def __enter__(self):
            if request.param == "tmpfs":
                with pytest.raises(OSError, match="No space left"):
                    filler.write_bytes(b"0" * 2**20)
            else:
                self.limits = resource.getrlimit(resource.RLIMIT_FSIZE)
                resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, self.limits[1]))

        def __exit__(self, *exception):
            if request.param == "tmpfs":
                filler.unlink()
            else:
                resource.setrlimit(resource.RLIMIT_FSIZE, self.limits)

    yield tmp_path, Full()
    if request.param == "tmpfs":
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_full_disk_is_told_and_the_old_checkpoint_is_intact(full_disk):
    directory, full = full_disk
    states = [np.random.default_rng(seed).normal(size=20_000) for seed in range(4)]  # nothing to compress
    with Checkpoints(directory / "kept", CONFIG, keep=1) as checkpoints:
        checkpoints.save(1, states[1])
        assert checkpoints.restore(states[0])[0] == 1
        with full:
            checkpoints.save(2, states[2])
            with pytest.raises(_run.StoreError, match=r"could not be written to .*kept.* of step 1\."):
                checkpoints.save(3, states[3])
        assert checkpoints.latest() == 1
        step, found = checkpoints.restore(states[0])
        np.testing.assert_array_equal(found, states[step])
        checkpoints.save(3, states[3])  # there is room again
        step, found = checkpoints.restore(states[0])
        np.testing.assert_array_equal(found, states[3])
    checkpoints = Checkpoints(directory / "kept", CONFIG, keep=1)
    with full:
        checkpoints.save(4, states[2])
        with pytest.raises(_run.StoreError, match=r"of step 3\."):
            checkpoints.close()
    with Checkpoints(directory / "kept", CONFIG, keep=1) as checkpoints:
        assert checkpoints.restore(states[0])[0] == 3
        assert sorted(path.name for path in (directory / "kept").iterdir()) == ["3", "config.json"]


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [flip, lambda path: path.write_bytes(path.read_bytes()[:99]), Path.unlink])
@pytest.mark.parametrize("which", ["numbers", "names"])
def test_a_damaged_checkpoint_is_passed_over(tmp_path, damage, which):
    state = lambda step: np.random.default_rng(step).normal(size=(50, 50))

    def spoil(step):
        files = [path for path in (tmp_path / str(step)).rglob("*") if path.is_file()]
        damage(
            max(files, key=lambda path: path.stat().st_size)
            if which == "numbers"
            else tmp_path / str(step) / "_CHECKPOINT_METADATA"
        )

    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, state(step))
    spoil(3)
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        with pytest.warns(RuntimeWarning, match=r"/3 cannot be read .*Taking the checkpoint before it"):
            step, found = checkpoints.restore(state(0))
        assert step == checkpoints.latest() == 2
        np.testing.assert_array_equal(found, state(2))
        checkpoints.save(3, state(30))
        step, found = checkpoints.restore(state(0))
        np.testing.assert_array_equal(found, state(30))
        assert step == 3
    spoil(2), spoil(3)
    with Checkpoints(tmp_path, CONFIG) as checkpoints, pytest.warns(RuntimeWarning, match="cannot be read"):
        assert checkpoints.restore(state(0)) is None
