"""What the numbers of a comparison promise: which rows are validated, what an impossible row decides, what is a code.

The checks of ``testing.checks`` look at models; these look at pofx itself. Each is a function without arguments that
raises AssertionError; ``testing.wrong_numbers`` plants the mistakes that they must catch.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import math
from collections.abc import Callable
from collections.abc import Sequence as Ordered
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pofx.core.comparison import compare, interval
from pofx.core.likelihood import Exact, Likelihood, UpperBound, make
from pofx.core.measure import Measure
from pofx.core.noise import RowNoise
from pofx.core.registry import family
from pofx.core.requests import OdeLikelihood, Request, VariationalBound
from pofx.data.parts import Data, Part
from pofx.evaluate import baselines, recommend
from pofx.evaluate.likelihood import mean_log_prob, summarise, verdicts
from pofx.spaces import Audio, Category, Image, Integer, Label, Real, Sequence, Table, Text
from pofx.spaces.text import filled_up
from pofx.testing.wrong import Moments, Plain
from pofx.train.fit import fit

CLASSES, EACH, DRAWN = 8, 50, 100  # validation rows: many times those that a validation takes, sorted by class


def validation_sees_every_class() -> None:
    """Of a part sorted by class a validation takes rows of all classes, about equally many, and the same each time."""
    code = torch.arange(CLASSES).repeat_interleave(EACH)
    x = torch.stack([code + 0.1 * torch.randn(len(code), generator=torch.Generator().manual_seed(0)), -code], 1)
    part = Part((x + 0.01 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))).double(), label=code)
    data = Data("sorted", "memory", Table((Real("a"), Real("b"))), part, part, part)
    seen: list[Tensor] = []

    class Watched(Moments):
        name = "watched gaussian"

        def rows_log_prob(self, x: Tensor, c: Tensor | None, request: Request, noise: RowNoise) -> Likelihood:
            seen.append(x)
            return super().rows_log_prob(x, c, request, noise)

    for _ in range(2):
        fit(data, Watched, epochs=1, valid_rows=DRAWN, options=vars(Plain()))
    first, again = seen
    assert torch.equal(first, again), "equal seeds validate other rows"
    assert len(first) == DRAWN
    counts = (-first[:, 1]).round().clamp(0, CLASSES - 1).long().bincount(minlength=CLASSES).double()
    # without replacement the counts spread less than multinomial ones; 30 is beyond 1 in 10,000 of chi-squared with 7
    expected = DRAWN / CLASSES
    statistic = float(((counts - expected) ** 2 / expected).sum())
    assert statistic < 30, f"validation takes so many rows of each class: {counts.long().tolist()}"


def impossible_rows_lose() -> None:
    """A model that holds a test row impossible loses to one that does not, and is not recommended."""
    space = Table((Category("c", ("x", "y", "z")),))
    rows = {"sure": [-0.1] * 20 + [-math.inf], "plain": [-1.0 - 0.01 * k for k in range(21)]}
    size = torch.ones(21)
    means = {k: summarise(Exact(torch.tensor(v), space.measure), space, size) for k, v in rows.items()}
    found = verdicts(means)
    assert found["plain"]["sure"]["verdict"] == "better", found["plain"]["sure"]
    assert found["sure"]["plain"]["verdict"] == "worse", found["sure"]["plain"]
    for a, b in (("plain", "sure"), ("sure", "plain")):
        se = found[a][b]["se"]
        assert se is None or isinstance(se, str) or math.isfinite(se), "an error that is no number"
    assert means["sure"].se is None, "a mean of minus infinity has no error"
    assert "−∞ nats (1 of 21 rows impossible)" in means["sure"].text, means["sure"].text
    table = [{"family": k, "status": "ok", "likelihood": s.to_json(rows=False)} for k, s in means.items()]
    assert recommend.recommend(table, found, ("likelihood",)).family == "plain"


def shared_errors_are_not_averaged() -> None:
    """Over estimates of log Z, differences of equal models spread as they say, for any rows; one estimate cancels."""
    measure, se, draws = Measure.lebesgue(1), 0.5, torch.Generator().manual_seed(0)
    for n in (10, 1000):
        z = []
        for one, two in (se * torch.randn(200, 2, generator=draws)).tolist():
            rows, noise = torch.randn(2, n, generator=draws)
            a, b, c = (
                make(UpperBound, nats - error, measure, shared={source: -se})
                for nats, error, source in (
                    (rows, one, "first"), (rows + 0.1 * noise, two, "second"), (rows + 0.1 * noise, one, "first"),
                )
            )  # fmt: skip
            apart, together = compare(a, b), compare(a, c)
            assert apart.se
            assert together.se
            z.append(apart.nats / apart.se)
            assert together.se < 0.2 / math.sqrt(n), f"one source does not cancel: {together.se:.3g} over {n} rows"
        spread = torch.tensor(z).square().mean().sqrt().item()
        assert 0.85 < spread < 1.15, f"over {n} rows differences spread {spread:.2f} times as much as they say"


def codes_give_their_rows_back() -> None:
    """What the compressors of ``evaluate.baselines`` code can be decoded, and its length is the one that is counted."""
    characters = Text("a,é\n\U0001f642\0", has_eos=True, length=6)
    texts = filled_up([[0, 1, 2, 3], [], [4, 4], [5, 2, 5], [0], [1]])
    binary = Text("", has_eos=False, length=4)
    raw = filled_up([[255, 0, 10, 128], [195, 40], [237, 160, 128]])
    for space, x in ((characters, texts), (binary, raw)):
        content = baselines.text_bytes(space, x)
        same(decode_texts(space, content, len(x)), x)
        for name, packed in PACKED.items():
            counted(baselines.packed_text(space, x, name).nats, [packed(content)], len(x))

    values = ("plain", "a,b", 'say "so"', "two\nlines", "", "\r")
    table = Table(
        (
            Category("c", values, nullable=True), Integer("i", 0, 10), Real("g", step=0.1, nullable=True),
            Real("fine", step=2.0**-40), Category("d", ("", "1")),
        )
    )  # fmt: skip
    k = torch.tensor([[0, 7, 3, 1, 0], [1, -3, 0, 2**45 + 1, 1], [2, 2**53 - 1, 7, 2**45, 0], [4, 0, -1, 5, 0]])
    k = torch.cat([k, torch.tensor([[3, 10**15 + 1, 12345678901234, -(2**44) - 1, 1], [5, 5, 5, 5, 0]])])
    x = k.double() * torch.tensor([1, 1, 0.1, 2.0**-40, 1], dtype=torch.float64)
    x = torch.cat([x, torch.tensor([[math.nan, 1, math.nan, 0.5, 0]], dtype=torch.float64)])
    text = baselines.csv_text(table, x).encode()
    same(decode_csv(table, text), x)
    counted(baselines.gzip_code(table, x).nats, [gzip.compress(text, 9, mtime=0)], len(x))

    for channels, levels in ((1, 256), (3, 256), (1, 2), (2, 16), (3, 2)):
        image = Image(5, 7, channels, levels)
        draws = torch.Generator().manual_seed(levels)
        pixels = torch.randint(0, levels, (3, channels, 5, 7), generator=draws).to(torch.uint8)
        files = [baselines.png_bytes(image, p) for p in pixels]
        same(torch.stack([decode_png(image, f) for f in files]), pixels)
        counted(baselines.png_code(image, pixels).nats, files, 3)
        whole = gzip.compress(pixels.numpy().tobytes(), 9, mtime=0)
        back = np.frombuffer(gzip.decompress(whole), np.uint8).reshape(3, *image.event_shape)
        same(torch.from_numpy(back.copy()), pixels)
        counted(baselines.gzip_code(image, pixels).nats, [whole], 3)
    for free, x in (
        (Audio(8000, 256, "mu"), filled_up([[3, 255, 0], [7], [1, 1, 1, 1, 1]])),
        (Sequence(Table((Integer("i", -9, 9),))), torch.tensor([[[1.0], [-2.0]], [[5.0], [math.inf]]]).double()),
    ):
        whole = gzip.compress(x.numpy().tobytes(), 9, mtime=0)
        flat = torch.frombuffer(bytearray(gzip.decompress(whole)), dtype=free.dtype)
        same(flat.reshape(len(x), -1, *free.event_shape[1:]), x)
        counted(baselines.gzip_code(free, x).nats, [whole], len(x))
    assert baselines.compression(Label(("a", "b")), Part(torch.tensor([0, 1]))) == {}


def of_a_gaussian(**options: float) -> tuple[Any, Tensor, Tensor]:
    """A diffusion whose net says nothing, so that it is a Gaussian over three columns; rows, and their log-density."""
    draws = torch.Generator().manual_seed(0)
    mix = torch.tensor([[1.0, 0.0, 0.0], [0.8, 0.3, 0.0], [-0.5, 0.4, 0.2]], dtype=torch.float64)
    x = torch.randn(300, 3, generator=draws, dtype=torch.float64) @ mix.T
    cls = family("vdm")
    model: Any = cls(cls.Config(hidden=8, blocks=1, **options), Table((Real("a"), Real("b"), Real("c"))))
    model.prepare(x, None, None, draws)
    [axes], parts, variance = model.gaussian.factors, model.split(x[:12]), model.gaussian.variance
    covariance = axes @ variance.diag() @ axes.T
    normal = torch.distributions.MultivariateNormal(model.gaussian.mean, covariance)
    return model.requires_grad_(False), x[:12], normal.log_prob(parts.y.double()) + parts.log_jacobian


def densities_of_a_flow_are_covered() -> None:
    """Along a differential equation whose density is known: as near as the errors say, and for one set of probes one
    number, however the solver goes."""
    model, x, truth = of_a_gaussian(smallest=0.01, largest=3.0)
    found, finer = (model.log_prob(x, request=OdeLikelihood(steps, probes=24)) for steps in (5, 7))
    low, high = interval(found, 4.0)
    assert ((low <= truth) & (truth <= high)).all(), f"off by {(found.nats - truth).abs().max():.3g} nats"
    gap = (found.nats - finer.nats).abs().max()
    assert gap < 0.1, f"of the same probes two solutions differ by {gap:.3g} nats"


def a_bound_has_all_of_its_terms() -> None:
    """Where the noise of the path ends early, much is left to the prior: a bound in steps stays below the truth."""
    model, x, truth = of_a_gaussian(largest=1.0)
    request = VariationalBound(draws=2, steps=400)
    found = model.log_prob(x, request=request)
    assert (found.nats < truth + 1e-6).all(), (
        f"the bound is up to {(found.nats - truth).max():.3g} nats above the truth"
    )
    assert (found.nats > truth - 0.5).all(), f"the bound is up to {(truth - found.nats).max():.3g} nats below the truth"
    terms = model.given().bound_terms(x, request=request)
    assert torch.allclose(sum(term.nats for term in terms.values()), found.nats), "the terms are not all of the bound"


def bytes_are_counted() -> None:
    """A bound on texts in bits per byte is of the bytes that they are, whatever symbols they are of."""
    texts = ["é🙂", "aaaaaa", "🙂🙂🙂🙂", "aé"]
    model = family("masked-diffusion")(family("masked-diffusion").tiny(space := Text("aé🙂", length=6)), space)
    model.requires_grad_(False)
    x = filled_up([["aé🙂".index(c) for c in t] for t in texts])
    for some in (x, x[:2], x[2:3]):
        found = mean_log_prob(model, Part(some))
        size = sum(len(space.spell(row).encode()) for row in some)
        bits = -float(model.log_prob(some).nats.sum()) / math.log(2)  # type: ignore[union-attr]
        assert found.bits_per_dim is not None
        assert abs(found.bits_per_dim * size / bits - 1) < 1e-5, f"{found.bits_per_dim:.4f} bits/byte of {size} bytes"


NUMBERS: dict[str, Callable[[], None]] = {
    check.__name__.replace("_", " "): check
    for check in (
        validation_sees_every_class,
        impossible_rows_lose,
        shared_errors_are_not_averaged,
        codes_give_their_rows_back,
        densities_of_a_flow_are_covered,
        a_bound_has_all_of_its_terms,
        bytes_are_counted,
    )
}


# -- decoders ----------------------------------------------------------------------------------------------

PACKED: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda content: gzip.compress(content, 9, mtime=0),
    "xz": lambda content: lzma.compress(content, preset=9 | lzma.PRESET_EXTREME),
    "bzip2": lambda content: bz2.compress(content, 9),
}


def decode_texts(space: Text, content: bytes, rows: int) -> Tensor:
    """Texts [N, L] from their lengths and bytes."""
    lengths, rest = np.frombuffer(content[: 4 * rows], "<u4").tolist(), content[4 * rows :]
    out = []
    for length in lengths:
        text, rest = rest[:length], rest[length:]
        letters = text.decode() if space.alphabet else ""
        out.append([space.alphabet.index(c) for c in letters] if space.alphabet else list(text))
    assert not rest, f"{len(rest)} bytes are left over"
    return filled_up(out)


def decode_csv(space: Table, content: bytes) -> Tensor:
    """Rows [N, D] of counted columns, read by pyarrow: quoted and empty is no missing value."""
    from pyarrow import csv, string

    names = [str(j) for j in range(len(space.columns))]
    table = csv.read_csv(
        io.BytesIO(content),
        csv.ReadOptions(column_names=names),
        csv.ParseOptions(newlines_in_values=True, ignore_empty_lines=False),
        csv.ConvertOptions(
            column_types=dict.fromkeys(names, string()), null_values=[""], strings_can_be_null=True,
            quoted_strings_can_be_null=False,
        ),
    )  # fmt: skip

    def value(column: Category | Integer | Real, cell: str | None) -> float:
        if cell is None:
            return math.nan
        if isinstance(column, Category):
            return column.values.index(cell)
        assert column.step is not None
        return column.origin + round((float(cell) - column.origin) / column.step) * column.step

    columns = [
        [value(column, cell) for cell in table.column(name).to_pylist()]
        for column, name in zip(space.columns, names, strict=True)
    ]
    return torch.tensor(columns, dtype=torch.float64).T


def decode_png(space: Image, content: bytes) -> Tensor:
    """One image [C, H, W]."""
    from PIL import Image as Pillow

    pixels = torch.from_numpy(np.array(Pillow.open(io.BytesIO(content))).astype(np.uint8))
    if space.channels == 3 and space.levels > 2:
        return pixels.permute(2, 0, 1)
    return pixels.reshape(space.height, space.channels, space.width).permute(1, 0, 2)


def counted(nats: float, files: Ordered[bytes], rows: int) -> None:
    """Is ``nats`` the length of the files, per row?"""
    expected = -8 * math.log(2) * sum(map(len, files)) / rows
    assert math.isclose(nats, expected, rel_tol=1e-9), f"{nats} nats are counted for a code of {expected}"


def same(a: Tensor, b: Tensor) -> None:
    assert a.shape == b.shape, f"{tuple(a.shape)} came back of {tuple(b.shape)}"
    assert torch.equal(a.double().nan_to_num(-1e300), b.double().nan_to_num(-1e300)), "other rows came back"
