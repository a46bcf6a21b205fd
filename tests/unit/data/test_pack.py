import json
import os

import fsspec
import numpy as np
import pytest
from PIL import Image

from hai.config.schema import DataConfig, SourceConfig
from hai.data import manifest as manifests
from hai.data import sources
from hai.data.index import pack_data
from hai.data.manifest import build_manifest
from hai.data.pack import PACK_FILE, build_pack, copy_pack, load_pack
from hai.data.remote import partial_file
from hai.data.sources import load_source
from hai.errors import DataError, StorageError
from hai.types import SPLITS


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HAI_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def faces(tmp_path):
    for k in range(40):
        parts = ("real",) if k % 2 == 0 else ("fake", "Deepfakes", f"v{k // 8}")
        folder = (tmp_path / "faces").joinpath(*parts)
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(k).integers(0, 256, (10 + k, 9, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{k}.png")
    return config(tmp_path / "faces")


def config(path, name="faces"):
    return DataConfig(sources=[SourceConfig(name=name, path=str(path))])


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_pack_holds_the_same_examples(tmp_path, faces):
    manifest = pack_data(faces, tmp_path / "p", 3)
    packed = build_manifest(config(tmp_path / "p"), 99)
    assert packed.identity == manifest.identity
    for name in ("path", "source", "group"):
        assert getattr(packed, name) == getattr(manifest, name), name
    for name in ("length", "sha256", "label", "split", "width", "height"):
        assert np.array_equal(getattr(packed, name), getattr(manifest, name)), name
    assert (packed.offset > 0).all()
    assert [packed.read(i) for i in range(40)] == [manifest.read(i) for i in range(40)]
    assert {os.path.basename(file).split("-")[0] for file in packed.file} == set(SPLITS)


def test_the_config_names_the_source(tmp_path, faces):
    pack_data(faces, tmp_path / "p", 3)
    assert set(build_manifest(config(tmp_path / "p", "other"), 0).source) == {"other", "other/Deepfakes"}


def test_a_pack_of_several_sources_keeps_their_names(tmp_path, faces):
    (tmp_path / "real").mkdir()
    Image.new("RGB", (5, 5)).save(tmp_path / "real" / "x.png")
    (tmp_path / "t.csv").write_text("path,label\nreal/x.png,real\n", encoding="utf-8")
    both = DataConfig(sources=[*faces.sources, SourceConfig(name="more", path=str(tmp_path / "t.csv"))])
    manifest = pack_data(both, tmp_path / "p", 3)
    packed = build_manifest(config(tmp_path / "p", "all"), 0)
    assert packed.identity == manifest.identity
    assert set(packed.source) == {"all/faces", "all/faces/Deepfakes", "all/more"}


def test_equal_manifests_give_equal_bytes_in_parts_of_the_asked_size(tmp_path, faces):
    manifest = build_manifest(faces, 3)
    first = build_pack(manifest, tmp_path / "a", part_bytes=4000)
    second = build_pack(build_manifest(faces, 3), tmp_path / "b", part_bytes=4000)
    assert contents(first) == contents(second)
    parts = [len(data) for name, data in contents(first).items() if name.endswith(".pack")]
    assert len(parts) > 5
    assert max(parts) < 4000 + int(manifest.length.max()) + 8
    assert build_manifest(config(first), 0).identity == manifest.identity


def test_a_pack_can_be_built_over_an_older_one(tmp_path, faces):
    pack_data(faces, tmp_path / "p", 3)
    (tmp_path / "p" / "my notes.txt").write_text("kept", encoding="utf-8")
    (tmp_path / "p" / f"train-00009-{'0' * 16}.pack.part").write_bytes(b"left by a crash")
    manifest = pack_data(faces, tmp_path / "p", 4)
    assert build_manifest(config(tmp_path / "p"), 0).identity == manifest.identity
    marker = json.loads((tmp_path / "p" / PACK_FILE).read_text(encoding="utf-8"))
    named = {entry["name"] for entry in (marker["index"], *marker["parts"])}
    assert set(contents(tmp_path / "p")) == {PACK_FILE, "my notes.txt", *named}


def test_a_changed_image_is_not_packed(tmp_path, faces):
    manifest = build_manifest(faces, 3)
    with open(manifest.file[7], "r+b") as file:
        file.seek(60)
        file.write(b"\xaa\xbb\xcc")
    with pytest.raises(DataError) as caught:
        build_pack(manifest, tmp_path / "p")
    assert manifest.path[7] in str(caught.value)
    assert PACK_FILE not in contents(tmp_path / "p")


def test_damage_is_refused_by_name(tmp_path, faces):
    pack_data(faces, tmp_path / "p", 3)
    for name, data in contents(tmp_path / "p").items():
        path, middle = tmp_path / "p" / name, len(data) // 2
        for damaged in (data[:-2], data[:middle] + bytes([data[middle] ^ 4]) + data[middle + 1 :], None):
            path.unlink() if damaged is None else path.write_bytes(damaged)
            with pytest.raises(DataError) as caught:
                load_pack(tmp_path / "p", "s")
            assert name in str(caught.value) or name == PACK_FILE
        path.write_bytes(data)
    assert len(load_pack(tmp_path / "p", "s").path) == 40


def test_markers_cannot_name_files_elsewhere(tmp_path, faces):
    pack_data(faces, tmp_path / "p", 3)
    marker = json.loads((tmp_path / "p" / PACK_FILE).read_text(encoding="utf-8"))
    marker["parts"][0]["name"] = "../faces.pack"
    (tmp_path / "p" / PACK_FILE).write_text(json.dumps(marker), encoding="utf-8")
    with pytest.raises(DataError, match=r"pack.json: damaged \(ValueError: entry '\.\./faces\.pack'\)"):
        load_pack(tmp_path / "p", "s")
    with pytest.raises(DataError, match=r"pack\.json: damaged"):
        copy_pack(tmp_path / "p", tmp_path / "q")


def test_copies_are_verified_resumed_and_mended(tmp_path, faces):
    pack_data(faces, tmp_path / "p", 3)
    seen = []
    copy = copy_pack(tmp_path / "p", tmp_path / "q", progress=lambda done, total: seen.append((done, total)))
    assert contents(copy) == contents(tmp_path / "p")
    assert seen[-1][0] == seen[-1][1] == sum(len(data) for name, data in contents(copy).items() if name != PACK_FILE)
    part = max(copy.glob("train-*.pack"))
    part.write_bytes(b"\0" * part.stat().st_size)
    copy_pack(tmp_path / "p", copy)
    assert contents(copy) == contents(tmp_path / "p")
    source = max((tmp_path / "p").glob("train-*.pack"))
    good = source.read_bytes()
    source.write_bytes(good[:100] + b"XYZ" + good[103:])
    with pytest.raises(DataError) as caught:
        copy_pack(tmp_path / "p", tmp_path / "r")
    assert source.name in str(caught.value)
    assert PACK_FILE not in contents(tmp_path / "r")
    source.write_bytes(good)
    assert contents(copy_pack(tmp_path / "p", tmp_path / "r")) == contents(tmp_path / "p")


def test_a_wrong_beginning_of_a_copy_is_thrown_away(tmp_path, faces):
    pack_data(faces, tmp_path / "p", 3)
    copy_pack(tmp_path / "p", tmp_path / "q")
    part = max((tmp_path / "q").glob("train-*.pack"))
    good = part.read_bytes()
    part.unlink()
    marker = json.loads((tmp_path / "q" / PACK_FILE).read_text(encoding="utf-8"))
    (entry,) = [entry for entry in marker["parts"] if entry["name"] == part.name]
    partial_file(part, entry["bytes"], sha256=entry["sha256"]).write_bytes(b"wrong" * 10)
    copy_pack(tmp_path / "p", tmp_path / "q")
    assert part.read_bytes() == good
    assert not list((tmp_path / "q").glob("*.part"))


def test_what_is_left_of_another_versions_copy_goes(tmp_path, faces):
    pack_data(faces, tmp_path / "p", 3)
    part = next((tmp_path / "p").glob("train-*.pack")).name
    (tmp_path / "q").mkdir()
    partial_file(tmp_path / "q" / part, 5, sha256="0" * 64).write_bytes(b"old")
    assert contents(copy_pack(tmp_path / "p", tmp_path / "q")) == contents(tmp_path / "p")


def test_packs_at_urls(tmp_path, faces):
    manifest = pack_data(faces, tmp_path / "p", 3)
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    for name, data in contents(tmp_path / "p").items():
        fs.pipe_file(f"/bucket/p/{name}", data)
    packed = build_manifest(config("memory://bucket/p"), 0)
    assert packed.identity == manifest.identity
    assert packed.read(3) == manifest.read(3)
    with pytest.raises(DataError, match=r"has no pack\.json"):
        copy_pack("memory://bucket/none", tmp_path / "q")
    fs.store.clear()


def test_a_part_stays_open_while_it_is_read(tmp_path, faces, monkeypatch):
    """Two threads that open a part at once each get their own, of which the cache keeps one."""
    pack_data(faces, tmp_path / "p", 3)
    packed = build_manifest(config(tmp_path / "p"), 99)
    expected = packed.read(0)
    monkeypatch.setattr(manifests, "_part", manifests._Part)
    assert packed.read(0) == expected


def test_a_pack_on_a_network_drive_is_copied_once(tmp_path, faces, cache, monkeypatch, caplog):
    drive = tmp_path / "drive"
    pack_data(faces, drive / "p", 3)
    monkeypatch.setattr(sources, "is_mount", lambda path: path.is_relative_to(drive))
    source = SourceConfig(name="s", path=str(drive / "p"))
    rows = load_source(source, [])
    assert all(file.startswith(str(cache / "packs")) for file in rows.file)
    for part in drive.rglob("*.pack"):
        part.unlink()
    assert load_source(source, []).file == rows.file
    monkeypatch.setenv("HAI_CACHE", str(tmp_path / "none"))
    monkeypatch.setattr(sources, "copy_pack", _no_room)
    with pytest.raises(DataError, match="missing; copy or build the pack again"):
        load_source(source, [])
    assert "no room; the pack is read from the network drive" in caplog.text


def _no_room(*args, **options):
    raise StorageError("no room")


def test_many_files_on_a_network_drive_are_remarked(tmp_path, faces, monkeypatch):
    assert load_source(faces.sources[0], []).warnings == []
    monkeypatch.setattr(sources, "_MANY", 10)
    monkeypatch.setattr(sources, "is_mount", lambda path: True)
    (line,) = load_source(faces.sources[0], []).warnings
    assert line.startswith("source faces: 40 files lie on a network drive")
