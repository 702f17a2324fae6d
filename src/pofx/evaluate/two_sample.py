"""Are the samples like the data? Five two-sample measures over one stated feature map.

    classifier two-sample test   can a classifier tell samples from held-out rows?   0.5 is best
    kernel MMD                   distance of the two distributions in an RKHS        0 is best, with a p-value
    Fréchet distance             distance of the two distributions, each taken as a Gaussian (FID, of other features)
    precision, recall, density, coverage   do samples lie on the data's manifold, and all over it?
    memorisation                 do samples lie nearer to training rows than held-out rows do?

All compare features, so they see no more than the features do; ``Features.description`` says which.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import singledispatch
from typing import Any, Literal, Protocol, TypeAlias

import torch
from torch import Tensor

from pofx.core.errors import UsageError
from pofx.core.space import Space
from pofx.data.parts import Part
from pofx.evaluate.ranking import auroc, error_of_mean, numbered, share_error
from pofx.spaces import Audio, Category, Column, Image, Label, Real, Sequence, Text

ONE_HOT = 32  # a category with more values has its rarest share one feature
MOST_HOT = 4096  # of all of a row, where it has very many categories
COMPONENTS = 64  # principal components of an image
FIT_ROWS = 5000  # training rows that fit the feature map
HASHED = 64  # counts of symbols, of pairs, of triples
Classifier = Literal["logistic", "mlp", "boosting"]
Groups: TypeAlias = tuple[Tensor | None, Tensor | None]
"""Of rows [N] of data and of samples: the same for those that depend on each other; None where none do."""


class FeatureMap(Protocol):
    description: str

    def __call__(self, x: Tensor) -> Tensor:
        """Rows x [N, *E] -> features [N, F]."""
        ...


# -- features ------------------------------------------------------------------------------------------


class Features:
    """A fixed map from rows to real vectors [N, F], fitted on training rows, at most ``FIT_ROWS`` drawn by ``seed``.

    Tables: numbers standardised (missing ones at the mean), categories one-hot, a flag per nullable
    column. Texts: shares of symbols, pairs and triples. Sounds and sequences: moments of values and of their
    differences. Images: pixels scaled to [0, 1], their first principal components, and the norm of what these
    leave out (or noise outside of their span would not be seen). Contexts are mapped alike and appended.
    """

    def __init__(self, space: Space, train: Part, context: Space | None = None, *, seed: int = 0) -> None:
        train = train.draw(FIT_ROWS, seed).read()
        maps = [features(space, train.x, seed)]
        if context is not None:
            assert train.c is not None
            maps.append(features(context, train.c, seed))
        self.maps = maps
        self.description = "; given ".join(m.description for m in maps)

    def __call__(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        """Features [N, F] (float32) of x [N, *E], with those of the contexts c where the map has them."""
        return torch.cat([m(v) for m, v in zip(self.maps, (x, c), strict=False) if v is not None], 1).float()

    def of(self, part: Part) -> Tensor:
        """Features [N, F] of all rows of a part, and of their contexts."""
        found = []
        for start in range(0, len(part), FIT_ROWS):
            rows = part[start : start + FIT_ROWS].read()
            found.append(self(rows.x, rows.c))
        return torch.cat(found)


@singledispatch
def features(space: Space, x: Tensor, seed: int) -> FeatureMap:
    """The map of one space, fitted on training rows x [N, *E]; by default that of its columns, or of its numbers.

    An open function: a space whose numbers are to be seen otherwise adds its own case.
    """
    return _TableFeatures(space, x)


@features.register(Text)
class _TextFeatures:
    """How often single symbols, pairs and triples occur, each kind hashed into so many counts."""

    description = f"shares of symbols, pairs and triples of symbols ({HASHED} counts each), and the length"

    def __init__(self, space: Text, x: Tensor, seed: int) -> None:
        self.space = space

    def __call__(self, x: Tensor) -> Tensor:
        inside, out = x >= 0, [(1.0 + self.space.lengths(x)).log()[:, None]]
        code = torch.zeros_like(x)
        for k in range(3):
            code = (code[:, : x.shape[1] - k] * 1_000_003 + x[:, k:] + 1) * 0x9E3779B1 % 2**31
            there = inside[:, k:].float()
            counts = torch.zeros(len(x), HASHED).scatter_add_(1, (code >> 7) % HASHED, there)
            out.append((counts / there.sum(1, keepdim=True).clamp(min=1)).sqrt())
        return torch.cat(out, 1)


@features.register(Audio)
@features.register(Sequence)
class _SeriesFeatures:
    """Of each column over time: mean, spread, spread of the first and second differences; and the length."""

    description = "mean and spread of each column, of its first and second differences, and the length"

    def __init__(self, space: Audio | Sequence, x: Tensor, seed: int) -> None:
        self.space = space
        raw = self._raw(x)
        self.mean, self.scale = raw.mean(0), raw.std(0).clamp(min=1e-6)

    def _raw(self, x: Tensor) -> Tensor:
        inside = x != self.space.fill
        v = torch.where(inside, x, 0).double().nan_to_num(0.0)
        if v.ndim == 2:
            v, inside = v[..., None], inside[..., None]
        out = [(1.0 + self.space.lengths(x)).log()[:, None]]
        for _ in range(3):
            n = inside.sum(1).clamp(min=1)
            mean = (v * inside).sum(1) / n
            spread = (((v - mean[:, None]) * inside).square().sum(1) / n + 1e-12).sqrt()
            out += [mean, spread.log()]
            v, inside = v.diff(dim=1), inside[:, 1:]
        return torch.cat(out, 1)

    def __call__(self, x: Tensor) -> Tensor:
        return (self._raw(x) - self.mean) / self.scale


class _TableFeatures:
    def __init__(self, space: Space, x: Tensor) -> None:
        columns: tuple[Column, ...] = space.columns or (Real("number"),) * space.dims
        self.columns, self.most = columns, max(2, min(ONE_HOT, MOST_HOT // len(columns)))
        self.fitted = [self._fit(col, v) for col, v in zip(columns, self._columns(x), strict=True)]
        numbers = sum(not isinstance(c, Category) for c in columns)
        flags = sum(c.nullable for c in columns)
        parts = [
            f"{numbers} standardised numbers" * bool(numbers),
            f"{len(columns) - numbers} one-hot categories" * (numbers < len(columns)),
            f"{flags} flags of missing values" * bool(flags),
        ]
        self.description = ", ".join(p for p in parts if p)

    @staticmethod
    def _columns(x: Tensor) -> tuple[Tensor, ...]:
        return x.reshape(len(x), -1).double().unbind(1)

    def _fit(self, col: Column, v: Tensor) -> Tensor:
        """Mean and scale of a number, or the code -> feature table of a category."""
        v = v[~v.isnan()]
        if not isinstance(col, Category):
            scale = v.std() if len(v) > 1 else torch.zeros(())
            return torch.stack([v.mean() if len(v) else scale, scale if scale > 0 else torch.ones_like(scale)])
        counts = torch.bincount(v.long(), minlength=len(col.values))
        rank = torch.empty_like(counts)
        rank[counts.argsort(descending=True, stable=True)] = torch.arange(len(counts))
        return rank.clamp(max=self.most - 1)

    def __call__(self, x: Tensor) -> Tensor:
        out = []
        for v, col, fitted in zip(self._columns(x), self.columns, self.fitted, strict=True):
            missing = v.isnan()
            if isinstance(col, Category):
                slot = fitted[v.nan_to_num(0).long()]
                hot = torch.nn.functional.one_hot(slot, min(len(col.values), self.most)).to(v)
                out.append(torch.where(missing[:, None], 0.0, hot))
            else:
                out.append(((v - fitted[0]) / fitted[1]).nan_to_num(0.0)[:, None])
            if col.nullable:
                out.append(missing[:, None].to(v))
        return torch.cat(out, 1)


@features.register(Image)
class _PixelFeatures:
    def __init__(self, space: Image, x: Tensor, seed: int) -> None:
        from sklearn.decomposition import PCA

        self.top = space.levels - 1
        flat = self._flat(x)
        self.mean = flat.mean(0)
        self.axes, share = torch.empty(0, flat.shape[1]), 0.0  # of images that are all alike there are none
        if (flat != flat[0]).any():
            k = min(COMPONENTS, flat.shape[1], len(flat))
            solver = "covariance_eigh" if flat.shape[1] <= 1024 else "randomized"
            pca = PCA(k, svd_solver=solver, random_state=seed).fit(flat.numpy())
            self.mean, self.axes = torch.from_numpy(pca.mean_), torch.from_numpy(pca.components_)
            share = float(pca.explained_variance_ratio_.sum())
        self.description = (
            f"{len(self.axes)} principal components of the pixels in [0, 1] ({share:.0%} of their variance), "
            "and the norm of what these leave out"
        )

    def _flat(self, x: Tensor) -> Tensor:
        return x.flatten(1).float() / self.top

    def __call__(self, x: Tensor) -> Tensor:
        centred = self._flat(x) - self.mean
        z = centred @ self.axes.T
        rest = (centred.square().sum(1) - z.square().sum(1)).clamp(min=0).sqrt()
        return torch.cat([z, rest[:, None]], 1)


@features.register(Label)
class _LabelFeatures:
    description = "one-hot labels"

    def __init__(self, space: Label, x: Tensor, seed: int) -> None:
        self.classes = len(space.values)

    def __call__(self, x: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(x, self.classes).float()


# -- classifier two-sample test ------------------------------------------------------------------------


@dataclass(frozen=True)
class C2st:
    """Cross-validated accuracy of telling samples from data: 0.5 where it cannot, 1 where it always can."""

    accuracy: float
    se: float  # binomial (see ``share_error``), widened because the folds share their training rows
    p_value: float  # of an accuracy this high where both come from one distribution
    n: int  # rows of each sample
    classifier: Classifier
    folds: int


def c2st(
    real: Tensor,
    fake: Tensor,
    *,
    paired: bool = False,
    groups: Groups = (None, None),
    classifier: Classifier = "boosting",
    folds: int = 5,
    seed: int = 0,
) -> C2st:
    """Classifier two-sample test (Lopez-Paz & Oquab, 2017) on features [N, F] of each side.

    Of the larger side as many rows are drawn as the smaller has, so that guessing is right half of the time. Boosting
    sees what logistic regression cannot (it is blind to all but the means), on few rows too.

    ``paired``: row i of one side was drawn given the context of row i of the other. Both are then in one fold, or what
    a classifier learned of the one would tell against the other, which is near it: of draws that equal the truth it
    would be wrong each time. Of the larger side the first rows are taken. ``groups`` [N] of each side have the same
    number for rows that depend on each other: they are in one fold, too, and in the error a group counts as one row.

    The classifiers of k folds are trained on almost the same rows, so the folds' accuracies depend on each other: their
    variance is taken 1 + k / (k - 1) times the binomial one (Nadeau & Bengio, 2003, eq. 8, of test and training parts
    in the ratio 1 to k - 1), in the error as in the p-value.

    Example:
        >>> import torch
        >>> g = torch.Generator().manual_seed(0)
        >>> real, same, moved = (torch.randn(300, 2, generator=g) + shift for shift in (0, 0, 3))
        >>> c2st(real, moved, classifier="logistic").accuracy > 0.95
        True
    """
    from sklearn.model_selection import PredefinedSplit, StratifiedKFold, cross_val_predict
    from threadpoolctl import threadpool_limits

    n = _same_size(real, fake, at_least=2 * folds)
    (x, y), of = _sides(real, fake, groups, paired)
    k = 1 + int(of.max())  # of the rows of both sides, so many do not depend on each other
    side = torch.arange(2).repeat_interleave(n).numpy()
    split: Any = StratifiedKFold(folds, shuffle=True, random_state=seed)
    if k < 2 * n:
        fold = (torch.randperm(k, generator=torch.Generator().manual_seed(seed)) % folds)[of]
        split = PredefinedSplit(fold.numpy())
    with threadpool_limits(1):  # on so few rows more threads only wait for each other
        right = cross_val_predict(_classifier(classifier, n, seed), torch.cat([x, y]).numpy(), side, cv=split) == side
    accuracy = float(right.mean())
    wider, alone = math.sqrt(1 + folds / (folds - 1)), 2 * k if paired else k
    z = (accuracy - 0.5) / (wider * math.sqrt(0.25 / alone))
    p_value = 0.5 * math.erfc(z / math.sqrt(2))
    return C2st(accuracy, wider * share_error(accuracy, alone), p_value, n, classifier, folds)


def _classifier(name: Classifier, n: int, seed: int) -> Any:
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if name == "logistic":
        return make_pipeline(StandardScaler(), LogisticRegression(max_iter=500))
    if name == "mlp":
        net = MLPClassifier((64, 64), early_stopping=True, max_iter=100, random_state=seed)
        return make_pipeline(StandardScaler(), net)
    if name == "boosting":
        # small trees: with some thousand rows, more only costs time
        return HistGradientBoostingClassifier(
            max_iter=50,
            learning_rate=0.2,
            max_leaf_nodes=15,
            max_bins=63,
            min_samples_leaf=min(20, max(2, n // 10)),
            early_stopping=False,
            random_state=seed,
        )
    raise UsageError(f"There is no classifier {name!r}; known: logistic, mlp, boosting.")


# -- kernel MMD ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mmd:
    """Unbiased squared maximum mean discrepancy: near 0 (either side) where the distributions agree."""

    mmd2: float
    null_se: float  # its standard deviation where both come from one distribution, by permutation
    p_value: float
    bandwidth: float
    n: int
    permutations: int


def mmd(
    real: Tensor,
    fake: Tensor,
    *,
    paired: bool = False,
    groups: Groups = (None, None),
    permutations: int = 200,
    generator: torch.Generator | None = None,
) -> Mmd:
    """Gaussian-kernel MMD^2, unbiased (Gretton et al., 2012, eq. 3), on features [N, F] of each side.

    The bandwidth is the median distance of the pooled rows; the p-value counts relabellings of the
    pooled rows that give as much, the observed one included. Rows that depend on each other (``groups`` and ``paired``
    as of ``c2st``) are relabelled together, and those of groups on both sides change sides.

    Example:
        >>> import torch
        >>> g = torch.Generator().manual_seed(0)
        >>> real, same, moved = (torch.randn(200, 2, generator=g) + shift for shift in (0, 0, 3))
        >>> mmd(real, moved).mmd2 > 10 * abs(mmd(real, same).mmd2)
        True
    """
    n = _same_size(real, fake, at_least=2)
    gen = torch.Generator().manual_seed(0) if generator is None else generator
    both = paired and groups[0] is not None
    sides, of = _sides(real, fake, groups, both)
    pooled, size = torch.cat(sides), of.bincount()
    distance = _distances(pooled, pooled)
    off_diagonal = distance[torch.ones_like(distance, dtype=torch.bool).triu(1)]
    bandwidth = float(off_diagonal.median()) or 1.0  # at least half of the pairs are equal rows
    kernel = torch.exp(-distance.square() / (2 * bandwidth**2)).fill_diagonal_(0)
    first = torch.zeros(2 * n, permutations + 1)  # which rows are of the first side
    first[:n, 0] = 1  # the observed labelling
    for k in range(1, permutations + 1):
        order = torch.randperm(len(size), generator=gen)
        chosen = torch.zeros(len(size)).index_fill_(0, order[size[order].cumsum(0) <= n], 1)[of]
        first[:, k] = torch.cat([chosen[:n], 1 - chosen[n:]]) if both else chosen
    # sums over pairs of rows, off the diagonal: of all with the first side, within it, across, within the other
    m, all_first, total = first.sum(0).double(), (kernel.sum(0) @ first).double(), kernel.sum().double()
    within = (first * (kernel @ first)).sum(0).double()
    across, rest = all_first - within, total - 2 * all_first + within
    other = 2 * n - m
    values = within / (m * (m - 1)).clamp(min=1) + rest / (other * (other - 1)).clamp(min=1) - 2 * across / (m * other)
    observed, null = values[0], values[1:]
    p_value = float((values >= observed).double().mean())
    return Mmd(float(observed), float(null.std()), p_value, bandwidth, n, permutations)


# -- Fréchet distance ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Frechet:
    """How far apart two clouds of features are, each as a Gaussian: of few rows more than 0 where both are alike."""

    distance: float
    se: float  # by the jackknife, over blocks of rows
    n_real: int
    n_fake: int


def frechet(real: Tensor, fake: Tensor, *, groups: Groups = (None, None), blocks: int = 20) -> Frechet:
    """|m - m'|^2 + tr(C + C' - 2 (C C')^(1/2)) of the means and covariances of features [N, F] of each side.

    The distance of Dowson & Landau (1982) that Heusel et al. (2017) take of Inception's features, in their units. It
    is larger the fewer rows there are, so what says something is how it compares with that of as many real rows.
    ``groups`` [N] of each side have the same number for rows that depend on each other, which are in one block.

    Example:
        >>> import torch
        >>> g = torch.Generator().manual_seed(0)
        >>> real, same, moved = (torch.randn(1000, 2, generator=g) + shift for shift in (0, 0, 3))
        >>> frechet(real, same).distance < 0.05, 16 < frechet(real, moved).distance < 20  # 0 and 18 of many rows
        (True, True)
    """
    _same_size(real, fake, at_least=2 * blocks)
    sides = []
    for side, group in zip((real, fake), groups, strict=True):
        place = torch.arange(len(side)) if group is None else numbered(group[: len(side)])
        k = 1 + int(place.max())
        if k < blocks:
            raise UsageError(f"{k} groups of rows: a jackknife of {blocks} blocks needs as many.")
        sides.append((side.double(), place * blocks // k))
    each = torch.stack([_frechet(*(side[block != b] for side, block in sides)) for b in range(blocks)])
    se = ((blocks - 1) * each.var(correction=0)).sqrt()
    return Frechet(float(_frechet(*(side for side, _ in sides))), float(se), len(real), len(fake))


def _frechet(a: Tensor, b: Tensor) -> Tensor:
    c, d = (torch.atleast_2d(side.T.cov()) for side in (a, b))
    values, axes = torch.linalg.eigh(c)
    root = axes * values.clamp(min=0).sqrt() @ axes.T  # (C C')^(1/2) has the trace of (C^(1/2) C' C^(1/2))^(1/2)
    cross = torch.linalg.eigvalsh(root @ d @ root).clamp(min=0).sqrt().sum()
    return (a.mean(0) - b.mean(0)).square().sum() + c.trace() + d.trace() - 2 * cross


# -- precision, recall, density, coverage -----------------------------------------------------------------


@dataclass(frozen=True)
class Prdc:
    """Fidelity and diversity by k-nearest-neighbour balls; ``se`` in the same order as the four numbers."""

    precision: float  # share of samples inside some ball around a real row
    recall: float  # share of real rows inside some ball around a sample
    density: float  # mean number of balls around real rows that hold a sample, over k; may exceed 1
    coverage: float  # share of balls around real rows that hold a sample
    se: tuple[float, ...]
    k: int
    n_real: int
    n_fake: int


def prdc(real: Tensor, fake: Tensor, *, groups: Groups = (None, None), k: int = 5, cap: int = 3000) -> Prdc:
    """Improved precision and recall (Kynkäänniemi et al., 2019, eq. 1-2), density and coverage (Naeem et al., 2020).

    Of features [N, F] of each side; at most ``cap`` rows of each. The balls are closed, so that equal rows of
    discrete data meet. Standard errors are those of means over rows, or over ``groups`` [N] of rows that depend on each
    other, the balls taken as given.

    Example:
        >>> import torch
        >>> g = torch.Generator().manual_seed(0)
        >>> real, narrow = torch.randn(300, 2, generator=g), 0.3 * torch.randn(300, 2, generator=g)
        >>> found = prdc(real, narrow)
        >>> found.precision > 0.9, found.recall < 0.5  # what is drawn is plausible, and much is never drawn
        (True, True)
    """
    ours, theirs = (None if g is None else _some(g[: len(x)], cap) for g, x in zip(groups, (real, fake), strict=True))
    real, fake = _some(real, cap), _some(fake, cap)
    if min(len(real), len(fake)) <= k:
        raise UsageError(f"{len(real)} rows against {len(fake)} samples: balls of {k} neighbours need more than {k}.")
    real_radius, fake_radius = _radii(real, k), _radii(fake, k)
    in_real = torch.zeros(len(fake))  # per sample: how many balls around real rows hold it
    recalled = torch.zeros(len(real), dtype=torch.bool)
    covered = torch.zeros(len(real), dtype=torch.bool)
    for i in range(0, len(real), 512):
        block = slice(i, i + 512)
        d = _distances(real[block], fake)
        inside = d <= real_radius[block, None]
        in_real += inside.sum(0)
        covered[block] = inside.any(1)
        recalled[block] = (d <= fake_radius).any(1)
    figures = [(in_real > 0).double(), recalled.double(), in_real.double() / k, covered.double()]
    precision, recall, density, coverage = (float(f.mean()) for f in figures)
    errors = tuple(error_of_mean(f, g) for f, g in zip(figures, (theirs, ours, theirs, ours), strict=True))
    return Prdc(precision, recall, density, coverage, errors, k, len(real), len(fake))


def _radii(x: Tensor, k: int) -> Tensor:
    """Distance [N] of every row to its k-th nearest neighbour."""
    # the row itself is its nearest neighbour, at distance 0
    return torch.cat([_distances(x[i : i + 512], x).kthvalue(k + 1, 1).values for i in range(0, len(x), 512)])


# -- memorisation ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Memorisation:
    """Nearest-neighbour distances to training rows: of samples, against those of held-out rows.

    Held-out rows tell how near fresh data come. ``auroc`` is the chance that a sample lies nearer to the
    training rows than a held-out row does: 0.5 for fresh data, near 1 for copies; below 0.5 samples lie
    farther off than data do, which is poor quality and no copying.
    """

    auroc: float
    se: float
    ks: float  # Kolmogorov-Smirnov distance of the two distributions of distances
    ks_p_value: float
    ratio: float  # median distance of samples over that of held-out rows
    copies: float  # share of samples that equal a training row
    held_out_copies: float  # the same of held-out rows: repeated rows of the data
    n: int
    n_train: int


def memorisation(
    train: Tensor,
    held_out: Tensor,
    fake: Tensor,
    *,
    groups: Groups = (None, None),
    cap: int = 20_000,
    near: Tensor | None = None,
) -> Memorisation:
    """Data-copying test (Meehan et al., 2020, without its cells) on features [N, F] of the three sets.

    At most ``cap`` training rows: a sample that copies another one is missed. ``groups`` [N] of held-out rows and
    samples: the same for those that depend on each other. ``near``: what ``nearest`` gives of the held-out rows, where
    that is known.
    """
    from scipy.stats import ks_2samp

    n, train = _same_size(held_out, fake, at_least=2), _some(train, cap)
    ours = nearest(_some(fake, n), train)
    theirs = nearest(_some(held_out, n), train) if near is None else _some(near, n)
    those, these = (None if g is None else _some(g[: len(x)], n) for g, x in zip(groups, (held_out, fake), strict=True))
    area = auroc(-theirs.double(), -ours.double(), (those, these))
    ks = ks_2samp(ours.numpy(), theirs.numpy())
    median = float(theirs.median())
    return Memorisation(
        auroc=area.auroc,
        se=area.se,
        ks=float(ks.statistic),
        ks_p_value=float(ks.pvalue),
        ratio=float(ours.median()) / median if median > 0 else math.nan,
        copies=float((ours == 0).float().mean()),
        held_out_copies=float((theirs == 0).float().mean()),
        n=n,
        n_train=len(train),
    )


def nearest(x: Tensor, y: Tensor, candidates: int = 4) -> Tensor:
    """Distance [N] of every row of x [N, F] to its nearest row of y [M, F]; exactly 0 for an equal row.

    One matrix product finds the nearest ``candidates`` up to rounding, whose distances are then exact.

    Example:
        >>> import torch
        >>> nearest(torch.tensor([[0.0, 0.0]]), torch.tensor([[3.0, 4.0], [6.0, 8.0]]))
        tensor([5.])
    """
    out, square = [], y.square().sum(1)
    for i in range(0, len(x), 256):
        rows = x[i : i + 256]
        near = torch.addmm(square, rows, y.T, alpha=-2).topk(min(candidates, len(y)), 1, largest=False).indices
        out.append((rows[:, None] - y[near]).norm(dim=2).amin(1))
    return torch.cat(out)


# -- shared ----------------------------------------------------------------------------------------------


def _distances(x: Tensor, y: Tensor) -> Tensor:
    """Euclidean [N, M], without the cancellation of |x|^2 + |y|^2 - 2xy: equal rows are at distance 0."""
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


def _some(x: Tensor, most: int) -> Tensor:
    """At most so many rows; where there are more, drawn: the head of something sorted is no sample of it."""
    if len(x) <= most:
        return x
    return x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:most]]


def _sides(real: Tensor, fake: Tensor, groups: Groups, paired: bool) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """As many rows of each side, and which group each of them is of [2 N], a pair being of one, too."""
    n = min(len(real), len(fake))
    whole = [torch.arange(len(x)) if g is None else g[: len(x)] for g, x in zip(groups, (real, fake), strict=True)]
    if paired:  # of both the same
        one = numbered(whole[0][:n])
        return (real[:n], fake[:n]), torch.cat([one, one])
    a, b = (numbered(_some(g, n)) for g in whole)
    return (_some(real, n), _some(fake, n)), torch.cat([a, b + 1 + a.max()])


def _same_size(a: Tensor, b: Tensor, at_least: int) -> int:
    n = min(len(a), len(b))
    if n < at_least:
        raise UsageError(f"{len(a)} rows against {len(b)}: a two-sample test needs at least {at_least} of each.")
    return n
