"""Image files as cameras, phones and other programs write them; files that are damaged, too large or of several."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags
from PIL import Image as Pillow

import pofx
from pofx.core.errors import BadValue, CorruptFile, WrongShape
from pofx.data import image
from pofx.data.rows import read_rows
from pofx.spaces import Image


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """23 grey images of 6 rows and 5 columns."""
    rng = np.random.default_rng(0)
    place = tmp_path / "pets" / "cat"
    place.mkdir(parents=True)
    for i in [i for i in range(24) if i != 5]:
        Pillow.fromarray(rng.integers(0, 256, (6, 5), dtype=np.uint8)).save(place / f"{i}.png")
    return tmp_path / "pets"


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_photos_are_turned_as_their_camera_says(tmp_path: Path, orientation: int, suffix: str) -> None:
    seen = np.zeros((6, 4), np.uint8)  # bright at the top, and more so to the left
    seen[:3], seen[:3, :2] = 120, 240
    # EXIF 2.32, 4.6.4 A: where the 0th row and the 0th column are, as seen; here the stored pixels of each
    stored = [
        seen, seen[:, ::-1], seen[::-1, ::-1], seen[::-1], seen.T, seen.T[::-1], seen.T[::-1, ::-1],
        seen.T[:, ::-1],
    ][orientation - 1]  # fmt: skip
    exif = Pillow.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    for i in range(6):
        Pillow.fromarray(np.ascontiguousarray(stored)).save(tmp_path / f"{i}.{suffix}", exif=exif, quality=100)
    data = pofx.load(tmp_path)
    assert data.space == Image(6, 4, 1, 256)
    assert np.abs(data.train.x[0, 0].numpy().astype(int) - seen).max() < 40
    assert any("6 of 6 images were turned as their EXIF data say" in n for n in data.notes) == (orientation > 1)


def png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    """A PNG file from its specification (ISO 15948), which Pillow does not write at this depth."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize(("colour", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_more_than_8_bits_are_refused_in_grey_and_in_colour(tmp_path: Path, colour: int, channels: int) -> None:
    for depth in (8, 16):
        for i in range(4):
            row = b"\0" + bytes(range(5 * channels * depth // 8))
            (tmp_path / f"{i}.png").write_bytes(png(5, 3, depth, colour, row * 3))
        if depth == 8:
            assert pofx.load(tmp_path).space.channels == (1 if colour in (0, 4) else 3)
        else:
            with pytest.raises(BadValue, match=r"more than 8 bits per channel.*-depth 8"):
                pofx.load(tmp_path)


def test_transparency_print_colours_and_previews_are_told(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    modes = {"RGBA": ("png", "have transparency"), "CMYK": ("jpg", "CMYK"), "RGB": ("jpg", "hold further pictures")}
    for mode, (suffix, said) in modes.items():
        (tmp_path / mode).mkdir()
        for i in range(4):
            pixels = Pillow.fromarray(rng.integers(0, 256, (4, 4, len(mode)), dtype=np.uint8), mode)
            if mode == "RGB":
                pixels.save(tmp_path / mode / f"{i}.{suffix}", "MPO", save_all=True, append_images=[pixels])
            else:
                pixels.save(tmp_path / mode / f"{i}.{suffix}")
        data = pofx.load(tmp_path / mode)
        assert data.space == Image(4, 4, 3, 256)
        assert any("4 of 4 images" in n and said in n for n in data.notes)


@pytest.mark.parametrize("kind", ["PNG", "GIF", "TIFF", "WEBP"])
def test_animations_and_pages_are_named(folder: Path, kind: str) -> None:
    """Of those formats that carry another's suffix, too."""
    frames = [Pillow.fromarray(np.full((6, 5), 40 * k, np.uint8)) for k in range(3)]
    frames[0].save(folder / "cat" / "5.png", kind, save_all=True, append_images=frames[1:])
    with pytest.raises(BadValue, match=r"5.png holds 3 pictures \(animated or of several pages\)"):
        pofx.load(folder)


def test_images_of_impossible_size(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "cat" / "5.png").write_bytes(png(60000, 60000, 8, 2, b"\0"))
    with pytest.raises(CorruptFile, match=r"5.png cannot be read as an image: .*3600000000 pixels"):
        pofx.load(folder)
    (folder / "cat" / "5.png").unlink()
    monkeypatch.setattr(image, "memory", lambda: 6 * 5 * 23)
    with pytest.raises(BadValue, match=r"23 images of 5×6×1 take .* GiB .*--max-rows, or --resize 32"):
        pofx.load(folder)
    assert pofx.load(folder, max_rows=7).space == Image(6, 5, 1, 256)
    monkeypatch.undo()
    data = pofx.load(folder)
    Pillow.fromarray(np.zeros((7, 5), np.uint8)).save(folder / "cat" / "5.png")
    with pytest.raises(WrongShape, match="5.png is 5×7 pixels.*this space takes 5×6. Bring it to 5×6 first") as error:
        read_rows(data.space, None, folder, options=data.options)
    assert "--" not in str(error.value), "a command on a run has no option for it"


def test_idx_headers_that_cannot_be(tmp_path: Path) -> None:
    path = tmp_path / "a-images-idx3-ubyte"
    for dims in ([], [-3, 4, 4], [2, -4, -4], [0x7FFFFFFF] * 3, [1] * 255, [1] * 40):
        path.write_bytes(struct.pack(f">HBB{len(dims)}i", 0, 8, len(dims), *dims) + bytes(32))
        with pytest.raises(CorruptFile, match="idx3-ubyte"):
            pofx.load(path)


@pytest.mark.parametrize(
    ("mode", "other", "said"),
    [("L", "RGB", "have colour: their grey levels were taken"), ("RGB", "L", "have no colours, which are modelled")],
)
def test_new_images_of_another_kind_are_told(tmp_path: Path, mode: str, other: str, said: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 5, 5, 3), dtype=np.uint8)
    for name, kind in (("known", mode), ("other", other)):
        (tmp_path / name).mkdir()
        for i, each in enumerate(pixels):
            Pillow.fromarray(each).convert(kind).save(tmp_path / name / f"{i}.png")
    data = pofx.load(tmp_path / "known")
    notes: list[str] = []
    rows = read_rows(data.space, None, tmp_path / "other", options=data.options, notes=notes)
    assert rows.x.shape[1:] == data.space.event_shape
    assert [note for note in notes if f"4 of 4 images {said}" in note]
    own: list[str] = []
    read_rows(data.space, None, tmp_path / "known", options=data.options, notes=own)
    assert own == []
