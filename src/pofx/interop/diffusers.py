"""Folders of the library ``diffusers`` as models of this library, and the other way round; its schedulers as samplers.

    model_index.json  unet/  scheduler/      a pipeline, or the files of both parts side by side:
    config.json, diffusion_pytorch_model.safetensors      a UNet2DModel that is told no class
    scheduler_config.json                                 any scheduler of a chain of betas

Whatever the scheduler, the net has learned to undo one chain, q(z_t | x) = N(sqrt(abar_t) x, 1 - abar_t); what is read
is a ``ddpm`` of that chain with all samplers and likelihoods of this library. Pixels are from -1 to 1, as Ho et al.
2020 have them. Only safetensors are read; diffusers itself is not needed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from pofx.core.errors import CorruptCheckpoint, MissingSource, PofxError, RunExists, Unsupported
from pofx.core.files import write_atomic, write_json
from pofx.core.model import Model
from pofx.families.diffusion import Ddpm, DdpmConfig
from pofx.families.path import PathModel, PredictionName
from pofx.interop.huggingface_tensors import read_json
from pofx.nn.unet import channels_last
from pofx.nn.unet2d import GROUPS, UNet2d, UNet2dOnChain, UNet2dShape
from pofx.paths.predict import PREDICTIONS, Denoise, eps_of, point
from pofx.paths.samplers import Solver
from pofx.paths.schedule import Chain, Schedule
from pofx.spaces import Image
from pofx.train.run import Run

NET, WEIGHTS, SCHEDULER = "config.json", "diffusion_pytorch_model.safetensors", "scheduler_config.json"
PREDICTS: dict[str, PredictionName] = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
DOWN, UP = {"DownBlock2D": False, "AttnDownBlock2D": True}, {"UpBlock2D": False, "AttnUpBlock2D": True}
# what a config may say, of what this net does one way only; and what it means where it says nothing
ONLY: dict[str, Any] = {
    "act_fn": "silu", "center_input_sample": False, "class_embed_type": None, "num_class_embeds": None,
    "downsample_type": "conv", "upsample_type": "conv", "mid_block_scale_factor": 1,
    "time_embedding_type": "positional", "time_embedding_dim": None,
}  # fmt: skip
ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}  # names of older files


def is_diffusers(folder: Path) -> bool:
    """Does the folder hold a pipeline or a model of diffusers?"""
    try:
        return (folder / "model_index.json").is_file() or "_class_name" in json.loads((folder / NET).read_text())
    except (OSError, ValueError, TypeError):
        return False


def read_diffusers(folder: str | Path) -> Run:
    """A folder as a run: a fitted ddpm, with neither data nor a log.

    Raises MissingSource (no config, weights or scheduler), CorruptCheckpoint (damaged, or weights that do not fit the
    config), Unsupported (another class or variant).
    """
    folder = Path(folder)
    unet, scheduler = ((folder / part if (folder / part).is_dir() else folder) for part in ("unet", "scheduler"))
    config, process = read_json(unet / NET), read_json(scheduler / SCHEDULER)
    space = _space(config, unet)
    with _sound(unet / NET):
        shape = shape_of(config, unet)
    with _sound(scheduler / SCHEDULER):
        betas = betas_of(process, scheduler)
        most = float(process.get("clip_sample_range", 1.0)) if process.get("clip_sample", True) else math.inf
    chain = Chain(len(betas), betas)
    told = process.get("prediction_type", "epsilon")
    if told not in PREDICTS:
        raise Unsupported(f"{scheduler} predicts {told!r}.", f"Read one that predicts {', '.join(PREDICTS)}.")
    with torch.device("meta"), _sound(unet / NET):
        net = UNet2d(shape)
    net.load_state_dict(_weights(net, unet), assign=True)
    # the smallest net, in whose place the folder's is put
    options = DdpmConfig(net="unet2d", channels=GROUPS, blocks=1, betas=chain.steps, predict=PREDICTS[told])
    model = Ddpm(options, space)
    model.schedule, model.net = chain, UNet2dOnChain(channels_last(net), chain.step)
    model.centre()
    assert model.span is not None
    model.span.copy_(torch.tensor([[-most], [most]]).expand_as(model.span))
    model.eval()
    return Run(model, {"family": Ddpm.name, "data": {"source": None}}, path=folder)


def write_diffusers(model: Model, folder: str | Path) -> None:
    """Write a path with net=unet2d as a folder that DDPMPipeline reads.

    Raises Unsupported for another model, RunExists where the folder has content, CannotSave.
    """
    folder = Path(folder)
    if not isinstance(model, PathModel) or not isinstance(model.net, UNet2dOnChain):
        raise Unsupported(
            f"This {model.name} has no net that diffusers knows.", "Fit a ddpm to images with --options.net unet2d."
        )
    said = {ours: theirs for theirs, ours in PREDICTS.items()}.get(model.config.predict)
    if said is None or model.span is None:
        raise Unsupported(
            "diffusers knows no net that predicts so, or what a Gaussian leaves over.",
            "Fit with --options.predict eps, x0 or v, and --options.start none.",
        )
    if folder.is_dir() and any(folder.iterdir()):
        raise RunExists(f"{folder} exists and is not empty.", "Choose another folder.")
    chain, shape = model.schedule, model.net.net.shape
    assert isinstance(chain, Chain)
    state = {k: v.detach().cpu().contiguous().clone() for k, v in model.net.net.state_dict().items()}
    write_atomic(folder / "unet" / WEIGHTS, save(state, metadata={"format": "pt"}))
    write_json(folder / "unet" / NET, config_of(shape, model.shape))
    low, high = model.span.tolist()
    clip = max(map(abs, (*low, *high)))
    write_json(folder / "scheduler" / SCHEDULER, {
        "_class_name": "DDPMScheduler", "num_train_timesteps": chain.steps, "beta_schedule": "linear",
        "trained_betas": chain.betas.tolist(), "prediction_type": said, "variance_type": "fixed_small",
        "clip_sample": math.isfinite(clip), "clip_sample_range": clip if math.isfinite(clip) else 1.0,
    })  # fmt: skip
    write_json(folder / "model_index.json", {
        "_class_name": "DDPMPipeline", "scheduler": ["diffusers", "DDPMScheduler"], "unet": ["diffusers", "UNet2DModel"]
    })  # fmt: skip


def diffusers_sampler(scheduler: Any) -> Solver:
    """A scheduler of diffusers as a sampler of this library (paths/samplers.py), in as many steps as it is given times.

    The scheduler chooses the times itself. Raises Unsupported where its chain is not the path's.
    """

    def solve(denoise: Denoise, schedule: Schedule, times: Tensor, z: Tensor, generator: torch.Generator) -> Tensor:
        config = scheduler.config
        kind = PREDICTIONS[PREDICTS[config.prediction_type]]
        _same_chain(schedule, scheduler)
        scheduler.set_timesteps(len(times) - 1)
        z = z * float(scheduler.init_noise_sigma)
        for t in scheduler.timesteps:
            now = (t.double() + 1) / config.num_train_timesteps
            scaled = scheduler.scale_model_input(z, t)  # as the path has it, whatever scale the scheduler works in
            x, p = denoise(scaled, now), point(schedule, now, z)
            out = kind.target(x, eps_of(x, scaled, p), p)
            try:
                z = scheduler.step(out, t, z, generator=generator).prev_sample
            except TypeError:  # one that draws no noise
                z = scheduler.step(out, t, z).prev_sample
        return z

    return solve


def _same_chain(schedule: Schedule, scheduler: Any) -> None:
    if isinstance(schedule, Chain) and schedule.steps == scheduler.config.num_train_timesteps:
        ours, theirs = torch.exp(-schedule.integral[1:]), scheduler.alphas_cumprod.double()
        if torch.allclose(ours, theirs.to(ours), rtol=1e-4):
            return
    raise Unsupported(
        "The scheduler's chain is not the one that the net has learned.",
        "Give it the chain's own betas, those of model.schedule, as its trained betas.",
    )


# -- configs -------------------------------------------------------------------------------------------


def shape_of(config: dict[str, Any], folder: Path) -> UNet2dShape:
    """Sizes and variants of a UNet2DModel. Raises Unsupported for what ``UNet2d`` does not do."""
    for name, only in ONLY.items():
        if (found := config.get(name, only)) != only:
            raise Unsupported(f"{folder}'s net has {name}={found!r}.", f"Read one with {name}={only!r}.")
    kinds = config["down_block_types"], config["up_block_types"]
    middle = config.get("mid_block_type", "UNetMidBlock2D")
    for kind in (*kinds[0], *kinds[1], *([middle] if middle else [])):
        if kind not in {**DOWN, **UP, "UNetMidBlock2D": True}:
            raise Unsupported(f"{folder}'s net has a {kind}.", f"Read one of {', '.join((*DOWN, *UP))} only.")
    if {len(kinds[0]), len(kinds[1])} != {len(config["block_out_channels"])}:
        raise ValueError("as many blocks go down as up, and each has its block_out_channels")
    shift, groups = config.get("resnet_time_scale_shift", "default"), config.get("norm_num_groups", 32)
    if shift not in ("default", "scale_shift"):
        raise Unsupported(f"{folder}'s net has resnet_time_scale_shift={shift!r}.", "Read default or scale_shift.")
    return UNet2dShape(
        channels=config["in_channels"],
        widths=tuple(config["block_out_channels"]),
        layers=config.get("layers_per_block", 2),
        down=tuple(DOWN[kind] for kind in kinds[0]),
        up=tuple(UP[kind] for kind in kinds[1]),
        middle=middle is not None,
        middle_attends=config.get("add_attention", True),
        head=config.get("attention_head_dim", 8) or 0,
        groups=groups,
        middle_groups=config.get("attn_norm_num_groups") or (groups if shift == "default" else 0),
        eps=config.get("norm_eps", 1e-5),
        scale_shift=shift == "scale_shift",
        sides=config.get("downsample_padding", 1),
        freq_shift=config.get("freq_shift", 0),
        flip=config.get("flip_sin_to_cos", True),
    )


def config_of(shape: UNet2dShape, size: tuple[int, ...]) -> dict[str, Any]:
    """The config of a UNet2DModel of this shape, for images (C, H, W); the inverse of ``shape_of``."""
    sides = list(size[1:])
    return {
        "_class_name": "UNet2DModel", "sample_size": sides[0] if sides[0] == sides[1] else sides,
        "in_channels": shape.channels, "out_channels": shape.channels, "block_out_channels": list(shape.widths),
        "layers_per_block": shape.layers, "norm_num_groups": shape.groups, "norm_eps": shape.eps,
        "down_block_types": [name for attends in shape.down for name, has in DOWN.items() if has == attends],
        "up_block_types": [name for attends in shape.up for name, has in UP.items() if has == attends],
        "mid_block_type": "UNetMidBlock2D" if shape.middle else None, "add_attention": shape.middle_attends,
        "attention_head_dim": shape.head or None, "attn_norm_num_groups": shape.middle_groups or None,
        "resnet_time_scale_shift": "scale_shift" if shape.scale_shift else "default",
        "downsample_padding": shape.sides, "freq_shift": shape.freq_shift, "flip_sin_to_cos": shape.flip,
        **ONLY,
    }  # fmt: skip


def betas_of(config: dict[str, Any], folder: Path) -> Tensor:
    """The chain's betas [T], float64, of a scheduler's config. Raises ValueError where they are no variances."""
    betas = _betas(config, folder)
    steps = int(config.get("num_train_timesteps", 1000))
    if betas.shape != (steps,) or not ((betas > 0) & (betas < 1)).all():
        raise ValueError(f"a chain of {steps} steps has a beta between 0 and 1 for each")
    return betas


def _betas(config: dict[str, Any], folder: Path) -> Tensor:
    if config.get("rescale_betas_zero_snr"):
        raise Unsupported(f"{folder}'s chain ends in noise alone (rescale_betas_zero_snr).", "Read one that does not.")
    steps, name = int(config.get("num_train_timesteps", 1000)), config.get("beta_schedule", "linear")
    first, last = float(config.get("beta_start", 1e-4)), float(config.get("beta_end", 0.02))
    if config.get("trained_betas") is not None:
        return torch.tensor(config["trained_betas"], dtype=torch.float64)
    if name == "linear":
        return torch.linspace(first, last, steps, dtype=torch.float64)
    if name == "scaled_linear":
        return torch.linspace(first**0.5, last**0.5, steps, dtype=torch.float64).square()
    if name == "squaredcos_cap_v2":  # Nichol & Dhariwal 2021, eq. 17
        kept = torch.cos((torch.linspace(0, 1, steps + 1, dtype=torch.float64) + 0.008) / 1.008 * math.pi / 2).square()
        return (1 - kept[1:] / kept[:-1]).clamp_max(0.999)
    raise Unsupported(
        f"{folder} has the schedule {name!r} of {config.get('_class_name', 'a scheduler')}.",
        "Read a chain of betas: linear, scaled_linear or squaredcos_cap_v2.",
    )


@contextmanager
def _sound(file: Path) -> Iterator[None]:
    """Raises CorruptCheckpoint where what is done inside finds an entry of the file missing or without sense."""
    try:
        yield
    except PofxError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        what = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise CorruptCheckpoint(f"{file} describes no model: {what}.", "Get it again.") from error


def _space(config: dict[str, Any], folder: Path) -> Image:
    name = config.get("_class_name")
    if name != "UNet2DModel":
        raise Unsupported(f"{folder} holds a {name}, not a UNet2DModel.", "Read an unconditional pixel model.")
    channels, size = config.get("in_channels", 3), config.get("sample_size")
    sides: list[Any] = size if isinstance(size, list) else [size, size]
    if (
        len(sides) != 2
        or not all(isinstance(side, int) and side > 0 for side in sides)
        or channels != config.get("out_channels", channels)
    ):
        raise Unsupported(
            f"{folder}'s net maps {channels} channels to {config.get('out_channels')} at size {size}.",
            "Read one that maps images of a fixed size to images of as many channels.",
        )
    return Image(sides[0], sides[1], channels, 256)


def _weights(net: UNet2d, folder: Path) -> dict[str, Tensor]:
    """The tensors of the folder, float32, by the net's names. Raises MissingSource, CorruptCheckpoint."""
    file = folder / WEIGHTS
    if not file.is_file():
        raise MissingSource(
            f"{folder} has no {WEIGHTS}.", "Write it: UNet2DModel.from_pretrained(old).save_pretrained(new)."
        )
    try:
        found = {_renamed(name): tensor.float() for name, tensor in load_file(file).items()}
    except (SafetensorError, OSError) as error:
        raise CorruptCheckpoint(f"{file} is damaged or cut short: {error}.", "Get it again.") from error
    needed = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in found.items()}
    wrong = sorted(name for name in {**needed, **shapes} if needed.get(name) != shapes.get(name))
    if wrong:
        name = wrong[0]
        raise CorruptCheckpoint(
            f"{name} in {file} has shape {shapes.get(name)}; its config.json says {needed.get(name)}.",
            "Get weights and config.json from the same place.",
        )
    return found


def _renamed(name: str) -> str:
    *path, part, kind = name.split(".")
    return ".".join([*path, ATTENTION.get(part, part), kind])
