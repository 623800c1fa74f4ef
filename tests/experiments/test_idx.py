import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments import _datasets
from experiments._archives import CorruptDataError
from experiments._idx import parse_idx
from tests.experiments.tiny_data import CODES, idx, lay, md5


@st.composite
def arrays(draw):
    shape = draw(st.lists(st.integers(0, 4), max_size=5))
    dtype = np.dtype(draw(st.sampled_from(sorted(CODES))))
    size = int(np.prod(shape)) * dtype.itemsize
    return np.frombuffer(draw(st.binary(min_size=size, max_size=size)), dtype).reshape(shape)


@given(arrays())
@settings(max_examples=100, deadline=None)
def test_idx_round_trip_is_bitwise_for_every_type_and_rank(array):
    read = parse_idx(idx(array))
    assert read.dtype == array.dtype
    assert read.dtype.isnative
    assert read.shape == array.shape
    assert read.tobytes() == array.tobytes()


@given(arrays(), st.data())
@settings(max_examples=60, deadline=None)
def test_idx_refuses_every_proper_prefix_and_any_trailing_byte(array, data):
    whole = idx(array)
    cut = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(CorruptDataError, match=r"^some file: (truncated|not an IDX file)"):
        parse_idx(whole[:cut], "some file")
    with pytest.raises(CorruptDataError, match=r"^some file: garbage after the last element"):
        parse_idx(whole + data.draw(st.binary(min_size=1, max_size=3)), "some file")


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"\0\1\x08\1\0\0\0\0", "magic number is 0x00010801"),
        (b"\0\0\x0a\1\0\0\0\0", "magic number is 0x00000a01"),
        (b"\x89PNG\r\n", "magic number is 0x89504e47"),
        (b"\0\0\x08\3" + b"\xff" * 12, "truncated"),  # 2^96 elements: the product must not wrap around
        (b"\0\0\x08\xff" + bytes(4 * 255), "impossible shape of rank 255"),
        (b"\0\0\x08\4" + bytes(4) + b"\xff" * 12, "impossible shape of rank 4"),
    ],
)
def test_idx_names_what_is_wrong_with_a_header(data, problem):
    with pytest.raises(CorruptDataError, match=f"^x.gz: .*{problem}"):
        parse_idx(data, "x.gz")


@pytest.fixture
def tiny_mnist(monkeypatch):
    """The four files of a small MNIST, their checksums in the place of the published ones."""
    random = np.random.default_rng(0)
    files = {}
    for part, n in (("train", 6), ("t10k", 3)):
        files[f"{part}-images-idx3-ubyte"] = idx(random.integers(0, 256, (n, 28, 28), np.uint8))
        files[f"{part}-labels-idx1-ubyte"] = idx(random.integers(0, 10, n, np.uint8))
    monkeypatch.delenv(_datasets.DATA_VARIABLE, raising=False)

    def publish(**changed):
        files.update({name.replace("_", "-"): data for name, data in changed.items()})
        monkeypatch.setattr(_datasets, "_MNIST", {name: md5(data) for name, data in files.items()})
        return files

    publish()
    return publish


@pytest.mark.parametrize("sub", ["", "mnist", "MNIST/raw"])
@pytest.mark.parametrize("ending", ["", ".gz"])
def test_mnist_is_found_in_the_folder_or_below_plain_or_packed(tmp_path, tiny_mnist, sub, ending):
    files = tiny_mnist()
    lay(tmp_path / sub, files, ending)
    data = _datasets.mnist(tmp_path)
    assert (data.name, data.note, data.num_classes) == ("mnist", "MNIST", 10)
    assert data.train_images.shape == (6, 28, 28, 1)
    assert data.train_images.dtype == np.uint8
    assert data.train_labels.dtype == data.test_labels.dtype == np.int32
    assert data.train_images.tobytes() == files["train-images-idx3-ubyte"][16:]
    assert data.test_labels.astype(np.uint8).tobytes() == files["t10k-labels-idx1-ubyte"][8:]
    assert data.validation_images.shape == (0, 28, 28, 1)


def test_mnist_with_another_checksum_is_refused_and_both_are_told(tmp_path, tiny_mnist, monkeypatch):
    files = tiny_mnist()
    lay(tmp_path, files)
    monkeypatch.undo()  # The published checksums again: well-formed files with the right names are not enough.
    with pytest.raises(CorruptDataError) as caught:
        _datasets.mnist(tmp_path)
    assert str(tmp_path / "train-images-idx3-ubyte") in str(caught.value)
    assert md5(files["train-images-idx3-ubyte"])[4:] in str(caught.value)
    assert "6bbc9ace898e44ae57da46a324031adb" in str(caught.value)


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        (
            {"t10k_labels_idx1_ubyte": idx(np.zeros(4, np.uint8))},
            "labels-.*: holds 4 labels for the 3 images",
        ),
        (
            {"t10k_labels_idx1_ubyte": idx(np.full(3, 10, np.uint8))},
            "labels-.*: labels must be uint8 in 0..9",
        ),
        ({"t10k_labels_idx1_ubyte": idx(np.zeros(3, np.int32))}, "labels must be uint8 .* got int32"),
        ({"t10k_images_idx3_ubyte": idx(np.zeros((3, 784), np.uint8))}, "images must be uint8 of rank 3"),
        ({"train_images_idx3_ubyte": b"\0\0\x0a\3"}, "train-images-.*: not an IDX file"),
    ],
)
def test_mnist_files_that_do_not_fit_are_refused_even_with_a_right_checksum(
    tmp_path, tiny_mnist, changed, problem
):
    lay(tmp_path, tiny_mnist(**changed))
    with pytest.raises(CorruptDataError, match=problem):
        _datasets.mnist(tmp_path)


def test_a_truncated_download_of_mnist_is_named(tmp_path, tiny_mnist):
    lay(tmp_path, tiny_mnist(), ".gz")
    path = tmp_path / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(CorruptDataError, match=re.escape(f"{path}: cannot be read to its end")):
        _datasets.mnist(tmp_path)


def test_mnist_is_read_from_the_environments_folder(tmp_path, tiny_mnist, monkeypatch):
    lay(tmp_path / "data", tiny_mnist())
    monkeypatch.setenv(_datasets.DATA_VARIABLE, str(tmp_path / "data"))
    assert len(_datasets.mnist().train_labels) == 6
