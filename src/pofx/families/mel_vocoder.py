"""Sounds in two steps: the frames of a mel spectrum as another family draws them, then samples given the frames.

    p(x | c) = sum_m p(m | c) p(x | m)

is a sum over all grids m [T, bands] of levels. A sound x has one of them, m(x), its own log-mel spectrum (``nn.mel``)
on a grid of levels in each band, and as no term is negative,

    log p(x | c) >= log p(m(x) | c) + log p(L | T) + log p(x | m(x)),

a bound without noise. p(m | c) is a family over sequences, a transformer whose attention to the tokens of a text learns
which of them is being said (as in Li et al. 2019); p(x | m) is a WaveNet that each frame tells its own samples (Shen et
al. 2018, "Tacotron 2", after van den Oord et al. 2016, section 2.5). T frames of ``hop`` samples hold a sound of
L = (T - 1) hop + r samples; each r = 1 .. hop is equally likely. Excerpts have lengths that are given, and no such
term.

Two stages: the frames, then the samples. The vocoder knows of the context what the frames say.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pofx.codecs.steps import Plain
from pofx.core.abilities import HasBoundTerms
from pofx.core.conditional import evaluating
from pofx.core.errors import EmptyData, Unsupported
from pofx.core.family import serving
from pofx.core.learner import Batch, GradientLearner, Learner, Recipe, Stage, TrainingSet
from pofx.core.likelihood import Exact, Likelihood, LowerBound, Number
from pofx.core.model import Model
from pofx.core.nested import spelled
from pofx.core.noise import RowNoise
from pofx.core.options import Range, at_least
from pofx.core.registry import family
from pofx.core.requests import GriffinLim, OneCode, Request, Sampler, StepByStep
from pofx.core.space import Space, join
from pofx.families.conditioned import ContextOptions, idle_of_contexts, part
from pofx.nn.emission import StepHead
from pofx.nn.encoders import no_encoder
from pofx.nn.mel import fft_size, frame_sizes, log_mel, mel_filters
from pofx.nn.phase import griffin_lim, power_of
from pofx.nn.sites import FEW_LEVELS, Heads, image_head, side_by_side
from pofx.nn.wavenet import WaveNet
from pofx.spaces import Audio, Category, Sequence, Table

LOOK = 500  # training rows that are looked at before training
ENDS = (0.005, 0.9995)  # shares of training frames that lie below the first and the last level of a band
AROUND = 2  # frames before and after its own that tell a sample
READ = 64  # rows that are read together
PASS = 2**25  # numbers of a layer that one pass may hold
MOST_FRAMES = 1024  # of a block, unless said


@dataclass(frozen=True)
class MelVocoderConfig(ContextOptions):
    """Options of a spectrum and its vocoder.

    Attributes:
        bands: of the mel spectrum, whose frames of 25 ms move by 10 ms.
        levels: of each band, from what is nearly its softest to its loudest in training.
        frames: the family of p(frames | context), over sequences and with an exact probability, such as "gpt", with
            options of its own as "gpt:width=192,layers=3"; its block is as long as the longest known sound, unless
            said.
        frames_share: of the budget, at its beginning, in which that is fitted, by its own recipe.
        width: of a sample as it enters and leaves the WaveNet, and of what a frame tells it.
        depth: layers of a stack, whose dilations double.
        stacks: how many of them follow each other.
        residual: channels of the convolutions.
        skip: channels of the sum over all layers.
        block: the longest training piece, in samples.
        components: of the mixture of logistics over a sample's levels, where these are many.
    """

    bands: int = 24
    levels: int = 32
    frames: str = "gpt"
    frames_share: float = 0.5
    width: int = 64
    depth: int = 7
    stacks: int = 2
    residual: int = 32
    skip: int = 64
    block: int = 1600
    components: int = 10

    ranges = {"levels": at_least(2), "depth": at_least(1, 20), "frames_share": Range(0, 1, above=True, below=True)}


class MelVocoder(Model, HasBoundTerms):
    name: ClassVar[str] = "mel-vocoder"
    summary: ClassVar[str] = "a spectrum frame by frame, and a vocoder that draws the sound it is of, sample by sample"
    taxonomy: ClassVar[str] = "explicit density / approximate / variational"
    paper: ClassVar[str] = "after Shen et al. 2018 (Tacotron 2), Li et al. 2019, van den Oord et al. 2016 (WaveNet)"
    estimators: ClassVar[tuple[type[Request], ...]] = (OneCode,)
    samplers: ClassVar[tuple[type[Sampler], ...]] = (StepByStep, GriffinLim)
    in_terms = OneCode
    Config = MelVocoderConfig
    config: MelVocoderConfig
    space: Audio
    low: Tensor  # log-mel of the first level of each band [bands]
    high: Tensor  # of the last
    filters: Tensor

    def __init__(self, config: MelVocoderConfig, space: Audio, context: Space | None = None) -> None:
        super().__init__(config, space, context)
        self.hop = frame_sizes(space.rate)[1]
        values = tuple(map(str, range(config.levels)))
        step = Table(tuple(Category(f"band{i}", values) for i in range(config.bands)))
        over = Sequence(step, space.has_eos, max(1, -(-space.length // self.hop)))
        self.frames = part(whole(config.frames, over), over, context, config)
        if not any(kind.kind == "Exact" for kind in self.frames.own_estimators):
            raise Unsupported(
                f"frames={config.frames}: {self.frames.name} has no exact probability of frames, as the bound needs.",
                "Name gpt, rnn or wavenet.",
            )
        self.exact = next(kind for kind in self.frames.own_estimators if kind.kind == "Exact")
        self.codec = Plain(space, single=True)
        head = image_head("auto", space.levels, components=config.components, sites=(1,))
        self.emission = StepHead(Heads(side_by_side(1), [head], [[0]]), config.width, has_eos=False)
        self.net = WaveNet(
            config.width, config.depth, config.stacks, config.residual, config.skip,
            local=config.width, every=self.hop,
        )  # fmt: skip
        self.tell = nn.Conv1d(config.bands + 1, config.width, 2 * AROUND + 1)  # one more: is there a frame?
        filters = mel_filters(space.rate, fft_size(space.rate, config.bands), config.bands)
        self.register_buffer("filters", filters, persistent=False)
        self.register_buffer("low", torch.zeros(config.bands, dtype=torch.float64))
        self.register_buffer("high", torch.ones(config.bands, dtype=torch.float64))

    @classmethod
    def refuses(cls, space: Space, context: Space | None, config: MelVocoderConfig) -> str | None:
        if space.name != "audio":
            return "its data are no sounds. Fit a gpt to sequences of any kind."
        return no_encoder(context)

    @classmethod
    def idle(cls, space: Space, context: Space | None, config: Any) -> Iterable[str]:
        yield from idle_of_contexts(context)
        if (space.symbols or 0) <= FEW_LEVELS:
            yield "components"

    @classmethod
    def tiny(cls, space: Space) -> Any:
        return serving(
            cls, space, bands=3, levels=4, frames="gpt:width=32,layers=1,n_heads=2,block=32,inner_width=32",
            width=32, depth=4, stacks=1, residual=32, skip=32, block=40, components=4,
        )  # fmt: skip

    @classmethod
    def variants(cls, space: Space) -> dict[str, Any]:
        frames = "rnn:width=32,layers=1,block=32,inner_width=32"
        return {"frames of an rnn": replace(cls.tiny(space), frames=frames)}

    @classmethod
    def recipe(cls, space: Space) -> Recipe:
        return Recipe(batch=8, lr=2e-3, warmup=50, clip=1.0, ema=0.99)

    # -- training -------------------------------------------------------------------------------------------

    def prepare(self, x: Any, c: Any, weight: Tensor | None, generator: torch.Generator) -> None:
        some = torch.randperm(len(x), generator=generator)[:LOOK]
        rows = x[some]
        mel = torch.cat([self._mel(part)[self._cells(part)] for part in rows.split(READ)])
        if not len(mel):
            raise EmptyData(f"None of {len(rows)} training sounds has a sample.", "Give sounds that are not empty.")
        mel = mel[torch.randperm(len(mel), generator=generator)[: 2**17]]
        low, high = mel.quantile(torch.tensor(ENDS, dtype=mel.dtype), 0)
        self.low.copy_(low)
        self.high.copy_(high.maximum(low + 1e-3))
        seen = join(self.frames.space, [self.spectrum(part) for part in rows.split(READ)])
        self.frames.prepare(seen, None if c is None else c[some], None, generator)
        self.remarks = [*self.remarks, *(f"The frames: {remark}" for remark in self.frames.remarks)]
        u = self.codec.encode(rows)
        self.emission.prepare(u[~self.emission.filled(u)], ends=0)

    def learner(self, recipe: Recipe) -> Learner:
        trained = nn.ModuleList((self.emission, self.net, self.tell))
        return GradientLearner(trained, recipe, self.objective)

    def stages(self, recipe: Recipe) -> list[Stage]:
        own, share = self.frames.recipe(self.frames.space), self.config.frames_share
        return [
            Stage("frames", own, partial(self.frames.learner, own), share, self._frames_of, self._frames_log_prob),
            Stage(
                "vocoder", recipe, partial(self.learner, recipe), 1 - share, lambda x, c, generator: Pieces(self, x),
                self._samples_log_prob, given=False,
            ),
        ]  # fmt: skip

    def _frames_of(self, x: Any, c: Any, generator: torch.Generator) -> TrainingSet:
        every = [self.spectrum(x[i : i + READ]) for i in range(0, len(x), READ)]
        return self.frames.training_set(join(self.frames.space, every))

    def _frames_log_prob(self, x: Tensor, c: Tensor | None, generator: torch.Generator) -> Likelihood:
        request = self.frames.default_request(self.exact)
        return self.frames.given(c).log_prob(self.spectrum(x), request=request, generator=generator)

    def _samples_log_prob(self, x: Tensor, c: Tensor | None, generator: torch.Generator) -> Likelihood:
        with evaluating(self), torch.no_grad():
            each = [self._samples(rows) for rows in x.split(self.rows_per_pass())]
        return Exact(torch.cat(each), self.space.measure)

    def objective(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Of pieces [B, W] of sounds (``Pieces``): -log p of a sample in their middle given its frames."""
        piece, hop, aside = batch.x, self.hop, self.margin
        # frames at the ends of a piece would see beyond it
        beyond = aside // hop - AROUND
        codes, inside = self._codes(piece)[:, beyond:-beyond], (piece[:, ::hop] >= 0)[:, beyond:-beyond]
        u = self.codec.encode(piece[:, aside - 1 : -aside])
        log_p = self._log_prob_of(u, self._told(codes, inside))
        filled = self.emission.filled(u[:, 1:])
        return {"loss": -log_p.masked_fill(filled, 0.0).sum(1) / log_p.shape[1]}

    # -- frames, and what they tell ---------------------------------------------------------------------------

    @property
    def margin(self) -> int:
        """Samples on either side of a piece, which the frames are made of that tell its own samples."""
        window, hop = frame_sizes(self.space.rate)
        return hop * (AROUND + max(1, -(-(window - hop) // hop)))

    def _mel(self, x: Tensor) -> Tensor:
        """[N, ceil(L / hop), bands] of levels x [N, L]."""
        return log_mel(self.space.amplitudes(x), self.space.rate, self.config.bands, self.filters)

    def _codes(self, x: Tensor) -> Tensor:
        """The nearest levels to them, float64."""
        share = (self._mel(x) - self.low) / (self.high - self.low)
        return (share * (self.config.levels - 1)).round().clamp(0, self.config.levels - 1)

    def _cells(self, x: Tensor) -> Tensor:
        """Which frames hold samples of x [N, L]: [N, ceil(L / hop)]."""
        return (x >= 0)[:, :: self.hop]

    @torch.no_grad()
    def spectrum(self, x: Tensor) -> Tensor:
        """m(x), the frames of sounds x [N, L] as the first part sees them: float64 [N, T, bands], infinity after the
        end."""
        x = _some(x.to(self.device))
        return self._codes(x).masked_fill(~self._cells(x)[..., None], math.inf)

    def log_mel_of(self, m: Tensor) -> Tensor:
        """The log-mel spectrum [N, T, bands] that levels m stand for."""
        return self.low + m * ((self.high - self.low) / (self.config.levels - 1))

    def _told(self, codes: Tensor, inside: Tensor) -> Tensor:
        """What the frames but for the first and last ``AROUND`` tell their samples [N, T - 2 AROUND, width]."""
        y = torch.cat([codes * (2 / (self.config.levels - 1)) - 1, torch.ones_like(codes[..., :1])], 2)
        y = torch.where(inside[..., None], y, 0.0).to(self.tell.weight.dtype)
        return F.silu(self.tell(y.mT)).mT

    def _whole(self, m: Tensor) -> Tensor:
        """The same of frames m [N, T, bands] of whole sounds, for all of them [N, T, width]."""
        inside = F.pad(m[..., 0].isfinite(), (AROUND, AROUND))
        return self._told(F.pad(m, (0, 0, AROUND, AROUND)), inside)

    def _log_prob_of(self, u: Tensor, local: Tensor) -> Tensor:
        """log p [N, L] of steps 1 .. L of u [N, 1 + L, 1] given those before."""
        return self.emission.log_prob(self.net(self.emission.embed(u[:, :-1]), local), u[:, 1:])

    # -- the contract ---------------------------------------------------------------------------------------

    def encode_context(self, c: Tensor, dropped: Tensor | None = None) -> Any:
        return self.frames.encode_context(c, dropped)

    def null_context(self, n: int) -> Any:
        return self.frames.null_context(n)

    def rows_per_pass(self) -> int:
        widest = max(self.config.skip, self.config.width, 2 * self.config.residual)
        return max(1, min(self.frames.rows_per_pass(), PASS // (widest * self.space.length)))

    def rows_per_draw(self) -> int:
        return self.frames.rows_per_draw()

    def _samples(self, x: Tensor) -> Tensor:
        """log p(x | m(x), L) [N]."""
        x = _some(x)
        u = self.codec.encode(x)
        line = torch.cat([self.emission.beginning(len(x)).to(u.dtype), u], 1)
        log_p = self._log_prob_of(line, self._whole(self.spectrum(x)))
        return log_p.masked_fill(x < 0, 0.0).sum(1, dtype=torch.float64)

    def _terms_of(self, x: Tensor, c: Any, noise: RowNoise) -> tuple[Tensor, Tensor]:
        """log p(m(x) | c) + log p(L | T), and log p(x | m(x)) [N]."""
        lik = self.frames.rows_log_prob(self.spectrum(x), c, self.frames.default_request(self.exact), noise)
        assert isinstance(lik, Exact)
        ends = math.log(self.hop) * (self.space.lengths(x) > 0) * self.space.has_eos
        return lik.nats.double() - ends, self._samples(x)

    def rows_log_prob(self, x: Tensor, c: Any, request: Request, noise: RowNoise) -> Likelihood:
        frames, samples = self._terms_of(x, c, noise)
        return LowerBound(frames + samples, self.space.measure, torch.zeros_like(frames), 0)

    def rows_bound_terms(self, x: Tensor, c: Any, request: Any, noise: RowNoise) -> dict[str, Number[Tensor]]:
        found = dict(zip(("frames", "samples"), self._terms_of(x, c, noise), strict=True))
        return {k: Number(Exact, v, torch.zeros_like(v), torch.zeros_like(v)) for k, v in found.items()}

    def rows_sample(self, n: int, c: Any, sampler: Any, generator: torch.Generator) -> Tensor:
        steps = None if sampler.length is None else -(-sampler.length // self.hop)
        by_step = StepByStep in self.frames.own_samplers
        spectral = isinstance(sampler, GriffinLim)
        if not by_step and spectral and sampler.temperature != 1:
            raise Unsupported(f"A temperature is of steps, and {self.frames.name} has none.", "Leave it at 1.")
        stepwise = replace(sampler, length=steps) if spectral else StepByStep(steps)
        own = stepwise if by_step else self.frames.default_sampler()
        m = self.frames.rows_sample(n, c, own, generator)
        x = self.sound(m, generator, sampler)
        most = sampler.length or self.space.length
        before = (m[..., 0].isfinite().sum(1) - 1) * self.hop  # samples of all frames but the last
        room = (most - before).clamp(max=self.hop)
        if self.space.has_eos:  # how far the last frame is filled
            room = 1 + (room * torch.rand(n, generator=generator, device=generator.device).to(room.device)).long()
        size = torch.where(before < 0, 0, before + room)
        longest = max(1, int(size.max()))
        x = F.pad(x, (0, max(0, longest - x.shape[1])))[:, :longest]
        return x.masked_fill(torch.arange(longest, device=x.device) >= size[:, None], -1)

    @torch.inference_mode()
    def sound(self, m: Tensor, generator: torch.Generator, sampler: Sampler | None = None) -> Tensor:
        """A draw of all samples [N, T hop], int64, of frames m [N, T, bands]; what follows their end is of no meaning.

        By the vocoder; by ``GriffinLim``, which has no part in the density.
        """
        inside = m[..., 0].isfinite()
        if isinstance(sampler, GriffinLim):
            power = power_of(self.log_mel_of(torch.where(inside[..., None], m, 0.0)), self.filters)
            power = power.masked_fill(~inside[..., None], 0.0)
            amplitude = griffin_lim(
                power.sqrt(), self.space.rate, generator,
                iterations=sampler.iterations, momentum=sampler.momentum, inside=inside,
            )  # fmt: skip
            return self.space.levels_of(amplitude)
        with evaluating(self):
            count = m.shape[1] * self.hop
            cache, step, drawn = self.net.cache(len(m), count, self._whole(m)), self.emission.beginning(len(m)), []
            for _ in range(count):
                step = self.emission.sample(cache.step(self.emission.embed(step)[:, 0]), generator)[:, None]
                drawn.append(step)
        return self.codec.decode(torch.cat(drawn, 1)) if drawn else m.new_zeros(len(m), 0, dtype=torch.int64)


def _some(x: Tensor) -> Tensor:
    """Sounds [N, L], of no sample at least one that is none."""
    return F.pad(x, (0, max(0, 1 - x.shape[1])), value=-1)


def whole(text: str, space: Sequence) -> str:
    """A spelled family with a block of whole data, where it has one and none is said."""
    name, options = spelled(text)
    if "block" in options or not hasattr(family(name).Config(), "block"):
        return text
    return f"{text}{',' if options else ':'}block={min(MOST_FRAMES, space.length + space.has_eos)}"


class Pieces(TrainingSet):
    """Pieces [B, margin + block + margin] of sounds x, levels, -1 beyond their ends: each begins with a frame.

    Of a sound there are as few as cover it. Where those behind the first begin differs from epoch to epoch, as far as
    they still reach its end.
    """

    def __init__(self, model: MelVocoder, x: Any) -> None:
        self.x, self.hop, self.margin, self.epoch = x, model.hop, model.margin, 0
        lengths = torch.cat([model.space.lengths(x[i : i + READ]) for i in range(0, len(x), READ)])
        frames = -(-lengths // self.hop)
        self.each = min(max(1, model.config.block // self.hop), max(1, int(frames.max())))
        count = -(-frames // self.each)
        self.spare = count * self.each - frames  # frames that its pieces have beyond its end
        self.end = count.cumsum(0)

    def __len__(self) -> int:
        return int(self.end[-1])

    def owner(self, index: Tensor) -> Tensor:
        return torch.searchsorted(self.end, index, right=True)

    def __getitem__(self, index: Tensor) -> Tensor:
        rows = self.owner(index)
        first = torch.where(rows > 0, self.end[rows - 1], 0)
        x, k = self.x[rows], index - first
        back = torch.where(k > 0, self.epoch % (1 + self.spare[rows]), 0)
        start = (k * self.each - back) * self.hop - self.margin
        place = start[:, None] + torch.arange(self.each * self.hop + 2 * self.margin)
        inside = (place >= 0) & (place < x.shape[1])
        return x.gather(1, place.clamp(0, x.shape[1] - 1)).masked_fill(~inside, -1)

    def set_epoch(self, number: int) -> None:
        self.epoch = number
