"""Ways, traversals, attributes, groups and reconstructions in latent spaces; and what stands for a distribution."""

from __future__ import annotations

import base64
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image as Pillow
from torch import Tensor

import pofx
from pofx.cli import main
from pofx.core.errors import EmptyData, Unsupported, UsageError, WrongShape
from pofx.core.registry import family
from pofx.data.parts import Data, Part
from pofx.evaluate.latent_space import (
    between,
    by_use,
    codes,
    direction,
    groups,
    interpolate,
    reconstruct,
    strips,
    traverse,
)  # fmt: skip
from pofx.nn.heads import (
    AtomsAndLogistics,
    Bernoulli,
    Categorical,
    LevelLogistics,
    MissingOr,
    MixtureOfGaussians,
)  # fmt: skip
from pofx.report import latents
from pofx.spaces import Category, Image, Real, Table
from pofx.train.checkpoint import write_arrays

PLANE = Table((Real("a"), Real("b")))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# -- what stands for a distribution ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "head",
    [Bernoulli(), Categorical(4), Categorical(9, ordered=True), MixtureOfGaussians(2), LevelLogistics(9, 1)],
    ids=lambda h: type(h).__name__,
)
def test_what_is_typical_is_the_mean_or_the_mode_of_draws(head: torch.nn.Module) -> None:
    """Of 20,000 draws: the mean of numbers (to rounding where they are levels), the commonest of symbols."""
    params = torch.randn(6, head.params, generator=seeded(1)) * 0.7
    if isinstance(head, LevelLogistics):  # narrow ones: no mass that its edges would cut
        params = torch.cat([params[:, :2], torch.full((6, 1), -2.0)], 1)
    draws = head.sample(params.expand(20_000, -1, -1), seeded())
    typical = head.typical(params)
    if isinstance(head, Bernoulli) or (isinstance(head, Categorical) and not head.ordered):
        clear = ((draws == typical).double().mean(0) - (0.5 if head.params == 1 else 0.0)).abs() > 0.02
        assert torch.equal(draws.mode(0).values[clear], typical[clear])
        return
    error = draws.std(0) / 20_000**0.5
    whole = 0.0 if isinstance(head, MixtureOfGaussians) else 0.5
    assert ((draws.mean(0) - typical).abs() <= 5 * error + whole).all()


def test_what_is_typical_of_atoms_and_gaps() -> None:
    head = MissingOr(AtomsAndLogistics(1.0, 0.0, components=2, slots=2))
    x = torch.tensor([0.0] * 50 + [7.0] * 40 + [3.0] * 10, dtype=torch.float64)
    head.prepare(x)
    params = torch.zeros(4, head.params)
    params[0, 1] = params[1, 2] = params[2, 3] = params[3, 0] = 20.0  # the first atom, the second, none, a gap
    first, second, smooth, gap = head.typical(params).tolist()
    assert sorted((first, second)) == [0.0, 7.0]
    assert smooth == round(smooth)
    assert np.isnan(gap)


# -- on z alone -------------------------------------------------------------------------------------------------


def test_the_spherical_way_is_a_rotation_between_vectors_of_one_length() -> None:
    a, b = (torch.nn.functional.normalize(torch.randn(5, 7, generator=seeded(i)), dim=1) * 3 for i in (0, 1))
    way = between(a, b, 9)
    assert torch.allclose(way[[0, -1]], torch.stack([a, b]), atol=1e-5)
    assert torch.allclose(way.norm(dim=-1), torch.tensor(3.0), atol=1e-5)
    turns = torch.nn.functional.cosine_similarity(way[1:], way[:-1], dim=-1).acos()
    assert torch.allclose(turns, turns[:1].expand_as(turns), atol=1e-3)  # equal angles


@pytest.mark.parametrize("b", [[2.0, 0.0], [-2.0, 0.0], [0.0, 0.0]])
def test_where_no_way_is_the_shortest_it_is_the_straight_line(b: list[float]) -> None:
    """One direction, opposite ones, zero: finite, and the line."""
    a = torch.tensor([1.0, 0.0])
    assert torch.allclose(between(a, torch.tensor(b), 5), between(a, torch.tensor(b), 5, "linear"))


def test_groups_find_clusters_that_stand_apart_and_are_told_by_labels() -> None:
    label = torch.arange(300) % 3
    z = torch.tensor([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0]])[label] + torch.randn(300, 2, generator=seeded())
    found = groups(z, 3, label)
    assert found.agreement == 1.0
    assert found.silhouette > 0.7
    assert groups(z, 3).agreement is None
    assert abs(groups(torch.randn(300, 2, generator=seeded(1)), 3, label).agreement or 0) < 0.1
    sizes = groups(z, 7).index.bincount()
    assert torch.equal(sizes, sizes.sort(descending=True).values)


def test_bad_input_is_named() -> None:
    z = torch.randn(10, 2)
    with pytest.raises(UsageError, match="10 rows do not make 10 groups"):
        groups(z, 10)
    with pytest.raises(UsageError, match="1 points has no two ends"):
        between(z[0], z[1], 1)
    with pytest.raises(WrongShape, match="have shapes"):
        between(z[0], z[:, 0], 3)
    with pytest.raises(EmptyData, match="0 of 10 rows have the attribute"):
        direction(z, torch.zeros(10, dtype=torch.bool))
    flow = family("realnvp")(family("realnvp").tiny(PLANE), PLANE)
    with pytest.raises(WrongShape, match=r"are \[..., 2\]"):
        flow.given().from_latents(torch.zeros(4, 3))
    mixed = Table((Real("a"), Real("b"), Category("k", ("u", "v"))))
    with pytest.raises(Unsupported, match="categories and gaps have no latents"):
        family("realnvp")(family("realnvp").tiny(mixed), mixed).given().from_latents(torch.zeros(4, 2))


# -- with a model -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def flow() -> tuple[pofx.Model, Part]:
    x = torch.randn(400, 2, generator=seeded()).double() @ torch.tensor([[2.0, 1.0], [0.0, 0.5]]).double() + 3
    label = (x[:, 0] > 3).long()
    data = Data("any", "memory", PLANE, Part(x, label=label), Part(x[:100]), Part(x[:100]), labels=("low", "high"))
    return pofx.fit(data, "realnvp", steps=60, options={"layers": 2, "hidden": 16}).model, data.train


def test_a_flow_comes_back_exactly_and_ways_lead_through_its_latents(flow: tuple[pofx.Model, Part]) -> None:
    model, part = flow
    back = reconstruct(model, part)
    assert back.rms is not None
    assert back.rms < 1e-4
    assert torch.allclose(back.x, part.x, atol=1e-4)
    way = interpolate(model, part.x[:5], part.x[5:10], 4)
    assert torch.allclose(way[[0, -1]], torch.stack([part.x[:5], part.x[5:10]]), atol=1e-4)
    z = model.given().encode(way[1]).mean
    ends = (model.given().encode(x).mean for x in (part.x[:5], part.x[5:10]))
    assert torch.allclose(z, between(*ends, 4)[1], atol=1e-3)


def test_a_traversal_moves_one_latent_and_no_other(flow: tuple[pofx.Model, Part]) -> None:
    model, part = flow
    z = codes(model, part)
    x = traverse(model, z[0], z.std(0), by_use(z), 5, 2.0)
    again = torch.stack([model.given().encode(one).mean for one in x]) - z[0]
    for row, d in enumerate(by_use(z).tolist()):
        moved = again[row]
        assert torch.allclose(moved[:, d], torch.linspace(-2, 2, 5) * z.std(0)[d], atol=1e-3)
        assert moved[:, 1 - d].abs().max() < 1e-3


def test_an_attribute_that_is_added_moves_rows_towards_those_that_have_it(flow: tuple[pofx.Model, Part]) -> None:
    model, part = flow
    assert part.label is not None
    z, has = codes(model, part), part.label == 1
    moved = model.given().from_latents(z[~has] + direction(z, has))
    assert float((moved[:, 0] > 3).double().mean()) > 0.9


def test_strips_of_images_and_their_place_in_the_report(tmp_path: object) -> None:
    space = Image(4, 4, 1, 3)
    x = torch.randint(3, (40, 1, 4, 4), generator=seeded(), dtype=torch.uint8)
    data = Data("any", "memory", space, Part(x), Part(x), Part(x))
    model = pofx.fit(data, "vae", steps=5, options={"latent": 4, "hidden": 16}).model
    names, shown = strips(model, data.test, 6)
    assert shown.shape == (len(names), 6, 1, 4, 4)
    assert torch.equal(shown[0], x[:6])
    assert torch.equal(shown[1], reconstruct(model, data.test[:6]).x)
    space.check(shown.flatten(0, 1))
    rows = [
        {"family": "vae", "latents": {"strips": {"names": names}, "reconstruction": {"rms": 1.0, "differing": 0.5}}}
    ]
    folder = tmp_path / "samples"  # type: ignore[operator]
    folder.mkdir()
    write_arrays(folder / "latents.npz", {"x": shown.flatten(0, 1).numpy()})
    page = latents.parts(space, rows, {"vae": folder / "samples.npz"})
    ((name, found),) = page["strips"]
    assert (name, [label for label, _ in found]) == ("vae", names)
    assert Pillow.open(io.BytesIO(base64.b64decode(found[0][1].partition(",")[2]))).size == (6 * 5 - 1, 4)
    assert page["rows"][0]["rms"] == "1"


# -- the command ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("run") / "vae")
    argv = ["fit", "digits", "vae", "--steps", "20", "--out", folder, "--quiet", "--options.hidden", "32"]
    assert main([*argv, "--options.latent", "5"]) == 0
    return folder


def asked(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, object]:
    capsys.readouterr()
    assert main(["latents", *argv, "--json"]) == 0
    found: dict[str, object] = json.loads(capsys.readouterr().out)
    return found


def test_the_command_writes_what_it_says(run: str, capsys: pytest.CaptureFixture[str], tmp_path: object) -> None:
    where = str(tmp_path / "one.png")  # type: ignore[operator]
    found = asked(capsys, run, "interpolate", "--between", "3,5", "--steps", "7", "--out", where)
    assert (found["made"], Pillow.open(where).size) == (7, (7 * 9 - 1, 8))
    found = asked(capsys, run, "traverse", "--dims", "2", "--steps", "4")
    assert Pillow.open(str(found["out"])).size == (4 * 9 - 1, 2 * 9 - 1)
    assert len(found["latents"]) == 2  # type: ignore[arg-type]
    assert asked(capsys, run, "attribute", "--label", "3")["made"] == 40
    assert len(asked(capsys, run, "group")["groups"]) == 10  # type: ignore[arg-type]
    assert asked(capsys, run, "reconstruct")["rms"] > 0  # type: ignore[operator]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["interpolate", "--groups", "3"], "--groups does not go with interpolate"),
        (["interpolate", "--between", "0,9999"], "'0,9999' does not name two rows"),
        (["interpolate", "--between", "one"], "'one' does not name two rows"),
        (["traverse", "--at", "-1"], "no row -1"),
        (["traverse", "--dims", "0"], "--dims 0 moves nothing"),
        (["attribute"], "attribute needs a class"),
        (["attribute", "--label", "eleven"], "no class 'eleven'"),
        (["group", "--groups", "1"], "do not make 1 groups"),
        (["reconstruct", "--out", "rows.csv"], "no PNG file"),
    ],
)
def test_mistakes_are_named(run: str, argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["latents", run, *argv]) == 2
    assert said in " ".join(capsys.readouterr().err.split())


def test_a_family_without_latents_says_so(tmp_path: object, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(tmp_path / "g")  # type: ignore[operator]
    assert main(["fit", "two-moons", "gaussian", "--out", folder, "--quiet", "--steps", "1"]) == 0
    assert main(["latents", folder, "reconstruct"]) == 4
    assert "has no latent variable" in capsys.readouterr().err
    z: Tensor = torch.zeros(2, 2)
    with pytest.raises(Unsupported, match="makes no datum"):
        pofx.read_run(folder).model.given().from_latents(z)
