"""Log-mel spectra of sounds: the power in overlapping frames, in bands as wide as the ear tells pitches apart.

    mel(f) = 2595 log10(1 + f / 700)                            (O'Shaughnessy 1987; f in Hz)

Frames of 25 ms move by 10 ms (Davis & Mermelstein 1980). Frame t has the samples t hop to (t + 1) hop in its middle, so
that a sound of L samples has ceil(L / hop) frames, and only silence is added at its ends.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

FRAME, HOP = 0.025, 0.010  # seconds
FLOOR = 1e-8  # power that is silence, where white noise of variance 1 has power 1: -80 dB


def frame_sizes(rate: int) -> tuple[int, int]:
    """Samples of a frame, and those from one to the next, at ``rate`` samples per second."""
    return max(4, round(FRAME * rate)), max(1, round(HOP * rate))


def fft_size(rate: int, bands: int) -> int:
    """Points of the Fourier transform of a frame: a power of two, so many that no band falls between frequencies."""
    size = 2 ** math.ceil(math.log2(frame_sizes(rate)[0]))
    while not bool(mel_filters(rate, size, bands).any(1).all()):
        size *= 2
    return size


def mel_filters(rate: int, n_fft: int, bands: int) -> Tensor:
    """Triangles over the frequencies k rate / n_fft: float64 [bands, n_fft / 2 + 1].

    Their corners are even in mel from 0 to rate / 2; each rises from the centre of the band below to 1 at its own, and
    falls to 0 at that of the band above.
    """
    top = 2595 * math.log10(1 + rate / 2 / 700)
    corners = 700 * (10 ** (torch.linspace(0, top, bands + 2, dtype=torch.float64) / 2595) - 1)
    frequency = torch.arange(n_fft // 2 + 1, dtype=torch.float64) * (rate / n_fft)
    low, centre, high = (corners[i : bands + i, None] for i in range(3))
    return torch.minimum((frequency - low) / (centre - low), (high - frequency) / (high - centre)).clamp(min=0)


def frames(amplitude: Tensor, rate: int) -> Tensor:
    """Frames [N, ceil(L / hop), window] of amplitudes [N, L], each times a Hann window whose squares sum to 1."""
    window, hop = frame_sizes(rate)
    count = max(1, -(-amplitude.shape[1] // hop))
    before = (window - hop) // 2
    x = F.pad(amplitude, (before, (count - 1) * hop + window - before - amplitude.shape[1]))
    hann = torch.hann_window(window, dtype=x.dtype, device=x.device)
    return x.unfold(1, window, hop) * (hann / hann.square().sum().sqrt())


def log_mel(amplitude: Tensor, rate: int, bands: int = 80, filters: Tensor | None = None) -> Tensor:
    """log(FLOOR + power in each band) [N, ceil(L / hop), bands] of amplitudes [N, L], zero after the end of each.

    Args:
        rate: samples per second.
        filters: ``mel_filters`` of these bands, where they are kept: [bands, n_fft / 2 + 1].
    """
    if filters is None:
        filters = mel_filters(rate, fft_size(rate, bands), bands)
    power = torch.fft.rfft(frames(amplitude, rate), 2 * (filters.shape[1] - 1)).abs().square()
    return (power @ filters.to(power).T + FLOOR).log()
