"""Tables that come in columns: Parquet, Arrow files and streams, pandas and polars frames."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet

from pofx.core.errors import BadValue, RaggedTable
from pofx.core.memory import available
from pofx.data.raw import RawTable, corrupt, table_of
from pofx.data.tabular import Array

NUMBERS = 4  # that one value may take while it is read
# what pyarrow raises on damaged files: names, and messages about them, may be no UTF-8
DAMAGE = (pa.ArrowException, OSError, UnicodeDecodeError)


def from_parquet(files: Mapping[str, Callable[[], Any]], where: str) -> RawTable:
    """The rows of Parquet files one after the other; columns are read when asked for.

    ``files``: name -> what opens it (its path, or a file object).
    """
    heads = {name: _footer(name, file) for name, file in files.items()}
    first, *others = heads
    names = heads[first].schema.to_arrow_schema().names
    for name in others:
        if (found := heads[name].schema.to_arrow_schema().names) != names:
            raise RaggedTable(
                f"{name} has the columns {', '.join(found[:12])}; {first} has {', '.join(names[:12])}.",
                "Give files of the same columns.",
            )

    def column(j: int) -> Array:
        parts = [_column(name, file, heads[name], names[j]) for name, file in files.items()]
        try:
            return pa.concat_tables(parts, promote_options="permissive").column(0)
        except pa.ArrowException as e:
            kinds = ", ".join(dict.fromkeys(str(part.schema.field(0).type) for part in parts))
            raise BadValue(f"Column {names[j]!r} is of {kinds} in the files of {where}.", "Write it alike.") from e

    return table_of(names, column, sum(head.num_rows for head in heads.values()), where)


def _footer(name: str, file: Callable[[], Any]) -> Any:
    """What a Parquet file says of itself, where it holds as much."""
    try:
        head = pa.parquet.read_metadata(file())
        groups = [head.row_group(i) for i in range(head.num_row_groups)]
        held = sum(min(g.num_rows, g.column(0).num_values) if g.num_columns else 0 for g in groups)
    except DAMAGE as e:
        raise corrupt(name, "Parquet", e) from e
    if held < head.num_rows:  # memory is taken for as many rows as are told
        raise corrupt(name, "Parquet", f"it tells of {head.num_rows} rows and holds {held}")
    return head


def _column(name: str, file: Callable[[], Any], head: Any, column: str) -> pa.Table:
    try:
        table = pa.parquet.ParquetFile(file(), metadata=head).read(columns=[column])
        table.validate(full=True)
    except DAMAGE as e:
        # a damaged file may ask for more memory than there is, too
        if isinstance(e, MemoryError) and NUMBERS * 8 * head.num_rows > available():
            raise
        raise corrupt(name, "Parquet", e) from e
    if len(table) != head.num_rows or table.column_names != [column]:
        raise corrupt(name, "Parquet", f"column {column!r} has {len(table)} of {head.num_rows} rows")
    return table


def from_ipc(path: Path) -> RawTable:
    """An Arrow file or stream; all of it is checked before use, since offsets that point elsewhere end the process."""
    try:
        data = pa.py_buffer(path.read_bytes())
        if data.slice(0, 4).to_pybytes() == b"FEA1":
            raise corrupt(path, "Arrow", "it is Feather of version 1, which no longer is a format of Arrow's")
        try:
            table = pa.ipc.open_file(data).read_all()
        except pa.ArrowInvalid:
            table = pa.ipc.open_stream(data).read_all()
        table.validate(full=True)
        return from_arrow(table, str(path))
    except DAMAGE as e:
        raise corrupt(path, "Arrow", e) from e


def from_arrow(table: pa.Table, where: str = "the table") -> RawTable:
    return table_of(table.column_names, table.column, table.num_rows, where)


def from_pandas(frame: Any) -> RawTable:
    """A pandas frame, or a Series as a frame of one column. An index that says something is told to be left out."""
    if frame.ndim == 1:
        frame = frame.to_frame(frame.name if frame.name is not None else "x1")

    names = [str(c) for c in frame.columns]
    raw = _frame(names, len(frame), lambda j: frame.iloc[:, j], _pandas_array, "frame[column].astype(str)")
    index = frame.index
    if any(n is not None for n in index.names) or index.dtype.kind not in "iu":
        named = ", ".join(repr(n) for n in index.names if n is not None) or f"of type {index.dtype}"
        raw.notes.append(f"The index ({named}) was left out; keep it as columns with frame.reset_index().")
    return raw


def _pandas_array(values: Any) -> pa.Array:
    """None, NaN, NaT and pd.NA are null; texts stay as they are."""
    if hasattr(values, "sparse"):
        values = values.sparse.to_dense()
    if values.dtype.name == "category" and values.cat.categories.dtype.name == "interval":
        values = values.cat.rename_categories(str)
    try:
        return pa.array(values, from_pandas=True)
    except OverflowError:  # whole numbers beyond 64 bits: identifiers, by their digits
        whole = [None if v is None or v != v else int(v) for v in values]
        if any(w is not None and w != v for w, v in zip(whole, values, strict=True)):
            raise
        return pa.array([None if w is None else str(w) for w in whole])


def from_polars(source: Any) -> RawTable:
    """A polars frame, a lazy one (which is collected) or a Series."""
    library = type(source).__name__
    frame = source.collect() if library == "LazyFrame" else source.to_frame() if library == "Series" else source

    cast = "frame.cast({column: polars.String})"
    return _frame(frame.columns, frame.height, frame.to_series, lambda series: series.to_arrow(), cast)


def _frame(
    names: Sequence[str], rows: int, series: Callable[[int], Any], array: Callable[[Any], pa.Array], cast: str
) -> RawTable:
    """The columns of a frame by their numbers, each as an array; what ``cast`` would do about one that is none."""

    def column(j: int) -> Array:
        values = series(j)
        try:
            return pa.chunked_array([array(values)])
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as e:
            problem = f"Column {names[j]!r} of type {values.dtype} cannot be read: {str(e).splitlines()[0]}."
            raise BadValue(problem, f"Convert it: {cast}.") from e

    return table_of(names, column, rows, "the frame")
