"""A small file of every format that pofx reads, to be damaged."""

from __future__ import annotations

import gzip
import io
import json
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np

FORMATS: dict[str, tuple[str, Callable[[np.random.Generator], bytes]]] = {}  # name -> file's name, its content


def file(
    name: str, of: str
) -> Callable[[Callable[[np.random.Generator], bytes]], Callable[[np.random.Generator], bytes]]:
    def add(make: Callable[[np.random.Generator], bytes]) -> Callable[[np.random.Generator], bytes]:
        FORMATS[of] = name, make
        return make

    return add


def _lines(rng: np.random.Generator, separator: str = ",", n: int = 60) -> str:
    words = ["x", "y", '"a, b"']
    rows = [
        (f"{rng.normal():.4f}", str(rng.integers(0, 9)), rng.choice(words), f"2024-01-{1 + k % 28:02d}")
        for k in range(n)
    ]
    return "\n".join(separator.join(row) for row in [tuple("abcd"), *rows]) + "\n"


@file("t.csv", "csv")
def _(rng):
    return _lines(rng).encode()


@file("t.tsv", "tsv")
def _(rng):
    return _lines(rng, "\t").encode()


@file("t.csv.gz", "csv.gz")
def _(rng):
    return gzip.compress(_lines(rng).encode(), mtime=0)


def _arrow(rng, n: int = 80):
    import pyarrow as pa

    return pa.table({
        "real": rng.normal(size=n),
        "whole": pa.array(rng.integers(0, 99, n), mask=rng.random(n) < 0.1),
        "text": pa.array(rng.choice(["x", "y", "zebra"], n)).dictionary_encode(),
        "plain": pa.array([f"w{k % 7}" for k in range(n)]),
        "flag": pa.array(rng.random(n) < 0.5),
        "when": pa.array(np.datetime64("2024-01-01") + np.arange(n)),
    })  # fmt: skip


@file("t.parquet", "parquet")
def _(rng):
    import pyarrow.parquet

    sink = io.BytesIO()
    pyarrow.parquet.write_table(_arrow(rng), sink)
    return sink.getvalue()


@file("t.arrow", "arrow file")
def _(rng):
    import pyarrow as pa

    table, sink = _arrow(rng), io.BytesIO()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


@file("t.arrow", "arrow stream")
def _(rng):
    import pyarrow as pa

    table, sink = _arrow(rng), io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


@file("t.feather", "feather")
def _(rng):
    import pyarrow.feather

    sink = io.BytesIO()
    pyarrow.feather.write_feather(_arrow(rng), sink, compression="zstd")
    return sink.getvalue()


def _saved(save: Callable[..., None], *args: object, **kwargs: object) -> bytes:
    sink = io.BytesIO()
    save(sink, *args, **kwargs)
    return sink.getvalue()


@file("t.npy", "npy")
def _(rng):
    return _saved(np.save, rng.normal(size=(50, 4)))


@file("t.npz", "npz table")
def _(rng):
    return _saved(np.savez_compressed, x=rng.normal(size=(50, 4)), y=rng.integers(0, 3, 50))


@file("t.npz", "npz images")
def _(rng):
    return _saved(np.savez, train_x=rng.integers(0, 256, (30, 6, 6), np.uint8), train_y=rng.integers(0, 3, 30))


@file("t.npz", "npz sequences")
def _(rng):
    rows = rng.normal(size=(200, 2)).astype(np.float32)
    return _saved(np.savez, train_strokes=rows, train_offsets=np.arange(0, 201, 20))


@file("train-images-idx3-ubyte", "idx")
def _(rng):
    return b"\0\0\x08\x03" + struct.pack(">iii", 40, 6, 5) + rng.integers(0, 256, 1200, np.uint8).tobytes()


@file("train-images-idx3-ubyte.gz", "idx.gz")
def _(rng):
    return gzip.compress(FORMATS["idx"][1](rng), mtime=0)


def _pictures(rng: np.random.Generator, kind: str) -> bytes:
    from PIL import Image

    x = rng.integers(0, 256, (9, 8, 3), np.uint8)
    return _saved(Image.fromarray(x).save, kind)


@file("pictures/0.png", "png")
def _(rng):
    return _pictures(rng, "png")


@file("pictures/0.jpg", "jpeg")
def _(rng):
    return _pictures(rng, "jpeg")


def _sound(rng: np.random.Generator, kind: str, subtype: str | None = None) -> bytes:
    import soundfile

    return _saved(
        soundfile.write, 0.3 * np.sin(np.arange(60000) / 9) * rng.random(), 8000, format=kind, subtype=subtype
    )


@file("t.wav", "wav")
def _(rng):
    return _sound(rng, "WAV")


@file("t.wav", "float wav")
def _(rng):
    return _sound(rng, "WAV", "FLOAT")


@file("t.flac", "flac")
def _(rng):
    return _sound(rng, "FLAC")


@file("t.ogg", "ogg")
def _(rng):
    return _sound(rng, "OGG")


@file("t.txt", "text")
def _(rng):
    return "\n".join(" ".join(rng.choice(["the", "cat", "sät", "on", "mats."], 9)) for _ in range(400)).encode()


@file("t.txt.gz", "text.gz")
def _(rng):
    return gzip.compress(FORMATS["text"][1](rng), mtime=0)


@file("t.jsonl", "jsonl")
def _(rng):
    rows = ({"id": k, "text": " ".join(rng.choice(["a", "b\u2028c", "dé"], 6))} for k in range(40))
    return "".join(json.dumps(row, ensure_ascii=bool(row["id"] % 2)) + "\n" for row in rows).encode()


def write(folder: Path, of: str, content: bytes, rng: np.random.Generator) -> Path:
    """The file, with undamaged neighbours where the format is a folder's; the path that pofx is given."""
    name, make = FORMATS[of]
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    if path.parent == folder:
        return path
    for k in range(1, 5):
        (path.parent / f"{k}{path.suffix}").write_bytes(make(rng))
    return path.parent
