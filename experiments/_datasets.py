"""The data sets experiments train on: scikit-learn's digits, MNIST, CIFAR-10.

Nothing is downloaded, ever. MNIST and CIFAR-10 are read from a folder the user names with ``--data-dir`` or the
environment variable ``JAXOPT_PDE_DATA``, and published checksums are verified before anything is decoded.
Images stay uint8 (CIFAR-10: 184 MB; as float32 737 MB): keep them so on the device and divide the batch by 255
there, or call `Dataset.as_float`.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments._archives import CorruptDataError
from experiments._cifar import CLASSES as CIFAR10_CLASSES
from experiments._cifar import Cifar, read_batches, read_images
from experiments._idx import read_mnist

__all__ = ["CIFAR10_CLASSES", "DATA_VARIABLE", "CorruptDataError", "Dataset", "cifar10", "digits", "mnist"]

DATA_VARIABLE = "JAXOPT_PDE_DATA"


class Dataset(NamedTuple):
    """Images and labels on the host, in the order of their source (CIFAR-10 from images: sorted by class; shuffle).

    Attributes:
        name: what code calls it, e.g. ``"cifar10"``.
        note: what tables and figures call it, e.g. ``"CIFAR-10 (JPEG)"``: errors on re-coded images are not those
            on the original bytes, so print this, not the name.
        num_classes: labels are 0 .. num_classes - 1.
        train_images: [n, h, w, c], uint8 in 0..255 or float32 in [0, 1].
        train_labels: [n] int32.
        validation_images: as train_images; empty until `hold_out`.
        validation_labels: [n] int32.
        test_images: as train_images.
        test_labels: [n] int32.
    """

    name: str
    note: str
    num_classes: int
    train_images: np.ndarray
    train_labels: np.ndarray
    validation_images: np.ndarray
    validation_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray

    def as_float(self) -> "Dataset":
        """The same data with images as float32 in [0, 1] (uint8 divided by 255); float images are left alone."""
        images = ("train_images", "validation_images", "test_images")
        return self._replace(**{name: _unit(getattr(self, name)) for name in images})

    def hold_out(self, fraction: float, *, seed: int = 0) -> "Dataset":
        """Moves a stratified part of the training data to validation.

        Args:
            fraction: of each class's training images, in (0, 1); rounded to the nearest image.
            seed: which images; the same seed gives the same split on every machine.

        Returns:
            A data set with fewer training images; both parts keep the order of the source.

        Raises:
            ValueError: ``fraction`` outside (0, 1), or a validation part is already there.
        """
        if not 0 < fraction < 1:
            msg = f"fraction must be in (0, 1), got {fraction!r}."
            raise ValueError(msg)
        if len(self.validation_labels):
            msg = f"{self.note} already holds out {len(self.validation_labels)} images for validation."
            raise ValueError(msg)
        held, kept = _stratify(self.train_labels, (fraction,), seed)
        return self._replace(
            train_images=self.train_images[kept],
            train_labels=self.train_labels[kept],
            validation_images=self.train_images[held],
            validation_labels=self.train_labels[held],
        )


def _unit(images: np.ndarray) -> np.ndarray:
    return images if images.dtype == np.float32 else np.divide(images, np.float32(255), dtype=np.float32)


def _dataset(name: str, note: str, arrays: Sequence[np.ndarray]) -> Dataset:
    """Ten classes, nothing held out; ``arrays``: train images, train labels, test images, test labels."""
    train_images, train_labels, *test = arrays
    return Dataset(name, note, 10, train_images, train_labels, train_images[:0], train_labels[:0], *test)


def _stratify(labels: np.ndarray, fractions: Sequence[float], seed: int) -> list[np.ndarray]:
    """Ascending indices of one part per fraction, each class in proportion, and of the rest."""
    # RandomState: its stream is frozen for ever (NEP 19), a Generator's is not, and splits must not drift.
    random = np.random.RandomState(seed)
    parts: list[list[np.ndarray]] = [[] for _ in range(len(fractions) + 1)]
    for label in np.unique(labels):
        members = random.permutation(np.flatnonzero(labels == label))
        cuts = np.rint(np.cumsum(fractions) * len(members)).astype(int)
        for part, chosen in zip(parts, np.split(members, cuts), strict=True):
            part.append(chosen)
    return [np.sort(np.concatenate(part)) for part in parts]


def digits(*, validation: float = 0.15, test: float = 0.15, seed: int = 0) -> Dataset:
    """The 1,797 handwritten digits of 8 by 8 pixels that come with scikit-learn, split by class.

    Source: E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI repository (1998), the test
    part. Writers are not identified, so the same hand appears in all three parts: errors are optimistic.

    Args:
        validation: fraction of every class held out for validation.
        test: fraction of every class held out for testing.
        seed: which images go where, the test part included.

    Returns:
        Images [n, 8, 8, 1] float32 in [0, 1] (the 17 grey levels divided by 16), labels [n] int32.

    Raises:
        ValueError: fractions that are negative or leave no training data.
        ModuleNotFoundError: scikit-learn is missing.

    >>> data = digits(seed=0)
    >>> data.train_images.shape, data.validation_images.shape, data.test_images.shape
    ((1258, 8, 8, 1), (270, 8, 8, 1), (269, 8, 8, 1))
    """
    if not (validation >= 0 and test >= 0 and validation + test < 1):
        msg = f"validation and test must be fractions with a sum below 1, got {validation!r} and {test!r}."
        raise ValueError(msg)
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    images = (pixels.reshape(-1, 8, 8, 1) / 16).astype(np.float32)
    labels = labels.astype(np.int32)
    tested, held, kept = _stratify(labels, (test, validation), seed)
    arrays = (part for index in (kept, held, tested) for part in (images[index], labels[index]))
    return Dataset("digits", "digits (scikit-learn)", 10, *arrays)


class _Source(NamedTuple):
    """One form a data set is found in.

    Attributes:
        files: what must lie together in one folder, each under any of its names.
        read: makes the data set from the paths found, one per entry of ``files``.
    """

    files: tuple[tuple[str, ...], ...]
    read: Callable[[list[Path]], Dataset]


def _enumerate(names: Sequence[str]) -> str:
    return ", ".join(names if len(names) <= 6 else (*names[:2], "...", names[-1]))


def _search(
    title: str, page: str, sources: Sequence[_Source], subfolders: Sequence[str], data_dir
) -> Dataset:
    """Reads the first source, in order of preference, that is complete in some place."""
    given = data_dir if data_dir is not None else os.environ.get(DATA_VARIABLE) or None
    places = [] if given is None else [Path(given).expanduser() / sub for sub in ("", *subfolders)]
    remarks = {place: "" if place.is_dir() else " (no such folder)" for place in places}
    for source in sources:
        for place in places:
            paths = [next((place / n for n in names if (place / n).exists()), None) for names in source.files]
            if None not in paths:
                return source.read(paths)
            if any(paths):
                lacking = [names[0] for names, path in zip(source.files, paths, strict=True) if path is None]
                remarks[place] += f" (incomplete: lacks {_enumerate(lacking)})"
    wanted = "\n".join(
        f"  {_enumerate([' or '.join(names) for names in source.files])}" for source in sources
    )
    looked = "\n".join(f"  {place}{remark}" for place, remark in remarks.items())
    msg = (
        f"{title} was not found. Nothing is downloaded for you: get it from {page}, and name the folder you put it "
        f"in with data_dir (--data-dir) or the environment variable {DATA_VARIABLE}.\nLooked for any of\n{wanted}\n"
        f"in\n{looked or f'  no folder: data_dir is None and {DATA_VARIABLE} is not set'}"
    )
    raise FileNotFoundError(msg)


# MD5 of the uncompressed files.
_MNIST = {
    "train-images-idx3-ubyte": "md5:6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "md5:a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "md5:2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "md5:27ae3e4e09519cfbb04c329615203637",
}


def mnist(data_dir: str | os.PathLike | None = None) -> Dataset:
    """MNIST from its four original files, plain or gzip.

    Args:
        data_dir: the folder they are in, or one that holds it as ``mnist``; None: ``JAXOPT_PDE_DATA``.

    Returns:
        60,000 training and 10,000 test images [n, 28, 28, 1] uint8, labels [n] int32; no validation part.

    Raises:
        FileNotFoundError: files are missing; says where to get them and every place looked at.
        CorruptDataError: a file whose checksum or content is wrong.
    """
    files = tuple((name, f"{name}.gz", name.replace("-idx", ".idx")) for name in _MNIST)
    sums = tuple(_MNIST.values())
    source = _Source(files, lambda paths: _dataset("mnist", "MNIST", read_mnist(paths, sums)))
    page = '"The MNIST database of handwritten digits", http://yann.lecun.com/exdb/mnist/'
    return _search("MNIST", page, [source], ("mnist", "MNIST", "MNIST/raw"), data_dir)


# The archives and the pickled batches: MD5, from https://www.cs.toronto.edu/~kriz/cifar.html and torchvision.
# The binary batches: SHA-1, from MXNet's gluon.data.vision.CIFAR10.
_CIFAR10 = Cifar(
    {
        "cifar-10-binary.tar.gz": "md5:c32a1d4ab5d03f1284b67883e8d87530",
        "cifar-10-python.tar.gz": "md5:c58f30108f718f92721af3b95e74349a",
        "data_batch_1.bin": "sha1:aadd24acce27caa71bf4b10992e9e7b2d74c2540",
        "data_batch_2.bin": "sha1:c0ba65cce70568cd57b4e03e9ac8d2a5367c1795",
        "data_batch_3.bin": "sha1:1dd00a74ab1d17a6e7d73e185b69dbf31242f295",
        "data_batch_4.bin": "sha1:aab85764eb3584312d3c7f65fd2fd016e36a258e",
        "data_batch_5.bin": "sha1:26e2849e66a845b7f1e4614ae70f4889ae604628",
        "test_batch.bin": "sha1:67eb016db431130d61cd03c7ad570b013799c88c",
        "data_batch_1": "md5:c99cafc152244af753f735de768cd75f",
        "data_batch_2": "md5:d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "md5:54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "md5:634d18415352ddfa80567beed471001a",
        "data_batch_5": "md5:482c414d41f54cd18b22e5b47cb7c3cb",
        "test_batch": "md5:40351d587109b95175f43aff81a1287e",
    }
)


def cifar10(data_dir: str | os.PathLike | None = None) -> Dataset:
    """CIFAR-10: the original bytes where they are found, else images that were coded again.

    In order of preference: ``cifar-10-binary.tar.gz`` or its batches, ``cifar-10-python.tar.gz`` or its batches,
    an archive ``cifar10.tar`` (``.gz``, ``.xz``) of image files, a folder of them (``train/<class>/<name>.jpg``).

    Args:
        data_dir: the folder these are in, or one that holds it as ``cifar10``, ``cifar-10-batches-bin``,
            ``cifar-10-batches-py``, ``cifar10-jpeg`` or ``cifar10-png``; None: ``JAXOPT_PDE_DATA``.

    Returns:
        50,000 training and 10,000 test images [n, 32, 32, 3] uint8, labels [n] int32; no validation part.
        ``note`` is ``"CIFAR-10"`` for the original bytes, else ``"CIFAR-10 (JPEG)"`` or ``"CIFAR-10 (PNG)"``; such
        images come sorted by class.

    Raises:
        FileNotFoundError: nothing was found; says where to get it and every place looked at.
        CorruptDataError: a file whose checksum or content is wrong, or an archive that holds what it should not.
        ModuleNotFoundError: image files were found and Pillow is missing.
    """

    def original(paths: list[Path], pickled: bool) -> Dataset:
        return _dataset("cifar10", "CIFAR-10", read_batches(paths, _CIFAR10, pickled=pickled))

    def images(path: Path) -> Dataset:
        coding, arrays = read_images(path, _CIFAR10)
        return _dataset("cifar10", f"CIFAR-10 ({coding})", arrays)

    batches = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")
    folders = tuple((f"{split}/{name}",) for split in ("train", "test") for name in CIFAR10_CLASSES)
    archives = ("cifar10.tar", "cifar10.tar.gz", "cifar10.tgz", "cifar10.tar.xz")
    sources = (
        _Source((("cifar-10-binary.tar.gz",),), lambda paths: original(paths, pickled=False)),
        _Source(tuple((f"{name}.bin",) for name in batches), lambda paths: original(paths, pickled=False)),
        _Source((("cifar-10-python.tar.gz",),), lambda paths: original(paths, pickled=True)),
        _Source(tuple((name,) for name in batches), lambda paths: original(paths, pickled=True)),
        _Source((archives,), lambda paths: images(paths[0])),
        _Source(folders, lambda paths: images(paths[0].parent.parent)),
    )
    bare = ("cifar-10-batches-bin", "cifar-10-batches-py", "cifar10-jpeg", "cifar10-png")
    subfolders = ("cifar10", *bare, *(f"cifar10/{name}" for name in bare))
    page = '"The CIFAR-10 dataset", https://www.cs.toronto.edu/~kriz/cifar.html'
    return _search("CIFAR-10", page, sources, subfolders, data_dir)
