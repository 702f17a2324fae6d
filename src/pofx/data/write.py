"""Rows and columns to files: CSV, Parquet, PNG folders, .npz. Every file appears whole or not at all."""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Sequence as Listed
from pathlib import Path
from typing import Any, TextIO, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.ipc
import pyarrow.parquet
import torch
from PIL import Image as Pillow
from torch import Tensor

from pofx.core.errors import CannotSave, UsageError
from pofx.core.files import replacing
from pofx.core.space import Space, join
from pofx.data.audio import check_sounds, write_audio
from pofx.data.image import full_scale
from pofx.data.sequences import ROWS, number_of
from pofx.data.tabular import MISSING, decode
from pofx.data.text import ENDOFTEXT, TEXT, unescaped
from pofx.spaces import Audio, Image, Label, Sequence, Table, Text

BETWEEN = "\n" + "-" * 40 + "\n"
TABLE_SUFFIXES = (".csv", ".tsv", ".parquet", ".arrow", ".feather")


def check_place(space: Space, n: int, to: Path | None) -> None:
    """Can n rows be written there (None: to a stream)? Raises UsageError, or CannotSave for what is there already."""
    if isinstance(space, Image):
        if to is None:
            raise UsageError("Images need a place to be written.", "Say --out folder/ or --out samples.npz.")
        _check_images(space, to)
    elif isinstance(space, Audio):
        if to is None:
            raise UsageError("Sounds need a place to be written.", "Say --out folder/, or for one --out sound.wav.")
        check_sounds(n, to)
    elif to is not None and isinstance(space, Text):
        if to.suffix not in (".txt", ".jsonl"):
            raise UsageError(f"{to} is no place for texts.", "End it in .txt or .jsonl.")
    elif to is not None:
        _check_table(to)


def write_rows(
    space: Space,
    x: Tensor | Iterable[Tensor],
    to: str | os.PathLike[str] | TextIO,
    context: Space | None = None,
    c: Tensor | None = None,
    *,
    options: Mapping[str, Any] | None = None,
) -> None:
    """Rows x [N, *E], and their contexts c [N, *Ec], as files that ``load`` and ``read_rows`` understand.

    Rows may come in blocks, without contexts: those of tables are written as they come, and then forgotten.

    A table becomes CSV, TSV, Parquet or Arrow by the suffix of ``to`` (or CSV on an open text stream):
    categories as their spelling, dates in ISO form, missing fields empty, grid values as decimals; a
    context's columns come after (a label as the column "label"). Images become a folder of PNG files
    (sub-folders by label) or an .npz with x [N, H, W, C] and y; few levels are spread over 0 .. 255 in PNG.
    Texts become a .txt file, JSON lines, or lines on a stream; sounds WAV files; sequences a table whose first
    column numbers them. Names and separators are those of ``options``, with which the data were loaded.

    Raises UsageError for a suffix that does not fit, CannotSave where the place cannot be written.
    """
    options = options or {}
    blocks = [x] if isinstance(x, Tensor) else x
    if not isinstance(space, Image | Text | Audio):
        _write_tables(_tables(space, blocks, context, c, options), to)
        return
    x = join(space, [*blocks])
    if isinstance(space, Text):
        write_texts([space.spell(row) for row in x], to, options)
        return
    if not isinstance(to, str | os.PathLike):
        place = "a folder or an .npz file" if isinstance(space, Image) else "a folder or a .wav file"
        raise UsageError(f"{type(space).__name__} data cannot go to a text stream.", f"Give {place}.")
    if isinstance(space, Image):
        _write_images(space, x, Path(to), context, c)
    else:
        write_audio(space, x, Path(to), context, c)


def _tables(
    space: Space, blocks: Iterable[Tensor], context: Space | None, c: Tensor | None, options: Mapping[str, Any]
) -> Iterator[pa.Table]:
    """Blocks of rows as tables; of sequences all steps, and a first column that numbers them."""
    first = 0
    for x in blocks:
        if isinstance(space, Sequence):
            name = options.get("sequence")
            name = number_of(space) if name in (None, ROWS) else name
            number = torch.arange(first, first + len(x)).repeat_interleave(space.lengths(x)).numpy()
            inside = x.flatten(0, 1)
            columns = {name: number} | _columns(space.step, inside[~inside[:, 0].isinf()])
        else:
            columns = _columns(space, x) | ({} if context is None or c is None else _columns(context, c))
        yield pa.table(columns)
        first += len(x)


def write_texts(
    texts: Listed[str], to: str | os.PathLike[str] | TextIO, options: Mapping[str, Any] | None = None
) -> None:
    """To a stream with a line of dashes between them, or to a file that is read back as these texts.

    A .txt file has between texts what stands between those of the data (``options`` of ``load``), or ENDOFTEXT; JSON
    lines have their key. Raises UsageError for texts that a .txt file cannot tell apart.
    """
    if not isinstance(to, str | os.PathLike):
        to.write(BETWEEN.join(texts) + "\n")
        return
    path, options = Path(to), options or {}
    check_place(Text(), len(texts), path)
    if path.suffix == ".jsonl":
        key = options.get("text") or TEXT
        content = "".join(json.dumps({key: t}, ensure_ascii=False) + "\n" for t in texts)
    else:
        separator = unescaped(options.get("separator") or ENDOFTEXT)
        content = separator.join(texts)
        if content.split(separator) != [*texts] or content.startswith("\ufeff") or "\0" in content:
            what = f"{separator!r}, a zero or a byte order mark"
            raise UsageError(f"{path} cannot hold these texts: some hold {what}.", "End it in .jsonl.")
    with replacing(path) as scratch:
        scratch.write_bytes(content.encode())


Columns: TypeAlias = "Mapping[str, pa.Array | Tensor | np.ndarray[Any, Any] | Listed[Any]]"


def write_columns(to: str | os.PathLike[str] | TextIO, columns: Columns | Iterable[Columns]) -> None:
    """Columns of equal length as CSV or Parquet, or CSV on a stream: one line per row, in the order given.

    They come all at once or in blocks.
    """
    blocks = [columns] if isinstance(columns, Mapping) else columns
    _write_tables((pa.table({k: _array(v) for k, v in block.items()}) for block in blocks), to)


def write_parts(to: Path, files: Listed[str], blocks: Iterable[tuple[int, Columns]]) -> None:
    """A folder with a Parquet file for each of ``files`` that has rows, named and placed as these are to each other.

    Blocks come with the number of their file, in order.
    """
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise CannotSave(f"{to} exists and is not an empty folder.", "Choose another place.")
    root = os.path.commonpath([os.path.dirname(f) for f in files])
    with replacing(to) as scratch:
        scratch.mkdir()
        for number, rows in itertools.groupby(blocks, key=lambda block: block[0]):
            name = os.path.relpath(files[number], root)
            name = name if name.endswith(".parquet") else f"{name}.parquet"
            write_columns(scratch / name, (columns for _, columns in rows))


def _array(values: Any) -> pa.Array:
    return pa.array(values.detach().cpu().numpy() if isinstance(values, Tensor) else values)


def _columns(space: Space, x: Tensor) -> dict[str, pa.Array]:
    if isinstance(space, Table):
        values = x.detach().cpu().reshape(-1, space.dims).numpy()
        return {col.name: decode(col, values[:, j]) for j, col in enumerate(space.columns)}
    if isinstance(space, Label):
        return {"label": pa.array(np.array(space.values)[x.detach().cpu().reshape(-1).numpy()])}
    raise UsageError("Images have no place in a table.", "Write the images themselves to a folder.")


def _check_table(path: Path) -> None:
    if path.suffix.lower() not in TABLE_SUFFIXES:
        raise UsageError(f"{path} does not say which format.", f"End it in {', '.join(TABLE_SUFFIXES)}.")


def _write_tables(tables: Iterable[pa.Table], to: str | os.PathLike[str] | TextIO) -> None:
    """Tables of the same columns, one below the other, each as it comes; there is at least one."""
    if not isinstance(to, str | os.PathLike):
        for text in _csv(tables, ","):
            to.write(text.decode())
        return
    path = Path(to)
    _check_table(path)
    suffix = path.suffix.lower()
    with replacing(path) as scratch:
        if suffix in (".csv", ".tsv"):
            with open(scratch, "wb") as file:
                file.writelines(_csv(tables, "\t" if suffix == ".tsv" else ","))
            return
        rest = iter(tables)
        first = next(rest)
        if suffix == ".parquet":
            writer = pa.parquet.ParquetWriter(scratch, first.schema)
        else:
            writer = pa.ipc.new_file(str(scratch), first.schema)
        with writer:
            for table in itertools.chain([first], rest):
                writer.write_table(table)


def _csv(tables: Iterable[pa.Table], delimiter: str) -> Iterator[bytes]:
    """CSV with quotes only around text that needs them, which pyarrow does for all text or for none.

    Text that would be taken for missing without them needs them, too.
    """
    for k, table in enumerate(tables):
        if k == 0:
            header = io.StringIO()
            csv.writer(header, delimiter=delimiter, lineterminator="\n").writerow(table.column_names)
            yield header.getvalue().encode()
        texts = [c.unique().to_pylist() for c in table.columns if pa.types.is_string(c.type)]
        marks = set('"\r\n' + delimiter)
        special = any(marks & set(v) or v in MISSING for values in texts for v in values if v is not None)
        options = pa.csv.WriteOptions(
            include_header=False, delimiter=delimiter, quoting_style="needed" if special else "none"
        )
        body = pa.BufferOutputStream()
        pa.csv.write_csv(table, body, options)
        yield body.getvalue().to_pybytes()


def _check_images(space: Image, path: Path) -> None:
    if path.suffix == ".npz":
        return
    if path.suffix:
        raise UsageError(f"{path} is no place for images.", "Give a folder or an .npz file.")
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise CannotSave(f"{path} exists and is not an empty folder.", "Choose another place.")
    if space.channels not in (1, 3, 4):
        raise UsageError(f"PNG has no form for {space.channels} channels.", "Write to an .npz file.")


def _write_images(space: Image, x: Tensor, path: Path, context: Space | None, c: Tensor | None) -> None:
    _check_images(space, path)
    pixels = np.moveaxis(x.detach().cpu().reshape(-1, *space.event_shape).numpy(), 1, -1)
    label = c.cpu().reshape(-1).numpy() if isinstance(context, Label) and c is not None else None
    if path.suffix == ".npz":
        arrays: dict[str, Any] = {"x": pixels if space.channels > 1 else pixels[..., 0]}
        if label is not None and isinstance(context, Label):
            arrays["y"] = np.array(context.values)[label]
        with replacing(path) as scratch:
            np.savez_compressed(scratch, **arrays)
        return
    digits = max(5, len(str(len(pixels))))
    with replacing(path) as scratch:
        scratch.mkdir()
        for i, image in enumerate(full_scale(space.levels)[pixels]):
            into = scratch
            if label is not None and isinstance(context, Label):
                into = scratch / context.values[label[i]].replace(os.sep, "_")
                into.mkdir(exist_ok=True)
            Pillow.fromarray(image if space.channels > 1 else image[..., 0]).save(into / f"{i:0{digits}d}.png")
