"""Estimators of the gradient of a bound: of the ELBO, E_q[log w], and of the IWAE bound, E_q[log mean w].

    w_i = p(x, z_i) / q(z_i | x),    z_1, ..., z_k ~ q(z | x),    share_i = w_i / (w_1 + ... + w_k)

Each function returns the bound of every row [N] (of a log-derivative, to rounding), whose gradient by autograd is an
estimator of the gradient of its expectation:

    reparameterised   z = g(e; parameters of q): autograd as it stands (Kingma & Welling 2014, eq. 10)
    sticking          without d log q / d(parameters of q), whose expectation is zero (Roeder et al. 2017, eq. 8)
    doubly            the same of the IWAE bound, by a second reparameterisation (Tucker et al. 2019, eq. 7)
    leave_one_out     log-derivative; of each draw the mean of the others is subtracted (Mnih & Rezende 2016,
                      section 2.5; Kool et al. 2019)
    vimco             the same of the IWAE bound (Mnih & Rezende 2016, eq. 10)
    gumbel_softmax    draws of categories replaced by soft ones: biased (Jang et al. 2017; Maddison et al. 2017)

All but the last are unbiased. ``log_w`` [N, k] may weight log q - log p(z) by some ``beta``, as annealing does.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from pofx.core.errors import UsageError

Gradient = Literal["auto", "reparameterised", "sticking", "doubly", "leave-one-out", "vimco", "gumbel-softmax"]
STILL = ("sticking", "doubly")  # hold the parameters of log q fixed
ELBO = {False: ("reparameterised", "sticking"), True: ("leave-one-out", "gumbel-softmax")}  # of categories?
IWAE = {False: ("reparameterised", "doubly"), True: ("vimco",)}


def usual(objective: str, posterior: str) -> Gradient:
    """What "auto" is, by names."""
    if posterior == "categorical":
        return "vimco" if objective == "iwae" else "leave-one-out"
    return "doubly" if objective == "iwae" and posterior == "gaussian" else "reparameterised"


def check(gradient: Gradient, objective: str, posterior: str, draws: int) -> None:
    """Raise UsageError where it is none of that objective, posterior and number of draws."""
    fitting = (IWAE if objective == "iwae" else ELBO)[posterior == "categorical"]
    if gradient not in fitting:
        raise UsageError(
            f"gradient={gradient} is none of objective={objective} with posterior={posterior}.",
            f"Use {' or '.join(fitting)}.",
        )
    if gradient in STILL and posterior != "gaussian":
        raise UsageError(
            f"gradient={gradient} with posterior={posterior}: the density at a draw is asked for once more.",
            "Use posterior=gaussian, or gradient=reparameterised.",
        )
    if gradient == "leave-one-out" and draws < 2:
        raise UsageError(
            f"gradient=leave-one-out of train_draws={draws} leaves no draw.",
            "Give train_draws=2 or more, or gradient=gumbel-softmax.",
        )


def elbo(log_w: Tensor) -> Tensor:
    """Mean [N] of log-weights [N, k]."""
    return log_w.mean(1)


def iwae(log_w: Tensor) -> Tensor:
    """log of the mean weight [N], of log-weights [N, k]."""
    return log_w.logsumexp(1) - math.log(log_w.shape[1])


def doubly(z: Tensor, log_w: Callable[[Tensor], Tensor], beta: float = 1.0) -> Tensor:
    """The IWAE bound [N] at draws z [N, k, L].

    By ``log_w``, in which the parameters of q have no gradient, z gets share_i dlog w_i / dz_i; to this the derivative
    of -beta log q(z_i) adds -beta share_i (1 - share_i) dlog w_i / dz_i. At beta = 1 that is share_i^2 dlog w_i / dz_i.

    Args:
        log_w: log-weights [N, k] of z, by densities q that hold the parameters of q fixed.
    """
    z = z.view_as(z)
    value = log_w(z)
    share = value.detach().softmax(1)
    if z.requires_grad:
        z.register_hook(lambda g: g * (1 - beta * (1 - share))[..., None])
    return iwae(value)


def leave_one_out(f: Tensor, log_q: Tensor) -> Tensor:
    """The mean of f(z_i) [N, k]; what f depends on has its own gradient, log_q [N, k] that of the draws."""
    k = f.shape[1]
    others = (f.sum(1, keepdim=True) - f) / (k - 1)
    return (f + _derivative((f - others).detach(), log_q)).mean(1)


def log_derivative(f: Tensor, log_q: Tensor) -> Tensor:
    """The same without a baseline (Williams 1992)."""
    return (f + _derivative(f.detach(), log_q)).mean(1)


def vimco(log_w: Tensor, log_q: Tensor) -> Tensor:
    """The IWAE bound; each draw is held against the bound with the geometric mean of the others in its place."""
    k = log_w.shape[1]
    w = log_w.detach()
    mean = (w.sum(1, keepdim=True) - w) / (k - 1)
    with_mean = torch.where(torch.eye(k, dtype=torch.bool, device=w.device), mean[..., None], w[:, None])
    signal = iwae(w)[:, None] - (with_mean.logsumexp(2) - math.log(k))
    return iwae(log_w) + _derivative(signal, log_q).sum(1)


def gumbel_softmax(logits: Tensor, gumbel: Tensor, temperature: float) -> Tensor:
    """Soft draws [..., V] of categories; their largest entry is a draw. The gradient is that of the soft ones."""
    return ((logits + gumbel) / temperature).softmax(-1)


def gumbel(e: Tensor) -> Tensor:
    """Standard Gumbel noise from standard normal noise e: both are maps of one uniform number."""
    return -(-torch.special.log_ndtr(e)).log()


def _derivative(signal: Tensor, log_q: Tensor) -> Tensor:
    """Zero, with the gradient of signal * log_q."""
    return signal * (log_q - log_q.detach())
