"""What lies in folders beside what is read, files of other formats, pipes and devices: all said by name."""

from __future__ import annotations

import os
import socket
import threading
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

import pofx
from pofx.core.errors import EmptyData, MissingSource, RaggedTable, UnknownFormat, UsageError
from pofx.data import foreign, pipes
from pofx.data.folders import listing
from pofx.spaces import Text

rng = np.random.default_rng(0)


def pictures(folder: Path, count: int = 6, suffix: str = ".png") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Pillow.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)).save(folder / f"{i}{suffix}")
    return folder


# -- folders ------------------------------------------------------------------------------------------------


def test_files_are_listed_in_natural_order_and_the_rest_is_counted(tmp_path: Path) -> None:
    for name in ("a10.txt", "a9.txt", "b/__init__.py", "b/.hidden.txt", ".git/config", "__MACOSX/a9.txt", "b/x.bin"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "elsewhere").symlink_to(tmp_path / "b")  # what lies there is listed once
    (tmp_path / "b" / "up").symlink_to(tmp_path)
    found = listing(tmp_path)
    names = [str(p.relative_to(tmp_path)) for p in found.files]
    assert names[:2] == ["a9.txt", "a10.txt"]
    assert sorted(Path(n).name for n in names[2:]) == ["__init__.py", "x.bin"]
    assert found.aside == {"hidden": 3, "broken link": 1, "no file": 1}
    notes: list[str] = []
    assert len(found.chosen(lambda p: p.suffix == ".txt", notes)) == 2
    assert "7 files were left out" in notes[0]
    for said in ("3 hidden", "1 broken link", "1 no file", "1 .py", "1 .bin"):
        assert said in notes[0]


def test_folders_that_are_shut_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures(tmp_path / "open")
    shut = tmp_path / "open" / "shut"
    shut.mkdir()
    scandir = os.scandir

    def refusing(place: Path) -> object:  # root may open everything
        if Path(place) == shut:
            raise PermissionError(13, "Permission denied", str(place))
        return scandir(place)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(MissingSource, match=r"shut cannot be opened: Permission denied. Check its permissions"):
        pofx.load(tmp_path / "open")


def test_pictures_among_others_are_read_and_the_others_counted(tmp_path: Path) -> None:
    pictures(tmp_path)
    pictures(tmp_path, 3, ".bmp")
    (tmp_path / "Thumbs.db").write_bytes(b"x")
    (tmp_path / ".DS_Store").write_bytes(b"x")
    data = pofx.load(tmp_path)
    assert len(data.train) + len(data.valid) + len(data.test) == 6
    assert "5 files were left out: 3 .bmp, 1 .db, 1 hidden." in data.notes


@pytest.mark.parametrize(
    ("suffix", "said"),
    [
        ("tiff", "PNG and JPEG: convert them, for example: magick"),
        ("m4a", "WAV, FLAC and Ogg: convert them, for example: ffmpeg"),
        ("mkv", "Take out pictures or sound"),
    ],
)
def test_formats_that_are_not_read_are_named(tmp_path: Path, suffix: str, said: str) -> None:
    for i in range(3):
        (tmp_path / f"{i}.{suffix}").write_bytes(b"whatever")
    with pytest.raises(UnknownFormat, match=rf"0\.{suffix} is a .{suffix} file, which pofx does not read.*{said}"):
        pofx.load(tmp_path / f"0.{suffix}")
    with pytest.raises(MissingSource, match=rf"its files are 3 \.{suffix}.*{said}"):
        pofx.load(tmp_path)
    if suffix == "m4a":
        with pytest.raises(EmptyData, match=said):
            pofx.load(tmp_path, kind="audio")


def test_formats_are_known_by_their_first_bytes(tmp_path: Path) -> None:
    for kind in ("webp", "gif", "tiff"):
        Pillow.fromarray(np.zeros((3, 3), np.uint8)).save(tmp_path / "x", kind)
        assert foreign.unread("x", (tmp_path / "x").read_bytes()[:512]) == kind
    for content in (b"a,b\n1,2\n", b"\x93NUMPY\1\0", b"PAR1\0\0\0\0", "\ufeffa,b".encode("utf-16"), b"\x1f\x8b\x08\0"):
        assert foreign.unread("data", content) is None


def test_folders_of_what_is_no_data(tmp_path: Path) -> None:
    with pytest.raises(MissingSource, match="it is empty"):
        pofx.load(tmp_path)
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    with pytest.raises(MissingSource, match=r"its files are 1 .csv. Give one of its files, for example .*t\.csv"):
        pofx.load(tmp_path)


# -- pipes and devices --------------------------------------------------------------------------------------


def piped(path: Path, content: bytes) -> threading.Thread:
    """Somebody who writes into a new pipe."""
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_bytes, args=(content,), daemon=True)
    writer.start()
    return writer


def test_a_pipe_is_read_once_and_whole(tmp_path: Path) -> None:
    rows = "".join(f"{i},{x:.4f}\n" for i, x in enumerate(rng.normal(size=20000)))
    (tmp_path / "t.csv").write_text(rows)
    writer = piped(tmp_path / "pipe", rows.encode())
    got, want = pofx.load(tmp_path / "pipe"), pofx.load(tmp_path / "t.csv")
    writer.join()
    assert got.space == want.space
    assert (got.train.x == want.train.x).all()
    assert want.source == str(tmp_path / "t.csv")
    with pytest.raises(MissingSource, match="in memory or through a pipe"):
        pofx.load(got.source)


def test_json_lines_need_no_suffix(tmp_path: Path) -> None:
    lines = "".join(f'{{"text": "text {i}"}}\n' for i in range(40)).encode()
    piped(tmp_path / "pipe", lines)
    assert pofx.load(tmp_path / "pipe").space == Text("".join(sorted(set("text 0123456789"))), True, 7)


def test_errors_name_the_pipe(tmp_path: Path) -> None:
    piped(tmp_path / "ragged", b"a,b\n1,2\n1\n")
    with pytest.raises(RaggedTable, match=rf"^{tmp_path}/ragged, line 3"):
        pofx.load(tmp_path / "ragged")


def test_pipes_without_writer_or_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipes, "WAIT", 0.05)
    os.mkfifo(tmp_path / "silent")
    with pytest.raises(MissingSource, match="silent is a pipe that nobody writes to"):
        pofx.load(tmp_path / "silent")
    monkeypatch.setattr(pipes, "WAIT", 5.0)
    monkeypatch.setattr(pipes, "MOST_UNPACKED", 10**6)
    os.mkfifo(tmp_path / "endless")

    def write() -> None:
        with suppress(BrokenPipeError), (tmp_path / "endless").open("wb") as file:
            while True:
                file.write(b"1,2\n" * 10000)

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    with pytest.raises(UsageError, match=r"More than 1000000 bytes came through .*endless"):
        pofx.load(tmp_path / "endless")
    writer.join()


def test_devices_and_sockets_are_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="/dev/zero is a device"):
        pofx.load("/dev/zero")
    monkeypatch.chdir(tmp_path)  # names of sockets are short
    with socket.socket(socket.AF_UNIX) as s:
        s.bind("here")
        with pytest.raises(UsageError, match="here is a socket"):
            pofx.load("here")


def test_paths_that_lead_nowhere(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("missing")
    with pytest.raises(MissingSource, match=r"link is a link to missing, which is not there"):
        pofx.load(tmp_path / "link")
    (tmp_path / "loop").symlink_to("loop")
    for path in (tmp_path / "loop", "x" * 5000, "zero\0byte", tmp_path / "none" / "t.csv"):
        with pytest.raises(MissingSource):
            pofx.load(path)
