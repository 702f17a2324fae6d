"""Every check of the suite, over every registered family and every case that it serves."""

import dataclasses
from collections import Counter

import pytest
import torch

from pofx.core.registry import BUILT_IN, family
from pofx.data.parts import Data, Part
from pofx.spaces import Codes, Image, Label, Pair, Real, Reals, Table, Text
from pofx.testing.conformance import Subject, checks_of, run_check, subjects
from pofx.testing.oracles import cases
from pofx.train.fit import fit

ALL = [(name, s.case.name, s.variant) for name in BUILT_IN for s in subjects(family(name))]
# in the quick tier: every case of families that are fitted at once, one of so many of those that are trained in steps
ALL_OF = ("histogram", "independent", "markov", "gaussian", "gmm", "trees")
ONE_OF = dict.fromkeys(("ppca", "factor-analysis"), 3)
ONE_OF |= dict.fromkeys(("classifier", "image-gpt", "pixelcnn"), 2)
ONE_OF |= dict.fromkeys(("dcgan", "resnet-gan", "stylegan"), 5)
ONE_OF |= dict.fromkeys(("maf", "window-mlp", "gated-pixelcnn", "pixelcnn++", "pixelrnn", "rnn", "wavenet"), 4)
ONE_OF |= dict.fromkeys(("realnvp", "nsf", "iaf", "glow", "tarflow"), 6)
ONE_OF |= dict.fromkeys(("cnf", "gan", "masked-diffusion", "vdm"), 8)
ONE_OF["rbm"] = 20
ONE_OF |= dict.fromkeys(("ddpm", "ncsn", "score-sde", "edm", "flow-matching"), 20)  # vdm with other options
ONE_OF |= {"vae": 16, "vqvae": 9, "latent-diffusion": 20, "rssm": 7, "act": 9}  # estimators by chains take long
ONE_OF["mel-vocoder"] = 7
NONE_OF = ("ebm", "jem", "hvae")  # their draws and estimators by chains take a minute a case
NONE_OF += ("diffusion-policy",)  # ddpm with a larger net, along steps


def tiers():
    of = Counter()
    for one in ALL:
        of[one[0]] += 1
        every = 1 if one[0] in ALL_OF else ONE_OF.get(one[0], 3)
        long = one[0] in NONE_OF or (of[one[0]] - 1) % every or one[2] == "dit" or one[2].startswith("student of")
        yield pytest.param(*one, marks=pytest.mark.long if long else (), id=" · ".join(filter(None, one)))


@pytest.mark.parametrize(("name", "case_name", "variant"), tiers())
def test_conformance(name, case_name, variant):
    s = Subject(family(name), next(c for c in cases() if c.name == case_name), variant=variant)
    results = [run_check(s, check) for check in checks_of(s.case)]
    failed = [f"{r.check}: {r.message}" for r in results if r.outcome == "failed"]
    assert not failed, "\n" + "\n".join(failed)
    assert sum(r.outcome == "passed" for r in results) >= (3 if s.case.given is not None or s.case.brief else 6)


def test_every_family_serves_a_case_with_and_without_context():
    """A family that the suite never sees is not checked."""
    for name in BUILT_IN:
        contexts = {next(c for c in cases() if c.name == case).context is None for n, case, _ in ALL if n == name}
        only = {"classifier": {False}, "ctc": {False}, "jem": {False}, "joint-gpt": {True}}
        assert contexts == only.get(name, {True, False}), name


def rows(space, n):
    """Any data of a space [n, *E]."""
    if isinstance(space, Pair):
        return space.join(rows(space.a, n), rows(space.b, n))
    shape = (n, *(6 if size < 0 else size for size in space.event_shape))
    if space.dtype.is_floating_point:
        return torch.randn(shape, dtype=space.dtype)
    return torch.randint(space.symbols or len(space.values), shape).to(space.dtype)


NEW = (Reals((2,)), Codes((2, 2), 3), Pair(Codes((2,), 3), Reals((2,))))
OLD = (Table((Real("a"), Real("b"))), Image(4, 4, 1, 2), Text("abc", True, 6), Label(("a", "b")))


@pytest.mark.parametrize("name", BUILT_IN)
@pytest.mark.parametrize("new", NEW, ids=lambda s: s.name)
def test_reals_codes_and_pairs_are_served_or_refused(name, new):
    """As x and as context: ``refuses`` says why not in a sentence, or the model trains a step, answers and samples."""
    cls = family(name)
    for space, context in ((new, None), *((old, new) for old in OLD)):
        config = cls.tiny(space)
        reason = cls.refuses(space, context, config)
        if reason is not None:
            assert len(reason) > 15, reason
            assert reason.endswith((".", ")")), reason
            continue
        torch.manual_seed(0)
        parts = [Part(rows(space, 40), None if context is None else rows(context, 40)) for _ in range(3)]
        data = Data("any", "memory", space, *parts, context)
        options = dataclasses.asdict(config)
        model = fit(data, cls, seed=0, steps=2, checks=1, options=options, recipe={"batch": 32}).model
        c = None if context is None else parts[0].c[:3]
        space.check(model.sample(3) if c is None else model.given(c).sample(1)[0])
        assert model.given(parts[2].c).log_prob(parts[2].x) is not None
