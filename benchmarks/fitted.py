"""What the benchmarks of pairs share: runs that are kept, and pictures."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from PIL import Image as Picture
from torch import Tensor

import pofx
from pofx.data.parts import Data


def arguments(text: str | None, seconds: float, source: str = "data") -> argparse.ArgumentParser:
    """A folder to read (named ``source``; none where ""), one to write, and what every one of these scripts takes."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    if source:
        parser.add_argument(source, type=Path)
    parser.add_argument("out", type=Path, help="keeps the runs: a fit that is there is not made again")
    parser.add_argument("--seconds", type=float, default=seconds, help=f"of each fit; {seconds:g} unless said")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="*", metavar="PART", help="some of the parts; results of the others stay")
    parser.add_argument("--quick", action="store_true", help="a few seconds and rows; no result is kept")
    return parser


def parsed(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The arguments, of a quick run with few seconds; the threads are set, the folder is there."""
    args = parser.parse_args()
    args.seconds = min(args.seconds, 3.0) if args.quick else args.seconds
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    return args


def fitted(place: Path, data: Data, family: str, seconds: float, seed: int, **how: Any) -> Any:
    """The run of this folder, which is fitted unless it is there."""
    if (place / "config.json").exists():
        return pofx.read_run(place)
    return pofx.fit(data, family, seconds=seconds, seed=seed, out=place, **how)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def picture(rows: Tensor, path: Path, times: int = 3) -> None:
    """A grid of images uint8 [rows, columns, C, H, W] as a PNG, so many times as large."""
    down, across, channels, height, width = rows.shape
    flat = rows.permute(0, 3, 1, 4, 2).reshape(down * height, across * width, channels)
    image = Picture.fromarray((flat[..., 0] if channels == 1 else flat[..., :3]).contiguous().numpy())
    image.resize((times * image.width, times * image.height), Picture.Resampling.NEAREST).save(path)
