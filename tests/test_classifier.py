"""The classifier is p(y | x) under the same contract: its likelihood is minus the cross-entropy."""

import torch
from sklearn.linear_model import LogisticRegression

import pofx
from pofx.families.discriminative import Classifier
from pofx.spaces import Label


def test_probabilities_sum_to_one_for_every_context():
    data = pofx.load("digits", target="label")
    model = Classifier(Classifier.tiny(data.space), data.space, data.context)
    labels = torch.arange(10)[:, None].expand(10, 7)
    total = model.given(data.test.c[:7]).log_prob(labels).nats.exp().sum(0)
    assert torch.allclose(total, torch.ones(7, dtype=total.dtype), atol=1e-6)


def test_digits_are_told_apart():
    data = pofx.load("digits", target="label")
    assert isinstance(data.space, Label)
    run = pofx.fit(data, "classifier", epochs=8, seed=0)
    with torch.no_grad():
        guess = run.model.logits(run.model.encode_context(data.test.c)).argmax(-1)
        nats = run.model.given(data.test.c).log_prob(data.test.x).nats
    assert (guess == data.test.x).float().mean() > 0.93
    assert nats.mean() > -0.35


def test_a_table_is_classified_about_as_well_as_by_a_linear_model():
    data = pofx.load("wine", target="label")
    run = pofx.fit(data, "classifier", epochs=60, seed=0, recipe={"batch": 32})
    with torch.no_grad():
        ours = (run.model.logits(run.model.encode_context(data.test.c)).argmax(-1) == data.test.x).float().mean()
    scale = data.train.c.std(0)
    linear = LogisticRegression(max_iter=2000).fit(data.train.c / scale, data.train.x)
    theirs = linear.score(data.test.c / scale, data.test.x)
    assert ours >= theirs - 0.12
