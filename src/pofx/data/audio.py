"""Sounds: folders of WAV, FLAC and Ogg files, single files, arrays of samples; all become levels of one channel."""

from __future__ import annotations

import io
import math
import struct
import wave
from collections import Counter
from collections.abc import Iterator, Mapping
from collections.abc import Sequence as Listed
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pofx.core.errors import BadValue, EmptyData, UsageError, WrongShape
from pofx.data import foreign
from pofx.data.folders import beside, by_part, drawn, listing, names_below
from pofx.data.options import Options
from pofx.data.ragged import NDArray, RaggedRows, RawRagged
from pofx.data.raw import corrupt
from pofx.spaces import Audio

SUFFIXES = (".wav", ".flac", ".ogg")


LAWS = {"linear": 65536, "mu": 256}  # and their usual numbers of levels


MOST_LEVELS = 65536


MOST_RATE = 1_000_000  # samples per second: some ten times what the fastest recorders of bats take


MOST_UPSAMPLING = 100  # samples that one may become


MOST_SAMPLES = 2**26  # of a file of any size; of larger ones, MOST_RATIO samples a byte


MOST_RATIO = 20


BLOCK = 2**20  # samples that are decoded together


LABELS = ("label", "labels", "y", "target", "class", "digit", "word")


def _coding(how: Options) -> tuple[str, int, int | None]:
    """The law, the number of levels, and the rate that is wanted (None for the sounds' own). Raises UsageError."""
    if how.sounds is not None:
        return how.sounds.law, how.sounds.levels, how.sounds.rate
    if how.law not in LAWS:
        raise UsageError(f"There is no law {how.law!r} of levels.", f"Give one of: {', '.join(LAWS)}.")
    levels = LAWS[how.law] if how.levels is None else how.levels
    if not 2 <= levels <= MOST_LEVELS:
        raise UsageError(f"A sample of {levels} levels is impossible.", f"Give 2 to {MOST_LEVELS}.")
    if how.rate is not None and not 1 <= how.rate <= MOST_RATE:
        raise UsageError(f"A rate of {how.rate} samples per second is impossible.", f"Give 1 to {MOST_RATE}.")
    return how.law, levels, how.rate


def encode(amplitude: NDArray, law: str = "linear", levels: int = 65536) -> NDArray:
    """The levels of amplitudes [...] as ``Audio.levels_of`` has them, uint8 or uint16."""
    found = Audio(1, levels, law).levels_of(torch.from_numpy(np.asarray(amplitude, np.float64)))
    return found.numpy().astype(np.uint8 if levels <= 256 else np.uint16)


def from_folder(folder: Path, how: Options) -> RawRagged:
    """Sound files; sub-folders are labels; train / valid / test at the top are the official split.

    Of more than ``how.max_rows`` files so many are read, drawn by ``how.seed``. Raises EmptyData, WrongShape (a file of
    another rate), CorruptFile.
    """
    notes: list[str] = []
    found = listing(folder)
    files, part, label, numbers = drawn(found, SUFFIXES, how, notes)
    if not files:
        remedy = foreign.advice(found.files, f"Give a folder with {', '.join(SUFFIXES)} files.")
        raise EmptyData(f"{folder} holds no sounds.", remedy)
    sounds, rate = _sounds(files, how, notes)
    raw = _raw(sounds, rate, how, str(folder), notes)
    raw.part, raw.label, raw.numbers = part, label, numbers
    silent = next((file for file, s in zip(files, sounds, strict=True) if not len(s)), folder)
    raw.files = names_below(folder, files)
    return raw.without_empty(f"files of no samples were left out, the first: {silent.relative_to(folder)}.", how)


def from_file(path: Path, how: Options) -> RawRagged:
    """One sound file: one row."""
    notes: list[str] = []
    sounds, rate = _sounds([path], how, notes)
    return _raw(sounds, rate, how, str(path), notes)


def _sounds(files: list[Path], how: Options, notes: list[str]) -> tuple[list[NDArray], int]:
    """The levels of each file, and the rate that all have in the end."""
    law, levels, wanted = _coding(how)
    with ThreadPoolExecutor() as pool:
        heads = list(pool.map(_head, files))
        rates = Counter(head.samplerate for head in heads)
        rate = wanted or rates.most_common(1)[0][0]
        for file, head in zip(files, heads, strict=True):
            if how.own_rate and head.samplerate != rate:
                raise WrongShape(
                    f"{file} has {head.samplerate} samples per second; this space takes {rate}.",
                    f"Convert it, for example: ffmpeg -i {file} -ar {rate} NEW.wav.",
                )
            if wanted is None and head.samplerate != rate:
                raise WrongShape(
                    f"{file} has {head.samplerate} samples per second; the others have {rate}.",
                    f"Convert or remove it, or give --rate {rate} to bring all sounds to one rate.",
                )
        if several := sum(head.channels > 1 for head in heads):
            notes.append(f"The channels of {several} of {len(files)} sounds were mixed to one.")
        for file, head in zip(files, heads, strict=True):
            _check_rates(head.samplerate, rate, str(file))
        if resampled := sum(count for r, count in rates.items() if r != rate):
            notes.append(f"{resampled} of {len(files)} sounds were resampled to {rate} Hz.")
        fine = sum(head.subtype not in ("PCM_16", "PCM_S8", "PCM_U8", "ULAW", "ALAW", "VORBIS") for head in heads)
        if fine and (law, levels) == ("linear", 65536):
            notes.append(f"The samples of {fine} of {len(files)} sounds are finer than 16 bits: they were rounded.")

        def sound(file: Path, head: Any) -> Clipped:
            return _clipped(_resampled(_amplitude(file, head), head.samplerate, rate), law, levels)

        return _said(list(pool.map(sound, files, heads)), notes), rate


@dataclass(frozen=True)
class Clipped:
    """The levels of a sound, how many of its samples lay beyond [-1, 1], and how far."""

    levels: NDArray
    count: int
    furthest: float


def _clipped(amplitude: NDArray, law: str, levels: int) -> Clipped:
    size = np.abs(amplitude)
    return Clipped(encode(amplitude, law, levels), int((size > 1).sum()), float(size.max(initial=0)))


def _said(sounds: Listed[Clipped], notes: list[str]) -> list[NDArray]:
    """The levels of sounds; a note counts what was clipped."""
    if count := sum(s.count for s in sounds):
        several, furthest = sum(s.count > 0 for s in sounds), max(s.furthest for s in sounds)
        notes.append(
            f"{count} samples of {several} of {len(sounds)} sounds lie beyond -1 to 1 (up to {furthest:.4g}) and were "
            "clipped. To keep them, scale the sounds down."
        )
    return [s.levels for s in sounds]


def _check_rates(rate: int, to: int, where: str) -> None:
    """Raises BadValue where a header gives a rate that no recording has, or that is far from the wanted one."""
    if not 1 <= rate <= MOST_RATE:
        raise BadValue(f"{where} says {rate} samples per second; 1 to {MOST_RATE} are read.", "Write the sound again.")
    if to > rate * MOST_UPSAMPLING:
        raise BadValue(
            f"{where} has {rate} samples per second: brought to {to}, each would become {to / rate:.0f} "
            f"(at most {MOST_UPSAMPLING}).",
            "Correct its header, or the rate that is wanted.",
        )


def soundfile_package() -> Any:
    """Raises UsageError where it is not installed."""
    try:
        import soundfile
    except (ImportError, OSError) as e:
        raise UsageError(f"Sound files need the package soundfile ({e}).", "Install it: pip install soundfile.") from e
    return soundfile


@contextmanager
def _decoding(path: Path) -> Iterator[Any]:
    """The package soundfile. Raises CorruptFile, by whatever name it reports what is wrong with a file."""
    soundfile = soundfile_package()
    try:
        yield soundfile
    except (soundfile.SoundFileError, OSError, ValueError, OverflowError) as e:
        raise corrupt(path, "a sound", getattr(e, "error_string", e)) from e


def _head(path: Path) -> Any:
    """What soundfile says of the file: samplerate, channels, frames, subtype."""
    with _decoding(path) as soundfile:
        head = soundfile.info(str(path))
        with path.open("rb") as file:
            kind, size = struct.unpack("<4sI", file.read(8).ljust(8, b"\0"))
    # libsndfile takes a WAV file that was cut off for a shorter one; sizes that writers to pipes leave say nothing
    if kind == b"RIFF" and 0 < size < 2**32 - 2**16 and path.stat().st_size < size:
        raise corrupt(path, "a sound", f"it has {path.stat().st_size} bytes where its header says {size + 8}")
    return head


def _amplitude(path: Path, head: Any) -> NDArray:
    """The mean of all channels, float64 [L]: decoded block by block, whatever length the header claims."""
    most, blocks, length = max(MOST_SAMPLES, MOST_RATIO * path.stat().st_size), [np.zeros(0)], 0
    with _decoding(path) as soundfile, soundfile.SoundFile(str(path)) as file:
        while len(samples := file.read(max(1, BLOCK // file.channels), dtype="float64", always_2d=True)):
            length += len(samples)
            if length * file.channels > most:
                raise corrupt(path, "a sound", f"it holds more than {most} samples, the limit for a file of its size")
            blocks.append(samples[:, 0] if samples.shape[1] == 1 else samples.mean(1))
    if length != head.frames:
        raise corrupt(path, "a sound", f"it has {length} samples where its header says {head.frames}")
    amplitude = np.concatenate(blocks)
    if not np.isfinite(amplitude).all():
        raise BadValue(f"{path} holds samples that are no finite numbers.", "Write the file again.")
    return amplitude


def _resampled(amplitude: NDArray, rate: int, to: int) -> NDArray:
    if rate == to or not len(amplitude):
        return amplitude
    from scipy.signal import resample_poly

    common = math.gcd(rate, to)
    return np.asarray(resample_poly(amplitude, to // common, rate // common))


def _raw(sounds: list[NDArray], rate: int, how: Options, where: str, notes: list[str]) -> RawRagged:
    law, levels, _ = _coding(how)
    if not any(map(len, sounds)):
        raise EmptyData(f"{where} holds no sound of any length.", "Give sounds with samples.")
    offsets = np.cumsum([0, *map(len, sounds)])
    rows = RaggedRows.joined(np.concatenate(sounds), offsets, -1, torch.int64)
    return RawRagged(Audio(rate, levels, law, True, int(rows.lengths.max())), rows, notes=notes)


def is_audio(arrays: Mapping[str, NDArray]) -> bool:
    """Do arrays hold sounds, end to end?"""
    return {"audio", "offsets"} <= by_part(arrays).keys()


def from_arrays(arrays: Mapping[str, NDArray], name: str, how: Options) -> RawRagged:
    """``audio`` [T] (16-bit samples, or amplitudes in [-1, 1]), ``offsets`` [N + 1], ``sample_rate``, labels [N].

    With train, valid or test before or after their names, arrays are parts. A label is a class, or with an array
    ``<label>_names`` the number of one. Raises WrongShape, BadValue, EmptyData, UsageError.
    """
    keys = by_part(arrays)
    audio, bounds = keys["audio"], keys["offsets"]
    if set(audio) != set(bounds) or (None in audio and len(audio) > 1):
        raise WrongShape(
            f"{name} has sounds in {', '.join(audio.values())}, but offsets in {', '.join(bounds.values())}.",
            "Give one for each.",
        )
    parts = sorted(audio, key=lambda p: -1 if p is None else p)
    sounds: list[NDArray] = []
    for p in parts:
        values, offsets = arrays[audio[p]], arrays[bounds[p]]
        if values.ndim != 1 or offsets.ndim != 1 or not len(offsets) or (np.diff(offsets) < 0).any():
            shapes = f"{list(values.shape)} and {list(offsets.shape)}"
            raise WrongShape(f"{name}: {audio[p]} and {bounds[p]} are {shapes}.", "Give [T] and rising [N + 1].")
        if offsets[0] < 0 or offsets[-1] > len(values):
            raise WrongShape(f"{name}: {bounds[p]} goes to {offsets[-1]}; there are {len(values)} samples.")
        sounds += np.split(values, offsets)[1:-1]
    law, levels, wanted = _coding(how)
    rate = _rate(arrays, name, wanted)
    to = wanted or rate
    _check_rates(rate, to, name)
    notes = [] if rate == to else [f"All sounds were resampled from {rate} to {to} Hz."]
    coded = [_clipped(_resampled(_scaled(s, name), rate, to), law, levels) for s in sounds]
    raw = _raw(_said(coded, notes), to, how, name, notes)
    if parts != [None]:
        raw.part = np.repeat(np.array(parts), [len(arrays[bounds[p]]) - 1 for p in parts])
    others = [k for k in arrays if k not in {*audio.values(), *bounds.values()}]
    raw.beside = beside(arrays, others, parts, len(sounds))
    if (found := _label(arrays, keys, parts, len(sounds), how, notes)) is not None:
        raw.classes, raw.label = found
    return raw.without_empty("sounds of no samples were left out.", how)


def _rate(arrays: Mapping[str, NDArray], name: str, wanted: int | None) -> int:
    for key in ("sample_rate", "rate", "samplerate", "sr"):
        if key in arrays and arrays[key].size == 1 and arrays[key].dtype.kind in "iuf":
            rate = arrays[key].item()
            if not math.isfinite(rate):
                raise BadValue(f"{name}: {key} is {rate}.", "Give samples per second.")
            return int(rate)
    if wanted is None:
        raise WrongShape(f"{name} does not say how many samples a second has.", "Add sample_rate, or give --rate.")
    return wanted


def _scaled(samples: NDArray, name: str) -> NDArray:
    """Amplitudes of whole samples (8, 16 or 32 bits) or of floats."""
    if samples.dtype.kind == "f":
        if not np.isfinite(samples).all():
            raise BadValue(f"{name} holds samples that are no finite numbers.", "Correct the array.")
        return samples.astype(np.float64)
    if samples.dtype == np.uint8:
        return samples / 128 - 1
    if samples.dtype.kind != "i":
        raise BadValue(f"{name} holds {samples.dtype} samples.", "Give int16 samples, or floats in [-1, 1].")
    return samples / 2.0 ** (8 * samples.dtype.itemsize - 1)


def _label(
    arrays: Mapping[str, NDArray],
    keys: Mapping[str, Mapping[int | None, str]],
    parts: list[int | None],
    n: int,
    how: Options,
    notes: list[str],
) -> tuple[str, NDArray] | None:
    """The array that is wanted, or is given, or the first that can be meant, and by it the class of each sound [n]."""
    by_name = {k: [arrays[by[p]] for p in parts] for k, by in keys.items() if set(by) == set(parts)}
    can = {k: np.concatenate(a) for k, a in by_name.items() if k not in ("audio", "offsets") and a[0].ndim == 1}
    can = {k: a for k, a in can.items() if len(a) == n and a.dtype.kind in "iuUSb"}
    wanted = how.label or next((k for k in how.beside if k in can), None)
    if wanted is not None and wanted not in can:
        raise UsageError(f"No array {wanted!r} holds a class of each of {n} sounds.", f"There are: {', '.join(can)}.")
    if not can:
        return None
    chosen = wanted or next((k for k in can if k in LABELS), next(iter(can)))
    if others := [k for k in can if k != chosen]:
        notes.append(f"Labels are {chosen!r}; there are also {', '.join(others)} (choose with --label or --given).")
    names, codes = arrays.get(f"{chosen}_names"), can[chosen]
    return chosen, codes if names is None or codes.dtype.kind not in "iu" else np.asarray(names)[codes]


def pcm(space: Audio, x: Tensor) -> NDArray:
    """One sound [L] up to its end as 16-bit samples, int16; the level of a 16-bit sample comes back as it was."""
    amplitude = space.amplitudes(x[: int(space.lengths(x))]).numpy()
    return np.rint(amplitude * 32768).clip(-32768, 32767).astype(np.int16)


def wav(samples: NDArray, rate: int) -> bytes:
    """A WAV file of 16-bit samples int16 [L]."""
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setparams((1, 2, rate, len(samples), "NONE", ""))
        file.writeframes(samples.astype("<i2").tobytes())
    return out.getvalue()
