"""A budget in seconds is spent on the number of threads that is faster just now; others keep their threads."""

from types import SimpleNamespace

import pytest
import torch

from pofx.train import threads
from pofx.train.fit import fit
from pofx.train.threads import COUNT, PAUSE, Threads
from toys import NoisyGaussian, gaussian_data


@pytest.fixture(autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


class Machine:
    """Time passes by steps alone, whose length follows from their threads."""

    def __init__(self, monkeypatch, one, two):
        self.now, self.length, self.used = 0.0, {1: one, 2: two}, []
        monkeypatch.setattr(threads, "time", SimpleNamespace(perf_counter=lambda: self.now))

    def step(self):
        self.used.append(torch.get_num_threads())
        self.now += self.length[self.used[-1]]
        return len(self.used)


@pytest.mark.parametrize(("one", "two", "faster"), [(1.0, 0.6, 2), (1.0, 1.2, 1)])
def test_the_faster_number_is_kept(monkeypatch, one, two, faster):
    machine, chosen = Machine(monkeypatch, one, two), Threads(2)
    assert [chosen.run(machine.step) for _ in range(2 * COUNT + 20)] == [*range(1, 2 * COUNT + 21)]
    assert machine.used == [1] * COUNT + [2] * COUNT + [faster] * 20


def test_what_the_machine_does_changes(monkeypatch):
    machine, chosen = Machine(monkeypatch, 1.0, 50.0), Threads(2)
    while machine.now < PAUSE * (COUNT + 50.0):
        chosen.run(machine.step)
    assert machine.used.count(2) == 1  # hopeless at once
    machine.length[2] = 0.5
    for _ in range(200):
        chosen.run(machine.step)
    assert machine.used[-60:].count(2) > 45  # but for the steps of a trial


def test_steps_keep_their_threads_and_the_caller_gets_his_back(monkeypatch):
    seen = []
    objective = NoisyGaussian.nats
    monkeypatch.setattr(
        NoisyGaussian, "nats", lambda self, x: seen.append(torch.get_num_threads()) or objective(self, x)
    )
    fit(gaussian_data(), NoisyGaussian, steps=30)
    assert set(seen) == {2}
    fit(gaussian_data(), NoisyGaussian, seconds=0.3)
    assert 1 in seen
    assert torch.get_num_threads() == 2
