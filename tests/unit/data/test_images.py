import csv
import io
import struct
import threading

import numpy as np
import pytest
import simplejpeg
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hai.data import images
from hai.data.images import decode_image, fit_image
from hai.errors import DataError


def picture(height=48, width=64):
    """A smooth picture without symmetry, [H, W, 3]."""
    y, x = np.mgrid[0:height, 0:width]
    levels = [x * 255 // max(width - 1, 1), y * 255 // max(height - 1, 1), (x + 2 * y) % 256]
    return np.stack(levels, axis=2).astype(np.uint8)


def encoded(image, kind, **options):
    stream = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(stream, kind, **options)
    return stream.getvalue()


def by_pillow(data):
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("size", [(48, 64), (1, 1), (7, 5), (33, 17)])
def test_plain_jpegs_take_the_fast_path_and_equal_pillow(size, subsampling, progressive, monkeypatch):
    data = encoded(picture(*size), "JPEG", quality=90, subsampling=subsampling, progressive=progressive)
    expected = by_pillow(data)
    monkeypatch.setattr(Image, "open", None)
    assert np.array_equal(decode_image(data), expected)


def test_gray_jpegs_take_the_fast_path_and_equal_pillow(monkeypatch):
    data = encoded(Image.fromarray(picture()).convert("L"), "JPEG")
    expected = by_pillow(data)
    monkeypatch.setattr(Image, "open", None)
    assert np.array_equal(decode_image(data), expected)


def test_restart_markers_and_rarer_subsampling_equal_pillow():
    for kind in ("440", "411", "422"):
        data = simplejpeg.encode_jpeg(picture(), colorsubsampling=kind)
        assert np.array_equal(decode_image(data), by_pillow(data))
    data = encoded(picture(), "JPEG", restart_marker_blocks=2)
    assert np.array_equal(decode_image(data), by_pillow(data))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "PNG", "TIFF"])
def test_orientation_is_applied_once(kind, orientation):
    pixels = picture()
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(pixels, kind, exif=exif, **({} if kind in ("PNG", "TIFF") else {"quality": 100}))
    turned = {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.transpose(1, 0, 2),
        6: pixels[::-1].transpose(1, 0, 2),
        7: pixels[::-1, ::-1].transpose(1, 0, 2),
        8: pixels[:, ::-1].transpose(1, 0, 2),
    }[orientation]
    assert decode_image(data).shape == turned.shape
    assert np.abs(decode_image(data).astype(int) - turned).mean() < 4


def test_orientation_in_xmp_is_applied():
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    assert decode_image(encoded(picture(), "JPEG", xmp=xmp)).shape == (64, 48, 3)


@pytest.mark.parametrize("block", [b"", b"II*\0", b"II*\0\xff\xff\xff\xff", b"XX*\0\0\0\0\x08\0\0", b"\xff" * 40])
def test_damaged_exif_is_ignored(block):
    data = encoded(picture(), "JPEG")
    segment = b"Exif\0\0" + block
    damaged = data[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + data[2:]
    assert np.array_equal(decode_image(damaged), by_pillow(data))


def test_cmyk_is_what_viewers_show():
    red = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    assert np.abs(decode_image(encoded(red, "JPEG", quality=100)).astype(int) - (255, 0, 0)).max() <= 2
    assert np.array_equal(decode_image(encoded(red, "TIFF"))[0, 0], (255, 0, 0))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_composited_over_white(mode):
    clear = Image.new(mode, (8, 8), (0,) * (len(mode) - 1) + (0,))
    clear.putpixel((3, 2), (10,) * (len(mode) - 1) + (255,))
    clear.putpixel((4, 2), (0,) * (len(mode) - 1) + (128,))
    decoded = decode_image(encoded(clear, "PNG"))
    assert decoded[0, 0].tolist() == [255, 255, 255]
    assert decoded[2, 3].tolist() == [10, 10, 10]
    assert decoded[2, 4].tolist() == [127, 127, 127]


def test_palette_with_a_transparent_colour():
    image = Image.new("P", (4, 4), 1)
    image.putpalette([200, 0, 0, 0, 100, 0])
    image.putpixel((0, 0), 0)
    for kind in ("PNG", "GIF"):
        decoded = decode_image(encoded(image, kind, transparency=1))
        assert decoded[0, 0].tolist() == [200, 0, 0]
        assert decoded[3, 3].tolist() == [255, 255, 255]


def test_16_bits_are_scaled_not_clipped():
    levels = np.array([[0, 255, 256, 32768, 65280, 65535]], dtype=np.uint16)
    expected = np.round(levels / 257).astype(np.uint8)
    for kind in ("PNG", "TIFF"):
        decoded = decode_image(encoded(levels, kind))
        assert np.array_equal(decoded, np.repeat(expected[:, :, None], 3, axis=2)), kind
    pgm = b"P5 6 1 65535\n" + levels.astype(">u2").tobytes()
    assert np.array_equal(decode_image(pgm)[..., 0], expected)


def test_floating_point_counts_from_0_to_1():
    levels = np.array([[0.0, 0.5, 1.0]], dtype=np.float32)
    assert decode_image(encoded(levels, "TIFF"))[0, :, 0].tolist() == [0, 128, 255]
    with pytest.raises(DataError, match="outside 0-1"):
        decode_image(encoded(levels * 300, "TIFF"))
    with pytest.raises(DataError, match="32-bit"):
        decode_image(encoded((levels * 1e6).astype(np.int32), "TIFF"))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_animations_give_their_first_frame(kind):
    first, second = Image.new("RGB", (8, 8), (250, 0, 0)), Image.new("RGB", (8, 8), (0, 0, 250))
    options = {"lossless": True} if kind == "WEBP" else {}
    decoded = decode_image(encoded(first, kind, save_all=True, append_images=[second], **options))
    assert decoded[4, 4].tolist() == [250, 0, 0]


def test_the_result_is_writable_contiguous_rgb():
    for kind in ("JPEG", "PNG", "BMP"):
        for mode in ("RGB", "L", "1"):
            if (kind, mode) != ("JPEG", "1"):
                decoded = decode_image(encoded(Image.fromarray(picture()).convert(mode), kind))
                assert decoded.flags.c_contiguous
                assert decoded.flags.writeable
                assert (decoded.dtype, decoded.shape) == (np.uint8, (48, 64, 3))


def test_bombs_are_refused_from_the_header():
    jpeg = bytearray(encoded(picture(), "JPEG"))
    at = jpeg.index(b"\xff\xc0")
    jpeg[at + 5 : at + 9] = struct.pack(">HH", 65000, 65000)
    png = bytearray(encoded(picture(), "PNG"))
    png[16:24] = struct.pack(">II", 60000, 60000)
    for data in (bytes(jpeg), bytes(png)):
        with pytest.raises(DataError, match=r"bomb|header is damaged"):
            decode_image(data)
    for kind in ("JPEG", "PNG"):
        with pytest.raises(DataError, match=r"64x48 pixels refused .* data.max_megapixels = 0.003"):
            decode_image(encoded(picture(), kind), max_megapixels=0.003)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"hello", "not an image"),
        (b"\x00\x00\x00\x18ftypheic0000", "HEIF"),
        (b"\xff\x0a0000000", "JPEG XL"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "not an image"),
    ],
)
def test_what_is_no_image_is_named(data, reason):
    with pytest.raises(DataError, match=reason):
        decode_image(data)


@given(kind=st.sampled_from(["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"]), seed=st.integers(0, 10_000))
def test_damaged_bytes_give_pixels_or_a_reason(kind, seed):
    data = bytearray(encoded(picture(24, 32), kind))
    rng = np.random.default_rng(seed)
    for at in rng.integers(0, len(data), 3):
        data[at] = rng.integers(256)
    data = bytes(data[: rng.integers(1, len(data) + 1)] if seed % 2 else data)
    try:
        decoded = decode_image(data)
    except DataError:
        return
    assert decoded.dtype == np.uint8
    assert decoded.ndim == 3


def test_truncated_jpegs_are_refused():
    data = encoded(picture(200, 200), "JPEG")
    with pytest.raises(DataError, match="truncated"):
        decode_image(data[: len(data) // 2])


def test_odd_inputs(real_data, capfd):
    refused = {}
    with open(real_data / "odd_inputs" / "manifest.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        data = (real_data / "odd_inputs" / row["path"]).read_bytes()
        try:
            decoded = decode_image(data)
        except DataError as error:
            refused[row["path"].removeprefix("files/")] = str(error)
        else:
            assert decoded.dtype == np.uint8
            assert decoded.shape[2] == 3
            assert row["expected"] not in ("refuse", "skip")
    assert all(refused.values())
    assert set(refused) == {
        "README.rst",
        "bmp__b__badbitcount.bmp",
        "bmp__b__shortfile.bmp",
        "broken_data_stream.png",
        "chelsea.jxl",
        "decompression_bomb.gif",
        "truncated_jpeg.jpg",
        "zero_width.gif",
    }
    printed = capfd.readouterr()
    assert printed.err == ""


def test_the_same_picture_in_odd_forms(real_data):
    folder = real_data / "odd_inputs" / "files"
    plain = decode_image((folder / "hopper.bmp").read_bytes()).astype(int)
    names = ["hopper.psd", "hopper.jpg", "avif__hopper.avif", "hopper_16bit_qtables.jpg", "hopper_orientation_8.webp"]
    for name in names + [f"hopper_orientation_{k}.jpg" for k in (2, 4, 6, 7)]:
        assert np.abs(decode_image((folder / name).read_bytes()) - plain).mean() < 16, name


def test_threads_decode_the_same_without_noise(recwarn):
    exif = Image.Exif()
    exif[0x0112] = 6
    files = [encoded(picture(), "JPEG"), encoded(picture(), "PNG"), encoded(picture(), "WEBP", exif=exif)] * 8
    expected = [decode_image(data) for data in files]
    wrong = []

    def work():
        wrong.extend(i for i, data in enumerate(files) if not np.array_equal(decode_image(data), expected[i]))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(recwarn) == 0


def test_pillows_remarks_do_not_escape(recwarn):
    images._quiet_pillow()
    data = encoded(picture(), "JPEG")
    mpo = data[:2] + b"\xff\xe2\x00\x10MPF\0II*\0\x08\0\0\0\0\0" + data[2:]
    exif = Image.Exif()
    exif[0x0112] = 3
    decode_image(mpo)
    decode_image(encoded(picture(), "JPEG", exif=exif))
    assert len(recwarn) == 0


@pytest.mark.parametrize("size", [32, 65, 224])
@pytest.mark.parametrize("shape", [(300, 300), (1, 1), (3, 200), (257, 100), (64, 65), (224, 224)])
def test_resize_equals_pillow_to_one_level(shape, size):
    noise = np.random.default_rng(7).integers(0, 256, (*shape, 3), dtype=np.uint8)
    fitted = fit_image(noise, size, "resize")
    expected = np.asarray(Image.fromarray(noise).resize((size, size), Image.Resampling.BILINEAR))
    assert fitted.shape == (size, size, 3)
    assert fitted.flags.c_contiguous
    assert np.abs(fitted.astype(int) - expected).max() <= 1


def test_resize_writes_the_same_to_a_given_place():
    image = np.random.default_rng(1).integers(0, 256, (37, 53, 3), dtype=np.uint8)
    places = np.zeros((3, 32, 32, 3), dtype=np.uint8)
    place = places[1]
    assert fit_image(image, 32, "resize", out=place) is place
    assert np.array_equal(place, fit_image(image, 32, "resize"))
    assert not places[::2].any()
    fitting = image[:32, :32]
    assert fit_image(fitting, 32, "resize", out=place) is fitting


def test_read_only_images_can_be_fitted():
    image = picture()
    image.flags.writeable = False
    assert np.array_equal(fit_image(image, 32, "resize"), fit_image(picture(), 32, "resize"))


def test_pad_keeps_the_aspect_on_black():
    image = np.full((100, 50, 3), 200, dtype=np.uint8)
    fitted = fit_image(image, 64, "pad")
    assert fitted.shape == (64, 64, 3)
    assert (fitted[:, 16:48] == 200).all()
    assert (fitted[:, :16] == 0).all()
    assert (fitted[:, 48:] == 0).all()


def test_crop_is_at_native_resolution():
    image = picture(100, 80)
    assert np.array_equal(fit_image(image, 64, "crop"), image[18:82, 8:72])
    assert np.array_equal(fit_image(image, 64, "crop", (0.0, 0.0)), image[:64, :64])
    assert np.array_equal(fit_image(image, 64, "crop", (0.9999, 0.9999)), image[36:, 16:])
    assert fit_image(picture(20, 40), 64, "crop").shape == (64, 64, 3)
    assert np.array_equal(fit_image(picture(64, 64), 64, "crop", (0.5, 0.5)), picture(64, 64))


def test_every_crop_offset_is_reached():
    image = np.arange(10, dtype=np.uint8)[:, None, None].repeat(10, 1).repeat(3, 2)
    tops = {int(fit_image(image, 8, "crop", (offset, 0.0))[0, 0, 0]) for offset in np.linspace(0, 0.999, 50)}
    assert tops == {0, 1, 2}
