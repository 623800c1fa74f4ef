import gzip
import lzma
import os
import re
import tarfile

import numpy as np
import pytest

from experiments._archives import CorruptDataError, Limits, read_file, walk_folder, walk_tar
from tests.experiments.tiny_data import write_tar

SMALL = Limits(member=4096, total=1 << 20, count=100)


def listed(path, read=r"[a-z]+\.txt", skip=r"README", limits=SMALL):
    return list(walk_tar(path, read, skip, limits))


@pytest.mark.parametrize("pack", [bytes, gzip.compress, lzma.compress])
def test_a_file_is_read_by_its_content_whatever_its_name(tmp_path, pack):
    path = tmp_path / "file.gz"
    path.write_bytes(pack(b"content"))
    assert read_file(path, limit=7) == b"content"
    with pytest.raises(CorruptDataError, match=r"file.gz: holds more than the 6 bytes"):
        read_file(path, limit=6)


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress])
def test_damaged_compressed_files_are_refused_by_name(tmp_path, pack):
    packed = pack(np.random.default_rng(0).bytes(400))
    path = tmp_path / "file.gz"
    damaged = [
        packed[:-1],
        packed[: len(packed) // 2],
        packed + b"garbage",
        packed[:200] + b"\0\0" + packed[202:],
    ]
    for data in damaged:
        path.write_bytes(data)
        with pytest.raises(
            CorruptDataError, match=r"file\.gz: (cannot be read to its end|truncated, or garbage)"
        ):
            read_file(path, limit=1000)


@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "tar.xz"])
def test_tar_members_are_streamed_in_order_and_nothing_is_unpacked(tmp_path, monkeypatch, suffix):
    folder = tarfile.TarInfo("folder")
    folder.type = tarfile.DIRTYPE
    members = [("b.txt", b"two"), (folder, b""), ("./a.txt", b"one"), ("README", b"skipped"), ("c.txt", b"")]
    path = write_tar(tmp_path / f"x.{suffix}", members)
    monkeypatch.chdir(tmp_path)
    assert listed(path) == [("b.txt", b"two"), ("a.txt", b"one"), ("c.txt", b"")]
    assert os.listdir(tmp_path) == [path.name]


def special(kind, name="a.txt", **headers):
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.pax_headers = kind, "/etc/passwd", headers
    return info


@pytest.mark.parametrize(
    ("member", "problem"),
    [
        ("../evil.txt", "points outside"),
        ("a/../../evil.txt", "points outside"),
        ("/evil.txt", "points outside"),
        (".//evil.txt", "points outside"),
        ("..\\evil.txt", "points outside"),
        (special(tarfile.DIRTYPE, "../evil"), "points outside"),
        ("a.txt\n", "is not expected"),
        ("A.txt", "is not expected"),
        ("sub/a.txt", "is not expected"),
        (special(tarfile.SYMTYPE), "special file"),
        (special(tarfile.LNKTYPE), "special file"),
        (special(tarfile.CHRTYPE), "special file"),
        (special(tarfile.BLKTYPE), "special file"),
        (special(tarfile.FIFOTYPE), "special file"),
        (special(tarfile.GNUTYPE_SPARSE), "special file"),
        (special(tarfile.REGTYPE, **{"GNU.sparse.map": "0,0", "GNU.sparse.size": "4000"}), "special file"),
        (special(tarfile.SYMTYPE, "README"), "special file"),
    ],
)
def test_tar_members_that_are_not_plain_expected_files_are_refused(tmp_path, member, problem):
    path = write_tar(tmp_path / "x.tar", [("a.txt", b"fine"), (member, b"")])
    with pytest.raises(CorruptDataError, match=rf"x\.tar: member .* {problem}"):
        listed(path)
    assert os.listdir(tmp_path) == ["x.tar"]


def test_tar_bounds_hold_for_members_skipped_members_their_number_and_the_whole(tmp_path):
    path = write_tar(tmp_path / "x.tar.gz", [("a.txt", bytes(5000))])
    with pytest.raises(CorruptDataError, match=r"member 'a\.txt' has 5,000 bytes, more than 4,096"):
        listed(path)
    path = write_tar(tmp_path / "x.tar.gz", [("README", bytes(5000))])
    with pytest.raises(CorruptDataError, match=r"member 'README' has 5,000 bytes"):
        listed(path)
    path = write_tar(tmp_path / "x.tar.gz", [("a.txt", b"")] * 4)
    assert len(listed(path, limits=SMALL._replace(count=4))) == 4
    with pytest.raises(CorruptDataError, match="more than 3 members"):
        listed(path, limits=SMALL._replace(count=3))
    # A header of 3 MB, which tarfile would take into memory before any member is seen.
    long = tarfile.TarInfo("a" * 3_000_000)
    path = write_tar(tmp_path / "x.tar.gz", [(long, b"")])
    assert path.stat().st_size < 50_000
    with pytest.raises(CorruptDataError, match="unpacks to more than 1,048,576 bytes"):
        listed(path)


@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "tar.xz"])
def test_a_truncated_tar_is_refused_or_whole(tmp_path, suffix):
    path = write_tar(
        tmp_path / f"x.{suffix}", [("a.txt", b"1" * 700), ("b.txt", b"2" * 100), ("c.txt", b"3" * 500)]
    )
    whole, content = path.read_bytes(), listed(path)
    needed = 512 * 7 if suffix == "tar" else len(whole)
    cuts = [*range(0, needed, 512), *range(1, needed, 97), needed - 1]
    for cut in cuts:
        path.write_bytes(whole[:cut])
        with pytest.raises(CorruptDataError, match=re.escape(str(path))):
            listed(path)
    if suffix == "tar":  # All members are there; the two blocks of zeros are not.
        path.write_bytes(whole[:needed])
        with pytest.raises(CorruptDataError, match="truncated"):
            listed(path)
    path.write_bytes(whole)
    assert listed(path) == content


def test_a_flipped_byte_of_a_compressed_tar_is_refused_or_harmless(tmp_path):
    path = write_tar(tmp_path / "x.tar.gz", [("a.txt", b"1" * 700), ("b.txt", bytes(range(256)))])
    whole, content = bytearray(path.read_bytes()), listed(path)
    refused = 0
    for position in range(len(whole)):
        whole[position] ^= 0x55
        path.write_bytes(whole)
        whole[position] ^= 0x55
        try:
            assert listed(path) == content  # e.g. the time stamp in the gzip header
        except CorruptDataError:
            refused += 1
    assert refused > len(whole) - 20


def test_a_flipped_header_byte_of_a_plain_tar_is_refused(tmp_path):
    path = write_tar(tmp_path / "x.tar", [("a.txt", b"1" * 512), ("b.txt", b"2" * 512)])
    whole = bytearray(path.read_bytes())
    for start in (0, 1024):
        for position in range(start, start + 512, 3):
            whole[position] ^= 0x55
            path.write_bytes(whole)
            whole[position] ^= 0x55
            with pytest.raises(CorruptDataError, match=r"x\.tar"):
                listed(path)


def test_garbage_after_the_end_of_a_tar_is_refused(tmp_path):
    path = write_tar(tmp_path / "x.tar", [("a.txt", b"1")])
    with path.open("ab") as stream:
        stream.write(b"\0" * 100_000 + b"garbage" + b"\0" * 2048)
    with pytest.raises(CorruptDataError, match="garbage after the end"):
        listed(path)


def test_folders_are_walked_without_following_links_or_leaving_the_named_tops(tmp_path):
    root = tmp_path / "root"
    (root / "a" / "b").mkdir(parents=True)
    (root / "a" / "b" / "x.txt").write_bytes(b"1")
    (root / "elsewhere").write_bytes(b"not looked at")

    def walk(limits=SMALL):
        return list(walk_folder(root, ("a",), r"a/b/[a-z]\.txt", limits))

    assert walk() == [("a/b/x.txt", b"1")]

    (root / "a" / "b" / "y.txt").write_bytes(b"22")
    for limits in (SMALL._replace(member=1), SMALL._replace(count=1), SMALL._replace(total=2)):
        with pytest.raises(CorruptDataError, match="too large or one too many"):
            walk(limits)

    (root / "a" / "stray.txt").write_bytes(b"")
    with pytest.raises(CorruptDataError, match=r"stray\.txt: is not expected"):
        walk()
    (root / "a" / "stray.txt").unlink()

    for target, link in (
        (root / "elsewhere", "a/b/z.txt"),
        (tmp_path, "a/c"),
        (root / "nowhere", "a/b/z.txt"),
    ):
        (root / link).symlink_to(target)
        with pytest.raises(CorruptDataError, match=f"{link}: is a link"):
            walk()
        (root / link).unlink()
    os.mkfifo(root / "a" / "b" / "z.txt")
    with pytest.raises(CorruptDataError, match=r"z\.txt: is a link, a device or another special file"):
        walk()
