"""Unpacking up to a limit."""

import gzip

import pytest

from pofx.core.errors import CorruptFile
from pofx.data import packed


def test_gzip_of_several_members_and_plain_bytes_come_back(tmp_path):
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(b"a,b\n1,2\n") + gzip.compress(b"3,4\n") + b"\0" * 512)  # as tar pads it
    assert packed.unpacked(path) == b"a,b\n1,2\n3,4\n"
    path.write_bytes(b"\x1fplain")
    assert packed.unpacked(path) == b"\x1fplain"


def test_a_bomb_is_refused_before_it_fills_the_memory(tmp_path, monkeypatch):
    path = tmp_path / "bomb.gz"
    path.write_bytes(gzip.compress(bytes(9_000_000)))
    monkeypatch.setattr(packed, "MOST_UNPACKED", 4_000_000)
    with pytest.raises(CorruptFile, match="more than 4000000 bytes.*unpack it"):
        packed.unpacked(path)


@pytest.mark.parametrize("damage", [lambda b: b[:-3], lambda b: b[:8], lambda b: b[:20] + b"\xff\xff" + b[22:]])
def test_damaged_gzip_is_named(tmp_path, damage):
    path = tmp_path / "a.gz"
    path.write_bytes(damage(gzip.compress(bytes(range(256)) * 9)))
    with pytest.raises(CorruptFile, match="cannot be read as gzip"):
        packed.unpacked(path)
