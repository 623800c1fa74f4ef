import io
import os
import pickle
import re
import warnings

import numpy as np
import pytest
from PIL import Image

from experiments import _cifar, _datasets
from experiments._archives import CorruptDataError
from experiments._cifar import CLASSES, Cifar, parse_binary_batch, parse_pickled_batch
from tests.experiments.tiny_data import batch, binary_batch, lay, md5, python2_batch, write_tar


@pytest.fixture
def tiny_cifar(monkeypatch):
    """Six batches in both versions, ten images each; their checksums in the place of the published ones."""
    monkeypatch.delenv(_datasets.DATA_VARIABLE, raising=False)
    files = {}
    for i, name in enumerate(
        ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch")
    ):
        files[f"{name}.bin"] = binary_batch(*batch(i))
        files[name] = python2_batch(*batch(i))

    def publish(**also):
        sums = {name: md5(data) for name, data in {**files, **also}.items()}
        monkeypatch.setattr(_datasets, "_CIFAR10", Cifar(sums, train=5, test=1))
        return files

    publish()
    return publish


def expected_cifar():
    planes, labels = zip(*(batch(i) for i in range(6)), strict=True)
    images = np.stack([p.reshape(10, 3, 32, 32) for p in planes]).transpose(0, 1, 3, 4, 2)
    return images[:5].reshape(50, 32, 32, 3), np.concatenate(labels[:5]), images[5], labels[5]


def assert_is_cifar(data, note):
    assert (data.name, data.note) == ("cifar10", note)
    for found, wanted in zip((*data[3:5], *data[7:]), expected_cifar(), strict=True):
        np.testing.assert_array_equal(found, wanted)
    assert data.train_images.dtype == np.uint8
    assert data.train_labels.dtype == data.test_labels.dtype == np.int32


def test_a_binary_record_is_a_label_then_red_green_blue_row_by_row():
    record = np.zeros(3073, np.uint8)
    record[0], record[1 + 2 * 1024 + 5 * 32 + 7] = 9, 200
    images, labels = parse_binary_batch(record.tobytes())
    assert labels.tolist() == [9]
    assert np.argwhere(images).tolist() == [[0, 5, 7, 2]]
    assert images[0, 5, 7, 2] == 200


@pytest.mark.parametrize("sub", ["", "cifar-10-batches-bin", "cifar10/cifar-10-batches-bin"])
def test_binary_batches_are_read_from_a_folder(tmp_path, tiny_cifar, sub):
    lay(tmp_path / sub, {name: data for name, data in tiny_cifar().items() if name.endswith(".bin")})
    assert_is_cifar(_datasets.cifar10(tmp_path), "CIFAR-10")


def test_pickled_batches_are_read_from_a_folder(tmp_path, tiny_cifar):
    files = {name: data for name, data in tiny_cifar().items() if not name.endswith(".bin")}
    lay(tmp_path / "cifar-10-batches-py", files)
    assert_is_cifar(_datasets.cifar10(tmp_path), "CIFAR-10")


@pytest.mark.parametrize(
    ("archive", "folder", "extra"),
    [
        ("cifar-10-binary.tar.gz", "cifar-10-batches-bin", "batches.meta.txt"),
        ("cifar-10-python.tar.gz", "cifar-10-batches-py", "batches.meta"),
    ],
)
def test_the_published_archives_are_read_in_place(tmp_path, tiny_cifar, archive, folder, extra):
    ending = ".bin" if folder.endswith("bin") else ""
    wanted = {n: d for n, d in tiny_cifar().items() if n.endswith(".bin") == bool(ending)}
    members = [(f"{folder}/{name}", data) for name, data in reversed(wanted.items())]
    members += [(f"{folder}/{extra}", b"cos\nsystem\n(S'exit 1'\ntR."), (f"{folder}/readme.html", b"")]
    path = write_tar(tmp_path / archive, members)
    tiny_cifar(**{archive: path.read_bytes()})
    assert_is_cifar(_datasets.cifar10(tmp_path), "CIFAR-10")
    assert os.listdir(tmp_path) == [archive]

    lacking = write_tar(path, [m for m in members if "data_batch_3" not in m[0]])
    tiny_cifar(**{archive: lacking.read_bytes()})
    with pytest.raises(CorruptDataError, match=f"{archive}: lacks data_batch_3{ending}"):
        _datasets.cifar10(tmp_path)


@pytest.mark.parametrize("name", list(_datasets._CIFAR10.checksums))
def test_every_published_cifar_name_is_checked_before_it_is_decoded(tmp_path, monkeypatch, name):
    """Files of the right name whose bytes are others': the published checksums stand, no decoder is reached."""
    algorithm, expected = _datasets._CIFAR10.checksums[name].split(":")
    assert len(expected) == {"md5": 32, "sha1": 40}[algorithm]
    monkeypatch.delenv(_datasets.DATA_VARIABLE, raising=False)
    for parser in ("parse_binary_batch", "parse_pickled_batch"):
        monkeypatch.setattr(
            _cifar, parser, lambda data, source: (np.zeros((1, 32, 32, 3), np.uint8), np.zeros(1, int))
        )
    sums = {n: md5(b"fine") for n in _datasets._CIFAR10.checksums} | {name: f"{algorithm}:{expected}"}
    monkeypatch.setattr(_datasets, "_CIFAR10", Cifar(sums))
    group = (
        [name]
        if name.endswith(".gz")
        else [n for n in sums if n.endswith(".bin") == name.endswith(".bin") and "tar" not in n]
    )
    lay(tmp_path, dict.fromkeys(group, b"fine"))
    with pytest.raises(
        CorruptDataError, match=rf"{re.escape(name)}: {algorithm} checksum is \w+, expected {expected}"
    ):
        _datasets.cifar10(tmp_path)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "0 bytes are not a whole number of records"),
        (bytes(3073 * 2 - 1), "6,145 bytes are not a whole number"),
        (bytes(3073) + b"x", "3,074 bytes are not a whole number"),
        (b"\x0a" + bytes(3072), "holds the label 10"),
    ],
)
def test_binary_batches_of_the_wrong_size_or_label_are_refused(data, problem):
    with pytest.raises(CorruptDataError, match=f"^b.bin: {problem}"):
        parse_binary_batch(data, "b.bin")


def test_classes_that_are_not_balanced_are_refused(tmp_path, tiny_cifar, monkeypatch):
    planes, labels = batch(0)
    files = {n: d for n, d in tiny_cifar().items() if n.endswith(".bin")}
    files["data_batch_1.bin"] = binary_batch(planes, np.zeros_like(labels))
    lay(tmp_path, files)
    sums = {name: md5(data) for name, data in files.items()}
    monkeypatch.setattr(_datasets, "_CIFAR10", Cifar(sums, train=5, test=1))
    with pytest.raises(
        CorruptDataError, match=r"training batches: images per class are \[14, 4,.*expected 5 of each"
    ):
        _datasets.cifar10(tmp_path)


def test_pickled_batches_read_as_numpys_own_unpickling_reads_them():
    planes, labels = batch(3)
    data = python2_batch(planes, labels)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy >= 2.4 on dtype('u1', 0, 1)
        reference = pickle.loads(data, encoding="bytes")
    images, read = parse_pickled_batch(data)
    np.testing.assert_array_equal(reference[b"data"].reshape(10, 3, 32, 32).transpose(0, 2, 3, 1), images)
    assert reference[b"labels"] == read.tolist() == labels.tolist()


class Call:
    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def test_a_pickle_that_would_run_a_command_is_refused_before_it_does(tmp_path, tiny_cifar):
    marker = tmp_path / "marker"
    evil = pickle.dumps({b"data": Call(os.mkdir, str(marker)), b"labels": []}, protocol=3)
    pickle.loads(evil)
    assert marker.exists()  # so the pickle is a working one
    marker.rmdir()

    with pytest.raises(CorruptDataError, match=r"^a batch: .*posix\.mkdir, which no CIFAR-10 batch needs"):
        parse_pickled_batch(evil, "a batch")
    files = {name: data for name, data in tiny_cifar().items() if not name.endswith(".bin")}
    lay(tmp_path, {**files, "data_batch_1": evil})
    with pytest.raises(CorruptDataError, match="data_batch_1: md5 checksum is"):
        _datasets.cifar10(tmp_path)
    tiny_cifar(data_batch_1=evil)  # even if the checksum were right
    with pytest.raises(CorruptDataError, match=r"data_batch_1: .*posix\.mkdir"):
        _datasets.cifar10(tmp_path)
    assert not marker.exists()


@pytest.mark.parametrize(
    "name",
    [
        "os system", "posix system", "builtins eval", "builtins getattr", "__builtin__ eval", "subprocess Popen",
        "copyreg _reconstructor", "numpy load", "numpy fromfile", "numpy.core.multiarray scalar",
        "numpy ndarray.tofile",
    ],
)  # fmt: skip
def test_no_name_but_the_three_stand_ins_can_be_had_from_a_pickle(name):
    module, attribute = name.split()
    short = [b"\x8c" + bytes([len(part)]) + part.encode() for part in (module, attribute)]
    for stream in (f"c{module}\n{attribute}\n.".encode(), b"\x80\4" + short[0] + short[1] + b"\x93."):
        with pytest.raises(
            CorruptDataError, match=f"the pickle asks for {module}.{attribute}, which no CIFAR-10"
        ):
            parse_pickled_batch(stream)


def test_pickles_of_anything_but_a_batch_are_refused():
    planes, labels = batch(0)
    good = python2_batch(planes, labels)
    bad = [
        b"", b"garbage", good[:-1], good[: len(good) // 2], good + b"x", pickle.dumps([1, 2]), pickle.dumps({}),
        pickle.dumps({b"data": b"x" * 3072, b"labels": [1]}), pickle.dumps({b"data": 3, b"labels": [1]}),
        python2_batch(planes, labels, dtype=b"O8"), python2_batch(planes, labels, dtype=b"i1"),
        python2_batch(planes, labels, shape=(9, 3072)), python2_batch(planes, labels, shape=(20, 1536)),
        python2_batch(planes[:, 1:], labels), python2_batch(planes, labels, shape=(3072, 10)),
        python2_batch(planes, labels[:9]), python2_batch(planes, np.full(10, 10)),
        good.replace(b"K\0K\1\x87R(K\3", b"K\0K\1\x87R(K\0", 1)[:-3] + b"cnumpy\nndarray\nK\0b.",
        b"}U\4datacnumpy\nndarray\n)RK\5bs.", b"}U\4datacnumpy\nndarray\nK\5bs.", b"\x80\2Pabc\n.",
    ]  # fmt: skip
    for data in bad:
        with pytest.raises(CorruptDataError, match=r"^a batch: "):
            parse_pickled_batch(data, "a batch")


def coded(image, coding="PNG"):
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, coding)
    return stream.getvalue()


def image_files(coding="PNG", suffix="png"):
    """The images of the tiny CIFAR-10, sorted by class as image folders are, and the files that hold them."""
    files, sorted_arrays = {}, []
    train_images, train_labels, *test = expected_cifar()
    for split, images, labels in (("train", train_images, train_labels), ("test", *test)):
        order = np.argsort(labels, kind="stable")
        for i in order:
            files[f"{split}/{CLASSES[labels[i]]}/{i:04d}.{suffix}"] = coded(images[i], coding)
        sorted_arrays += [images[order], labels[order]]
    return files, sorted_arrays


@pytest.mark.parametrize(
    "where", ["cifar10.tar", "cifar10-png/cifar10.tar.gz", "cifar10/cifar10.tar.xz", "cifar10-png/"]
)
def test_png_files_are_read_exactly_and_sorted_by_class(tmp_path, tiny_cifar, where):
    files, wanted = image_files()
    (tmp_path / where).parent.mkdir(exist_ok=True)
    if where.endswith("/"):
        for name in files:
            (tmp_path / where / name).parent.mkdir(parents=True, exist_ok=True)
        lay(tmp_path / where, files)
    else:
        shuffled = [list(files.items())[i] for i in np.random.default_rng(1).permutation(len(files))]
        write_tar(tmp_path / where, [("README.md", b"a text"), *shuffled])
    data = _datasets.cifar10(tmp_path)
    assert data.note == "CIFAR-10 (PNG)"
    assert data.train_labels.dtype == np.int32
    for found, exact in zip((*data[3:5], *data[7:]), wanted, strict=True):
        np.testing.assert_array_equal(found, exact)


@pytest.mark.parametrize("suffix", ["jpg", "jpeg", "png"])
def test_jpeg_coded_images_are_labelled_so_whatever_their_suffix(tmp_path, tiny_cifar, suffix):
    files, _ = image_files("JPEG", suffix)
    write_tar(tmp_path / "cifar10.tar", files.items())
    assert _datasets.cifar10(tmp_path).note == "CIFAR-10 (JPEG)"


def test_the_original_bytes_are_preferred_to_images(tmp_path, tiny_cifar):
    write_tar(tmp_path / "cifar10.tar", image_files("JPEG", "jpg")[0].items())
    lay(tmp_path / "cifar-10-batches-bin", {n: d for n, d in tiny_cifar().items() if n.endswith(".bin")})
    assert_is_cifar(_datasets.cifar10(tmp_path), "CIFAR-10")


NOISE = np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda f: f | {"train/cat/0000.gif": b""}, "'train/cat/0000.gif' is not expected"),
        (lambda f: f | {"train/lion/0000.png": b""}, "'train/lion/0000.png' is not expected"),
        (lambda f: f | {"other/cat/0000.png": b""}, "'other/cat/0000.png' is not expected"),
        (lambda f: f | {"train/cat/x/0000.png": b""}, "'train/cat/x/0000.png' is not expected"),
        (lambda f: f | {"train/cat/../../evil.png": b""}, "points outside the archive"),
        (
            lambda f: f | {"train/cat/9999.png": coded(NOISE)},
            r"'train/cat/9999.png' has \d+,\d+ bytes, more than 65,536",
        ),
        (
            lambda f: f | {"train/cat/9999.png": coded(NOISE[:32, :32])},
            r"train: images per class are \[5, 5, 5, 6,",
        ),
        (lambda f: dict(list(f.items())[1:]), r"train: images per class are \[4, 5, 5,"),
        (lambda f: {n: d for n, d in f.items() if "test" not in n}, r"test: images per class are \[0, 0,"),
        (lambda f: f | {next(iter(f)): coded(NOISE[:33, :32])}, "is 32 by 33 pixels"),
        (lambda f: f | {next(iter(f)): coded(NOISE[:32, :32])[:-100]}, "not a readable JPEG or PNG"),
        (lambda f: f | {next(iter(f)): coded(NOISE[:32, :32], "BMP")}, "not a readable JPEG or PNG"),
        (lambda f: f | {next(iter(f)): b""}, "not a readable JPEG or PNG"),
    ],
)
def test_image_archives_that_hold_anything_else_are_refused(tmp_path, tiny_cifar, change, problem):
    write_tar(tmp_path / "cifar10.tar", change(image_files()[0]).items())
    with pytest.raises(CorruptDataError, match=rf"cifar10\.tar.*{problem}"):
        _datasets.cifar10(tmp_path)


def test_an_image_given_twice_is_refused(tmp_path, tiny_cifar):
    files = list(image_files()[0].items())
    write_tar(tmp_path / "cifar10.tar", [*files, files[0]])
    with pytest.raises(CorruptDataError, match=rf"cifar10\.tar: holds {files[0][0]} twice"):
        _datasets.cifar10(tmp_path)
