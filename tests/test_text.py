"""Texts as data: documents, excerpts, separators, JSON lines, columns, folders, and what is wrong with them by name."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
import torch

import pofx
from pofx.core.errors import BadValue, CorruptFile, EmptyData, MissingSource, UsageError, WrongShape
from pofx.data import text
from pofx.data.options import Options
from pofx.data.ragged import RaggedRows
from pofx.data.rows import read_rows
from pofx.data.write import write_texts
from pofx.spaces import Label, Text

WORDS = ["one", "two", "three", "four", "five", "six", "seven"]


def spelled(space: Text, rows: RaggedRows | torch.Tensor) -> list[str]:
    return [space.spell(row) for row in rows[:]]


def every(data: pofx.Data) -> list[str]:
    assert isinstance(data.space, Text)
    return [t for part in (data.train, data.valid, data.test) for t in spelled(data.space, part.x)]


def lines(n: int) -> list[str]:
    return [f"{WORDS[i % 7]} {WORDS[i * i % 7]} {i}" for i in range(n)]


# -------------------------------------------------------------------------------- documents and excerpts


def test_documents_stay_whole(tmp_path: Path) -> None:
    documents = lines(100)
    path = tmp_path / "poems.txt"
    path.write_text("\n".join(documents))
    data = pofx.load(path, separator="\\n", kind="text")
    assert isinstance(data.space, Text)
    assert data.space.has_eos
    assert data.space.alphabet == "".join(sorted(set("".join(documents))))
    assert data.space.length == max(map(len, documents))
    assert sorted(every(data)) == sorted(documents)
    assert [len(p) for p in (data.train, data.valid, data.test)] == [80, 10, 10]
    assert data.train.before is None
    order = data.train.rows
    assert order is not None
    assert spelled(data.space, data.train.x) == [documents[i] for i in order.tolist()]


@pytest.mark.parametrize("separator", ["\\n\\n", "<|endoftext|>", None, "§", "\\t", "——"])
def test_separators(tmp_path: Path, separator: str | None) -> None:
    documents = [f"a{line}\nb" for line in lines(40)]
    between = {None: "<|endoftext|>", "\\n\\n": "\n\n", "\\t": "\t"}.get(separator, separator)
    assert between is not None
    path = tmp_path / "corpus.txt"
    path.write_text(between.join([*documents, "", "  "]))
    data = pofx.load(path, separator=separator, kind="text")
    assert sorted(every(data)) == sorted(documents)
    assert any("2 empty documents" in note for note in data.notes)


def test_a_long_text_becomes_excerpts_in_order(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    book = "".join("".join(rng.choice(list("abcd "), rng.integers(5, 120))) + "\n" for _ in range(600))
    path = tmp_path / "book.txt"
    path.write_text(book)
    data = pofx.load(path)
    assert isinstance(data.space, Text)
    assert not data.space.has_eos
    assert "".join(every(data)) == book
    assert data.space.length <= text.EXCERPT
    assert all(t.endswith("\n") for t in every(data)[:-1])
    place = 0
    for part in (data.train, data.valid, data.test):
        for x, before in zip(spelled(data.space, part.x), spelled(data.space, part.before), strict=True):
            assert before == book[max(0, place - text.BEFORE) : place]
            place += len(x)
    assert "the first 80% train" in data.split
    runs, first = data.train.x.runs()
    assert len(runs) == 1
    assert first.tolist() == [0]


def test_few_documents_are_cut_and_none_reaches_into_another(tmp_path: Path) -> None:
    folder = tmp_path / "sources"
    (folder / "sub").mkdir(parents=True)
    files = {"a.py": "x = 1\n" * 1000, "b.py": "y = 2\n" * 900, "sub/c.txt": "zzz\n" * 800}
    for name, content in files.items():
        (folder / name).write_text(content)
    (folder / ".hidden.py").write_text("no")
    (folder / "d.bin").write_bytes(b"\0\1")
    data = pofx.load(folder)
    assert isinstance(data.space, Text)
    assert not data.space.has_eos
    assert "3 text files were found." in data.notes
    assert "".join(every(data)) == "".join(files[k] for k in sorted(files))
    for part in (data.train, data.valid, data.test):
        for x, before in zip(spelled(data.space, part.x), spelled(data.space, part.before), strict=True):
            assert len({c for c in x + before if c in "xyz"}) == 1
    assert len(data.train.x.runs()[0]) <= 3


def test_a_folder_of_documents_with_labels_or_parts(tmp_path: Path) -> None:
    for i, line in enumerate(lines(60)):
        place = tmp_path / "labelled" / ("good", "bad")[i % 2]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{i:02}.txt").write_text(line)
        place = tmp_path / "split" / ("train", "valid", "test")[0 if i < 40 else 1 + i % 2]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{i:02}.txt").write_text(line)
    data = pofx.load(tmp_path / "labelled", given="label")
    assert data.context == Label(("bad", "good"))
    for part in (data.train, data.test):
        assert part.c is not None
        for x, c in zip(spelled(data.space, part.x), part.c.tolist(), strict=True):  # type: ignore[arg-type]
            assert int(x.split()[-1]) % 2 == 1 - c
    data = pofx.load(tmp_path / "split")
    assert [len(p) for p in (data.train, data.valid, data.test)] == [40, 10, 10]
    assert "own" in data.split


def test_json_lines_and_columns(tmp_path: Path) -> None:
    documents = [*lines(48), 'quo"ted, é', "line\nbreak"]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps({"text": t, "n": i}) for i, t in enumerate(documents)) + "\n\n")
    assert sorted(every(pofx.load(path))) == sorted(documents)
    path.write_text("\n".join(json.dumps({"body": t}, ensure_ascii=False) for t in documents))
    assert sorted(every(pofx.load(path, text="body"))) == sorted(documents)
    table = pa.table({"id": list(range(50)), "verse": documents})
    pyarrow.csv.write_csv(table, tmp_path / "a.csv")
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    for name in ("a.csv", "a.parquet"):
        assert sorted(every(pofx.load(tmp_path / name, text="verse"))) == sorted(documents)
    with pytest.raises(UsageError, match=r"no column 'verses' of texts"):
        pofx.load(tmp_path / "a.csv", text="verses")
    with pytest.raises(WrongShape, match=r"line 1 has no text 'text'; it has body"):
        pofx.load(path)
    path.write_text('{"text": "a"}\n{"text": \n')
    with pytest.raises(CorruptFile, match=r"line 2 is not JSON"):
        pofx.load(path)


ENDS_OF_LINES = ("\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\r")  # of str.splitlines


@pytest.mark.parametrize("end", ENDS_OF_LINES)
def test_lines_end_at_a_line_feed_alone(tmp_path: Path, end: str) -> None:
    documents = [f"{line}{end}and{end}" for line in lines(40)]
    for between in ("\n", "\r\n"):
        content = between.join(
            '{"text": "' + d.replace("\r", "\\r").replace(end, end if end > "\x1f" else f"\\u{ord(end):04x}") + '"}'
            for d in documents
        )
        (tmp_path / "a.jsonl").write_bytes(content.encode())
        assert sorted(every(pofx.load(tmp_path / "a.jsonl"))) == sorted(documents)
    (tmp_path / "a.txt").write_bytes("\n".join(documents).encode())
    kept = [d.removesuffix("\r") for d in documents]  # \r\n ends a line, too
    assert sorted(every(pofx.load(tmp_path / "a.txt", separator="\\n", kind="text"))) == sorted(kept)
    with pytest.raises(UsageError, match=r"cannot hold these texts: some hold '.n', a carriage return before it"):
        write_texts(["a\r", "b"], tmp_path / "b.txt", {"separator": "\\n"})


def test_json_lines_that_are_no_texts_are_named_or_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    good = "".join(json.dumps({"body": t}) + "\n" for t in lines(40))
    for line, said in (
        ('{"body": "ab\\udc9fc"}', r"line 41: 'body' holds '.udc9f', half of a character"),
        ('{"body": 12}', r"line 41: 'body' is a number, not a text"),
        ('{"body": ["a"]}', r"line 41: 'body' is a list"),
        ("[" * 10**5, r"line 41 is not JSON: maximum recursion"),
        ("7", r"line 41 has no text 'body'; it has a number"),
    ):
        path.write_text(f"{good}{line}\n{good}")
        with pytest.raises((BadValue, CorruptFile, WrongShape), match=said):
            pofx.load(path, text="body")
    path.write_text(good + '{"body": null}\n' * 3 + good + '{"body": "\\ud83d\\ude00", "id": ' + "9" * 9000 + "}\n")
    data = pofx.load(path, text="body")
    assert sorted(every(data)) == sorted([*lines(40), *lines(40), "\U0001f600"])
    assert "Left out: 3 lines whose 'body' is null, the first: line 41." in data.notes
    new = tmp_path / "new.jsonl"
    new.write_text('{"text": "one"}\n')
    with pytest.raises(WrongShape, match=r"it has text. Give lines with a text 'body'"):
        read_rows(data.space, None, new, options=data.options)


@pytest.mark.parametrize("code", ["utf-16", "utf-16-be", "utf-8-sig"])
def test_texts_of_other_encodings(tmp_path: Path, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = [f"naïve {line} ☃\U0001f600" for line in lines(40)]
    mark = "\ufeff" if code == "utf-16-be" else ""
    (tmp_path / "a.txt").write_bytes((mark + "\r\n".join(documents)).encode(code))
    monkeypatch.setattr(text, "IN_MEMORY", 500)  # too large for the memory: yet no file of UTF-16 can stay bytes
    data = pofx.load(tmp_path / "a.txt", separator="\\r\\n", kind="text")
    assert sorted(every(data)) == sorted(documents)
    if code != "utf-8-sig":
        (tmp_path / "b.txt").write_bytes((mark + "one two").encode(code)[:-1])
        with pytest.raises(BadValue, match="begins as UTF-16 does, but byte"):
            pofx.load(tmp_path / "b.txt")
        (tmp_path / "c.txt").write_bytes("one two".encode("utf-16-le"))
        with pytest.raises(BadValue, match="is binary: byte 1 is 0.*iconv -f utf-16le"):
            pofx.load(tmp_path / "c.txt")


def test_a_folder_of_compressed_files(tmp_path: Path) -> None:
    for i, line in enumerate(lines(40)):
        (tmp_path / f"{i:02}.txt.gz").write_bytes(gzip.compress(line.encode()))
    assert sorted(every(pofx.load(tmp_path))) == sorted(lines(40))
    whole = (tmp_path / "07.txt.gz").read_bytes()
    (tmp_path / "07.txt.gz").write_bytes(whole[:-9])
    with pytest.raises(CorruptFile, match=r"07.txt.gz cannot be read as gzip"):
        pofx.load(tmp_path)


@pytest.mark.parametrize("suffix", ["txt", "md", "jsonl"])
def test_damaged_gzip_is_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}.gz"
    whole = gzip.compress(("\n".join(lines(400))).encode(), mtime=0)
    middle = len(whole) // 2
    for damaged in (whole[:-3], whole[:middle], whole[:10] + b"\xff" + whole[11:], whole[:-8] + b"1234" + whole[-4:]):
        path.write_bytes(damaged)
        with pytest.raises(CorruptFile, match="cannot be read as gzip"):
            pofx.load(path)


def test_a_large_compressed_text_stays_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "IN_MEMORY", 1000)
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress("\n".join(lines(200)).encode()))
    data = pofx.load(tmp_path / "a.txt.gz", separator="\\n", kind="text")
    assert isinstance(data.space, Text)
    assert data.space.alphabet == ""
    assert sorted(every(data)) == sorted(lines(200))
    assert any("were unpacked, and stay bytes" in n for n in data.notes)


# --------------------------------------------------------------------------------- what is sampled is read

ANY = ["a\u2028b\x85", "tab\tand\x0cfeed", 'quo"te \\', "\r\n crlf", "\U0001f600 ☃", "\x1b]52;c;\x07", "a,b\nc", " x "]


@pytest.mark.parametrize("suffix", [".jsonl", ".txt"])
@pytest.mark.parametrize("options", [{}, {"text": "body"}, {"separator": "§"}, {"separator": "\\n\\n"}])
def test_texts_are_written_as_they_are_read(tmp_path: Path, suffix: str, options: dict[str, str]) -> None:
    documents = ANY * 5
    source = tmp_path / "source.jsonl"
    source.write_text("".join(json.dumps({"text": t, "body": t}) + "\n" for t in documents))
    data = pofx.load(source, **options)
    assert isinstance(data.space, Text)
    out = tmp_path / f"out{suffix}"
    write_texts(documents, out, data.options)
    back = read_rows(data.space, None, out, options=data.options)
    assert spelled(data.space, back.x) == documents


def test_texts_that_a_plain_file_cannot_hold(tmp_path: Path) -> None:
    for texts, options in (
        (["a\nb", "c"], {"separator": "\\n"}),
        (["\0"], {}),
        (["\ufeffa"], {}),
        (["<|endoftext|>"], {}),
    ):
        with pytest.raises(UsageError, match=r"cannot hold these texts.*End it in .jsonl"):
            write_texts(texts, tmp_path / "out.txt", options)
        write_texts(texts, tmp_path / "out.jsonl", options)
    with pytest.raises(UsageError, match="no place for texts"):
        write_texts(["a"], tmp_path / "out.csv")


def test_compressed_files(tmp_path: Path) -> None:
    documents = lines(40)
    with gzip.open(tmp_path / "a.txt.gz", "wt") as file:
        file.write("\n".join(documents))
    assert sorted(every(pofx.load(tmp_path / "a.txt.gz", separator="\\n", kind="text"))) == sorted(documents)
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as file:
        file.write("\n".join(json.dumps({"text": t}) for t in documents))
    assert sorted(every(pofx.load(tmp_path / "a.jsonl.gz"))) == sorted(documents)
    whole = (tmp_path / "a.txt.gz").read_bytes()
    (tmp_path / "cut.md.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CorruptFile, match=r"cut.md.gz cannot be read"):
        pofx.load(tmp_path / "cut.md.gz")


# --------------------------------------------------------------------------------------------- symbols


def test_characters_or_bytes(tmp_path: Path) -> None:
    documents = [f"naïve {line} ☃" for line in lines(40)]
    path = tmp_path / "a.txt"
    path.write_text("\n".join(documents), encoding="utf-8")
    as_bytes = pofx.load(path, separator="\\n", symbols="bytes")
    assert isinstance(as_bytes.space, Text)
    assert as_bytes.space.alphabet == ""
    assert sorted(every(as_bytes)) == sorted(documents)
    assert as_bytes.space.units(as_bytes.train.x[:]).tolist() == as_bytes.train.x.lengths.tolist()
    as_characters = pofx.load(path, separator="\\n", symbols="characters")
    assert isinstance(as_characters.space, Text)
    assert "☃" in as_characters.space.alphabet
    sizes = as_characters.space.units(as_characters.train.x[:])  # in bytes, whatever the symbols are
    longer = (sizes - as_characters.train.x.lengths).tolist()
    assert set(longer) == {3}
    many = "".join(chr(0x4E00 + i) for i in range(400))
    path.write_text("\n".join(many[i : i + 10] for i in range(0, 400, 10)), encoding="utf-8")
    found = pofx.load(path, separator="\\n")
    assert isinstance(found.space, Text)
    assert found.space.alphabet == ""
    assert any("401 different characters" in n or "400 different characters" in n for n in found.notes)


def test_new_texts_are_read_as_the_old(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("\n".join(lines(60)))
    data = pofx.load(path, separator="\\n", kind="text")
    path.write_text("two one 7\nsix")
    part = read_rows(data.space, None, path, options=data.options)
    assert spelled(data.space, part.x) == ["two one 7", "six"]  # type: ignore[arg-type]
    path.write_text("two\nQ")
    with pytest.raises(BadValue, match=r"The character 'Q' at 0 is none of the \d+ of these texts"):
        read_rows(data.space, None, path, options=data.options)
    with pytest.raises(BadValue, match=r"The character 'é' at 1"):
        data.space.parse(["oé"])  # type: ignore[union-attr]


def test_line_ends_and_byte_order_marks(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines(40)).encode())
    data = pofx.load(path, separator="\\r\\n", kind="text")
    assert sorted(every(data)) == sorted(lines(40))


# ------------------------------------------------------------------------------------------------ errors


def test_what_is_no_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.md"
    path.write_bytes(b"")
    with pytest.raises(EmptyData, match=r"a.md is empty"):
        pofx.load(path)
    path.write_text("  \n\t\n ")
    with pytest.raises(EmptyData, match=r"a.md holds no text"):
        pofx.load(path)
    path.write_bytes(b"some\0thing")
    with pytest.raises(BadValue, match=r"a.md is binary: byte 4 is 0"):
        pofx.load(path)
    path.write_bytes("caf\xe9 noir".encode("latin1"))
    with pytest.raises(BadValue, match=r"not UTF-8 text: byte 0xe9 at 3.*iconv"):
        pofx.load(path)
    path.write_text("too short to split")
    with pytest.raises(EmptyData, match=r"1 excerpts?, too few to split into 3 parts.*--given"):
        pofx.load(path)
    with pytest.raises(MissingSource):
        pofx.load(tmp_path / "none.txt")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "a.txt").write_text(" ")
    with pytest.raises(EmptyData, match=r"empty holds no text"):
        pofx.load(tmp_path / "empty", kind="text")
    path.write_text("\n".join(lines(40)))
    with pytest.raises(UsageError, match=r"There is no symbols 'words'"):
        pofx.load(path, symbols="words")


def test_large_files_stay_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "large.txt"
    content = "".join(f"{line} é\n" for line in lines(2000))
    path.write_text(content, encoding="utf-8")
    monkeypatch.setattr(text, "IN_MEMORY", 1000)
    data = pofx.load(path, kind="text")
    assert isinstance(data.train.x.values, np.memmap)
    assert b"".join(bytes(row[row >= 0].tolist()) for p in (data.train, data.valid, data.test) for row in p.x[:]) == (
        content.encode()
    )
    path.write_bytes(b"\0" * 5000)
    with pytest.raises(BadValue, match=r"is binary"):
        pofx.load(path, kind="text")


@pytest.mark.parametrize("between", ["<|endoftext|>", "\n\n", "aba", "—"])
@pytest.mark.parametrize("chunk", [1, 7, 64, 2**20])
def test_a_large_file_has_the_documents_of_a_small_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, between: str, chunk: int
) -> None:
    """Separators are found across the borders of chunks, and where they could overlap, as in a string."""
    rng = np.random.default_rng(chunk)
    documents = ["".join(rng.choice(list("abé— \n"), rng.integers(0, 30))) for _ in range(200)]
    path = tmp_path / "corpus.txt"
    path.write_text(f"first {between.join(documents)}", encoding="utf-8-sig")
    named = None if between == text.ENDOFTEXT else between.replace("\n", "\\n")
    how = Options(symbols="bytes", separator=named)
    small = text.from_file(path, how)
    monkeypatch.setattr(text, "IN_MEMORY", 1000)
    monkeypatch.setattr(text, "CHUNK", chunk)
    large = text.from_file(path, how)
    assert isinstance(large.rows.values, np.memmap)
    assert large.space == small.space
    assert torch.equal(large.rows[:], small.rows[:])
    assert large.notes[1:] == small.notes


@pytest.mark.parametrize("paired", [False, True])
def test_lines_that_end_as_on_windows_hold_no_carriage_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, paired: bool
) -> None:
    lines = [f"a line of words {i}" for i in range(80)]
    path = tmp_path / "lines.txt"
    path.write_bytes("\r\n".join([*lines, ""]).encode())
    how = Options(symbols="bytes", separator="\\n", paired=paired)
    small = text.from_file(path, how)
    monkeypatch.setattr(text, "IN_MEMORY", 1000)
    large = text.from_file(path, how)
    assert isinstance(large.rows.values, np.memmap)
    for raw in (small, large):
        assert [raw.space.spell(x) for x in raw.rows[:]] == lines
        assert "80 lines end in \\r\\n: the \\r is no part of their texts." in raw.notes
    assert large.space == small.space
    assert large.notes[1:] == small.notes
    path.write_bytes("\r\n".join(lines).encode())  # one document keeps what is within it
    whole = text.from_file(path, Options(symbols="bytes"))
    assert whole.before is not None
    assert bytes(whole.rows.runs()[0][:][0].tolist()).count(b"\r\n") == 79


def test_files_of_a_folder_are_in_natural_order(tmp_path: Path) -> None:
    for i in range(40):
        (tmp_path / f"{i}.txt").write_text(f"text {i}")
    raw = text.from_folder(tmp_path, Options())
    assert [raw.space.spell(x) for x in raw.rows[:]] == [f"text {i}" for i in range(40)]


def test_a_character_that_is_not_known_is_found_in_its_file(tmp_path: Path) -> None:
    lines, known = [f"words {i}" for i in range(40)], Text("words 0123456789", True, 20)
    path, how = tmp_path / "lines.txt", Options(separator="\\n", like=known)
    path.write_text("\n".join([*lines[:6], "", *lines[6:11], "wo\u8dd1rds", *lines[11:]]))
    with pytest.raises(BadValue, match=r"lines.txt, document 13: The character '\u8dd1' at 2 is none"):
        text.from_file(path, how)
    with pytest.raises(BadValue, match=r"lines.txt: The character"):
        text.from_file(path, Options(like=known))
    (tmp_path / "folder").mkdir()
    for i, line in enumerate([*lines, "\u8dd1"]):
        (tmp_path / "folder" / f"{i}.txt").write_text(line)
    with pytest.raises(BadValue, match=r"folder/40.txt: The character '\u8dd1' at 0"):
        text.from_folder(tmp_path / "folder", how)
    path = tmp_path / "lines.jsonl"
    path.write_text("".join(json.dumps({"text": t}) + "\n\n" for t in [*lines, "words!"]))
    with pytest.raises(BadValue, match=r"lines.jsonl, line 81: The character '!' at 5"):
        text.from_jsonl(path, how)


def test_long_documents_of_a_large_file_are_cut_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = ["one line\n" * 1000, "x" * 3000, "end"]
    path = tmp_path / "corpus.txt"
    path.write_text("<|endoftext|>".join(documents))
    monkeypatch.setattr(text, "IN_MEMORY", 1000)
    raw = text.from_file(path, Options())
    assert raw.before is not None
    runs, first = raw.rows.runs()
    assert [bytes(runs[i : i + 1][0].tolist()).decode() for i in range(len(runs))] == documents
    assert (raw.before.lengths[first] == 0).all()


def test_a_large_file_is_never_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, document = tmp_path / "corpus.txt", b"some words \xff\n" * 100
    size = path.write_bytes((b"\n" * 1000 + text.ENDOFTEXT.encode()) + (document + text.ENDOFTEXT.encode()) * 3000)
    monkeypatch.setattr(text, "IN_MEMORY", 1000)
    monkeypatch.setattr(text, "CHUNK", 2**16)
    with pytest.raises(BadValue, match=r"not UTF-8 text: byte 0xff"):
        text.from_file(path, Options())
    monkeypatch.setattr(text, "HEAD", 1020)  # beyond it, no UTF-8 is needed
    tracemalloc.start()
    raw = text.from_file(path, Options())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < size / 4
    assert len(raw.rows) == 3000
    assert bytes(raw.rows[-1:][0].tolist()) == document


def test_a_large_file_of_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "blank.txt"
    path.write_bytes(b" \n" * 1000)
    monkeypatch.setattr(text, "IN_MEMORY", 1000)
    with pytest.raises(EmptyData, match=r"blank.txt holds no text"):
        text.from_file(path, Options())
    with pytest.raises(UsageError, match=r"empty separator"):
        text.from_file(path, Options(separator=""))


def test_excerpts_hold_all_of_the_text() -> None:
    raw = text.from_documents(["def f():\n    pass\n" * 200, "x" * 5000], Options())
    assert raw.before is not None
    assert not raw.space.has_eos
    rows = spelled(raw.space, raw.rows)  # type: ignore[arg-type]
    assert "".join(rows) == "def f():\n    pass\n" * 200 + "x" * 5000
    assert max(map(len, rows)) == text.EXCERPT  # no line end within reach: cut where it is full


def test_a_frame_has_texts_and_sequences_as_its_file_has(tmp_path):
    """What is asked of a table holds wherever the table is."""
    words = pd.DataFrame({"said": ["good day", "hello, world", "abc"] * 20, "stars": [1, 2, 3] * 20})
    steps = pd.DataFrame({"id": list("abc") * 9, "t": range(27), "v": [0.5 * k for k in range(27)]})
    for frame, how in ((words, {"text": "said"}), (steps, {"sequence": "id", "order": "t"})):
        frame.to_csv(tmp_path / "same.csv", index=False)
        read = pofx.load(tmp_path / "same.csv", **how)
        for held in (frame, pa.table(frame)):
            found = pofx.load(held, **how)
            assert found.space == read.space
            assert torch.equal(found.train.read().x, read.train.read().x)
