"""Sounds: levels and back exactly, files and folders of every format, arrays, files that are not as they should be."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import torch

import pofx
from pofx.core.errors import BadValue, CannotSave, CorruptFile, EmptyData, UsageError, WrongShape
from pofx.data import audio
from pofx.data.audio import encode, from_arrays, from_file, from_folder
from pofx.data.options import Options
from pofx.data.rows import read_rows
from pofx.data.split import TEST, TRAIN
from pofx.data.write import write_audio
from pofx.spaces import Audio, Label

soundfile = pytest.importorskip("soundfile")


def samples(length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-32768, 32768, length).astype(np.int16)


def write(path: Path, values: np.ndarray, rate: int = 8000, **options: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(str(path), values, rate, **options)
    return path


# -- levels -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("law", "levels"), [("linear", 65536), ("linear", 256), ("linear", 10), ("mu", 256), ("mu", 64)]
)
def test_levels_come_back(law: str, levels: int) -> None:
    all_levels = np.arange(levels)
    amplitude = Audio(8000, levels, law).amplitudes(torch.from_numpy(all_levels)).numpy()
    assert (np.diff(amplitude) > 0).all()
    assert -1 <= amplitude.min() <= amplitude.max() <= 1
    assert np.array_equal(encode(amplitude, law, levels), all_levels)
    assert encode(np.array([-3.0, 3.0]), law, levels).tolist() == [0, levels - 1]
    assert Audio(8000, levels, law).amplitudes(torch.tensor([-1])).tolist() == [0]  # after the end there is silence


def test_16_bits_are_exact_and_mu_is_g711() -> None:
    s = np.arange(-32768, 32768)
    assert np.array_equal(encode(s / 32768), s + 32768)
    # the companded value of ITU-T G.711 (mu = 255) at half the amplitude is 0.8757
    assert encode(np.array([0.0, 0.5, -0.5]), "mu", 256).tolist() == [128, 239, 16]


# -- files ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_a_file_is_read_exactly(tmp_path: Path, suffix: str) -> None:
    s = samples(1000)
    raw = from_file(write(tmp_path / f"a{suffix}", s), Options())
    assert raw.space == Audio(8000, 65536, "linear", True, 1000)
    assert np.array_equal(raw.rows[:][0].numpy() - 32768, s)
    raw.space.check(raw.rows[:])
    coarse = from_file(tmp_path / f"a{suffix}", Options(law="mu"))
    assert coarse.space == Audio(8000, 256, "mu", True, 1000)
    assert np.array_equal(coarse.rows[:][0].numpy(), encode(s / 32768, "mu", 256))


def test_folders_are_labels_and_parts(tmp_path: Path) -> None:
    for i in range(3):
        write(tmp_path / "plain" / "cat" / f"{i}.wav", samples(10 + i, i))
        write(tmp_path / "plain" / "dog" / f"{i}.flac", samples(20 + i, i))
    write(tmp_path / "plain" / "dog" / "3.wav", samples(0))
    raw = from_folder(tmp_path / "plain", Options())
    assert raw.n == 6
    assert raw.label is not None
    assert raw.label.tolist() == ["cat"] * 3 + ["dog"] * 3
    assert raw.part is None
    assert raw.rows.lengths.tolist() == [10, 11, 12, 20, 21, 22]
    assert any("1 files of no samples were left out" in n and "3.wav" in n for n in raw.notes)
    few = from_folder(tmp_path / "plain", Options(max_rows=4, seed=1))
    assert few.numbers is not None
    assert few.n == len(few.numbers) <= 4
    for row, number in enumerate(few.numbers):
        assert torch.equal(few.rows[row : row + 1], raw.rows[int(number) : int(number) + 1])

    write(tmp_path / "split" / "train" / "a" / "10.wav", samples(5))
    write(tmp_path / "split" / "train" / "a" / "9.wav", samples(6))
    write(tmp_path / "split" / "test" / "b" / "1.ogg", samples(7) // 2)
    raw = from_folder(tmp_path / "split", Options())
    assert raw.part is not None
    assert raw.label is not None
    assert raw.part.tolist() == [TEST, TRAIN, TRAIN]
    assert raw.label.tolist() == ["b", "a", "a"]
    assert raw.rows.lengths.tolist() == [7, 6, 5]  # 9 before 10


def test_channels_are_mixed_and_fine_samples_rounded(tmp_path: Path) -> None:
    both = np.stack([samples(50), samples(50, 1)], 1)
    path = write(tmp_path / "a.wav", both / 32768, subtype="PCM_24")
    raw = from_file(path, Options())
    assert np.abs(raw.rows.values - 32768.0 - both.mean(1)).max() <= 0.5
    assert "channels of 1 of 1" in raw.notes[0]
    assert "finer than 16 bits" in raw.notes[1]


def test_rates(tmp_path: Path) -> None:
    t = np.arange(4000)
    write(tmp_path / "a.wav", samples(100))
    write(tmp_path / "b.wav", samples(100))
    tone = write(tmp_path / "c.wav", 0.5 * np.sin(2 * np.pi * 440 * t / 16000), 16000)
    with pytest.raises(WrongShape, match=r"c\.wav has 16000 samples per second; the others have 8000.*--rate 8000"):
        from_folder(tmp_path, Options())
    raw = from_folder(tmp_path, Options(rate=8000))
    assert raw.rows.lengths.tolist() == [100, 100, 2000]
    assert "1 of 3 sounds were resampled to 8000 Hz." in raw.notes
    want = 0.5 * np.sin(2 * np.pi * 440 * np.arange(2000) / 8000)
    assert np.abs(raw.space.amplitudes(raw.rows[2:][0]).numpy() - want)[50:-50].max() < 2e-3
    like = from_file(tone, Options(like=Audio(4000, 256, "mu")))
    assert like.space == Audio(4000, 256, "mu", True, 1000)


def test_bad_files_are_named(tmp_path: Path) -> None:
    for suffix in (".wav", ".flac"):
        whole = write(tmp_path / f"a{suffix}", samples(20000)).read_bytes()
        for size in (len(whole) // 2, 30, 3):
            cut = tmp_path / f"cut{suffix}"
            cut.write_bytes(whole[:size])
            with pytest.raises(CorruptFile, match=f"cut{suffix} cannot be read as a sound"):
                from_file(cut, Options())
    (tmp_path / "empty").mkdir()
    with pytest.raises(EmptyData, match="holds no sounds"):
        from_folder(tmp_path / "empty", Options())
    with pytest.raises(EmptyData, match="no sound of any length"):
        from_file(write(tmp_path / "none.wav", samples(0)), Options())
    with pytest.raises(BadValue, match="no finite numbers"):
        from_file(write(tmp_path / "nan.wav", np.full(9, np.nan), subtype="FLOAT"), Options())
    for wrong in (Options(law="a"), Options(levels=1), Options(levels=10**6), Options(rate=0)):
        with pytest.raises(UsageError):
            from_file(tmp_path / "a.wav", wrong)


@pytest.mark.parametrize("subtype", ["FLOAT", "DOUBLE"])
def test_what_is_clipped_is_counted(tmp_path: Path, subtype: str) -> None:
    loud = np.array([0.5, -1.0, 1.0, 1.5, -2.25, 3.0])
    write(tmp_path / "quiet.wav", loud / 4, subtype=subtype)
    assert not any("clipped" in n for n in from_folder(tmp_path, Options()).notes)
    write(tmp_path / "loud.wav", loud, subtype=subtype)
    said = "lie beyond -1 to 1 (up to 3) and were clipped. To keep them, scale the sounds down."
    assert f"3 samples of 1 of 2 sounds {said}" in from_folder(tmp_path, Options()).notes
    arrays = {"audio": np.concatenate([loud, loud / 4]), "offsets": np.array([0, 6, 12]), "sample_rate": np.array(8000)}
    assert f"3 samples of 1 of 2 sounds {said}" in from_arrays(arrays, "a.npz", Options()).notes


def head(rate: int) -> bytes:
    """A WAV file of 16-bit samples by its specification, whatever rate its header claims."""
    body = samples(500).tobytes()
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, rate, 2 * rate % 2**32, 2, 16)
    return struct.pack("<4sI4s", b"RIFF", 36 + len(body), b"WAVE") + form + struct.pack("<4sI", b"data", 1000) + body


def test_rates_that_no_recording_has(tmp_path: Path) -> None:
    for rate, to, said in (
        (1_000_001, None, "says 1000001 samples per second; 1 to 1000000 are read"),
        (2**31 - 1, 8000, "says 2147483647 samples per second"),
        (3, 8000, r"has 3 samples per second: brought to 8000, each would become 2667 \(at most 100\)"),
    ):
        (tmp_path / "a.wav").write_bytes(head(rate))
        with pytest.raises(BadValue, match=said):
            from_file(tmp_path / "a.wav", Options(rate=to))
    with pytest.raises(UsageError, match="Give 1 to 1000000"):
        from_file(tmp_path / "a.wav", Options(rate=10**9))
    (tmp_path / "a.wav").write_bytes(head(3))
    assert from_file(tmp_path / "a.wav", Options()).space.rate == 3
    for rate in (0, -5, 10**7, np.nan, np.inf):
        arrays = {"audio": samples(60), "offsets": np.array([0, 20, 60]), "sample_rate": np.array(rate)}
        with pytest.raises(BadValue, match=r"a.npz.*(samples per second)"):
            from_arrays(arrays, "a.npz", Options())


def test_sounds_unpack_to_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "silence.flac", np.zeros(300_000, np.int16))
    assert from_file(path, Options()).space.length == 300_000
    monkeypatch.setattr(audio, "MOST_SAMPLES", 1000)
    with pytest.raises(
        CorruptFile, match=r"silence.flac .*holds more than \d+ samples, the limit for a file of its size"
    ):
        from_file(path, Options())
    assert from_file(write(tmp_path / "noise.wav", samples(5000)), Options()).space.length == 5000  # a large file may


# -- arrays ---------------------------------------------------------------------------------------------


def test_arrays_end_to_end() -> None:
    s = samples(60)
    arrays = {
        "audio": s, "offsets": np.array([0, 20, 20, 45, 60]), "sample_rate": np.array(8000),
        "digit": np.array([7, 8, 9, 7], np.uint8), "speaker": np.array([0, 1, 0, 1]),
        "speaker_names": np.array(["ann", "bob"]),
    }  # fmt: skip
    assert audio.is_audio(arrays)
    assert not audio.is_audio({"x": s})
    raw = from_arrays(arrays, "a.npz", Options())
    assert raw.space.rate == 8000
    assert raw.rows.lengths.tolist() == [20, 25, 15]
    assert np.array_equal(raw.rows.values - 32768.0, s)
    assert raw.label is not None
    assert raw.label.tolist() == [7, 9, 7]
    assert any("1 sounds of no samples" in n for n in raw.notes)
    assert any("also speaker" in n for n in raw.notes)
    named = from_arrays(arrays, "a.npz", Options(label="speaker", law="mu"))
    assert named.label is not None
    assert named.label.tolist() == ["ann", "ann", "bob"]
    with pytest.raises(UsageError, match="No array 'age'"):
        from_arrays(arrays, "a.npz", Options(label="age"))
    with pytest.raises(WrongShape, match=r"offsets goes to 61; there are 60 samples"):
        from_arrays(arrays | {"offsets": np.array([0, 61])}, "a.npz", Options())
    with pytest.raises(WrongShape, match="does not say how many samples a second has"):
        from_arrays({"audio": s, "offsets": np.array([0, 60])}, "a.npz", Options())
    with pytest.raises(BadValue, match="no finite numbers"):
        from_arrays(arrays | {"audio": np.full(60, np.inf)}, "a.npz", Options())


def test_sounds_given_one_of_their_classes(tmp_path: Path) -> None:
    path = tmp_path / "sounds.npz"
    rng = np.random.default_rng(0)
    digit, speaker = rng.integers(0, 3, 40), rng.integers(0, 2, 40)
    np.savez(
        path, audio=samples(400), offsets=np.arange(0, 401, 10), sample_rate=8000, take=np.arange(40), digit=digit,
        speaker=speaker, speaker_names=["ann", "bob"],
    )  # fmt: skip
    names = {"digit": digit.astype(str), "speaker": np.array(["ann", "bob"])[speaker]}
    for name, spelled in names.items():
        for options in ({"given": name}, {"given": "label", "label": name}, {"given": name, "label": name}):
            data = pofx.load(path, levels=4, **options)
            assert data.context == Label(tuple(sorted(set(spelled))))
            for part in (data.train, data.valid, data.test):
                assert [data.context.values[k] for k in part.c.tolist()] == spelled[part.rows].tolist()
        again = read_rows(data.space, data.context, path, options=data.options)
        assert [data.context.values[k] for k in again.c.tolist()] == spelled.tolist()
        told = pofx.load(path, levels=4, label=name)
        assert told.context is None
        assert told.labels == data.context.values
    with pytest.raises(UsageError, match=r"No column or array 'age' .* There are: take, digit, speaker"):
        pofx.load(path, given="age")
    with pytest.raises(UsageError, match=r"Only tables have columns"):
        pofx.load(path, given="digit", label="speaker")


def test_arrays_of_parts() -> None:
    arrays = {f"{p}_audio": samples(30) / 32768 for p in ("train", "test")}
    arrays |= {"train_offsets": np.array([0, 10, 30]), "test_offsets": np.array([0, 30]), "rate": np.array(100)}
    raw = from_arrays(arrays, "a.npz", Options())
    assert raw.part is not None
    assert raw.part.tolist() == [TRAIN, TRAIN, TEST]
    assert raw.rows.lengths.tolist() == [10, 20, 30]
    arrays.pop("test_offsets")
    with pytest.raises(WrongShape, match="sounds in train_audio, test_audio, but offsets in train_offsets"):
        from_arrays(arrays, "a.npz", Options())


# -- to files -------------------------------------------------------------------------------------------


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    space = Audio(8000)
    x = torch.tensor([[0, 65535, 32768, 7], [1, 2, -1, -1]])
    write_audio(space, x, tmp_path / "out")
    back = from_folder(tmp_path / "out", Options())
    assert back.space == Audio(8000, length=4)
    assert torch.equal(back.rows[:], x)
    write_audio(space, x, tmp_path / "by-label", ["dog", "cat"])
    assert from_folder(tmp_path / "by-label", Options()).label.tolist() == ["cat", "dog"]
    for name in ("one.wav", "one.flac"):
        write_audio(space, x[0], tmp_path / name)
        assert torch.equal(from_file(tmp_path / name, Options()).rows[:], x[:1])
    mu = Audio(8000, 256, "mu")
    write_audio(mu, torch.arange(256)[None], tmp_path / "mu.wav")
    assert torch.equal(from_file(tmp_path / "mu.wav", Options(like=mu)).rows[:], torch.arange(256)[None])
    with pytest.raises(UsageError, match="2 sounds do not go into one file"):
        write_audio(space, x, tmp_path / "two.wav")
    with pytest.raises(UsageError, match="no place for sounds"):
        write_audio(space, x, tmp_path / "two.mp3")
    with pytest.raises(CannotSave, match="not an empty folder"):
        write_audio(space, x, tmp_path / "out")
