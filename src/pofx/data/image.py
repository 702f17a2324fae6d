"""Images: arrays of any layout, MNIST's IDX files, folders of PNG and JPEG; all become uint8 [N, C, H, W]."""

from __future__ import annotations

import math
import os
import re
import struct
import zlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import ExifTags, ImageOps
from PIL import Image as Pillow

from pofx.core.errors import BadValue, CorruptFile, EmptyData, MissingSource, UsageError, WrongShape
from pofx.data import foreign
from pofx.data.folders import drawn, listing, names_below
from pofx.data.options import Options
from pofx.data.packed import unpacked
from pofx.data.ragged import NDArray
from pofx.data.raw import RawArray
from pofx.data.split import TEST, TRAIN
from pofx.spaces import Image

FEW_LEVELS = 64  # whole-numbered images below this level have levels 0 .. their maximum
SUFFIXES = (".png", ".jpg", ".jpeg")
READ = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")  # Pillow's modes of up to 8 bits per channel
OPENED = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")  # by content, whatever the suffix says
TURNED = range(5, 9)  # EXIF orientations that exchange width and height
MOST_DIMS = 8  # of an IDX file
COPIES = 3  # of all pixels that are held at once, while they are sorted and split


# ---------------------------------------------------------------------------------------------- arrays


def from_array(array: NDArray, name: str, known: Image | None = None) -> RawArray:
    """[N, H, W], [N, H, W, C] or [N, C, H, W] of whole levels (or of 0 .. 1 in steps of 1/255).

    With ``known`` the images must be of that space. Raises WrongShape, or BadValue for values that are
    no levels.
    """
    notes = []
    if array.ndim == 3:
        x = array[:, None]
    elif array.ndim == 4 and array.shape[-1] in (1, 3, 4):
        x = np.moveaxis(array, -1, 1)
        notes.append(f"{name} {list(array.shape)} was read as [N, H, W, C].")
    elif array.ndim == 4 and array.shape[1] in (1, 3, 4):
        x = array
        notes.append(f"{name} {list(array.shape)} was read as [N, C, H, W].")
    else:
        raise WrongShape(
            f"{name} has shape {list(array.shape)}, which is no layout of images.",
            "Images are [N, H, W], [N, H, W, C] or [N, C, H, W] with C = 1, 3 or 4; a table is [N, D].",
        )
    if 0 in x.shape:
        raise EmptyData(f"{name} is empty (shape {list(array.shape)}).", "Give at least one image.")
    levels = to_levels(x, name, notes, known.levels if known else None)
    channels, height, width = x.shape[1:]
    space = Image(height, width, channels, known.levels if known else _levels(levels, notes))
    if known is None and space.levels == 2 and levels.max() > 1:
        levels = (levels > 0).astype(np.uint8)
    if known is not None and space != known:
        raise WrongShape(f"{name} holds {space}; expected {known}.", "Resize or convert the images first.")
    return RawArray(np.ascontiguousarray(levels), space, notes=notes)


def to_levels(x: NDArray, name: str, notes: list[str], known: int | None = None) -> NDArray:
    """Values as uint8 levels; with ``known`` levels L, full-scale values (0 .. 255) are brought to 0 .. L-1."""
    if x.dtype.kind not in "biuf":
        raise BadValue(f"{name} holds {x.dtype} values, which are no pixels.", "Give whole numbers 0 to 255.")
    if x.dtype.kind == "f":
        if not np.isfinite(x).all():
            raise BadValue(f"{name} holds NaN or infinite pixels.", "Give whole numbers 0 to 255.")
        if x.min() >= 0 and x.max() <= 1 and ((x != 0) & (x != 1)).any():
            top = (known or 256) - 1
            x = x * top
            notes.append(f"{name} holds values in [0, 1]: multiplied by {top}.")
        off = np.abs(x - np.rint(x))
        if off.max() > 0.01:
            raise BadValue(
                f"{name} holds pixels that are no whole levels ({float(x.flat[int(off.argmax())]):.6g}).",
                "Quantise them to 0 .. 255, or reshape to [N, D] to model them as a table of real columns.",
            )
        x = np.rint(x)
    if x.min() < 0 or x.max() > 255:
        raise BadValue(
            f"{name} holds pixels from {x.min():g} to {x.max():g}; levels are 0 to 255.",
            "Rescale them, or reshape to [N, D] to model them as a table.",
        )
    levels = x.astype(np.uint8)
    if known is not None and levels.max() >= known:
        inverse = np.full(256, 255, np.uint8)
        inverse[full_scale(known)] = np.arange(known)
        scaled = inverse[levels]
        if (scaled == 255).any():
            raise BadValue(
                f"{name} holds level {levels.max()}; this space has 0 to {known - 1}.", "Rescale the images."
            )
        levels = scaled
    return levels


def full_scale(levels: int) -> NDArray:
    """Level k of L as a grey value 0 .. 255: how images of few levels are written to files."""
    return np.rint(np.arange(levels) * 255 / (levels - 1)).astype(np.uint8)


def _levels(x: NDArray, notes: list[str]) -> int:
    top = int(x.max())
    counts = np.bincount(x.reshape(-1), minlength=256)
    if top <= 1 or counts[0] + counts[top] == x.size:
        if top > 1:
            notes.append(f"Pixels are 0 or {top}: read as 2 levels.")
        return 2
    if top < FEW_LEVELS:
        notes.append(f"Pixels are 0 to {top}: {top + 1} levels.")
        return top + 1
    return 256


# ------------------------------------------------------------------------------------------------ IDX


def read_idx(path: Path) -> NDArray:
    """One IDX file (LeCun et al.: two zero bytes, type, dimensions, big-endian sizes, values), also .gz."""
    data = unpacked(path)
    kinds = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] not in kinds or len(data) < 4 + 4 * data[3]:
        raise CorruptFile(f"{path} does not begin as an IDX file does.", "Fetch the file again.")
    dims = data[3]
    shape = struct.unpack_from(f">{dims}i", data, 4)
    if not 1 <= dims <= MOST_DIMS or min(shape) < 0:
        sizes = "×".join(map(str, shape[:MOST_DIMS]))
        raise CorruptFile(f"{path} has an impossible header: {dims} dimensions of {sizes}.", "Fetch the file again.")
    body = data[4 + 4 * dims :]
    want = math.prod(shape) * np.dtype(kinds[data[2]]).itemsize
    if len(body) != want:
        raise CorruptFile(f"{path} holds {len(body)} bytes of values; its header says {want}.", "Fetch the file again.")
    return np.frombuffer(body, kinds[data[2]]).reshape(shape)


def idx_files(folder: Path) -> list[Path]:
    """The IDX image files in a folder."""
    return sorted(p for p in folder.iterdir() if re.search(r"images?[-.]idx[34]-ubyte(\.gz)?$", p.name))


def from_idx(path: Path, known: Image | None = None, alone: bool = False) -> RawArray:
    """A folder of IDX files, or one images file; labels are found beside.

    A training file brings its t10k (or test) twin as the official test part unless ``alone``.
    """
    files = idx_files(path) if path.is_dir() else [path]
    if path.is_file() and not alone and "train" in path.name:
        twins = [path.with_name(path.name.replace("train", other)) for other in ("t10k", "test")]
        files += [t for t in twins if t.exists()][:1]
    parts = [TEST if re.search("t10k|test", p.name) else TRAIN for p in files]
    if len(set(parts)) < len(files):
        listed = ", ".join(p.name for p in files)
        raise WrongShape(f"{path} holds several sets: {listed}.", "Give the training images file of one of them.")
    images = [read_idx(p) for p in files]
    if len({i.shape[1:] for i in images}) > 1:
        sizes = ", ".join(f"{p.name} {list(i.shape[1:])}" for p, i in zip(files, images, strict=True))
        raise WrongShape(f"Images differ in size: {sizes}.", "Load the files apart.")
    labels = []
    for file, array in zip(files, images, strict=True):
        beside = file.with_name(re.sub(r"images?([-.])idx[34]", r"labels\1idx1", file.name))
        beside = beside if beside.exists() else Path(str(beside).removesuffix(".gz"))
        if beside.exists() and beside != file:
            labels.append(read_idx(beside))
            if labels[-1].shape != array.shape[:1]:
                raise WrongShape(f"{file.name} has {len(array)} images, {beside.name} {labels[-1].shape} labels.")
    raw = from_array(np.concatenate(images), files[0].name, known)
    if len(labels) == len(files):
        raw.label = np.concatenate(labels)
    if len(files) > 1:
        raw.part = np.repeat(parts, [len(i) for i in images])
    return raw


# --------------------------------------------------------------------------------------------- folders


def from_folder(folder: Path, how: Options) -> RawArray:
    """PNG and JPEG files; sub-folders are labels; train / valid / test at the top are the official split.

    Grey and colour together become RGB; transparency is laid on white; a photo is turned as its EXIF data say.
    ``how.resize`` crops the middle square and scales it. Of more than ``how.max_rows`` files so many are read, drawn by
    ``how.seed``. Raises MissingSource, WrongShape (an image of another size), BadValue (more than 8 bits, animations,
    more pixels than there is memory), CorruptFile.
    """
    if how.resize is not None and how.resize < 1:
        raise UsageError(f"Images of {how.resize} pixels are impossible.", "Give --resize of 1 or more.")
    notes: list[str] = []
    found = listing(folder)
    files, part, label, numbers = drawn(found, SUFFIXES, how, notes)
    if not files:
        remedy = foreign.advice(found.files, "Give a folder that does.")
        raise MissingSource(f"{folder} holds neither PNG or JPEG images nor IDX files.", remedy)
    raw = from_array(decode(files, how.resize, how.known, notes), str(folder), how.known)
    raw.notes = notes + [n for n in raw.notes if "was read as" not in n]
    raw.label, raw.part, raw.numbers, raw.files = label, part, numbers, names_below(folder, files)
    return raw


def from_file(path: Path, how: Options) -> RawArray:
    """One PNG or JPEG, of the space of ``how.known``: one row."""
    notes: list[str] = []
    raw = from_array(decode([path], how.resize, how.known, notes), str(path), how.known)
    raw.notes, raw.files = notes, [path.name]
    return raw


@dataclass(frozen=True)
class Head:
    """What the header of an image file says: its size as it is to be seen, and how its pixels have to change."""

    size: tuple[int, int]  # width, height
    grey: bool
    turned: bool = False
    transparent: bool = False
    cmyk: bool = False
    several: bool = False  # a photo that holds others, such as a preview


def decode(files: list[Path], resize: int | None, known: Image | None, notes: list[str]) -> NDArray:
    """Files as uint8 [N, H, W, C], all of the commonest size (or of that of ``known``)."""
    with ThreadPoolExecutor() as pool:
        heads = list(pool.map(_head, files))
        colour = sum(not head.grey for head in heads)
        channels = known.channels if known else 3 if colour else 1
        if 0 < colour < len(files) and known is None:
            notes.append(f"{colour} of {len(files)} images have colour: all were read as RGB.")
        for count, what in (
            (colour * (channels == 1), "have colour: their grey levels were taken"),
            ((len(files) - colour) * (known is not None and channels > 1), "have no colours, which are modelled"),
            (sum(head.turned for head in heads), "were turned as their EXIF data say"),
            (sum(head.transparent for head in heads), "have transparency: they were laid on white"),
            (sum(head.cmyk for head in heads), "have the colours of print (CMYK): they were read as RGB"),
            (sum(head.several for head in heads), "hold further pictures (previews, depth): the first was read"),
        ):
            if count:
                notes.append(f"{count} of {len(files)} images {what}.")
        if resize is not None:
            width = height = resize
            notes.append(f"Images were cropped to their middle square and scaled to {resize}×{resize}.")
        elif known is not None:
            width, height = known.width, known.height
        else:
            width, height = Counter(head.size for head in heads).most_common(1)[0][0]

        def check(file: Path, size: tuple[int, int]) -> None:
            if resize is None and size != (width, height):
                found = f"{file} is {size[0]}×{size[1]} pixels (width×height)"
                if known is not None:
                    problem = f"{found}; this space takes {width}×{height}."
                    raise WrongShape(problem, f"Bring it to {width}×{height} first, or remove it.")
                raise WrongShape(
                    f"{found}; the others are {width}×{height}.",
                    "Resize or remove it, or give --resize 32 to bring all images to one size.",
                )

        for file, head in zip(files, heads, strict=True):
            check(file, head.size)
        shape = len(files), height, width, channels
        needed = math.prod(shape) * COPIES
        if needed > memory():
            raise BadValue(
                f"{len(files)} images of {width}×{height}×{channels} take {needed / 2**30:.1f} GiB while they are "
                f"read; this machine has {memory() / 2**30:.1f} GiB.",
                "Give fewer at a time." if known else "Give --max-rows, or --resize 32.",
            )
        out = np.empty(shape, np.uint8)

        def fill(i: int) -> None:
            pixels = _pixels(files[i], "L" if channels == 1 else "RGB", resize)
            check(files[i], (pixels.shape[1], pixels.shape[0]))
            out[i] = pixels

        list(pool.map(fill, range(len(files))))
    return out


def memory() -> int:
    """Bytes of this machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@contextmanager
def _opened(file: Path) -> Iterator[Pillow.Image]:
    """An image file by its content. Raises CorruptFile, by whatever name Pillow reports what is wrong with it."""
    try:
        with Pillow.open(file, formats=OPENED) as image:
            yield image
    except (
        OSError, SyntaxError, TypeError, ValueError, OverflowError, struct.error, zlib.error,
        Pillow.DecompressionBombError,
        MemoryError,  # a damaged length makes room for gigabytes, which the file does not hold
    ) as e:  # fmt: skip
        why = str(e) or type(e).__name__
        raise CorruptFile(f"{file} cannot be read as an image: {why}.", "Fetch the file again, or remove it.") from e


def _head(file: Path) -> Head:
    with _opened(file) as image:
        pictures = getattr(image, "n_frames", 1)
        if pictures > 1 and image.format != "MPO":
            raise BadValue(
                f"{file} holds {pictures} pictures (animated or of several pages).",
                "Write each picture to a file of its own, or remove it.",
            )
        if image.mode not in READ or ";16" in str(getattr(image, "tile", "")):
            raise BadValue(
                f"{file} has pixels of more than 8 bits per channel.",
                f"Convert it, for example: magick {file} -depth 8 NEW.png",
            )
        # what stands before the pixels; PNG may say it after them, which _pixels finds
        orientation = Pillow.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
        width, height = image.size
        return Head(
            (height, width) if orientation in TURNED else (width, height),
            image.mode in ("1", "L", "LA"),
            orientation in range(2, 9),
            image.has_transparency_data,
            image.mode == "CMYK",
            pictures > 1,
        )


def _pixels(file: Path, mode: str, resize: int | None) -> NDArray:
    """uint8 [H, W, C]"""
    with _opened(file) as image:
        seen = ImageOps.exif_transpose(image)
        if seen.has_transparency_data:
            back = Pillow.new("RGBA", seen.size, "white")
            plain = Pillow.alpha_composite(back, seen.convert("RGBA")).convert(mode)
        else:
            plain = seen.convert(mode)
        if resize is not None:
            plain = ImageOps.fit(plain, (resize, resize), Pillow.Resampling.LANCZOS)
        pixels = np.asarray(plain)
        return pixels if pixels.ndim == 3 else pixels[..., None]
