"""Options are checked where they are made: no value of any option of any family ends in a traceback or in NaN."""

from __future__ import annotations

import dataclasses
import math
import tempfile
import types
import typing
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Literal, Union

import numpy as np
import pyarrow as pa
import pytest
import torch

import pofx
from pofx.core.errors import Unsupported, UsageError
from pofx.core.family import idle
from pofx.core.learner import Recipe
from pofx.core.likelihood import Unavailable
from pofx.core.model import Model
from pofx.core.options import COUNT, Options, Range, at_least, check
from pofx.core.registry import BUILT_IN, family
from pofx.data.parts import Data, Part
from pofx.evaluate.study import Settings
from pofx.spaces import Audio, Category, Label, Pair, Real, Sequence, Table, Text
from pofx.train.stages import Limit


@cache
def data(kind: str) -> Data:
    rng = np.random.default_rng(0)
    if kind == "table":
        return pofx.load(np.column_stack([rng.normal(size=(60, 2)), rng.integers(0, 9, 60)]))
    if kind == "reals":
        return pofx.load(rng.normal(size=(60, 3)))
    if kind == "sequence":
        columns = {"walk": np.repeat(np.arange(30), 6), "value": rng.normal(size=180)}
        return pofx.load(pa.table(columns), sequence="walk")
    if kind == "image":
        return pofx.load(rng.integers(0, 16, (40, 1, 8, 8)).astype(np.uint8))
    if kind == "pairs":
        return pofx.load("digits", given="label", joint=True, max_rows=60)
    if kind == "binary image":
        return pofx.load(rng.integers(0, 2, (40, 1, 4, 4)).astype(np.uint8))
    if kind in ("label", "given label"):
        x = rng.normal(size=(60, 2))
        columns = {"x0": x[:, 0], "x1": x[:, 1], "y": np.where(x[:, 0] > 0, "a", "b")}
        return pofx.load(
            pa.table(columns), **({"target": "y"} if kind == "label" else {"label": "y", "given": "label"})
        )
    if kind == "text given sounds":
        part = Part(torch.randint(3, (40, 4)), torch.randint(256, (40, 60)))
        return Data(kind, "memory", Text("abc", True, 4), part, part, part, Audio(1000, 256, length=60))
    if kind == "sound":
        with tempfile.TemporaryDirectory() as place:
            samples = (rng.normal(size=1200) * 3000).astype(np.int16)
            np.savez(Path(place) / "s.npz", audio=samples, offsets=np.arange(0, 1201, 40), sample_rate=800)
            return pofx.load(Path(place) / "s.npz", levels=32)
    assert kind == "text"
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "t.txt"
        path.write_text("\n".join(" ".join(rng.choice(["to", "be", "or", "not"], 9)) for _ in range(60)))
        return pofx.load(path, separator="\n", kind="text")


def served(cls: type[Model]) -> tuple[Data, Any]:
    """The first of the data above that the family serves, and its small options there."""
    kinds = ("table", "image", "binary image", "text", "label", "given label", "reals", "sequence", "sound")
    for kind in (*kinds, "text given sounds", "pairs"):
        some = data(kind)
        config = cls.tiny(some.space)
        if cls.refuses(some.space, some.context, config) is None:
            return some, config
    raise AssertionError(f"{cls.name} serves none of them")


def bad(kind: Any) -> Iterator[Any]:
    """Values of an option of this type that somebody might give."""
    kinds = typing.get_args(kind) if typing.get_origin(kind) in (Union, types.UnionType) else (kind,)
    if typing.get_origin(kinds[0]) is Literal:
        yield from ("nonsense", 1)
    elif str in kinds:
        yield 1
    elif typing.get_origin(kinds[0]) is tuple:
        yield from ((0.5,), (-1.0, 0.5), (0.5, math.nan), "ab")
    elif bool in kinds:
        yield from ("yes", 2)
    elif int in kinds:
        yield from (0, -1, 1.5, "3")
    elif float in kinds:
        yield from (-1.0, math.nan, math.inf, -math.inf, "0.1", True)


def options_of(cls: type) -> Iterator[tuple[str, Any]]:
    hints = typing.get_type_hints(cls)
    for f in dataclasses.fields(cls):
        for value in bad(hints[f.name]):
            yield f.name, value


OURS = sorted(BUILT_IN)


@pytest.mark.parametrize("name", OURS)
def test_every_option_is_refused_by_name_or_works(name: str) -> None:
    cls = family(name)
    assert issubclass(cls.Config, Options)
    some, config = served(cls)
    for option, value in options_of(cls.Config):
        try:
            changed = dataclasses.replace(config, **{option: value})
        except UsageError:
            continue
        if cls.refuses(some.space, some.context, changed) is not None:
            continue
        if option in idle(cls, some.space, some.context, changed):
            continue
        run = pofx.fit(some, cls, steps=2, options=vars(changed), checks=1, valid_rows=8)
        part = some.test[:4].read()
        lik = run.model.given(part.c).log_prob(part.x)
        assert isinstance(lik, Unavailable) or lik.nats.isfinite().all(), (option, value)


@pytest.mark.parametrize("cls", [Recipe, Limit, Settings])
def test_requests_are_checked_where_they_are_made(cls: type) -> None:
    fine = {"seconds": 1.0} if cls is Limit else {}
    cls(**fine)
    for option, value in options_of(cls):
        if option in ("warmup", "seed") and value == 0:
            continue
        with pytest.raises(UsageError, match=option):
            cls(**fine | {option: value})


@pytest.mark.parametrize(
    ("cls", "options", "word"),
    [
        (Recipe, {"clip": -1.0}, "above 0"),  # would go up the hill
        (Recipe, {"ema": 1.0}, "below 1"),
        (Recipe, {"schedule": "cosinus"}, "cosine"),
        (Recipe, {"betas": [0.9, 0.99]}, "tuple of 2"),
        (family("nsf").Config, {"bins": 1500}, "at most 500"),  # of width 1e-3 each they would not fit
        (family("vdm").Config, {"sample_steps": 0}, "1 or more"),
        (family("vdm").Config, {"smallest": 3.0, "largest": 2.0}, "Swap"),
        (family("classifier").Config, {"smoothing": 2.0}, "below 1"),
        (family("vae").Config, {"objective": "iwae"}, "2 or more"),
        (family("gan").Config, {"temperature": -0.5}, "above 0"),
        (family("made").Config, {"orders": 2**70}, "at most 1024"),
        (family("made").Config, {"hidden": np.int64(8)}, "whole number"),
    ],
)
def test_what_is_wrong_is_said(cls: Any, options: dict[str, Any], word: str) -> None:
    with pytest.raises(UsageError, match=word):
        cls(**options)


@pytest.mark.parametrize(
    "argument",
    [
        {"checks": 0}, {"patience": 0}, {"valid_rows": 0}, {"save_every": math.nan}, {"processes": 0}, {"seed": 2**64},
        {"target_weight": -1.0}, {"steps": 0}, {"steps": 2.5}, {"epochs": -1}, {"seconds": math.inf},
    ],
)  # fmt: skip
def test_arguments_of_fit_are_checked(argument: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(argument))):
        pofx.fit(data("table"), "independent", **argument)


def test_ranges() -> None:
    assert [v in Range(0, 1, below=True) for v in (-0.1, 0, 0.5, 1, math.nan)] == [False, True, True, False, False]
    assert [v in Range(0, above=True) for v in (0, 1e-300, math.inf)] == [False, True, False]
    assert str(COUNT) == "a finite number, 1 or more"
    assert str(Range(0, 1, above=True)) == "above 0, at most 1"
    with pytest.raises(UsageError, match="it must be a number"):
        check("x", "1", float)
    check("x", None, int | None, at_least(3))


# -- options that a space ignores -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind", "options"),
    [
        ("made", "table", {"head": "logistic"}),
        ("made", "image", {"atoms": 5}),
        ("made", "table", {"order_seed": 3}),
        ("window-mlp", "image", {"window": 3}),
        ("window-mlp", "table", {"radius": 3}),
        ("pixelcnn", "image", {"components": 3}),  # levels are few: each has its own logit
        ("gpt", "text", {"prediction": 3}),
        ("rnn", "text", {"components": 3}),
        ("image-gpt", "image", {"block": 64}),
        ("image-gpt", "image", {"palette": 4, "components": 3}),
        ("maf", "table", {"logit": 0.05}),
        ("maf", "image", {"codes_hidden": 16}),
        ("vdm", "table", {"channels": 16}),
        ("vdm", "image", {"hidden": 16}),
        ("vdm", "table", {"betas": 500}),
        ("ddpm", "table", {"smallest": 0.1}),
        ("vdm", "table", {"decoder": "cells"}),
        ("vae", "table", {"image": "logistic"}),
        ("vae", "image", {"channels": 8}),  # of 8 pixels a side: an MLP
        ("gan", "table", {"modes": 1, "temperature": 0.3}),
        ("gmm", "image", {"smoothing": 2.0}),
        ("gmm", "table", {"per_class": False}),
        ("markov", "table", {"given_bins": 8}),
    ],
)
def test_options_that_change_nothing_are_refused(name: str, kind: str, options: dict[str, Any]) -> None:
    with pytest.raises(Unsupported, match=f"(?s){list(options)[-1]}=.*Leave out .*{list(options)[-1]}"):
        pofx.fit(data(kind), name, steps=1, options=options)


@pytest.mark.parametrize("name", OURS)
def test_small_options_set_none_that_are_idle(name: str) -> None:
    cls = family(name)
    for kind in ("table", "image", "text", "label"):
        some = data(kind)
        config = cls.tiny(some.space)
        if cls.refuses(some.space, some.context, config) is None:
            assert idle(cls, some.space, some.context, config) == []


@pytest.mark.parametrize("name", ["gpt", "joint-gpt"])
@pytest.mark.parametrize(
    "space",
    [
        Audio(1000, 16, "mu", True, 8),
        Audio(1000, 64, "mu", True, 8),
        Sequence(Table((Category("a", ("x", "y")),)), True, 8),
        Sequence(Table((Real("a"),)), True, 8),
        Sequence(Table((Category("a", ("x", "y")), Real("b"))), True, 8),
    ],
    ids=str,
)
def test_an_option_that_sizes_nothing_in_a_step_is_idle(name: str, space: Any) -> None:
    cls = family(name)
    x = Pair(space, Label(("no", "yes"))) if name == "joint-gpt" else space
    tiny = cls.tiny(x)
    for also in ({}, {"prediction": 0}) if hasattr(tiny, "prediction") else ({},):
        for option in ("components", "inner_width"):
            sizes = {cls(dataclasses.replace(tiny, **also, **{option: n}), x).parameter_count() for n in (16, 48)}
            assert (option in {*cls.idle(x, None, dataclasses.replace(tiny, **also))}) == (len(sizes) == 1), (
                option,
                also,
            )
