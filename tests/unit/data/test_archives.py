import gzip
import io
import os
import shutil
import stat
import subprocess
import tarfile
import unicodedata
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hai.data.archives import DamagedError, clean_name, is_archive, unpack
from hai.errors import DataError, StorageError


def zipped(path, members, **options):
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return path


def tarred(path, members, mode="w"):
    with tarfile.open(path, mode) as archive:
        for member, data in members:
            info = tarfile.TarInfo(member) if isinstance(member, str) else member
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def leftovers(folder):
    return [path.name for path in folder.iterdir() if ".part" in path.name]


FILES = [("real/a.jpg", b"aaa"), ("fake/한글 b.jpg", b"b" * 3000), ("labels.csv", b"")]


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz", "a.tgz", "a.tar.xz", "a.TAR.BZ2"])
def test_everything_is_unpacked(tmp_path, name):
    assert is_archive(name)
    seen = []
    if name.endswith(".zip"):
        zipped(tmp_path / name, FILES)
    else:
        mode = {"tar": "w", "gz": "w:gz", "tgz": "w:gz", "xz": "w:xz", "bz2": "w:bz2"}[name.lower().split(".")[-1]]
        tarred(tmp_path / name, FILES, mode)
    to = unpack(tmp_path / name, tmp_path / "out", progress=lambda done, total: seen.append((done, total)))
    assert tree(to) == dict(FILES)
    assert seen[-1] == (3003, 3003)
    assert unpack(tmp_path / "gone.zip", to) == to


def test_every_bad_member_is_listed_and_nothing_is_written(tmp_path):
    link = zipfile.ZipInfo("link.jpg")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    bad = [("/abs.jpg", b""), ("../up.jpg", b""), ("a/../../up.jpg", b""), ("C:\\win.jpg", b""), ("..\\up.jpg", b"")]
    bad += [(link, b"/etc/passwd"), ("x" * 300, b""), ("tab\t.jpg", b""), ("ok.jpg/inner", b"")]
    path = zipped(tmp_path / "a.zip", [("ok.jpg", b"1"), *bad])
    with pytest.raises(DataError) as caught:
        unpack(path, tmp_path / "inside" / "out")
    assert len(str(caught.value).split("\n")) == len(bad)
    for words in ("absolute", "'..'", "link", "too long", "unprintable", "a file and a folder"):
        assert words in str(caught.value)
    assert sorted(os.listdir(tmp_path)) == ["a.zip"]


def test_a_method_that_is_not_supported_is_no_damage(tmp_path):
    path = zipped(tmp_path / "a.zip", [("a.jpg", b"1"), ("b.jpg", b"2")])
    data = bytearray(path.read_bytes())
    data[data.rindex(b"PK\x01\x02") + 10] = 9  # Deflate64, as Windows packs large files
    path.write_bytes(data)
    with pytest.raises(
        DataError, match=r"'b\.jpg' is compressed by method 9, which is not supported, repack it"
    ) as caught:
        unpack(path, tmp_path / "out")
    assert not isinstance(caught.value, DamagedError)


@pytest.mark.parametrize("space", [" ", "\u00a0", "\u202f", "\u3000"])
def test_names_may_hold_the_spaces_of_all_scripts(tmp_path, space):
    """macOS writes U+202F before the PM of a screenshot's name."""
    name = f"Screenshot 9.41.00{space}PM.png"
    path = zipped(tmp_path / "a.zip", [(name, b"1")])
    assert tree(unpack(path, tmp_path / "out")) == {name: b"1"}


def zipped_raw(path, names):
    """Write a zip whose names are these bytes, without the flag that says UTF-8; each file holds its place."""
    stand_ins = [chr(ord("A") + place) * len(raw) for place, raw in enumerate(names)]
    zipped(path, [(stand_in, b"%d" % place) for place, stand_in in enumerate(stand_ins)])
    data = path.read_bytes()
    for stand_in, raw in zip(stand_ins, names, strict=True):
        data = data.replace(stand_in.encode(), raw)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("name", "encoding"),
    [
        ("폴더/사진 1.jpg", "utf-8"),
        (unicodedata.normalize("NFD", "사진.jpg"), "utf-8"),
        ("폴더/사진 1.jpg", "cp949"),
        ("폴더\\똠방각하.jpg", "cp949"),
        ("é/Müller más.jpg", "cp437"),
        ("Größe.jpg", "cp437"),
    ],
)
def test_names_of_zips_that_do_not_say_their_encoding(tmp_path, name, encoding):
    path = zipped_raw(tmp_path / "a.zip", [name.encode(encoding), b"plain.jpg"])
    assert tree(unpack(path, tmp_path / "out")) == {name.replace("\\", "/"): b"0", "plain.jpg": b"1"}


def test_names_are_checked_as_they_are_decoded(tmp_path):
    same = ["사진.jpg".encode(), "사진.jpg".encode("cp949")]
    path = zipped_raw(tmp_path / "a.zip", [*same, "a\u202egpj.exe".encode(), "..\\사진.jpg".encode("cp949")])
    with pytest.raises(DataError) as caught:
        unpack(path, tmp_path / "out")
    assert [line.split(" member ")[1] for line in str(caught.value).split("\n")] == [
        "'사진.jpg' occurs twice; refused",
        "'a\\u202egpj.exe' has unprintable characters in its name; refused",
        "'..\\\\사진.jpg' leaves the folder by '..'; refused",
    ]
    assert os.listdir(tmp_path) == ["a.zip"]


def test_no_letter_of_cp949_holds_a_separator():
    """Unlike those of Shift-JIS and GBK: a backslash among the bytes is one that the name has."""
    letters = bytes(range(256)).decode("latin-1") + "".join(map(chr, range(256, 0xD800)))
    raw = letters.encode("cp949", "ignore")
    assert (raw.count(b"\\"), raw.count(b"/"), len(raw) > 30_000) == (1, 1, True)


@pytest.mark.parametrize("char", ["\t", "\n", "\x7f", "\x85", "\u2028", "\u2029", "\u202e"])
def test_names_hold_nothing_that_garbles_a_terminal(char):
    assert clean_name(f"a{char}b")[1] == "has unprintable characters in its name"


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_in_tars_are_refused(tmp_path, kind):
    member = tarfile.TarInfo("bad")
    member.type, member.linkname = kind, "/etc/passwd"
    path = tarred(tmp_path / "a.tar", [("ok.jpg", b"1"), (member, b"")])
    with pytest.raises(DataError, match=r"'bad' is a (link|device)"):
        unpack(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_names_that_occur_twice_are_refused(tmp_path):
    path = tarred(tmp_path / "a.tar", [("a.jpg", b"1"), ("./a.jpg", b"2")])
    with pytest.raises(DataError, match="occurs twice"):
        unpack(path, tmp_path / "out")


def test_limits(tmp_path):
    path = zipped(tmp_path / "a.zip", [(f"{i}.jpg", os.urandom(100)) for i in range(20)])
    with pytest.raises(DataError, match="more than 19 members"):
        unpack(path, tmp_path / "out", max_files=19)
    with pytest.raises(DataError, match="more than 1999 bytes"):
        unpack(path, tmp_path / "out", max_bytes=1999)
    assert len(tree(unpack(path, tmp_path / "out", max_files=20, max_bytes=2000))) == 20
    bomb = zipped(tmp_path / "b.zip", [("a.bmp", bytes(10_000_000))], compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(DataError, match="decompression bomb"):
        unpack(bomb, tmp_path / "bomb")
    bomb = tarred(tmp_path / "b.tar.gz", [("a.bmp", bytes(10_000_000))], "w:gz")
    with pytest.raises(DataError, match="decompression bomb"):
        unpack(bomb, tmp_path / "bomb")


def test_too_small_a_disk_is_said_before_anything_is_written(tmp_path, monkeypatch):
    path = zipped(tmp_path / "a.zip", FILES)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    with pytest.raises(StorageError, match=r"needs 3 kB, 1 kB are free"):
        unpack(path, tmp_path / "out")
    assert os.listdir(tmp_path) == ["a.zip"]


@given(cut=st.integers(1, 2000), seed=st.integers(0, 255))
def test_damaged_archives_give_a_reason_and_leave_nothing(tmp_path_factory, cut, seed):
    folder = tmp_path_factory.mktemp("damaged")
    refused = []
    tars = [tarred(folder / f"a.tar.{mode}", FILES, f"w:{mode}") for mode in ("gz", "bz2", "xz")]
    for path in [zipped(folder / "a.zip", FILES), *tars]:
        data = bytearray(path.read_bytes())
        data[cut % len(data)] = seed
        path.write_bytes(data[: len(data) - cut % 7])
        try:
            unpack(path, folder / f"{path.name}.out")
        except (DataError, StorageError):
            refused.append(path.name)
    assert not any((folder / f"{name}.out").exists() for name in refused)
    assert leftovers(folder) == []


@pytest.mark.parametrize("option", ["", "z"])
@pytest.mark.parametrize("blocking", ["1", "20", "2048"])
def test_what_gnu_tar_packs_is_unpacked(tmp_path, option, blocking):
    for name, data in FILES:
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(data)
    path = tmp_path / "a.tar"
    subprocess.run(["tar", f"-c{option}f", path, "-b", blocking, "-C", tmp_path / "in", "."], check=True)
    assert tree(unpack(path, tmp_path / "out")) == dict(FILES)


def damage(path, change):
    """Change the plain bytes of a .tar or .tar.gz."""
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rb") as file:
        data = bytearray(file.read())
    data = change(data)
    with opener(path, "wb") as file:
        file.write(data)


def at(position, value):
    return lambda data: data[:position] + value + data[position + len(value) :]


# in a.tar are headers at 0, 1024, and 2560; its end is at 3072 of 10240 bytes
THREE = [("a.jpg", b"a" * 10), ("b.jpg", b"b" * 600), ("c.jpg", b"")]


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz"])
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (at(1024, b"B"), "a header is wrong"),
        (at(1024, bytes(512)), "something follows its end"),
        (lambda data: data + data, "something follows its end"),
        (lambda data: data[:1024], "breaks off"),
        (lambda data: data[:1100], "a header is wrong"),
        (lambda data: data[:2000], "unexpected end"),
        (lambda data: data[:3072], "breaks off"),
    ],
)
def test_a_tar_that_is_cut_off_or_has_a_wrong_header_is_not_unpacked_in_part(tmp_path, name, change, reason):
    path = tarred(tmp_path / name, THREE, "w:gz" if name.endswith("gz") else "w")
    damage(path, lambda data: data[:4096])
    assert tree(unpack(path, tmp_path / "whole")) == dict(THREE)
    damage(path, change)
    with pytest.raises(DamagedError, match=reason):
        unpack(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("mode", ["gz", "bz2", "xz"])
@pytest.mark.parametrize("flip", [True, False])
def test_the_checksums_of_compressed_tars_are_compared(tmp_path, mode, flip):
    path = tarred(tmp_path / f"a.tar.{mode}", [("a.bin", os.urandom(5000))], f"w:{mode}")
    data = bytearray(path.read_bytes())
    if flip:
        data[len(data) // 2] ^= 1  # bytes that do not compress are stored as they are
    path.write_bytes(data if flip else data[:-4])
    with pytest.raises(DamagedError):
        unpack(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_encrypted_and_truncated_zips(tmp_path):
    path = zipped(tmp_path / "a.zip", FILES)
    data = bytearray(path.read_bytes())
    for signature, at in ((b"PK\1\2", 8), (b"PK\3\4", 6)):
        data[data.index(signature) + at] |= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match="is encrypted"):
        unpack(path, tmp_path / "out")
    path.write_bytes(bytes(data[:-30]))
    with pytest.raises(DataError, match="cannot be unpacked"):
        unpack(path, tmp_path / "out")
    with pytest.raises(DataError, match="cannot be read"):
        unpack(tmp_path / "gone.zip", tmp_path / "out")
