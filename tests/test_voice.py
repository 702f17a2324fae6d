"""Sounds by their spectra: phases that fit, the bound of one grid of levels, a vocoder that is told frames."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from scipy.optimize import nnls
from torch import Tensor

import pofx
from pofx.core.errors import EmptyData, Unsupported, UsageError
from pofx.core.learner import Batch
from pofx.core.requests import GriffinLim, StepByStep
from pofx.data.parts import Data, Part
from pofx.families.mel_vocoder import MelVocoder, Pieces
from pofx.nn.mel import fft_size, log_mel, mel_filters
from pofx.nn.phase import griffin_lim, istft, power_of, stft
from pofx.spaces import Audio, Text

RATE, N_FFT = 8000, 256


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sine(hertz: float, length: int, rate: int = RATE) -> Tensor:
    t = torch.arange(length, dtype=torch.float64) / rate
    return 0.5 * torch.sin(2 * math.pi * hertz * t) * torch.hann_window(length, dtype=torch.float64).sqrt()


# -- phases --------------------------------------------------------------------------------------------------


def test_a_sound_comes_back_from_its_spectra() -> None:
    x = torch.randn(3, 800, generator=seeded(), dtype=torch.float64)
    assert torch.allclose(istft(stft(x, RATE, N_FFT), RATE, N_FFT), x, atol=1e-12)


def test_the_sound_is_the_nearest_to_spectra_of_none() -> None:
    """By the normal equations of the whole linear map, at a size where it is a matrix."""
    rate, n_fft, length = 200, 8, 12
    eye = torch.eye(length, dtype=torch.float64)
    matrix = torch.fft.irfft(stft(eye, rate, n_fft), n_fft).flatten(1).T  # an isometry: squares weigh the same
    spectra = torch.randn(1, length // 2, n_fft // 2 + 1, generator=seeded(), dtype=torch.complex128)
    spectra[..., 0], spectra[..., -1] = spectra[..., 0].real + 0j, spectra[..., -1].real + 0j
    best = torch.linalg.lstsq(matrix, torch.fft.irfft(spectra, n_fft).flatten(1).T).solution[:, 0]
    assert torch.allclose(istft(spectra, rate, n_fft)[0], best, atol=1e-10)


def test_frames_beside_a_sound_are_no_part_of_it() -> None:
    spectra = torch.randn(2, 9, N_FFT // 2 + 1, generator=seeded(), dtype=torch.complex128)
    inside = torch.arange(9) < torch.tensor([[9], [5]])
    found = istft(spectra, RATE, N_FFT, inside)
    assert torch.allclose(found[0], istft(spectra[:1], RATE, N_FFT)[0], atol=1e-12)
    assert torch.allclose(found[1, :400], istft(spectra[1:, :5], RATE, N_FFT)[0], atol=1e-12)
    assert not found[1, 400:].any()


def test_phases_fit_better_with_every_iteration() -> None:
    magnitude = stft(sine(700, 1200)[None] + sine(1900, 1200)[None], RATE, N_FFT).abs()
    weight = torch.full((N_FFT // 2 + 1,), 2.0, dtype=torch.float64)  # both halves of a spectrum
    weight[0] = weight[-1] = 1.0

    def misfit(iterations: int, momentum: float = 0.0) -> float:
        x = griffin_lim(magnitude, RATE, seeded(1), iterations=iterations, momentum=momentum)
        return float(((stft(x, RATE, N_FFT).abs() - magnitude).square() * weight).sum())

    found = [misfit(k) for k in range(12)]
    assert all(a >= b - 1e-12 for a, b in itertools.pairwise(found)), found
    assert found[-1] < 0.5 * found[0]
    assert misfit(60, 0.99) < misfit(60)  # as Perraudin et al. found


def test_a_sine_is_heard_again_at_its_pitch() -> None:
    x = sine(1000, 2400)[None]
    again = griffin_lim(stft(x, RATE, N_FFT).abs(), RATE, seeded(2))
    loud = (log_mel(x, RATE, 24) > -6) & (log_mel(again, RATE, 24) > -6)
    assert loud.any()
    assert (log_mel(x, RATE, 24) - log_mel(again, RATE, 24))[loud].abs().mean() < 0.2
    peak = torch.fft.rfft(again[0]).abs().argmax() * RATE / 2400
    assert abs(float(peak) - 1000) < 10


def test_powers_are_those_of_the_bands() -> None:
    filters = mel_filters(RATE, N_FFT, 24)
    power = stft(torch.randn(1, 400, generator=seeded(), dtype=torch.float64), RATE, N_FFT).abs().square()[0]
    bands = power @ filters.T
    found = power_of(bands.log(), filters)
    assert (found >= 0).all()
    assert ((found @ filters.T - bands).norm(dim=1) < 0.02 * bands.norm(dim=1)).all()
    impossible = bands.clone()
    impossible[:, 10] = 0.0  # between loud ones
    best = torch.tensor([nnls(filters.numpy(), row.numpy())[1] for row in impossible], dtype=torch.float64)
    near = (power_of(impossible.clamp_min(1e-9).log(), filters, 300) @ filters.T - impossible).norm(dim=1)
    assert (near < best + 0.1 * bands.norm(dim=1)).all()


# -- the family ----------------------------------------------------------------------------------------------

FRAMES = "gpt:width=16,layers=1,n_heads=2,block=32,inner_width=16"
SMALL = {
    "bands": 4, "levels": 6, "frames": FRAMES, "width": 8, "depth": 3, "stacks": 1, "residual": 8, "skip": 8,
    "block": 160, "components": 3,
}  # fmt: skip


def sounds(lengths: tuple[int, ...], rate: int = 2000, levels: int = 32, seed: int = 0) -> tuple[Audio, Tensor]:
    """Tones of several loudnesses, of so many samples."""
    space = Audio(rate, levels, "mu", True, max(lengths))
    x = torch.full((len(lengths), max(lengths)), -1)
    for i, n in enumerate(lengths):
        x[i, :n] = space.levels_of(sine(150 + 90 * i, n, rate) * (0.2 + 0.8 * i / len(lengths)))
    return space, x


def made(
    space: Audio, x: Tensor, context: Text | None = None, c: Tensor | None = None, **options: object
) -> MelVocoder:
    torch.manual_seed(0)
    model = MelVocoder(MelVocoder.Config(**SMALL | options), space, context)  # type: ignore[arg-type]
    model.prepare(x, c, None, seeded())
    with torch.no_grad():  # nets that say something
        for p in model.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=seeded(p.numel())))
    return model.eval()


def test_levels_of_bands_follow_from_the_sound_alone() -> None:
    space, x = sounds((300, 123, 41, 240, 20))
    model = made(space, x)
    m = model.spectrum(x)
    assert m.shape == (5, 15, 4)
    assert torch.equal(m[..., 0].isfinite().sum(1), torch.tensor([15, 7, 3, 12, 1]))
    for i, n in enumerate((300, 123, 41, 240, 20)):
        alone = model.spectrum(x[i : i + 1, :n])[0]
        assert torch.equal(alone, m[i, : len(alone)])
    mel = log_mel(space.amplitudes(x), space.rate, 4)
    inside = m.isfinite()
    step = ((model.high - model.low) / 5).expand_as(mel)[inside]
    kept = model.log_mel_of(m.masked_fill(~inside, 0))[inside]
    assert ((kept - mel.clamp(model.low, model.high)[inside]).abs() <= step / 2 + 1e-9).all()


def test_a_sample_depends_on_those_before_it_and_on_frames() -> None:
    space, x = sounds((100, 100))
    model = made(space, x)
    u = torch.cat([model.emission.beginning(2), model.codec.encode(x)], 1)
    local = model._whole(model.spectrum(x))
    with torch.no_grad():
        before = model._log_prob_of(u, local)
        for t in (0, 37, 98):
            other = u.clone()
            other[:, 1 + t] = (other[:, 1 + t] + 7) % space.levels
            changed = (model._log_prob_of(other, local) - before).abs().amax(0)
            assert not (changed[:t] > 1e-6).any()
            assert (changed[t : t + 2] > 1e-6).all()
        told = local.clone()
        told[:, 2] += 1.0
        changed = (model._log_prob_of(u, told) - before).abs().amax(0)
        assert not (changed[: 2 * model.hop] > 1e-6).any()
        assert (changed[2 * model.hop : 3 * model.hop] > 1e-6).all()


def test_drawn_in_steps_as_in_one_pass() -> None:
    """What the cache gives to each step is what a pass over all that was drawn says there."""
    space, x = sounds((100, 60))
    model = made(space, x)
    m = model.spectrum(x)
    drawn = model.sound(m, seeded(3))
    outputs, sample = [], model.emission.sample

    def kept(y: Tensor, generator: torch.Generator) -> Tensor:
        outputs.append(y)
        return sample(y, generator)

    model.emission.sample = kept  # type: ignore[method-assign]
    assert torch.equal(model.sound(m, seeded(3)), drawn)
    line = torch.cat([model.emission.beginning(2), model.codec.encode(drawn)], 1)
    with torch.no_grad():
        whole = model.net(model.emission.embed(line[:, :-1]), model._whole(m))
    assert torch.allclose(torch.stack(outputs, 1), whole, atol=1e-4)


def test_training_pieces_are_the_whole_sound() -> None:
    """Where a sound fits into one piece, the loss is that of the sound; where not, its frames are the sound's."""
    space, x = sounds((150, 97, 160))
    model = made(space, x)
    pieces = Pieces(model, x)
    assert len(pieces) == 3
    loss = model.objective(Batch(pieces[torch.arange(3)]), seeded())["loss"] * 160
    with torch.no_grad():
        assert torch.allclose(loss.double(), -model._samples(x), rtol=1e-4)
    space, x = sounds((990, 333, 20))
    model = made(space, x)
    pieces = Pieces(model, x)
    frames = model.spectrum(x)
    spare = len(pieces) * pieces.each - int((frames[..., 0].isfinite()).sum())
    assert spare < 3 * pieces.each  # as few as there may be
    for epoch in (0, 1):
        pieces.set_epoch(epoch)
        seen = torch.zeros_like(x, dtype=torch.bool)
        for j in range(len(pieces)):
            index = torch.tensor([j])
            own, row = pieces[index][:, model.margin : -model.margin], int(pieces.owner(index))
            k = j - (int(pieces.end[row - 1]) if row else 0)
            start = k * pieces.each - min(epoch, int(pieces.spare[row])) * (k > 0)
            n = int((own >= 0).sum())
            assert n
            assert torch.equal(own[0, :n], x[row, start * model.hop : start * model.hop + n])
            seen[row, start * model.hop : start * model.hop + n] = True
            beyond = model.margin // model.hop
            count = -(-n // model.hop)
            codes = model._codes(pieces[index])[:, beyond : beyond + count]
            assert torch.equal(codes[0], frames[row, start : start + count])
        assert torch.equal(seen, x >= 0)


def every(symbols: int, longest: int) -> list[tuple[int, ...]]:
    return [v for n in range(longest + 1) for v in itertools.product(range(symbols), repeat=n)]


def filled(rows: list[tuple[int, ...]]) -> Tensor:
    return torch.tensor([[*row, *[-1] * (max(map(len, rows)) - len(row))] for row in rows])


def test_the_bound_is_below_the_sum_over_all_grids() -> None:
    space = Audio(200, 2, "linear", True, 4)  # frames of 2 samples
    x = filled(every(2, 4))
    frames = "gpt:width=16,layers=1,n_heads=2,block=32"
    model = made(space, x[1:], bands=1, levels=2, frames=frames, components=10)
    assert model.hop == 2
    size = space.lengths(x)
    total = torch.zeros(len(x), dtype=torch.float64)
    with torch.no_grad():
        total[size == 0] = (
            model.frames.log_prob(torch.full((1, 1, 1), math.inf, dtype=torch.float64)).nats.double().exp()
        )
        for count in (1, 2):
            own = (size > 2 * (count - 1)) & (size <= 2 * count)
            rows = x[own][:, : 2 * count]
            u = torch.cat([model.emission.beginning(len(rows)), model.codec.encode(rows)], 1)
            for grid in itertools.product(range(2), repeat=count):
                m = torch.tensor(grid, dtype=torch.float64).reshape(1, count, 1)
                each = model._log_prob_of(u, model._whole(m.expand(len(rows), -1, -1))).masked_fill(rows < 0, 0)
                p = each.sum(1).double().exp() / 2  # either length is equally likely
                assert abs(float(p.sum()) - 1) < 1e-5  # of all sounds of so many frames
                total[own] += p * model.frames.log_prob(m).nats.double().exp()
        bound = model.log_prob(x).nats
    assert (bound <= total.log() + 1e-5).all()
    assert float(total.sum()) < 1 + 1e-5  # longer ones have the rest
    assert float(bound.exp().sum()) > 0.2 * float(total.sum())
    terms = model.given().bound_terms(x)
    assert torch.allclose(terms["frames"].nats + terms["samples"].nats, bound)


def test_draws_follow_from_the_seed_and_end() -> None:
    space, x = sounds((300, 123, 41, 240, 20))
    words = Text("ab", True, 3)
    c = words.parse(["a", "b", "ab", "a", "b"])
    model = made(space, x, words, c)
    for sampler in (StepByStep(), GriffinLim(iterations=3), GriffinLim(iterations=3, length=70), StepByStep(50)):
        one, two = (model.given(c).sample(2, generator=seeded(5), sampler=sampler) for _ in range(2))
        assert torch.equal(one, two)
        space.check(one)
        assert one.shape[-1] <= (sampler.length or space.length)
    assert not torch.equal(model.given(c).sample(1, generator=seeded(6))[0], one[0])
    excerpts = replace(space, has_eos=False)
    model = made(excerpts, x[:1])
    assert model.sample(3, generator=seeded(), sampler=StepByStep(50)).shape == (3, 50)
    assert bool((model.sample(3, generator=seeded(), sampler=StepByStep(50)) >= 0).all())


def test_a_cold_spectrum_is_the_likeliest_at_each_step() -> None:
    space, x = sounds((300, 123, 41))
    model = made(space, x)
    model.frames.emission.stop.weight.data.zero_()  # nothing but the levels is drawn
    model.frames.emission.base.fill_(-30.0)

    def frames(seed: int, temperature: float) -> Tensor:
        return model.frames.rows_sample(1, None, GriffinLim(temperature=temperature), seeded(seed))

    assert torch.equal(frames(1, 1e-4), frames(2, 1e-4))
    assert not torch.equal(frames(1, 1.0), frames(2, 1.0))


def test_a_drawn_sound_has_as_many_frames_as_were_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """(T - 1) hop + r samples, each r as likely, as far as the longest sound goes."""
    space, x = sounds((50, 33))  # frames of 20 samples
    model = made(space, x)
    for count, sizes in ((0, {0}), (1, {*range(1, 21)}), (3, {*range(41, 51)})):
        m = torch.zeros(400, max(1, count), 4, dtype=torch.float64)
        m[:, count:] = math.inf
        monkeypatch.setattr(model.frames, "rows_sample", lambda *args, m=m: m)
        drawn = space.lengths(model.sample(400, generator=seeded(1), sampler=GriffinLim(iterations=1)))
        assert {*drawn.tolist()} == sizes
        assert abs(float(drawn.double().mean()) - sum(sizes) / len(sizes)) < 1.2


def test_empty_sounds_have_a_probability_and_teach_nothing() -> None:
    space, x = sounds((50, 33))
    model = made(space, x)
    none = model.log_prob(torch.zeros(2, 0, dtype=torch.int64)).nats
    assert torch.allclose(none, model.log_prob(torch.full((2, 50), -1)).nats)
    assert bool(none.isfinite().all())
    assert len(Pieces(model, torch.full((2, 50), -1))) == 0
    with pytest.raises(EmptyData, match="None of 2 training sounds has a sample"):
        MelVocoder(MelVocoder.Config(**SMALL), space).prepare(torch.full((2, 50), -1), None, None, seeded())  # type: ignore[arg-type]


def test_its_frames_are_told_of_contexts_as_its_options_say() -> None:
    words = Text("ab", True, 3)
    space, _ = sounds((300,))
    wide = MelVocoder(MelVocoder.Config(**SMALL, context_width=48, context_layers=1), space, words)  # type: ignore[arg-type]
    assert wide.frames.config.context_width == 48  # type: ignore[attr-defined]
    assert wide.encode_context(words.parse(["ab"])).tokens.shape[2] == 48
    assert wide.frames.config.context_layers == 1  # type: ignore[attr-defined]
    own = MelVocoder(
        MelVocoder.Config(**SMALL | {"frames": FRAMES + ",context_width=32"}, context_width=48), space, words
    )  # type: ignore[arg-type]
    assert own.frames.config.context_width == 32  # type: ignore[attr-defined]
    assert "context_width" in {*MelVocoder.idle(space, None, MelVocoder.Config())}


def test_a_fit_has_two_stages_and_learns_what_is_said() -> None:
    """Low tones for a, high ones for b, longer than a for b: told apart by the frames that are drawn."""
    g, words = seeded(), Text("ab", True, 1)
    n = 240
    which = torch.randint(2, (n,), generator=g)
    space = Audio(2000, 32, "mu", True, 240)
    x = torch.full((n, 240), -1)
    for i, k in enumerate(which.tolist()):
        size = (120, 240)[k] - int(torch.randint(20, (), generator=g))
        loud = float(0.4 + 0.4 * torch.rand((), generator=g))
        x[i, :size] = space.levels_of(sine((150, 600)[k], size, 2000) * loud)
    c = words.parse(["ab"[k] for k in which.tolist()])
    parts = [Part(x[a:b], c[a:b]) for a, b in ((0, 160), (160, 200), (200, 240))]
    data = Data("tones", "memory", space, *parts, words)
    run = pofx.fit(data, "mel-vocoder", steps=90, seed=0, checks=2, options=SMALL | {"frames_share": 0.9},
                   recipe={"batch": 16})  # fmt: skip
    model = run.model
    drawn = model.given(c[:40]).sample(1, generator=seeded(1), sampler=GriffinLim(iterations=5))[0]
    pitch = torch.fft.rfft(space.amplitudes(drawn)).abs().argmax(1) * 2000 / drawn.shape[1]
    right = [(p > 350) == bool(k) for p, k in zip(pitch.tolist(), which[:40].tolist(), strict=True)]
    assert sum(right) >= 34
    longer = space.lengths(drawn).double()
    assert longer[which[:40] == 1].mean() > longer[which[:40] == 0].mean() + 40


def test_what_cannot_be() -> None:
    space, _ = sounds((300,))
    with pytest.raises(Unsupported, match="its data are no sounds"):
        MelVocoder(MelVocoder.Config(), Text("ab", True, 3))  # type: ignore[arg-type]
    with pytest.raises(Unsupported, match="rssm has no exact probability of frames"):
        MelVocoder(MelVocoder.Config(frames="rssm"), space)
    with pytest.raises(UsageError, match="momentum is -1"):
        GriffinLim(momentum=-1.0)
    assert fft_size(RATE, 24) == N_FFT
