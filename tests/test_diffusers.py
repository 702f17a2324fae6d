"""Folders of diffusers: read and written with equal outputs; our samplers on its nets, its schedulers on ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pofx.cli import main
from pofx.core.errors import CorruptCheckpoint, MissingSource, RunExists, Unsupported
from pofx.core.likelihood import Estimate, LowerBound
from pofx.core.requests import Ancestral, OdeLikelihood, VariationalBound
from pofx.families.diffusion import Ddpm, DdpmConfig, Vdm
from pofx.interop.diffusers import diffusers_sampler, is_diffusers, read_diffusers, write_diffusers
from pofx.paths.samplers import sample
from pofx.spaces import Image

SPACE = Image(8, 8, 1, 256)


def fitted(space: Image = SPACE, **options: Any) -> Ddpm:
    model = Ddpm(DdpmConfig(net="unet2d", channels=8, blocks=1, **options), space)
    x = torch.randint(space.levels, (20, *space.event_shape), dtype=torch.uint8)
    model.prepare(x, None, None, torch.Generator().manual_seed(0))
    return model.eval()


@pytest.fixture
def theirs() -> Any:
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    diffusers.utils.logging.set_verbosity_error()
    return diffusers


def their_net(theirs: Any, **options: Any) -> Any:
    usual = {
        "sample_size": 8, "in_channels": 1, "out_channels": 1, "layers_per_block": 1, "block_out_channels": (8, 16),
        "norm_num_groups": 4, "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    }  # fmt: skip
    return theirs.UNet2DModel(**{**usual, **options}).eval()


VARIANTS = {
    "attention": {},
    "scale-shift": {"resnet_time_scale_shift": "scale_shift", "downsample_padding": 0, "attention_head_dim": 4},
    "waves": {"flip_sin_to_cos": False, "freq_shift": 1, "layers_per_block": 2, "add_attention": False},
    "colour": {
        "in_channels": 3, "out_channels": 3, "attn_norm_num_groups": 8, "attention_head_dim": None,
        "down_block_types": ("AttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "UpBlock2D"),
    },
}  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_a_folder_is_read_with_equal_outputs(theirs: Any, tmp_path: Path, variant: str) -> None:
    net = their_net(theirs, **VARIANTS[variant])
    scheduler = theirs.DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
    theirs.DDPMPipeline(unet=net, scheduler=scheduler).save_pretrained(tmp_path)
    model: Any = read_diffusers(tmp_path).model
    x, steps = torch.randn(3, *model.shape), torch.tensor([0, 400, 998])
    assert torch.allclose(model.net.net(x, steps), net(x, steps).sample, atol=1e-5, rtol=0)
    # the same through the path: noise levels become steps, predictions denoised images
    t = (steps.double() + 1) / 1000
    alpha, sigma = (v.reshape(-1, 1, 1, 1).float() for v in (
        scheduler.alphas_cumprod[steps].sqrt(), (1 - scheduler.alphas_cumprod[steps]).sqrt()
    ))  # fmt: skip
    expected = alpha * x - sigma * net(x, steps).sample
    assert torch.allclose(model.denoiser(None)(x, t), expected, atol=1e-4, rtol=0)


@torch.no_grad()
def test_what_is_written_is_read_by_diffusers_and_by_us(theirs: Any, tmp_path: Path) -> None:
    model = fitted(Image(8, 12, 3, 256), attend=1, predict="x0", betas=500)
    write_diffusers(model, tmp_path / "new")
    pipeline = theirs.DDPMPipeline.from_pretrained(tmp_path / "new")
    x, step, net = torch.randn(2, 3, 8, 12), torch.tensor([3, 499]), model.net
    assert torch.allclose(pipeline.unet(x, step).sample, net.net(x, step), atol=1e-5, rtol=0)  # type: ignore[union-attr, operator]
    assert pipeline.scheduler.config.prediction_type == "sample"
    schedule: Any = model.schedule
    assert torch.allclose(pipeline.scheduler.alphas_cumprod.double().log(), -schedule.integral[1:], atol=1e-4)
    again: Any = read_diffusers(tmp_path / "new").model
    assert torch.equal(again.schedule.betas, schedule.betas)
    assert torch.allclose(again.net.net(x, step), net.net(x, step), atol=1e-5)  # type: ignore[union-attr, operator]
    assert all(map(torch.equal, again.net.net.parameters(), net.net.parameters()))
    pictures = pipeline(batch_size=1, num_inference_steps=3, output_type="np").images
    assert pictures.shape == (1, 8, 12, 3)


@torch.no_grad()
def test_a_folder_read_is_a_model(tmp_path: Path) -> None:
    """All samplers and likelihoods of a path are there, pixels from -1 to 1."""
    write_diffusers(fitted(), tmp_path)
    assert is_diffusers(tmp_path)
    run = read_diffusers(tmp_path)
    model: Any = run.model
    assert model.split(torch.tensor([0, 255]).repeat(32).view(1, 1, 8, 8)).y.unique().tolist() == [-1.0, 1.0]
    x = model.sample(2, sampler=Ancestral(steps=4))
    assert x.dtype == torch.uint8
    assert isinstance(model.log_prob(x, request=VariationalBound(draws=2)), LowerBound)
    assert isinstance(model.log_prob(x, request=OdeLikelihood(steps=1, probes=1, draws=2)), Estimate)


# -- schedulers ---------------------------------------------------------------------------------------


def trajectory(model: Any, name: str, times: Tensor, z: Tensor, seed: int) -> Tensor:
    return sample(name, model.denoiser(None), model.schedule, times, z, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("kind", "ours", "options"),
    [
        ("DDIMScheduler", "ddim", {"clip_sample": False}),
        ("DDPMScheduler", "ancestral", {"clip_sample": False}),
        ("DPMSolverMultistepScheduler", "dpm++", {"final_sigmas_type": "zero"}),
        ("EulerDiscreteScheduler", None, {}),
    ],
)
@torch.no_grad()
def test_their_schedulers_sample_as_ours_do(theirs: Any, kind: str, ours: str | None, options: Any) -> None:
    """On one net, from one noise, at the scheduler's own times: the same images."""
    model = fitted()
    schedule: Any = model.schedule
    scheduler = getattr(theirs, kind)(trained_betas=schedule.betas.tolist(), **options)
    steps = 6
    scheduler.set_timesteps(steps)
    times = torch.cat([(scheduler.timesteps.double() + 1) / 1000, torch.zeros(1, dtype=torch.float64)])
    z = torch.randn(2, 1, 8, 8)
    solve = diffusers_sampler(scheduler)
    made = solve(model.denoiser(None), schedule, times, z, torch.Generator().manual_seed(7))
    assert made.isfinite().all()
    if ours is not None:
        expected = trajectory(model, ours, times, z, 7)
        assert torch.allclose(made, expected, atol=1e-3 * float(expected.abs().max()), rtol=0)


def test_a_scheduler_of_another_chain_is_refused(theirs: Any) -> None:
    model = fitted()
    solve = diffusers_sampler(theirs.DDIMScheduler(beta_end=0.03))
    with pytest.raises(Unsupported, match="not the one that the net has learned"):
        solve(model.denoiser(None), model.schedule, torch.ones(3), torch.zeros(1, 1, 8, 8), torch.Generator())


# -- what cannot work ----------------------------------------------------------------------------------


def edited(folder: Path, file: str, **said: Any) -> Path:
    content = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({**content, **said}))
    return folder


@pytest.mark.parametrize(
    ("file", "said", "message"),
    [
        ("unet/config.json", {"_class_name": "UNet2DConditionModel"}, "a UNet2DConditionModel, not a UNet2DModel"),
        ("unet/config.json", {"act_fn": "mish"}, "act_fn='mish'"),
        ("unet/config.json", {"num_class_embeds": 10}, "num_class_embeds=10"),
        ("unet/config.json", {"down_block_types": ["SkipDownBlock2D"]}, "has a SkipDownBlock2D"),
        ("unet/config.json", {"out_channels": 2}, "1 channels to 2"),
        ("scheduler/scheduler_config.json", {"prediction_type": "flow"}, "predicts 'flow'"),
        ("scheduler/scheduler_config.json", {"trained_betas": None, "beta_schedule": "sigmoid"}, "schedule 'sigmoid'"),
        ("scheduler/scheduler_config.json", {"rescale_betas_zero_snr": True}, "ends in noise alone"),
    ],
)
def test_a_folder_of_another_kind_is_refused_by_name(tmp_path: Path, file: str, said: Any, message: str) -> None:
    write_diffusers(fitted(), tmp_path)
    with pytest.raises(Unsupported, match=message):
        read_diffusers(edited(tmp_path, file, **said))


def test_damaged_and_missing_files_are_named(tmp_path: Path) -> None:
    write_diffusers(fitted(), tmp_path / "a")
    with pytest.raises(RunExists, match="not empty"):
        write_diffusers(fitted(), tmp_path / "a")
    weights = tmp_path / "a" / "unet" / "diffusion_pytorch_model.safetensors"
    with pytest.raises(CorruptCheckpoint, match="its config.json says"):
        read_diffusers(edited(tmp_path / "a", "unet/config.json", layers_per_block=2))
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(CorruptCheckpoint, match="damaged"):
        read_diffusers(edited(tmp_path / "a", "unet/config.json", layers_per_block=1))
    weights.unlink()
    with pytest.raises(MissingSource, match="has no diffusion_pytorch_model.safetensors"):
        read_diffusers(tmp_path / "a")


@pytest.mark.parametrize(
    ("file", "said", "message"),
    [
        ("unet/config.json", {"block_out_channels": [7]}, "must be divisible"),
        ("unet/config.json", {"up_block_types": []}, "as many blocks go down as up"),
        ("unet/config.json", {"layers_per_block": "two"}, "config.json describes no model"),
        ("scheduler/scheduler_config.json", {"trained_betas": [0.1, 0.2]}, "1000 steps has a beta between 0 and 1"),
        ("scheduler/scheduler_config.json", {"trained_betas": None, "beta_start": -1}, "a beta between 0 and 1"),
        ("scheduler/scheduler_config.json", {"clip_sample": True, "clip_sample_range": None}, "describes no model"),
    ],
)
def test_a_config_without_sense_is_damaged(tmp_path: Path, file: str, said: Any, message: str) -> None:
    write_diffusers(fitted(), tmp_path)
    with pytest.raises(CorruptCheckpoint, match=message):
        read_diffusers(edited(tmp_path, file, **said))


def test_a_config_that_lacks_an_entry_says_which(tmp_path: Path) -> None:
    write_diffusers(fitted(), tmp_path)
    file = tmp_path / "unet" / "config.json"
    file.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k != "down_block_types"}))
    with pytest.raises(CorruptCheckpoint, match="config.json describes no model: it has no 'down_block_types'"):
        read_diffusers(tmp_path)


def test_models_that_diffusers_cannot_hold_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="no net that diffusers knows"):
        write_diffusers(Vdm(Vdm.tiny(SPACE), SPACE), tmp_path / "a")
    with pytest.raises(Unsupported, match="Fit with --options.predict eps"):
        write_diffusers(fitted(predict="score"), tmp_path / "a")
    refused = {
        "schedule=ddpm": {"schedule": "cosine"},
        "multiple of 8": {"channels": 12},
        "Leave logit": {"logit": 0.1},
    }
    for message, options in refused.items():
        with pytest.raises(Unsupported, match=message):
            Ddpm(DdpmConfig(**{"net": "unet2d", **options}), SPACE)


def test_old_folders_lie_flat_and_name_attention_otherwise(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model: Any = fitted(attend=1)
    write_diffusers(model, tmp_path / "a")
    flat = tmp_path / "flat"
    flat.mkdir()
    name = "diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = load_file(tmp_path / "a" / "unet" / name)
    for new, before in old.items():
        state = {k.replace(f".{new}.", f".{before}."): v for k, v in state.items()}
    save_file(state, flat / name)
    for part, file in (("unet", "config.json"), ("scheduler", "scheduler_config.json")):
        (flat / file).write_text((tmp_path / "a" / part / file).read_text())
    assert is_diffusers(flat)
    again: Any = read_diffusers(flat).model
    x = torch.randn(1, 1, 8, 8)
    assert torch.allclose(again.net.net(x, torch.tensor([5])), model.net.net(x, torch.tensor([5])), atol=1e-5)
    assert all(map(torch.equal, again.net.net.parameters(), model.net.net.parameters()))


def test_the_command_line_reads_and_writes_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_diffusers(fitted(), tmp_path / "a")
    assert main(["export", str(tmp_path / "a"), str(tmp_path / "b"), "--format", "diffusers"]) == 0
    assert "exported for diffusers" in capsys.readouterr().out
    assert is_diffusers(tmp_path / "b")
    assert main(["sample", str(tmp_path / "b"), "2", "--out", str(tmp_path / "x"), "--steps", "3"]) == 0
