"""Archives of several arrays: which are the data, which the labels; damaged .npy and .npz files."""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

import pofx
from pofx.cli import main
from pofx.core.errors import BadValue, CorruptFile, UsageError, WrongShape
from pofx.data import packed
from pofx.spaces import Audio, Image, Integer, Real, Sequence

N = 60


@pytest.fixture
def several(tmp_path: Path) -> Path:
    """Small and large images, two kinds of labels, and columns of which one holds wide whole numbers."""
    rng = np.random.default_rng(0)
    path = tmp_path / "several.npz"
    np.savez(
        path,
        train_small=rng.integers(0, 256, (40, 4, 4), dtype=np.uint8),
        test_small=rng.integers(0, 256, (20, 4, 4), dtype=np.uint8),
        large=rng.integers(0, 256, (N, 9, 9), dtype=np.uint8),
        kind=np.arange(N) % 3, train_colour=np.arange(40) % 5, test_colour=np.arange(20) % 5,
        position=rng.normal(size=(N, 2)), count=rng.integers(0, 9, N), number=2**53 + 1 + np.arange(N),
    )  # fmt: skip
    return path


def test_arrays_are_named(several: Path) -> None:
    arrays = np.load(several)
    with pytest.raises(WrongShape, match=r"which array is the data is not clear. Name it \(--arrays NAME"):
        pofx.load(several)
    large = pofx.load(several, arrays=["large"], label_array="kind", given="label")
    assert isinstance(large.space, Image)
    assert (large.space.height, large.labels) == (9, ("0", "1", "2"))
    assert torch.equal(large.train.c, torch.from_numpy(arrays["kind"][large.train.rows]))
    small = pofx.load(several, arrays=["small"], label_array="colour")
    assert (len(small.train) + len(small.valid), len(small.test), len(small.labels or ())) == (40, 20, 5)
    assert torch.equal(small.test.x[:, 0], torch.from_numpy(arrays["test_small"])[small.test.rows - 40])
    table = pofx.load(several, arrays=["position", "count", "number"])
    assert [c.name for c in table.space.columns] == ["position1", "position2", "count", "number"]
    assert [type(c) for c in table.space.columns[:3]] == [Real, Real, Integer]
    assert "9007199254740993" in table.space.columns[3].values  # beside floats, yet not rounded
    assert np.array_equal(table.train.x[:, 1].numpy(), arrays["position"][table.train.rows, 1])


def test_arrays_that_are_not_there_or_do_not_fit(several: Path, tmp_path: Path) -> None:
    for options, error, said in (
        ({"arrays": ["huge"]}, UsageError, "no array 'huge' of rows. There are: train_small"),
        ({"arrays": ["large"], "label_array": "kinds"}, UsageError, "no array 'kinds'"),
        ({"arrays": ["large"], "label_array": "colour"}, WrongShape, "not one label for each of the 60 rows"),
        ({"arrays": ["large"], "label_array": "number"}, BadValue, "'number' holds 60 values in 60 rows: no classes"),
        ({"arrays": ["large", "count"]}, WrongShape, "make no table"),
        ({"arrays": ["small", "count"]}, WrongShape, "not of the same parts"),
    ):
        with pytest.raises(error, match=said):
            pofx.load(several, **options)
    (tmp_path / "t.csv").write_text("a,b\n" + "1.5,2\n" * 30)
    for options in ({"arrays": ["a"]}, {"label_array": "a"}):
        with pytest.raises(UsageError, match="Only a .npz file holds arrays"):
            pofx.load(tmp_path / "t.csv", **options)


def test_arrays_of_sounds_and_sequences(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    ends = np.arange(1, 21) * 30
    speech = (rng.normal(size=600) * 1000).astype(np.int16)
    path = tmp_path / "sounds.npz"
    np.savez(
        path,
        speech=speech,
        noise=speech // 2,
        offsets=np.r_[0, ends],
        sample_rate=8000,
        word=np.arange(20) % 2,
        who=np.arange(20) % 4,
    )
    data = pofx.load(path, kind="audio", arrays=["noise"], label_array="who")
    assert isinstance(data.space, Audio)
    assert data.labels == ("0", "1", "2", "3")
    row = int(data.train.rows[0])
    assert torch.equal(data.train.x[:1][0], torch.from_numpy(speech // 2)[30 * row : 30 * row + 30].long() + 32768)
    with pytest.raises(UsageError, match="a sound is one"):
        pofx.load(path, kind="audio", arrays=["noise", "speech"])
    path = tmp_path / "steps.npz"
    np.savez(
        path,
        state=rng.normal(size=(600, 2)),
        action=rng.normal(size=600),
        episode_ends=ends,
        label=np.arange(20) % 2,
        goal=np.arange(20) % 5,
    )
    data = pofx.load(path, arrays=["action"], label_array="goal")
    assert isinstance(data.space, Sequence)
    assert [c.name for c in data.space.step.columns] == ["action"]
    assert len(data.labels or ()) == 5
    with pytest.raises(UsageError, match="no array 'goals' of labels"):
        pofx.load(path, label_array="goals")


def test_arrays_on_the_command_line(several: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A family may follow the names, which are repeated or joined by commas; a run remembers them."""
    run = str(tmp_path / "run")
    args = ["fit", str(several), "--arrays", "position,count", "--label-array", "kind", "independent"]
    assert main([*args, "--epochs", "1", "--out", run, "--quiet"]) == 0
    assert main(["log-prob", run, str(several), "--quiet"]) == 0
    capsys.readouterr()
    assert main(["data", str(several), "--arrays", "position", "--arrays", "count", "--json"]) == 0
    assert '"position2"' in capsys.readouterr().out


# -- damaged files ------------------------------------------------------------------------------------


def npy(header: str, body: bytes = bytes(96), version: int = 1) -> bytes:
    text = header.encode() + b"\n"
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H", len(text)) + text + body


def zipped(content: bytes, name: str = "x.npy", method: int = zipfile.ZIP_DEFLATED) -> bytearray:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        archive.writestr(name, content)
    return bytearray(out.getvalue())


HEADERS = {
    "rows beyond memory": "{'descr': '<f8', 'fortran_order': False, 'shape': (1099511627776, 5), }",
    "rows that the file has not": "{'descr': '<f8', 'fortran_order': False, 'shape': (13, 1), }",
    "negative": "{'descr': '<f8', 'fortran_order': False, 'shape': (-3, 4), }",
    "no dictionary": "('descr', '<f8')",
    "no end": "{'descr': '<f8', 'fortran_order': False, 'shape': (3, 4",
    "an unknown type": "{'descr': '<q9', 'fortran_order': False, 'shape': (3, 4), }",
    "a call": "{'descr': print(1), 'fortran_order': False, 'shape': (3, 4), }",
    "deep": "{'descr': " + "(" * 400 + ")" * 400 + ", 'fortran_order': False, 'shape': (3, 4), }",
    "a null byte": "{'descr': '<f8', 'fortran\0order': False, 'shape': (3, 4), }",
}


@pytest.mark.parametrize("kind", HEADERS)
def test_headers_of_npy(tmp_path: Path, kind: str) -> None:
    for name, content in (("a.npy", npy(HEADERS[kind])), ("a.npz", zipped(npy(HEADERS[kind])))):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CorruptFile, match="cannot be read as NumPy"):
            pofx.load(tmp_path / name)


def test_text_of_npy_that_is_no_unicode(tmp_path: Path) -> None:
    np.save(tmp_path / "t.npy", np.array(["ab", "cd"] * 20))
    content = (tmp_path / "t.npy").read_bytes()
    (tmp_path / "t.npy").write_bytes(content[:-8] + b"\xff\xff\xff\x7f" * 2)
    with pytest.raises(CorruptFile, match="not Unicode"):
        pofx.load(tmp_path / "t.npy")


def test_archives_of_unknown_packing(tmp_path: Path) -> None:
    path, plain = tmp_path / "a.npz", io.BytesIO()
    np.save(plain, np.ones((20, 2)))
    for place, value, said in ((6, 1, "is encrypted"), (8, 97, "cannot be read as NumPy")):
        content = zipped(plain.getvalue())
        for start, shift in ((0, 0), (content.find(b"PK\1\2"), 2)):
            content[start + place + shift] = value
        path.write_bytes(content)
        with pytest.raises(CorruptFile, match=said):
            pofx.load(path)
    for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        content = zipped(plain.getvalue(), method=method)
        path.write_bytes(content)
        assert len(pofx.load(path).train) == 16
        content[len(content) // 3] ^= 255
        path.write_bytes(content)
        with pytest.raises(CorruptFile):
            pofx.load(path)
    path.write_bytes(zipped(bytes(zipped(plain.getvalue())), name="inner.npz"))
    with pytest.raises(CorruptFile, match="no .npz of arrays"):
        pofx.load(path)


def test_archives_that_unpack_to_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez_compressed(tmp_path / "zeros.npz", x=np.zeros((100_000, 10)), y=np.arange(100_000) % 2)
    assert len(pofx.load(tmp_path / "zeros.npz").train) == 80_000
    monkeypatch.setattr(packed, "MOST_UNPACKED", 1_000_000)
    with pytest.raises(CorruptFile, match=r"unpacks to more than \d+ bytes.*unpack it"):
        pofx.load(tmp_path / "zeros.npz")
