"""Texts: files, folders of them, lines of JSON, a table's column, as documents or as excerpts of a long text.

Many documents stay whole, and each has its end. Few or very long ones (a book, a program) are cut at line ends into
excerpts in their order, each given the text before it; the split into parts is then by place, not at random.
A plain file of more than IN_MEMORY bytes stays on disk, documents and all; JSON lines and tables are decoded whole.
"""

from __future__ import annotations

import codecs
import json
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from pofx.core.errors import BadValue, CorruptFile, EmptyData, UsageError, WrongShape
from pofx.data.folders import FILE, PARTS, listing, names_below
from pofx.data.options import Options
from pofx.data.packed import unpacked
from pofx.data.ragged import Fetch, NDArray, RaggedRows, RawRagged, cut_up
from pofx.spaces import Text
from pofx.spaces.text import unknown_character

SUFFIXES = (
    "txt", "text", "md", "rst", "tex", "py", "c", "h", "cc", "cpp", "hpp", "java", "js", "ts", "go", "rs", "rb", "php",
    "sh", "sql", "html", "htm", "xml", "css", "toml", "yaml", "yml", "ini", "cfg",
)  # fmt: skip
FEW_DOCUMENTS = 30  # fewer cannot be split into parts as they are: they are cut into excerpts
LONG = 16384  # symbols; where a document is longer, all are cut, too
EXCERPT = 2048  # symbols at most
BEFORE = 1024  # symbols before an excerpt that are kept as its context
MOST_CHARACTERS = 256  # distinct ones up to which a text is read as characters
IN_MEMORY = 2**26  # bytes of one file up to which it is decoded; a larger one stays on disk, as bytes
HEAD = 2**20  # of a file, by which it is judged
CHUNK = 2**20  # bytes of a large file that are looked at together
BOM = codecs.BOM_UTF8  # what some programs write before UTF-8
UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
TEXT = "text"  # the key of JSON lines that holds the text, unless another is named
LONE = re.compile("[\ud800-\udfff]")
ENDOFTEXT = "<|endoftext|>"  # the separator that corpora of documents are published with


def _large_as_bytes(how: Options) -> bool:
    """May a large file stay where it is? Only bytes can."""
    return how.symbols != "characters" and not (how.documents and how.documents.alphabet)


def _between(how: Options, beginning: str) -> str | None:
    """The separator of documents of a text that begins so: of one of a pair of files its lines. Raises UsageError."""
    if how.separator == "":
        raise UsageError("An empty separator stands everywhere.", "Give what is between documents, or none.")
    if how.separator is not None:
        return unescaped(how.separator)
    return ENDOFTEXT if ENDOFTEXT in beginning[:HEAD] else "\n" if how.paired else None


def from_file(path: Path, how: Options) -> RawRagged:
    """A text file (.gz too): one document, or several. A large one is mapped into memory and never read as a whole."""
    on_disk = path.suffix != ".gz" and path.stat().st_size > IN_MEMORY
    data = np.memmap(path, np.uint8, "r") if on_disk else np.frombuffer(unpacked(path), np.uint8)
    if len(data) > IN_MEMORY and _large_as_bytes(how) and data[:2].tobytes() not in UTF16:
        note = f"{len(data)} bytes stay on disk." if on_disk else f"{len(data)} bytes were unpacked, and stay bytes."
        return _from_large(data, path, how, note)
    text = _decode(data.tobytes(), path)
    separator = _between(how, text)
    documents = [text] if separator is None else documents_in(text, separator)
    if how.paired and len(documents) > 1 and not documents[-1].strip():
        documents.pop()  # what stands behind the last separator is no document
    raw = from_documents(documents, how, str(path))
    raw.notes[:0] = _line_ends(text.count("\r\n") if separator == "\n" else 0)
    return raw


def documents_in(text: str, separator: str) -> list[str]:
    """The documents of a text; of lines those of Windows end in \\r\\n."""
    documents = text.split(separator)
    return [d.removesuffix("\r") for d in documents] if separator == "\n" else documents


def _line_ends(count: int) -> list[str]:
    """What is said of lines that end as on Windows."""
    return [f"{count} lines end in \\r\\n: the \\r is no part of their texts."] * (count > 0)


def _from_large(values: NDArray, path: Path, how: Options, note: str) -> RawRagged:
    """Bytes that stay where they are: only the first of them must be UTF-8."""
    head = values[:HEAD].tobytes()
    separator = _between(how, _decode(head, path, whole=False))
    starts, ends = np.array([len(BOM) if head.startswith(BOM) else 0]), np.array([len(values)])
    if separator is not None:
        found = _places(values, separator.encode())
        starts, ends = np.append(starts, found + len(separator.encode())), np.append(found, ends)
    windows = np.zeros(len(ends), np.int64)
    if separator == "\n":
        windows = ((ends > starts) & (values[np.maximum(ends, 1) - 1] == ord("\r"))).astype(np.int64)
    ends = ends - windows
    blank = np.array([_blank(values[a:b]) for a, b in zip(starts, ends, strict=True)])
    if blank.all():
        raise _no_text(str(path))
    if how.paired and separator is not None and blank[-1]:  # what stands behind the last separator is no document
        starts, ends, blank = starts[:-1], ends[:-1], blank[:-1]
    if how.paired and blank.any():
        raise _empty_text(f"{path}, document {int(blank.argmax()) + 1}")
    notes = [note, *_line_ends(int(windows.sum())), *_left_out(int(blank.sum()))]
    return _raw(values, starts[~blank], ends[~blank], "", how, notes)


def _places(values: NDArray, separator: bytes) -> NDArray:
    """Where a separator stands in bytes [T]: from left to right without overlap, as ``split`` finds it."""
    found, place = [np.zeros(0, np.int64)], 0
    while place < len(values):  # those that begin in this chunk, and may end in the next
        chunk = values[place : place + CHUNK + len(separator) - 1].tobytes()
        here = [place + m.start() for m in re.finditer(re.escape(separator), chunk)]
        found.append(np.array(here, np.int64))
        place = max(place + CHUNK, here[-1] + len(separator) if here else 0)
    return np.concatenate(found)


def _blank(values: NDArray) -> bool:
    """Are bytes nothing but white space?"""
    return not any(values[i : i + CHUNK].tobytes().strip() for i in range(0, len(values), CHUNK))


def from_folder(path: Path, how: Options) -> RawRagged:
    """A folder of text files: each a document; train, valid and test sub-folders are its own split, others labels."""
    notes: list[str] = []
    files = listing(path).chosen(is_text, notes)
    documents = [read_text(p) for p in files]
    if how.paired:  # of a file that is a text by itself, the end of its last line is none of it
        whole, documents = documents, [d[:-2] if d.endswith("\r\n") else d.removesuffix("\n") for d in documents]
        ended = sum(d.endswith("\n") for d in whole)
        notes += [f"The line end at the end of {ended} files is no part of their texts."] * (ended > 0)
    first = [p.relative_to(path).parts[0].lower() if len(p.relative_to(path).parts) > 1 else "" for p in files]
    part = np.array([PARTS[f] for f in first]) if files and all(f in PARTS for f in first) else None
    label = np.array(first) if part is None and all(first) and len(set(first)) > 1 else None
    raw = from_documents(documents, how, str(path), label, part, places=[str(p) for p in files])
    raw.notes[:0] = [f"{len(files)} text files were found.", *notes]
    if how.paired:
        raw.files = names_below(path, files)
    return raw


def from_jsonl(path: Path, how: Options) -> RawRagged:
    """One JSON object a line, its text under ``how.text`` ("text" unless said). Lines end at \\n and nowhere else."""
    documents, null, numbers, key = [], [], [], how.text or TEXT
    remedy = f"Give lines with a text {key!r}." if how.documents else "Name it: --text COLUMN."
    entries, places = list[dict[str, Any]](), list[str]()
    for number, entry in json_lines(path):
        if not entries and isinstance(entry, dict):
            if how.paired and key not in entry and TEXT in entry:  # that key is the other's of a pair
                key = TEXT
            how = replace(how, paired=how.paired or any(name in entry for name in how.beside))
        if not isinstance(entry, dict) or key not in entry:
            keys = ", ".join(entry) if isinstance(entry, dict) else kind_of(entry)
            raise WrongShape(f"{path}, line {number} has no text {key!r}; it has {keys}.", remedy)
        text = entry[key]
        if text is None and how.paired:
            raise _empty_text(f"{key!r} of {path}, line {number},")
        if text is None:
            null.append(number)
        elif not isinstance(text, str):
            raise WrongShape(f"{path}, line {number}: {key!r} is {kind_of(text)}, not a text.", remedy)
        elif LONE.search(text):
            raise _half(path, number, key, text)
        else:
            documents.append(text)
            places.append(f"{key!r} of {path}, line {number},")
            numbers.append(number)
            kept = entry if how.beside else {k: v for k, v in entry.items() if k == FILE} if how.paired else {}
            entries.append(kept)
    raw = from_documents(documents, how, str(path), places=places)
    raw.places = [place.replace(f"{key!r} of ", "", 1) for place in places] if how.paired else None
    raw.beside = beside_lines(path, entries, numbers, key)
    how.served.update(["text"] * (key == how.text))
    if null:
        lines = "1 line" if len(null) == 1 else f"{len(null)} lines"
        raw.notes.append(f"Left out: {lines} whose {key!r} is null, the first: line {null[0]}.")
    return raw


def read_text(path: Path) -> str:
    """A text file (.gz too) as one string. Raises BadValue for what is none."""
    return _decode(unpacked(path), path)


def json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """What each line holds that is not blank, and its number from 1. Raises CorruptFile."""
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip(" \t\r"):
            continue
        try:
            yield number, json.loads(line, parse_int=float)  # whatever its size
        except (ValueError, RecursionError) as e:
            raise CorruptFile(f"{path}, line {number} is not JSON: {e}.", "Correct or remove the line.") from e


def beside_lines(path: Path, entries: Sequence[dict[str, Any]], numbers: Sequence[int], key: str) -> dict[str, Fetch]:
    """The values of all other keys, a column of each; what a line does not have is missing."""

    def column(name: str) -> Any:
        values = [entry.get(name) for entry in entries]
        try:
            return pa.chunked_array([pa.array(values)])
        except (pa.ArrowException, ValueError, TypeError) as e:
            raise _unlike(path, name, values, numbers, e) from e

    names = dict.fromkeys(name for entry in entries for name in entry if name != key)
    return {name: partial(column, name) for name in names}


def _half(path: Path, number: int, key: str, text: str) -> BadValue:
    half = LONE.findall(text)[0]
    return BadValue(
        f"{path}, line {number}: {key!r} holds {half!r}, half of a character (a lone surrogate).",
        "Correct or remove the line.",
    )


def _unlike(path: Path, name: str, values: Sequence[Any], numbers: Sequence[int], error: Exception) -> BadValue:
    """Which of the values of a key, at these lines, make up no column."""
    there = [(n, v) for n, v in zip(numbers, values, strict=True) if v is not None]
    first, kind = there[0][0], kind_of(there[0][1])
    for number, value in there:
        if isinstance(value, str) and LONE.search(value):
            return _half(path, number, name, value)
        if kind_of(value) != kind:
            return BadValue(
                f"{path}, line {number}: {name!r} is {kind_of(value)}; in line {first} it is {kind}.",
                "Make them all alike.",
            )
    return BadValue(f"{path}: {name!r} makes up no column: {error}.", "Make its values all alike.")


def kind_of(value: object) -> str:
    """What JSON calls a value."""
    names = {bool: "true or false", float: "a number", list: "a list", dict: "an object", str: "a string"}
    return names.get(type(value), "null")


def from_standard_library(how: Options) -> RawRagged:
    """The source of Python's standard library: a text that every installation carries."""
    import sysconfig

    root = Path(sysconfig.get_paths()["stdlib"])
    files = sorted(p for p in root.glob("*.py"))
    raw = from_documents([p.read_text(errors="ignore") for p in files], how, "the standard library")
    raw.notes.insert(0, f"The source of {len(files)} modules of Python's standard library.")
    return raw


def from_documents(
    documents: Iterable[str],
    how: Options,
    where: str = "the source",
    label: NDArray | None = None,
    part: NDArray | None = None,
    places: Sequence[str] | None = None,
) -> RawRagged:
    """Documents as they are, or cut into excerpts where there are few; ``places`` names each in errors.

    Raises EmptyData where nothing is left, BadValue where a document of a pair is empty.
    """
    texts = list(documents)
    kept = [i for i, t in enumerate(texts) if t.strip()]
    if not kept:
        raise _no_text(where)
    several = len(texts) > 1

    def place(i: int) -> str:
        return places[i] if places else f"{where}, document {i + 1}" if several else where

    if how.paired and len(kept) < len(texts):
        raise _empty_text(place(next(i for i, t in enumerate(texts) if not t.strip())))
    notes = _left_out(len(texts) - len(kept))
    texts = [texts[i] for i in kept]
    label, part = (None if a is None else a[kept] for a in (label, part))
    alphabet = how.documents.alphabet if how.documents else _alphabet(texts, how.symbols, notes)
    values, lengths = _join(_encoded(texts, map(place, kept), alphabet))
    ends = lengths.cumsum() - 1
    return _raw(values, ends - lengths + 1, ends, alphabet, how, notes, label, part)


def from_column(
    name: str,
    column: Any,
    how: Options,
    label: NDArray | None = None,
    part: NDArray | None = None,
    places: Sequence[str] | None = None,
) -> RawRagged:
    """The values of a column (Arrow or NumPy) as texts, as ``from_documents`` takes them."""
    values = column.to_pylist() if hasattr(column, "to_pylist") else column.tolist()
    texts = ["" if v is None else v.decode(errors="replace") if isinstance(v, bytes) else str(v) for v in values]
    rows = places or [f"row {i}," for i in range(1, len(texts) + 1)]
    return from_documents(texts, how, f"column {name!r}", label, part, [f"{row} {name!r}" for row in rows])


def _encoded(texts: Iterable[str], places: Iterable[str], alphabet: str) -> Iterator[NDArray]:
    """Each text by ``encode``. Raises BadValue, with its place."""
    for text, place in zip(texts, places, strict=True):
        try:
            yield encode(text, alphabet)
        except BadValue as e:
            raise BadValue(f"{place.removesuffix(',')}: {e.problem}", e.remedy) from e


def _no_text(where: str) -> EmptyData:
    return EmptyData(f"{where} holds no text.", "Give a file with text.")


def _empty_text(place: str) -> BadValue:
    return BadValue(f"{place} is empty.", "Write its text, or remove it together with what belongs to it.")


def _left_out(count: int) -> list[str]:
    return [f"{count} empty documents were left out."] * (count > 0)


def _raw(
    values: NDArray,
    starts: NDArray,
    ends: NDArray,
    alphabet: str,
    how: Options,
    notes: list[str],
    label: NDArray | None = None,
    part: NDArray | None = None,
) -> RawRagged:
    """Documents values[starts[i] : ends[i]], with something between them: as they are, or cut into excerpts."""
    longest = int((ends - starts).max())
    few = len(starts) < FEW_DOCUMENTS or longest > LONG
    rows = RaggedRows(values, starts, ends, -1, torch.int64)
    if how.documents.has_eos if how.documents else not few or part is not None or how.paired:
        return RawRagged(Text(alphabet, True, longest), rows, label=label, part=part, notes=notes)
    cut, before, _ = cut_up(rows, EXCERPT, BEFORE, alphabet.find("\n") if alphabet else 10)
    many = "One document was" if len(rows) == 1 else f"{len(rows)} documents were"
    notes.append(f"{many} cut into {len(cut)} excerpts of up to {EXCERPT} symbols, each given the text before it.")
    return RawRagged(Text(alphabet, False, int(cut.lengths.max())), cut, notes=notes, before=before)


def encode(text: str, alphabet: str) -> NDArray:
    """A string as the numbers of its characters, or its UTF-8 bytes for the alphabet "". Raises BadValue."""
    if not alphabet:
        return np.frombuffer(text.encode(), np.uint8)
    known = np.frombuffer(alphabet.encode("utf-32-le"), np.uint32)
    order = np.argsort(known)
    out = np.empty(len(text), np.uint8 if len(alphabet) <= 256 else np.uint16)
    for start in range(0, len(text), CHUNK):  # a long text takes little more memory than its numbers
        points = np.frombuffer(text[start : start + CHUNK].encode("utf-32-le"), np.uint32)
        place = np.searchsorted(known[order], points).clip(max=len(known) - 1)
        number = order[place]
        if (wrong := known[number] != points).any():
            i = start + int(wrong.argmax())
            raise unknown_character(Text(alphabet), text[i], i)
        out[start : start + CHUNK] = number
    return out


def is_text(path: Path) -> bool:
    return path.name.lower().removesuffix(".gz").rpartition(".")[2] in SUFFIXES


def unescaped(separator: str) -> str:
    """A separator as it is typed, with \\n and the like as what they mean."""
    return separator.encode("latin-1", "backslashreplace").decode("unicode_escape")


def _alphabet(texts: Sequence[str], symbols: str, notes: list[str]) -> str:
    if symbols == "bytes":
        return ""
    found: set[str] = set()
    for text in texts:
        found.update(text)
    if symbols == "auto" and len(found) > MOST_CHARACTERS:
        notes.append(f"{len(found)} different characters: read as bytes (--symbols characters tells them apart).")
        return ""
    if len(found) > 65536:
        raise UsageError(f"{len(found)} different characters are more than 65536.", "Read bytes: --symbols bytes.")
    return "".join(sorted(found))


def _join(parts: Iterator[NDArray]) -> tuple[NDArray, NDArray]:
    """Arrays, a gap after each that no excerpt reaches over, and their lengths with it; large ones in a file."""
    lengths, dtype = [], np.dtype(np.uint8)
    with tempfile.TemporaryFile() as file:  # the mapping outlives the handle
        for part in parts:
            dtype = part.dtype
            lengths.append(len(part) + 1)
            file.write(part.tobytes() + bytes(part.itemsize))
        file.flush()
        values = np.memmap(file, dtype, "r")
    in_memory = values.nbytes <= IN_MEMORY
    return np.array(values) if in_memory else values, np.array(lengths, np.int64)


def _decode(data: bytes, path: Path, whole: bool = True) -> str:
    """UTF-8 text with line ends as they are; UTF-16 where its mark stands first. Raises BadValue for a binary file."""
    if data[:2] in UTF16:
        try:
            return data.decode("utf-16")
        except UnicodeDecodeError as e:
            raise BadValue(
                f"{path} begins as UTF-16 does, but byte {e.start} is {e.reason}.", "Give a text file."
            ) from e
    data = data.removeprefix(BOM)
    if b"\0" in data[: 1 << 16]:
        raise BadValue(
            f"{path} is binary: byte {data.index(0)} is 0.",
            "Give a text file (UTF-16 without its mark is converted so: iconv -f utf-16le -t utf-8 OLD > NEW).",
        )
    try:
        return data.decode()
    except UnicodeDecodeError as e:
        if not whole and e.start > len(data) - 4:  # a character at the end was cut
            return data[: e.start].decode()
        raise BadValue(
            f"{path} is not UTF-8 text: byte {data[e.start]:#x} at {e.start}.",
            "Convert it, for example: iconv -f latin1 -t utf-8 OLD > NEW.",
        ) from e
