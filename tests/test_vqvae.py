"""Quantised autoencoders: the bound against a sum over all codes, gradients that pass the codes, codes that live."""

from __future__ import annotations

import math
import threading
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import pofx
from pofx.core.errors import Unsupported, UsageError
from pofx.core.learner import Batch, Recipe
from pofx.core.likelihood import Exact, LowerBound
from pofx.core.registry import family
from pofx.data.parts import Data, Part
from pofx.families.vqvae import VqVae, VqVaeConfig
from pofx.nn.grid import GridDecoder, GridEncoder
from pofx.nn.quantize import Codebook, Levels
from pofx.spaces import Codes, Image, Label, Real, Table
from pofx.testing.oracles import image_states


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


BINARY = Image(2, 2, 1, 2)


def small(context: Label | None = None, **options: object) -> VqVae:
    """Weights at random, so that codes, prior and decoder all matter; the prior stands for a fitted one."""
    torch.manual_seed(3)
    told = {"groups": 2, "codes": 3, "dim": 2, "hidden": 16, "prior": "image-gpt:width=16,layers=1,n_heads=2"} | options
    model = VqVae(VqVaeConfig(**told), BINARY, context)  # type: ignore[arg-type]
    for p in model.parameters():
        if p.ndim > 1:
            nn.init.normal_(p, std=0.5)
    model.fitted.fill_(True)
    return model.eval()


def joint(model: VqVae, x: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """All grids of codes [K^G, G], and log p(z, x) [K^G, N]."""
    space = model.prior.space
    every = torch.cartesian_prod(*[torch.arange(space.size)] * space.dims).view(-1, *space.event_shape)
    rows = []
    with torch.no_grad():
        h = None if c is None else model.encode_context(c).own.vector
        for z in every:
            given = model.prior.given(c)
            prior = given.log_prob(z.expand(len(x), *z.shape))
            assert isinstance(prior, Exact)
            params = model.decoded(model.quantizer.vectors(z.view(1, -1)).expand(len(x), -1, -1), h)
            rows.append(prior.nats + model.heads.log_prob(params, x).sum(-1))
    return every, torch.stack(rows)


@pytest.mark.parametrize("options", [{}, {"levels": (3, 2)}, {"prior": "made:hidden=16"}], ids=str)
def test_the_bound_is_one_term_of_the_sum_over_all_codes(options: dict[str, object]) -> None:
    model, x = small(**options), image_states(BINARY)
    every, log_joint = joint(model, x)
    truth = log_joint.logsumexp(0)
    assert float(truth.exp().sum()) == pytest.approx(1, abs=1e-5)  # over all images: the model is one
    with torch.no_grad():
        lik = model.log_prob(x)
    assert isinstance(lik, LowerBound)
    assert lik.draws == 0
    chosen = (every[:, None] == model.codes(x)).flatten(2).all(-1)
    term = torch.where(chosen, log_joint, 0.0).sum(0)
    torch.testing.assert_close(lik.nats, term.double(), atol=1e-4, rtol=0)
    assert bool((lik.nats <= truth + 1e-5).all())
    assert float((truth - lik.nats).max()) > 0.1  # other codes give these images, too


@pytest.mark.parametrize(("columns", "said", "codes"), [(2, 0, 1), (17, 0, 2), (80, 0, 8), (2, 5, 5)])
def test_a_row_has_a_code_for_eight_columns_unless_more_are_asked_for(columns: int, said: int, codes: int) -> None:
    space = Table(tuple(Real(f"x{i}") for i in range(columns)))
    model = VqVae(VqVaeConfig(groups=said, hidden=8, codes=4, dim=2, prior="made:hidden=8"), space)
    assert model.codes(torch.randn(3, columns, dtype=torch.float64)).shape == (3, codes)


def test_samples_are_of_the_sum_over_all_codes() -> None:
    model, x, n = small(), image_states(BINARY), 20_000
    p = joint(model, x)[1].logsumexp(0).exp()
    drawn = model.sample(n, generator=seeded(0)).flatten(1).long() @ torch.tensor([8, 4, 2, 1])
    states = x.flatten(1).long() @ torch.tensor([8, 4, 2, 1])
    count = drawn.bincount(minlength=16)[states]
    assert float(((count - n * p).square() / (n * p)).sum()) < 50  # chi-squared of 15 degrees


def test_codes_and_prior_know_the_context() -> None:
    model, x = small(Label(("a", "b"))), image_states(BINARY)
    for label in (0, 1):
        c = torch.full((len(x),), label)
        log_joint = joint(model, x, c)[1]
        assert float(log_joint.logsumexp(0).exp().sum()) == pytest.approx(1, abs=1e-5)
        assert bool((model.given(c).log_prob(x).nats <= log_joint.logsumexp(0) + 1e-5).all())
    a, b = (model.given(torch.tensor(k)).bound_terms(x) for k in (0, 1))
    assert not torch.allclose(a["prior"].nats, b["prior"].nats)
    torch.testing.assert_close(
        a["prior"].nats + a["reconstruction"].nats, model.given(torch.tensor(0)).log_prob(x).nats
    )


def test_encode_gives_the_vectors_of_the_codes_and_nothing_else() -> None:
    model, x = small(), image_states(BINARY)
    q = model.given().encode(x)
    assert q.batch_shape == (16,)
    vectors = model.quantizer.vectors(model.codes(x)).flatten(1)
    torch.testing.assert_close(q.mean, vectors)
    assert bool((q.log_prob(vectors) == 0).all())
    assert bool((q.log_prob(vectors + 1) == -math.inf).all())
    assert model.reconstruct(x).shape == x.shape
    params = model.decoded(model.quantizer.vectors(model.codes(x).flatten(1)), None)
    assert torch.equal(model.given().from_latents(q.mean), model.heads.typical(params))
    assert float(model.usage(x).sum()) == pytest.approx(1)


# -- gradients pass the codes -----------------------------------------------------------------------------------------


class Severed(Codebook):
    """The mistake: what the decoder is told has no gradient."""

    def straight(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        _, codes, distance = super().straight(z)
        return self.vectors(codes), codes, distance


def unreached(model: VqVae) -> list[str]:
    """The parameters of the encoder that the reconstruction does not move."""
    x = image_states(BINARY)
    vectors, _, _ = model.quantizer.straight(model.encoded(x, None))
    loss = -model.heads.log_prob(model.decoded(vectors, None), x).sum()
    named = dict(model.encoder.named_parameters())
    if not loss.requires_grad:
        return [*named]
    found = torch.autograd.grad(loss, [*named.values()], allow_unused=True)
    return [k for k, g in zip(named, found, strict=True) if g is None or not g.any()]


@pytest.mark.parametrize("options", [{}, {"levels": (3, 2)}], ids=["book", "levels"])
def test_the_encoder_gets_the_decoders_gradient(options: dict[str, object]) -> None:
    assert not unreached(small(**options))


def test_a_gradient_that_stops_at_the_codes_is_caught() -> None:
    model = small()
    severed = Severed(3, 2, 0.9, 0.1)
    severed.load_state_dict(model.quantizer.state_dict())
    model.quantizer = severed
    assert unreached(model)


def test_the_gradient_is_as_if_nothing_had_been_rounded() -> None:
    z, g = torch.randn(4, 3, 5, generator=seeded(0), requires_grad=True), torch.randn(4, 3, 5, generator=seeded(1))
    for quantizer in (Codebook(7, 5, 0.9, 0.1), Levels((3, 4, 5, 2, 6))):
        passed, codes, _ = quantizer.straight(z)
        torch.testing.assert_close(passed.detach(), quantizer.vectors(codes), atol=1e-5, rtol=1e-5)
        smooth = quantizer._long(z) if isinstance(quantizer, Codebook) else quantizer._scaled(quantizer._bounded(z))
        (got,), (want,) = (torch.autograd.grad((v * g).sum(), z) for v in (passed, smooth))
        torch.testing.assert_close(got, want)


# -- the codes ----------------------------------------------------------------------------------------------------


def test_levels_and_codes_are_the_same_in_another_spelling() -> None:
    levels = Levels((3, 4, 2))
    codes = torch.arange(24)
    vectors = levels.vectors(codes)
    assert len({tuple(v.tolist()) for v in vectors}) == 24
    assert sorted(set(vectors[:, 1].tolist())) == pytest.approx([-1, -1 / 3, 1 / 3, 1], abs=1e-6)
    z = 3 * torch.randn(5000, 1, 3, generator=seeded(0))
    assert sorted(levels.codes(z).unique().tolist()) == codes.tolist()  # all can be reached
    near = torch.tensor([-1e-4, 1e-4])[:, None, None].expand(2, 1, 3)
    assert len(levels.codes(near).unique()) == 1  # z = 0 is on no edge


def test_a_codebook_that_keeps_nothing_is_a_step_of_k_means() -> None:
    torch.manual_seed(0)
    book, z = Codebook(4, 3, 0.0, 0.0), torch.randn(50, 2, 3)
    codes, long = book.codes(z), z / z.norm(dim=-1, keepdim=True) * math.sqrt(3)
    book.follow(z, 50, 0, lambda t: t, seeded(0))
    for k in codes.unique().tolist():
        torch.testing.assert_close(book.book[k], long[codes == k].mean(0))
        assert float(book.count[k]) == (codes == k).sum()


def test_dead_codes_move_to_where_vectors_are() -> None:
    book = Codebook(16, 2, 0.5, 0.1)
    with torch.no_grad():
        book.book.copy_(torch.tensor([[-1.0, -1.0]]).expand(16, 2))
        book.total.copy_(book.book)
    z = torch.randn(400, 1, 2, generator=seeded(0)) * 0.3 + torch.tensor([1.0, 1.0])
    first = float(book.follow(z, 400, 0, lambda t: t, seeded(0)))
    for step in range(40):
        last = float(book.follow(z, 400, 0, lambda t: t, seeded(step)))
    assert first < 1
    assert last == 1
    assert len(book.codes(z).unique()) == 16


def test_processes_with_shares_of_a_batch_move_the_book_alike() -> None:
    torch.manual_seed(0)
    z, whole = torch.randn(12, 2, 3), Codebook(6, 3, 0.5, 0.9)
    shares = [Codebook(6, 3, 0.5, 0.9) for _ in range(2)]
    for share in shares:
        share.load_state_dict(whole.state_dict())
    whole.follow(z, 12, 0, lambda t: t, seeded(1))
    barrier, given = threading.Barrier(2), list[Tensor | None]([None, None])

    def work(i: int) -> None:
        def sum_of(t: Tensor) -> Tensor:
            given[i] = t
            barrier.wait()
            total = sum(v for v in given if v is not None)
            barrier.wait()
            assert isinstance(total, Tensor)
            return total

        shares[i].follow(z[5 * i : 5 + 7 * i], 12, 5 * i, sum_of, seeded(1))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    for share in shares:
        torch.testing.assert_close(share.book, whole.book)


# -- both stages ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fitted() -> tuple[VqVae, Data]:
    """Bars in images of 8 x 8 pixels, at one of 8 places, lying or standing as the label says."""
    place, label = torch.randint(8, (600,), generator=seeded(0)), torch.randint(2, (600,), generator=seeded(1))
    lying = torch.zeros(600, 1, 8, 8, dtype=torch.uint8)
    lying[torch.arange(600), 0, place] = 3
    x = torch.where((label == 1)[:, None, None, None], lying.mT, lying)
    parts = [Part(x[a:b], label[a:b]) for a, b in ((0, 400), (400, 500), (500, 600))]
    data = Data("bars", "memory", Image(8, 8, 1, 4), *parts, Label(("lying", "standing")))
    options = {
        "hidden": 64, "blocks": 1, "groups": 2, "codes": 8, "dim": 4, "context_dropout": 0.1,
        "prior": "made:hidden=32,layers=1",
    }  # fmt: skip
    run = pofx.fit(data, "vqvae", steps=300, checks=2, seed=0, options=options, recipe={"batch": 64, "lr": 1e-2})
    assert isinstance(run.model, VqVae)
    return run.model, data


def test_both_stages_make_a_model_of_the_bars(fitted: tuple[VqVae, Data]) -> None:
    model, data = fitted
    c = torch.arange(100) % 2
    drawn = model.given(c).sample(1, generator=seeded(0))[0]
    bars = data.train.x.unique(dim=0)
    where = (drawn[:, None] == bars).flatten(2).all(-1)
    labels = torch.where(bars[:, 0, :, :1].eq(3).flatten(1).sum(1) == 1, 0, 1)
    right = where.any(1) & (labels[where.int().argmax(1)] == c)
    assert float(right.float().mean()) > 0.5
    terms = model.given(data.test.c).bound_terms(data.test.x)
    assert float(-terms["prior"].nats.mean()) < 0.8 * 2 * math.log(8)  # of codes that are all equally likely
    assert float(model.given(data.test.c).log_prob(data.test.x).nats.mean()) > -6.0  # the truth is -log 8 = -2.1
    null = model.given(null=True).log_prob(data.test.x)
    assert float(null.nats.mean()) < float(model.given(data.test.c).log_prob(data.test.x).nats.mean())


def test_conv_nets_give_a_grid_of_codes(fitted: tuple[VqVae, Data]) -> None:
    options = {"net": "conv", "channels": 4, "blocks": 1, "prior": "image-gpt:width=16,layers=1,n_heads=2"}
    model = pofx.fit(fitted[1], "vqvae", steps=4, checks=1, seed=0, options=options).model
    assert isinstance(model, VqVae)
    part = fitted[1].test
    assert model.codes(part.x, part.c).shape == (100, 2, 2)
    assert model.given(part.c).sample(1).shape == (1, 100, 1, 8, 8)
    assert isinstance(model.given(part.c).log_prob(part.x), LowerBound)


def test_image_gpt_over_codes_sums_to_one() -> None:
    for shape in ((2, 2), (3,)):
        space = Codes(shape, 3)
        torch.manual_seed(0)
        cls = family("image-gpt")
        model = cls(replace(cls.tiny(space), scans=2), space)
        for p in model.parameters():
            nn.init.normal_(p, std=0.3)
        every = torch.cartesian_prod(*[torch.arange(3)] * space.dims).view(-1, *shape)
        p = model.log_prob(every).nats.detach().exp()
        assert float(p.sum()) == pytest.approx(1, abs=1e-5)
        drawn = model.sample(5000, generator=seeded(0))
        space.check(drawn)
        count = (drawn[:, None] == every).flatten(2).all(-1).sum(0)
        chi = ((count - 5000 * p).square() / (5000 * p)).sum()
        assert float(chi) < len(every) + 5 * math.sqrt(2 * len(every))
    many = Codes((2, 2), 1000)
    wide = cls(cls.Config(width=16, layers=1, n_heads=2), many)
    assert int(wide.sample(50, generator=seeded(0)).max()) > 255  # more than a byte holds


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 9, 14), (1, 5, 3)])
@pytest.mark.parametrize("down", [0, 1, 2, 3])
def test_grid_nets_take_any_size(shape: tuple[int, int, int], down: int) -> None:
    encoder = GridEncoder(shape[0], 5, down=down, width=4, blocks=1, context=2)
    decoder = GridDecoder(5, shape, down=down, width=4, blocks=1, context=2)
    h = torch.randn(2, 2)
    z = encoder(torch.randn(2, *shape), h)
    assert z.shape == (2, 5, *(math.ceil(s / 2**down) for s in shape[1:]))
    assert decoder(z, h).shape == (2, *shape)


def test_shares_of_a_step_are_the_step() -> None:
    x = (torch.rand(12, 1, 2, 2, generator=seeded(5)) < 0.4).to(torch.uint8)
    found = []
    for accumulate in (1, 3):
        model = small()
        learner = model.learner(Recipe(lr=1e-3, accumulate=accumulate, schedule="constant"))
        for step in range(2):
            learner.step(Batch(x, None, None, 0, 12, 0.5, step), seeded(step))
        found.append(torch.cat([model.quantizer.state_dict()["book"].flatten(), model.encoder.last.weight.flatten()]))
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"levels": (1,)}, "levels is 1"),
        ({"levels": (2048, 2048, 2048)}, "make 8,589,934,592 codes"),
        ({"codes": 1}, "codes is 1"),
        ({"prior_share": 0.0}, "prior_share is 0"),
        ({"decay": 1.0}, "decay is 1"),
        ({"down": -1}, "down is -1"),
        ({"prior": "nsf"}, "nsf as a part"),
        ({"prior": "gan"}, "no exact probability"),
        ({"prior": "independent:context_dropout=0.1"}, "context_dropout"),
    ],
)
def test_bad_options_are_named(options: dict[str, object], says: str) -> None:
    with pytest.raises((UsageError, Unsupported), match=says):
        VqVae(VqVaeConfig(**options), BINARY)  # type: ignore[arg-type]
