"""What families can do besides: what they declare is what they have, and what they lack is said with a remedy."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import torch

import pofx
from pofx.core.abilities import ABILITIES, Ability, Continues, Decodes, Encodes, HasScore, able, can, why_not
from pofx.core.errors import Unsupported
from pofx.core.model import Model
from pofx.core.registry import BUILT_IN, family
from pofx.core.space import Space
from pofx.spaces import Audio, Category, Image, Integer, Label, Real, Sequence, Table, Text

ROWS = Table((Real("a"), Real("b")))
SPACES: list[Space] = [
    ROWS,
    Table((Real("a"), Category("k", ("u", "v")))),
    Table((Category("k", ("u", "v")), Category("m", ("u", "v")))),
    Table((Integer("n", 0, 9),)),
    Image(4, 4, 1, 2),
    Label(("u", "v")),
    Text("ab", length=6),
    Audio(8000, length=40),
    Sequence(ROWS, length=5),
]
CONTEXT = Label(("x", "y"))
pytestmark = pytest.mark.usefixtures("ours_alone")  # remedies advise every family that is known


def hooks(ability: type[Ability]) -> set[str]:
    return set(ability.__abstractmethods__)


def data(space: Space) -> torch.Tensor:
    """Two rows [2, *E] of zeros."""
    shape = [4 if size < 0 else size for size in space.event_shape]
    return torch.zeros(2, *shape, dtype=space.dtype)


def asked(model: Model, ability: type[Ability]) -> object:
    """What the ability offers, asked of the model."""
    given = model.given(None if model.context is None else torch.zeros(2, dtype=torch.int64))
    x = data(model.space)
    calls = {
        "encode": lambda: given.encode(x),
        "score": lambda: given.score(x),
        "noised_score": lambda: given.noised_score(x),
        "from_latents": lambda: given.from_latents(torch.zeros(2, 2)),
        "log_joint": lambda: given.log_joint(x, torch.zeros(2, 1)),
        "energy": lambda: given.energy(x),
        "classify": lambda: given.classify(x),
        "invert": lambda: given.invert(x, steps=2),
        "sample_with_verdict": lambda: given.sample_with_verdict(2),
        "bound_terms": lambda: given.bound_terms(x),
        "trajectories": lambda: given.trajectories(2),
        "log_probs": lambda: given.log_probs(x),
        "stream": lambda: list(given.stream()),
        "part_model": lambda: model.part_model("a"),
        "complete": lambda: given.complete(x, torch.zeros_like(x, dtype=torch.bool)),
    }
    return calls[ability.asked]()


def models() -> list[tuple[str, Space, Space | None]]:
    found = []
    for name in BUILT_IN:
        for space in SPACES:
            for context in (None, CONTEXT):
                cls = family(name)
                if cls.refuses(space, context, cls.tiny(space)) is None:
                    found.append((name, space, context))
                    break
    return found


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_family_has_the_hooks_of_its_abilities_and_no_others(name: str) -> None:
    """A hook without its ability would never be called; an ability without its hook cannot be made."""
    cls = family(name)
    have = {hook for hook in dir(cls) if hook.startswith("rows_")}
    assert not cls.__dict__.get("__abstractmethods__"), "a family is final"
    every = {hook for hook in dir(Model) if hook.startswith("rows_")}
    assert have - every == set().union(*(hooks(a) for a in ABILITIES if issubclass(cls, a)))


def test_models_know_no_ability_by_name() -> None:
    assert {h for h in dir(Model) if h.startswith("rows_")} == {
        "rows_log_prob", "rows_sample", "rows_per_pass", "rows_per_draw",
    }  # fmt: skip
    flags = {"latent", "has_score", "has_noised_score", "decodes", "continues", "in_blocks", "step_kind", "window"}
    assert not flags & {*dir(Model)}


@pytest.mark.parametrize(("name", "space", "context"), models(), ids=str)
def test_what_a_model_lacks_is_said_with_families_that_have_it(name: str, space: Space, context: Space | None) -> None:
    cls = family(name)
    model = cls(cls.tiny(space), space, context).eval()
    for ability in ABILITIES:
        if ability.asked in ("classes", "fit", "sample", "sample_with_log_prob") or can(model, ability):
            continue
        with pytest.raises(Unsupported) as said:
            asked(model, ability)
        assert str(said.value).startswith(f"{name} {ability.without}"), said.value
        if advised := re.fullmatch(r"Fit one of (.*)\.", said.value.remedy):
            assert {*advised[1].split(", ")} == {
                n for n in BUILT_IN if family(n).refuses(space, context, family(n).Config()) is None
                and why_not(family(n), ability, space) is None
            }  # fmt: skip
        elif said.value.remedy == "See 'pofx families'.":
            assert not any(n in able(space, context, ability) for n in BUILT_IN)
        elif advised := re.fullmatch(r"Ask for (.*)\.", said.value.remedy):
            asked(model, next(a for a in ABILITIES if a.asked == advised[1]))
        else:
            assert issubclass(cls, ability)
            assert str(cls.lacks(ability, space)) in str(said.value)


def test_what_is_advised_can() -> None:
    """The remedy taken at its word: each of these families, over the same space, answers."""
    for ability, space in ((Encodes, ROWS), (HasScore, ROWS), (Continues, Text("ab", length=6)), (Decodes, Text("ab"))):
        for name in able(space, None, ability):
            cls = family(name)
            model = cls(cls.tiny(space), space)
            some = torch.randn(40, 2, dtype=torch.float64) if space is ROWS else data(space)
            model.prepare(some, None, None, torch.Generator().manual_seed(0))
            asked(model.eval(), ability)


def test_a_beginning_needs_a_family_that_goes_on() -> None:
    cls = family("histogram")
    with pytest.raises(Unsupported, match="cannot go on from a beginning. See"):
        cls(cls.tiny(CONTEXT), CONTEXT).given(before=torch.zeros(1, dtype=torch.int64))


def test_who_refuses_a_space_names_those_that_serve_it() -> None:
    cls = family("made")
    with pytest.raises(Unsupported, match="any length. These do: gpt, rnn, wavenet."):
        cls(cls.Config(), Text("ab"))
    with pytest.raises(Unsupported, match="Bernoulli head holds 2 levels.* See 'pofx families'."):
        cls(cls.Config(head="bernoulli"), Image(4, 4, 1, 256))


def test_an_ability_that_is_declared_without_its_hook_is_no_family() -> None:
    class Half(Model, Encodes):
        name = "half"

        @classmethod
        def refuses(cls, space: Space, context: Space | None, config: object) -> str | None:
            return None

    with pytest.raises(TypeError, match="rows_encode"):
        Half(None, ROWS)  # type: ignore[abstract]


def constants(path: Path) -> list[str]:
    """All strings of a file but its docstrings."""
    tree = ast.parse(path.read_text())
    told = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    nodes = (n for n in ast.walk(tree) if isinstance(n, ast.Constant) and id(n) not in told)
    return [n.value for n in nodes if isinstance(n.value, str)]


@pytest.mark.parametrize("path", sorted((Path(pofx.__file__).parent / "core").glob("*.py")), ids=lambda p: p.stem)
def test_core_names_no_family(path: Path) -> None:
    if path.stem == "registry":  # whose table it is
        return
    names = re.compile(rf"(?<![\w-])({'|'.join(map(re.escape, BUILT_IN))})(?![\w-])")
    assert [text for text in constants(path) if names.search(text)] == []
