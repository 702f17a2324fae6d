"""Bias and variance of the gradient estimators of a VAE, against the exact gradient.

    python benchmarks/gradients.py [--quick]

A posterior of categories (four latents of two values, or two of four) and one Gaussian latent, each with a fixed joint
density of random numbers. The exact gradient of the ELBO and of the IWAE bound of k draws in the posterior's parameters
is a sum over all states of all draws, or a quadrature over the noise of two draws. Of each estimator: the worst bias
over the parameters in standard errors of its mean over so many gradients, and the sum of the variances of one
gradient's entries. Prints a JSON object a line and writes benchmarks/results/gradients.json.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from pofx.families.gradients import doubly, elbo, gumbel, gumbel_softmax, iwae, leave_one_out, log_derivative, vimco
from pofx.families.latent import GaussianProposal
from pofx.families.posteriors import CategoryProposal, Gaussian
from timing import Results

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--quick", action="store_true", help="few gradients, results not kept")
ARGS = parser.parse_args()
ROWS = 20_000 if ARGS.quick else 400_000
BLOCK = 20_000
OFFSET = -90.0  # about where log p(x, z) of an image of 784 bits is


def told(results: Results, what: dict[str, object], gradient: Callable[[int, torch.Generator], Tensor], truth: Tensor):
    """Bias and variance of gradients [N, P], block by block."""
    generator, n = torch.Generator().manual_seed(0), 0
    total, square = torch.zeros_like(truth).double(), torch.zeros_like(truth).double()
    while n < ROWS:
        g = gradient(BLOCK, generator).double()
        n, total, square = n + len(g), total + g.sum(0), square + (g - truth).square().sum(0)
    mean = total / n
    variance = square / n - (mean - truth).square()
    z = (mean - truth).abs() / (variance / n).sqrt()
    bias = float((mean - truth).norm() / truth.norm())
    results.emit(
        **what, bias_in_errors=float(z.max()), bias_over_norm=bias, variance=float(variance.sum()), gradients=n
    )


def per_row(bound: Callable[[Tensor], Tensor], parameters: Tensor, n: int) -> Tensor:
    rows = parameters.expand(n, *parameters.shape).clone().requires_grad_()
    (found,) = torch.autograd.grad(bound(rows).sum(), rows)
    return found.flatten(1)


def categories(results: Results, latent: int, values: int, k: int) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(latent, values, generator=generator)
    states = torch.tensor(list(itertools.product(range(values), repeat=latent)))
    z = torch.nn.functional.one_hot(states, values).flatten(1).float()
    # a joint density of soft vectors, too: a small random net
    first, last = torch.randn(latent * values, 16, generator=generator), torch.randn(16, generator=generator)

    def log_joint(z: Tensor) -> Tensor:
        return OFFSET + (z @ first).tanh() @ last

    def exact(of: Callable[[Tensor], Tensor], draws: int) -> Tensor:
        own = logits.double().requires_grad_()
        q = (z.double() @ own.log_softmax(1).flatten())[:, None]
        tuples = torch.tensor(list(itertools.product(range(len(z)), repeat=draws)))
        log_w = log_joint(z).double() - q[:, 0]
        value = (q[:, 0][tuples].sum(1).exp() * of(log_w[tuples])).sum()
        (found,) = torch.autograd.grad(value, own)
        return found.flatten()

    def sampled(estimator: Callable[[Tensor, Tensor], Tensor]) -> Callable[[int, torch.Generator], Tensor]:
        def gradient(n: int, generator: torch.Generator) -> Tensor:
            def bound(rows: Tensor) -> Tensor:
                drawn, log_q = CategoryProposal(rows.log_softmax(2))(
                    torch.randn(n, k, latent * values, generator=generator)
                )
                return estimator(log_joint(drawn) - log_q, log_q)

            return per_row(bound, logits, n)

        return gradient

    def soft(temperature: float) -> Callable[[int, torch.Generator], Tensor]:
        def gradient(n: int, generator: torch.Generator) -> Tensor:
            e = torch.randn(n, k, latent, values, generator=generator)

            def bound(rows: Tensor) -> Tensor:
                log_p = rows.log_softmax(2)
                relaxed = gumbel_softmax(log_p[:, None], gumbel(e), temperature).flatten(2)
                return log_joint(relaxed).mean(1) - (log_p.exp() * log_p).sum((1, 2))

            return per_row(bound, logits, n)

        return gradient

    of_elbo, of_iwae = exact(elbo, 1), exact(iwae, k)
    about = {"latents": f"{latent} of {values} values", "draws": k}
    told(results, {**about, "bound": "ELBO", "estimator": "log-derivative"}, sampled(log_derivative), of_elbo)
    told(results, {**about, "bound": "ELBO", "estimator": "leave-one-out"}, sampled(leave_one_out), of_elbo)
    for temperature in (1.0, 0.5, 0.1):
        what = {**about, "bound": "ELBO", "estimator": f"gumbel-softmax at {temperature}"}
        told(results, what, soft(temperature), of_elbo)
    told(results, {**about, "bound": "IWAE", "estimator": "vimco"}, sampled(vimco), of_iwae)


def gaussian(results: Results) -> None:
    parameters = torch.tensor([0.5, -0.3])  # mean and log-scale

    def log_joint(z: Tensor) -> Tensor:
        return OFFSET - 0.5 * (z + 0.3 * z**2 - 1).square() - 0.5 * z**2

    def exact(of: Callable[[Tensor], Tensor]) -> Tensor:
        own = parameters.double().requires_grad_()
        axis = torch.linspace(-8, 8, 641, dtype=torch.float64)
        e = torch.cartesian_prod(axis, axis)
        drawn, log_q = GaussianProposal(own[None, :1], own[None, 1:])(e.reshape(1, -1, 1))
        log_w = (log_joint(drawn[..., 0]) - log_q).view(-1, 2)
        density = (-0.5 * e.square().sum(1)).exp()
        (found,) = torch.autograd.grad((density * of(log_w)).sum() / density.sum(), own)
        return found

    posterior = Gaussian(1)

    def sampled(name: str) -> Callable[[int, torch.Generator], Tensor]:
        def gradient(n: int, generator: torch.Generator) -> Tensor:
            e = torch.randn(n, 2, 1, generator=generator)

            def bound(rows: Tensor) -> Tensor:
                q = GaussianProposal(rows[:, :1], rows[:, 1:])
                drawn, log_q = q(e)

                def still(z: Tensor) -> Tensor:
                    return log_joint(z[..., 0]) - posterior.still(q, z)

                if name == "doubly":
                    return doubly(drawn, still)
                if name == "sticking":
                    return elbo(still(drawn))
                return (iwae if "IWAE" in name else elbo)(log_joint(drawn[..., 0]) - log_q)

            return per_row(bound, parameters, n)

        return gradient

    about = {"latents": "1 Gaussian", "draws": 2}
    for bound, name in (
        ("ELBO", "reparameterised"), ("ELBO", "sticking"), ("IWAE", "reparameterised, IWAE"), ("IWAE", "doubly"),
    ):  # fmt: skip
        truth = exact(iwae if bound == "IWAE" else elbo)
        told(results, {**about, "bound": bound, "estimator": name.split(",")[0]}, sampled(name), truth)


def main() -> None:
    results = Results(ARGS.quick, torch=torch.__version__)
    categories(results, latent=4, values=2, k=3)
    categories(results, latent=2, values=4, k=3)
    gaussian(results)
    results.save()


if __name__ == "__main__":
    main()
