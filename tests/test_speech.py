"""Speech: what nets hear of sounds, and texts that are recognised in them."""

import dataclasses
import itertools
import math
from collections import Counter

import numpy as np
import pytest
import torch
from scipy.signal import get_window

import pofx
from pofx.core.errors import BadValue, Unsupported, UsageError
from pofx.core.registry import family
from pofx.core.requests import Decoding, PathSearch
from pofx.data.parts import Data, Part
from pofx.decode.paths import prefix_search
from pofx.nn.encoders import encoder
from pofx.nn.mel import FLOOR, fft_size, frame_sizes, frames, log_mel, mel_filters
from pofx.nn.perturb import SPEED, UNIFORMS, perturbation
from pofx.spaces import Audio, Image, Label, Real, Sequence, Table, Text
from pofx.spaces.text import filled_up


@pytest.mark.parametrize(("rate", "bands"), [(8000, 40), (16000, 80), (100, 40)])
def test_mel_filters_are_triangles_between_pitches_even_in_mel(rate, bands):
    size = fft_size(rate, bands)
    found, frequency = mel_filters(rate, size, bands), np.fft.rfftfreq(size, 1 / rate)
    mels = 2595 * np.log10(1 + rate / 2 / 700) * np.arange(bands + 2) / (bands + 1)
    corners = 700 * (10 ** (mels / 2595) - 1)
    for band, row in enumerate(found):
        want = np.interp(frequency, corners[band : band + 3], [0, 1, 0])
        np.testing.assert_allclose(row.numpy(), want, atol=1e-9)
        assert row.any()
    between = (frequency >= corners[1]) & (frequency <= corners[-2])
    np.testing.assert_allclose(found.sum(0).numpy()[between], 1)


def test_log_mel_is_the_power_of_a_hann_window():
    rate, bands = 8000, 40
    window, hop = frame_sizes(rate)
    x = torch.randn(1, 1000, dtype=torch.float64)
    hann, size = get_window("hann", window), fft_size(rate, bands)
    found = log_mel(x, rate, bands)
    assert found.shape == (1, math.ceil(1000 / hop), bands)
    padded = np.pad(x[0].numpy(), ((window - hop) // 2, window))
    for t in (0, 3, found.shape[1] - 1):
        piece = padded[t * hop : t * hop + window]
        power = np.abs(np.fft.rfft(piece * hann, size)) ** 2 / (hann**2).sum()
        want = np.log(mel_filters(rate, size, bands).numpy() @ power + FLOOR)
        np.testing.assert_allclose(found[0, t].numpy(), want, rtol=1e-9)


def test_a_tone_is_loudest_in_its_band_and_noise_of_variance_one_has_power_one():
    rate, bands = 16000, 80
    t = torch.arange(rate, dtype=torch.float64) / rate
    corners = 700 * (10 ** (torch.linspace(0, 2595 * math.log10(1 + rate / 1400), bands + 2).double() / 2595) - 1)
    for band in (20, 50, 70):
        tone = (2 * math.pi * corners[band + 1] * t).sin()
        assert int(log_mel(tone[None], rate, bands)[0, 50].argmax()) == band
    noise = torch.fft.rfft(frames(torch.randn(4, rate, dtype=torch.float64), rate), 512).abs().square()
    assert float(noise[:, 2:-2].mean()) == pytest.approx(1, abs=0.02)


# -- encoder of sounds ----------------------------------------------------------------------------------------


def sounds(*lengths, rate=1000, levels=65536, law="linear"):
    """Noise of these lengths, as one batch, and its space."""
    space = Audio(rate, levels, law, True, max(lengths))
    rows = [space.levels_of(0.3 * torch.randn(n, dtype=torch.float64).clamp(-3, 3)).tolist() for n in lengths]
    return space, filled_up(rows)


@pytest.mark.parametrize("lengths", [(1500, 300, 20, 1), (250, 90, 10, 1)])  # two frames a token, and one
def test_what_stands_after_a_sound_changes_no_number(lengths):
    space, x = sounds(*lengths)
    net = encoder(space, 32)
    net.prepare(x)
    net = net.double()
    for layer in net.layers:  # which start as nothing
        for linear in (layer.out, layer.down):
            torch.nn.init.normal_(linear.weight, std=0.3)
    with torch.no_grad():
        whole = net(x)
        wide = net(torch.nn.functional.pad(x, (0, 321), value=-1))
        for i, n in enumerate(lengths):
            alone, own = net(x[i : i + 1, :n]), int(whole.mask[i].sum())
            assert int(alone.mask.sum()) == own == 1 + math.ceil(math.ceil(n / 10) / net.stride)
            for other in (alone, wide[i : i + 1]):
                torch.testing.assert_close(other.vector[0], whole.vector[i], rtol=1e-10, atol=1e-10)
                torch.testing.assert_close(other.tokens[0, :own], whole.tokens[i, :own], rtol=1e-10, atol=1e-10)
    assert (whole.tokens[0, 1:4] - whole.tokens[1, 1:4]).abs().max() > 1e-3


def test_the_encoder_starts_from_standardised_bands():
    space, x = sounds(*[400] * 40)
    net = encoder(space, 32)
    net.prepare(x)
    mel, inside = net.heard(x)
    z = ((mel - net.location) / net.scale)[inside]
    torch.testing.assert_close(z.mean(0), torch.zeros(128), atol=1e-4, rtol=0)
    torch.testing.assert_close(z.std(0), torch.ones(128), atol=1e-2, rtol=0)


# -- sounds as training changes them ----------------------------------------------------------------------------


def test_changed_sounds_are_sounds_that_follow_from_their_own_row():
    space, x = sounds(900, 400, 1, 30)
    u = torch.rand(4, UNIFORMS)
    change = perturbation(space)
    found = change(x, u, 1.0)
    space.check(found)
    for i, n in enumerate((900, 400, 1, 30)):
        alone = change(x[i : i + 1, :n], u[i : i + 1], 1.0)[0]
        assert alone[alone >= 0].tolist() == found[i][found[i] >= 0].tolist()
    assert perturbation(Text("ab")) is None
    assert change(x, u, 0.0).tolist() == x.tolist()
    empty = change(torch.full((2, 3), -1), u[:2], 1.0)
    assert int((empty >= 0).sum()) == 0


def test_a_faster_sound_is_shorter_and_higher():
    space = Audio(8000, length=4000)
    tone = space.levels_of(0.5 * (2 * math.pi * 1000 * torch.arange(4000, dtype=torch.float64) / 8000).sin())[None]
    u = torch.full((1, UNIFORMS), 0.5)
    u[:, 4] = u[:, 7] = u[:, 8] = 0  # no masks, little noise
    for share in (0.0, 1.0):
        u[:, 0] = share
        factor = math.exp(SPEED * (2 * share - 1))
        found = perturbation(space)(tone, u, 1.0)[0]
        assert len(found) == math.ceil(4000 / factor)
        spectrum = torch.fft.rfft(space.amplitudes(found) * torch.hann_window(len(found))).abs()
        assert float(spectrum.argmax()) * 8000 / len(found) == pytest.approx(1000 * factor, abs=4)


def test_only_training_hears_changed_sounds():
    data = tones(24)
    plain, changed = (
        pofx.fit(data, "ctc", steps=1, checks=1, options={"width": 16, "context_augment": a}).model for a in (0.0, 1.0)
    )
    assert any((a != b).any() for a, b in zip(plain.parameters(), changed.parameters(), strict=True))
    given = changed.given(data.test.c[:4])
    assert given.log_prob(data.test.x[:4]).nats.tolist() == given.log_prob(data.test.x[:4]).nats.tolist()
    with pytest.raises(UsageError, match="context_augment"):
        pofx.fit("iris", "gmm", steps=1, options={"context_augment": 1.0})


def test_a_context_is_long_enough_as_it_is_not_as_training_changes_it():
    """Texts that need every frame: of sounds made faster, some have too few."""
    space, text = Audio(1000, 256, "mu", True, 220), Text("ab", True, 23)
    c = space.levels_of(0.1 * torch.randn(32, 220, generator=torch.Generator().manual_seed(0)))
    data = Data("fast", "memory", text, *3 * [Part((torch.arange(23) % 2).expand(32, -1), c)], space)
    how = {"width": 16, "context_augment": 2.0}
    made = pofx.fit(data, "ctc", steps=2, checks=1, options=how).model
    assert made.log_probs(made.encode_context(c[:1]))[1].tolist() == [23]
    never = Part(torch.zeros(32, 23, dtype=torch.int64), c)
    with pytest.raises(BadValue, match="needs 45 frames .* its context has fewer"):
        pofx.fit(dataclasses.replace(data, train=never), "ctc", steps=2, checks=1, options=how)


# -- ctc ----------------------------------------------------------------------------------------------------------


def model(frames=1, width=8, symbols="ab", dtype=torch.float64):
    """A ctc over random frames, with contexts of 0 to 3 steps."""
    step = Table((Real("v"),))
    cls = family("ctc")
    made = cls(cls.Config(width=width, frames=frames), Text(symbols, True, 4), Sequence(step, True, 3))
    torch.nn.init.normal_(made.out.weight)
    c = torch.randn(3, 3, 1, dtype=torch.float64)
    c[1, 2:] = math.inf
    c[2, 1:] = math.inf
    return made.to(dtype).eval().requires_grad_(False), c


def texts(symbols, most):
    return [
        torch.tensor(t, dtype=torch.int64) for k in range(most + 1) for t in itertools.product(range(symbols), repeat=k)
    ]


def by_enumeration(log_p):
    """p of every text, summed over all paths through frames [T, 1 + symbols]."""
    total = {}
    for path in itertools.product(range(log_p.shape[1]), repeat=len(log_p)):
        text = tuple(k - 1 for k, _ in itertools.groupby(path) if k > 0)
        p = math.exp(sum(float(row[k]) for row, k in zip(log_p, path, strict=True)))
        total[text] = total.get(text, 0.0) + p
    return total


def slow_nats(log_p, text):
    """The forward algorithm of Graves et al. 2006, section 4.1: symbols with a blank before, between and after."""
    states = [0, *(v for k in text for v in (int(k) + 1, 0))]
    a = [log_p[0, s] if i < 2 else log_p.new_tensor(-1e30) for i, s in enumerate(states)]
    for row in log_p[1:]:
        before = a
        a = []
        for i, s in enumerate(states):
            ways = [before[j] for j in (i, i - 1) if j >= 0]
            if i >= 2 and s != 0 and s != states[i - 2]:
                ways.append(before[i - 2])
            a.append(torch.stack(ways).logsumexp(0) + row[s])
    return torch.stack(a[-2:]).logsumexp(0)


def test_the_likelihood_is_the_sum_over_paths_and_adds_up_to_one():
    made, c = model()
    with torch.no_grad():
        log_p, frames = made.log_probs(made.encode_context(c))
    assert frames.tolist() == [4, 3, 2]
    for i, n in enumerate(frames.tolist()):
        truth = by_enumeration(log_p[i, :n])
        every = texts(2, n)
        nats = made.given(c[i]).log_prob(filled_up([t.tolist() for t in every])).nats
        for t, found in zip(every, nats.tolist(), strict=True):
            p = truth.pop(tuple(t.tolist()), 0.0)
            assert math.exp(found) == pytest.approx(p, abs=1e-12)
            assert (found == -math.inf) == (p == 0)
        assert not truth
        assert float(nats.exp().sum()) == pytest.approx(1, abs=1e-12)


def test_its_gradient_is_that_of_the_slow_recursion():
    made, c = model(frames=2)
    made.requires_grad_()
    x = filled_up([[0, 0, 1], [1], []])
    slow, fast = [], []
    for into in (slow, fast):
        made.zero_grad()
        e = made.encode_context(c)
        if into is fast:
            nats = made.nats(x, e)
        else:
            log_p, frames = made.log_probs(e)
            nats = torch.stack([slow_nats(p[:n], t[t >= 0]) for p, n, t in zip(log_p, frames, x, strict=True)])
        nats.sum().backward()
        into += [nats.detach(), *(p.grad.clone() for p in made.parameters() if p.grad is not None)]
    for a, b in zip(slow, fast, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_an_impossible_text_has_no_gradient_of_nan():
    made, c = model()
    made.requires_grad_()
    nats = made.given(c[2]).log_prob(filled_up([[0, 0, 0, 0], [0]])).nats
    assert nats[0] == -math.inf
    nats[1].backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in made.parameters())


def test_searches_find_the_likeliest_texts_and_paths():
    made, c = model(symbols="abc")
    with torch.no_grad():
        log_p, frames = made.log_probs(made.encode_context(c))
    for i, n in enumerate(frames.tolist()):
        truth = sorted(by_enumeration(log_p[i, :n]).items(), key=lambda item: -item[1])
        found = made.given(c[i]).sample(5, sampler=PathSearch(beams=200))
        assert [tuple(t[t >= 0].tolist()) for t in found] == [t for t, _ in truth[:5]]
        path = log_p[i, :n].argmax(1).tolist()
        greedy = made.given(c[i]).sample(1, sampler=PathSearch(greedy=True))[0]
        assert greedy[greedy >= 0].tolist() == [k - 1 for k, _ in itertools.groupby(path) if k]
    few = made.given(c).sample(2, sampler=PathSearch(beams=2))
    nats = made.given(c).log_prob(few).nats
    assert few.shape[:2] == (2, 3)
    assert (nats[0] >= nats[1]).all()
    with pytest.raises(UsageError, match="beams have no 3 best"):
        made.given(c).sample(3, sampler=PathSearch(beams=2))
    with pytest.raises(UsageError, match="beams and greedy"):
        PathSearch(beams=2, greedy=True)


@pytest.mark.parametrize("sampler", [None, PathSearch(greedy=True), PathSearch(beams=2)])
def test_what_is_no_distribution_gives_no_text(sampler):
    made, c = model()
    made.out.bias.fill_(math.nan)
    with pytest.raises(BadValue, match="NaN"):
        made.given(c[:1]).sample(1, sampler=sampler)


def test_prefixes_are_summed_over_all_of_their_paths():
    log_p = torch.randn(4, 3, dtype=torch.float64).log_softmax(1)
    truth = by_enumeration(log_p)
    assert {tuple(t) for t in prefix_search(log_p, 1000)} == set(truth)


def test_draws_are_as_frequent_as_texts_are_likely():
    made, c = model()
    n = 5000
    drawn = made.given(c[1]).sample(n, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        log_p, frames = made.log_probs(made.encode_context(c[1:2]))
    counts = Counter(tuple(t[t >= 0].tolist()) for t in drawn)
    truth = by_enumeration(log_p[0, : int(frames)])
    assert set(counts) <= set(truth)
    for text, p in truth.items():
        assert abs(counts[text] - n * p) < 5 * math.sqrt(n * p) + 3


# -- recognition ----------------------------------------------------------------------------------------------------


def tones(n, rate=1000):
    """'a' is a low tone and 'b' a high one, each of 60 to 100 ms, 1 to 3 of them after each other."""
    draw, symbols = np.random.default_rng(0), []
    space, clips = Audio(rate, 256, "mu", True, 3 * rate // 10), []
    for _ in range(n):
        word = draw.integers(2, size=draw.integers(1, 4)).tolist()
        parts = []
        for k in word:
            t = np.arange(draw.integers(6, 11) * rate // 100) / rate
            parts.append(0.5 * np.sin(2 * np.pi * (100, 300)[k] * t) * np.sin(np.pi * t / t[-1]))
        clips.append(space.levels_of(torch.from_numpy(np.concatenate(parts))).tolist())
        symbols.append(word)
    x, c = filled_up(symbols), filled_up(clips)
    cuts = (slice(0, 3 * n // 4), slice(3 * n // 4, 7 * n // 8), slice(7 * n // 8, n))
    return Data("tones", "memory", Text("ab", True, 3), *(Part(x[s], c[s]) for s in cuts), space)


@pytest.mark.parametrize(
    ("name", "options", "recipe", "steps"),
    [
        ("ctc", {"width": 24, "dropout": 0.0}, {"batch": 16, "lr": 1e-2}, 100),
        ("gpt", {"width": 32, "layers": 1, "n_heads": 2}, {"batch": 16, "lr": 5e-3, "optimizer": "adam"}, 200),
    ],
)
def test_tones_are_recognised(name, options, recipe, steps):
    data = tones(400)
    recipe |= {"warmup": 10, "ema": None}
    made = pofx.fit(data, name, steps=steps, checks=1, options=options, recipe=recipe).model
    greedy = PathSearch(greedy=True) if name == "ctc" else Decoding(greedy=True)
    test = data.test.read()
    found = made.given(test.c).sample(1, sampler=greedy)[0]
    right = [a[a >= 0].tolist() == b[b >= 0].tolist() for a, b in zip(found, test.x, strict=True)]
    assert np.mean(right) > 0.8, np.mean(right)
    assert made.given(test.c).log_prob(test.x).nats.mean() > -0.6
    assert made.given(test.c.roll(1, 0)).log_prob(test.x).nats.mean() < -2


def test_bad_input_is_named():
    data = tones(40)
    made = pofx.fit(data, "ctc", steps=1, checks=1, options={"width": 16}).model
    c = data.test.c[:1]
    with pytest.raises(BadValue, match="character 'z'"):
        made.given(c).log_prob(["az"])
    with pytest.raises(BadValue, match="take 0 to 255"):
        made.given(c + 300)
    empty = made.given(torch.full((1, 4), -1)).log_prob([""]).nats  # no sound, no text: one frame
    assert -3 < float(empty) < 0
    assert float(made.given(torch.full((1, 4), -1)).log_prob(["ab"]).nats) == -math.inf
    wrong = dataclasses.replace(data, train=Part(data.train.x, data.train.c[:, :10]))
    with pytest.raises(BadValue, match="text '[ab]*' needs . frames .*, and its context has fewer.*frames 2"):
        pofx.fit(wrong, "ctc", steps=2, checks=1, options={"width": 16}, recipe={"batch": 30})
    for context in (Label(("x", "y")), Table((Real("v"),)), Image(4, 4, 1, 2), None):
        with pytest.raises(Unsupported, match="Fit gpt|fit gpt"):
            family("ctc")(family("ctc").Config(), Text("ab"), context)
    with pytest.raises(Unsupported, match="whole texts"):
        family("ctc")(family("ctc").Config(), Text("ab", False), data.context)
    with pytest.raises(Unsupported, match="--given"):  # which makes them whole
        family("ctc")(family("ctc").Config(), Text("ab", False), None)


def test_an_empty_transcript_is_a_text():
    data = tones(80)
    x = data.train.x.clone()
    x[::2] = -1
    silent = data.train.c.clone()
    silent[::2] = torch.where(silent[::2] >= 0, 128, -1)
    data = dataclasses.replace(data, train=Part(x, silent))
    made = pofx.fit(
        data, "ctc", steps=60, checks=1, options={"width": 16}, recipe={"lr": 1e-2, "warmup": 5, "ema": None}
    ).model
    assert float(made.given(silent[:1]).log_prob([""]).nats.exp()) > 0.8
    assert made.given(silent[:1]).sample(1, sampler=PathSearch(greedy=True)).shape[-1] == 0
