"""Images, sounds and films in formats that pofx does not read, by suffix or first bytes, and how to convert them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

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
