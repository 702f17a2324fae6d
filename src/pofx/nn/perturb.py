"""Contexts as training sees them, a little different each time: who speaks how fast into what is no part of the words.

``perturbation`` is open: a space of a third party's takes part by registering its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import singledispatch
from typing import Any, TypeAlias

import torch
from torch import Tensor

from pofx.spaces import Audio

UNIFORMS = 12  # random numbers of one context
SPEED = 0.2  # largest log of the factor: pitch, formants and duration together (Ko et al. 2015)
LOUD = 20.0  # largest gain, dB: how near a microphone is
TONE = 8.0  # largest amplitude of each of three cosines that the gain in dB is over frequency
QUIET, NOISY = 60.0, 15.0  # dB of the sound over the noise that is added, at the most and at the least
TAPS = 256  # samples of the filter that does this
MASKED = 0.2  # largest share of time, and of frequencies, that a mask hides (Park et al. 2019)

Perturbation: TypeAlias = Callable[[Tensor, Tensor, float], Tensor]
"""Contexts c [N, *Ec], uniform random numbers u [N, UNIFORMS] and a strength -> contexts [N, *Ec]."""


@singledispatch
def perturbation(space: Any) -> Perturbation | None:
    """How training may change contexts of this space; None where it does not."""
    return None


@perturbation.register
def _(space: Audio) -> Perturbation:
    return lambda c, u, strength: perturbed_sounds(space, c, u, strength)


def perturbed_sounds(space: Audio, c: Tensor, u: Tensor, strength: float) -> Tensor:
    """Sounds c [N, L] at another speed, loudness and tone, with noise, and with a stretch of time and a band silent.

    Each change has a size of up to ``strength`` times that of the constants above, drawn for each sound by u. What a
    row becomes follows from the row and its u alone. Sounds of no samples stay so.
    """
    sized = strength * (2 * u.double() - 1)
    own = space.lengths(c)
    speed = (SPEED * sized[:, 0]).exp()
    lengths = torch.where(own > 0, (own / speed).ceil().long().clamp(min=1), 0)
    t = torch.arange(max(1, int(lengths.max())), device=c.device)
    x = _at(space.amplitudes(c), t * speed[:, None], own)
    inside = t < lengths[:, None]
    x = _shaped(x * inside, sized, u.double(), strength) * inside
    start, size = u[:, 6, None].double(), MASKED * strength * u[:, 7, None].double()
    place = t / lengths[:, None].clamp(min=1) + size  # a mask may reach over either end
    x = x * ~((place >= start * (1 + size)) & (place < start * (1 + size) + size))
    power = x.square().sum(1, keepdim=True) / lengths[:, None].clamp(min=1)
    over = QUIET - (QUIET - NOISY) * u[:, 8, None].double()
    noise = (3 * power).sqrt() * 10 ** (-over / 20) * min(1.0, strength)
    x = x + noise * (2 * _hashed(t, u[:, 9:11].double()) - 1)
    gain = 10 ** (LOUD * sized[:, 11] / 20)
    gain = torch.minimum(gain, 1 / x.abs().amax(1).clamp(min=1e-9))  # so that nothing is clipped
    return space.levels_of(x * gain[:, None]).masked_fill(~inside, -1)


def _at(x: Tensor, place: Tensor, lengths: Tensor) -> Tensor:
    """x [N, L] between samples, at places [N, M]."""
    last = (lengths - 1).clamp(min=0)[:, None]
    low = torch.minimum(place.floor().long(), last)
    high, share = torch.minimum(low + 1, last), place - place.floor()
    x = torch.nn.functional.pad(x, (0, max(0, 1 - x.shape[1])))
    return x.gather(1, low) * (1 - share) + x.gather(1, high) * share


def _shaped(x: Tensor, sized: Tensor, u: Tensor, strength: float) -> Tensor:
    """x [N, M] with another gain at each frequency, and a band left out: by a filter of ``TAPS`` samples."""
    f = torch.linspace(0, 1, TAPS // 2 + 1, dtype=x.dtype, device=x.device)
    decibel = sum(TONE / k * sized[:, k, None] * (math.pi * k * f).cos() for k in (1, 2, 3))
    width = MASKED * strength * u[:, 4, None]
    low = (1 + width) * u[:, 5, None] - width
    place = f.sqrt()  # low frequencies tell more
    response = 10 ** (decibel / 20) * ~((place >= low) & (place < low + width))
    taps = torch.fft.irfft(response, TAPS).roll(TAPS // 2, 1)
    size = 2 ** math.ceil(math.log2(x.shape[1] + TAPS))
    y = torch.fft.irfft(torch.fft.rfft(x, size) * torch.fft.rfft(taps, size), size)
    return y[:, TAPS // 2 : TAPS // 2 + x.shape[1]]


def _hashed(t: Tensor, u: Tensor) -> Tensor:
    """Numbers in [0, 1) that look uniform [N, M], of times t [M] and of u [N, 2]: no others are drawn for them."""
    return torch.frac(torch.frac((t + 1) * (0.1 + u[:, :1])) * (1e4 + 1e4 * u[:, 1:]))
