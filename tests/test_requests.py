"""Requests: every family answers each as it promises, fields are checked where they are made, no flag is ignored."""

from __future__ import annotations

import dataclasses
import math
import re
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

import pofx
from pofx.commands.arguments import parse
from pofx.commands.log_prob import LogProb
from pofx.commands.requests import Estimating, Sampling, request_of, sampler_of
from pofx.commands.sample import Sample
from pofx.core import requests
from pofx.core.errors import UsageError
from pofx.core.likelihood import KINDS, Unavailable
from pofx.core.model import Model
from pofx.core.options import Options
from pofx.core.registry import BUILT_IN, family
from pofx.core.requests import ESTIMATORS, SAMPLERS, Request, Sampler
from pofx.data.parts import Data, Part
from pofx.spaces import Audio, Image, Integer, Label, Pair, Real, Sequence, Table, Text

LINES = ["to be or not", "be it so", "so it be not to be", "or to be"] * 8


def cases() -> dict[str, tuple[Any, torch.Tensor, torch.Tensor | None]]:
    """Small data of spaces that differ in what a likelihood over them is."""
    g = torch.Generator().manual_seed(0)
    real, whole = torch.randn(32, 2, generator=g).double(), torch.randint(9, (32, 2), generator=g).double()
    text, side = Text("beinorst ", True, 20), torch.randint(2, (32,), generator=g)
    plane = Table((Real("a"), Real("b")))
    small = torch.randint(4, (32, 1, 2, 2), generator=g).to(torch.uint8)
    return {
        "reals": (plane, real, None),
        "integers": (Table((Integer("a", 0, 8), Integer("b", 0, 8))), whole, None),
        "image": (Image(4, 4, 1, 4), torch.randint(4, (32, 1, 4, 4), generator=g).to(torch.uint8), None),
        "text": (text, text.parse(LINES), None),
        "subwords": (Text("", True, 20), Text("", True, 20).parse(LINES), None),
        "label": (Label(("x", "y")), side, real),
        "given labels": (plane, real, side),
        "images given labels": (Image(2, 2, 1, 4), small, side),
        "rows": (Sequence(plane, length=4), torch.randn(32, 4, 2, generator=g).double(), None),
        "texts given sounds": (text, text.parse(LINES), torch.randint(256, (32, 40), generator=g)),
        "sounds": (Audio(100, 8, length=12), torch.randint(8, (32, 12), generator=g), None),
        "pairs": (pair := Pair(Label(("x", "y")), Image(2, 2, 1, 4)), levels := pair.join(side, small), None),
        "pairs by diffusion": (pair, levels, None),
        "bits": (Image(2, 2, 1, 2), torch.randint(2, (32, 1, 2, 2), generator=g).to(torch.uint8), None),
    }


FEW = {
    "given labels": ("jem",),
    "images given labels": ("jem",),
    "bits": ("rbm",),
    "rows": ("rssm",),
    "texts given sounds": ("ctc",),
    "sounds": ("mel-vocoder",),
}  # cases that only these families need


@cache
def models(name: str) -> dict[str, tuple[Model, Part]]:
    """A family after hardly any training on each of the data that it serves."""
    cls, found = family(name), {}
    for case, (space, x, c) in cases().items():
        config = cls.tiny(space)
        if name not in FEW.get(case, (name,)):
            continue
        if case == "subwords":
            if not hasattr(config, "vocabulary"):
                continue
            config = dataclasses.replace(config, vocabulary=264)
        if case == "pairs by diffusion" and hasattr(config, "image_head"):
            config = dataclasses.replace(config, image_head="diffusion")
        context = None if c is None else cases()["reals" if c.is_floating_point() else "label"][0]
        context = Audio(1000, 256, length=40) if case == "texts given sounds" else context
        if cls.refuses(space, context, config) is None:
            part = Part(x, c)
            data = Data(case, "memory", space, part, part, part, context=context)
            steps = (
                60 if name in ("ddpm", "ncsn", "score-sde", "edm") and case != "image" else 2
            )  # what predicts the noise alone has to know of it first
            run = pofx.fit(
                data, cls, steps=steps, checks=1, valid_rows=4, options=vars(config), recipe={"batch": len(part)}
            )
            found[case] = (run.model, part[:3].read())
    return found


def every(kinds: tuple[type, ...]) -> list[Any]:
    return [pytest.param(kind, id=kind.__name__) for kind in kinds]


# -- what is promised --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BUILT_IN)
def test_each_request_gets_the_kind_that_it_promises(name: str) -> None:
    """Over every space, and over all of them no more kinds are claimed than are met."""
    met = set()
    for case, (model, part) in models(name).items():
        given, own = model.given(part.c), model.own_estimators
        assert type(model.default_request()) is own[0], "the first is the default"
        assert type(model.quick_request()) in own
        for kind in model.estimators:
            if kind not in own:
                with pytest.raises(UsageError, match=f"does not answer {kind.__name__}, but {own[0].__name__}"):
                    given.log_prob(part.x, request=kind)
                continue
            short = {"draws": 2, "steps": 2, "temperatures": 3, "chains": 2, "warmup": 4, "fits": 2}
            few = {k: v for k, v in short.items() if getattr(model.default_request(kind), k, None)}
            lik = given.log_prob(part.x, request=dataclasses.replace(model.default_request(kind), **few))
            if not (kind.may_lack and isinstance(lik, Unavailable)):
                assert type(lik).__name__ == kind.kind, (case, kind)
            met.add(KINDS[kind.kind])
        one = given.log_prob(part.x)
        assert type(one).__name__ == own[0].kind
        assert isinstance(one, Unavailable) or len(one.nats) == 3
    assert met == family(name).claims()


@pytest.mark.parametrize("name", BUILT_IN)
def test_each_sampler_draws(name: str) -> None:
    for model, part in models(name).values():
        c = None if part.c is None else part.c[0]
        assert type(model.default_sampler()) is model.own_samplers[0]
        for kind in model.own_samplers:
            model.space.check(model.given(c).sample(2, sampler=kind))
        with pytest.raises(UsageError, match="does not answer Unheard"):
            model.given(c).sample(1, sampler=Unheard)


class Unheard(Sampler, name="unheard"):
    """Of nobody."""


def test_a_class_alone_has_the_numbers_of_the_config() -> None:
    (model, _) = models("vae")["reals"]
    assert model.default_request() == requests.Iwae(draws=model.config.draws)
    assert model.default_request(requests.Elbo) == requests.Elbo(draws=model.config.draws)
    ddpm, image = models("ddpm")["reals"][0], models("ddpm")["image"][0]
    assert ddpm.default_sampler(requests.Heun) == requests.Heun(steps=ddpm.config.sample_steps)
    assert ddpm.default_request(requests.OdeLikelihood) == requests.OdeLikelihood(ddpm.config.ode_steps)
    assert image.default_request(requests.OdeLikelihood).draws == image.config.draws  # to dequantise its levels


def test_the_trace_of_an_ode_is_exact_or_probed_as_asked() -> None:
    model, part = models("ddpm")["reals"]
    exact, probed = (
        model.log_prob(part.x, request=requests.OdeLikelihood(steps=4, probes=p), generator=torch.Generator())
        for p in (0, 60)
    )
    assert (exact.draws, probed.draws) == (16, 60)  # where the divergence is taken; probes
    assert "exact divergence" in exact.caveat
    assert "60 probes" in probed.caveat
    assert ((exact.nats - probed.nats).abs() < 5 * (probed.mc_se + exact.mc_se)).all()
    assert (exact.mc_se < probed.mc_se).all()
    image, pixels = models("ddpm")["image"]
    with pytest.raises(UsageError, match="needs draws of the noise that dequantises it; draws is 0. Give 2 or more"):
        image.log_prob(pixels.x, request=requests.OdeLikelihood(steps=2))


def test_a_search_is_not_streamed() -> None:
    model, _ = models("gpt")["text"]
    with pytest.raises(UsageError, match="nothing to stream"):
        next(model.given().stream(sampler=requests.Decoding(beams=2)))


def test_a_request_of_ones_own() -> None:
    @dataclasses.dataclass(frozen=True)
    class Bridge(Request, name="bridge", kind="Estimate"):
        """Bridge sampling."""

        rungs: int = 4

    class Written(Bridge):
        name, kind = "written", "UpperBound"

    assert (Bridge.name, Written.kind, Written(rungs=2)) == ("bridge", "UpperBound", Written(2))
    with pytest.raises(UsageError, match="rungs is 0; it must be a finite number, 1 or more. Leave it out for 4"):
        Bridge(rungs=0)


# -- checked where they are made -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", every((*ESTIMATORS, *SAMPLERS)))
def test_fields_are_checked_where_they_are_made(kind: type[Options]) -> None:
    """The error names the field, its value and its limit."""
    fine = {f.name: 2 for f in dataclasses.fields(kind) if f.default is dataclasses.MISSING}
    made = kind(**fine)
    assert made == kind(**fine)
    for name in (f.name for f in dataclasses.fields(kind)):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(made, name, 3)
        below = [] if name == "length_penalty" else [-1]
        for wrong in () if name in ("draft", "stop") else (*below, "3", np.int64(2), math.nan):
            with pytest.raises(UsageError, match=f"{name} is ") as error:
                kind(**{**fine, name: wrong})
            assert str(wrong) in str(error.value)
            assert "must be" in str(error.value)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: requests.Iwae(draws=1), "draws is 1; it must be a finite number, 2 or more"),
        (lambda: requests.VariationalBound(draws=4, steps=0), "steps is 0; it must be a finite number, 1 or more"),
        (lambda: requests.OdeLikelihood(steps=8, draws=1), "no standard error.*Give 0, or 2 or more"),
        (lambda: requests.OdeLikelihood(steps=8, probes=1), "no standard error.*Give 0, or 2 or more"),
        (lambda: requests.Decoding(top_p=1.5), "top_p is 1.5; it must be above 0, at most 1"),
        (lambda: requests.Decoding(temperature=0.0), "temperature is 0.0; it must be a finite number, above 0"),
    ],
)
def test_what_is_wrong_is_said(make: Any, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        make()


# -- on the command line -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("flags", "command", "kinds"), [
    (Estimating, LogProb, ESTIMATORS),
    (Sampling, Sample, SAMPLERS),
])  # fmt: skip
def test_flags_are_the_fields(flags: Any, command: Any, kinds: tuple[type, ...]) -> None:
    named = [c for c in vars(requests).values() if isinstance(c, type) and issubclass(c, kinds[0].__bases__[0])]
    assert {c.name for c in kinds} == {c.name for c in named if hasattr(c, "name")} - {"none"}
    assert len({c.name for c in kinds}) == len(kinds)
    fields = {f.name for kind in kinds for f in dataclasses.fields(kind)}
    assert {f.name for f in dataclasses.fields(flags)} - {"estimator", "sampler"} == fields
    assert fields <= {f.name for f in dataclasses.fields(command)}
    for name in fields:
        assert f"    {name}: of " in flags.__doc__, "a flag without words"
    for kind in kinds:
        assert f"{kind.name}: " in flags.__doc__


def value(flag: str) -> Any:
    own = {"greedy": True, "stop": ["b"], "grid": "log-snr", "eta": 0.5, "langevin_step": 0.5, "restart_to": 0.2}
    own |= {"truncation": 0.5, "start": "normal", "warmup": 5, "first": "b"}
    return (own | {"order": "raster"}).get(flag, 3)


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_flag_is_in_what_is_asked_for_or_refused(name: str) -> None:
    for model, _ in models(name).values():
        for flags, made, own in (
            (Estimating, request_of, model.own_estimators),
            (Sampling, sampler_of, model.own_samplers),
        ):
            option, *names = [f.name for f in dataclasses.fields(flags)]
            for flag in names:
                takers = [kind for kind in own if flag in kind.__dataclass_fields__]
                if flag in ("draft", "draft_symbols", "length_penalty", "hasty", "top_p", "min_p", "typical"):
                    continue  # they need a run, another flag, or a share
                args = flags(**{flag: value(flag)})
                if takers:
                    asked = made(args, model)
                    assert type(asked) is takers[0]
                    assert getattr(asked, flag) in (value(flag), ("b",))
                else:
                    with pytest.raises(UsageError, match=f"takes no --{flag.replace('_', '-')}; it is of no other"):
                        made(args, model)
            for kind in own:
                assert type(made(flags(**{option: kind.name}), model)) is kind
            with pytest.raises(
                UsageError, match=f"{name} has no {option} 'tarot', but {own[0].name}".replace("+", "[+]")
            ):
                made(flags(**{option: "tarot"}), model)
        assert request_of(Estimating(), model) == model.default_request()
        assert sampler_of(Sampling(), model) == model.default_sampler()


def test_a_flag_of_another_estimator_says_which() -> None:
    model, _ = models("ddpm")["reals"]
    args = parse(LogProb, ["run", "--estimator", "vlb", "--probes", "3"], "log-prob")
    with pytest.raises(UsageError, match="vlb of this ddpm takes no --probes; it is of ode. Give --estimator ode, or"):
        request_of(args, model)
    args = parse(LogProb, ["run", "--probes", "3", "--steps", "5"], "log-prob")
    assert request_of(args, model) == requests.OdeLikelihood(steps=5, probes=3)
    args = parse(Sample, ["run", "--temperature", "0.8", "--length", "5"], "sample")
    assert sampler_of(args, models("gpt")["text"][0]) == requests.Decoding(length=5, temperature=0.8)


def test_they_are_in_reach_and_wait_for_no_torch() -> None:
    assert pofx.Elbo(draws=8) == requests.Elbo(draws=8)
    assert pofx.Decoding is requests.Decoding
    assert not {"Budget", "Sampler"} & {*dir(pofx)}
    assert {kind.kind for kind in ESTIMATORS} <= {*KINDS}


def test_what_all_solvers_take_is_said_of_solvers() -> None:
    """And of one by its name where it means something else by the same flag."""
    words = Sampling.__doc__
    assert "    grid: of solvers: where its steps end" in words
    assert "    steps: of solvers: from noise to data [default: the model's own]; of adaptive: the fewest" in words
    assert "    eta: of ddim: " in words
    assert re.search(r"; solvers \(dpm\+\+: .*; annealed-langevin: [^;]*\); few-step: ", words)


def test_the_name_of_a_sampler_that_is_mistyped_is_guessed() -> None:
    model, _ = models("ddpm")["reals"]
    with pytest.raises(UsageError, match="ddpm has no sampler 'huen', but ancestral, .* Did you mean heun."):
        sampler_of(Sampling(sampler="huen"), model)
