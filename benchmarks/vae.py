"""Speed of VAE training on 28x28: the training loop against a hand-written one, and both against pythae.

    python benchmarks/vae.py [--quick] [--threads N]

One MLP VAE (784-512-16, batch 100, Adam) on 10000 random binary images.

    step   one training step: our learner, a hand-written torch model, pythae's model; ELBO and IWAE-10, and the ELBO
           with pythae's convolutional nets of MNIST in both of ours
    train  whole epochs: ``pofx.fit``, a hand-written loop around the same model and objective ("bare loop"),
           a hand-written model and loop, pythae's trainer

Rounds interleave, so that a slow moment of the machine hits all alike; figures are medians, ``iqr`` is the
interquartile range over the median, and a ratio is the median of the ratios within a round. Steps alternate one by one:
``ratio_of_best`` is that of the shortest of each, which a busy machine moves least. Prints one JSON object a line and
writes all to benchmarks/results/vae.json.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import math
import os
import statistics
import tempfile
import warnings
from collections.abc import Callable
from itertools import pairwise

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--quick", action="store_true", help="three rounds of one epoch, results not kept")
parser.add_argument("--threads", type=int, default=2)
ARGS = parser.parse_args()
ROUNDS, EPOCHS, STEPS = (3, 1, 4) if ARGS.quick else (9, 2, 300)
os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(ARGS.threads)

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pofx.core.learner import Batch, Recipe
from pofx.data.parts import Data, Part
from pofx.families.vae import Vae, VaeConfig
from pofx.spaces import Image
from pofx.train.fit import fit
from timing import Results, middle, race

warnings.filterwarnings("ignore")
logging.disable(logging.CRITICAL)
torch.set_num_threads(ARGS.threads)

LATENT, HIDDEN, BATCH, ROWS, DRAWS = 16, 512, 100, 10_000, 10
SPACE = Image(28, 28, 1, 2)
OPTIONS = {"latent": LATENT, "net": "mlp", "hidden": HIDDEN, "blocks": 0, "warmup": 0.0}
RECIPE = {"batch": BATCH, "lr": 1e-3, "schedule": "constant", "warmup": 0, "clip": None, "ema": None}
X = (torch.rand(ROWS, 1, 28, 28, generator=torch.Generator().manual_seed(0)) > 0.8).to(torch.uint8)


class HandWritten(nn.Module):
    """The same net and bound as a user would write them for this one case."""

    def __init__(self, draws: int) -> None:
        super().__init__()
        self.draws = draws
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(784, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 2 * LATENT))
        self.decoder = nn.Sequential(nn.Linear(LATENT, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 784))

    def loss(self, x: Tensor) -> Tensor:
        mean, log_var = self.encoder(x).chunk(2, 1)
        eps = torch.randn(self.draws, *mean.shape)
        z = mean + eps * (0.5 * log_var).exp()
        logit, x = self.decoder(z.flatten(0, 1)).view(self.draws, len(x), 784), x.flatten(1)
        if self.draws == 1:
            bce = F.binary_cross_entropy_with_logits(logit[0], x, reduction="sum")
            return (bce - 0.5 * (1 + log_var - mean.square() - log_var.exp()).sum()) / len(x)
        log_p = torch.einsum("kbi,bi->kb", logit, x) - F.softplus(logit).sum(2)
        log_w = log_p - 0.5 * z.square().sum(2) + 0.5 * (log_var + eps.square()).sum(2)
        return (math.log(self.draws) - log_w.logsumexp(0)).mean()


class PeerEncoder(nn.Module):
    """The layers of pythae's Encoder_Conv_VAE_MNIST."""

    def __init__(self) -> None:
        super().__init__()
        widths = [1, 128, 256, 512, 1024]
        layers = [(nn.Conv2d(a, b, 4, 2, 1), nn.BatchNorm2d(b), nn.ReLU()) for a, b in pairwise(widths)]
        self.layers = nn.Sequential(*(layer for block in layers for layer in block), nn.Flatten())
        self.last = nn.Linear(1024, 2 * LATENT)

    def forward(self, y: Tensor, h: Tensor | None = None) -> Tensor:
        return self.last(self.layers(y.contiguous(memory_format=torch.channels_last)))


class PeerDecoder(nn.Module):
    """The layers of pythae's Decoder_Conv_AE_MNIST, to logits."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(LATENT, 1024 * 16), nn.Unflatten(1, (1024, 4, 4)))
        self.layers = nn.Sequential(
            nn.ConvTranspose2d(1024, 512, 3, 2, padding=1), nn.BatchNorm2d(512), nn.ReLU(),
            nn.ConvTranspose2d(512, 256, 3, 2, padding=1, output_padding=1), nn.BatchNorm2d(256), nn.ReLU(),
            nn.ConvTranspose2d(256, 1, 3, 2, padding=1, output_padding=1),
        )  # fmt: skip

    def forward(self, z: Tensor) -> Tensor:
        return self.layers(self.first(z).contiguous(memory_format=torch.channels_last))


def ours(draws: int) -> Vae:
    objective = "elbo" if draws == 1 else "iwae"
    model = Vae(VaeConfig(**OPTIONS, objective=objective, train_draws=draws), SPACE)  # type: ignore[arg-type]
    model.prepare(X, None, None, torch.Generator())
    return model


def ours_conv() -> Vae:
    model = Vae(VaeConfig(**{**OPTIONS, "net": "conv"}), SPACE)  # type: ignore[arg-type]
    model.encoder, model.decoder = PeerEncoder(), PeerDecoder()
    model.prepare(X, None, None, torch.Generator())
    return model.train()


def pythae_conv() -> nn.Module:
    from pythae.models import VAE, VAEConfig
    from pythae.models.nn.benchmarks.mnist import Decoder_Conv_AE_MNIST, Encoder_Conv_VAE_MNIST

    size = VAEConfig(input_dim=(1, 28, 28), latent_dim=LATENT, reconstruction_loss="bce")
    return VAE(size, encoder=Encoder_Conv_VAE_MNIST(size), decoder=Decoder_Conv_AE_MNIST(size))


def pythae(draws: int) -> nn.Module:
    from pythae.models import IWAE, VAE, IWAEConfig, VAEConfig

    size = {"input_dim": (1, 28, 28), "latent_dim": LATENT, "reconstruction_loss": "bce"}
    return VAE(VAEConfig(**size)) if draws == 1 else IWAE(IWAEConfig(number_samples=draws, **size))


# -- one step -------------------------------------------------------------------------------------------------------


def step_of_ours(model: Vae) -> Callable[[], object]:
    learner, noise = model.learner(Recipe(**RECIPE)), torch.Generator().manual_seed(0)  # type: ignore[arg-type]
    batch = Batch(X[:BATCH], total=BATCH, progress=0.5)
    return lambda: learner.step(batch, noise)


def step_of(loss: Callable[[], Tensor], model: nn.Module) -> Callable[[], None]:
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss().backward()
        optimizer.step()

    return step


def steps(draws: int) -> dict[str, Callable[[], object]]:
    x, mine, theirs = X[:BATCH].float(), HandWritten(draws), pythae(draws)
    return {
        "pofx": step_of_ours(ours(draws)),
        "hand-written": step_of(lambda: mine.loss(x), mine),
        "pythae": step_of(lambda: theirs({"data": x}).loss, theirs),
    }


def conv_steps() -> dict[str, Callable[[], object]]:
    x, theirs = X[:BATCH].float(), pythae_conv()
    return {
        "pofx": step_of_ours(ours_conv()),
        "pythae": step_of(lambda: theirs({"data": x}).loss, theirs),
    }


# -- whole epochs ---------------------------------------------------------------------------------------------------


def train_by_fit() -> None:
    none = Part(X[:0])
    fit(Data("random", "", SPACE, Part(X), none, none), "vae", epochs=EPOCHS, options=OPTIONS, recipe=RECIPE)


def train_bare() -> None:
    """What ``fit`` does, less all it owes: schedule, guard, gradient norm, logging, validation, reproducibility."""
    model, noise = ours(1), torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, fused=True)
    for _ in range(EPOCHS):
        for index in torch.randperm(ROWS).split(BATCH):
            optimizer.zero_grad(set_to_none=True)
            batch = Batch(X[index], total=BATCH, progress=0.5)
            model.objective(batch, noise)["loss"].mean().backward()
            optimizer.step()


def train_hand_written() -> None:
    model, x = HandWritten(1), X.float()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, foreach=True)
    for _ in range(EPOCHS):
        for index in torch.randperm(ROWS).split(BATCH):
            optimizer.zero_grad(set_to_none=True)
            model.loss(x[index]).backward()
            optimizer.step()


def train_pythae() -> None:
    from pythae.data.datasets import BaseDataset
    from pythae.trainers import BaseTrainer, BaseTrainerConfig

    quiet = io.StringIO()
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.redirect_stdout(quiet),
        contextlib.redirect_stderr(quiet),
    ):
        config = BaseTrainerConfig(
            output_dir=folder,
            num_epochs=EPOCHS,
            learning_rate=1e-3,
            per_device_train_batch_size=BATCH,
            no_cuda=True,
        )
        BaseTrainer(pythae(1), BaseDataset(X.float(), torch.ones(ROWS)), training_config=config).train()


# -- rounds ---------------------------------------------------------------------------------------------------------


def compare(
    results: Results, what: str, images: int, contestants: dict[str, Callable[[], object]], *peers: str, rounds: int
) -> None:
    """Race all contestants, and set our speed against that of each of the ``peers``."""
    times = race(contestants, rounds)
    for name, seconds in times.items():
        median, iqr = middle(seconds)
        results.emit(what=what, who=name, images_per_s=images / median, iqr=iqr, rounds=rounds)
    for peer in peers:
        ratios = [b / a for a, b in zip(times["pofx"], times[peer], strict=True)]
        low, mid, high = statistics.quantiles(ratios, n=4)
        best = min(times[peer]) / min(times["pofx"])
        results.emit(
            what=what, speed_over=peer, ratio=mid, low_quartile=low, high_quartile=high, ratio_of_best=best
        )  # fmt: skip


def main() -> None:
    results = Results(ARGS.quick, torch=torch.__version__, threads=ARGS.threads, batch=BATCH)
    for draws in (1, DRAWS):
        name = "step, ELBO" if draws == 1 else f"step, IWAE-{draws}"
        rounds = STEPS if draws == 1 else -(-STEPS // 4)
        compare(results, name, BATCH, steps(draws), "hand-written", "pythae", rounds=rounds)
    compare(results, "step, ELBO, conv", BATCH, conv_steps(), "pythae", rounds=-(-STEPS // 4))
    compare(
        results, f"train, {EPOCHS} epochs", EPOCHS * ROWS,
        {"pofx": train_by_fit, "bare loop": train_bare, "hand-written": train_hand_written, "pythae": train_pythae},
        "bare loop", "hand-written", "pythae", rounds=ROUNDS,
    )  # fmt: skip
    results.save()


if __name__ == "__main__":
    main()
