"""Any source as a RawTable, images or rows of any length: files by their content, arrays, frames, built-in sets."""

from __future__ import annotations

import glob
import os
import re
import stat
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from pofx.core.errors import EmptyData, MissingSource, OutOfMemory, UnknownFormat, UsageError, WrongShape
from pofx.core.memory import available, gigabytes
from pofx.core.spelling import abridged, meant
from pofx.data import (
    archives,
    audio,
    builtin,
    captions,
    columnar,
    delimited,
    foreign,
    image,
    pipes,
    scenes,
    sequences,
    text,
)  # fmt: skip
from pofx.data.builtin import SKLEARN, STANDARD_LIBRARY
from pofx.data.folders import CAPTIONS, Listing, files_at, listed, listing, opened
from pofx.data.options import Options
from pofx.data.ragged import excerpts
from pofx.data.raw import IN_MEMORY, Raw, RawTable
from pofx.data.scenes import NAME as SCENES
from pofx.data.synthetic import SOURCES

PARQUET = (".parquet", ".pq")


def read(source: Any, options: Options) -> Raw:
    """Raises DataError by name where the source is missing, empty, ragged, corrupt or unclear."""
    if isinstance(source, str) and "://" in source:
        return _asked(_parquet(source), options, source)
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        mode = _mode(path)
        if mode is not None:
            return _of_path(path, mode, options)
        if glob.has_magic(str(source)):
            return _asked(_parquet(str(source)), options, str(source))
        name = str(source).replace("_", "-").lower()
        if name == STANDARD_LIBRARY:
            return text.from_standard_library(options)
        if name == SCENES:
            return scenes.from_digits(name, options)
        if name in SOURCES or name in SKLEARN:
            return builtin.from_source(name, options) if name in SOURCES else builtin.from_sklearn(name, options)
        raise _missing(str(source))
    if isinstance(source, pa.RecordBatchReader):
        source = source.read_all()
    if isinstance(source, pa.Table | pa.RecordBatch):
        raw = columnar.from_arrow(pa.table(source) if isinstance(source, pa.RecordBatch) else source)
        return _asked(raw, options, "the table")
    if isinstance(source, torch.Tensor):
        return archives.from_tensor(source, options)
    if isinstance(source, np.ndarray):
        return archives.from_array(source, "the array", options)
    library = type(source).__module__.partition(".")[0]
    if library == "pandas" and hasattr(source, "iloc"):
        return _asked(columnar.from_pandas(source), options, "the frame")
    if library == "polars" and type(source).__name__ in ("DataFrame", "LazyFrame", "Series"):
        return _asked(columnar.from_polars(source), options, "the frame")
    raise UsageError(
        f"Cannot load a {type(source).__name__}.",
        "Give a path, a built-in name, an array (of a sparse matrix its .toarray()), a tensor, a pandas or polars "
        "frame, or a pyarrow Table.",
    )


def _parquet(source: str) -> RawTable:
    """Those of the files of a folder, a pattern or an address that are Parquet, in their order, as one table."""
    files = files_at(source)
    found = {name: partial(opened, name) for name in files if name.lower().endswith(PARQUET)}
    if not found:
        raise UnknownFormat(
            f"{source} holds no Parquet: {', '.join(files[:3])}.",
            "Files of other formats are read one by one, from a path of this machine.",
        )
    raw = columnar.from_parquet(found, source)
    if len(files) > len(found):
        raw.notes.append(f"{len(files) - len(found)} of {len(files)} files were left out: they are no Parquet.")
    return raw


def _mode(path: Path) -> int | None:
    """What kind of file a path leads to, or None where it leads nowhere. Raises MissingSource for what is shut off."""
    try:
        return path.stat().st_mode
    except PermissionError as e:
        raise _shut(path, e) from e
    except (OSError, ValueError):  # not there, a name too long, a link to itself, a zero byte
        return None


def _of_path(path: Path, mode: int, options: Options) -> Raw:
    if stat.S_ISDIR(mode):
        return _folder(path, options)
    if stat.S_ISFIFO(mode):
        with pipes.copied(path) as copy:
            return _file(copy, options)
    if not stat.S_ISREG(mode):
        what = "a socket" if stat.S_ISSOCK(mode) else "a device"
        raise UsageError(f"{path} is {what}, not a file.", "Give a file, a folder or a pipe.")
    return _file(path, options)


def _shut(path: Path, error: OSError) -> MissingSource:
    return MissingSource(f"{path} cannot be opened: {error.strerror}.", "Check its permissions.")


def _missing(name: str) -> MissingSource:
    if name == IN_MEMORY:
        return MissingSource(
            "These data were given in memory or through a pipe, not in a file.", "Give the same data again."
        )
    if os.path.islink(name):
        return MissingSource(f"{name} is a link to {os.readlink(name)}, which is not there.", "Give the file itself.")
    folder = Path(name).parent
    readable = os.path.isdir(folder) and os.access(folder, os.R_OK)
    beside = [str(folder / p.name) for p in folder.iterdir()] if readable else []
    built_in = [*SKLEARN, STANDARD_LIBRARY, SCENES, *SOURCES]
    hint = meant(name, [*built_in, *beside], f"Built-in sets: {', '.join(built_in)}.")
    return MissingSource(f"There is no file, folder or built-in set {name!r}.", hint)


def _folder(path: Path, options: Options) -> Raw:
    found = listing(path)
    if image.idx_files(path):
        return image.from_idx(path, options.known, options.alone)
    kind = options.kind or _most_files(found)
    if kind == "table":
        return _asked(_parquet(str(path)), options, str(path))
    if kind == "text":
        return text.from_folder(path, options)
    tables = [p for p in found.files if p.name.lower() in CAPTIONS] if options.beside else []
    how = replace(options, paired=True, max_rows=None) if options.paired or tables else options
    raw = excerpts(audio.from_folder(path, how), how) if kind == "audio" else image.from_folder(path, how)
    if tables and ({*options.beside} != {"label"} or raw.label is None):
        captions.attach(raw, path, tables, options)
    return raw


def _most_files(found: Listing) -> str:
    """Of which kind are most of the files of a folder? Raises MissingSource where none is read."""
    counts = {
        "table": sum(p.name.lower().endswith(PARQUET) for p in found.files),
        "image": sum(p.suffix.lower() in image.SUFFIXES for p in found.files),
        "audio": sum(p.suffix.lower() in audio.SUFFIXES for p in found.files),
        "text": sum(map(text.is_text, found.files)),
    }
    if not any(counts.values()):
        raise _nothing_read(found)
    return max(counts, key=lambda kind: counts[kind])


def _nothing_read(found: Listing) -> MissingSource:
    problem = f"{found.folder} holds no images, sounds, texts, Parquet or IDX files"
    if not found.files:
        return MissingSource(f"{problem}: it is empty.", "Give a folder of such files.")
    problem = f"{problem}; its files are {listed(found.kinds(found.files))}."
    return MissingSource(problem, foreign.advice(found.files, f"Give one of its files, for example {found.files[0]}."))


def _file(path: Path, options: Options) -> Raw:
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as e:
        raise _shut(path, e) from e
    if not head:
        raise EmptyData(f"{path} is empty.", "Give a file with rows.")
    if kind := foreign.unread(path.name, head):
        raise UnknownFormat(f"{path} is a .{kind} file, which pofx does not read.", foreign.conversion(kind, str(path)))
    suffix = path.name.lower().removesuffix(".gz").rpartition(".")[2]
    if suffix in ("jsonl", "ndjson") or (head[:1] == b"{" and not path.suffix and options.kind in (None, "text")):
        return text.from_jsonl(path, options)
    if f".{suffix}" in audio.SUFFIXES:
        return excerpts(audio.from_file(path, options), options)
    if _is_plain_text(path, options) or _is_documents(path, head, suffix, options):
        return text.from_file(path, options)
    return _asked(_by_content(path, head, suffix, options), options, str(path))


def _asked(raw: Raw, options: Options, where: str) -> Raw:
    """A table as it is, or the texts or sequences in it that are asked for."""
    if options.text is not None:
        return _text_column(raw, options, where)
    named = options.sequence if options.sequence != sequences.ROWS else None
    if options.paired and named is not None and not (isinstance(raw, RawTable) and named in raw.columns):
        return raw  # the other of a pair has it
    if isinstance(raw, RawTable) and (options.kind == "sequence" or options.sequence is not None):
        options.served.add("sequence")
        return excerpts(sequences.from_table(raw, options, where), options)
    return raw


def _is_plain_text(path: Path, options: Options) -> bool:
    """Is a file a text as it stands, rather than a table (of texts, perhaps)?"""
    perhaps = path.name.lower().removesuffix(".gz").endswith(".txt")
    plain = text.is_text(path) and not (perhaps and delimited.is_table(path))
    # texts of a table; what pofx has sampled of it may be plain all the same
    if options.text is not None and not options.paired:
        return plain and options.documents is not None
    return options.kind == "text" or (options.kind is None and plain)


def _is_documents(path: Path, head: bytes, suffix: str, options: Options) -> bool:
    """Is a file of another suffix, such as train.de, a text, since it is told what stands between its documents, or one
    of a pair, whose lines are?"""
    tables = (*PARQUET, ".csv", ".tsv", ".arrow", ".feather", ".ipc", ".npy", ".npz")
    told = options.separator is not None or (options.paired and not delimited.is_table(path))
    return told and options.kind is None and f".{suffix}" not in tables and b"\0" not in head


def _text_column(raw: Raw, options: Options, where: str) -> Raw:
    """One column of a table as texts; the source's own parts and labels stay."""
    name = options.text or ""
    if options.paired and not (isinstance(raw, RawTable) and name in raw.columns):
        return raw  # the other of a pair has it
    if not isinstance(raw, RawTable) or name not in raw.columns:
        known = [*raw.columns] if isinstance(raw, RawTable) else []
        otherwise = f"Columns: {abridged(known, 20)}." if known else "The source has no columns: leave it out."
        raise UsageError(f"There is no column {name!r} of texts.", meant(name, known, otherwise))
    options.served.add("text")
    others = {k: fetch for k, fetch in (raw.columns | raw.beside).items() if k != name}
    options = replace(options, paired=options.paired or not others.keys().isdisjoint(options.beside))
    places = [f"{where}, row {i}," for i in range(1, raw.n + 1)]
    found = text.from_column(name, raw.columns[name](), options, raw.label, raw.part, places)
    found.beside = others
    return found


def _by_content(path: Path, head: bytes, suffix: str, options: Options) -> Raw:
    foreign.refuse(path, head, suffix)
    if head[:4] == b"PAR1" or suffix in ("parquet", "pq"):
        return columnar.from_parquet({str(path): partial(str, path)}, str(path))
    if head[:6] in (b"ARROW1", b"FEA1\0\0") or suffix in ("arrow", "feather", "ipc"):
        return columnar.from_ipc(path)
    if head[:4] == b"PK\x03\x04":
        return archives.from_npz(path, options)
    if head[:6] == b"\x93NUMPY" or suffix in ("npy", "npz"):
        return archives.from_array(archives.load_array(path), path.name, options)
    if re.search(r"idx\d-ubyte(\.gz)?$", path.name) or head[:3] == b"\0\0\x08":
        return image.from_idx(path, options.known, options.alone)
    if suffix in ("png", "jpg", "jpeg"):
        if options.alone and options.known is not None:
            return image.from_file(path, options)
        raise WrongShape(f"{path} is a single image.", "Give the folder that holds the images.")
    if (size := path.stat().st_size) > (free := available()):
        raise OutOfMemory(
            f"{path} is {gigabytes(size)} of text, which is read at once, and {gigabytes(free)} are free.",
            "Write it as Parquet, which is read in blocks: pyarrow.dataset.write_dataset, duckdb or polars do so.",
        )
    return delimited.from_csv(path, options)
