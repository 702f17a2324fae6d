"""One Gaussian path from data to noise, and a network that leads back along it: diffusion and flow matching.

    z_t = alpha_t y + sigma_t eps,   eps ~ N(0, I)        (paths/schedule.py)

Every option of one preset (families/diffusion.py) is open to the others, they sample by the same samplers, and have
the same two likelihoods (paths/likelihood.py), a variational bound and an estimate by the probability flow ODE.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pofx.codecs.real import preprocess
from pofx.core.abilities import HasNoisedScore
from pofx.core.errors import Unsupported, UsageError
from pofx.core.learner import Batch, Recipe
from pofx.core.likelihood import Available, Estimate, Exact, LowerBound
from pofx.core.measure import Measure
from pofx.core.model import serving
from pofx.core.noise import RowNoise
from pofx.core.options import AMOUNT, POSITIVE, at_least
from pofx.core.requests import SOLVERS, OdeLikelihood, Request, Sampler, VariationalBound
from pofx.core.space import Space
from pofx.families.continuous import Continuous, ContinuousConfig
from pofx.nn.dit import Dit
from pofx.nn.encoders import Encoded, vector
from pofx.nn.noisy import NoisyMlp
from pofx.nn.unet import UNet
from pofx.nn.unet2d import GROUPS, UNet2d, UNet2dOnChain, usual_shape
from pofx.nn.unet_steps import UNetSteps
from pofx.paths.gaussian import Gaussian
from pofx.paths.likelihood import bound, ode, stratified
from pofx.paths.objective import COUPLINGS, TIMES, WEIGHTINGS, path_loss
from pofx.paths.predict import PREDICTIONS, Denoiser, point
from pofx.paths.samplers import Callback, sample
from pofx.paths.schedule import SCHEDULES, Chain, Schedule

MOST_NUMBERS = 2**25  # that the Gaussian's moments are taken from
EXACT_TRACE = 64  # dimensions up to which the ODE's divergence is traced exactly


ScheduleName = Literal["cosine", "ddpm", "linear-beta", "exploding", "linear"]
PredictionName = Literal["v", "eps", "x0", "velocity", "score"]
TimesName = Literal["log-snr", "uniform", "log-normal", "cosine"]
WeightingName = Literal["likelihood", "simple", "edm", "flat"]


@dataclass(frozen=True)
class PathConfig(ContinuousConfig):
    """Options of all paths.

    Attributes:
        schedule: the path; "ddpm" is the chain of Ho et al. 2020.
        betas: steps of that chain.
        predict: what the network predicts.
        start: the network adds to the prediction of the Gaussian that fits the data; "none": it gives all, and what
            samplers denoise is kept within the range of the data, as Ho et al. 2020 do.
        times: noise levels in training: even in the log SNR, even in t ("uniform"), those of Karras et al. 2022
            ("log-normal"), or even in the angle of the cosine path.
        weighting: of the squared error of eps in training: as in the variational bound ("likelihood"), 1 ("simple"),
            that of Karras et al. 2022 ("edm"), or as the plain squared error of the prediction has it ("flat").
        coupling: the noise that a datum gets in training: any, or within each batch the nearest by optimal transport.
        smallest: sigma / alpha at the data's end of the path, in standard deviations of the data.
        largest: the same at the noise's end.
        net: "auto" is a U-Net for images with sides of at least 8, else an MLP; "dit" a transformer over patches of an
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
    """

    schedule: ScheduleName = "cosine"
    betas: int = 1000
    predict: PredictionName = "v"
    start: Literal["gaussian", "none"] = "gaussian"
    times: TimesName = "log-snr"
    weighting: WeightingName = "likelihood"
    coupling: Literal["independent", "optimal"] = "independent"
    smallest: float = 1e-3
    largest: float = 80.0
    net: Literal["auto", "mlp", "unet", "unet2d", "dit"] = "auto"
    hidden: int = 256
    blocks: int = 2
    channels: int = 32
    attend: int = 0
    sample_steps: int = 50
    ode_steps: int = 32
    draws: int = 32
    score_noise: float = 0.1

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


class PathModel(Continuous, HasNoisedScore):
    """The one implementation behind all presets."""

    taxonomy = "explicit density / approximate / diffusion"
    estimators = (VariationalBound, OdeLikelihood)
    samplers = SOLVERS
    shared_scale = True
    config: PathConfig
    span: Tensor | None  # least and largest y of the data [2, d], to which samples keep where there is no start

    def __init__(self, config: PathConfig, space: Space, context: Space | None = None) -> None:
        super().__init__(config, space, context)
        if config.schedule == "ddpm":
            self.schedule: Schedule = Chain(config.betas)
        else:
            self.schedule = SCHEDULES[config.schedule](config.smallest, config.largest)
        # in which the network takes y
        self.shape: tuple[int, ...] = (self.dim,) if self.net_kind(config, space) == "mlp" else space.event_shape
        self.net = self._net()
        self.register_buffer("span", torch.zeros(2, self.dim) if config.start == "none" else None)
        self.gaussian = Gaussian(*(space.event_shape if space.pixels else (self.dim,)))

    def _net(self) -> nn.Module:
        config, space, told = self.config, self.space, (self.width, self.memory)
        kind = self.net_kind(config, space)
        if kind == "mlp":
            return NoisyMlp(self.dim, self.width, config.hidden, config.blocks)
        if kind == "dit":  # of at most 16 patches a side
            patch = 2 ** max(0, math.ceil(math.log2(max(self.shape[1:]) / 16)))
            return Dit(self.shape, config.hidden, config.blocks, patch, *told)
        if kind == "unet2d":
            assert isinstance(self.schedule, Chain)
            net = UNet2d(usual_shape(self.shape, config.channels, config.blocks, config.attend))
            return UNet2dOnChain(net, self.schedule.step)
        patch = 2 if _side(space) >= 16 else 1
        levels = max(1, round(math.log2(_side(space) / patch / 7)) + 1)  # down to about 7 cells a side
        return UNet(self.shape[0], config.channels, levels, config.blocks, patch, *told, config.attend)

    @classmethod
    def net_kind(cls, config: PathConfig, space: Space) -> str:
        """Which network it is."""
        return config.net if config.net != "auto" else "unet" if _side(space) >= 8 else "mlp"

    @classmethod
    def refuses(cls, space: Space, context: Space | None, config: Any) -> str | None:
        if config.net not in ("auto", "mlp") and not space.pixels:
            return f"net={config.net} is for images. Leave net at auto."
        if config.net == "unet2d":
            if config.schedule != "ddpm":
                return "net=unet2d is told a step of the chain. Set schedule=ddpm, or net=unet."
            if context is not None:
                return "net=unet2d is told no context. Use net=unet."
            if config.logit:
                return "net=unet2d takes pixels as they are. Leave logit at 0."
            if config.channels % GROUPS:
                return f"net=unet2d has norms of {GROUPS} groups. Give a multiple of {GROUPS} as channels."
        if reason := super().refuses(space, context, config):
            return reason
        if config.coupling == "optimal" and (context is not None or preprocess(space).code_sizes):
            return "optimal coupling makes noise depend on what is given. Leave coupling at independent."
        return None

    @classmethod
    def idle(cls, space: Space, context: Space | None, config: Any) -> Iterable[str]:
        yield from (name for name in super().idle(space, context, config) if name != "draws")  # of its own noise
        yield from ("smallest", "largest") if config.schedule == "ddpm" else ("betas",)
        yield from ("hidden",) if cls.net_kind(config, space) in ("unet", "unet2d") else ("channels", "attend")

    @classmethod
    def tiny(cls, space: Space) -> Any:
        return serving(
            cls, space, hidden=64, blocks=1, channels=16, codes_hidden=32, sample_steps=20, ode_steps=8, draws=16
        )

    @classmethod
    def variants(cls, space: Space) -> dict[str, Any]:
        return {"dit": replace(cls.tiny(space), net="dit", hidden=32)} if space.pixels else {}

    @classmethod
    def recipe(cls, space: Space) -> Recipe:
        if space.pixels:
            return Recipe(batch=64, lr=1e-3, clip=1.0, ema=0.998)
        return Recipe(batch=256, lr=3e-3, clip=1.0, ema=0.998)

    def prepare(self, x: Tensor, c: Tensor | None, weight: Tensor | None, generator: torch.Generator) -> None:
        super().prepare(x, c, weight, generator)
        if self.config.net == "unet2d":
            self.centre()
        rows = slice(None, None, -(-len(x) * self.dim // MOST_NUMBERS))
        some = x[rows]
        y = self.split(some, RowNoise.by_place(len(some), generator)).y
        if self.span is None:
            self.gaussian.fit(y, None if weight is None else weight[rows])
        else:
            self.span.copy_(torch.stack([y.amin(0), y.amax(0)]))

    def centre(self) -> None:
        """Pixels go from -1 to 1, as Ho et al. 2020 and nets that others trained have them."""
        half = ((self.space.symbols or 1) - 1) / 2
        self.preprocess.standard.loc.fill_(half)
        self.preprocess.standard.scale.fill_(half)

    def rows_per_pass(self) -> int:
        """U-Net activations are some hundred numbers per pixel: small batches stay in cache."""
        return super().rows_per_pass() if isinstance(self.net, NoisyMlp) else max(1, 2**17 // self.dim)

    @property
    def attends(self) -> bool:
        return isinstance(self.net, UNet | Dit)

    def denoiser(self, h: Encoded | None) -> Denoiser:
        """The denoiser of rows y [N, *shape] given h."""
        dtype = next(self.net.parameters()).dtype
        c, net = self.config, UNetSteps(self.net) if isinstance(self.net, UNet) else self.net
        start = self.gaussian if self.span is None else None
        return Denoiser(lambda z, log_snr: net(z, log_snr, h), self.schedule, PREDICTIONS[c.predict], start, dtype)

    # -- training -----------------------------------------------------------------------------------------

    def objective(self, y: Tensor, h: Encoded | None, batch: Batch, generator: torch.Generator) -> Tensor:
        """Noise levels are stratified over the batch (Kingma et al. 2021, appendix I.1)."""
        c, y, eps = self.config, y.reshape(-1, *self.shape), batch.randn(*self.shape, generator=generator)
        shift = torch.rand((), generator=generator, device=generator.device, dtype=torch.float64).to(y.device)
        u = (batch.start + torch.arange(len(y), device=y.device) + shift) / max(batch.total, len(y))
        choices = TIMES[c.times], WEIGHTINGS[c.weighting], COUPLINGS[c.coupling]
        return path_loss(self.denoiser(h), y, eps, u, *choices)

    # -- likelihood ---------------------------------------------------------------------------------------

    def default_request(self, kind: type[Request] | None = None) -> Request:
        config, noisy = self.config, self.preprocess.kind is not Exact
        if kind is not OdeLikelihood:
            return super().default_request(kind)
        probes = 0 if self.dim <= EXACT_TRACE else 1 if noisy else config.draws
        return OdeLikelihood(config.ode_steps, probes, config.draws if noisy else 0)

    def quick_request(self) -> Request:
        return VariationalBound(draws=2 if self.space.pixels else 8)

    def default_sampler(self, kind: type[Sampler] | None = None) -> Sampler:
        return (kind or self.samplers[0])(steps=self.config.sample_steps)  # type: ignore[call-arg]

    def rows_log_prob(self, x: Tensor, c: Encoded | None, request: Request, noise: RowNoise) -> Available:
        """The bound draws noise level, noise and dequantisation together, so that its error covers them all."""
        if not isinstance(request, VariationalBound):
            return super().rows_log_prob(x, c, request, noise)
        codes = self.split(x).codes
        denoise = self.denoiser(self.given_codes(codes, c))

        def draw(u: Tensor) -> Tensor:
            parts = self.split(x, noise)
            y = parts.y.double().reshape(-1, *self.shape)
            eps = noise.randn(self.dim).to(y).reshape(y.shape)
            nats = bound(denoise, self.gaussian, self.schedule, y, u, eps, steps=request.steps)
            return nats + parts.log_jacobian

        nats, se = stratified(draw, request.draws, noise)
        if self.codes is not None:
            nats = nats + self.codes.log_prob(codes, vector(c))
        return LowerBound(nats, self.space.measure, se, request.draws + request.draws % 2)

    def density(self, y: Tensor, h: Encoded | None, request: Any, noise: RowNoise) -> Estimate:
        """The ODE's."""
        steps, probes = request.steps, request.probes
        y = y.double().reshape(-1, *self.shape)
        signs = 1 - 2 * (noise.rand(probes, self.dim) < 0.5).to(y)
        probe = signs.transpose(0, 1).reshape(probes, *y.shape) if probes else None
        asking = [y, *self.parameters(), *([] if h is None else [h.vector])]
        graph = torch.is_grad_enabled() and any(t.requires_grad for t in asking)
        denoise = self.denoiser(h)
        nats, se = ode(denoise, self.gaussian, self.schedule, y, steps=steps, probe=probe, graph=graph)
        trace = f"Hutchinson's divergence, {probes} probes a solution" if probes else "exact divergence"
        caveat = (
            f"probability flow ODE, {steps} Runge-Kutta 4 steps, {trace}, smallest noise {self.schedule.smallest:g}"
        )
        return Estimate(nats, Measure.lebesgue(self.dim), se, probes, caveat)

    # -- samples and score ----------------------------------------------------------------------------------

    def draw(
        self,
        n: int,
        h: Encoded | None,
        sampler: Any,
        generator: torch.Generator,
        callback: Callback | None = None,
    ) -> Tensor:
        times = self.schedule.times(sampler.steps)
        start, denoiser = self.schedule(times[0]), self.denoiser(h)

        def denoise(z: Tensor, t: Tensor) -> Tensor:
            x = denoiser(z, t)
            return x if self.span is None else x.clamp(*self.span.to(x).view(2, *self.shape))

        def normal() -> Tensor:
            shape = (n, *self.shape)
            return torch.randn(shape, generator=generator, device=generator.device).to(self.device)

        z = self.gaussian.noisy(normal(), start.alpha.item(), start.sigma.item())
        z = sample(sampler.name, denoise, self.schedule, times, z, generator, callback)
        # the bound's p(x | z_0)
        return self.gaussian.posterior(z, normal(), point(self.schedule, times[-1], z)).flatten(1)

    def rows_noised_score(self, x: Tensor, c: Encoded | None, noise: float | None) -> Tensor:
        """Tweedie's formula: (E[y | y + noise e] - (y + noise e)) / noise^2, for x in place of the noised datum."""
        if self.config.coupling == "optimal":
            raise Unsupported(
                "Optimal coupling leaves a denoiser of the flow, which is not that of the data.",
                "Fit with coupling=independent.",
            )
        noise, path = self.config.score_noise if noise is None else noise, self.schedule
        if not path.smallest <= noise <= path.largest:
            raise UsageError(
                f"{self.name} has seen noise from {path.smallest:g} to {path.largest:g}, not {noise:g}.",
                "Ask for noise within.",
            )
        y = self.split(x).y.double()
        t = path.time(torch.tensor(-2 * math.log(noise), dtype=torch.float64))
        with torch.no_grad():
            denoised = self.denoiser(c)(path(t).alpha.item() * y, t)
        return (denoised - y) / (noise**2 * self.preprocess.scale)


def _side(space: Space) -> int:
    """The shorter one of an image, in pixels; none of anything else."""
    return min(space.pixels[:2]) if space.pixels else 0
