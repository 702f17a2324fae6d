"""Run folders outlive what happens to them: flipped bits, signals, deletion, a second process, a full disk."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import threading
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

from pofx.cli import main
from pofx.core import files
from pofx.core.errors import (
    CannotSave,
    CorruptCheckpoint,
    NewerFormat,
    NoRun,
    OlderFormat,
    OutOfMemory,
    RunBusy,
    RunExists,
    Stopped,
    UsageError,
)
from pofx.core.files import lock, write_atomic
from pofx.evaluate.compare import assess, compare
from pofx.report.build import build
from pofx.train import loop, memory, signals
from pofx.train.checkpoint import (
    load_tree,
    read_arrays,
    read_lines,
    read_sealed,
    save_tree,
    write_arrays,
    write_lines,
    write_sealed,
)
from pofx.train.fit import fit, resume
from pofx.train.run import claimed, read_run
from toys import NoisyGaussian, gaussian_data

NUMBERS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}


@pytest.fixture(scope="module")
def data():
    return gaussian_data()


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def usual_signals():
    """As in a shell, whoever runs the tests."""
    before = {number: signal.signal(number, usual) for number, usual in signals.USUAL.items()}
    yield
    for number, handler in before.items():
        assert signal.getsignal(number) == signals.USUAL[number], "a fit left its handler behind"
        signal.signal(number, handler)


def weights(run):
    return torch.cat([p.flatten() for p in run.model.state_dict().values()])


def at_step(step, act):
    """A progress callback that acts once, when the validation of this step is told."""
    done = []

    def progress(entry):
        if entry.get("step") == step and "valid" in entry and not done:
            done.append(True)
            act()

    return progress


def send(number):
    os.kill(os.getpid(), number)


BUDGET = {"steps": 60, "checks": 6, "recipe": {"ema": 0.9}, "seed": 2}


@pytest.fixture(scope="module")
def undisturbed(data):
    return fit(data, NoisyGaussian, **BUDGET)


def same_as(undisturbed, path, data):
    """The interrupted run, continued, ends in the same bits and log as one that nobody disturbed."""
    resumed = resume(path, data=data)
    assert torch.equal(weights(resumed), weights(undisturbed))
    assert torch.equal(weights(read_run(path)), weights(undisturbed))
    logs = [[{k: v for k, v in e.items() if k != "seconds"} for e in run.log] for run in (resumed, undisturbed)]
    assert logs[0] == logs[1]


# -- digests -------------------------------------------------------------------------------------------------

KINDS = {
    "tree": (save_tree, load_tree, {"w": torch.arange(3.0), "n": [1, 2.5, '"digest":"0'], "s": {4: None}}),
    "record": (write_sealed, read_sealed, {"a": [1, 0.1, "é"], "b": {"digest": "x"}}),
    "lines": (write_lines, read_lines, [{"step": 1, "loss": 0.5}, {"step": 2, "status": "finished"}]),
    "arrays": (write_arrays, read_arrays, {"x": np.arange(4), "c": np.ones((2, 2), np.float32)}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_no_flipped_bit_reads_as_something_else(kind, tmp_path):
    write, read, content = KINDS[kind]
    file = tmp_path / "run"
    write(file, content)
    assert repr(read(file)) == repr(content)
    whole = file.read_bytes()
    for i in range(0, 8 * len(whole), 3):
        flipped = bytearray(whole)
        flipped[i // 8] ^= 1 << i % 8
        file.write_bytes(bytes(flipped))
        with suppress(CorruptCheckpoint):
            assert repr(read(file)) == repr(content)
    for cut in (0, 1, 7, 8, 9, len(whole) // 2, len(whole) - 2):
        file.write_bytes(whole[:cut])
        with pytest.raises(CorruptCheckpoint, match="damaged"):
            read(file)


@pytest.mark.parametrize("kind", KINDS)
def test_what_cannot_be_read_is_named(kind, tmp_path):
    _, read, _ = KINDS[kind]
    with pytest.raises(NoRun):
        read(tmp_path / "none" / "file")
    with pytest.raises(CorruptCheckpoint, match="cannot be read"):
        read(tmp_path)
    with pytest.raises(CorruptCheckpoint, match="cannot be read"):
        read(tmp_path / ("x" * 300))


NO_CONFIG = ["[1]", "{}", "[" * 100_000, '{"format": ' + "9" * 6000 + "}", '{"format": "1"}', "\xff"]


@pytest.mark.parametrize("text", NO_CONFIG, ids=range(len(NO_CONFIG)))
def test_no_json_is_a_config_by_chance(text, tmp_path):
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CorruptCheckpoint, match="config.json"):
        read_run(tmp_path)


def test_formats_are_told_from_damage(data, tmp_path):
    fit(data, NoisyGaussian, steps=2, out=tmp_path)
    info = json.loads((tmp_path / "config.json").read_text())
    for change, error in (({"format": 99}, NewerFormat), ({"format": 1}, OlderFormat)):
        text = json.dumps({k: v for k, v in (info | change).items() if v is not None})
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(error):
            read_run(tmp_path)


@pytest.mark.parametrize(("key", "value"), [("noise", 0.2), ("hidden", 10**9), ("orders", 2**70)])
def test_a_config_edited_by_hand_is_refused(key, value, data, tmp_path):
    fit(data, NoisyGaussian, steps=2, out=tmp_path)
    info = json.loads((tmp_path / "config.json").read_text())
    info["options"][key] = value
    (tmp_path / "config.json").write_text(json.dumps(info))
    with pytest.raises(CorruptCheckpoint, match="changed since"):
        read_run(tmp_path)
    with pytest.raises(CorruptCheckpoint, match="changed since"):
        resume(tmp_path, data=data)


def test_options_of_another_version_are_named(data, tmp_path):
    fit(data, NoisyGaussian, steps=2, out=tmp_path)
    info = read_sealed(tmp_path / "config.json")
    info["options"]["removed"] = 3
    write_sealed(tmp_path / "config.json", info)
    with pytest.raises(OlderFormat, match="'removed'.*Fit again"):
        read_run(tmp_path)


@pytest.fixture(scope="module")
def assessed(data, tmp_path_factory):
    path = tmp_path_factory.mktemp("assessed") / "run"
    fit(data, NoisyGaussian, steps=20, out=path)
    assess(path, data, seconds=0.5)
    build(path)
    return path


FILES = ["config.json", "log.jsonl", "evaluation.json", "samples/samples.npz", "data_sample.npz"]


@pytest.mark.parametrize("name", FILES)
def test_a_report_names_the_damaged_file(name, assessed, tmp_path, capsys):
    run = Path(shutil.copytree(assessed, tmp_path / "run"))
    content = bytearray((run / name).read_bytes())
    content[len(content) // 2] ^= 0x10
    (run / name).write_bytes(bytes(content))
    with pytest.raises(CorruptCheckpoint, match=name):
        build(run)
    assert main(["report", str(run), "--quiet"]) == 5
    assert name in capsys.readouterr().err


# -- signals -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", NUMBERS, ids=lambda n: n.name)
def test_a_signal_ends_a_fit_that_goes_on_to_the_same_bits(number, data, undisturbed, tmp_path):
    path = tmp_path / "run"
    with pytest.raises(Stopped, match=rf"after step 41.*saved.*pofx resume {path}") as stopped:
        fit(data, NoisyGaussian, **BUDGET, out=path, progress=at_step(40, lambda: send(number)))
    assert stopped.value.exit_code == NUMBERS[number]
    assert isinstance(stopped.value, KeyboardInterrupt)
    assert not isinstance(stopped.value, Exception)
    run = read_run(path)
    assert (run.status, run.steps) == ("unfinished", 41)
    assert load_tree(path / "resume.safetensors")["state"]["step"] == 41
    same_as(undisturbed, path, data)


def test_a_signal_does_not_wait_for_a_validation(data, undisturbed, tmp_path, monkeypatch):
    path, score, calls = tmp_path / "run", NoisyGaussian.rows_log_prob, []

    def scored(self, *args):
        calls.append(1)
        if len(calls) == 5:
            send(signal.SIGTERM)
            pytest.fail("the validation went on")
        return score(self, *args)

    monkeypatch.setattr(NoisyGaussian, "rows_log_prob", scored)
    with pytest.raises(Stopped, match="while step 50 was validated, which is saved"):
        fit(data, NoisyGaussian, **BUDGET, out=path)
    monkeypatch.setattr(NoisyGaussian, "rows_log_prob", score)
    same_as(undisturbed, path, data)


def test_a_signal_before_the_first_step(data, undisturbed, tmp_path, monkeypatch):
    path = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(NoisyGaussian, "prepare", lambda *args: send(signal.SIGINT))
        with pytest.raises(Stopped, match="SIGINT before its first step.*pofx resume"):
            fit(data, NoisyGaussian, **BUDGET, out=path)
    with pytest.raises(NoRun, match=f"no weights yet.*pofx resume {path}"):
        read_run(path)
    same_as(undisturbed, path, data)


def test_weights_before_the_first_validation(data, undisturbed, tmp_path, monkeypatch):
    """A fit that is stopped in its first steps can be used as it stands: with its averaged weights."""
    path, guard = tmp_path / "run", loop.Loop._guard

    def guarded(self, terms):
        guard(self, terms)
        if self.state.step == 3:
            send(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Loop, "_guard", guarded)
        with pytest.raises(Stopped, match="after step 4"):
            fit(data, NoisyGaussian, **BUDGET, out=path)
    kept = load_tree(path / "resume.safetensors")
    assert torch.equal(read_run(path).model.mean, kept["average"]["mean"])
    assert not torch.equal(read_run(path).model.mean, kept["weights"]["mean"])
    assert read_run(path).steps == 4
    same_as(undisturbed, path, data)


def test_a_signal_in_a_save_waits_for_it(data, undisturbed, tmp_path, monkeypatch):
    path, sync, sent = tmp_path / "run", os.fsync, []

    def synced(handle):
        if (path / "log.jsonl").exists() and not sent:
            sent.append(send(signal.SIGTERM))
        sync(handle)

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", synced)
        with pytest.raises(Stopped, match="after step"):
            fit(data, NoisyGaussian, **BUDGET, out=path, save_every=0.0)
    same_as(undisturbed, path, data)


def test_a_second_interrupt_stops_at_once(data, undisturbed, tmp_path, monkeypatch):
    """Even in the middle of a step: what was saved before stands."""
    path = tmp_path / "run"
    monkeypatch.setattr(signals, "AGAIN", -1.0)

    def twice():
        send(signal.SIGINT)
        send(signal.SIGINT)
        pytest.fail("training went on")

    with pytest.raises(Stopped, match="in the middle of a step"):
        fit(data, NoisyGaussian, **BUDGET, out=path, save_every=0.0, progress=at_step(40, twice))
    assert load_tree(path / "resume.safetensors")["state"]["step"] == 40
    same_as(undisturbed, path, data)


def test_a_signal_in_the_last_validation_is_not_lost(data, undisturbed, tmp_path):
    path = tmp_path / "run"
    with pytest.raises(Stopped, match="had ended; all is saved"):
        fit(data, NoisyGaussian, **BUDGET, out=path, progress=at_step(60, lambda: send(signal.SIGHUP)))
    assert torch.equal(weights(read_run(path)), weights(undisturbed))


def test_a_handler_of_the_users_own_is_respected(data, tmp_path):
    heard = []
    signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        run = fit(data, NoisyGaussian, **BUDGET, out=tmp_path, progress=at_step(40, lambda: send(signal.SIGTERM)))
        assert heard == [signal.SIGTERM]
        assert run.status == "finished"
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def test_fits_in_memory_and_in_threads_are_as_ever(data, undisturbed, tmp_path):
    with pytest.raises(KeyboardInterrupt) as interrupt:
        fit(data, NoisyGaussian, **BUDGET, progress=at_step(40, lambda: send(signal.SIGINT)))
    assert type(interrupt.value) is KeyboardInterrupt
    runs = []
    thread = threading.Thread(target=lambda: runs.append(fit(data, NoisyGaussian, **BUDGET, out=tmp_path)))
    thread.start()
    thread.join()
    assert runs[0].status == "finished"


def test_a_comparison_stops_with_its_fit(data, tmp_path):
    def progress(entry):
        if entry["stage"] == "fitting" and "valid" in entry:
            send(signal.SIGINT)

    with pytest.raises(Stopped, match="SIGINT"):
        compare(data, ["independent"], seconds=0.5, samples=50, max_test=50, out=tmp_path, progress=progress)
    assert [p.name for p in (tmp_path / "runs").iterdir()] == ["independent"]


@pytest.mark.parametrize("number", NUMBERS, ids=lambda n: n.name)
def test_the_command_line_exits_with_the_signal(number, tmp_path, monkeypatch, capsys):
    rng = np.random.default_rng(0)
    (tmp_path / "t.csv").write_text("a,b\n" + "".join(f"{a:.4f},{b:.4f}\n" for a, b in rng.normal(size=(80, 2))))
    guard = loop.Loop._guard

    def guarded(self, terms):
        guard(self, terms)
        if self.state.step == 2:
            send(number)

    argv = [str(tmp_path / "t.csv"), "made", "--steps", "8", "--options.hidden", "8", "--quiet"]
    with monkeypatch.context() as patch:
        patch.setattr(loop.Loop, "_guard", guarded)
        assert main(["fit", *argv, "--out", str(tmp_path / "run")]) == NUMBERS[number]
    said = capsys.readouterr().err
    assert f"after step 3, which is saved. Go on with it: pofx resume {tmp_path / 'run'}" in said
    assert main(["resume", str(tmp_path / "run"), "--quiet"]) == 0
    assert main(["fit", *argv, "--out", str(tmp_path / "whole")]) == 0
    assert torch.equal(weights(read_run(tmp_path / "run")), weights(read_run(tmp_path / "whole")))


# -- a folder that is deleted, overwritten, or wanted twice ------------------------------------------------------


def test_a_deleted_folder_is_written_again(data, undisturbed, tmp_path):
    path = tmp_path / "run"
    delete = at_step(40, lambda: shutil.rmtree(path))
    run = fit(data, NoisyGaussian, **BUDGET, out=path, save_every=0.0, progress=delete)
    assert torch.equal(weights(run), weights(read_run(path)))
    assert torch.equal(weights(run), weights(undisturbed))
    assert not (path / ".lock").exists()


def test_a_folder_of_another_run_is_left_alone(data, tmp_path):
    path = tmp_path / "run"

    def another():
        shutil.rmtree(path)
        fit(data, NoisyGaussian, steps=5, seed=9, out=path)

    with pytest.raises(RunBusy, match="was overwritten.*another --out"):
        fit(data, NoisyGaussian, **BUDGET, out=path, save_every=0.0, progress=at_step(40, another))
    assert torch.equal(weights(read_run(path)), weights(fit(data, NoisyGaussian, steps=5, seed=9)))


def test_nobody_else_trains_in_the_folder(data, undisturbed, tmp_path):
    path = tmp_path / "run"

    def others():
        with pytest.raises(RunBusy, match=f"pid {os.getpid()} .*is training in {path}"):
            fit(data, NoisyGaussian, steps=5, out=path, overwrite=True)
        with pytest.raises(RunBusy):
            resume(path, data=data)

    run = fit(data, NoisyGaussian, **BUDGET, out=path, progress=at_step(40, others))
    assert torch.equal(weights(run), weights(undisturbed))
    assert sorted(p.name for p in path.iterdir()) == sorted(
        ["config.json", "log.jsonl", "resume.safetensors", "weights.safetensors"]
    )


def test_the_lock_of_a_killed_process_holds_nobody_up(data, tmp_path):
    (tmp_path / ".lock").write_text("pid 1 on this-machine")
    assert fit(data, NoisyGaussian, steps=2, out=tmp_path).status == "finished"
    with pytest.raises(RunExists), claimed(tmp_path):
        raise RunExists("x")
    with claimed(tmp_path):
        pass


def test_overwriting_takes_what_was_measured_along(assessed, data, tmp_path):
    run = Path(shutil.copytree(assessed, tmp_path / "run"))
    fit(data, NoisyGaussian, steps=3, out=run, overwrite=True)
    left = {str(p.relative_to(run)) for p in run.rglob("*") if p.is_file()}
    assert left == {"config.json", "log.jsonl", "resume.safetensors", "weights.safetensors"}


def test_what_a_kill_left_is_removed_by_the_next_write(tmp_path):
    left, held, other = (tmp_path / f".{name}.x7" for name in ("w.bin", "v.bin", "w.bin2"))
    for folder in (left, held, other):
        folder.mkdir()
        (folder / "half").write_text("…")
    handle = lock(held)
    assert handle is not None
    for name in ("w.bin", "v.bin"):
        write_atomic(tmp_path / name, b"new")
    os.close(handle)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".v.bin.x7", ".w.bin2.x7", "v.bin", "w.bin"]


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o007])
def test_files_follow_the_umask(umask, data, tmp_path):
    before = os.umask(umask)
    try:
        fit(data, NoisyGaussian, steps=2, out=tmp_path / "run")
    finally:
        os.umask(before)
    modes = {stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "run").iterdir()}
    assert modes == {0o666 & ~umask}


# -- places that cannot be written ---------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["x" * 300, "file/run", "x" * 5000], ids=["name", "file", "path"])
def test_impossible_places_are_named_before_training(place, data, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(NoisyGaussian, "prepare", lambda *args: pytest.fail("training began"))
    with pytest.raises(CannotSave, match="Could not write"):
        fit(data, NoisyGaussian, steps=2, out=tmp_path / place)


def test_a_folder_without_rights_is_named_before_training(data, tmp_path, monkeypatch):
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    fit(data, NoisyGaussian, steps=2, out=tmp_path / "run")
    monkeypatch.setattr(NoisyGaussian, "prepare", lambda *args: pytest.fail("training began"))
    (tmp_path / "run").chmod(0o555)
    with pytest.raises(CannotSave):
        resume(tmp_path / "run", data=data)
    with pytest.raises(CannotSave):
        fit(data, NoisyGaussian, steps=2, out=tmp_path / "run", overwrite=True)


def test_a_full_disk_on_the_way_does_not_end_training(data, undisturbed, tmp_path, monkeypatch):
    """It is told, and the next save may succeed; at the end it is an error, and what was saved before goes on."""
    save, room, told = loop.save_tree, [True, False, False, True], []

    def saved(path, tree):
        if not (room.pop(0) if room else True):
            raise CannotSave("No space left on device.")
        save(path, tree)

    monkeypatch.setattr(loop, "save_tree", saved)
    run = fit(data, NoisyGaussian, **BUDGET, out=tmp_path / "run", save_every=0.0, progress=told.append)
    assert torch.equal(weights(run), weights(undisturbed))
    assert [e["note"] for e in told if "note" in e] == ["No space left on device."] * 2
    room += [True, *[False] * 1000]
    with pytest.raises(CannotSave):
        fit(data, NoisyGaussian, **BUDGET, out=tmp_path / "again", save_every=0.0)
    monkeypatch.setattr(loop, "save_tree", save)
    assert load_tree(tmp_path / "again" / "resume.safetensors")["state"]["step"] == 1
    same_as(undisturbed, tmp_path / "again", data)


# -- more than there is ----------------------------------------------------------------------------------------


def test_a_net_that_memory_does_not_hold_is_named_before_it_is_built(data, monkeypatch):
    monkeypatch.setattr(memory, "available", lambda: 2**24)
    with pytest.raises(OutOfMemory, match=r"vae .*one tensor of 3000 x 3000 takes 0.0 GiB.*--options"):
        fit(data, "vae", steps=1, options={"hidden": 3000})
    monkeypatch.setattr(memory, "NOTED", 2**12)
    taken = iter(range(0, 2**40, 2**22))
    monkeypatch.setattr(memory, "_resident", lambda: next(taken))
    with pytest.raises(OutOfMemory, match="what is built so far"):
        fit(data, "vae", steps=1, options={"hidden": 64})


@pytest.mark.parametrize("make", [lambda: torch.empty(2**55, dtype=torch.uint8), lambda: np.ones(2**52)])
def test_an_allocation_that_fails_is_named(make):
    with pytest.raises(OutOfMemory, match="It needs more memory"), memory.enough("It"):
        make()


def test_training_that_memory_does_not_hold_is_named(data, monkeypatch):
    size = sum(p.numel() * 4 for p in fit(data, "vae", steps=1, options={"hidden": 64}).model.parameters())
    free = iter([2**40, 3 * size])
    monkeypatch.setattr(memory, "available", lambda: next(free))
    with pytest.raises(OutOfMemory, match="training takes"):
        fit(data, "vae", steps=1, options={"hidden": 64})


def test_numbers_beyond_64_bits_are_named(data):
    with pytest.raises(UsageError, match=f"hidden={2**70} is beyond 64 bits"):
        fit(data, "vae", steps=1, options={"hidden": 2**70})
