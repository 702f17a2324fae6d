"""EM for mixtures of Gaussians times categoricals: priors, M step, dead components, the learner, starts.

The mode of p(theta | data) under conjugate priors (Fraley, Raftery 2007, section 2), in whitened coordinates,
where the data have mean 0 and covariance I. Each strength is a number of pseudo-rows:

    pi ~ Dirichlet(1 + a),   mu_j ~ N(0, Sigma_j / kappa),   p(Sigma_j) ~ |Sigma_j|^(-w/2) exp(-w s tr(Sigma_j^-1) / 2),

an inverse Wishart with its mode at s I, s = K^(-2/d); at kappa = 0 means are uniform, whatever Sigma_j. With all
strengths at 0 this is maximum likelihood under Sigma_j >= floor I (Hathaway 1985); without a floor there is none, as
a component on one datum has infinite density. Raising the eigenvalues of the free maximiser to the floor maximises
under the constraint, so the likelihood still rises in every step.
"""

from __future__ import annotations

import math
import pickle
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from pofx.codecs.joint import Blocks, Joint
from pofx.core.errors import CannotSave
from pofx.core.learner import Batch, Local, Runtime
from pofx.families.mixture.sweep import Stats, e_step
from pofx.families.mixture.whitening import (
    LOG_ZERO,
    Components,
    Covariance,
    Rows,
    Whitening,
    cholesky_above,
    triangular_inverse,
)

LEAST_ROWS = 1e-3  # a component that is responsible for less is dead
TINY = 1e-300


@dataclass(frozen=True)
class Prior:
    """What is believed before the data, and what holds whatever they say.

    Components are ``groups`` runs of equal length, one per class; the first ``groups`` columns of the table
    then hold the class, and are fixed.
    """

    base: Tensor  # [V]: probabilities that sum to 1 over each discrete column's values
    smoothing: float = 0.0  # Dirichlet of the discrete columns: pseudo-rows per column, spread as ``base``
    floor: float = 1e-6  # least variance
    dirichlet: float = 0.0  # a
    normal: float = 0.0  # kappa
    wishart: float = 0.0  # w, per covariance
    groups: int = 1

    @property
    def fixed(self) -> int:
        """Columns of the table that hold the class."""
        return self.groups if self.groups > 1 else 0

    def spread(self, components: Components) -> float:
        """w s, with s = K^(-2/d) and K per class."""
        k, d = components.mean.shape
        return self.wishart * (k // self.groups) ** (-2 / max(d, 1))


def initial(kind: Covariance, k: int, d: int, prior: Prior) -> Components:
    """K equal components at mean 0 and covariance I, but for their class."""
    like = prior.base
    table = prior.base.clamp(min=TINY).log().repeat(k, 1)
    if prior.groups > 1:
        own = torch.eye(prior.groups, device=like.device).repeat_interleave(k // prior.groups, 0)
        table[:, : prior.groups] = torch.where(own > 0, 0.0, LOG_ZERO)
    eye = torch.eye(d, dtype=like.dtype, device=like.device)
    shapes = {"full": eye.expand(k, d, d), "tied": eye, "diag": like.new_ones(k, d), "spherical": like.new_ones(k)}
    return Components(
        kind, like.new_full((k,), -math.log(k)), like.new_zeros(k, d), shapes[kind].contiguous().clone(), table
    )


def m_step(components: Components, stats: Stats, prior: Prior) -> Components:
    """The M step. A dead component keeps its mean and shape and weighs nothing."""
    alive = stats.n > LEAST_ROWS
    n = stats.n.clamp(min=TINY)
    step = stats.first / n[:, None]  # the mean residual
    squares, pull = n * step.square().sum(1), prior.normal * n / (n + prior.normal)
    spread, factor = prior.spread(components), components.factor
    d = components.mean.shape[1]
    # variance = (N_j S_j + pull x x' + w s I) / (N_j + w + 1), with S_j about the mean of the rows and x = that mean;
    # the 1 is of the mean's prior, whose own density falls with |Sigma_j|^(1/2), and is there where that prior is
    means = 1.0 if prior.normal else 0.0
    if components.kind in ("full", "tied"):
        x = components.mean + (factor @ step[..., None]).squeeze(-1)
        if components.kind == "full":
            inner = stats.second - n[:, None, None] * step[:, :, None] * step[:, None, :]
            variance = factor @ inner @ factor.mT + pull[:, None, None] * x[:, :, None] * x[:, None, :]
            variance.diagonal(dim1=1, dim2=2).add_(spread)
            variance /= (n + prior.wishart + means)[:, None, None]
        else:
            inner = stats.second - (step * n[:, None]).T @ step
            variance = factor @ inner @ factor.T + (x * pull[:, None]).T @ x
            variance.diagonal().add_(spread)
            variance /= n.sum() + prior.wishart + means * len(n)  # one covariance, K means
        new = _cholesky(variance, prior.floor)
    else:
        x = components.mean + components.deviation() * step
        if components.kind == "diag":
            inner = stats.second - n[:, None] * step.square()
            variance = inner * factor.square() + pull[:, None] * x.square() + spread
            variance /= (n + prior.wishart + means)[:, None]
        else:
            variance = (stats.second - squares) * factor.square() + pull * x.square().sum(1) + d * spread
            variance /= max(d, 1) * (n + prior.wishart + means)
        new = variance.clamp(min=prior.floor).sqrt()
    if components.kind != "tied":
        new = torch.where(alive.view(-1, *[1] * (new.ndim - 1)), new, factor)
    shrunk = x * (n / (n + prior.normal))[:, None]
    mean = torch.where(alive[:, None], shrunk, components.mean)
    rows, fixed = (stats.n + prior.smoothing)[:, None].clamp(min=TINY), prior.fixed
    table = ((stats.counts + prior.smoothing * prior.base) / rows).clamp(min=TINY).log()
    table[:, :fixed] = components.table[:, :fixed]
    return replace(components, log_weight=_log_weight(stats.n, prior), mean=mean, factor=new, table=table)


def _cholesky(variance: Tensor, floor: float) -> Tensor:
    """Cholesky factors of variance [..., d, d] under the floor."""
    eye = torch.eye(variance.shape[-1], dtype=variance.dtype, device=variance.device)
    # positive definite above the floor? A Cholesky factorisation asks this at a tenth of the cost of eigenvalues.
    below = torch.linalg.cholesky_ex(variance - floor * eye).info > 0
    factor = torch.linalg.cholesky_ex(variance).L
    if below.any():
        factor[below] = cholesky_above(variance[below], floor)
    return factor


def _log_weight(n: Tensor, prior: Prior) -> Tensor:
    """log P(class) + log P(component | class), the classes with one pseudo-row each."""
    n = n.view(prior.groups, -1)
    total = n.sum(1, keepdim=True)
    k = n.shape[1]
    within = (n + prior.dirichlet) / (total + k * prior.dirichlet).clamp(min=TINY)
    within = torch.where(total + prior.dirichlet > LEAST_ROWS, within, 1 / k)
    if prior.groups > 1:
        within = within * (total + 1) / (total.sum() + prior.groups)
    return within.flatten().clamp(min=TINY).log()


def log_prior(components: Components, prior: Prior) -> Tensor:
    """log p(theta) up to a constant: what EM raises together with the log-likelihood."""
    total, mean = components.mean.new_zeros(()), components.mean
    if prior.wishart or prior.normal:
        if components.kind in ("full", "tied"):
            log_det = 2 * components.factor.diagonal(dim1=-2, dim2=-1).log().sum()
            trace = triangular_inverse(components.factor).square().sum()
            pulled = torch.linalg.solve_triangular(components.factor, mean[..., None], upper=False).square().sum()
        else:
            # of a spherical mixture: one deviation stands for d of them, in the prior as in the likelihood
            deviation = components.deviation()
            log_det = 2 * deviation.log().sum()
            trace, pulled = deviation.square().reciprocal().sum(), (mean / deviation).square().sum()
        total -= 0.5 * (prior.wishart * log_det + prior.spread(components) * trace + prior.normal * pulled)
        if prior.normal:  # |Sigma_j|^(-1/2) of every mean
            total -= 0.5 * log_det * (len(mean) if components.kind == "tied" else 1)
    weight = components.log_weight.view(prior.groups, -1)
    share = weight.logsumexp(1, keepdim=True)
    total = total + prior.dirichlet * (weight - share).sum()
    if prior.groups > 1:
        total = total + share.sum()
    return total + prior.smoothing * (components.table * prior.base)[:, prior.fixed :].sum()


def revive(components: Components, stats: Stats, prior: Prior) -> tuple[Components, int]:
    """Put every dead component on half of its class's heaviest one; how many there were.

    The heavy one splits along its longest Cholesky column, at a distance of half of it to either side. The
    likelihood may fall in such a step, and in no other.
    """
    dead = (stats.n <= LEAST_ROWS).view(prior.groups, -1)
    dead = dead & ~dead.all(1, keepdim=True)  # a class without rows keeps its start
    index, size = dead.flatten().nonzero().squeeze(1).tolist(), dead.shape[1]
    log_weight, mean, factor, table = (
        t.clone() for t in (components.log_weight, components.mean, components.factor, components.table)
    )
    for j in index:
        first = j // size * size
        heavy = first + int(log_weight[first : first + size].argmax())
        half = factor if components.kind == "tied" else factor[heavy]
        half = half if components.kind in ("full", "tied") else half.expand(mean.shape[1]).diag()
        half = 0.5 * half[:, int(half.square().sum(0).argmax())] if len(half) else mean[heavy]
        log_weight[heavy] -= math.log(2)
        log_weight[j], table[j] = log_weight[heavy], table[heavy]
        mean[j], mean[heavy] = mean[heavy] + half, mean[heavy] - half
        if components.kind != "tied":
            factor[j] = factor[heavy]
    return Components(components.kind, log_weight, mean, factor, table), len(index)


class Fitted(Protocol):
    """What an EM step asks of the mixture that it fits."""

    joint: Joint
    config: Any

    @property
    def device(self) -> torch.device: ...
    def components(self) -> Components: ...
    def adopt(self, new: Components) -> None: ...
    def whitening(self) -> Whitening: ...
    def prior(self) -> Prior: ...
    def rows(self, y: Tensor, codes: Tensor, weight: Tensor | None = None) -> list[Rows]: ...


@dataclass
class EmLearner:
    """One step is one EM iteration over this process's share; sufficient statistics are summed over processes."""

    model: Fitted
    runtime: Runtime = field(default_factory=Local)
    finished: bool = False
    objective: float | None = None  # (log-likelihood + log-prior) / rows before the last step
    seed: int | None = None  # of the dequantisation, drawn once: all steps climb one hill
    seen: tuple[Any, ...] = ()  # x, c and weight of the batch that ``rows`` holds
    rows: Iterable[Rows] = ()
    sweep: Literal["minibatch", "dataset"] = "dataset"

    @torch.no_grad()
    def step(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """E step and M step.

        "loss" is the negative log-likelihood per datum *before* the step (of the joint of context and datum,
        with one draw of noise); "log_prior" per datum, "revived" the dead components that were reset.
        """
        model, prior = self.model, self.model.prior()
        if self.seed is None:
            self.seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
        old = model.components()
        stats = e_step(old, self._rows(batch), model.whitening()).summed(self.runtime.sum)
        log_lik, weight, _ = stats.total
        before = log_prior(old, prior)
        new, revived = revive(m_step(old, stats, prior), stats, prior)
        model.adopt(new)
        objective = float((log_lik + before) / weight)
        gain = math.inf if self.objective is None or revived else objective - self.objective
        # one complete Gaussian per class has nothing left to iterate on
        at_once = model.config.components == 1 and model.joint.complete
        self.finished, self.objective = at_once or gain < model.config.tol, objective
        return {"loss": -log_lik / weight, "log_prior": before / weight, "revived": weight.new_tensor(float(revived))}

    def _rows(self, batch: Batch) -> Iterable[Rows]:
        """The batch in whitened coordinates: made once, in memory or in a file, while the same batch comes again."""
        seen = (batch.x, batch.c, batch.weight)
        if self.seen and all(_same(a, b) for a, b in zip(seen, self.seen, strict=True)):
            return self.rows
        joint, weight = self.model.joint, None
        if batch.weight is not None:  # counts as so many rows, after scaling to a mean of one
            weight = batch.weight.double() * (batch.total / self.runtime.sum(batch.weight.double().sum()))
        noise = torch.Generator(self.model.device).manual_seed(self.seed or 0)
        if all(t is None or isinstance(t, Tensor) for t in seen):
            y, codes = joint.split(batch.x, batch.c)
            if len(grid := joint.grid()):
                y = joint.dequantise(y, grid, batch.rand(len(grid), generator=noise))
            self.rows = self.model.rows(y, codes, weight)
        else:
            blocks = Blocks(joint, batch.x, batch.c, weight, noise)
            self.rows = Spool(lambda: (rows for y, codes, w in blocks for rows in self.model.rows(y, codes, w)))
        self.seen = seen
        return self.rows

    def state_dict(self) -> dict[str, Any]:
        return {"finished": self.finished, "objective": self.objective, "seed": self.seed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.finished, self.objective, self.seed = state["finished"], state["objective"], state["seed"]


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.data_ptr() == b.data_ptr() and a.shape == b.shape
    return a is b


class Spool:
    """Rows that memory does not hold: made on the first pass, and read from a temporary file on the later ones.

    The file has no name, so what is unpickled is what this process wrote.
    """

    def __init__(self, make: Callable[[], Iterable[Rows]]) -> None:
        self.make = make
        self.file = tempfile.TemporaryFile()  # noqa: SIM115 (open as long as the rows are used)
        self.end: int | None = None  # of the file, once all rows are in it

    def __iter__(self) -> Iterator[Rows]:
        self.file.seek(0)
        if self.end is None:
            for rows in self.make():
                self._keep(rows)
                yield rows
            self.end = self.file.tell()
        else:
            while self.file.tell() < self.end:
                yield pickle.load(self.file)

    def _keep(self, rows: Rows) -> None:
        weight = None if rows.weight is None else rows.weight.clone()  # of a view, all that it looks at is written
        try:
            pickle.dump(replace(rows, weight=weight), self.file, protocol=5)
        except OSError as error:
            raise CannotSave(
                f"Could not write whitened rows to {tempfile.gettempdir()}: {error.strerror}.",
                "Make room there, or name another folder by the environment variable TMPDIR.",
            ) from error


# -- starts --------------------------------------------------------------------------------------------------


def k_means(f: Tensor, k: int, weight: Tensor, generator: torch.Generator, iterations: int = 30) -> Tensor:
    """Clusters [n] of the rows f [n, q]: Lloyd's iterations from a greedy k-means++ start.

    Arthur, Vassilvitskii 2007: each next centre is drawn in proportion to the squared distance to those
    before, the best of 2 + log k draws.
    """
    norm = f.square().sum(1)

    def distance(c: Tensor) -> Tensor:
        return torch.addmm(norm[:, None] + c.square().sum(1), f, c.T, alpha=-2).clamp_(min=0)

    def draw(p: Tensor, count: int) -> Tensor:
        cdf = p.cumsum(0)
        u = torch.rand(count, generator=generator, dtype=torch.float64, device=generator.device).to(f.device)
        return torch.searchsorted(cdf, u * cdf[-1]).clamp_(max=len(p) - 1)

    centre = f[draw(weight, 1)]
    nearest = distance(centre).squeeze(1)
    for _ in range(k - 1):
        p = weight * nearest
        trial = f[draw(p if float(p.sum()) > 0 else weight, 2 + int(math.log(k)))]
        closer = torch.minimum(nearest[:, None], distance(trial))
        best = int((weight @ closer).argmin())
        centre, nearest = torch.cat([centre, trial[best : best + 1]]), closer[:, best]
    label = distance(centre).argmin(1)
    for _ in range(iterations):
        mass = f.new_zeros(k).index_add_(0, label, weight)
        total = torch.zeros_like(centre).index_add_(0, label, f * weight[:, None])
        centre = torch.where(mass[:, None] > 0, total / mass[:, None].clamp(min=TINY), centre)
        new = distance(centre).argmin(1)
        if torch.equal(new, label):
            break
        label = new
    return label


def from_partition(
    initial: Components, z: Tensor, codes: Tensor, weight: Tensor, label: Tensor, prior: Prior
) -> Components:
    """The M step after whole rows z [n, d] (whitened), codes [n, m] went to one component each, ``label`` [n].

    ``initial`` has means 0 and covariances I, and gives the table's fixed part. A Wishart prior of d + 1
    pseudo-rows keeps clusters with few rows regular.
    """
    k, d = initial.mean.shape
    n = z.new_zeros(k).index_add_(0, label, weight)
    first = z.new_zeros(k, d).index_add_(0, label, z * weight[:, None])
    if initial.kind in ("full", "tied"):
        clusters = [z[label == j] * weight[label == j, None].sqrt() for j in range(k)]
        second = torch.stack([c.T @ c for c in clusters])
        second = second if initial.kind == "full" else second.sum(0)
    else:
        second = z.new_zeros(k, d).index_add_(0, label, z.square() * weight[:, None])
        second = second if initial.kind == "diag" else second.sum(1)
    counts = torch.zeros_like(initial.table)
    place = (label[:, None] * counts.shape[1] + codes).flatten()
    counts.view(-1).index_add_(0, place, weight.repeat_interleave(codes.shape[1]))
    stats = Stats(z.new_zeros(3), n, first, second, counts)
    return m_step(initial, stats, replace(prior, wishart=prior.wishart + d + 1))
