"""Speech: what nets hear of sounds, and texts that are recognised in them."""

import math

import numpy as np
import pytest
import torch
from scipy.signal import get_window

from pofx.nn.mel import FLOOR, fft_size, frame_sizes, frames, log_mel, mel_filters


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
