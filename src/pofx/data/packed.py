"""Packed bytes, unpacked up to a limit: twelve megabytes can unpack to eight gigabytes of zeros and fill the memory."""

from __future__ import annotations

import gzip
import io
import zlib
from pathlib import Path

from pofx.core.errors import CorruptFile

MOST_UNPACKED = 1 << 30  # bytes that any file may unpack to
MOST_RATIO = 20  # and larger files, so many times their size: text and numbers seldom shrink more
CHUNK = 1 << 20


def most_unpacked(packed: int) -> int:
    """How many bytes a file of ``packed`` bytes may unpack to."""
    return max(MOST_UNPACKED, MOST_RATIO * packed)


def too_large(path: Path, most: int) -> CorruptFile:
    return CorruptFile(
        f"{path} unpacks to more than {most} bytes, the limit for a packed file of {path.stat().st_size} bytes.",
        "If it is sound, unpack it and give what comes out.",
    )


def unpacked(path: Path) -> bytes:
    """The bytes of a file, unpacked if they begin as gzip does.

    Raises CorruptFile where it cannot be read, for damaged gzip, and for more than ``most_unpacked`` bytes (before they
    fill the memory).
    """
    out = io.BytesIO()
    try:
        most = most_unpacked(path.stat().st_size)
        with path.open("rb") as file:
            if file.read(2) != b"\x1f\x8b":
                file.seek(0)
                return file.read()
            file.seek(0)
            with gzip.GzipFile(fileobj=file) as stream:
                while chunk := stream.read(CHUNK):
                    if out.tell() + len(chunk) > most:
                        raise too_large(path, most)
                    out.write(chunk)
    except (EOFError, gzip.BadGzipFile, zlib.error) as e:
        raise CorruptFile(f"{path} cannot be read as gzip: {e}.", "Fetch or write the file again.") from e
    except OSError as e:
        raise CorruptFile(f"{path} cannot be read: {e.strerror}.", "Check its permissions, or fetch it again.") from e
    return out.getvalue()
