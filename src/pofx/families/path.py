"""One Gaussian path from data to noise, and a network that leads back along it: diffusion and flow matching.

    z_t = alpha_t y + sigma_t eps,   eps ~ N(0, I)        (paths/schedule.py)

Every option of one preset (families/diffusion.py) is open to the others, they sample by the same samplers, and have
the same two likelihoods (paths/likelihood.py), a variational bound and an estimate by the probability flow ODE.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from pofx.codecs.real import Parts, preprocess
from pofx.core.abilities import Ability, Completes, DrawsWithDensity, HasBoundTerms, HasNoisedScore, ShowsWay
from pofx.core.errors import Unsupported, UsageError
from pofx.core.family import serving
from pofx.core.learner import Batch, Recipe
from pofx.core.likelihood import Available, Estimate, Exact, Likelihood, LowerBound, Number
from pofx.core.noise import RowNoise
from pofx.core.options import AMOUNT, POSITIVE, at_least
from pofx.core.requests import SOLVERS, FewStep, OdeLikelihood, Request, VariationalBound
from pofx.core.space import Space
from pofx.families.path_net import is_grid, net_kind, net_of, net_refused, net_shape
from pofx.families.student import StudentOptions, Taught, student_of
from pofx.nn.dit import Dit
from pofx.nn.encoders import Encoded, vector
from pofx.nn.noisy import NoisyMlp
from pofx.nn.unet import UNet
from pofx.paths.gaussian import Gaussian
from pofx.paths.guidance import Drawing, Inpainting, guidances
from pofx.paths.likelihood import angles, decoded, ode, ode_sample, stratified, terms
from pofx.paths.objective import COUPLINGS, TIMES, WEIGHTINGS, both_signs, path_loss
from pofx.paths.predict import PREDICTIONS, Denoise, Denoiser, point
from pofx.paths.samplers import Callback, Way, sample
from pofx.paths.schedule import CHAINS, SCHEDULES, Schedule
from pofx.transforms.base import Noise
from pofx.transforms.ode import estimate, probes

MOST_NUMBERS = 2**25  # that the Gaussian's moments are taken from
FINE = 256  # levels, of which a net learns the cells
EXACT_TRACE = 64  # dimensions up to which the ODE's divergence is traced exactly


ScheduleName = Literal[
    "cosine", "ddpm", "cosine-chain", "linear-beta", "sub-vp", "exploding", "linear", "trigonometric"
]
PredictionName = Literal["v", "eps", "x0", "velocity", "score"]
TimesName = Literal["log-snr", "uniform", "log-normal", "cosine"]
WeightingName = Literal["likelihood", "simple", "edm", "flat"]


@dataclass(frozen=True)
class PathConfig(StudentOptions):
    """Options of all paths.

    Attributes:
        schedule: the path; "ddpm" is the chain of Ho et al. 2020, "cosine-chain" that of Nichol & Dhariwal 2021.
        betas: steps of these chains.
        predict: what the network predicts.
        start: the network adds to the prediction of the Gaussian that fits the data, from which the last of a sample's
            noise is taken away too; "none": it gives all, and the last of a sampler's steps is what it denoises.
        clip: samples are kept within the range of the data: never, at last, or at every step as well.
        times: noise levels in training: even in the log SNR, even in t ("uniform"), those of Karras et al. 2022
            ("log-normal"), or even in the angle of the cosine path.
        weighting: of the squared error of eps in training: as in the variational bound ("likelihood"), 1 ("simple"),
            that of Karras et al. 2022 ("edm"), or as the plain squared error of the prediction has it ("flat").
        coupling: the noise that a datum gets in training: any, or within each batch the nearest by optimal transport.
        smallest: sigma / alpha at the data's end of the path, in standard deviations of the data.
        largest: the same at the noise's end.
        net: "auto" is a U-Net for images with sides of at least 8, and for grids of vectors of at least 4, "temporal"
            for chunks [steps, numbers], a U-Net along the steps, else an MLP; "dit" a transformer over patches of an
            image, "unet2d" the U-Net of the library diffusers, which reads it, on the chain of Ho et al. 2020.
        hidden: width of the MLP or of the transformer.
        blocks: residual blocks, of the MLP or per level of the U-Nets, or layers of the transformer.
        channels: of the U-Nets at their finest level.
        attend: levels of the U-Nets, the coarsest first, whose every block has an attention, beside that in the middle.
        sample_steps: steps of the sampler.
        ode_steps: steps of the ODE likelihood's solver.
        draws: per datum, of the bound (noise level, noise and dequantisation together) and of the ODE
            likelihood's dequantisation or probes.
        score_noise: of ``noised_score`` where it names none.
        decoder: the end of the bound, p(x | z_0): a density, for which levels are spread over their cells, or of images
            the mass of each level's cell ("cells"; Ho et al. 2020, eq. 13), for nets trained on their centres; "auto":
            the latter of images of 256 levels.
    """

    schedule: ScheduleName = "cosine"
    betas: int = 1000
    predict: PredictionName = "v"
    start: Literal["gaussian", "none"] = "gaussian"
    clip: Literal["never", "last", "always"] = "never"
    times: TimesName = "log-snr"
    weighting: WeightingName = "likelihood"
    coupling: Literal["independent", "optimal"] = "independent"
    smallest: float = 1e-3
    largest: float = 80.0
    net: Literal["auto", "mlp", "unet", "unet2d", "dit", "temporal"] = "auto"
    hidden: int = 256
    blocks: int = 2
    channels: int = 32
    attend: int = 0
    sample_steps: int = 50
    ode_steps: int = 16
    draws: int = 32
    score_noise: float = 0.1
    decoder: Literal["density", "cells", "auto"] = "density"

    ranges = {
        "smallest": POSITIVE,
        "largest": POSITIVE,
        "score_noise": POSITIVE,
        "betas": at_least(25),
        "attend": AMOUNT,
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.smallest < self.largest:
            raise UsageError(
                f"The noise cannot rise from {self.smallest:g} to {self.largest:g}.", "Swap smallest and largest."
            )


class PathModel(Taught, HasNoisedScore, Completes, HasBoundTerms, DrawsWithDensity, ShowsWay):
    """The one implementation behind all presets."""

    taxonomy = "explicit density / approximate / diffusion"
    estimators = (VariationalBound, OdeLikelihood)
    in_terms = VariationalBound
    samplers = (FewStep, *SOLVERS)
    approximation = "What is known guides every step: the rest is drawn approximately as p(rest | known) has it."
    shared_scale = True
    config: PathConfig
    span: Tensor | None  # least and largest y of the data [2, d], to which samples are clipped

    def __init__(self, config: PathConfig, space: Space, context: Space | None = None) -> None:
        super().__init__(config, space, context)
        if config.schedule in CHAINS:
            self.schedule: Schedule = CHAINS[config.schedule](config.betas)
        else:
            self.schedule = SCHEDULES[config.schedule](config.smallest, config.largest)
        # in which the network takes y
        self.shape = net_shape(config, space, self.dim)
        self.net = net_of(config, space, self.shape, self.width, self.memory, self.picture, self.schedule)
        self.student = student_of(self.net, config)
        self.register_buffer("begun", None if self.student is None else torch.tensor(False))
        self.register_buffer("span", torch.zeros(2, self.dim) if config.clip != "never" else None)
        self.gaussian = Gaussian(*(space.event_shape if is_grid(space) else (self.dim,)))
        fine = (space.symbols or 0) >= FINE
        self.cells = bool(space.pixels) and (config.decoder == "cells" or (config.decoder == "auto" and fine))

    @classmethod
    def refuses(cls, space: Space, context: Space | None, config: Any) -> str | None:
        if reason := net_refused(config, space, context):
            return reason
        if reason := super().refuses(space, context, config):
            return reason
        if config.coupling == "optimal" and (context is not None or preprocess(space).code_sizes):
            return "optimal coupling makes noise depend on what is given. Leave coupling at independent."
        return None

    @classmethod
    def lacks(cls, ability: type[Ability], space: Space) -> str | None:
        if ability is Completes and preprocess(space).code_sizes:
            return "what is known guides real numbers alone. Declare the columns real, or drop those that are not."
        return super().lacks(ability, space)

    @classmethod
    def idle(cls, space: Space, context: Space | None, config: Any) -> Iterable[str]:
        yield from (name for name in super().idle(space, context, config) if name != "draws")  # of its own noise
        yield from ("smallest", "largest") if config.schedule in CHAINS else ("betas",)
        yield from () if space.pixels else ("decoder",)
        yield from ("hidden",) if net_kind(config, space) in ("unet", "unet2d", "temporal") else ("channels",)
        yield from ("attend",) if net_kind(config, space) not in ("unet", "unet2d") else ()

    @classmethod
    def tiny(cls, space: Space) -> Any:
        return serving(
            cls, space, hidden=64, blocks=1, channels=16, codes_hidden=32, sample_steps=20, ode_steps=4, draws=16
        )

    @classmethod
    def recipe(cls, space: Space) -> Recipe:
        if is_grid(space):
            return Recipe(batch=64, lr=1e-3, clip=1.0, ema=0.998)
        return Recipe(batch=256, lr=3e-3, clip=1.0, ema=0.998)

    def prepare(self, x: Tensor, c: Tensor | None, weight: Tensor | None, generator: torch.Generator) -> None:
        super().prepare(x, c, weight, generator)
        if self.config.net == "unet2d":
            self.centre()
        rows = slice(None, None, -(-len(x) * self.dim // MOST_NUMBERS))
        some = x[rows]
        y = self.split(some, RowNoise.by_place(len(some), generator)).y
        if self.config.start == "gaussian":
            self.gaussian.fit(y, None if weight is None else weight[rows])
        if self.span is not None:
            self.span.copy_(torch.stack([y.amin(0), y.amax(0)]))

    def centre(self) -> None:
        """Pixels go from -1 to 1, as Ho et al. 2020 and nets that others trained have them."""
        half = ((self.space.symbols or 1) - 1) / 2
        self.preprocess.standard.loc.fill_(half)
        self.preprocess.standard.scale.fill_(half)

    def split(self, x: Tensor, noise: Noise | None = None) -> Parts:
        """Levels stay at the centres of cells that have mass."""
        return super().split(x, None if self.cells else noise)

    def spread(self, x: Tensor, noise: Noise) -> Parts:
        return super().split(x, noise)

    def rows_per_pass(self) -> int:
        """U-Net activations are some hundred numbers per pixel: small batches stay in cache."""
        return super().rows_per_pass() if isinstance(self.net, NoisyMlp) else max(1, 2**17 // self.dim)

    @property
    def attends(self) -> bool:
        return isinstance(self.net, UNet | Dit)

    @property
    def looks(self) -> bool:
        return self.attends

    def denoiser(self, h: Encoded | None, net: nn.Module | None = None) -> Denoiser:
        """The denoiser of rows y [N, *shape] given h, by ``self.net`` or another like it."""
        own = net or self.net
        dtype, start = next(own.parameters()).dtype, self.gaussian if self.config.start == "gaussian" else None

        def told(z: Tensor, log_snr: Tensor) -> Tensor:
            predicted: Tensor = own(z, log_snr, h)
            return predicted

        return Denoiser(told, self.schedule, PREDICTIONS[self.config.predict], start, dtype)

    def within(self, denoise: Denoise) -> Denoise:
        """The denoiser kept within the range of the data, where samples always are."""
        return (lambda z, t: self.clipped(denoise(z, t))) if self.config.clip == "always" else denoise

    def clipped(self, y: Tensor) -> Tensor:
        """y [N, *shape] within the range of the data, if samples are to be."""
        return y if self.span is None else y.clamp(*self.span.to(y).view(2, *self.shape))

    def from_noise(self, n: int, generator: torch.Generator) -> Tensor:
        """n draws of z at the noise's end of the path [n, *shape]."""
        largest = self.schedule(self.schedule.times(1)[0])
        e = torch.randn(n, *self.shape, generator=generator, device=generator.device).to(self.device)
        return self.gaussian.noisy(e, largest.alpha.item(), largest.sigma.item())

    def encode_context(self, c: Tensor, dropped: Tensor | None = None) -> Encoded:
        return replace(super().encode_context(c, dropped), raw=c)  # a weaker guide encodes them, too

    # -- training -----------------------------------------------------------------------------------------

    def objective(self, y: Tensor, h: Encoded | None, batch: Batch, generator: torch.Generator) -> Tensor:
        c, y, eps = self.config, y.reshape(-1, *self.shape), batch.randn(*self.shape, generator=generator)
        u, noises = self.levels(batch, generator), both_signs(y, eps, COUPLINGS[c.coupling])
        return path_loss(self.denoiser(h), y, noises, u, TIMES[c.times], WEIGHTINGS[c.weighting])

    def levels(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """u [B] in [0, 1), stratified over the whole batch (Kingma et al. 2021, appendix I.1)."""
        device, n = batch.x.device, len(batch.x)
        shift = torch.rand((), generator=generator, device=generator.device, dtype=torch.float64).to(device)
        return (batch.start + torch.arange(n, device=device) + shift) / max(batch.total, n)

    # -- likelihood ---------------------------------------------------------------------------------------

    def default_request(self, kind: type[Request] | None = None) -> Request:
        config, noisy = self.config, self.preprocess.kind is not Exact
        if kind is not OdeLikelihood:
            return super().default_request(kind)
        per_solve = 0 if self.dim <= EXACT_TRACE else 1 if noisy else config.draws
        return OdeLikelihood(config.ode_steps, per_solve, config.draws if noisy else 0)

    def quick_request(self) -> Request:
        return VariationalBound(draws=2 if self.space.pixels else 8)

    def rows_log_prob(self, x: Tensor, c: Encoded | None, request: Request, noise: RowNoise) -> Available:
        """The bound draws noise level, noise and dequantisation together, so that its error covers them all."""
        if not isinstance(request, VariationalBound):
            return super().rows_log_prob(x, c, request, noise)
        draw = self._bound(x, c, request, noise)
        nats, se = stratified(lambda u: draw(u).sum(0), request.draws, noise)
        if self.codes is not None:
            nats = nats + self.codes.log_prob(self.split(x).codes, vector(c))
        return LowerBound(nats, self.space.measure, se, request.draws + request.draws % 2)

    def _bound(
        self, x: Tensor, c: Encoded | None, request: VariationalBound, noise: RowNoise
    ) -> Callable[[Tensor], Tensor]:
        """u [N] -> one draw of the bound's terms [3, N], in raw data space."""
        denoise = self.denoiser(self.given_codes(self.split(x).codes, c))

        def draw(u: Tensor) -> Tensor:
            parts = self.split(x, noise)
            y = parts.y.double().reshape(-1, *self.shape)
            eps = noise.randn(self.dim).to(y).reshape(y.shape)
            prior, path, last = terms(denoise, self.gaussian, self.schedule, y, u, eps, steps=request.steps)
            if not self.cells:
                return torch.stack([prior, path, last + parts.log_jacobian])
            return torch.stack([prior, path, decoded(denoise, self.schedule, y, eps, *self.preprocess.edges(x))])

        return draw

    def rows_bound_terms(
        self, x: Tensor, c: Encoded | None, request: Any, noise: RowNoise
    ) -> dict[str, Number[Tensor]]:
        values, errors = stratified(self._bound(x, c, request, noise), request.draws, noise)
        draws = request.draws + request.draws % 2
        found = {
            name: Number(Estimate, nats, se, se, draws=draws)
            for name, nats, se in zip(("prior", "path", "reconstruction"), values, errors, strict=True)
        }
        if self.codes is not None:
            nats = self.codes.log_prob(self.split(x).codes, vector(c))
            found["codes"] = Number(Exact, nats, torch.zeros_like(nats), torch.zeros_like(nats))
        return found

    def density(self, y: Tensor, h: Encoded | None, request: Any, noise: RowNoise) -> Estimate:
        """The ODE's."""
        y = y.double().reshape(-1, *self.shape)
        asking = [y, *self.parameters(), *([] if h is None else [h.vector])]
        graph = torch.is_grad_enabled() and any(t.requires_grad for t in asking)
        denoise, probe = self.denoiser(h), probes(request.probes, y, noise)

        def solve(steps: int, noise: Noise) -> tuple[Tensor, Tensor]:
            return ode(denoise, self.gaussian, self.schedule, y, steps, noise, probe, graph)

        return estimate(solve, request, noise, self.dim, self._flow_told)

    @property
    def _flow_told(self) -> str:
        return f"probability flow ODE from the datum on (to the smallest noise {self.schedule.smallest:g} in one step)"

    def rows_sample_log_prob(
        self, n: int, c: Encoded | None, request: Request, generator: torch.Generator
    ) -> tuple[Tensor, Likelihood]:
        """Along the probability flow, of real columns; else the draw of a sampler, and then its likelihood."""
        noise = RowNoise.by_place(n, generator)
        if not isinstance(request, OdeLikelihood) or self.preprocess.kind is not Exact:
            x = self.rows_sample(n, c, self.default_sampler(), generator)
            return x, self.rows_log_prob(x, c, request, noise)
        e = torch.randn((n, *self.shape), generator=generator, device=generator.device).to(self.device).double()
        z, denoise = self.gaussian.noisy(e, *angles(self.schedule.ends[0])), self.denoiser(c)
        probe, drawn = probes(request.probes, z, noise), [z]

        def solve(steps: int, noise: Noise) -> tuple[Tensor, Tensor]:
            drawn[0], nats, se = ode_sample(denoise, self.gaussian, self.schedule, z, steps, noise, probe)
            return nats, se

        return self.in_raw(estimate(solve, request, noise, self.dim, self._flow_told), drawn[0])

    # -- samples and score ----------------------------------------------------------------------------------

    def draw(
        self,
        n: int,
        h: Encoded | None,
        sampler: Any,
        generator: torch.Generator,
        callback: Callback | None = None,
    ) -> Tensor:
        if isinstance(sampler, FewStep):
            return self.clipped(self.leaps(n, h, sampler.steps, generator)).flatten(1)
        bare = self.cells or self.config.start == "none"
        times = self.schedule.grid(sampler.grid, sampler.steps - bare)  # one more step leads to the data
        z, denoise = self.from_noise(n, generator), cast(Denoise, self.denoiser(h))
        if guides := guidances(sampler.guidance):
            self._denoises_data()
            if self.codes is not None:
                raise Unsupported(
                    f"Guidance moves real numbers alone, not the categories, gaps and frequent values of {self.space}.",
                    "Fit on images, or on complete columns declared real.",
                )
            on = Drawing(self, h, n, generator)
            for guide in guides:
                denoise = guide.guided(denoise, on)
                times, z = guide.start(times, z, on)
        kept = self.within(denoise)
        z = sample(sampler.name, kept, self.schedule, times, z, generator, callback, to_data=bare, **sampler.own)
        if not bare:  # the bound's p(x | z_0)
            e = torch.randn(z.shape, generator=generator, device=generator.device).to(self.device)
            z = self.gaussian.posterior(z, e, point(self.schedule, times[-1], z))
        return self.clipped(z).flatten(1)

    def rows_complete(self, x: Tensor, known: Tensor, c: Encoded | None, generator: torch.Generator) -> Tensor:
        """By ``Inpainting``: an approximation, exact only for Gaussian data."""
        sampler = replace(self.solver, guidance=Inpainting(x, known))
        return torch.where(known, x, self.rows_sample(len(x), c, sampler, generator))

    def rows_trajectories(self, n: int, c: Encoded | None, generator: torch.Generator) -> Tensor:
        way = Way(self.schedule)
        y, codes = self.draw(n, c, self.solver, generator, way), torch.zeros(n, 0, dtype=torch.int64)
        return torch.stack([self.preprocess.join(codes.to(y.device), v.flatten(1)) for v in (*way.seen.values(), y)])

    def _denoises_data(self) -> None:
        if self.config.coupling == "optimal":
            raise Unsupported(
                "Optimal coupling leaves a denoiser of the flow, which is not that of the data.",
                "Fit with coupling=independent.",
            )

    def rows_noised_score(self, x: Tensor, c: Encoded | None, noise: float | None) -> Tensor:
        """Tweedie's formula: (E[y | y + noise e] - (y + noise e)) / noise^2, for x in place of the noised datum."""
        self._denoises_data()
        noise, path = self.config.score_noise if noise is None else noise, self.schedule
        if not path.smallest <= noise <= path.largest:
            raise UsageError(
                f"{self.name} has seen noise from {path.smallest:g} to {path.largest:g}, not {noise:g}.",
                "Ask for noise within.",
            )
        y = self.split(x).y.double()
        t = path.time(torch.tensor(-2 * math.log(noise), dtype=torch.float64))
        with torch.no_grad():
            denoised = self.denoiser(c)(path(t).alpha.item() * y.reshape(-1, *self.shape), t).flatten(1)
        return (denoised - y) / (noise**2 * self.preprocess.scale)
