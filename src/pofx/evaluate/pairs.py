"""How right are draws of p(x | c), beside the x that went with each c? The metrics of each space's field.

A likelihood judges the whole distribution; these judge what one would do with it. Each comes with a 95% interval over
pairs: of a share by the Beta posterior (``success``), of all else by resampling pairs (``bootstrap``). Metrics of more
than one formula are those of their field's own library: sacrebleu, jiwer and scikit-image, of ``pofx[metrics]``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, singledispatch
from importlib import import_module
from importlib.metadata import version
from typing import Any, Literal

import torch
from torch import Tensor

from pofx.core.errors import EmptyData, Unsupported, UsageError, WrongShape
from pofx.core.likelihood import Unavailable
from pofx.core.model import Model
from pofx.core.requests import AnyRequest
from pofx.core.space import Space, join
from pofx.evaluate.predict import Prediction
from pofx.evaluate.ranking import error_of_mean, independent, numbered
from pofx.spaces import Audio, Category, Image, Pair, Sequence, Text

RESAMPLES = 1000  # of a bootstrap
BLOCK = 4096  # pairs of x and c that are evaluated together
BINS = 10  # of confidence, in a calibration error (Guo et al. 2017)
WINDOW = 7  # pixels of a side of SSIM's window (Wang et al. 2004, as scikit-image takes it by default)
FRAME, FLOOR = 512, 1e-8  # samples of a spectrum, and the power (of a full-scale tone's 1) below which all is silence
GRAMS = 4  # words of the longest runs that BLEU counts (Papineni et al. 2002)
INTERVAL = 0.9  # of draws, of which coverage is told
Better = Literal["more", "less", ""]


@dataclass(frozen=True, repr=False)
class Judged:
    """A metric of pairs, with its 95% interval.

    Attributes:
        value: of all pairs; a share is one of 1.
        low, high: the interval.
        words: what it is, and by which library: of BLEU and chrF sacrebleu's signature.
        better: is more better, or less? "" where the words say what is best.
        unit: what follows the number where it is shown; "%" of a share.
        n: pairs.
    """

    value: float
    low: float
    high: float
    words: str
    better: Better
    unit: str = ""
    n: int = 0

    @property
    def text(self) -> str:
        """Such as "96.7% (91.4 to 99.1)"."""
        scale, places = (100.0, ".1f") if self.unit == "%" else (1.0, ".4g")
        value, low, high = (f"{scale * v:{places}}" for v in (self.value, self.low, self.high))
        return f"{value}{'%' if self.unit == '%' else f' {self.unit}' * bool(self.unit)} ({low} to {high})"

    def __repr__(self) -> str:
        return self.text


# -- intervals -------------------------------------------------------------------------------------------


def share_interval(hits: float, of: float, mass: float = 0.95) -> tuple[float, float]:
    """The equal-tailed interval of Beta(hits + 1/2, misses + 1/2): Jeffreys' posterior of a share.

    From 0 where nothing hit, to 1 where all did (Brown, Cai & DasGupta 2001, section 4.3). Raises UsageError.

    Example:
        >>> [round(end, 3) for end in share_interval(45, 100)]
        [0.355, 0.548]
    """
    if not (0 <= hits <= of and of and 0 < mass < 1):
        raise UsageError(
            f"{hits:g} of {of} at {mass:g} has no interval.", "Give 0 <= hits <= of, of > 0, 0 < mass < 1."
        )
    from scipy.stats import beta

    law, tail = beta(hits + 0.5, of - hits + 0.5), (1 - mass) / 2
    return float(law.ppf(tail)) if hits else 0.0, float(law.ppf(1 - tail)) if hits < of else 1.0


def success(successes: float, n: int, words: str = "share of successes", better: Better = "more") -> Judged:
    """The share of successes in n trials, and its 95% interval (``share_interval``).

    Where ties are shared out, ``successes`` is no whole number.

    Example:
        >>> success(45, 50)
        90.0% (79.5 to 96.1)
        >>> success(0, 20).high < 0.13
        True
    """
    if n < 1 or not 0 <= successes <= n:
        raise EmptyData(f"{successes:g} of {n} trials succeed: that is no share.", "Give at least one trial.")
    low, high = share_interval(successes, n)
    return Judged(successes / n, low, high, words, better, "%", n)


def bootstrap(
    each: Tensor,
    words: str,
    better: Better,
    unit: str = "",
    of: Callable[[Tensor], Tensor] | None = None,
    seed: int = 0,
    group: Tensor | None = None,
) -> Judged:
    """A figure of means over pairs, with the percentile interval of ``RESAMPLES`` resamples of pairs (Efron 1979).

    Args:
        each: what is averaged, [N] or [N, F].
        of: the figure, of means [F] (default: the one mean itself).
        seed: of the resamples.
        group: [N], the same for pairs that depend on each other, which are resampled together.
    """
    each = each.double().cpu()
    rows = each[:, None] if each.ndim == 1 else each
    figure = (lambda mean: mean[0]) if of is None else of
    place = torch.arange(len(rows)) if group is None else numbered(group)
    k = int(place.max()) + 1
    if k == 1:  # of which nothing is known but itself
        return Judged(figure(rows.mean(0)).item(), -math.inf, math.inf, words, better, unit, len(rows))
    generator = torch.Generator().manual_seed(seed)
    picks = torch.randint(k, (RESAMPLES, k), generator=generator)
    ones = torch.ones(picks.shape, dtype=torch.float64)
    times = torch.zeros_like(ones).scatter_add_(1, picks, ones)[:, place]  # that each pair is taken
    means = times @ rows.nan_to_num(posinf=0.0) / times.sum(1, keepdim=True)
    means[times @ rows.isposinf().double() > 0] = math.inf
    found = torch.stack([figure(mean) for mean in means])
    tails = torch.tensor([0.025, 0.975], dtype=torch.float64)
    low, high = found.nanquantile(tails, interpolation="nearest").tolist()  # between infinite ones there is no number
    return Judged(figure(rows.mean(0)).item(), low, high, words, better, unit, len(rows))


def library(name: str, notes: list[str] | None, what: str) -> Any:
    """A package of the extra "metrics"; None where it is absent, of which a note tells."""
    try:
        return import_module(name)
    except ImportError:
        if notes is not None:
            notes.append(f"{what}: left out, {name.split('.')[0]} is not installed. pip install 'pofx[metrics]'.")
        return None


# -- draws beside the truth --------------------------------------------------------------------------------


@singledispatch
def judged(
    space: Space,
    truth: Tensor,
    drawn: Tensor,
    *,
    seed: int = 0,
    notes: list[str] | None = None,
    group: Tensor | None = None,
) -> dict[str, Judged]:
    """The metrics of a space by name, of draws beside the truth.

    Args:
        truth: x [N, *E].
        drawn: [K, N, *E]: K draws for each, or the K best that a search finds, best first.
        seed: of what is resampled for intervals.
        notes: gets what is left out, and why.
        group: [N], the same for pairs that depend on each other (``Part.groups``), which intervals take together.

    Texts, where there is one right answer, are judged by the first draw of each; labels by the commonest; numbers,
    images and sounds by all.

    Raises EmptyData without pairs, WrongShape where truth and draws do not go together.

    An open function: a space that is judged otherwise adds its own case. By default numbers are judged column by
    column, and what has no columns as numbers.

    Example:
        >>> import torch
        >>> from pofx.spaces import Text
        >>> texts = Text("abc ", length=8)
        >>> truth, drawn = texts.parse(["a b", "c"]), texts.parse(["a b", "b"])[None]
        >>> judged(texts, truth, drawn)["exact"]
        50.0% (6.1 to 93.9)
    """
    _check(space, truth, drawn)
    n, k = len(truth), len(drawn)
    rows, draws = truth.reshape(n, -1).double(), drawn.reshape(k, n, -1).double()
    return _columns(space, rows, draws, torch.arange(n) if group is None else numbered(group), seed)


def _columns(space: Space, truth: Tensor, drawn: Tensor, pair: Tensor, seed: int) -> dict[str, Judged]:
    """Of rows [R, D] and their draws [K, R, D], each row of a pair [R]: numbers and categories each by theirs."""
    columns = space.columns or (None,) * truth.shape[1]
    choices = [j for j, column in enumerate(columns) if isinstance(column, Category)]
    numbers = [j for j in range(len(columns)) if j not in choices]
    out: dict[str, Judged] = {}
    if numbers:
        out |= _numbers(truth[:, numbers], drawn[:, :, numbers], pair, seed)
    if choices:
        right = commonest(drawn[:, :, choices]) == truth[:, choices].nan_to_num(-1.0)
        words = "the commonest of the draws is right" if len(drawn) > 1 else "the draw is right"
        words += f", mean of {len(choices)} columns" if len(choices) > 1 else ""
        out["accuracy"] = _share(right.flatten(), words, pair.repeat_interleave(len(choices)))
    return out


def commonest(drawn: Tensor) -> Tensor:
    """The commonest value of draws [K, ...], missing ones as -1; of several equally common ones the smallest."""
    return drawn.nan_to_num(-1.0).mode(0).values


def _by_pair(rows: Tensor, pair: Tensor) -> Tensor:
    """Sums of rows [R, F] over each pair [N, F]."""
    return torch.zeros(int(pair.max()) + 1, rows.shape[1], dtype=torch.float64).index_add_(0, pair, rows.double())


def firsts(group: Tensor) -> Tensor:
    """The first row of each group [N], in the order of rows."""
    place = numbered(group)
    first = torch.full((int(place.max()) + 1,), len(place)).scatter_reduce_(0, place, torch.arange(len(place)), "amin")
    return first.sort().values


def _check(space: Space, truth: Tensor, drawn: Tensor) -> None:
    if not truth.ndim or not len(truth) or not len(drawn):
        raise EmptyData("There are no pairs of truth and draws.", "Give at least one of each.")
    events = drawn.ndim - 2, truth.ndim - 1
    if drawn.shape[1] != len(truth) or events != (len(space.event_shape),) * 2:
        raise WrongShape(
            f"Draws have shape {tuple(drawn.shape)}, the truth {tuple(truth.shape)}.",
            "Give draws [K, N, *E] of a truth [N, *E].",
        )


@judged.register
def _(
    space: Text,
    truth: Tensor,
    drawn: Tensor,
    *,
    seed: int = 0,
    notes: list[str] | None = None,
    group: Tensor | None = None,
) -> dict[str, Judged]:
    _check(space, truth, drawn)
    said, right = ([space.spell(row) for row in rows] for rows in (drawn[0], truth))
    exact = [a == b for a, b in zip(said, right, strict=True)]
    out = {"exact": _share(torch.tensor(exact), "the whole text is right", group)}
    if len(drawn) > 1:
        every = [[space.spell(row) for row in rows] for rows in drawn]
        among = [b in texts for b, texts in zip(right, zip(*every, strict=True), strict=True)]
        out["exact in any"] = _share(torch.tensor(among), f"the whole text is right in any of {len(drawn)}", group)
    if jiwer := library("jiwer", notes, "word and character error rates"):
        for name, of, process in (
            ("word error", str.split, jiwer.process_words),
            ("character error", str.strip, jiwer.process_characters),
        ):
            counts = _edits([of(t) for t in right], [of(t) for t in said], process)
            if counts[:, 1].sum() > 0:
                words = f"edits per {name.split()[0]} of the truth, by jiwer {version('jiwer')}"
                ratio = lambda mean: mean[0] / mean[1]  # noqa: E731
                out[name] = bootstrap(counts, words, "less", "%", of=ratio, seed=seed, group=group)
    if metrics := library("sacrebleu.metrics", notes, "BLEU and chrF"):
        known = {"BLEU": metrics.BLEU(), "chrF": metrics.CHRF()}
        if all(len(text.split()) < GRAMS for text in right):  # else it is 0, however right
            del known["BLEU"]
        for name, metric in known.items():
            whole = metric.corpus_score(said, [right])  # before the signature is asked for
            words = f"{whole.name}|{metric.get_signature()}"
            counts = torch.tensor(metric._extract_corpus_statistics(said, [right]))
            of_counts = partial(_of_counts, metric, len(truth))
            out[name] = bootstrap(counts, words, "more", of=of_counts, seed=seed, group=group)
    return out


def _share(right: Tensor, words: str, group: Tensor | None) -> Judged:
    """Of how many [N] something is right, where those of a group depend on each other.

    The interval is that of so many independent ones as vary as much (Korn & Graubard 1998), of as many as there are
    groups where all are alike: no share has an interval of no width.
    """
    n, p = len(right), right.double().mean().item()
    if group is None or (k := independent(right, group)) == n:
        return success(int(right.sum()), n, words)
    spread = 0.0 if k == 1 else error_of_mean(right.double(), group) ** 2 * (k - 1) / k
    alike = min(n, p * (1 - p) / spread) if spread else k
    low, high = share_interval(p * alike, alike)
    return Judged(p, low, high, words, "more", "%", n)


def _of_counts(metric: Any, n: int, mean: Tensor) -> Tensor:
    """sacrebleu's figure of the counts of n texts, by their mean."""
    counts = (mean * n).round().long().tolist()
    return torch.tensor(float(metric._compute_score_from_stats(counts).score), dtype=torch.float64)


def _edits(right: list[Any], said: list[Any], process: Any) -> Tensor:
    """Of texts as lists of words, or of characters, the edits and the length of each truth [N, 2].

    Where a truth is empty, of which jiwer knows no rate, all that is said is too much.
    """
    counts = torch.tensor([[len(b), len(a)] for a, b in zip(right, said, strict=True)])
    some = [i for i, truth in enumerate(right) if truth]
    if some:
        spelt = ([t if isinstance(t, str) else " ".join(t) for t in (of[i] for i in some)] for of in (right, said))
        for i, chunks in zip(some, process(*spelt).alignments, strict=True):
            edits = (c for c in chunks if c.type != "equal")
            counts[i, 0] = sum(max(c.ref_end_idx - c.ref_start_idx, c.hyp_end_idx - c.hyp_start_idx) for c in edits)
    return counts


@judged.register
def _(
    space: Image,
    truth: Tensor,
    drawn: Tensor,
    *,
    seed: int = 0,
    notes: list[str] | None = None,
    group: Tensor | None = None,
) -> dict[str, Judged]:
    _check(space, truth, drawn)
    k, top = len(drawn), space.levels - 1
    real, draws = truth.double(), drawn.double()
    ways = {"": draws} if k == 1 else {" of the mean": draws.mean(0, keepdim=True), " of a draw": draws}
    told = {"": "of the draw", " of the mean": f"of the mean of {k} draws", " of a draw": f"of each of {k} draws"}
    out = {}
    for way, x in ways.items():
        ratio = 10 * (top**2 / (x - real).square().flatten(2).mean(2)).log10()
        words = f"peak signal to noise {told[way]}"
        out[f"PSNR{way}"] = bootstrap(ratio.mean(0), words, "more", "dB", seed=seed, group=group)
    side = min(WINDOW, (min(space.height, space.width) - 1) // 2 * 2 + 1)
    if side >= 3 and (metrics := library("skimage.metrics", notes, "SSIM")):
        how: dict[str, Any] = {"win_size": side, "data_range": top, "channel_axis": 0}
        for way, x in ways.items():
            found = [
                sum(metrics.structural_similarity(a.numpy(), b.numpy(), **how) for a in x[:, i].cpu()) / len(x)
                for i, b in enumerate(real.cpu())
            ]
            words = f"structural similarity {told[way]}, window {side}, by scikit-image {version('scikit-image')}"
            out[f"SSIM{way}"] = bootstrap(torch.tensor(found), words, "more", seed=seed, group=group)
    if k > 1:
        spread = draws.std(0).flatten(1).mean(1)
        words = f"standard deviation of a pixel over {k} draws, mean, in levels of 0 to {top}"
        out["spread"] = bootstrap(spread, words, "", "levels", seed=seed, group=group)
    return out


@judged.register
def _(
    space: Audio,
    truth: Tensor,
    drawn: Tensor,
    *,
    seed: int = 0,
    notes: list[str] | None = None,
    group: Tensor | None = None,
) -> dict[str, Judged]:
    _check(space, truth, drawn)
    found = [sum(_spectral(space, x, y) for x in drawn[:, i]) / len(drawn) for i, y in enumerate(truth)]
    words = f"log-spectral distance, frames of {FRAME} samples, no alignment, the shorter sound followed by silence"
    out = {"spectral distance": bootstrap(torch.tensor(found), words, "less", "dB", seed=seed, group=group)}
    return out | _lengths(space, truth, drawn, seed, 1 / space.rate, "s", group)


def _spectral(space: Audio, x: Tensor, y: Tensor) -> float:
    """Of two sounds [L]: the root of the mean over frequencies of squared differences in dB, mean over frames."""
    sounds = [space.amplitudes(v[v >= 0].cpu()) for v in (x, y)]
    size = max(FRAME, *map(len, sounds))
    padded = torch.stack([torch.nn.functional.pad(v, (0, size - len(v))) for v in sounds])
    window = torch.hann_window(FRAME, dtype=torch.float64)
    found = torch.stft(padded, FRAME, FRAME // 4, window=window, return_complex=True) / (window.sum() / 2)
    a, b = 10 * found.abs().square().clamp(min=FLOOR).log10()
    return (a - b).square().mean(0).sqrt().mean().item()


@judged.register
def _(
    space: Pair,
    truth: Tensor,
    drawn: Tensor,
    *,
    seed: int = 0,
    notes: list[str] | None = None,
    group: Tensor | None = None,
) -> dict[str, Judged]:
    _check(space, truth, drawn)
    parts = zip("ab", (space.a, space.b), space.split(truth), space.split(drawn), strict=True)
    return {
        f"{part}: {name}": found
        for part, of, y, x in parts
        for name, found in judged(of, y, x, seed=seed, notes=notes, group=group).items()
    }


# -- numbers -----------------------------------------------------------------------------------------------


@judged.register
def _(
    space: Sequence,
    truth: Tensor,
    drawn: Tensor,
    *,
    seed: int = 0,
    notes: list[str] | None = None,
    group: Tensor | None = None,
) -> dict[str, Judged]:
    """Step by step, as far as a sequence and all its draws go; and how long they are."""
    _check(space, truth, drawn)
    n, k = len(truth), len(drawn)
    both = join(space, [truth, *drawn])
    y, x = both[:n], both[n:].reshape(k, n, *both.shape[1:])
    pair, step = ((y[..., 0] != space.fill) & (x[..., 0] != space.fill).all(0)).nonzero(as_tuple=True)
    of = pair if group is None else numbered(group[pair])
    out = _columns(space.step, y[pair, step], x[:, pair, step], of, seed) if len(pair) else {}
    return out | _lengths(space, truth, drawn, seed, 1.0, "steps", group)


def _lengths(
    space: Space, truth: Tensor, drawn: Tensor, seed: int, scale: float, unit: str, group: Tensor | None = None
) -> dict[str, Judged]:
    """How far draws are from as long as the truth; nothing where all are of one length."""
    off = scale * (space.lengths(drawn) - space.lengths(truth)).abs().double().mean(0)
    if not space.has_eos or (not off.any() and len(space.lengths(truth).unique()) == 1):
        return {}
    words = "how much longer or shorter than the truth, mean"
    return {"length off": bootstrap(off, words, "less", unit, seed=seed, group=group)}


def _numbers(truth: Tensor, drawn: Tensor, pair: Tensor, seed: int) -> dict[str, Judged]:
    """Of numbers [R, D] beside draws [K, R, D]; missing ones are left out."""
    k, d = len(drawn), truth.shape[1]
    there = truth.isfinite() & drawn.isfinite().all(0)
    scale = torch.ones(d, dtype=torch.float64)
    if d > 1:  # columns of several units
        spread = torch.stack([v[ok].std() for v, ok in zip(truth.T, there.T, strict=True)])
        scale = torch.where(spread > 0, spread, 1.0)
    y, x = truth.nan_to_num(0.0) / scale, drawn.nan_to_num(0.0) / scale
    per, of = ("", "") if d == 1 else (", each column in standard deviations of its truth", f" of {d} columns")

    def told(each: Tensor, words: str, better: Better, unit: str = "", root: bool = False) -> Judged:
        """Of a figure for each number [R, D]: means of columns over the rows, then of columns."""
        rows = torch.cat([torch.where(there, each, 0.0), there.double()], 1)

        def mean(sums: Tensor) -> Tensor:
            means = sums[:d] / sums[d:]
            means = means.sqrt() if root else means
            return means.nanmean()  # of a column without numbers there is none

        return bootstrap(_by_pair(rows, pair), words, better, unit, of=mean, seed=seed)

    middle = "the draw" if k == 1 else f"the mean of {k} draws"
    out = {
        "RMSE": told((x.mean(0) - y).square(), f"root mean square error of {middle}, mean{of}{per}", "less", root=True)
    }
    if k > 1:
        words = f"continuous ranked probability score by {k} draws (its unbiased energy form), mean{of}{per}"
        out["CRPS"] = told(crps(y, x), words, "less")
        inside, share = _inside(y, x)
        words = f"of the central interval of {k} draws, which should hold {share:.0%}"
        out["coverage"] = told(inside, words, "", "%")
    return out


def crps(truth: Tensor, drawn: Tensor) -> Tensor:
    """E|X − y| − ½ E|X − X'| of numbers y [...] by draws [K, ...] (Gneiting & Raftery 2007, eq. 21), K ≥ 2.

    Pairs of different draws alone stand for the second term, so that it is unbiased for any K.
    """
    k = len(drawn)
    rank = 2 * torch.arange(1, k + 1, dtype=torch.float64, device=drawn.device) - k - 1
    between = torch.einsum("k,k...->...", rank, drawn.sort(0).values) / (k * (k - 1))
    return (drawn - truth).abs().mean(0) - between


def _inside(truth: Tensor, drawn: Tensor) -> tuple[Tensor, float]:
    """Is y between the j-th smallest and the j-th largest of K draws? Another draw would be, at (K + 1 − 2j) / (K + 1).

    j is that of the share nearest to ``INTERVAL``.
    """
    k = len(drawn)
    j = max(1, round((1 - INTERVAL) / 2 * (k + 1)))
    low, high = (drawn.sort(0).values[i] for i in (j - 1, k - j))
    return ((low <= truth) & (truth <= high)).double(), (k + 1 - 2 * j) / (k + 1)


# -- labels by their probabilities -------------------------------------------------------------------------


def judged_classes(found: Prediction, truth: Tensor, *, seed: int = 0) -> dict[str, Judged]:
    """Accuracy, log-loss and calibration error of the probabilities of classes, beside the classes [N]."""
    right = found.label.cpu() == truth.cpu()
    out = {"accuracy": success(int(right.sum()), len(right), "the likeliest class is right")}
    out["log-loss"] = bootstrap(-found.likelihood(truth).nats.cpu(), "mean of −log p(class)", "less", "nats", seed=seed)
    sure = found.sure.cpu()
    bins = (sure * BINS).long().clamp(max=BINS - 1)
    off = torch.nn.functional.one_hot(bins, BINS) * (sure - right.double())[:, None]
    words = f"expected calibration error: |confidence − accuracy| in {BINS} even bins of confidence, by their rows"
    out["calibration error"] = bootstrap(off, words, "less", "%", of=lambda mean: mean.abs().sum(), seed=seed)
    return out


# -- retrieval -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, repr=False)
class Retrieval:
    """Which of N pairs go together, by likelihood.

    Attributes:
        nats: log p(x_i | c_j) [N, N], or what the model has for it.
        kind: of them, by name.
        recall: of the context of an x ("c of x"), of the x of a context ("x of c"), and of the latter by
            log p(x | c) − log p(x) ("x of c, corrected"), the share of pairs where the right one is among the k best.
        k: how many.
    """

    nats: Tensor
    kind: str
    recall: dict[str, Judged]
    k: int

    def __repr__(self) -> str:
        return "\n".join(f"recall@{self.k}, {name}: {found.text}" for name, found in self.recall.items())


def retrieval(
    model: Model,
    x: Tensor,
    c: Tensor,
    k: int = 10,
    *,
    null: bool = False,
    request: AnyRequest = None,
    generator: torch.Generator | None = None,
) -> Retrieval:
    """Recall at k of x [N, *E] among all given each c [N, *Ec] and the other way, from log p(x_i | c_j) of all N².

    Given an x, p(c | x) ranks contexts as p(x | c) does, where all are as frequent. Given a c, p(x | c) ranks what is
    common anyhow first; log p(x | c) − log p(x), the pointwise mutual information, does not. log p(x) is the mean of
    p(x | c) over the contexts, or (``null``) that given no context, of a model that was trained with context dropout.

    Of equals the right one has its fair share of the places. Raises WrongShape where there are not as many x as c,
    Unsupported where the model has no likelihood.
    """
    n = len(x)
    if n != len(c) or not n:
        raise WrongShape(f"There are {n} x and {len(c)} contexts.", "Give the context of each x.")
    gen = generator or torch.Generator(model.device).manual_seed(0)
    state, size = gen.get_state(), max(1, BLOCK // n)

    def rows(given: Any, every: int) -> tuple[Tensor, str]:
        """log p of each x, [N, every], and its kind."""
        parts, kind = [], ""
        for block in torch.split(x, size):
            gen.set_state(state)  # where a block ends changes no number
            wide = block[:, None].expand(len(block), every, *block.shape[1:]) if every else block
            with torch.no_grad():
                lik = given.log_prob(wide, request=request, generator=gen)
            if isinstance(lik, Unavailable):
                raise Unsupported(f"{model.name} has no likelihood: {lik.reason}", "Fit a family that has one.")
            parts.append(lik.nats.detach().double().cpu())
            kind = type(lik).__name__
        return torch.cat(parts), kind

    nats, kind = rows(model.given(c), n)
    alone = rows(model.given(null=True), 0)[0] if null else nats.logsumexp(1) - math.log(n)
    pmi = torch.where(alone.isfinite()[:, None], nats - alone[:, None], -math.inf)

    def recall(by: Tensor, words: str) -> Judged:
        """Of the diagonal among its row."""
        own = by.diagonal()[:, None]
        before, same = (by > own).sum(1), (by == own).sum(1)
        hits = ((k - before) / same).clamp(0, 1)
        return success(hits.sum().item(), n, f"the right one of {n} is among the {k} best by {words}")

    less = "log p(x | no context)" if null else f"log of the mean of p(x | c) over {n} contexts"
    found = {
        "c of x": recall(nats, "log p(x | c)"),
        "x of c": recall(nats.T, "log p(x | c)"),
        "x of c, corrected": recall(pmi.T, f"log p(x | c) − {less}"),
    }
    return Retrieval(nats, kind, found, k)
