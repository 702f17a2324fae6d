"""``pofx export``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from pofx.commands.shared import Output, err, out, parse, print_json
from pofx.core.errors import UsageError


@dataclass(kw_only=True)
class Export(Output):
    """Write a model for others: a Hugging Face checkpoint, one step as a torch.export program, a diffusers pipeline.

    The first two are of a gpt over texts without context. Hugging Face's architectures have no start of their own for
    each symbol, and none has all of our defaults: fit with --options.no-marginal --options.norm rms --options.mlp
    swiglu (a Qwen3).
    The third is of a ddpm of images that was fitted with --options.net unet2d.
    """

    run: Annotated[Positional[Path], arg(metavar="RUN")]
    """The run folder."""
    folder: Annotated[Positional[Path], arg(metavar="FOLDER")]
    """Where to write; new or empty."""
    format: Literal["huggingface", "torch", "diffusers"] = "huggingface"
    """What to write: for transformers, step.pt2 with static caches, or for diffusers."""
    texts: int | None = None
    """Of a step: how many texts are written at once [default: 1]."""
    length: int | None = None
    """Of a step: the longest text in symbols [default: the model's block]."""


def export(argv: list[str]) -> int:
    args = parse(Export, argv, "export")
    from pofx.commands.model import read_model
    from pofx.interop.diffusers import write_diffusers
    from pofx.interop.export import write_step
    from pofx.interop.model import write_model

    model, note = read_model(args.run).model, None
    if args.format == "torch":
        write_step(model, args.folder, 1 if args.texts is None else args.texts, args.length)
    else:
        for name in ("texts", "length"):
            if getattr(args, name) is not None:
                raise UsageError(f"--{name} is of a step.", "Say --format torch, or leave it out.")
        if args.format == "diffusers":
            write_diffusers(model, args.folder)
        else:
            note = write_model(model, args.folder)
    if args.json:
        print_json({"run": str(args.run), "folder": str(args.folder), "format": args.format, "note": note})
        return 0
    out.print(f"exported for {args.format}: {args.folder}")
    if note:
        err.print(f"· {note}")
    return 0
