"""Likelihoods, spaces, measures and the conditional contract."""

import json
import math
import subprocess
import sys
from importlib.metadata import EntryPoint

import numpy as np
import pyarrow as pa
import pytest
import torch

import pofx
from pofx.cli import main
from pofx.core import likelihood as lk
from pofx.core import registry
from pofx.core.comparison import compare
from pofx.core.errors import BadValue, Incomparable, NotANumber, PofxError, UsageError, WrongShape
from pofx.core.learner import Batch, GradientLearner, Local, Recipe, Stepper, learning_rate
from pofx.core.likelihood import Estimate, Exact, LowerBound, Unavailable, UpperBound
from pofx.core.measure import Measure
from pofx.core.registry import families, family
from pofx.core.requests import Elbo, Heun, OdeLikelihood
from pofx.core.space import from_json, take
from pofx.data import synthetic
from pofx.data.rows import read_rows
from pofx.spaces import Category, Image, Integer, Label, Real, Table, Text
from pofx.testing.wrong import Counts, Moments, Plain
from pofx.testing.wrong_sequence import Bigrams

ONE = Measure.counting(1)


def exact(values, measure=ONE):
    return Exact(torch.tensor(values), measure)


def bound(kind, values, se=0.0, measure=ONE):
    nats = torch.tensor(values)
    return lk.make(kind, nats, measure, torch.full_like(nats, se), 4, "caveat")


def test_a_likelihood_is_no_number():
    with pytest.raises(TypeError):
        float(exact([1.0]))
    with pytest.raises(TypeError):
        exact([1.0]) < exact([2.0])  # noqa: B015
    with pytest.raises(AttributeError):
        exact([1.0]).nats = torch.zeros(1)


JOINS = {
    (Exact, Exact): Exact, (Exact, LowerBound): LowerBound, (Exact, UpperBound): UpperBound,
    (Exact, Estimate): Estimate, (LowerBound, LowerBound): LowerBound, (LowerBound, UpperBound): Estimate,
    (LowerBound, Estimate): Estimate, (UpperBound, UpperBound): UpperBound, (UpperBound, Estimate): Estimate,
    (Estimate, Estimate): Estimate, (Exact, Unavailable): Unavailable, (LowerBound, Unavailable): Unavailable,
}  # fmt: skip


@pytest.mark.parametrize(("pair", "joined"), JOINS.items())
def test_kinds_join(pair, joined):
    assert lk.join(*pair) is joined
    assert lk.join(*reversed(pair)) is joined


def test_cat_and_per_row():
    parts = [bound(LowerBound, [-1.0, -2.0], 0.1), bound(LowerBound, [-3.0], 0.2)]
    whole = lk.cat(parts)
    assert whole.nats.tolist() == [-1.0, -2.0, -3.0]
    assert torch.allclose(whole.mc_se, torch.tensor([0.1, 0.1, 0.2]))
    assert lk.per_row(lambda t: t.reshape(3, 1), whole).mc_se.shape == (3, 1)
    with pytest.raises(Incomparable):
        lk.cat([exact([1.0]), bound(LowerBound, [1.0])])


def test_verdicts_are_those_that_kinds_allow():
    n = 200
    noise = torch.randn(n, generator=torch.Generator().manual_seed(0))
    low, high = (noise - 1).tolist(), (noise + 1).tolist()
    kinds = (Exact, LowerBound, UpperBound, Estimate)

    def of(kind, values):
        return exact(values) if kind is Exact else bound(kind, values)

    for a in kinds:
        for b in kinds:
            better = a in (Exact, LowerBound) and b in (Exact, UpperBound)
            assert (compare(of(a, high), of(b, low)).verdict == "better") == better
            worse = b in (Exact, LowerBound) and a in (Exact, UpperBound)
            assert (compare(of(a, low), of(b, high)).verdict == "worse") == worse
            assert compare(of(a, low), of(b, low)).verdict == "undecided"
    assert compare(exact(high), exact(low)).nats == pytest.approx(2.0, abs=1e-6)
    assert compare(Unavailable("x"), exact(low)).verdict == "undecided"


def test_comparison_is_paired_and_respects_its_error():
    g = torch.Generator().manual_seed(1)
    a = 5 * torch.randn(400, generator=g)  # a wide spread between data, shared by both
    close = Exact(a + 0.1 + 0.05 * torch.randn(400, generator=g), ONE)
    assert compare(close, Exact(a, ONE)).verdict == "better"
    far = Exact(a[torch.randperm(400, generator=g)] + 0.1, ONE)
    assert compare(far, Exact(a, ONE)).verdict == "undecided"


def test_different_measures_raise():
    with pytest.raises(Incomparable, match="counting against lebesgue"):
        compare(exact([1.0, 2.0]), exact([1.0, 2.0], Measure.lebesgue(1)))


SPACES = [
    Table(
        (Real("a"), Integer("b", 0, 5, True, "d"), Category("c", ("x", "y"), True), Real("d", True, 0.01, 2.0, 0, 9))
    ),
    Image(8, 6, 3, 256),
    Label(("cat", "dog")),
]


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_spaces_survive_json(space):
    import json

    assert from_json(json.loads(json.dumps(space.to_json()))) == space


def test_measures_follow_columns():
    assert str(SPACES[0].measure) == "lebesgue × counting^3"
    assert str(Table((Real("a", nullable=True),)).measure) == "atom+lebesgue"
    assert SPACES[1].measure == Measure.counting(144)
    assert Measure.counting(3).discrete
    assert not SPACES[0].measure.discrete


BAD = [
    (SPACES[0], [1.0, 2, 0], "shape"),
    (SPACES[0], [math.inf, 2, 0, 2.0], "infinite"),
    (SPACES[0], [math.nan, 2, 0, 2.0], "'a' is NaN"),
    (SPACES[0], [1.0, 2.5, 0, 2.0], "not on its grid"),
    (SPACES[0], [1.0, 2, 2, 2.0], "2 values"),
    (SPACES[0], [1.0, 2, 0, 2.005], "step 0.01"),
]


@pytest.mark.parametrize(("space", "row", "message"), BAD)
def test_bad_rows_are_named(space, row, message):
    with pytest.raises(PofxError, match=message):
        space.check(torch.tensor([row], dtype=torch.float64))


def test_good_rows_pass():
    SPACES[0].check(torch.tensor([[1.0, math.nan, math.nan, math.nan], [1.0, -70, 1, -3.27]], dtype=torch.float64))


def fitted():
    model = Moments(Plain(), synthetic.gaussian(2).space)
    model.learn(synthetic.gaussian(2).sample(500, torch.Generator().manual_seed(0)), None)
    return model


def test_shapes_of_the_contract():
    model = fitted()
    x = model.sample(12)
    assert model.log_prob(x.reshape(3, 4, 2)).nats.shape == (3, 4)
    assert model.log_prob(x[0]).nats.shape == ()
    chain = Counts(Plain(), synthetic.markov(4).space, Label(("a", "b", "c")))
    c = torch.tensor([[0, 1, 2], [2, 1, 0]])
    drawn = chain.given(c).sample(5)
    assert drawn.shape == (5, 2, 3, 4)
    assert chain.given(c).log_prob(drawn).nats.shape == (5, 2, 3)
    with pytest.raises(WrongShape, match="context batch"):
        chain.given(c).log_prob(drawn[..., :1, :])
    with pytest.raises(UsageError, match="no c was given"):
        chain.sample(1)
    with pytest.raises(UsageError, match="takes no context"):
        model.given(torch.tensor(0))


def test_chunks_do_not_change_the_result(monkeypatch):
    model = fitted()
    x = model.sample(50)
    whole = model.log_prob(x).nats
    monkeypatch.setattr(Moments, "rows_per_pass", lambda self: 7)
    assert torch.allclose(whole, model.log_prob(x).nats, rtol=1e-13)  # sums in vectors of a processor's own width
    assert model.sample(50).shape == (50, 2)


@pytest.mark.parametrize("answer", [math.nan, math.inf])
def test_no_number_is_refused_by_name(monkeypatch, answer):
    """A family that answers NaN (or an infinite probability) is named with the row; an impossible row is none."""
    model, x = fitted(), torch.zeros(20, 2, dtype=torch.float64)
    monkeypatch.setattr(Moments, "rows_per_pass", lambda self: 7)
    nats = torch.zeros(20, dtype=torch.float64)
    rows = iter(nats.split(7))
    monkeypatch.setattr(Moments, "rows_log_prob", lambda self, *_: Exact(next(rows), self.space.measure))
    nats[3] = -math.inf
    assert model.log_prob(x).nats[3] == -math.inf
    rows = iter(nats.split(7))
    nats[16] = answer
    with pytest.raises(NotANumber, match=rf"{model.name} answers {answer} nats for row 16 \(1 of 20"):
        model.log_prob(x)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_draws_that_are_no_numbers_are_refused(monkeypatch, value):
    model = fitted()
    x = torch.tensor([[0.5, 1.0], [value, 2.0]], dtype=torch.float64)
    monkeypatch.setattr(Moments, "rows_sample", lambda self, *_: x)
    with pytest.raises(NotANumber, match=f"draws a {value} in column"):
        model.sample(2)
    model.space = Table(tuple(Real(c.name, nullable=True) for c in model.space.columns))
    if math.isnan(value):  # missing
        assert model.sample(2).isnan().sum() == 1


@pytest.mark.parametrize("request_", [Elbo, Elbo(draws=16), OdeLikelihood(steps=3)])
def test_requests_that_a_model_does_not_answer_are_refused(request_):
    with pytest.raises(UsageError, match="does not answer (Elbo|OdeLikelihood), but ExactLikelihood"):
        fitted().log_prob(torch.zeros(1, 2, dtype=torch.float64), request=request_)


def test_samplers_that_mean_nothing_are_refused():
    with pytest.raises(UsageError, match="does not answer Heun, but Direct"):
        fitted().sample(1, sampler=Heun(steps=5))


def test_unknown_family_names_its_neighbours():
    with pytest.raises(UsageError, match="Did you mean gmm"):
        family("gmmm")
    assert "vae" in families()


def test_map_with_a_gaussian_prior_is_weight_decay():
    """-log N(theta; 0, s^2) / N per datum has the gradient theta / (s^2 N): SGD's weight decay, exactly."""
    n, scale, lr = 50, 0.7, 0.1
    x = torch.randn(n, 4, generator=torch.Generator().manual_seed(0))
    batch = Batch(x, total=n)

    def run(recipe):
        layer = torch.nn.Linear(4, 1)
        with torch.no_grad():
            layer.weight.fill_(0.5)
            layer.bias.fill_(-0.3)
        stepper = Stepper(list(layer.parameters()), recipe, rows=n)
        for _ in range(10):
            stepper.update({"loss": layer(batch.x)[:, 0].square()}, batch, Local())
        return torch.cat([p.flatten() for p in layer.parameters()])

    common = {"optimizer": "sgd", "lr": lr, "schedule": "constant", "clip": None}
    prior = run(Recipe(**common, prior_scale=scale))
    decay = run(Recipe(**common, weight_decay=1 / (scale**2 * n)))
    plain = run(Recipe(**common))
    assert torch.allclose(prior, decay, atol=1e-6)
    assert (prior - plain).abs().max() > 1e-3


def test_a_step_of_infinite_gradient_is_not_taken():
    p = torch.nn.Parameter(torch.ones(2))
    stepper = Stepper([p], Recipe())
    out = stepper.update({"loss": (p / 0.0).sum().expand(1)}, Batch(torch.zeros(1, 1), total=1), Local())
    assert not math.isfinite(out["grad_norm"])
    assert torch.equal(p, torch.ones(2))


def test_weights_count_as_repeated_rows():
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    weight = torch.tensor([1.0, 2.0, 0.0, 3.0, 1.0, 1.0])

    def gradient(rows, w):
        layer = torch.nn.Linear(2, 1, bias=False)
        torch.nn.init.ones_(layer.weight)
        learner = GradientLearner(layer, Recipe(clip=None), lambda b, g: {"loss": layer(b.x)[:, 0].square()})
        learner.step(Batch(rows, weight=w, total=len(rows)), torch.Generator())
        return layer.weight.grad

    repeated = x.repeat_interleave(weight.long(), 0)
    assert torch.allclose(gradient(x, weight), gradient(repeated, None), atol=1e-6)


def test_learning_rate_follows_progress_and_warm_up():
    recipe = Recipe(lr=2.0, warmup=4)
    at = [learning_rate(recipe, Batch(torch.zeros(1), step=t, progress=p)) for t, p in ((0, 0), (9, 0.5), (9, 1))]
    assert at == pytest.approx([0.5, 1.0, 0.0], abs=1e-9)


def test_noise_of_a_share_is_that_of_the_whole():
    whole = Batch(torch.zeros(6, 1), total=6).randn(3, generator=torch.Generator().manual_seed(4))
    share = Batch(torch.zeros(2, 1), start=3, total=6).randn(3, generator=torch.Generator().manual_seed(4))
    assert torch.equal(whole[3:5], share)


def test_import_is_light():
    code = "import sys, pofx; assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_help_needs_neither_torch_nor_tyro():
    code = "import sys; from pofx.cli import main; main(['--help']); assert not {'torch', 'tyro'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


# -- the registry -----------------------------------------------------------------------------------


@pytest.fixture
def installed(monkeypatch):
    """Sets the entry points that are found."""

    def put(*points):
        found = [EntryPoint(name, value, "pofx.families") for name, value in points]
        monkeypatch.setattr(registry, "entry_points", lambda group: found)
        registry._installed.cache_clear()

    monkeypatch.setattr(registry, "_REGISTERED", {})
    yield put
    registry._installed.cache_clear()


def toy(name):
    return type("Toy", (Moments,), {"name": name})


def test_a_registered_family_replaces_no_other(installed):
    first = toy("pocket-gaussian")
    registry.register(first)
    registry.register(first)
    for other in (toy("pocket-gaussian"), toy("gmm"), toy("rnn")):
        with pytest.raises(UsageError, match=f"{other.name}' exists already"):
            registry.register(other)
    assert family("pocket-gaussian") is first
    assert family("gmm").__module__ == "pofx.families.gmm"


def test_a_registered_family_is_one_of_the_families(installed, capsys):
    before = families()
    registry.register(toy("pocket-gaussian"))
    assert [*families()] == [*before, "pocket-gaussian"]
    with pytest.raises(UsageError, match="Did you mean pocket-gaussian"):
        family("pocket-gausian")
    assert main(["families", "--json"]) == 0
    assert "pocket-gaussian" in {about["name"] for about in json.loads(capsys.readouterr().out)}


def test_an_entry_point_gives_way_to_a_name_that_is_taken_and_is_told(installed):
    installed(("gpt", "theirs.net:Gpt"), ("bell", "one:Bell"), ("bell", "two:Bell"), ("vae", registry.BUILT_IN["vae"]))
    with pytest.warns(UserWarning, match="left out") as told:
        known = families()
    assert [str(w.message).split(" is left out")[0] for w in told] == [
        "The family 'gpt' of theirs.net:Gpt",
        "The family 'bell' of two:Bell",
    ]
    assert known["gpt"] == registry.BUILT_IN["gpt"]
    assert known["bell"] == "one:Bell"


def test_an_entry_point_that_does_not_load_or_has_another_name_is_named(installed):
    installed(
        ("gone", "no_such_package:Gone"), ("bare", "pofx.core.registry:Bare"), ("alias", "pofx.testing.wrong:Moments")
    )
    for name in ("gone", "bare"):
        with pytest.raises(UsageError, match=f"'{name}' cannot be loaded from"):
            family(name)
    with pytest.raises(UsageError, match="stands for 'alias' and calls itself 'right gaussian'"):
        family("alias")


# -- data of other types ----------------------------------------------------------------------------


def chain():
    """Three columns of four categories, given one of two classes."""
    columns = tuple(Category(name, tuple("abcd")) for name in "xyz")
    return Counts(Plain(), Table(columns), Label(("left", "right")))


WHOLE = torch.tensor([[0, 1, 3], [2, 2, 0]])
SAME = {
    "float32": WHOLE.float(),
    "float16": WHOLE.half(),
    "bfloat16": WHOLE.bfloat16(),
    "int8": WHOLE.to(torch.int8),
    "lists": WHOLE.tolist(),
    "numpy": WHOLE.numpy(),
    "numpy uint16": WHOLE.numpy().astype(np.uint16),
    "numpy float32": WHOLE.numpy().astype(np.float32),
    "big-endian": WHOLE.numpy().astype(">i4"),
    "reversed": WHOLE.numpy()[:, ::-1].copy()[:, ::-1],
    "masked": np.ma.masked_array(WHOLE.numpy(), mask=False),
}


@pytest.mark.parametrize("kind", SAME)
def test_equal_values_of_another_type_score_the_same(kind):
    model = chain()
    want = model.given(torch.tensor([1, 0])).log_prob(WHOLE.double()).nats
    for c in ([1, 0], np.array([1, 0], np.int16), torch.tensor([True, False]), torch.tensor([1.0, 0.0])):
        assert torch.equal(model.given(c).log_prob(SAME[kind]).nats, want)


def test_every_question_takes_them():
    model = fitted()
    x = torch.tensor([[0.5, -1.25], [2.0, 3.0]], dtype=torch.float64)
    assert torch.equal(model.given().score(x.float()), model.given().score(x))
    assert torch.equal(model.given().score(x.numpy().tolist()), model.given().score(x))
    assert torch.equal(model.log_prob(x[0].float()).nats, model.log_prob(x[0]).nats)
    texts = Bigrams(Plain(), Text("ab", length=4))
    lines = torch.tensor([[0, 1, 1], [1, -1, -1]])
    assert torch.equal(texts.given().log_probs(lines.to(torch.int32)), texts.given().log_probs(lines))
    assert torch.equal(
        texts.given(before=[[1], [0]]).log_prob(lines.numpy()).nats,
        texts.given(before=torch.tensor([[1], [0]])).log_prob(lines).nats,
    )


BIG = 2**53 + 1
PICTURE = Image(1, 2, 1, 16)


@pytest.mark.parametrize(
    ("space", "x", "error", "words"),
    [
        (PICTURE, torch.tensor([[[0.5, 1.0]]]), BadValue, r"value 0\.5 of torch\.float32.*\(x \* 15\)\.round\(\)"),
        (PICTURE, torch.tensor([[[-1, 3]]]), BadValue, "value -1 of torch.int64"),
        (PICTURE, torch.tensor([[[256, 3]]]), BadValue, "value 256"),
        (PICTURE, torch.tensor([[[math.nan, 3]]]), BadValue, "value nan"),
        (PICTURE, [[[16.0, 3.0]]], BadValue, "level 16"),
        (Label(("a", "b")), [0.5], BadValue, "value 0.5.*Give whole numbers"),
        (Label(("a", "b")), ["a", "c"], BadValue, "no class 'c'.*Classes: a, b"),
        (Label(("a", "b")), [["a"]], WrongShape, "dtype <U1"),
        (Table((Real("a"),)), torch.tensor([[BIG]]), BadValue, f"value {BIG} of torch.int64"),
        (Table((Real("a"),)), np.array([[BIG]], np.uint64), BadValue, f"value {BIG}"),
        (Table((Real("a"),)), np.array([[2**63]], np.uint64), BadValue, "beyond int64"),
        (Table((Real("a"),)), [[1.0], [1.0, 2.0]], WrongShape, "This list is no array"),
        (Table((Real("a"),)), np.array([[None]]), WrongShape, "dtype object"),
        (Table((Real("a"),)), np.ma.masked_array([[1.0]], mask=True), BadValue, "NaN"),
        (Table((Real("a"),)), torch.ones(1, 1, dtype=torch.complex64), WrongShape, "complex64"),
        (Table((Real("a"),)), [["x"]], WrongShape, "dtype <U1.*by name"),
        (Table((Real("a"),)), {"aa": [1.0]}, WrongShape, "no column 'a'.*Did you mean aa"),
        (Table((Real("a"), Real("b"))), {"a": [1.0, 2.0], "b": 1.0}, WrongShape, "'b' is a single value"),
        (Table((Real("a"), Real("b"))), {"a": [1.0, 2.0], "b": [1.0]}, WrongShape, "no table"),
        (Table((Real("a"),)), {"b": 1.0}, UsageError, "no column 'b'"),
        (Table((Real("a"),)), pa.table({"b": [1.0]}), WrongShape, "no column 'a'"),
        (Table((Category("k", ("low", "high")),)), pa.table({"k": ["mid"]}), BadValue, "'mid' in row 0"),
        (PICTURE, pa.table({"a": [1.0]}), WrongShape, "holds a table of 1 columns; expected"),
        (Text("ab"), ["abc"], BadValue, "'c'"),
    ],
)  # fmt: skip
def test_a_value_that_would_change_is_refused_with_what_to_do(space, x, error, words):
    with pytest.raises(error, match=f"(?s){words}"):
        space.check(take(space, x))


def test_the_remedies_work():
    shade = torch.tensor([[[0.0, 1.0]]])
    assert torch.equal(take(PICTURE, (shade * 15).round()), torch.tensor([[[0, 15]]], dtype=torch.uint8))
    space = Table((Real("a"), Category("k", ("low", "high"))))
    frame = pa.table({"k": ["high", "low"], "a": [0.5, 1.5]})
    assert read_rows(space, None, frame).x.tolist() == [[0.5, 1.0], [1.5, 0.0]]


def noisy(values, errors, kind=LowerBound, **more):
    return kind(torch.tensor(values), ONE, torch.tensor(errors), 8, **more)


@pytest.mark.parametrize(
    ("lik", "words"),
    [
        (exact([-3.25, -3.15, -3.23]), "= -3.210 ± 0.031 nats (3 rows)"),  # sqrt(0.0056 / 2 / 3)
        (exact([[-1.0, -2.0], [-1.0, -2.0]]), "= -1.50 ± 0.29 nats (4 rows)"),
        (exact(-3.21), "= -3.21 nats"),
        (exact([-3.21]), "= -3.21 nats"),
        (exact([-1.0, -math.inf]), "= −∞ nats (1 of 2 rows impossible)"),
        (exact([]), "= (no rows)"),
        (noisy([-85.0, -86.0], [0.3, 0.4]), "≥ -85.50 ± 0.50 nats (2 rows; mc 0.25)"),
        (noisy([-85.0, -86.0], [0.003, 0.004]), "≥ -85.50 ± 0.50 nats (2 rows)"),
        (noisy(-85.0, 0.02), "≥ -85.000 ± 0.020 nats"),
        (noisy([-math.inf], [0.0]), "≥ −∞ nats (1 of 1 row without a bound)"),
        (noisy(-85.0, 0.02, UpperBound), "≤ -85.000 ± 0.020 nats"),
        (noisy([-1.0, -3.0], [0.0, 0.0], Estimate, caveat="an ODE"), "≈ -2.0 ± 1.0 nats (2 rows; an ODE)"),
        (Unavailable("a GAN has no density"), "— (a GAN has no density)"),
    ],
    ids=str,
)
def test_a_likelihood_prints_as_what_it_is(lik, words):
    assert repr(lik) == str(lik) == words


def test_a_likelihood_that_carries_a_gradient_prints():
    assert repr(exact([-1.0, -2.0])) == repr(Exact(torch.tensor([-1.0, -2.0], requires_grad=True), ONE))


def test_models_data_and_runs_print_in_a_line(tmp_path):
    data = pofx.load("two-moons", max_rows=100)
    assert repr(data).startswith("two-moons: table of 2 columns: 2 real; rows: 80 train, 10 valid, 10 test\n· ")
    assert repr(data.test[:1]) == "1 row: x [1, 2], label [1], rows [1]"
    run = pofx.fit(data, "gaussian", out=tmp_path / "run")
    about = "gaussian: p(x), x: table of 2 columns: 2 real; 5 fitted numbers"
    assert repr(run.model) == about
    assert repr(run.model.given()) == f"p(x), by {about}"
    assert repr(run).startswith(f"{about}; fitted to two-moons: finished after 1 steps, ")
    assert repr(run).endswith(f"; in {tmp_path / 'run'}")
    given = chain().given(torch.tensor([0, 1]))
    assert repr(given).startswith("p(x | c) of batch shape [2], by right chain: p(x | c), x: table of 3 columns")
    assert "c: label of 2 classes; " in repr(given)


@pytest.mark.parametrize("family", ["made", "vae", "gmm", "nsf", "vdm", "histogram"])
def test_the_numbers_of_a_run_are_arrays_until_somebody_asks_for_gradients(family):
    data = pofx.load("two-moons", max_rows=200)
    model = pofx.fit(data, family, steps=3).model
    x = data.test.x[:4]
    assert model.log_prob(x).nats.numpy().shape == (4,)
    assert model.log_prob(x.clone().requires_grad_()).nats.requires_grad
    with torch.no_grad():
        assert not model.log_prob(x.clone().requires_grad_()).nats.requires_grad
    if [*model.parameters()]:
        model.requires_grad_()
        model.log_prob(x).nats.mean().backward()
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


NAMED = Table((Real("a"), Category("k", ("low", "high")), Integer("n", 0, 9, nullable=True)))
COLUMNS = {"k": ["high", "low"], "spare": [1, 2], "n": [3, None], "a": [0.5, 1.5]}


@pytest.mark.parametrize("library", ["pandas", "polars", "pyarrow", "dictionary", "tensors"])
def test_what_has_columns_by_name_goes_in_by_name(library):
    if library == "dictionary":
        frame = COLUMNS
    elif library == "tensors":
        frame = COLUMNS | {"n": np.array([3, math.nan]), "a": torch.tensor([0.5, 1.5])}
    elif library == "pyarrow":
        frame = pa.table(COLUMNS)
    else:
        frame = pytest.importorskip(library).DataFrame(COLUMNS)
    want = torch.tensor([[0.5, 1, 3], [1.5, 0, math.nan]], dtype=torch.float64)
    assert torch.equal(take(NAMED, frame).nan_to_num(-1), want.nan_to_num(-1))


def test_strings_and_single_rows_go_in():
    assert take(Text("ab"), ["ab", "b"]).tolist() == [[0, 1], [1, -1]]
    assert take(Text("ab"), "ba").tolist() == [1, 0]
    label = Label(("a", "b"))
    assert take(label, "b").tolist() == 1
    for spelt in (["b", "a"], np.array(["b", "a"]), np.array(["b", "a"], object), pa.table({"any": ["b", "a"]})):
        assert take(label, spelt).tolist() == [1, 0]
    row = take(NAMED, {"k": "high", "a": 0.5})
    assert row[:2].tolist() == [0.5, 1.0]
    assert row[2].isnan()


def test_a_model_takes_frames_as_data_and_as_contexts():
    pd = pytest.importorskip("pandas")
    model = chain()
    model.learn(WHOLE, torch.tensor([1, 0]))
    spelt = [["abcd"[v] for v in row] for row in WHOLE.tolist()]
    frame = pd.DataFrame(spelt, columns=["x", "y", "z"])[["z", "x", "y"]].assign(label=["right", "left"])
    want = model.given(torch.tensor([1, 0])).log_prob(WHOLE).nats
    assert torch.equal(model.given(frame).log_prob(frame).nats, want)
    assert torch.equal(model.given(frame["label"]).log_prob(frame.drop(columns="label")).nats, want)
