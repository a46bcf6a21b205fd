import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hai.data.file_facts import file_facts
from hai.data.images import decode_image, decode_small


def picture(size=(64, 48), mode="RGB"):
    pixels = np.random.default_rng(3).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def saved(image, form, **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("quality", [30, 50, 75, 92, 98])
def test_the_quality_of_a_jpeg_is_read_from_its_tables(quality):
    facts = file_facts(saved(picture(), "JPEG", quality=quality))
    assert facts.format == "JPEG"
    assert abs(facts.quality - quality) < 1.5
    assert facts.tables == file_facts(saved(picture((20, 20)), "JPEG", quality=quality)).tables
    assert facts.tables != file_facts(saved(picture(), "JPEG", quality=quality - 1)).tables


@pytest.mark.parametrize(("number", "name"), [(0, "4:4:4"), (1, "4:2:2"), (2, "4:2:0")])
def test_chroma_subsampling(number, name):
    assert file_facts(saved(picture(), "JPEG", subsampling=number)).subsampling == name


def test_how_a_jpeg_is_coded():
    assert file_facts(saved(picture(), "JPEG")).coding == "standard Huffman tables"
    assert file_facts(saved(picture(), "JPEG", optimize=True)).coding == "Huffman tables of its own"
    assert "progressive" in file_facts(saved(picture(), "JPEG", progressive=True)).coding
    assert "restarts" in file_facts(saved(picture(), "JPEG", restart_marker_rows=1)).coding


def test_metadata_of_a_jpeg():
    exif = Image.Exif()
    exif[0x010F], exif[0x0131], exif[0x0112] = "Acme", "Painter 3", 6
    facts = file_facts(saved(picture(), "JPEG", exif=exif, comment=b"made by hand", icc_profile=b"\0" * 200))
    assert facts.exif == "Acme / Painter 3"
    assert facts.metadata == "JFIF ICC_PROFILE comment"
    assert facts.oddities == ["turned by EXIF"]
    assert file_facts(saved(picture(), "JPEG")).exif == "none"


@pytest.mark.parametrize(
    ("mode", "form", "colours", "odd"),
    [
        ("L", "JPEG", "gray", ["gray"]),
        ("CMYK", "JPEG", "CMYK", ["CMYK"]),
        ("RGBA", "PNG", "RGB with alpha", ["transparency"]),
        ("P", "PNG", "palette", ["palette"]),
        ("RGB", "PNG", "RGB", []),
        ("RGB", "BMP", "RGB", []),
    ],
)
def test_colours(mode, form, colours, odd):
    facts = file_facts(saved(picture(mode=mode), form))
    assert (facts.format, facts.colours, facts.oddities) == (form, colours, odd)


def test_webp_and_animations():
    assert file_facts(saved(picture(), "WEBP")).coding == "lossy"
    assert file_facts(saved(picture(), "WEBP", lossless=True)).coding == "lossless"
    for form in ("WEBP", "PNG", "GIF"):
        moving = saved(picture(), form, save_all=True, append_images=[picture().rotate(90)])
        assert "several pictures in one file" in file_facts(moving).oddities, form


@given(
    st.sampled_from(["JPEG", "PNG", "WEBP", "TIFF"]), st.integers(0, 4000), st.binary(max_size=40), st.integers(0, 4000)
)
def test_damage_ends_the_reading_and_never_raises(form, cut, noise, at):
    whole = bytearray(saved(picture((16, 16)), form, exif=Image.Exif()))
    whole[at % len(whole) : at % len(whole) + len(noise)] = noise
    file_facts(bytes(whole[: cut % len(whole)]))
    file_facts(bytes(whole))


def test_odd_files_have_facts(real_data):
    files = sorted((real_data / "odd_inputs" / "files").iterdir())
    facts = {file.name: file_facts(file.read_bytes()) for file in files}
    assert facts["hopper_orientation_6.jpg"].oddities == ["turned by EXIF"]
    assert facts["README.rst"].format == "unknown"
    assert sum(found.format != "unknown" for found in facts.values()) >= 50


@pytest.mark.parametrize("size", [(300, 300), (640, 200), (40, 50), (64, 64)])
def test_a_small_picture_shows_what_the_large_one_does(size):
    smooth = Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 5, 3), dtype=np.uint8)).resize(size)
    data = saved(smooth, "JPEG", quality=95)
    small, large = decode_small(data, 32), decode_image(data)
    assert min(small.shape[:2]) >= min(32, *size)
    assert small.shape[0] <= large.shape[0]
    means = [
        np.asarray(Image.fromarray(a).resize((4, 4), Image.Resampling.BILINEAR), dtype=int) for a in (small, large)
    ]
    assert np.abs(means[0] - means[1]).max() < 16


def test_a_small_picture_is_upright():
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode_small(saved(picture((200, 100)), "JPEG", exif=exif), 32).shape == (200, 100, 3)


def test_the_facts_of_a_file_with_very_many_blocks_stay_short():
    png, jpeg, webp = (saved(picture(), form) for form in ("PNG", "JPEG", "WEBP"))
    empty = struct.pack(">I4sI", 0, b"tEXt", zlib.crc32(b"tEXt"))
    files = [
        png[:33] + 50_000 * empty + png[33:],
        jpeg[:2] + 50_000 * b"\xff\xfe\0\2" + jpeg[2:],
        jpeg[:2] + 50_000 * b"\xff\xdd\0\4\0\1" + jpeg[2:],
        webp[:12] + 50_000 * b"JUNK\0\0\0\0" + webp[12:],
    ]
    for data in files:
        facts = file_facts(data)
        texts = [facts.coding, facts.metadata, facts.exif, facts.tables, facts.subsampling, facts.colours]
        assert max(map(len, texts)) < 400
    assert file_facts(files[0]).metadata == 32 * "tEXt " + "and more"
    assert file_facts(files[0]).coding == file_facts(png).coding
