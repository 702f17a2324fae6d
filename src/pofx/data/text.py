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
from pathlib import Path

import numpy as np
import torch

from pofx.core.errors import BadValue, CorruptFile, EmptyData, UsageError, WrongShape
from pofx.data.folders import PARTS, listing
from pofx.data.options import Options
from pofx.data.packed import unpacked
from pofx.data.ragged import NDArray, RaggedRows, RawRagged, cut_up
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
    """The separator of documents of a text that begins so. Raises UsageError."""
    if how.separator == "":
        raise UsageError("An empty separator stands everywhere.", "Give what is between documents, or none.")
    found = how.separator is None and ENDOFTEXT in beginning[:HEAD]
    return ENDOFTEXT if found else None if how.separator is None else unescaped(how.separator)


def from_file(path: Path, how: Options) -> RawRagged:
    """A text file (.gz too): one document, or several. A large one is mapped into memory and never read as a whole."""
    on_disk = path.suffix != ".gz" and path.stat().st_size > IN_MEMORY
    data = np.memmap(path, np.uint8, "r") if on_disk else np.frombuffer(unpacked(path), np.uint8)
    if len(data) > IN_MEMORY and _large_as_bytes(how) and data[:2].tobytes() not in UTF16:
        note = f"{len(data)} bytes stay on disk." if on_disk else f"{len(data)} bytes were unpacked, and stay bytes."
        return _from_large(data, path, how, note)
    text = _decode(data.tobytes(), path)
    separator = _between(how, text)
    documents = [text] if separator is None else text.split(separator)
    return from_documents(documents, how, str(path))


def _from_large(values: NDArray, path: Path, how: Options, note: str) -> RawRagged:
    """Bytes that stay where they are: only the first of them must be UTF-8."""
    head = values[:HEAD].tobytes()
    separator = _between(how, _decode(head, path, whole=False))
    starts, ends = np.array([len(BOM) if head.startswith(BOM) else 0]), np.array([len(values)])
    if separator is not None:
        found = _places(values, separator.encode())
        starts, ends = np.append(starts, found + len(separator.encode())), np.append(found, ends)
    blank = np.array([_blank(values[a:b]) for a, b in zip(starts, ends, strict=True)])
    if blank.all():
        raise _no_text(str(path))
    notes = [note, *_left_out(int(blank.sum()))]
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
    files = sorted(listing(path).chosen(is_text, notes))
    documents = [_decode(unpacked(p), p) for p in files]
    first = [p.relative_to(path).parts[0].lower() if len(p.relative_to(path).parts) > 1 else "" for p in files]
    part = np.array([PARTS[f] for f in first]) if files and all(f in PARTS for f in first) else None
    label = np.array(first) if part is None and all(first) and len(set(first)) > 1 else None
    raw = from_documents(documents, how, str(path), label, part)
    raw.notes[:0] = [f"{len(files)} text files were found.", *notes]
    return raw


def from_jsonl(path: Path, how: Options) -> RawRagged:
    """One JSON object a line, its text under ``how.text`` ("text" unless said). Lines end at \\n and nowhere else."""
    documents, null, key = [], [], how.text or TEXT
    remedy = f"Give lines with a text {key!r}." if how.documents else "Name it: --text COLUMN."
    for number, line in enumerate(_decode(unpacked(path), path).split("\n"), 1):
        if not line.strip(" \t\r"):
            continue
        try:
            entry = json.loads(line, parse_int=float)  # numbers are not used, whatever their size
        except (ValueError, RecursionError) as e:
            raise CorruptFile(f"{path}, line {number} is not JSON: {e}.", "Correct or remove the line.") from e
        if not isinstance(entry, dict) or key not in entry:
            keys = ", ".join(entry) if isinstance(entry, dict) else _kind(entry)
            raise WrongShape(f"{path}, line {number} has no text {key!r}; it has {keys}.", remedy)
        text = entry[key]
        if text is None:
            null.append(number)
        elif not isinstance(text, str):
            raise WrongShape(f"{path}, line {number}: {key!r} is {_kind(text)}, not a text.", remedy)
        elif lone := LONE.search(text):
            raise BadValue(
                f"{path}, line {number}: {key!r} holds {lone[0]!r}, half of a character (a lone surrogate).",
                "Correct or remove the line.",
            )
        else:
            documents.append(text)
    raw = from_documents(documents, how, str(path))
    if null:
        lines = "1 line" if len(null) == 1 else f"{len(null)} lines"
        raw.notes.append(f"Left out: {lines} whose {key!r} is null, the first: line {null[0]}.")
    return raw


def _kind(value: object) -> str:
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
) -> RawRagged:
    """Documents as they are, or cut into excerpts where there are few. Raises EmptyData where nothing is left."""
    texts = list(documents)
    kept = [i for i, t in enumerate(texts) if t.strip()]
    if not kept:
        raise _no_text(where)
    notes = _left_out(len(texts) - len(kept))
    texts = [texts[i] for i in kept]
    label, part = (None if a is None else a[kept] for a in (label, part))
    alphabet = how.documents.alphabet if how.documents else _alphabet(texts, how.symbols, notes)
    values, lengths = _join(encode(text, alphabet) for text in texts)
    ends = lengths.cumsum() - 1
    return _raw(values, ends - lengths + 1, ends, alphabet, how, notes, label, part)


def _no_text(where: str) -> EmptyData:
    return EmptyData(f"{where} holds no text.", "Give a file with text.")


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
    if how.documents.has_eos if how.documents else not few or part is not None:
        return RawRagged(Text(alphabet, True, longest), rows, label, part, notes=notes)
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
