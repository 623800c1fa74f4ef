"""Slices in files: interrupted and resumed to the last bit, refused where they are another's or damaged."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_pde import landscape

X = jax.random.normal(jax.random.key(0), (20, 3))
DATA = {"x": X, "y": jnp.sin(X @ jnp.ones(3))}
PARAMS = {"w": jnp.array([0.3, -0.7, 1.1]), "b": jnp.array(0.1)}
DIRECTIONS = tuple({"w": w, "b": jnp.array(0.0)} for w in jnp.eye(3)[:2])
AXES = (np.linspace(-1.0, 1.0, 7), np.linspace(0.0, 1.5, 6))
SAMPLED = landscape.Relaxation(0.1, 0.2, num_samples=4)


def loss(params, batch):
    return jnp.mean(jnp.tanh(batch["x"] @ params["w"] + params["b"] - batch["y"]) ** 2)


def other_loss(params, batch):
    return loss(params, batch)


def loader():
    return iter([{name: leaf[start : start + 8] for name, leaf in DATA.items()} for start in (0, 8, 16)])


def bits(result):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(result)]


def assert_same_bits(first, second):
    assert jax.tree.structure(first) == jax.tree.structure(second)
    for a, b in zip(bits(first), bits(second), strict=True):
        np.testing.assert_array_equal(a, b)


def kept(path, **settings):
    return landscape.resumable_slice(path, loss, PARAMS, DIRECTIONS, AXES, **{"data": DATA, **settings})


class Killed(BaseException):
    """What a signal raises."""


def kill_after(rows):
    def progress(done, total):
        assert total == 7
        if done >= rows:
            raise Killed

    return progress


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"batch_size": 8, "smoothing": SAMPLED, "key": 3},
        {"data": loader, "smoothing": SAMPLED, "key": 3},
        {"batch_size": 8, "smoothing": landscape.Relaxation(0.1, 0.0, "plane"), "points_at_once": 4},
    ],
    ids=["plain", "sampled", "loader", "plane"],
)
def test_a_slice_that_was_killed_twice_ends_in_the_same_bits(settings, tmp_path):
    path = tmp_path / "slice.npz"
    for rows, at_once in ((2, 1), (5, 3)):
        with pytest.raises(Killed):
            kept(path, progress=kill_after(rows), rows_at_once=at_once, **settings)
    seen = []
    resumed = kept(path, progress=lambda done, total: seen.append(done), rows_at_once=3, **settings)
    assert seen == [5, 7]
    assert_same_bits(resumed, landscape.slice(loss, PARAMS, DIRECTIONS, AXES, **{"data": DATA, **settings}))
    assert [file.name for file in tmp_path.iterdir()] == ["slice.npz"]


def test_a_line_ends_in_the_same_bits(tmp_path):
    arguments = (loss, PARAMS, DIRECTIONS[:1], AXES[:1])
    line = landscape.resumable_slice(tmp_path / "line", *arguments, data=DATA)
    assert_same_bits(line, landscape.slice(*arguments, data=DATA))


def test_rows_in_the_file_are_not_computed_again(tmp_path):
    path = tmp_path / "slice.npz"
    with pytest.raises(Killed):
        kept(path, progress=kill_after(2))
    with np.load(path) as file:
        arrays = dict(file)
    arrays["mean"][:6] = 99.0
    np.savez(path, **arrays)
    values = kept(path)
    np.testing.assert_array_equal(values[0], 99.0)
    np.testing.assert_array_equal(values[1:], landscape.slice(loss, PARAMS, DIRECTIONS, AXES, data=DATA)[1:])


def test_a_loss_that_fails_loses_no_row(tmp_path):
    """Its batches break off in the third pass: one is for the fingerprint, one for the first row."""
    path, passes = tmp_path / "slice.npz", []

    def failing():
        passes.append(1)
        return loader() if len(passes) != 3 else iter([{"x": X, "y": DATA["y"][:3]}])

    with pytest.raises(ValueError, match="one number of examples"):
        kept(path, data=failing)
    with np.load(path) as file:
        assert int(file["points_done"]) == 6
    assert_same_bits(kept(path, data=failing), landscape.slice(loss, PARAMS, DIRECTIONS, AXES, data=loader))


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "slice.npz"
    with pytest.raises(Killed):
        kept(path, progress=kill_after(2))
    before = path.read_bytes()

    def full(*arguments):
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(OSError, match="no space"):
            kept(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["slice.npz"]


@pytest.fixture(scope="module")
def sampled_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("slices") / "slice.npz"
    kept(path, smoothing=SAMPLED, key=3, rows_at_once=7)
    return path


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"loss_fn": other_loss}, "loss_fn"),
        ({"params": PARAMS | {"b": jnp.array(0.2)}}, "params"),
        ({"directions": DIRECTIONS[::-1]}, "directions"),
        ({"coordinates": (AXES[0], 2 * AXES[1])}, "coordinates"),
        ({"coordinates": (AXES[0], AXES[1][:5])}, "coordinates"),
        ({"data": {"x": X, "y": DATA["y"] + 1}}, "data"),
        ({"data": loader}, "data"),
        ({"batch_size": 8}, "batch_size"),
        ({"key": 4}, "key"),
        ({"smoothing": landscape.Relaxation(0.2, 0.2, num_samples=4)}, "smoothing"),
        ({"smoothing": landscape.Relaxation(0.1, 0.2, "heat", num_samples=4)}, "smoothing"),
        ({"smoothing": None}, "smoothing, key"),
        ({"points_at_once": 2}, "points_at_once"),
    ],
)
def test_a_file_of_other_arguments_is_refused_and_left_alone(change, named, sampled_file):
    before = sampled_file.read_bytes()
    arguments = {
        "loss_fn": loss,
        "params": PARAMS,
        "directions": DIRECTIONS,
        "coordinates": AXES,
        "data": DATA,
    }
    arguments |= {"smoothing": SAMPLED, "key": 3, **change}
    with pytest.raises(ValueError, match=f"made with another {named}:"):
        landscape.resumable_slice(sampled_file, **arguments)
    assert sampled_file.read_bytes() == before


@pytest.mark.parametrize("damage", ["empty", "text", "short", "flipped", "without rows"])
def test_a_damaged_file_is_named(damage, sampled_file, tmp_path):
    content = bytearray(sampled_file.read_bytes())
    path = tmp_path / "slice.npz"
    if damage == "without rows":
        with np.load(sampled_file) as file:
            np.savez(path, **{name: array[:6] if name == "mean" else array for name, array in file.items()})
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(
            {"empty": b"", "text": b"hello", "short": content[: len(content) // 2], "flipped": content}[
                damage
            ]
        )
    with pytest.raises(ValueError, match="which is damaged or another: delete it"):
        kept(path, smoothing=SAMPLED, key=3)


def test_bad_input(tmp_path):
    with pytest.raises(ValueError, match="rows_at_once must be at least 1"):
        kept(tmp_path / "a", rows_at_once=0)
    with pytest.raises(TypeError, match="progress must be a function"):
        kept(tmp_path / "a", progress=True)
    with pytest.raises(TypeError, match="cannot run under jit"):
        jax.jit(lambda data: kept(tmp_path / "a", data=data))(DATA)
    assert not list(tmp_path.iterdir())
