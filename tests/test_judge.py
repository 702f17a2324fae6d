"""Models of p(x | c) are judged by the metrics of their task, which equal libraries and closed forms, and are shown."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Pillow
from torch import Tensor

import pofx
from pofx.cli import main
from pofx.core.errors import EmptyData, Unsupported, UsageError, WrongShape
from pofx.core.likelihood import Exact, Unavailable
from pofx.core.measure import Measure
from pofx.core.requests import Decoding, DpmSolver, StepByStep
from pofx.data.audio import encode
from pofx.data.parts import Data, Part
from pofx.evaluate import pairs
from pofx.evaluate.compare import compare
from pofx.evaluate.judge import in_words, judge, judging
from pofx.evaluate.pairs import bootstrap, crps, firsts, judged, judged_classes, retrieval, success
from pofx.evaluate.predict import Prediction
from pofx.report.build import build
from pofx.report.pairs import parts, pieces
from pofx.spaces import Audio, Category, Codes, Image, Label, Pair, Real, Reals, Sequence, Table, Text
from pofx.train.checkpoint import write_arrays

HOSTILE = '<script>alert("x")</script>'
TEXTS = Text("abcdefgh \n", length=20)
WORDS = ["der", "hund", "läuft", "über", "die", "wiese", "und", "bellt", "laut"]


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sentences(n: int, seed: int) -> tuple[list[str], list[str]]:
    """n sentences, and each with some words lost or changed."""
    g = np.random.default_rng(seed)
    truth = [" ".join(g.choice(WORDS, g.integers(4, 9))) for _ in range(n)]
    return truth, [" ".join(w if g.random() < 0.8 else str(g.choice(WORDS)) for w in t.split()) for t in truth]


# -- intervals -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("s", "n"), [(0, 7), (3, 10), (10, 10), (2.5, 9)])
def test_a_share_has_jeffreys_interval(s: float, n: int) -> None:
    """Its ends cut a fortieth off the density x^(s - 1/2) (1 - x)^(n - s - 1/2), integrated on a grid in the angle."""
    found = success(s, n)
    angle = (torch.arange(400_000, dtype=torch.float64) + 0.5) / 400_000 * math.pi / 2
    mass = (2 * s) * angle.sin().log() + (2 * (n - s)) * angle.cos().log()  # with x = sin², dx cancels both halves
    below = (mass - mass.logsumexp(0)).exp().cumsum(0)
    for end, tail, none in ((found.low, 0.025, s == 0), (found.high, 0.975, s == n)):
        if none:
            assert end == float(s > 0)
        else:
            at = math.asin(math.sqrt(end)) / (math.pi / 2) * 400_000
            assert below[int(at)].item() == pytest.approx(tail, abs=1e-4)
    assert found.value == s / n
    with pytest.raises(EmptyData, match="share"):
        success(1, 0)


def test_a_bootstrap_is_that_of_the_mean_and_the_same_again() -> None:
    x = torch.randn(400, generator=gen()).double()
    one, again, other = (bootstrap(x, "", "more", seed=seed) for seed in (0, 0, 1))
    assert (one.low, one.high) == (again.low, again.high) != (other.low, other.high)
    assert one.value == x.mean().item()
    assert (one.high - one.low) / 2 == pytest.approx(1.96 * x.std().item() / 20, rel=0.08)
    ratio = bootstrap(torch.stack([2 * x.abs(), x.abs()], 1), "", "more", of=lambda mean: mean[0] / mean[1])
    assert ratio.low == pytest.approx(2)
    assert ratio.high == pytest.approx(2)
    assert bootstrap(torch.tensor([1.0, math.inf]), "", "more").high == math.inf
    assert bootstrap(torch.tensor([1.0]), "", "more").high == math.inf  # one pair tells of no other


# -- groups ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "space", [TEXTS, Image(9, 8, 1, 32), Audio(8000, 65536, "linear", length=400), Reals((1,))], ids=lambda s: s.name
)
def test_pairs_of_one_group_tell_as_much_as_one_of_them(space: Any) -> None:
    """Each pair three times over: all figures and intervals are those of the pairs."""
    if space is TEXTS:
        truth, said = (space.parse(["a b c", "d e", *texts]) for texts in (["f g", "h"], ["f", "h h"]))
        drawn = said[None]
    elif space.fill is None and not space.pixels:
        drawn = torch.randn(3, 6, 1, generator=gen()).double()
        truth = drawn[0] + 1
    else:
        shape = space.event_shape if space.pixels else (400,)
        drawn = torch.randint(1, space.levels, (3, 6, *shape), generator=gen())
        truth = drawn.roll(1, 1)[0]
    group = torch.arange(len(truth)).flip(0)
    once = judged(space, truth, drawn, group=group)
    thrice = judged(
        space,
        truth.repeat(3, *[1] * (truth.ndim - 1)),
        drawn.repeat(1, 3, *[1] * (truth.ndim - 1)),
        group=group.repeat(3),
    )
    assert once.keys() == thrice.keys()
    for name, found in once.items():
        assert found.low < found.high or name == "BLEU", name
        for figure in ("value", "low", "high"):
            assert getattr(thrice[name], figure) == pytest.approx(getattr(found, figure), rel=1e-6), (name, figure)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.7, 1.0])
def test_the_interval_of_a_share_of_groups_is_that_of_as_many_as_there_are(share: float) -> None:
    """Of texts that are all right or all wrong in groups of five, 20 groups are 20 trials, also where all are alike."""
    x = TEXTS.parse(["a b c"] * 100)
    said = x.clone()
    said[int(100 * share) :, 0] = 4
    group = torch.arange(20).repeat_interleave(5)
    found, alone = judged(TEXTS, x, said[None], group=group)["exact"], success(round(20 * share), 20, "")
    assert (found.value, found.low, found.high) == pytest.approx((alone.value, alone.low, alone.high))
    columns = Table(tuple(Category(name, ("u", "v")) for name in "pq"))
    both = judged(columns, torch.zeros(20, 2), torch.zeros(1, 20, 2))["accuracy"]
    assert (both.low, both.high) == pytest.approx((success(20, 20, "").low, 1.0))


def test_the_first_of_each_group() -> None:
    assert firsts(torch.tensor([7, 7, 2, 9, 2, 7])).tolist() == [0, 2, 3]


# -- texts -----------------------------------------------------------------------------------------------


def test_texts_are_judged_as_their_libraries_do() -> None:
    jiwer, sacrebleu = pytest.importorskip("jiwer"), pytest.importorskip("sacrebleu")
    truth, said = sentences(40, 0)
    space = Text("".join(sorted(set("".join(truth)))), length=80)
    found = judged(space, space.parse(truth), space.parse(said)[None])
    assert found["BLEU"].value == pytest.approx(sacrebleu.corpus_bleu(said, [truth]).score)
    assert found["chrF"].value == pytest.approx(sacrebleu.corpus_chrf(said, [truth]).score)
    assert "case:mixed" in found["BLEU"].words
    assert sacrebleu.__version__ in found["BLEU"].words
    assert found["word error"].value == pytest.approx(jiwer.wer(truth, said))
    assert found["character error"].value == pytest.approx(jiwer.cer(truth, said))
    assert found["exact"].value == sum(a == b for a, b in zip(truth, said, strict=True)) / 40
    for name in ("BLEU", "chrF", "word error"):
        assert found[name].low < found[name].value < found[name].high
    assert judged(space, space.parse(truth), space.parse(said)[None]) == found
    perfect = judged(space, space.parse(truth), space.parse(truth)[None])
    assert [round(perfect[k].value, 9) for k in ("exact", "BLEU", "chrF", "word error")] == [1, 100, 100, 0]


def test_edits_are_counted_by_hand() -> None:
    pytest.importorskip("jiwer")
    truth = TEXTS.parse(["a b c", "a", "", "h g\nf  e d c"])
    said = TEXTS.parse(["a b d", "a", "c", "h g f e"])  # 1 changed; none; 1 too many; 2 lost, of 3 + 1 + 0 + 6 words
    found = judged(TEXTS, truth, torch.stack([said, said.roll(1, 0)]))
    assert found["word error"].value == pytest.approx(4 / 10)
    assert found["exact"].value == 1 / 4
    assert found["exact in any"].value == 1 / 4
    wider = torch.nn.functional.pad(said, (0, 5), value=-1)
    assert judged(TEXTS, truth, wider[None])["character error"] == judged(TEXTS, truth, said[None])["character error"]
    nothing = judged(TEXTS, TEXTS.parse(["", ""]), TEXTS.parse(["a", ""])[None])
    assert "word error" not in nothing


@pytest.mark.parametrize("absent", ["jiwer", "sacrebleu.metrics", "skimage.metrics"])
def test_an_absent_library_leaves_a_note(absent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, absent, None)
    notes: list[str] = []
    x = TEXTS.parse(["a b", "c"])
    found = judged(TEXTS, x, x[None], notes=notes) if "skimage" not in absent else {}
    image = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    seen = judged(Image(8, 8, 1), image, image[None], notes=notes)
    assert "exact" in found or "skimage" in absent
    assert "PSNR" in seen
    missing = {"jiwer": "word error", "sacrebleu.metrics": "BLEU", "skimage.metrics": "SSIM"}[absent]
    assert missing not in found | seen
    assert len(notes) == 1
    assert f"{absent.split('.')[0]} is not installed. pip install 'pofx[metrics]'" in notes[0]


# -- images ----------------------------------------------------------------------------------------------


def test_images_by_the_formula_and_the_library() -> None:
    metrics = pytest.importorskip("skimage.metrics")
    space = Image(9, 8, 3, 32)
    y = torch.randint(0, 32, (6, 3, 9, 8), generator=gen(), dtype=torch.uint8)
    x = torch.randint(0, 32, (4, 6, 3, 9, 8), generator=gen(1), dtype=torch.uint8)
    found = judged(space, y, x)
    mean = x.double().mean(0).numpy()
    real = y.double().numpy()
    by_library = [metrics.peak_signal_noise_ratio(a, b, data_range=31) for a, b in zip(real, mean, strict=True)]
    assert found["PSNR of the mean"].value == pytest.approx(np.mean(by_library))
    error = ((x.double() - y.double()) ** 2).mean((2, 3, 4))
    assert found["PSNR of a draw"].value == pytest.approx((10 * (31**2 / error).log10()).mean().item())
    assert found["spread"].value == pytest.approx(np.std(x.double().numpy(), axis=0, ddof=1).mean())
    one = judged(space, y, x[:1])
    assert set(one) == {"PSNR", "SSIM"}


def test_ssim_of_flat_images_is_that_of_their_luminance() -> None:
    """(2ab + C) / (a² + b² + C) with C = (0.01 · 255)², since neither has any contrast (Wang et al. 2004, eq. 13)."""
    pytest.importorskip("skimage")
    space, (a, b) = Image(8, 8, 1), (100.0, 160.0)
    flat = [torch.full((2, 1, 8, 8), int(v), dtype=torch.uint8) for v in (a, b)]
    found = judged(space, flat[0], flat[1][None])
    c = (0.01 * 255) ** 2
    assert found["SSIM"].value == pytest.approx((2 * a * b + c) / (a * a + b * b + c))
    assert found["PSNR"].value == pytest.approx(20 * math.log10(255 / 60))
    assert judged(space, flat[0], flat[0][None])["PSNR"].value == math.inf
    tiny = torch.zeros(2, 1, 2, 5, dtype=torch.uint8)
    assert set(judged(Image(2, 5, 1), tiny, tiny[None])) == {"PSNR"}  # no window fits


# -- numbers -----------------------------------------------------------------------------------------------


def test_crps_of_a_gaussian_is_its_closed_form_and_unbiased() -> None:
    """σ [z (2Φ(z) − 1) + 2φ(z) − 1/√π] (Gneiting & Raftery 2007, section 4.2), by few draws as by many."""
    y = torch.tensor([0.0, 0.7, -2.0], dtype=torch.float64)
    normal = torch.distributions.Normal(0.0, 1.0)
    exact = y * (2 * normal.cdf(y) - 1) + 2 * normal.log_prob(y).exp() - 1 / math.sqrt(math.pi)
    many = crps(y, torch.randn(40_000, 3, generator=gen()).double())
    assert torch.allclose(many, exact.double(), atol=0.02)
    few = crps(y.expand(20_000, 3), torch.randn(2, 20_000, 3, generator=gen(1)).double()).mean(0)
    assert torch.allclose(few, exact.double(), atol=0.03)
    x = torch.randn(5, 3, generator=gen(2)).double()
    pairwise = (x[:, None] - x).abs().sum((0, 1)) / (2 * 5 * 4)
    assert torch.allclose(crps(y, x), (x - y).abs().mean(0) - pairwise)


@pytest.mark.parametrize(("k", "share"), [(19, 18 / 20), (8, 7 / 9), (2, 1 / 3), (99, 0.9)])
def test_coverage_is_what_it_says_of_draws_of_the_truth(k: int, share: float) -> None:
    y, x = torch.randn(3000, 1, generator=gen()).double(), torch.randn(k, 3000, 1, generator=gen(1)).double()
    found = judged(Reals((1,)), y, x)
    assert f"{share:.0%}" in found["coverage"].words
    assert found["coverage"].value == pytest.approx(share, abs=0.03)
    assert found["RMSE"].value == pytest.approx(math.sqrt(1 + 1 / k), rel=0.05)


def test_columns_are_judged_each_by_its_kind_and_scale() -> None:
    space = Table((Real("a", nullable=True), Real("b"), Category("k", ("u", "v", "w"))))
    y = torch.tensor([[0.0, 0, 0], [1, 1000, 1], [math.nan, 2000, 2]], dtype=torch.float64)
    x = y.nan_to_num(5.0)[None] + torch.tensor([0.5, 100, 0])
    found = judged(space, y, x)
    a, b = 0.5 / torch.tensor([0.0, 1.0]).std(), 100 / torch.tensor([0.0, 1000, 2000]).std()
    assert found["RMSE"].value == pytest.approx(float(a + b) / 2, rel=1e-6)
    assert found["accuracy"].value == 1
    votes = torch.stack([x[0], x[0], x[0]])
    votes[:2, 0, 2] = 2.0  # two of three say another
    assert judged(space, y, votes)["accuracy"].value == pytest.approx(2 / 3)
    codes = judged(Codes((2, 2), 5), torch.zeros(3, 2, 2).long(), torch.tensor([[0, 1], [0, 0]]).expand(1, 3, 2, 2))
    assert codes["accuracy"].value == 0.75


def test_sequences_are_judged_as_far_as_both_go_whatever_stands_behind() -> None:
    space = Sequence(Table((Real("a"),)), length=5)

    def rows(*values: list[float], size: int = 5) -> Tensor:
        return torch.tensor([[[v] for v in row] + [[math.inf]] * (size - len(row)) for row in values]).double()

    y = rows([0, 0, 0], [1, 1])
    found = judged(space, y, rows([3, 4], [1, 1, 1])[None])
    assert found["RMSE"].value == pytest.approx(math.sqrt(25 / 4))  # 3 and 4 off, 0 and 0 off
    assert found["length off"].value == 1
    assert judged(space, y, rows([3, 4], [1, 1, 1], size=9)[None]) == found


def test_sounds_half_as_loud_are_six_decibels_off() -> None:
    space = Audio(8000, 65536, "linear", length=4000)
    wave = 0.6 * torch.rand(2, 4000, generator=gen()).double() - 0.3
    loud, soft = (torch.from_numpy(encode((scale * wave).numpy()).astype(np.int64)) for scale in (1.0, 0.5))
    found = judged(space, loud, torch.stack([soft, loud]))
    assert found["spectral distance"].value == pytest.approx(20 * math.log10(2) / 2, abs=0.02)
    assert "length off" not in found
    cut = torch.where(torch.arange(4000) < 3200, loud, -1)
    assert judged(space, loud, cut[None])["length off"].value == pytest.approx(0.1)


def test_a_pair_is_judged_part_by_part() -> None:
    space = Pair(Label(("a", "b")), Reals((1,)))
    x = space.join(torch.tensor([0, 1]), torch.tensor([[1.0], [2.0]]).double())
    assert {k: v.value for k, v in judged(space, x, x[None]).items()} == {"a: accuracy": 1, "b: RMSE": 0}


def test_draws_of_another_shape_are_named() -> None:
    with pytest.raises(WrongShape, match=r"\[K, N, \*E\]"):
        judged(Reals((2,)), torch.zeros(3, 2).double(), torch.zeros(3, 2).double())
    with pytest.raises(EmptyData, match="pairs"):
        judged(Reals((2,)), torch.zeros(0, 2).double(), torch.zeros(1, 0, 2).double())


# -- labels ------------------------------------------------------------------------------------------------


def test_probabilities_of_labels_by_hand_and_by_scikit_learn() -> None:
    from sklearn.metrics import log_loss

    p = torch.rand(300, 3, generator=gen()).double().pow(2)
    p /= p.sum(1, keepdim=True)
    truth = torch.multinomial(p, 1, generator=gen(1))[:, 0]
    found = judged_classes(Prediction(("a", "b", "c"), p.log(), Exact), truth)
    assert found["log-loss"].value == pytest.approx(log_loss(truth, p.numpy()))
    sure, right, error = p.max(1).values, p.argmax(1) == truth, 0.0
    for k in range(10):
        inside = (sure >= k / 10) & (sure < (k + 1) / 10)
        if inside.any():
            error += inside.sum().item() / 300 * abs(sure[inside].mean() - right[inside].double().mean()).item()
    assert found["calibration error"].value == pytest.approx(error)
    assert found["accuracy"].value == right.double().mean().item()
    lost = p.log().index_fill(0, torch.arange(30), math.nan)  # rows that are impossible under every class
    some = Prediction(("a", "b", "c"), lost, Exact)
    assert judged_classes(some, truth)["calibration error"].value == pytest.approx(some.calibration(truth).error)
    votes = judged(Label(("a", "b", "c")), truth, torch.stack([truth, truth, (truth + 1) % 3]))
    assert votes["accuracy"].value == 1


# -- retrieval -----------------------------------------------------------------------------------------------


class Known:
    """p(x | c) of two numbers by a table of log p, or by none; it counts the pairs of each call."""

    name, device = "known", "cpu"

    def __init__(self, nats: Tensor) -> None:
        self.nats, self.most = nats, 0

    def given(self, c: Tensor | None = None, null: bool = False) -> Any:
        def log_prob(x: Tensor, **how: Any) -> Exact:
            self.most = max(self.most, x.numel())
            found = self.nats.logsumexp(1)[x] if null else self.nats[x, c.expand(x.shape)]
            return Exact(found, Measure.counting(1))

        return SimpleNamespace(log_prob=log_prob)


def test_retrieval_ranks_what_enumeration_ranks() -> None:
    nats = torch.randn(40, 40, generator=gen()).double() + 3 * torch.eye(40) + 4 * torch.rand(40, 1, generator=gen(1))
    x = torch.arange(40)
    found = retrieval(Known(nats), x, x, k=3)
    assert torch.equal(found.nats, nats)
    table = nats.tolist()
    pmi = [[v - math.log(sum(map(math.exp, row)) / 40) for v in row] for row in table]

    def share(rows: list[list[float]]) -> float:
        return sum(i in sorted(range(40), key=row.__getitem__)[-3:] for i, row in enumerate(rows)) / 40

    columns = list(map(list, zip(*table, strict=True)))
    expected = [share(table), share(columns), share(list(map(list, zip(*pmi, strict=True))))]
    assert [v.value for v in found.recall.values()] == pytest.approx(expected)
    assert found.recall["x of c, corrected"].value > found.recall["x of c"].value  # some x are common anyhow
    null = retrieval(Known(nats), x, x, k=3, null=True)  # here the same up to a constant
    assert null.recall["x of c, corrected"].value == found.recall["x of c, corrected"].value


def test_retrieval_in_blocks_and_among_equals(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.arange(40)
    nats = torch.randn(40, 40, generator=gen()).double()
    whole = retrieval(Known(nats), x, x)
    monkeypatch.setattr(pairs, "BLOCK", 120)
    model = Known(nats)
    assert torch.equal(retrieval(model, x, x).nats, whole.nats)
    assert model.most == 120
    blind = retrieval(Known(torch.zeros(40, 40).double()), x, x, k=10)  # of equals the right one has its fair share
    assert {v.value for v in blind.recall.values()} == {0.25}
    with pytest.raises(WrongShape, match="40 x and 39 contexts"):
        retrieval(Known(nats), x, x[1:])
    silent = SimpleNamespace(log_prob=lambda *x, **how: Unavailable("it is implicit."))
    with pytest.raises(Unsupported, match=r"no likelihood: it is implicit"):
        retrieval(SimpleNamespace(name="gan", device="cpu", given=lambda c: silent), x, x)


def test_retrieval_by_a_model_that_was_fitted() -> None:
    """A class and its copy: p(x | c) names each in place, in either direction."""
    data = copies()
    run = pofx.fit(data, "independent", steps=1)
    found = retrieval(run.model, torch.arange(4)[:, None].double(), torch.arange(4)[:, None].double(), k=1)
    assert [v.value for v in found.recall.values()] == [1, 1, 1]
    assert found.kind == "Exact"


def copies() -> Data:
    """One category of four, given its own copy."""
    k = Category("k", ("n", "e", "s", "w")), Category("copy", ("n", "e", "s", "w"))
    x = torch.arange(400)[:, None] % 4
    halves = [Part(x[s].double(), x[s].double()) for s in (slice(0, 300), slice(300, 350), slice(350, 400))]
    return Data("copies", "memory", Table((k[0],)), *halves, context=Table((k[1],)))


def dots() -> Data:
    c = torch.arange(300) % 2
    x = torch.randn(300, 2, generator=gen()).double() + c[:, None]
    rows = [Part(x[s], c[s]) for s in (slice(0, 200), slice(200, 240), slice(240, 300))]
    return Data("dots", "memory", Table((Real("a"), Real("b"))), *rows, context=Label(("no", HOSTILE)))


# -- judge -------------------------------------------------------------------------------------------------


def test_what_is_drawn_lies_beside_its_own_truth() -> None:
    data = copies()
    run = pofx.fit(data, "independent", steps=1)
    found = judge(run, data, n=30, draws=3, recall=1)
    assert found.metrics["accuracy"].value == 1
    assert found.n == 30
    assert "log p(x | c)" in repr(found)
    assert repr(judge(run, data, n=30, draws=3, recall=1)) == repr(found)
    of = found.to_json()
    json.dumps(of, allow_nan=False)
    assert of["how"] == "3 draws each by direct"
    assert of["likelihood"]["kind"] == "Exact"
    assert of["metrics"]["accuracy"]["text"] == found.metrics["accuracy"].text


def test_given_a_class_no_row_is_the_right_one() -> None:
    data = dots()
    found = judge(pofx.fit(data, "gmm", steps=2), data, draws=1)
    assert set(found.metrics) == {"told from real", "Fréchet distance"}
    assert found.metrics["told from real"].value < 0.75
    far = found.metrics["Fréchet distance"]
    assert far.low <= far.value <= far.high
    assert "of as many training pairs" in far.words
    aside = dataclasses.replace(data, train=Part(data.train.x + 3, data.train.c))
    worse = judge(pofx.fit(aside, "gmm", steps=2), data, draws=1).metrics["Fréchet distance"]
    assert worse.low > far.high


def test_what_cannot_be_judged_is_named() -> None:
    run = pofx.fit(pofx.load("two-moons", max_rows=300), "gaussian", steps=1)
    with pytest.raises(UsageError, match="there are no pairs to judge"):
        judge(run)
    data = dots()
    model = pofx.fit(data, "gmm", steps=1).model
    with pytest.raises(UsageError, match="no data of its own"):
        judge(model)
    with pytest.raises(UsageError, match="draws is 0"):
        judge(model, data, draws=0)
    with pytest.raises(EmptyData, match="pairs of x and c"):
        judge(model, Part(data.test.x))


def test_texts_are_searched_unless_told() -> None:
    from pofx.families.sequence import Gpt, GptConfig

    text = Text("ab", length=4)
    model = Gpt(GptConfig(width=8, layers=1, n_heads=1, block=8), text, Label(("x", "y")))
    assert judging(model) == Decoding(beams=4)
    assert in_words(judging(model), 1) == "the best each of a search with 4 beams"
    assert in_words(StepByStep(length=5), 2) == "2 draws each by step-by-step, length 5"
    assert in_words(DpmSolver(steps=7), 1).startswith("1 draw each by dpm++, steps 7")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(tmp_path / "run")
    assert main(["fit", "wine", "classifier", "--target", "label", "--steps", "5", "--out", folder, "--quiet"]) == 0
    capsys.readouterr()
    assert main(["judge", folder, "--json", "--pairs", "10"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["rows"] == 10
    assert set(found["metrics"]) == {"accuracy", "log-loss", "calibration error"}
    assert found["metrics"]["log-loss"]["value"] == pytest.approx(-found["likelihood"]["nats"], rel=1e-5)
    assert main(["judge", folder]) == 0
    assert "the likeliest class is right" in capsys.readouterr().out


# -- reports -------------------------------------------------------------------------------------------------


def test_every_space_has_pieces() -> None:
    image = torch.arange(12, dtype=torch.uint8).reshape(1, 1, 3, 4).numpy()
    png = pieces(Image(3, 4, 1, 12), image)[0].png
    seen = np.asarray(Pillow.open(io.BytesIO(base64.b64decode(png.partition(",")[2]))).convert("L"))
    assert seen.shape == (3, 4)
    assert (seen.flatten()[:-1] < seen.flatten()[1:]).all()
    sound = pieces(Audio(8000, 256, "mu", length=9), torch.randint(0, 256, (2, 90), generator=gen()).numpy())
    assert all(one.wav.startswith("data:audio/wav;base64,") and one.svg for one in sound)
    steps = torch.tensor([[[0.0, 5], [1, 5]], [[2, 5], [math.inf, math.inf]]]).double().numpy()
    drawn = pieces(Sequence(Table((Real("x"), Real("y"))), length=2), steps)
    assert all("<svg" in str(one.svg) for one in drawn)
    none = np.full((2, 1, 2), math.inf)
    none[0, 0, 1] = none[0, 0, 0] = math.nan  # a missing number, and a sequence of no step
    assert len(pieces(Sequence(Table((Real("x", True), Real("y", True))), length=2), none)) == 2
    assert (
        pieces(Table((Real("a"), Category("k", ("u", HOSTILE)))), np.array([[1.5, 1]]))[0].text
        == f"a: 1.5\nk: {HOSTILE}"
    )
    assert pieces(Label(("u", HOSTILE)), np.array([1]))[0].text == HOSTILE
    assert pieces(TEXTS, TEXTS.parse(["ab\n"]).numpy())[0].text == "ab\n"
    assert pieces(Reals((9,)), np.arange(9.0)[None])[0].text.endswith("…")


def test_draws_stand_in_the_row_of_their_context(tmp_path: Path) -> None:
    texts = [HOSTILE, "b", "c"]
    space, context = Label(("zero", "one", "two")), Text("", length=40)
    data = {"x": np.array([0, 1, 2]), "c": context.parse(texts).numpy()}
    (tmp_path / "samples").mkdir()
    write_arrays(tmp_path / "samples" / "pairs.npz", {"x": np.array([0, 2, 1, 1, 2, 0])})
    row = {"family": "f", "pairs": {"draws": 2, "how": "2 draws each", "rows": 3, "metrics": {}, "notes": ["no time"]}}
    found = parts(space, context, [row], {"f": tmp_path / "samples" / "samples.npz"}, data, 3)
    lines = found["families"][0]["rows"]
    assert [line["given"].text for line in lines] == texts
    assert [[p.text for p in line["drawn"]] for line in lines] == [
        ["zero", "zero", "two"], ["one", "one", "one"], ["two", "two", "zero"],
    ]  # fmt: skip
    assert found["table"]["notes"] == ["no time"]


def test_a_comparison_shows_pairs_and_metrics(tmp_path: Path) -> None:
    """Images of one level, given its name: draws are near the truth only where each lies beside its own."""
    code = torch.arange(400) % 4
    images = (5 * code[:, None, None, None] * torch.ones(1, 1, 4, 4)).to(torch.uint8)
    context = Table((Category("level", ("0", "5", "10", HOSTILE)),))
    c = code[:, None].double()
    rows = [Part(images[s], c[s]) for s in (slice(0, 300), slice(300, 350), slice(350, 400))]
    data = Data("levels", "memory", Image(4, 4, 1, 16), *rows, context=context)
    told = compare(data, ["independent"], steps=1, samples=120, max_test=50, out=tmp_path)
    row = json.loads((tmp_path / "comparison.json").read_text())["rows"][0]
    found = row["pairs"]
    assert found["rows"] == 50
    assert found["how"] == "2 draws each by direct"  # of 120, the first 100
    assert float(found["metrics"]["PSNR of a draw"]["value"]) > 25
    header, line, *_ = told.table()
    assert line[header.index("PSNR of a draw")] == found["metrics"]["PSNR of a draw"]["text"].partition(" (")[0]
    page = build(tmp_path).read_text()
    assert 'id="pairs"' in page
    assert found["metrics"]["PSNR of a draw"]["text"].partition(" (")[0] in page
    assert page.count('alt="independent"') == 6 * 4
    assert HOSTILE not in page
    assert "level: &lt;script&gt;" in page


def test_pairs_that_depend_on_each_other_are_resampled_together() -> None:
    """Each number five times, as in overlapping chunks: the intervals are those of the numbers once."""
    y, x = torch.randn(2, 30, 1, generator=gen(), dtype=torch.float64)
    space, group = Table((Real("a"),)), torch.arange(30).repeat_interleave(5).flip(0)
    once = judged(space, y, torch.stack([x, -x, x + 0.3]))
    again = (torch.stack([x, -x, x + 0.3]).repeat_interleave(5, 1).flip(1), y.repeat_interleave(5, 0).flip(0))
    found = judged(space, again[1], again[0], group=group)
    narrow = judged(space, again[1], again[0])
    for name in ("RMSE", "CRPS", "coverage"):
        assert (found[name].low, found[name].high) == pytest.approx((once[name].low, once[name].high))
        assert narrow[name].high - narrow[name].low < 0.6 * (found[name].high - found[name].low)
    same = bootstrap(torch.arange(4.0), "", "more", group=torch.zeros(4))
    assert (same.low, same.high) == (-math.inf, math.inf)
