"""Images: arrays of any layout, MNIST's IDX files, folders of PNG and JPEG; all become uint8 [N, C, H, W]."""

from __future__ import annotations

import gzip
import re
import zlib
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from PIL import Image as Pillow
from PIL import ImageOps

from pofx.core.errors import BadValue, CorruptFile, EmptyData, MissingSource, WrongShape
from pofx.core.space import Image
from pofx.data.split import TEST, TRAIN, VALID, pick

NDArray: TypeAlias = "np.ndarray[Any, Any]"

PARTS = {
    **dict.fromkeys(("train", "training"), TRAIN),
    **dict.fromkeys(("valid", "val", "validation", "dev"), VALID),
    **dict.fromkeys(("test", "testing", "t10k"), TEST),
}
FEW_LEVELS = 64  # whole-numbered images below this level have levels 0 .. their maximum
SUFFIXES = (".png", ".jpg", ".jpeg")


def by_part(arrays: Iterable[str]) -> dict[str, dict[int | None, str]]:
    """Names of arrays by what they say beside a part, and by that part: train_x is found["x"][TRAIN]."""
    found: dict[str, dict[int | None, str]] = {}
    for name in arrays:
        words = re.split(r"[_\-. ]+", name.lower())
        parts = [PARTS[w] for w in words if w in PARTS]
        rest = "_".join(w for w in words if w not in PARTS)
        found.setdefault(rest, {})[parts[0] if parts else None] = name
    return found


@dataclass
class RawImages:
    """Images as read: uint8 [N, C, H, W], their levels, and what the source says about each."""

    x: NDArray
    levels: int
    label: NDArray | None = None  # [N] class names or numbers
    part: NDArray | None = None  # [N] TRAIN, VALID or TEST where the source brings its own split
    numbers: NDArray | None = None  # [N] number in the source, where only some were read
    notes: list[str] = field(default_factory=list)

    @property
    def n(self) -> int:
        return len(self.x)

    @property
    def space(self) -> Image:
        channels, height, width = self.x.shape[1:]
        return Image(height, width, channels, self.levels)


# ---------------------------------------------------------------------------------------------- arrays


def from_array(array: NDArray, name: str, known: Image | None = None) -> RawImages:
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
    raw = RawImages(np.ascontiguousarray(levels), known.levels if known else _levels(levels, notes), notes=notes)
    if known is None and raw.levels == 2 and levels.max() > 1:
        raw.x = (raw.x > 0).astype(np.uint8)
    if known is not None and raw.space != known:
        raise WrongShape(f"{name} holds {raw.space}; expected {known}.", "Resize or convert the images first.")
    return raw


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
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, OSError, zlib.error) as e:
        raise CorruptFile(f"{path} cannot be unpacked: {e}.", "Fetch the file again.") from e
    kinds = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] not in kinds or len(data) < 4 + 4 * data[3]:
        raise CorruptFile(f"{path} does not begin as an IDX file does.", "Fetch the file again.")
    dims = data[3]
    shape = np.frombuffer(data, ">i4", dims, 4)
    body = data[4 + 4 * dims :]
    want = int(np.prod(shape, dtype=np.int64)) * np.dtype(kinds[data[2]]).itemsize
    if len(body) != want:
        raise CorruptFile(f"{path} holds {len(body)} bytes of values; its header says {want}.", "Fetch the file again.")
    return np.frombuffer(body, kinds[data[2]]).reshape(shape)


def idx_files(folder: Path) -> list[Path]:
    """The IDX image files in a folder."""
    return sorted(p for p in folder.iterdir() if re.search(r"images?[-.]idx[34]-ubyte(\.gz)?$", p.name))


def from_idx(path: Path, known: Image | None = None, alone: bool = False) -> RawImages:
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


def files_below(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """All files of these kinds below a folder in natural order, hidden ones left out."""
    found = (p for p in folder.rglob("*") if p.suffix.lower() in suffixes)
    visible = [p for p in found if not any(s.startswith((".", "__")) for s in p.relative_to(folder).parts)]
    return sorted(visible, key=lambda p: [_numbered(s) for s in p.relative_to(folder).parts])


def _numbered(text: str) -> list[tuple[int, int, str]]:
    """The parts of a file name, so that img10 comes after img9."""
    return [(0, int(s), "") if s.isdigit() else (1, 0, s) for s in re.split(r"(\d+)", text) if s]


def by_folder(folder: Path, files: list[Path], notes: list[str]) -> tuple[NDArray | None, NDArray | None]:
    """(part, label) [N] of each file by its place: train / valid / test at the top are parts, sub-folders labels."""
    places = [f.relative_to(folder).parts[:-1] for f in files]
    part: NDArray | None = None
    if all(p and p[0].lower() in PARTS for p in places) and any(PARTS[p[0].lower()] == TRAIN for p in places):
        part = np.array([PARTS[p[0].lower()] for p in places])
        places = [p[1:] for p in places]
    if all(places):
        return part, np.array([p[0] for p in places])
    if any(places):
        notes.append("Some files lie in sub-folders and some do not: no labels were taken from the folders.")
    return part, None


def from_folder(
    folder: Path,
    resize: int | None = None,
    known: Image | None = None,
    max_rows: int | None = None,
    seed: int = 0,
) -> RawImages:
    """PNG and JPEG files; sub-folders are labels; train / valid / test at the top are the official split.

    Grey and colour together become RGB; transparency is laid on white. ``resize`` crops the middle
    square and scales it. Of more than ``max_rows`` files so many are read, drawn by ``seed``.
    Raises MissingSource, WrongShape (an image of another size), CorruptFile.
    """
    files = files_below(folder, SUFFIXES)
    if not files:
        others = sorted(p.name for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))[:3]
        remedy = f"Give one of its files: {', '.join(others)}." if others else "Give a folder that does."
        raise MissingSource(f"{folder} holds neither PNG or JPEG images nor IDX files.", remedy)
    notes: list[str] = []
    part, label = by_folder(folder, files, notes)
    drawn = pick(len(files), max_rows, seed)
    chosen = None if drawn is None else drawn.numpy()
    if chosen is not None:
        files = [files[i] for i in chosen]
        part, label = None if part is None else part[chosen], None if label is None else label[chosen]
    x = decode(files, resize, known, notes)
    raw = from_array(x, str(folder), known)
    raw.notes = notes + [n for n in raw.notes if "was read as" not in n]
    raw.label, raw.part, raw.numbers = label, part, chosen
    return raw


def decode(files: list[Path], resize: int | None, known: Image | None, notes: list[str]) -> NDArray:
    """Files as uint8 [N, H, W, C], all of the first one's size (or of ``known``)."""
    with ThreadPoolExecutor() as pool:
        heads = list(pool.map(_head, files))
        colour = sum(grey is False for _, grey in heads)
        channels = known.channels if known else 3 if colour else 1
        if 0 < colour < len(files) and known is None:
            notes.append(f"{colour} of {len(files)} images have colour: all were read as RGB.")
        sizes = Counter(size for size, _ in heads)
        if resize is not None:
            width = height = resize
            notes.append(f"Images were cropped to their middle square and scaled to {resize}×{resize}.")
        elif known is not None:
            width, height = known.width, known.height
        else:
            width, height = sizes.most_common(1)[0][0]
        for file, (size, _) in zip(files, heads, strict=True):
            if resize is None and size != (width, height):
                raise WrongShape(
                    f"{file} is {size[0]}×{size[1]} pixels (width×height); the others are {width}×{height}."
                    if known is None
                    else f"{file} is {size[0]}×{size[1]} pixels (width×height); this space takes {width}×{height}.",
                    "Resize or remove it, or give --resize 32 to bring all images to one size.",
                )
        out = np.empty((len(files), height, width, channels), np.uint8)

        def fill(i: int) -> None:
            out[i] = _pixels(files[i], "L" if channels == 1 else "RGB", resize)

        list(pool.map(fill, range(len(files))))
    return out


def _head(file: Path) -> tuple[tuple[int, int], bool]:
    """(width, height) and whether the image is grey, from its header."""
    try:
        with Pillow.open(file) as image:
            if image.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"):
                raise BadValue(
                    f"{file} has pixels of more than 8 bits (mode {image.mode}).", "Convert it to 8 bits per channel."
                )
            return image.size, image.mode in ("1", "L", "LA")
    except (OSError, SyntaxError, ValueError, Pillow.DecompressionBombError) as e:
        raise CorruptFile(f"{file} cannot be read as an image: {e}.", "Fetch the file again, or remove it.") from e


def _pixels(file: Path, mode: str, resize: int | None) -> NDArray:
    try:
        with Pillow.open(file) as image:
            if image.has_transparency_data:
                back = Pillow.new("RGBA", image.size, "white")
                plain = Pillow.alpha_composite(back, image.convert("RGBA")).convert(mode)
            else:
                plain = image.convert(mode)
        if resize is not None:
            plain = ImageOps.fit(plain, (resize, resize), Pillow.Resampling.LANCZOS)
        pixels = np.asarray(plain)
        return pixels if pixels.ndim == 3 else pixels[..., None]
    except (OSError, SyntaxError, ValueError, zlib.error) as e:
        raise CorruptFile(f"{file} cannot be read as an image: {e}.", "Fetch the file again, or remove it.") from e
