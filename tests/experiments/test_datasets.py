import doctest
import hashlib
import re
import subprocess
import sys

import numpy as np
import pytest

from experiments import _archives, _cifar, _datasets, _idx
from tests.experiments.tiny_data import lay


def test_the_environments_folder_is_searched_unless_one_is_given(tmp_path, monkeypatch):
    monkeypatch.setenv(_datasets.DATA_VARIABLE, str(tmp_path / "env"))
    with pytest.raises(FileNotFoundError) as caught:
        _datasets.cifar10()
    assert f"{tmp_path}/env/cifar10 (no such folder)" in str(caught.value)
    with pytest.raises(FileNotFoundError) as caught:
        _datasets.cifar10(tmp_path / "given")
    assert f"{tmp_path}/given/cifar10 (no such folder)" in str(caught.value)
    assert f"{tmp_path}/env" not in str(caught.value)


def test_missing_data_says_where_to_get_it_what_was_looked_for_and_every_place(tmp_path, monkeypatch):
    monkeypatch.delenv(_datasets.DATA_VARIABLE, raising=False)
    with pytest.raises(FileNotFoundError) as caught:
        _datasets.mnist()
    assert "no folder: data_dir is None and JAXOPT_PDE_DATA is not set" in str(caught.value)
    assert "http://yann.lecun.com/exdb/mnist/" in str(caught.value)

    lay(tmp_path / "mnist", {"train-labels-idx1-ubyte": b"", "t10k-images-idx3-ubyte": b""})
    with pytest.raises(FileNotFoundError) as caught:
        _datasets.mnist(tmp_path)
    lines = str(caught.value).split("\n")
    assert f"  {tmp_path}" in lines
    assert f"  {tmp_path}/mnist (incomplete: lacks train-images-idx3-ubyte, t10k-labels-idx1-ubyte)" in lines
    assert f"  {tmp_path}/MNIST/raw (no such folder)" in lines
    assert "train-images-idx3-ubyte or train-images-idx3-ubyte.gz" in str(caught.value)

    with pytest.raises(FileNotFoundError) as caught:
        _datasets.cifar10(tmp_path)
    assert "https://www.cs.toronto.edu/~kriz/cifar.html" in str(caught.value)
    for place in ("", "/cifar10", "/cifar-10-batches-bin", "/cifar-10-batches-py", "/cifar10-jpeg"):
        assert re.search(rf"^  {re.escape(str(tmp_path))}{place}( |$)", str(caught.value), re.MULTILINE)
    for name in (
        "cifar-10-binary.tar.gz",
        "cifar-10-python.tar.gz",
        "data_batch_5.bin",
        "test_batch",
        "cifar10.tar.xz",
    ):
        assert name in str(caught.value)


def as_rows(images):
    return sorted(image.tobytes() for image in images)


def test_digits_is_a_stratified_partition_of_all_images():
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    data = _datasets.digits(validation=0.1, test=0.3, seed=4)
    parts = [data[3:5], data[5:7], data[7:9]]
    assert as_rows(np.concatenate([x for x, _ in parts])) == as_rows((pixels / 16).astype(np.float32))
    for (images, part), fraction in zip(parts, (0.6, 0.1, 0.3), strict=True):
        assert images.dtype == np.float32
        assert images.shape == (len(part), 8, 8, 1)
        assert part.dtype == np.int32
        assert np.all(np.abs(np.bincount(part) - fraction * np.bincount(labels)) <= 1)
    assert (data.train_images.min(), data.train_images.max()) == (0, 1)


def test_digits_keeps_each_image_with_its_label():
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    known = {(p / 16).astype(np.float32).tobytes(): k for p, k in zip(pixels, labels, strict=True)}
    data = _datasets.digits(seed=1)
    for images, part in (data[3:5], data[5:7], data[7:9]):
        assert [known[image.tobytes()] for image in images] == part.tolist()


def test_digits_split_is_fixed_by_the_seed_for_ever():
    first, again, other = (_datasets.digits(seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.test_images, again.test_images)
    assert as_rows(first.test_images) != as_rows(other.test_images)
    # Published results hang on this split: a change of it must be seen.
    assert hashlib.sha256(first.test_images.tobytes()).hexdigest()[:16] == "d1ca2c25f5dc79e5"


def test_digits_parts_may_be_left_out_but_training_may_not():
    data = _datasets.digits(validation=0, test=0)
    assert len(data.train_labels) == 1797
    assert data.test_images.shape == (0, 8, 8, 1)
    for validation, test in ((0.5, 0.5), (-0.1, 0.2), (float("nan"), 0.2)):
        with pytest.raises(ValueError, match="sum below 1"):
            _datasets.digits(validation=validation, test=test)


def test_hold_out_moves_a_stratified_part_and_refuses_a_second_time():
    images = np.random.default_rng(0).integers(0, 256, (50, 4, 4, 3), np.uint8)
    labels = np.tile(np.arange(10, dtype=np.int32), 5)
    whole = _datasets.Dataset("x", "X", 10, images, labels, images[:0], labels[:0], images[:9], labels[:9])
    split = whole.hold_out(0.4, seed=7)
    assert np.bincount(split.validation_labels).tolist() == [2] * 10
    assert np.bincount(split.train_labels).tolist() == [3] * 10
    assert as_rows([*split.train_images, *split.validation_images]) == as_rows(whole.train_images)
    pairs = {
        image.tobytes(): label for image, label in zip(whole.train_images, whole.train_labels, strict=True)
    }
    assert [pairs[image.tobytes()] for image in split.validation_images] == split.validation_labels.tolist()
    np.testing.assert_array_equal(split.test_images, whole.test_images)
    np.testing.assert_array_equal(split.train_images, whole.hold_out(0.4, seed=7).train_images)
    with pytest.raises(ValueError, match="already holds out 20 images"):
        split.hold_out(0.1)
    for fraction in (0, 1, -0.5, float("nan")):
        with pytest.raises(ValueError, match=r"fraction must be in \(0, 1\)"):
            whole.hold_out(fraction)


def test_as_float_divides_bytes_by_255_and_leaves_floats_alone():
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    labels = np.zeros(1, np.int32)
    data = _datasets.Dataset("x", "x", 10, levels, labels, levels[:0], labels[:0], levels, labels).as_float()
    for images in (data.train_images, data.test_images, data.validation_images):
        assert images.dtype == np.float32
    np.testing.assert_array_equal(data.train_images.ravel(), (np.arange(256) / 255).astype(np.float32))
    assert data.as_float().train_images is data.train_images
    assert data.train_labels is labels


def test_importing_needs_numpy_alone_and_never_the_network():
    names = "'jax', 'flax', 'PIL', 'sklearn', 'socket', 'ssl', 'urllib.request', 'http.client', 'requests'"
    code = f"import sys, experiments._datasets; print([m for m in ({names}) if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize("module", [_archives, _cifar, _datasets, _idx])
def test_doctests(module):
    assert doctest.testmod(module).failed == 0


def test_real_mnist_where_there_is_one():
    try:
        data = _datasets.mnist()
    except FileNotFoundError:
        pytest.skip("JAXOPT_PDE_DATA holds no MNIST")
    counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(data.train_labels).tolist() == counts
    assert round(data.train_images.mean(dtype=np.float64) / 255, 4) == 0.1307
