"""The report: it shows what was measured, escapes what others wrote, and needs no network."""

from __future__ import annotations

import base64
import io
import json
import math
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from pofx.core.errors import CannotSave, CorruptCheckpoint, NewerFormat, NoRun
from pofx.data.audio import encode
from pofx.data.parts import Data, Part
from pofx.evaluate.compare import compare
from pofx.evaluate.study import SHOWN_PAIRS
from pofx.report import exhibits, leaderboard, plots
from pofx.report.build import build
from pofx.spaces import Audio, Category, Image, Integer, Label, Real, Table
from pofx.train.fit import fit

HOSTILE = '<script>alert("x")</script>'
VOID = {"meta", "input", "img", "br", "path", "rect", "circle", "use", "link"}


def table_data() -> Data:
    g = torch.Generator().manual_seed(0)
    n = 700
    a = torch.randn(n, generator=g).double()
    space = Table(
        (
            Real("height"),
            Real("weight $x_1$", nullable=True),
            Category("kind & <b>", ("red", HOSTILE), nullable=True),
            Integer("count", 0, 9),
        )
    )
    kind = (a + torch.randn(n, generator=g) > 0).double()
    b = a * 2 + 0.3 * torch.randn(n, generator=g).double()
    b[::9] = math.nan
    x = torch.stack([a, b, kind, torch.randint(0, 10, (n,), generator=g).double()], 1)
    x[::7, 2] = math.nan
    parts = [Part(x[s], label=kind[s].long()) for s in (slice(0, 400), slice(400, 500), slice(500, 700))]
    return Data(
        f"people {HOSTILE}",
        "memory",
        space,
        *parts,
        labels=("no", HOSTILE),
        split="in order",
        notes=(f"note {HOSTILE}",),
    )


def image_data() -> Data:
    g = torch.Generator().manual_seed(1)
    x = torch.randint(0, 4, (400, 1, 5, 6), generator=g, dtype=torch.uint8)
    return Data("noise", "memory", Image(5, 6, 1, 4), Part(x[:250]), Part(x[250:300]), Part(x[300:]))


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("table")
    compare(
        table_data(), ["markov", "gan", "classifier"], seconds=0.3, samples=120, max_test=120, out=folder,
        needs=["likelihood", "fast-sampling"],
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def page(compared: Path) -> str:
    path = build(compared)
    assert path == compared / "report.html"
    return path.read_text()


class Checker(HTMLParser):
    """Balanced tags, and every attribute that could make a browser fetch something."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.fetched: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag not in VOID:
            self.open.append(tag)
        for key, value in attrs:
            if key in ("src", "href", "xlink:href", "data", "action", "poster") and not (value or "").startswith(
                ("#", "data:")
            ):
                self.fetched.append(f"{tag} {key}={value}")
            if key.startswith("on"):
                self.fetched.append(f"{tag} {key}")
            if key == "id" and value:
                self.ids.append(value)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag, f"</{tag}> closes something else"


def check(html: str) -> Checker:
    checker = Checker()
    checker.feed(html)
    assert not checker.open
    return checker


def test_the_page_is_whole_and_needs_no_network(page: str) -> None:
    found = check(page)
    assert found.fetched == []
    assert "script" not in found.tags
    assert not re.search(r"url\((?!#)|@import", page)
    assert 'content="light dark"' in page
    assert "prefers-color-scheme: dark" in page
    assert "@media print" in page


def test_what_others_wrote_is_escaped(page: str) -> None:
    assert HOSTILE not in page
    assert "&lt;script&gt;" in page
    assert "kind &amp; &lt;b&gt;" in page
    assert "weight $x_1$" in page  # not read as mathematics


def test_the_page_shows_what_was_measured(page: str, compared: Path) -> None:
    record = json.loads((compared / "comparison.json").read_text())
    for row in record["rows"]:
        assert f">{row['family']}" in page
        if row["status"] != "ok":
            assert str(row["reason"]).split("'")[0] in page
    ok = {r["family"]: r for r in record["rows"] if r["status"] == "ok"}
    nats = ok["markov"]["likelihood"]["text"].split(" nats")[0].replace("-", "−")
    assert nats in page
    assert "no likelihood" in page  # of the GAN, with its reason
    assert ok["gan"]["likelihood"]["note"][:40] in page
    assert ok["independent"]["likelihood"]["symbol"] == "="
    for word in ("Who beats whom", "Samples beside data", "Training", "What was run", "in order", "gzip"):
        assert word in page
    assert leaderboard.minus(record["recommendation"]["sentences"][0]) in page
    assert page.count("<svg") > 30


def test_the_same_folder_gives_the_same_page(page: str, compared: Path, tmp_path: Path) -> None:
    assert build(compared, tmp_path / "again.html").read_text() == page


def test_images_stand_beside_data(tmp_path: Path) -> None:
    compare(image_data(), ["markov"], seconds=0.3, samples=60, max_test=60, out=tmp_path)
    page = build(tmp_path).read_text()
    check(page)
    pngs = re.findall(r'<img src="data:image/png;base64,([^"]+)" alt="([^"]+)"', page)
    assert pngs[0][1] == "60 held-out images: data"
    assert {alt.split(": ")[1] for _, alt in pngs} == {"data", "markov", "independent", "gaussian"}


def sound_data() -> Data:
    """Tones of two pitches, 12 to 90 samples long, 256 levels by the mu-law."""
    rng = np.random.default_rng(2)
    lengths = np.concatenate([[90], rng.integers(12, 90, 79)])
    pitch = np.arange(80) % 2
    tones = [np.sin(np.arange(n) * (0.3 + k)) for n, k in zip(lengths, pitch, strict=True)]
    space = Audio(4000, 256, "mu", length=90)
    x = torch.full((80, 90), -1)
    for row, tone in zip(x, tones, strict=True):
        row[: len(tone)] = torch.from_numpy(encode(tone, "mu", 256).astype(int))
    c = torch.from_numpy(pitch)
    parts = [Part(x[s], c[s]) for s in (slice(0, 50), slice(50, 60), slice(60, 80))]
    return Data("tones", "memory", space, *parts, context=Label(("low", HOSTILE)))


def clips(page: str) -> list[tuple[np.ndarray, int]]:
    """Samples and rate of every sound on the page."""
    found = re.findall(r'<audio controls [^>]*src="data:audio/wav;base64,([^"]+)"', page)
    return [soundfile.read(io.BytesIO(base64.b64decode(wav)), dtype="int16") for wav in found]


def test_sounds_play_and_speeds_are_drawn(tmp_path: Path) -> None:
    data = sound_data()
    small = {"width": 8, "layers": 1, "block": 32}
    options = {"rnn": small, "gpt": small | {"n_heads": 2}}
    result = compare(data, ["rnn", "gpt"], seconds=0.3, samples=12, max_test=12, out=tmp_path, options=options)
    page = build(tmp_path).read_text()
    checked = check(page)
    assert checked.fetched == []
    assert "script" not in checked.tags
    samples_alone, _, pairs = page.partition('<section id="pairs">')
    found = clips(samples_alone)
    assert len(found) == samples_alone.count('class="waveform"') == 3 * exhibits.SHOWN_SOUNDS
    assert len(clips(pairs)) == pairs.count('class="waveform"') > 2 * SHOWN_PAIRS  # the truth and a draw of each
    assert {rate for _, rate in found} == {4000}
    held_out = np.load(tmp_path / "data_sample.npz")
    for i, (samples, _) in enumerate(found[: exhibits.SHOWN_SOUNDS]):  # the held-out ones come first
        assert np.array_equal(encode(samples / 32768, "mu", 256), held_out["x"][i][held_out["x"][i] >= 0])
    assert f"held-out sound 1, {('low', '&lt;script&gt;')[held_out['c'][0]]}" in page
    rows = {r["family"]: r["sampling"] for r in result.rows if r["status"] == "ok"}
    assert set(rows) == {"rnn", "gpt"}
    for figures in rows.values():
        for n in (1, 16):
            curve = [s for s in figures["speed"] if s["rows"] == n]
            assert all(a["length"] < b["length"] for a, b in pairwise(curve))
            assert all(s["steps_per_second"] > 0 for s in curve)
            assert all(s["seconds"] == pytest.approx(n * s["length"] / s["steps_per_second"]) for s in curve)
    assert ">samples of sound per second<" in page
    assert {"1 at a time", "16 at a time"} <= set(re.findall("[0-9]+ at a time", page))
    one = build(tmp_path / "runs" / "rnn", tmp_path / "one.html").read_text()
    check(one)
    assert len(clips(one.partition('<section id="pairs">')[0])) == 2 * exhibits.SHOWN_SOUNDS
    assert ">16 at a time<" in one  # a line of the plot


def test_one_fit_has_a_report_too(tmp_path: Path) -> None:
    run = tmp_path / "run"
    fit(table_data(), "vae", steps=40, checks=8, out=run)
    page = build(run, tmp_path / "page.html").read_text()
    check(page)
    assert "Report of one fit" in page
    assert "40 steps" in page
    assert "validation nats" in page
    assert HOSTILE not in page


def test_one_run_of_a_comparison_shows_its_samples(compared: Path, tmp_path: Path) -> None:
    page = build(compared / "runs" / "markov", tmp_path / "page.html").read_text()
    check(page)
    assert "Marginals" in page
    assert "C2ST" in page


def test_folders_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(NoRun, match="neither a comparison nor a run"):
        build(tmp_path)
    (tmp_path / "comparison.json").write_text("{")
    with pytest.raises(CorruptCheckpoint):
        build(tmp_path)
    (tmp_path / "comparison.json").write_text('{"format": 99}')
    with pytest.raises(NewerFormat):
        build(tmp_path)


def test_damaged_samples_and_unwritable_places_are_named(compared: Path, tmp_path: Path) -> None:
    with pytest.raises(CannotSave):
        build(compared, compared / "comparison.json" / "report.html")
    broken = tmp_path / "data_sample.npz"
    broken.write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(CorruptCheckpoint, match="damaged"):
        exhibits.load_rows(broken)
    assert exhibits.load_rows(tmp_path / "none.npz") == {}


# -- the parts -----------------------------------------------------------------------------------------------


def test_marginal_distance_is_total_variation() -> None:
    rng = np.random.default_rng(0)
    space = Table((Integer("i", 0, 5, nullable=True), Category("k", ("a", "b", "c")), Real("r")))
    x = np.stack([rng.integers(0, 6, 400), rng.integers(0, 3, 400), rng.normal(size=400)], 1).astype(float)
    y = np.stack([rng.integers(0, 3, 400), np.zeros(400), rng.normal(size=400) + 100], 1).astype(float)
    y[:40, 0] = np.nan
    shown = exhibits.tabular(space, {"x": x, "train_x": x}, {"model": {"x": y}}, None)
    naive = [
        sum(abs((x[:, 0] == v).mean() - (y[:, 0] == v).mean()) for v in range(6)) / 2 + 0.05,
        sum(abs((x[:, 1] == v).mean() - (y[:, 1] == v).mean()) for v in range(3)) / 2,
    ]
    assert shown.exhibits[0].distances[:2] == pytest.approx(naive)
    assert shown.exhibits[0].distances[2] > 0.95  # all beyond the data, in its last bin
    assert shown.reference == pytest.approx([0, 0, 0])
    assert shown.exhibits[0].rows[0] == ["–", "a", f"{y[0, 2]:.6g}"]


def test_pairs_are_the_dependent_ones() -> None:
    rng = np.random.default_rng(1)
    a = rng.normal(size=300)
    # two columns of ties agree in nothing: their rank correlation must not come from the order of the rows
    x = np.stack([a, rng.normal(size=300), np.exp(a), (rng.random(300) < 0.1) * rng.integers(1, 9, 300)], 1)
    space = Table((Real("a"), Real("b"), Real("c"), Integer("d", 0, 9)))
    assert exhibits._pairs(space, x, most=1) == [(0, 2)]
    assert exhibits._ranks(np.array([5.0, 1.0, 5.0])).tolist() == [2.0, 0.5, 2.0]


def test_a_montage_holds_the_pixels() -> None:
    from PIL import Image as Pillow

    images = np.arange(2 * 3 * 4).reshape(2, 1, 3, 4).astype(np.uint8) % 5
    uri = plots.montage(images, 5, 4, 2)
    sheet = np.asarray(Pillow.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))))
    assert sheet.shape == (3, 9, 4)
    assert (sheet[:, 5:, 0] == images[1, 0].astype(int) * 255 // 4).all()
    assert (sheet[:, 4, 3] == 0).all()  # transparent between


def test_long_sounds_are_cut_and_silence_is_a_line() -> None:
    space, rng = Audio(100, length=500), np.random.default_rng(3)
    x = rng.integers(0, 65536, (6, 500))
    x[1, 7:] = -1
    x[2] = 32768
    shown = exhibits.sounds(space, {"x": x}, {"model": {"x": x[3:]}, "none": {}}, None)
    assert [(h.name, h.data, len(h.clips)) for h in shown] == [("data", True, 4), ("model", False, 3)]
    first, second, silent, _ = shown[0].clips
    samples, rate = soundfile.read(io.BytesIO(base64.b64decode(first.wav.split(",")[1])), dtype="int16")
    assert rate == 100
    assert np.array_equal(samples, x[0, :300] - 32768)
    assert first.caption == "held-out sound 1, the first 3 s"
    assert second.caption == "held-out sound 2, 70 ms"
    assert set(re.findall(r" (-?[\d.]+)[Lz]", silent.svg)) == {"20.0"}
    # the greatest and the least of each column, 19 to the side, around 20
    drawn = [float(v) for v in re.findall(r" (-?[\d.]+)[Lz]", first.svg)]
    parts = np.array_split((x[0, :300] - 32768) / 32768, 200)
    assert drawn == pytest.approx(
        [20 - 19 * p.max() for p in parts] + [20 - 19 * p.min() for p in reversed(parts)], abs=0.051
    )
    assert len(first.svg) < 8000


def test_speeds_are_lines_over_length() -> None:
    lines = {"flat <b>": [(16, 1000.0), (32, 1000.0), (64, 1000.0)], "short": [(16, 3.0)]}
    svg = plots.speeds(lines, "symbols", title="speed")
    assert svg is not None
    assert ">flat &lt;b&gt;<" in svg
    assert ">short<" not in svg  # one point is no curve
    heights = re.findall(r'd="M [\d.]+ ([\d.]+) \nL [\d.]+ ([\d.]+) \nL [\d.]+ ([\d.]+) \n" [^>]*series1', svg)
    assert len(set(heights[0])) == 1
    assert plots.speeds({"short": [(16, 3.0)]}, "symbols", title="") is None


def test_axes_are_not_flattened_by_outsiders() -> None:
    assert plots.floor([-10.0, -11.0, -12.0, -1e9]) > -20
    assert plots.floor([-10.0, -12.0]) == -12
    assert plots.floor([]) == -1.0


def test_the_frontier_joins_what_nothing_beats() -> None:
    def point(name: str, nats: float, at: float) -> plots.Point:
        return plots.Point(name, "Exact", nats, 0.1, at)

    slow, fast, beaten = point("slow", -1, 10), point("fast", -2, 100), point("beaten", -3, 50)
    assert plots._beats(fast, beaten, False)
    assert not plots._beats(fast, slow, False)
    assert plots._beats(slow, beaten, True)
    svg = plots.frontier([slow, fast, beaten, point("none", math.nan, 3)], "samples", less=False, title="a <title>")
    assert svg is not None
    assert all(f">{name}<" in svg for name in ("slow", "fast", "beaten"))
    assert ">none<" not in svg
    assert "a &lt;title&gt;" in svg
    assert not re.search(r"#0[0-9a]{5}", svg)  # every stand-in became a role
    assert plots.frontier([slow], "samples", less=False, title="") is None


def test_labels_of_curves_keep_apart() -> None:
    places = plots._spread([1.0, 0.99, 0.98, -5.0], 0.1, -5.0, 1.0)
    assert min(a - b for a, b in pairwise(places)) > 0.1 - 1e-9
    assert plots._spread([0.0, -0.01], 0.1, 0.0, 1.0)[-1] == 0.0


def test_the_best_are_those_that_cannot_be_told_apart() -> None:
    column = leaderboard.figure("C2ST", "", "quality.c2st.accuracy", leaderboard.two, se="se", less=True)
    rows = [{"quality": {"c2st": {"accuracy": a, "se": 0.02}}} for a in (0.52, 0.55, 0.9)]
    rows.append({"quality": {"unavailable": "there are no samples"}})
    cells = [line[0] for line in leaderboard.table(rows, [column])]
    assert [c.best for c in cells] == [True, True, False, False]
    assert cells[3].text == "—"
    assert cells[3].why == "there are no samples"


def test_samples_cut_short_are_shown_and_not_compared() -> None:
    quality = {"c2st": {"accuracy": 0.5, "se": 0.01}}
    worse = {"c2st": {"accuracy": 0.9, "se": 0.01}}
    rows = [
        {"sampling": {"rows_per_second": 9.0, "cut": 70}, "quality": quality},
        {"sampling": {"rows_per_second": 5.0, "cut": None}, "quality": worse},
        {"sampling": {"rows_per_second": 1.0, "cut": None}, "quality": worse},
    ]
    column = next(c for c in leaderboard.COSTS if c.head == "samples / s")
    (cut, *_), (fast, *_), (slow, *_) = leaderboard.table(rows, [column])
    assert (cut.text, cut.small, cut.best) == ("9", "cut at 70", False)
    assert fast.best
    assert not slow.best
    c2st = leaderboard.QUALITY[0]
    assert not any(line[0].best for line in leaderboard.table(rows, [c2st]))
    assert leaderboard.table([rows[0], rows[0] | {"quality": worse}], [c2st])[0][0].best


def test_guarantees_are_ranked_by_paired_differences() -> None:
    rows = [
        {"family": name, "likelihood": {"kind": kind}}
        for name, kind in (("a", "Exact"), ("b", "LowerBound"), ("c", "Estimate"), ("d", "Exact"))
    ]
    far = {"sign": 1}
    verdicts = {"a": {"d": far, "b": {"sign": 0}}, "b": {"d": far}, "c": {"a": far}}
    assert leaderboard.guaranteed_best(rows, verdicts) == {"a", "b"}


def test_numbers_are_set_as_text() -> None:
    assert leaderboard.minus("-3.2 and x-1, a -5") == "−3.2 and x-1, a −5"
    assert leaderboard.superscript("counting^15 × lebesgue") == "counting¹⁵ × lebesgue"
    assert [leaderboard.duration(s) for s in (2e-5, 0.0123, 6.02, 600, 7200)] == [
        "20 µs", "12.3 ms", "6.02 s", "10 min", "2 h",
    ]  # fmt: skip
