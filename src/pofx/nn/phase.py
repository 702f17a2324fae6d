"""Sounds of spectra without phases: short-time Fourier transforms and back, and the phases that fit magnitudes best.

Any grid of complex numbers [T, F] is the spectrum of frames (``nn.mel.frames``), but of no sound: frames overlap. The
sound whose spectrum is nearest in squares has a closed form (Griffin & Lim 1984, eq. 6), and going there and back,

    S <- magnitude * phase(stft(istft(S))),

never takes ``magnitude`` and the magnitude of stft(istft(S)) further apart (their section III).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from pofx.nn.mel import FLOOR, frame_sizes, frames

TINY = 1e-12


def stft(amplitude: Tensor, rate: int, n_fft: int) -> Tensor:
    """Spectra [N, ceil(L / hop), n_fft / 2 + 1], complex, of the frames of amplitudes [N, L]."""
    return torch.fft.rfft(frames(amplitude, rate), n_fft)


def istft(spectra: Tensor, rate: int, n_fft: int, inside: Tensor | None = None) -> Tensor:
    """Amplitudes [N, T hop] whose spectra are nearest to these [N, T, n_fft / 2 + 1] in squares.

    Args:
        inside: which frames count [N, T]; None: all. There must be some for each sound.
    """
    (window, hop), (n, count, _) = frame_sizes(rate), spectra.shape
    hann = torch.hann_window(window, dtype=spectra.real.dtype, device=spectra.device)
    hann = hann / hann.square().sum().sqrt()
    counts = torch.ones(n, count, 1).to(hann) if inside is None else inside[..., None].to(hann)
    pieces = torch.fft.irfft(spectra, n_fft)[..., :window] * hann * counts

    def added(parts: Tensor) -> Tensor:
        return F.fold(parts.mT, (1, (count - 1) * hop + window), (1, window), stride=(1, hop)).flatten(1)

    first = (window - hop) // 2
    whole = added(pieces) / added(hann.square() * counts).clamp_min(TINY)
    return whole[:, first : first + count * hop] * counts[..., 0].repeat_interleave(hop, 1)


def griffin_lim(
    magnitude: Tensor,
    rate: int,
    generator: torch.Generator,
    *,
    iterations: int = 60,
    momentum: float = 0.99,
    inside: Tensor | None = None,
) -> Tensor:
    """Amplitudes [N, T hop] whose spectra have about these magnitudes [N, T, n_fft / 2 + 1].

    From phases by lot; momentum above 0 goes on in the direction of the last step (Perraudin, Balazs & Søndergaard
    2013, "A fast Griffin-Lim algorithm"), which ends nearer but may rise on the way.

    Args:
        inside: as of ``istft``.
    """
    n_fft = 2 * (magnitude.shape[2] - 1)
    angle = 2 * math.pi * torch.rand(magnitude.shape, generator=generator, device=generator.device).to(magnitude)
    spectra, before = torch.polar(magnitude, angle), torch.zeros_like(magnitude)
    for _ in range(iterations):
        found = stft(istft(spectra, rate, n_fft, inside), rate, n_fft)
        onward = found + momentum * (found - before)
        spectra, before = magnitude * onward / onward.abs().clamp_min(TINY), found
    return istft(spectra, rate, n_fft, inside)


def power_of(mel: Tensor, filters: Tensor, steps: int = 30) -> Tensor:
    """Powers [..., n_fft / 2 + 1], none negative, of frames whose log-mel spectra [..., bands] are about these.

    Least squares by the pseudo-inverse of the filters [bands, n_fft / 2 + 1] as the start, then multiplicative steps
    that keep powers positive and lower the squared error (Lee & Seung 2001, eq. 4).
    """
    bands, filters = (mel.exp() - FLOOR).clamp_min(0), filters.to(mel)
    power = (bands @ torch.linalg.pinv(filters).T).clamp_min(TINY)
    for _ in range(steps):
        power = power * (bands @ filters) / (power @ filters.T @ filters).clamp_min(TINY)
    return power
