"""The IDX format, in which MNIST is published: a magic number, the sizes, then the elements, all big-endian.

Format: Y. LeCun, C. Cortes, C. J. C. Burges, "The MNIST database of handwritten digits",
http://yann.lecun.com/exdb/mnist/, section "FILE FORMATS FOR THE MNIST DATABASE".
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experiments._archives import read_file, refuse, verify

__all__ = ["parse_idx", "read_mnist"]

# Third byte of the magic number -> element type.
_DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
# The largest of the four files holds 60,000·28·28 bytes and a header of 16.
_LARGEST = 64 << 20


def parse_idx(data: bytes, source: object = "IDX data") -> np.ndarray:
    """Decodes one IDX file: two zero bytes, an element code, the rank, ``rank`` sizes (uint32), the elements.

    Args:
        data: the whole uncompressed file.
        source: what errors call it.

    Returns:
        A new array of the file's shape, in native byte order: uint8, int8, int16, int32, float32 or float64.

    Raises:
        CorruptDataError: wrong magic number, truncated header, too few or too many elements, or a shape that
            NumPy cannot hold.

    >>> parse_idx(bytes([0, 0, 8, 2]) + bytes([0, 0, 0, 2, 0, 0, 0, 1]) + bytes([7, 9]))
    array([[7],
           [9]], dtype=uint8)
    """
    magic = data[:4]
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in _DTYPES:
        refuse(
            source,
            f"not an IDX file: its magic number is 0x{magic.hex()}, expected 0x0000, a type and a rank",
        )
    dtype, rank = np.dtype(_DTYPES[magic[2]]), magic[3]
    start = 4 + 4 * rank
    if len(data) < start:
        refuse(source, f"truncated: {len(data)} bytes, but a header of rank {rank} alone has {start}")
    shape = tuple(int(size) for size in np.frombuffer(data, ">u4", rank, 4))
    # In Python integers: sizes from a damaged header overflow 64 bits.
    expected = start + math.prod(shape) * dtype.itemsize
    if len(data) != expected:
        problem = "truncated" if len(data) < expected else "garbage after the last element"
        refuse(
            source, f"{problem}: {len(data):,} bytes, but shape {shape} of {dtype.name} needs {expected:,}"
        )
    try:
        return np.frombuffer(data, dtype, offset=start).reshape(shape).astype(dtype.newbyteorder("="))
    except ValueError as error:
        refuse(source, f"impossible shape of rank {rank} ({error})", error)


def _read_part(images: Path, labels: Path, checksums: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Images [n, h, w, 1] uint8 and labels [n] int32 of one of the two parts."""
    arrays = []
    for path, checksum in zip((images, labels), checksums, strict=True):
        data = read_file(path, limit=_LARGEST)
        verify(data, checksum, path)
        arrays.append(parse_idx(data, path))
    pixels, classes = arrays
    if pixels.ndim != 3 or pixels.dtype != np.uint8:
        refuse(images, f"images must be uint8 of rank 3, got {pixels.dtype} of shape {pixels.shape}")
    if classes.ndim != 1 or classes.dtype != np.uint8 or (classes.size and classes.max() > 9):
        refuse(
            labels, f"labels must be uint8 in 0..9 of rank 1, got {classes.dtype} of shape {classes.shape}"
        )
    if len(pixels) != len(classes):
        refuse(labels, f"holds {len(classes):,} labels for the {len(pixels):,} images of {images.name}")
    return pixels[..., None], classes.astype(np.int32)


def read_mnist(paths: list[Path], checksums: Sequence[str]) -> tuple[np.ndarray, ...]:
    """Reads MNIST's four files, plain or compressed.

    Args:
        paths: train images, train labels, test images, test labels.
        checksums: of the four files once decompressed, in that order.

    Returns:
        ``train_images`` [n, 28, 28, 1] uint8, ``train_labels`` [n] int32 in 0..9, ``test_images``, ``test_labels``.

    Raises:
        CorruptDataError: a file that is damaged, has another checksum, or does not fit its partner.
    """
    return *_read_part(*paths[:2], checksums[:2]), *_read_part(*paths[2:], checksums[2:])
