"""Folders, patterns and addresses: which of their files are read, in which order, and what is said of all others."""

from __future__ import annotations

import glob
import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from pofx.core.errors import CannotSave, MissingSource, UsageError
from pofx.data.options import Options
from pofx.data.ragged import Fetch, NDArray
from pofx.data.split import TEST, TRAIN, VALID, pick

PARTS = {
    **dict.fromkeys(("train", "training"), TRAIN),
    **dict.fromkeys(("valid", "val", "validation", "dev"), VALID),
    **dict.fromkeys(("test", "testing", "t10k"), TEST),
}


CAPTIONS = ("captions.csv", "metadata.csv", "captions.jsonl", "metadata.jsonl")  # what is said of a folder's files
FILE = "file_name"  # the column or key of each one's name


@dataclass
class Listing:
    """The files below a folder.

    Attributes:
        folder: where they lie.
        files: those that can be seen, in natural order (img9 before img10).
        aside: what is never read: "hidden", "broken link", "no file" (sockets, pipes, devices), and how many of each.
    """

    folder: Path
    files: list[Path] = field(default_factory=list)
    aside: Counter[str] = field(default_factory=Counter)

    def chosen(self, wanted: Callable[[Path], bool], notes: list[str], read: Container[str] = ()) -> list[Path]:
        """The files that are wanted; a note counts all others by their kinds, but for those ``read`` besides."""
        found = [p for p in self.files if wanted(p)]
        others = self.kinds(p for p in self.files if not wanted(p) and p.name.lower() not in read) + self.aside
        if others:
            total = others.total()
            notes.append(f"{total} {'files were' if total > 1 else 'file was'} left out: {listed(others)}.")
        return found

    @staticmethod
    def kinds(files: Iterable[Path]) -> Counter[str]:
        return Counter(p.suffix.lower() or "without suffix" for p in files)


def listed(counts: Counter[str], most: int = 5) -> str:
    """``10 .webp, 2 .db``: the commonest first."""
    shown = [f"{n} {kind}" for kind, n in counts.most_common(most)]
    rest = counts.total() - sum(n for _, n in counts.most_common(most))
    return ", ".join([*shown, f"{rest} more"] if rest else shown)


def listing(folder: Path) -> Listing:
    """All that lies below a folder, links to folders followed once. Raises MissingSource for one that cannot be opened.

    Hidden are names that begin with a dot, and folders that begin with two underscores (__MACOSX, __pycache__).
    """
    found, seen = Listing(folder), set[tuple[int, int]]()

    def walk(place: Path) -> None:
        about = place.stat()
        if (about.st_dev, about.st_ino) in seen:
            return
        seen.add((about.st_dev, about.st_ino))
        with os.scandir(place) as entries:
            for entry in entries:
                if entry.name.startswith(".") or (entry.name.startswith("__") and entry.is_dir()):
                    found.aside["hidden"] += 1
                elif entry.is_dir():
                    walk(place / entry.name)
                elif entry.is_file():
                    found.files.append(place / entry.name)
                else:
                    broken = entry.is_symlink() and not os.path.exists(entry.path)
                    found.aside["broken link" if broken else "no file"] += 1

    try:
        walk(folder)
    except OSError as e:
        raise MissingSource(f"{e.filename} cannot be opened: {e.strerror}.", "Check its permissions.") from e
    found.files.sort(key=natural)
    return found


def by_folder(folder: Path, files: list[Path], notes: list[str]) -> tuple[NDArray | None, NDArray | None]:
    """(part, label) [N] of each file by its place: train / valid / test at the top are parts, sub-folders labels."""
    places = [f.relative_to(folder).parts[:-1] for f in files]
    part: NDArray | None = None
    if all(p and p[0].lower() in PARTS for p in places) and any(PARTS[p[0].lower()] == TRAIN for p in places):
        part = np.array([PARTS[p[0].lower()] for p in places])
        places = [p[1:] for p in places]
    if all(places):
        return part, np.array([p[0] for p in places])
    if any(places):
        notes.append("Some files lie in sub-folders and some do not: no labels were taken from the folders.")
    return part, None


def drawn(
    found: Listing, suffixes: Sequence[str], how: Options, notes: list[str]
) -> tuple[list[Path], NDArray | None, NDArray | None, NDArray | None]:
    """The files of a kind, and of each [N] its part and label by its place.

    Of more than ``how.max_rows`` so many are drawn, by ``how.seed``: their numbers [N] come last.
    """
    files = found.chosen(lambda p: p.suffix.lower() in suffixes, notes, CAPTIONS if how.beside else ())
    part, label = by_folder(found.folder, files, notes)
    if (index := pick(len(files), how.max_rows, how.seed)) is None:
        return files, part, label, None
    numbers = index.numpy()
    part, label = (None if a is None else a[numbers] for a in (part, label))
    return [files[i] for i in numbers], part, label, numbers


def names_below(folder: Path, files: Iterable[Path]) -> list[str]:
    """Of each file its path below the folder, with / between folders."""
    return [f.relative_to(folder).as_posix() for f in files]


def composed(name: str) -> str:
    """A name in Unicode's composed form (NFC): some systems write é as two characters, others as one."""
    return unicodedata.normalize("NFC", name)


def finder(files: Iterable[str]) -> Callable[[str], list[int]]:
    """What finds the numbers of the files that a name may mean, first by whole paths, then by how these end.

    A name may leave out the suffix, or folders above; or say folders above the one that the files are named from.

    Example:
        >>> find = finder(["wavs/a.wav", "wavs/b.wav"])
        >>> find("wavs/a.wav"), find("b.wav"), find("b"), find("corpus/wavs/b.wav"), find("other/b.wav")
        ([0], [1], [1], [1], [])
    """
    known = [defaultdict[str, list[int]](list) for _ in range(4)]  # whole, without suffix, and the ends of both
    for i, file in enumerate(files):
        path = PurePosixPath(composed(file))
        for bare, parts in enumerate((path.parts, path.with_suffix("").parts)):
            known[bare]["/".join(parts)].append(i)
            for k in range(1, len(parts)):
                known[2 + bare]["/".join(parts[k:])].append(i)

    def find(name: str) -> list[int]:
        parts = PurePosixPath(composed(name)).parts
        asked = [(by, "/".join(parts)) for by in known]
        asked += [(by, "/".join(parts[k:])) for k in range(1, len(parts)) for by in known[:2]]
        return next((by[end] for by, end in asked if end in by), [])

    return find


def by_part(arrays: Iterable[str]) -> dict[str, dict[int | None, str]]:
    """Names of arrays by what they say beside a part, and by that part: train_x is found["x"][TRAIN]."""
    found: dict[str, dict[int | None, str]] = {}
    for name in arrays:
        words = re.split(r"[_\-. ]+", name.lower())
        parts = [PARTS[w] for w in words if w in PARTS]
        rest = "_".join(w for w in words if w not in PARTS)
        found.setdefault(rest, {})[parts[0] if parts else None] = name
    return found


def beside(
    arrays: Mapping[str, NDArray], names: Iterable[str], parts: Sequence[int | None], n: int
) -> dict[str, Fetch]:
    """Those of the named arrays that have a value [n, ...] for each row, all parts of one below each other.

    One that is of no part has its own name; x28 is that of train_x28 and test_x28.
    """
    found: dict[str, Fetch] = {}
    for key, by in by_part({name: arrays[name] for name in names}).items():
        if set(by) == set(parts) and all(arrays[k].ndim for k in by.values()):
            values = [arrays[by[p]] for p in parts]
            if sum(map(len, values)) == n and len({v.shape[1:] for v in values}) == 1:
                found[by.get(None, key)] = partial(np.concatenate, values)
    return found


def check_free(path: Path) -> None:
    """Raises CannotSave where something is at the place of a new folder."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise CannotSave(f"{path} exists and is not an empty folder.", "Choose another place.")


def numbered(folder: Path, n: int, suffix: str, classes: Sequence[str] | None) -> Iterator[Path]:
    """Makes a folder, and names n files in it, in sub-folders by their classes [n] where there are any."""
    folder.mkdir()
    for i in range(n):
        into = folder if classes is None else folder / classes[i].replace(os.sep, "_")
        into.mkdir(exist_ok=True)
        yield into / f"{i:0{max(5, len(str(n)))}d}{suffix}"


def natural(path: str | Path) -> list[list[tuple[int, int, str]]]:
    """By which files are sorted, folder by folder: img9 before img10."""
    return [
        [(0, int(s), "") if s.isdecimal() else (1, 0, s) for s in re.split(r"(\d+)", part) if s]
        for part in str(path).split(os.sep)
    ]


def files_at(source: str) -> list[str]:
    """The files of a path, a folder (all below) or a pattern ('folder/*.parquet'), here or at an address of fsspec.

    In natural order; names that begin with "_" or "." are what writers keep beside. Raises MissingSource.
    """
    if "://" in source:
        system, path = _system(source)
        try:
            names = system.glob(path) if glob.has_magic(path) else system.find(path)
        except (ValueError, OSError) as error:  # no answer
            raise MissingSource(f"{source} cannot be opened: {error}.", "Check the address.") from error
        found = [str(system.unstrip_protocol(name)) for name in names]
    elif os.path.isdir(source):
        found = [str(path) for path in listing(Path(source)).files]
    else:
        found = [source] if os.path.exists(source) else [f for f in glob.glob(source) if os.path.isfile(f)]
    if not found:
        raise MissingSource(f"There is no file {source}.", "Check the path, the address, or the pattern.")
    return sorted((f for f in found if not f.rpartition("/")[2].startswith(("_", "."))), key=natural)


def opened(file: str) -> Any:
    """What pyarrow reads a file by: its path, or of an address a file object."""
    if "://" not in file:
        return file
    system, path = _system(file)
    return system.open(path, "rb")


def _system(address: str) -> tuple[Any, str]:
    """The file system of an address, and the path there."""
    try:
        import fsspec
    except ImportError as error:
        raise UsageError(f"{address} is read by fsspec, which is not installed.", "pip install 'pofx[ray]'.") from error
    try:
        system, path = fsspec.url_to_fs(address)
    except (ImportError, ValueError, OSError) as error:  # the protocol's own library, no protocol
        raise MissingSource(f"{address} cannot be opened: {error}.", "Check the address.") from error
    return system, path
