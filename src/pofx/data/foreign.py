"""Formats that pofx does not read, by suffix, first bytes or a name inside, and how to convert them."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterable
from pathlib import Path

from pofx.core.errors import UnknownFormat

IMAGES = (
    "webp", "gif", "bmp", "tif", "tiff", "avif", "heic", "heif", "jp2", "jxl", "ico", "svg", "psd", "ppm", "pgm", "pnm",
    "tga", "dng", "cr2", "nef",
)  # fmt: skip
SOUNDS = ("mp3", "m4a", "aac", "opus", "wma", "aif", "aiff", "au", "amr")
FILMS = ("mp4", "mov", "avi", "mkv", "webm")

STARTS = (  # of files whose suffix says nothing
    (rb"RIFF....WEBP", "webp"),
    (rb"GIF8[79]a", "gif"),
    (rb"(II\*\0|MM\0\*)", "tiff"),
    (rb"....ftyp(avif|avis)", "avif"),
    (rb"....ftyp(heic|heix|mif1)", "heic"),
    (rb"(ID3[\x02-\x04]\0|\xff[\xfb\xf3\xf2])", "mp3"),
)


def unread(name: str, head: bytes = b"") -> str | None:
    """The format of a file, named as its usual suffix, if it is one that is not read."""
    suffix = Path(name.lower().removesuffix(".gz")).suffix[1:]
    if suffix in (*IMAGES, *SOUNDS, *FILMS):
        return suffix
    return next((kind for start, kind in STARTS if re.match(start, head, re.DOTALL)), None)


def conversion(kind: str, example: str) -> str:
    """What to do with files of a format that is not read: ``example`` is one of them."""
    stem = Path(example).stem
    if kind in IMAGES:
        return f"pofx reads PNG and JPEG: convert them, for example: magick {example} {stem}.png"
    if kind in SOUNDS:
        return f"pofx reads WAV, FLAC and Ogg: convert them, for example: ffmpeg -i {example} {stem}.wav"
    return f"Take out pictures or sound, for example: ffmpeg -i {example} {stem}.wav"


def advice(files: Iterable[Path], otherwise: str) -> str:
    """What to do with files of which none is read: how the commonest format is converted, if it is a known one."""
    found: dict[str, list[Path]] = {}
    for file in files:
        if kind := unread(file.name):
            found.setdefault(kind, []).append(file)
    kind = max(found, key=lambda k: len(found[k]), default=None)
    return otherwise if kind is None else conversion(kind, str(found[kind][0]))


# how files begin that no reader is for, what they are, and what reads them
BEGINNINGS = (
    (rb"\s*(\{\s*[\"}]|\[\s*[\[{])", "JSON", "read_json"),
    (rb"\s*<\?xml", "XML", "read_xml"),
    (rb"(?i)\s*<(!doctype html|html|head|table)", "HTML", "read_html"),
    (rb"\xd0\xcf\x11\xe0", "an Excel sheet", "read_excel"),
    (rb"SQLite format 3", "an SQLite database", "read_sql"),
    (rb"\x89HDF", "HDF5", "read_hdf"),
    (rb"ORC", "ORC", "read_orc"),
    (rb"Obj\x01", "Avro", ""),
    (rb"MATLAB 5", "a MATLAB file", ""),
    (rb"<stata_dta>", "a Stata file", "read_stata"),
    (rb"\$FL[23]", "an SPSS file", "read_spss"),
    (rb"\x80[\x02-\x05]", "a Python pickle, which could run any code", ""),
    (rb"%PDF", "PDF", ""),
    (rb"(?s).{257}ustar", "a tar archive", "unpack"),
    (rb"BZh[1-9]", "packed by bzip2", "unpack"),
    (rb"\xfd7zXZ", "packed by xz", "unpack"),
    (rb"\x28\xb5\x2f\xfd", "packed by Zstandard", "unpack"),
    (rb"\x04\x22\x4d\x18", "packed by LZ4", "unpack"),
    (rb"7z\xbc\xaf", "a 7z archive", "unpack"),
    (rb"Rar!", "a RAR archive", "unpack"),
)
# the same of zip archives, by a name inside
ZIPPED = (
    (r"xl/workbook", "an Excel sheet", "read_excel"),
    (r"content\.xml$", "an OpenDocument sheet", "read_excel"),
    (r"word/document", "a Word document", ""),
    (r"data\.pkl$", "a file of PyTorch, which could run any code", ""),
)


def refuse(path: Path, head: bytes, suffix: str) -> None:
    """Raises UnknownFormat, with the way in, for a file of a known kind that no reader is for."""
    kinds = [(kind, reader) for begin, kind, reader in BEGINNINGS if re.match(begin, head)]
    if suffix in ("json", "geojson", "ipynb"):
        kinds = [("JSON", "read_json")]
    if head[:4] == b"PK\x03\x04" and suffix != "npz" and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        kinds = [(kind, reader) for inside, kind, reader in ZIPPED if any(re.search(inside, n) for n in names)]
        if not kinds and not any(n.endswith(".npy") for n in names):
            kinds = [("a zip archive", "unpack")]
    if kinds:
        kind, reader = kinds[0]
        remedy = "Unpack it first." if reader == "unpack" else "Save it as CSV, Parquet or .npz"
        if reader.startswith("read"):
            remedy += f", or give pofx.load the frame of pandas.{reader}"
        raise UnknownFormat(f"{path} is {kind}, which pofx does not read.", f"{remedy.rstrip('.')}.")
