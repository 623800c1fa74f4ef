"""Writes small files in the formats the data sets come in."""

import gzip
import hashlib
import io
import struct
import tarfile

import numpy as np

CODES = {"uint8": 8, "int8": 9, "int16": 11, "int32": 12, "float32": 13, "float64": 14}


def idx(array):
    header = bytes([0, 0, CODES[array.dtype.name], array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


def md5(data):
    return f"md5:{hashlib.md5(data).hexdigest()}"


def write_tar(path, members):
    """``members``: (name or TarInfo, bytes)."""
    mode = {".gz": "w:gz", ".xz": "w:xz"}.get(path.suffix, "w")
    with tarfile.open(path, mode) as tar:
        for member, data in members:
            info = tarfile.TarInfo(member) if isinstance(member, str) else member
            info.size = len(data) if info.isreg() else info.size
            tar.addfile(info, io.BytesIO(data) if info.isreg() else None)
    return path


def lay(folder, files, ending=""):
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / (name + ending)).write_bytes(gzip.compress(data) if ending else data)
    return folder


def text(data):
    """A Python 2 ``str`` in pickle protocol 2, which is how the published batches write strings and bytes."""
    return b"U" + bytes([len(data)]) + data if len(data) < 256 else b"T" + struct.pack("<i", len(data)) + data


def python2_batch(planes, labels, dtype=b"u1", shape=None):
    """A batch as cPickle of Python 2 wrote it: opcode for opcode the layout of the published files."""
    rows, columns = shape or planes.shape
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85" + text(b"b") + b"\x87R(K\1M"
        + struct.pack("<H", rows) + b"M" + struct.pack("<H", columns) + b"\x86cnumpy\ndtype\n" + text(dtype)
        + b"K\0K\1\x87R(K\3" + text(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb\x89"
        + text(planes.tobytes()) + b"tb"
    )  # fmt: skip
    names = b"](" + b"".join(text(b"a_%d.png" % i) for i in range(len(labels))) + b"e"
    numbers = b"](" + b"".join(b"K" + bytes([k]) for k in labels) + b"e"
    entries = text(b"batch_label") + text(b"training batch 1 of 5") + text(b"labels") + numbers
    return b"\x80\2}(" + entries + text(b"data") + array + text(b"filenames") + names + b"u."


def batch(seed):
    random = np.random.default_rng(seed)
    return random.integers(0, 256, (10, 3072), np.uint8), random.permutation(10).astype(np.uint8)


def binary_batch(planes, labels):
    return np.concatenate([labels[:, None], planes], axis=1).tobytes()
