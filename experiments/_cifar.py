"""CIFAR-10 in every form it is found in: binary batches, pickled batches, folders of JPEG or PNG files.

Formats: A. Krizhevsky, "The CIFAR-10 dataset", https://www.cs.toronto.edu/~kriz/cifar.html, "Python version" and
"Binary version". The readers return the images unshuffled; the image folders come sorted by class.
"""

import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments._archives import Limits, read_file, refuse, verify, walk_folder, walk_tar

__all__ = ["CLASSES", "Cifar", "parse_binary_batch", "parse_pickled_batch", "read_batches", "read_images"]

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_SIDE = 32
_PIXELS = 3 * _SIDE * _SIDE

_BATCH_LIMITS = Limits(member=40 << 20, total=256 << 20, count=64)
_IMAGE_LIMITS = Limits(member=64 << 10, total=512 << 20, count=60_100)
_IMAGE_NAME = rf"(train|test)/({'|'.join(CLASSES)})/[A-Za-z0-9_-]+\.(jpg|jpeg|png)"


class Cifar(NamedTuple):
    """What the published files are known to be (tests read smaller ones).

    Attributes:
        checksums: file name -> checksum, for the two archives and the twelve batches.
        train: training images of each class.
        test: test images of each class.
    """

    checksums: Mapping[str, str]
    train: int = 5000
    test: int = 1000


def _planes_to_images(planes: np.ndarray) -> np.ndarray:
    """[n, 3072] with all red, then all green, then all blue pixels -> [n, 32, 32, 3]."""
    return np.ascontiguousarray(planes.reshape(-1, 3, _SIDE, _SIDE).transpose(0, 2, 3, 1))


def _check_labels(labels: np.ndarray, each: int, source: object) -> np.ndarray:
    """``labels`` as int32, if every class is there ``each`` times."""
    counts = np.bincount(labels, minlength=len(CLASSES))
    if counts.tolist() != [each] * len(CLASSES):
        refuse(source, f"images per class are {counts.tolist()}, expected {each} of each")
    return labels.astype(np.int32)


def parse_binary_batch(data: bytes, source: object = "CIFAR-10 batch") -> tuple[np.ndarray, np.ndarray]:
    """Decodes one file of the binary version: records of a label byte and 3,072 pixel bytes.

    Args:
        data: the whole file.
        source: what errors call it.

    Returns:
        Images [n, 32, 32, 3] uint8 and labels [n] uint8 in 0..9.

    Raises:
        CorruptDataError: not a whole number of records, or a label above 9.
    """
    if not data or len(data) % (1 + _PIXELS):
        refuse(source, f"{len(data):,} bytes are not a whole number of records of {1 + _PIXELS:,}")
    records = np.frombuffer(data, np.uint8).reshape(-1, 1 + _PIXELS)
    labels = records[:, 0].copy()
    if labels.max() >= len(CLASSES):
        refuse(source, f"holds the label {labels.max()}, classes are 0..{len(CLASSES) - 1}")
    return _planes_to_images(records[:, 1:]), labels


class _PickledDtype:
    """Stands in for ``numpy.dtype`` while a batch is unpickled: remembers the name and does nothing."""

    def __init__(self, name: object = None, *_: object):
        self.name = name.decode("latin1") if isinstance(name, bytes) else name

    def __setstate__(self, state: object) -> None:
        """Byte order and alignment: nothing to keep for one-byte elements."""


class _PickledArray:
    """Stands in for ``numpy.ndarray``: keeps the raw state, to be checked before NumPy sees it."""

    state: object = None

    def __init__(self, *_: object):
        pass

    def __setstate__(self, state: object) -> None:
        self.state = state

    def pixels(self) -> np.ndarray | None:
        """[n, 3072] uint8, or None for any other content."""
        if not isinstance(self.state, tuple) or len(self.state) != 5:
            return None
        _, shape, dtype, column_major, data = self.state
        if not isinstance(dtype, _PickledDtype) or dtype.name != "u1" or not isinstance(data, bytes):
            return None
        rows = len(data) // _PIXELS
        if shape != (rows, _PIXELS) or len(data) != rows * _PIXELS:
            return None
        return np.frombuffer(data, np.uint8).reshape(shape, order="F" if column_major else "C")


_STAND_INS = {
    ("numpy.core.multiarray", "_reconstruct"): _PickledArray,
    ("numpy", "ndarray"): _PickledArray,
    ("numpy", "dtype"): _PickledDtype,
}


class _BatchUnpickler(pickle.Unpickler):
    """Unpickles numbers, strings, containers and three names of NumPy, for which inert classes stand in.

    No function of NumPy's is called with what the file says, so a hostile pickle reaches no code but this file's;
    and NumPy's own route warns (2.4) about these files' ``dtype('u1', 0, 1)``.
    """

    def find_class(self, module: str, name: str) -> type:
        if (module, name) not in _STAND_INS:
            msg = f"the pickle asks for {module}.{name}, which no CIFAR-10 batch needs"
            raise pickle.UnpicklingError(msg)
        return _STAND_INS[module, name]


def parse_pickled_batch(data: bytes, source: object = "CIFAR-10 batch") -> tuple[np.ndarray, np.ndarray]:
    """Decodes one file of the Python version, a pickled dict with ``data`` [n, 3072] uint8 and a list ``labels``.

    Args:
        data: the whole file, its checksum already verified.
        source: what errors call it.

    Returns:
        Images [n, 32, 32, 3] uint8 and labels [n] uint8 in 0..9.

    Raises:
        CorruptDataError: a pickle that needs any other class or function (none is run), or holds anything else.
    """
    stream = io.BytesIO(data)
    try:
        batch = _BatchUnpickler(stream, encoding="bytes").load()
    except Exception as error:  # Damaged pickles raise nearly anything: KeyError, TypeError, MemoryError ...
        refuse(source, f"not a CIFAR-10 batch ({error})", error)
    array = batch.get(b"data") if isinstance(batch, dict) else None
    labels = batch.get(b"labels") if isinstance(batch, dict) else None
    planes = array.pixels() if isinstance(array, _PickledArray) else None
    if planes is None or not isinstance(labels, list) or stream.read(1):
        refuse(source, "not a CIFAR-10 batch: a pickled dict with uint8 data [n, 3072] and a list of labels")
    if len(labels) != len(planes) or any(type(k) is not int or not 0 <= k < len(CLASSES) for k in labels):
        refuse(source, f"{len(labels):,} labels, expected {len(planes):,}, each in 0..{len(CLASSES) - 1}")
    return _planes_to_images(planes), np.array(labels, np.uint8)


def read_batches(paths: list[Path], published: Cifar, *, pickled: bool) -> tuple[np.ndarray, ...]:
    """Reads the binary or the Python version, each file only after its published checksum matches.

    Args:
        paths: the archive alone, or the six batches, the test batch last.
        published: checksums and counts.
        pickled: whether it is the Python version.

    Returns:
        ``train_images`` [n, 32, 32, 3] uint8, ``train_labels`` [n] int32 in 0..9, ``test_images``, ``test_labels``.

    Raises:
        CorruptDataError: see `walk_tar`, `parse_binary_batch`, `parse_pickled_batch`; or a batch is missing.
    """
    folder, ending = ("cifar-10-batches-py", "") if pickled else ("cifar-10-batches-bin", ".bin")
    parse = parse_pickled_batch if pickled else parse_binary_batch
    names = [*(f"data_batch_{i}{ending}" for i in range(1, 6)), f"test_batch{ending}"]
    if len(paths) == 1:
        origin = paths[0]
        with origin.open("rb") as archive:
            verify(archive, published.checksums[origin.name], origin)
        batch, other = (
            rf"{folder}/(data_batch_[1-5]|test_batch)(\.bin)?",
            rf"{folder}/(batches\.meta|readme).*",
        )
        coded = {name.split("/")[1]: data for name, data in walk_tar(origin, batch, other, _BATCH_LIMITS)}
    else:
        origin = paths[0].parent
        coded = {path.name: read_file(path, limit=_BATCH_LIMITS.member) for path in paths}
    parts = []
    for name in names:
        if name not in coded:
            refuse(origin, f"lacks {name}")
        verify(coded[name], published.checksums[name], f"{origin}, {name}")
        parts.append(parse(coded.pop(name), f"{origin}, {name}"))
    images, labels = zip(*parts, strict=True)
    train_labels = _check_labels(np.concatenate(labels[:5]), published.train, f"{origin}, training batches")
    test_labels = _check_labels(labels[5], published.test, f"{origin}, {names[5]}")
    return np.concatenate(images[:5]), train_labels, images[5], test_labels


def _decode(data: bytes, image: np.ndarray, source: str) -> str:
    """Decodes a JPEG or PNG of 32 by 32 pixels into ``image`` [32, 32, 3]; returns which of the two it is."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as opened:
            size, coding = opened.size, opened.format
            # So far only the header was read: a picture of the wrong size is never decoded.
            if size == (_SIDE, _SIDE):
                image[...] = np.asarray(opened.convert("RGB"))
    except Exception as error:  # Pillow raises OSError, SyntaxError, struct.error ... on damaged files.
        refuse(source, f"not a readable JPEG or PNG image ({error})", error)
    if size != (_SIDE, _SIDE):
        refuse(source, f"is {size[0]} by {size[1]} pixels, expected {_SIDE} by {_SIDE}")
    return coding


def read_images(path: Path, published: Cifar) -> tuple[str, tuple[np.ndarray, ...]]:
    """Reads ``train/<class>/<name>.jpg`` and ``test/<class>/<name>.jpg`` (or PNG) from a folder or a tar archive.

    Args:
        path: the folder that holds ``train`` and ``test``, or the archive.
        published: counts; such archives have no published checksum.

    Returns:
        ``"JPEG"`` if any file is JPEG-coded, else ``"PNG"``; and the arrays of `read_batches`, sorted by class,
        then by file name.

    Raises:
        CorruptDataError: see `walk_tar`; or wrong counts, a file given twice, a file that is not a 32 by 32 image.
    """
    if path.is_dir():
        members = walk_folder(path, ("train", "test"), _IMAGE_NAME, _IMAGE_LIMITS)
    else:
        members = walk_tar(path, _IMAGE_NAME, r"README[A-Za-z.]*", _IMAGE_LIMITS)
    coded: dict[str, bytes] = {}
    for name, data in members:
        if name in coded:
            refuse(path, f"holds {name} twice")
        coded[name] = data
    arrays, formats = [], set()
    for split, each in (("train", published.train), ("test", published.test)):
        # Sorted by (class, name); the alphabetical order of the classes is the order of the labels.
        names = sorted(name for name in coded if name.startswith(f"{split}/"))
        labels = np.array([CLASSES.index(name.split("/")[1]) for name in names], np.intp)
        labels = _check_labels(labels, each, f"{path}, {split}")
        images = np.empty((len(names), _SIDE, _SIDE, 3), np.uint8)
        for i, name in enumerate(names):
            formats.add(_decode(coded[name], images[i], f"{path}, {name}"))
        arrays += [images, labels]
    return "JPEG" if "JPEG" in formats else "PNG", tuple(arrays)
