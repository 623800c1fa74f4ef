"""Bytes from files somebody else wrote: checksummed, bounded in size, and never unpacked to disk.

Whatever is wrong with a file is told as one `CorruptDataError` that names the file. Archives are read member by
member in one forward pass; a member's name is only ever compared with a pattern, never used as a path.
"""

import gzip
import hashlib
import io
import lzma
import os
import re
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple, NoReturn

__all__ = [
    "CorruptDataError",
    "Limits",
    "read_file",
    "refuse",
    "verify",
    "walk_folder",
    "walk_tar",
]

_GZIP, _XZ, _XZ_END = b"\x1f\x8b", b"\xfd7zXZ\x00", b"YZ"
_UNREADABLE = (EOFError, OSError, OverflowError, lzma.LZMAError, tarfile.TarError, zlib.error)


class CorruptDataError(ValueError):
    """A data file is damaged, incomplete, or not what its name says; the message names it and what is wrong."""


class Limits(NamedTuple):
    """The most a reader takes in before it refuses: decompression bombs end here.

    Attributes:
        member: bytes in one file.
        total: bytes of an archive after decompression, headers included.
        count: files and folders.
    """

    member: int
    total: int
    count: int


def refuse(source: object, problem: str, cause: BaseException | None = None) -> NoReturn:
    """Raises `CorruptDataError` for ``source``."""
    msg = f"{source}: {problem}."
    raise CorruptDataError(msg) from cause


def verify(data: bytes | BinaryIO, checksum: str, source: object) -> None:
    """Checks bytes against a published checksum.

    Args:
        data: the bytes, or a binary file to read to its end.
        checksum: ``"md5:<hex>"`` or ``"sha1:<hex>"``.
        source: what the error calls them.

    Raises:
        CorruptDataError: the checksums differ; both are told.
    """
    algorithm, expected = checksum.split(":")
    stream = io.BytesIO(data) if isinstance(data, bytes) else data
    # usedforsecurity=False: MD5 and SHA-1 are what was published. They detect accidents; what guards against malice
    # are the readers, which trust no file even when its checksum is right.
    found = hashlib.file_digest(stream, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()
    if found != expected:
        refuse(source, f"{algorithm} checksum is {found}, expected {expected}: damaged, or another file")


def _open(path: Path) -> BinaryIO:
    """Opens a file decompressed. Told by its first bytes: browsers unpack some ``.gz`` and keep the name."""
    with path.open("rb") as raw:
        start = raw.read(len(_XZ))
        if start == _XZ:
            raw.seek(-len(_XZ_END), os.SEEK_END)
            if raw.read() != _XZ_END:  # lzma passes over what follows the end in silence.
                refuse(path, "truncated, or garbage after the end of the xz data")
    if start.startswith(_GZIP):
        return gzip.open(path, "rb")
    return lzma.open(path, "rb") if start == _XZ else path.open("rb")


def read_file(path: Path, *, limit: int) -> bytes:
    """The content of a plain, gzip or xz file, decompressed to its end (so that its own CRC is checked).

    Args:
        path: the file.
        limit: the most bytes it may hold once decompressed.

    Returns:
        The bytes.

    Raises:
        CorruptDataError: truncated, damaged, followed by garbage, or larger than ``limit``.
    """
    try:
        with _open(path) as stream:
            data = stream.read(limit + 1)
    except _UNREADABLE as error:
        refuse(path, f"cannot be read to its end ({error})", error)
    if len(data) > limit:
        refuse(path, f"holds more than the {limit:,} bytes it should")
    return data


class _Bounded:
    """A byte stream that refuses to give more than ``limit`` bytes and remembers how it ended."""

    def __init__(self, stream: BinaryIO, path: Path, limit: int):
        self._stream, self._path, self._limit, self._left = stream, path, limit, limit
        self.end = b""

    def read(self, size: int) -> bytes:
        data = self._stream.read(min(size, self._left + 1))
        self._left -= len(data)
        if self._left < 0:
            refuse(self._path, f"unpacks to more than {self._limit:,} bytes")
        self.end = (self.end + data)[-2 * tarfile.BLOCKSIZE :]
        return data


def _check_end(tar: tarfile.TarFile, stream: _Bounded, path: Path) -> None:
    # tarfile takes both a damaged header and the end of the file for the end of the archive. A real end is two
    # blocks of zeros with nothing but zeros after them.
    while rest := tar.fileobj.read(1 << 16):
        if rest.strip(b"\0"):
            refuse(path, "a damaged header, or garbage after the end of the archive")
    if stream.end != bytes(2 * tarfile.BLOCKSIZE):
        refuse(path, "truncated: the mark of the archive's end is missing")


def _member_name(member: tarfile.TarInfo, path: Path, limits: Limits) -> str:
    """The member's name, once it is known to be a plain file or folder that stays inside the archive."""
    name = member.name.removeprefix("./")
    if not (member.isdir() or member.type in (tarfile.REGTYPE, tarfile.AREGTYPE)) or member.issparse():
        refuse(path, f"member {member.name!r} is a link, a device or another special file")
    if name.startswith("/") or "\\" in name or ".." in name.split("/"):
        refuse(path, f"member {member.name!r} points outside the archive")
    if not 0 <= member.size <= limits.member:
        refuse(path, f"member {member.name!r} has {member.size:,} bytes, more than {limits.member:,}")
    return name


def walk_tar(path: Path, read: str, skip: str, limits: Limits) -> Iterator[tuple[str, bytes]]:
    """Streams the files of a tar archive (plain, gzip or xz), writing nothing to disk.

    Args:
        path: the archive.
        read: regular expression; files whose whole name matches are yielded.
        skip: regular expression; files whose whole name matches are passed over. Any other name is refused.
        limits: bounds on what is taken in.

    Yields:
        ``(name, content)`` in the archive's order; a leading ``./`` is dropped from the name.

    Raises:
        CorruptDataError: anything but plain files and folders, a name that is absolute, climbs with ``..`` or is
            not expected, a bound exceeded, a damaged or truncated archive, garbage after its end.
    """
    try:
        with _open(path) as raw:
            stream = _Bounded(raw, path, limits.total)
            with tarfile.open(fileobj=stream, mode="r|") as tar:
                count = 0
                while (member := tar.next()) is not None:
                    name = _member_name(member, path, limits)
                    count += 1
                    if count > limits.count:
                        refuse(path, f"holds more than {limits.count:,} members")
                    if member.isdir() or re.fullmatch(skip, name):
                        continue
                    if not re.fullmatch(read, name):
                        refuse(path, f"member {member.name!r} is not expected here")
                    yield name, tar.extractfile(member).read()
                _check_end(tar, stream, path)
    except CorruptDataError:
        raise
    except (*_UNREADABLE, ValueError) as error:  # ValueError: tarfile on numbers that are none.
        refuse(path, f"not a whole tar archive ({error})", error)


def walk_folder(path: Path, tops: tuple[str, ...], read: str, limits: Limits) -> Iterator[tuple[str, bytes]]:
    """`walk_tar` for a folder tree: reads plain files below ``path/top`` for each top, follows no link.

    Args:
        path: the folder.
        tops: its subfolders to walk; what else lies in ``path`` is not looked at.
        read: regular expression for names relative to ``path``, with ``/``; any other file is refused.
        limits: bounds on what is taken in.

    Yields:
        ``(name, content)``, folder by folder.

    Raises:
        CorruptDataError: a link, a special file, an unexpected name, a bound exceeded.
    """
    count = total = 0
    for top in tops:
        for folder, subfolders, files in os.walk(path / top):
            for entry in (Path(folder, name) for name in ("", *subfolders, *files)):
                if entry.is_symlink() or not (entry.is_dir() or entry.is_file()):
                    refuse(entry, "is a link, a device or another special file")
            for entry in (Path(folder, name) for name in files):
                name = entry.relative_to(path).as_posix()
                if not re.fullmatch(read, name):
                    refuse(entry, "is not expected here")
                with entry.open("rb") as stream:
                    data = stream.read(limits.member + 1)
                count, total = count + 1, total + len(data)
                if len(data) > limits.member or count > limits.count or total > limits.total:
                    refuse(entry, f"is too large or one too many: the bounds are {limits}")
                yield name, data
