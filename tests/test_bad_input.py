"""What users get wrong, each answered by a named error, its exit code, the value and the remedy.

``python tests/test_bad_input.py`` prints the table.
"""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image as Picture

from pofx.cli import main

Arguments = list[str]
CASES: dict[str, tuple[Callable[[Path], Arguments], int, str]] = {}


def case(name: str, code: int, error: str):
    """Register a mistake: a function that makes the files and returns the command line."""

    def add(make: Callable[[Path], Arguments]) -> Callable[[Path], Arguments]:
        CASES[name] = make, code, error
        return make

    return add


def csv(folder: Path, text: str, name: str = "t.csv") -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def good_csv(folder: Path) -> str:
    rng = np.random.default_rng(0)
    rows = [f"{rng.normal():.6f},{rng.integers(0, 9)},{rng.choice(list('xyz'))}" for _ in range(60)]
    return csv(folder, "a,b,c\n" + "\n".join(rows) + "\n", "good.csv")


def pictures(folder: Path, sizes: list[tuple[int, int]]) -> str:
    place = folder / "pictures"
    place.mkdir()
    for k, size in enumerate(sizes):
        Picture.fromarray(np.full(size, 10 * k % 255, np.uint8)).save(place / f"{k:03}.png")
    return str(place)


def fitted(folder: Path) -> Path:
    """A small run on good.csv."""
    assert main(["fit", good_csv(folder), "independent", "--epochs", "1", "--out", str(folder / "run"), "--quiet"]) == 0
    return folder / "run"


@case("missing file", 3, "MissingSource")
def _(f):
    good_csv(f)
    return ["data", str(f / "goood.csv")]


@case("empty file", 3, "EmptyData")
def _(f):
    return ["data", csv(f, "")]


@case("header without rows", 3, "EmptyData")
def _(f):
    return ["data", csv(f, "a,b\n")]


@case("ragged CSV", 3, "RaggedTable")
def _(f):
    return ["data", csv(f, "a,b\n1,2\n3\n4,5,6\n" + "1,2\n" * 20)]


@case("a quote that never closes", 3, "RaggedTable")
def _(f):
    return ["data", csv(f, 'a,b\n1,x\n2,"y\n' + "3,z\n" * 30)]


@case("two columns of one name", 3, "BadValue")
def _(f):
    return ["data", csv(f, "a,a\n" + "1.5,2\n" * 30)]


@case("JSON", 3, "UnknownFormat")
def _(f):
    return ["data", csv(f, '[{"a": 1}]', "t.json")]


@case("names for other columns", 2, "UsageError")
def _(f):
    return ["data", good_csv(f), "--names", "p,q"]


@case("a date format that dates do not have", 3, "BadValue")
def _(f):
    return ["data", csv(f, "a,b\n" + "31.12.2020,2\n" * 30), "--formats", "a=mdy"]


@case("a CSV option for what is no CSV", 2, "UsageError")
def _(f):
    return ["data", "digits", "--missing", "NA"]


@case("all-missing column", 3, "BadValue")
def _(f):
    return ["data", csv(f, "a,b\n" + "".join(f"{k}.5,\n" for k in range(30)))]


@case("infinity in a column", 3, "BadValue")
def _(f):
    return ["data", csv(f, "a,b\n" + "".join(f"{k * 0.37},{k}\n" for k in range(30)) + "inf,3\n")]


@case("NaN where none was in training", 3, "BadValue")
def _(f):
    run = fitted(f)
    return ["log-prob", str(run), csv(f, "a,b,c\nnan,1,x\n", "new.csv")]


@case("unknown category", 3, "BadValue")
def _(f):
    run = fitted(f)
    return ["log-prob", str(run), csv(f, "a,b,c\n0.1,1,q\n", "new.csv")]


@case("missing column in new rows", 3, "WrongShape")
def _(f):
    run = fitted(f)
    return ["log-prob", str(run), csv(f, "a,c\n0.1,x\n", "new.csv")]


@case("classes of a run that knows of none", 4, "Unsupported")
def _(f):
    return ["predict", str(fitted(f)), str(f / "good.csv")]


def classified(folder: Path) -> str:
    """A small classifier of good.csv's c."""
    args = ["fit", good_csv(folder), "classifier", "--target", "c", "--steps", "2", "--out", str(folder / "run")]
    assert main([*args, "--quiet"]) == 0
    return str(folder / "run")


@case("a column that classes are told from is missing", 3, "WrongShape")
def _(f):
    return ["predict", classified(f), csv(f, "a,c\n0.1,x\n", "new.csv")]


@case("predictions of no known format", 2, "UsageError")
def _(f):
    return ["predict", classified(f), str(f / "good.csv"), "--out", str(f / "p.xlsx")]


@case("a pattern that no file fits", 3, "MissingSource")
def _(f):
    return ["log-prob", str(fitted(f)), str(f / "*.parquet")]


@case("a folder without tables", 3, "MissingSource")
def _(f):
    run = fitted(f)
    return ["log-prob", str(run), pictures(f, [(8, 8)] * 3)]


@case("a cluster that is not there", 2, "UsageError")
def _(f):
    return ["sample", str(fitted(f)), "2", "--cluster", "127.0.0.1:1"]


@case("a cluster for what is no table", 2, "UsageError")
def _(f):
    return ["log-prob", str(fitted(f)), "digits", "--cluster", "local"]


@case("wrong label", 2, "UsageError")
def _(f):
    args = ["fit", "digits", "independent", "--given", "label", "--epochs", "1", "--out", str(f / "run"), "--quiet"]
    assert main(args) == 0
    return ["sample", str(f / "run"), "2", "--given", "eleven", "--out", str(f / "s.npz")]


@case("image of another size", 3, "WrongShape")
def _(f):
    return ["data", pictures(f, [(8, 8)] * 5 + [(9, 8)])]


@case("corrupt PNG", 3, "CorruptFile")
def _(f):
    place = pictures(f, [(8, 8)] * 5)
    whole = (Path(place) / "002.png").read_bytes()
    (Path(place) / "002.png").write_bytes(whole[: len(whole) // 2])
    return ["data", place]


@case("corrupt Parquet", 3, "CorruptFile")
def _(f):
    return ["data", csv(f, "PAR1 not really", "t.parquet")]


@case("a folder of Parquet files with other columns", 3, "RaggedTable")
def _(f):
    place = f / "parts"
    place.mkdir()
    for name in ("a", "b"):
        pq.write_table(pa.table({name: [1.5, 2.5]}), place / f"{name}.parquet")
    return ["data", str(place)]


@case("an address that nothing is at", 3, "MissingSource")
def _(f):
    pytest.importorskip("fsspec")
    return ["data", f"file://{f}/nothing-*.parquet"]


@case("no amount of memory", 2, "UsageError")
def _(f):
    return ["data", good_csv(f), "--memory", "much"]


@case("memory for what is no table", 2, "UsageError")
def _(f):
    return ["data", pictures(f, [(4, 4)] * 12), "--memory", "4GB"]


@case("too many rows for the memory", 6, "OutOfMemory")
def _(f):
    return ["data", good_csv(f), "--memory", "1KB"]


@case("damaged Arrow", 3, "CorruptFile")
def _(f):
    return ["data", csv(f, "ARROW1 not really", "t.arrow")]


@case("a number that overflows", 3, "BadValue")
def _(f):
    return ["data", csv(f, "a,b\n" + "".join(f"{k * 0.37},{k}\n" for k in range(30)) + "1.7e308,3\n")]


@case("a wrong name of an array", 2, "UsageError")
def _(f):
    np.savez(f / "t.npz", small=np.ones((30, 4, 4), np.uint8), large=np.ones((30, 9, 9), np.uint8))
    return ["data", str(f / "t.npz"), "--arrays", "smal"]


@case("arrays of a file that has none", 2, "UsageError")
def _(f):
    return ["data", good_csv(f), "--arrays", "a"]


@case("an archive under a password", 3, "CorruptFile")
def _(f):
    np.savez(f / "t.npz", x=np.ones((30, 2)))
    packed = bytearray((f / "t.npz").read_bytes())
    packed[6] |= 1
    packed[packed.find(b"PK\1\2") + 8] |= 1
    (f / "t.npz").write_bytes(packed)
    return ["data", str(f / "t.npz")]


@case("truncated checkpoint", 5, "CorruptCheckpoint")
def _(f):
    weights = fitted(f) / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-40])
    return ["sample", str(f / "run"), "2"]


@case("a flipped bit in the weights", 5, "CorruptCheckpoint")
def _(f):
    weights = fitted(f) / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-9] ^= 1
    weights.write_bytes(bytes(content))
    return ["log-prob", str(f / "run")]


@case("a config edited by hand", 5, "CorruptCheckpoint")
def _(f):
    config = fitted(f) / "config.json"
    config.write_text(config.read_text().replace('"seed": 0', '"seed": 1'))
    return ["resume", str(f / "run")]


@case("a fit that is to go on on a cluster", 2, "UsageError")
def _(f):
    return ["resume", str(fitted(f)), "--cluster", "local"]


@case("a run without weights yet", 5, "NoRun")
def _(f):
    (fitted(f) / "weights.safetensors").unlink()
    return ["log-prob", str(f / "run")]


@case("a folder whose name is too long", 5, "CannotSave")
def _(f):
    return ["fit", good_csv(f), "independent", "--out", str(f / ("run" * 100)), "--quiet"]


@case("a net that no memory holds", 6, "OutOfMemory")
def _(f):
    return ["fit", good_csv(f), "vae", "--options.hidden", "1000000000", "--out", str(f / "run"), "--quiet"]


@case("checkpoint of a newer version", 5, "NewerFormat")
def _(f):
    config = fitted(f) / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"format": 1000}))
    return ["sample", str(f / "run"), "2"]


@case("no run folder", 5, "NoRun")
def _(f):
    return ["sample", str(f / "nothing"), "2"]


@case("a run is there already", 5, "RunExists")
def _(f):
    run = fitted(f)
    return ["fit", str(f / "good.csv"), "independent", "--out", str(run), "--quiet"]


@case("a comparison of something else is there already", 5, "RunExists")
def _(f):
    args = ["compare", good_csv(f), "--families", "independent", "--seconds", "0.2", "--samples", "40", "--quiet"]
    assert main([*args, "--out", str(f / "c")]) == 0
    return [*args, "--out", str(f / "c"), "--seed", "3"]


@case("fit that has no weights yet", 5, "NoRun")
def _(f):
    run = fitted(f)
    for name in ("weights.safetensors", "resume.safetensors", "log.jsonl"):
        (run / name).unlink()
    return ["sample", str(run), "2"]


@case("data that changed since the fit", 3, "DataChanged")
def _(f):
    run = fitted(f)
    header, *rows = (f / "good.csv").read_text().splitlines()
    csv(f, "\n".join([header, *sorted(rows)]) + "\n", "good.csv")
    return ["log-prob", str(run)]


@case("unwritable folder", 5, "CannotSave")
def _(f):
    (f / "file").write_text("not a folder")
    return ["fit", good_csv(f), "independent", "--out", str(f / "file" / "run"), "--quiet"]


@case("a family that does not support the space", 4, "Unsupported")
def _(f):
    return ["fit", good_csv(f), "classifier", "--epochs", "1", "--out", str(f / "run"), "--quiet"]


@case("no likelihood to give", 4, "Unsupported")
def _(f):
    args = ["fit", good_csv(f), "gan", "--steps", "2", "--out", str(f / "run"), "--quiet"]
    assert main(args) == 0
    return ["log-prob", str(f / "run")]


@case("an impossible budget", 2, "UsageError")
def _(f):
    return ["fit", good_csv(f), "independent", "--seconds", "-5", "--out", str(f / "run"), "--quiet"]


@case("two budgets", 2, "UsageError")
def _(f):
    return ["fit", good_csv(f), "independent", "--seconds", "5", "--epochs", "2", "--out", str(f / "run"), "--quiet"]


@case("two budgets of a comparison", 2, "UsageError")
def _(f):
    return ["compare", good_csv(f), "--seconds", "5", "--minutes", "1", "--out", str(f / "c"), "--quiet"]


@case("too few minutes for a comparison", 2, "UsageError")
def _(f):
    return ["compare", good_csv(f), "--minutes", "0.1", "--out", str(f / "c"), "--quiet"]


@case("no cores for a family", 2, "UsageError")
def _(f):
    return ["compare", good_csv(f), "--cores", "0", "--out", str(f / "c"), "--quiet"]


@case("misspelt family", 2, "UsageError")
def _(f):
    return ["fit", good_csv(f), "indpendent"]


@case("misspelt option", 2, "UsageError")
def _(f):
    return ["fit", good_csv(f), "gmm", "--secnds", "3"]


@case("misspelt option of a family", 2, "UsageError")
def _(f):
    return ["fit", "--options.componets", "3", good_csv(f), "gmm"]


@case("an option without its value", 2, "UsageError")
def _(f):
    return ["data", good_csv(f), "--drop"]


@case("a list over several arguments", 2, "UsageError")
def _(f):
    return ["fit", good_csv(f), "--drop", "a", "b", "gmm"]


@case("no source", 2, "UsageError")
def _(f):
    return ["data", "--drop", "a"]


@case("no family", 2, "UsageError")
def _(f):
    return ["fit", good_csv(f)]


@case("a device that is none", 2, "UsageError")
def _(f):
    return ["fit", good_csv(f), "gmm", "--device", "abacus", "--quiet"]


@case("misspelt command", 2, "")
def _(f):
    return ["fitt", good_csv(f)]


@case("misspelt column", 2, "UsageError")
def _(f):
    return ["data", good_csv(f), "--given", "bb"]


@case("unknown need", 2, "UsageError")
def _(f):
    return ["compare", good_csv(f), "--need", "world-peace", "--out", str(f / "c"), "--quiet", "--seconds", "1"]


def speech(folder: Path) -> str:
    """A text of many words."""
    rng = np.random.default_rng(0)
    return csv(folder, "\n".join(" ".join(rng.choice(["to", "be", "or", "not"], 8)) for _ in range(300)), "t.txt")


def talker(folder: Path, *options: str) -> Path:
    """A small language model of that text."""
    tiny = ["--options.width", "16", "--options.layers", "1", "--options.n-heads", "1", "--options.block", "32"]
    args = ["fit", speech(folder), "gpt", "--steps", "2", "--out", str(folder / "run"), "--quiet", *tiny, *options]
    assert main(args) == 0
    return folder / "run"


def sound(path: Path, rate: int = 8000, samples: int = 4000) -> None:
    import soundfile

    wave = np.sin(np.arange(samples) / 9) * 0.5
    soundfile.write(str(path), wave, rate)


@case("binary file given as text", 3, "BadValue")
def _(f):
    (f / "t.txt").write_bytes(bytes(range(256)) * 40)
    return ["fit", str(f / "t.txt"), "gpt", "--steps", "1", "--out", str(f / "run"), "--quiet"]


@case("text in another encoding", 3, "BadValue")
def _(f):
    (f / "t.txt").write_bytes(("café " * 500).encode("latin-1"))
    return ["data", str(f / "t.txt")]


@case("empty corpus", 3, "EmptyData")
def _(f):
    return ["fit", csv(f, " \n\n \n", "t.txt"), "gpt", "--steps", "1", "--out", str(f / "run"), "--quiet"]


@case("corpus shorter than a block", 2, "UsageError")
def _(f):
    return ["fit", speech(f), "gpt", "--steps", "1", "--options.block", "100000", "--out", str(f / "run"), "--quiet"]


@case("character that the text never had", 3, "BadValue")
def _(f):
    return ["log-prob", str(talker(f)), csv(f, "to be Ω", "new.txt")]


@case("prompt longer than the context", 2, "UsageError")
def _(f):
    return ["sample", str(talker(f)), "1", "--prompt", "to be or not " * 9]


@case("draft of other symbols", 2, "UsageError")
def _(f):
    big = talker(f).rename(f / "big")
    small = talker(f, "--symbols", "bytes")
    return ["sample", str(big), "1", "--prompt", "to", "--draft", str(small), "--length", "5"]


@case("tokenizer of another checkpoint", 3, "BadValue")
def _(f):
    from tokenizers import Tokenizer

    gpt2 = "--options.positions learned --options.mlp gelu --options.bias all --options.no-qk-norm"
    run = talker(f, *gpt2.split(), "--options.no-marginal")
    assert main(["export", str(run), str(f / "hf"), "--quiet"]) == 0
    place = f / "hf" / "tokenizer.json"
    other = Tokenizer.from_file(str(place))
    other.add_tokens([f"word{k}" for k in range(9)])
    other.save(str(place))
    return ["log-prob", str(f / "hf"), csv(f, "to be", "new.txt")]


@case("temperature of zero", 2, "UsageError")
def _(f):
    return ["sample", str(talker(f)), "1", "--temperature", "0"]


@case("sound of another rate", 3, "WrongShape")
def _(f):
    (f / "sounds").mkdir()
    for k in range(4):
        sound(f / "sounds" / f"{k}.wav", 8000 if k else 16000)
    return ["data", str(f / "sounds")]


@case("truncated FLAC", 3, "CorruptFile")
def _(f):
    (f / "sounds").mkdir()
    for k in range(4):
        sound(f / "sounds" / f"{k}.flac")
    whole = (f / "sounds" / "2.flac").read_bytes()
    (f / "sounds" / "2.flac").write_bytes(whole[: len(whole) // 2])
    return ["data", str(f / "sounds")]


@case("truncated compressed text", 3, "CorruptFile")
def _(f):
    (f / "t.md.gz").write_bytes(gzip.compress(b"so much text\n" * 300)[:-12])
    return ["data", str(f / "t.md.gz")]


@case("half a character in JSON lines", 3, "BadValue")
def _(f):
    return ["data", csv(f, '{"text": "\\udcba"}\n' * 20, "t.ndjson")]


@case("folder of another format", 3, "MissingSource")
def _(f):
    for k in range(4):
        csv(f, "no picture", f"{k}.heic")
    return ["data", str(f)]


@case("file of another format", 3, "UnknownFormat")
def _(f):
    return ["data", csv(f, "no sound", "t.opus")]


@case("a device", 2, "UsageError")
def _(f):
    return ["data", "/dev/urandom"]


@case("a sound of an impossible rate", 3, "BadValue")
def _(f):
    sound(f / "a.wav")
    whole = bytearray((f / "a.wav").read_bytes())
    whole[24:28] = (2**30).to_bytes(4, "little")
    (f / "a.wav").write_bytes(whole)
    return ["data", str(f / "a.wav")]


@case("images of no size", 2, "UsageError")
def _(f):
    return ["data", pictures(f, [(8, 8)] * 9), "--resize", "0"]


@case("new images of another size", 3, "WrongShape")
def _(f):
    args = ["fit", pictures(f, [(8, 8)] * 9), "independent", "--out", str(f / "run"), "--quiet"]
    assert main(args) == 0
    (f / "new").mkdir()
    return ["log-prob", str(f / "run"), pictures(f / "new", [(9, 8)] * 3)]


@case("a table for a family of sequences", 4, "--sequence COLUMN")
def _(f):
    return ["fit", good_csv(f), "rnn", "--steps", "1", "--out", str(f / "run"), "--quiet"]


@case("pictures for trees", 4, "trees look at columns of a table")
def _(f):
    return ["fit", pictures(f, [(8, 8)] * 9), "trees", "--steps", "1", "--out", str(f / "run"), "--quiet"]


@case("no rows held out to stop by", 2, "held_out")
def _(f):
    return ["fit", good_csv(f), "trees", "--steps", "1", "--out", str(f / "run"), "--options.held-out", "0"]


@case("an order that is none", 2, "UsageError")
def _(f):
    return ["data", good_csv(f), "--sequence", "b", "--order", "c"]


def answer(arguments: Arguments) -> tuple[int, str]:
    """Exit code and standard error of the command, run as a user would."""
    done = subprocess.run([sys.executable, "-m", "pofx.cli", *arguments], capture_output=True, text=True)
    return done.returncode, done.stderr


@pytest.mark.parametrize("name", CASES)
def test_mistakes_are_answered(name, tmp_path, capsys):
    make, code, error = CASES[name]
    arguments = make(tmp_path)
    capsys.readouterr()
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    assert main(arguments) == code
    printed = capsys.readouterr().err
    assert error in printed
    assert "Traceback" not in printed
    assert len(printed) > 40, "the value, the limit and the remedy"
    now = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    assert all(now.get(p) == t for p, t in before.items() if p.is_file()), "a mistake changed a file"


DISK_FULL = """
import resource, signal, sys
from pofx.cli import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4000, resource.RLIM_INFINITY))
sys.exit(main(sys.argv[1:]))
"""


def full_disk(folder: Path) -> tuple[int, str]:
    """A fit whose files may not grow beyond 4000 bytes, as on a full disk."""
    arguments = ["fit", "digits", "independent", "--epochs", "1", "--out", str(folder / "run"), "--quiet"]
    done = subprocess.run([sys.executable, "-c", DISK_FULL, *arguments], capture_output=True, text=True)
    return done.returncode, done.stderr


def test_a_full_disk_is_named(tmp_path):
    code, printed = full_disk(tmp_path)
    assert code == 5
    assert "CannotSave" in printed
    assert "Free some space" in printed
    assert not [p for p in (tmp_path / "run").iterdir() if p.name.startswith(".")], "a temporary file was left"


if __name__ == "__main__":
    import tempfile

    os.environ.setdefault("COLUMNS", "200")
    print("| mistake | exit | error |\n| --- | --- | --- |")
    for title, (make, *_) in CASES.items():
        with tempfile.TemporaryDirectory() as place:
            code, text = answer(make(Path(place)))
            line = " ".join(text.split()).replace(place, "…").replace("|", "\\|")
            print(f"| {title} | {code} | {line.removeprefix('pofx: ')} |")
    with tempfile.TemporaryDirectory() as place:
        code, text = full_disk(Path(place))
        print(
            f"| disk full while saving | {code} | {' '.join(text.split()).replace(place, '…').removeprefix('pofx: ')} |"
        )
