"""The grammar of the command line: where options may stand, what lists take, and the pages of --help."""

from __future__ import annotations

import dataclasses
import itertools
import re
import typing

import pytest
from tyro.conf import Positional, UseAppendAction

from pofx.cli import main
from pofx.commands import COMMANDS, kind, options
from pofx.commands.arguments import COMMAS, arrange, parse
from pofx.commands.compare import Compare, _family_options
from pofx.commands.export import Export
from pofx.commands.fit import Fit, _kind
from pofx.commands.hints import bare, hints, marks
from pofx.commands.sample import Sample
from pofx.commands.shared import Source
from pofx.commands.show import ShowData
from pofx.commands.usage import _metavar
from pofx.core.errors import UsageError
from pofx.core.registry import BUILT_IN, family
from pofx.core.spelling import join, listed

KINDS = {command: kind(command) for command in COMMANDS}


def fields(command):
    return [(name, hint) for name, hint in hints(KINDS[command])]


# -- where options stand ---------------------------------------------------------------------------------------


def test_options_stand_anywhere():
    """The same, whichever way flags, values and lists stand before, between and after the arguments."""
    blocks = [["--options.no-per-class"], ["--shape", "28", "28"], ["--seconds", "5"], ["--drop", "a,b"], ["x.npy"]]
    orders = [
        [word for block in order for word in block]
        for order in itertools.permutations([*blocks, ["gmm"]])
        if order.index(["x.npy"]) < order.index(["gmm"])
    ]
    kind = _kind(orders[0])
    assert {(tuple(sorted(o)), tuple(p), tuple(u)) for o, p, u in (arrange(kind, argv) for argv in orders)} == {
        (("--drop=a,b", "--options.no-per-class", "--seconds=5", "--shape=28,28"), ("x.npy", "gmm"), ())
    }
    for argv in orders[::120]:
        args = parse(_kind(argv), argv, "fit")
        asked = (args.source, args.family, args.shape, args.seconds, args.drop, args.options.per_class)
        assert asked == ("x.npy", "gmm", (28, 28), 5.0, ["a", "b"], False)


@pytest.mark.parametrize(
    ("argv", "family", "source"),
    [
        (["gmm", "nsf"], "nsf", "gmm"),  # a source called like a family
        (["--label", "nsf", "x.csv", "made"], "made", "x.csv"),  # so is a column
        (["--options.hidden", "8", "x.csv", "made"], "made", "x.csv"),
        (["x.csv", "--overwrite", "made"], "made", "x.csv"),
        (["--given=label", "--", "x.csv", "gmm"], "gmm", "x.csv"),
        (["--recipe.betas", "0.9", "0.99", "x.csv", "gmm"], "gmm", "x.csv"),
        (["--split_seed", "3", "x.csv", "gmm"], "gmm", "x.csv"),
    ],
)
def test_the_family_is_found(argv, family, source):
    args = parse(_kind(argv), argv, "fit")
    assert (args.family, args.source) == (family, source)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["x.csv", "gmmm", "--options.components", "3"], "no family 'gmmm'. Did you mean gmm?"),
        (["--options.components", "3", "x.csv", "gmmm"], "no family 'gmmm'. Did you mean gmm?"),
        (["x.csv"], "Which family?"),
        (["--options.component", "x.csv", "gmm"], "has no option '--options.component'. Did you mean --options.comp"),
        (["x.csv", "gmm", "--secnds", "3"], "Did you mean --seconds"),
        (["x.csv", "gmm", "-o", "runs"], "has no option '-o'"),
        (["x.npz", "--arrays", "a", "b", "gmm"], "3 arguments: x.npz b gmm"),
        (["x.csv", "gmm", "--seconds"], "--seconds takes a value; none follows."),
        (["x.csv", "gmm", "--seconds", "--quiet"], "--seconds takes a value; none follows."),
        (
            ["x.csv", "gmm", "--precision", "bf16-mixd"],
            "--precision is 'bf16-mixd'; it must be one of 32-true, bf16-mixed. Did you mean bf16-mixed?",
        ),
        (
            ["x.csv", "realnvp", "--options.base=gumbel"],
            "--options.base is 'gumbel'; it must be one of normal, student, mixture. See 'pofx fit --help'.",
        ),
    ],
)
def test_what_cannot_be_read_is_said(argv, said):
    with pytest.raises(UsageError, match=re.escape(said)):
        parse(_kind(argv), argv, "fit")


def test_a_value_may_begin_with_dashes():
    args = parse(ShowData, ["--separator=--", "x.txt", "--given=-1"], "data")
    assert (args.separator, args.given, args.source) == ("--", "-1", "x.txt")
    assert parse(ShowData, ["--", "-x.csv"], "data").source == "-x.csv"


def test_the_last_of_two_values_holds():
    assert parse(ShowData, ["--max-rows", "5", "x", "--max-rows", "7"], "data").max_rows == 7


# -- lists --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_every_list_takes_commas_and_repeats(command):
    """Whatever its name: a list of names, of numbers, or of texts, whose commas are their own."""
    needed = [f"{name}0" if bare(h) is str else "1" for name, h in fields(command) if Positional in marks(h)]
    for name, hint in fields(command):
        flag, kind = f"--{name.replace('_', '-')}", bare(hint)

        def read(*argv, name=name):
            return getattr(parse(KINDS[command], [*argv, *needed], command), name)

        if typing.get_origin(kind) is list:
            texts = UseAppendAction in marks(hint)
            assert read(flag, "a, b", flag, "c") == (["a, b", "c"] if texts else ["a", "b", "c"]), flag
        elif typing.get_origin(kind) is tuple:
            values = tuple(typing.get_args(kind)[0](k) for k in range(3))
            words = [str(v) for v in values]
            assert read(flag, *words) == read(flag, ",".join(words)) == values, flag
            assert read(*(w for word in words for w in (flag, word))) == values, flag
        elif COMMAS in marks(hint):
            assert read(flag, "a,b", flag, "c") == read(flag, "a,b,c") == "a,b,c", flag
        else:
            assert "," not in (_metavar(hint)), flag


def test_names_with_commas_stand_in_quotes():
    names = ["height, m", "plain", 'said "so"', ""]
    assert parse(ShowData, [f"--drop={join(names)}", "x"], "data").drop == names
    assert parse(ShowData, ["--drop", '"a, b"', "--drop", "c", "x"], "data").drop == ["a, b", "c"]
    assert parse(ShowData, ["--missing", "", "x"], "data").missing == [""]
    assert parse(ShowData, ["x"], "data").missing is None
    assert [listed(["a", "b"]), listed(["it's"]), listed(["a b"])] == ["a,b", "'it'\"'\"'s'", "'a b'"]


def test_options_of_families_are_spelt_out():
    found = _family_options(["gmm.components=50", "gmm.per_class=False", "made.orders=3"])
    assert (found["gmm"]["components"], found["gmm"]["per_class"], found["made"]["orders"]) == (50, False, 3)


def test_wrong_numbers_in_a_list(capsys):
    for argv in (["--split", "0.5,0.5", "x"], ["--shape", "28,wide", "x"]):
        with pytest.raises(SystemExit) as stopped:
            parse(ShowData, argv, "data")
        assert stopped.value.code == 2
        assert argv[0] in capsys.readouterr().err


def test_arranged():
    assert arrange(Compare, ["--need", "a", "x", "--need", "b,c", "--overwrite"]) == (
        ["--overwrite", "--need=a,b,c"],
        ["x"],
        [],
    )
    assert arrange(Sample, ["run", "--stop", "a,b", "--stop", "c", "5"])[0] == ["--stop=a,b", "--stop=c"]
    assert arrange(Export, ["--nothing", "of", "ours"]) == (["--nothing=of"], ["ours"], ["--nothing"])


# -- pages ------------------------------------------------------------------------------------------------------------


def page(argv, capsys, monkeypatch, width=80):
    monkeypatch.setenv("COLUMNS", str(width))
    with pytest.raises(SystemExit) as done:
        main([*argv, "--help"])
    assert done.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("width", [60, 80, 200])
@pytest.mark.parametrize("command", COMMANDS)
def test_pages_fit(command, width, capsys, monkeypatch):
    text = page([command], capsys, monkeypatch, width)
    assert max(map(len, text.split("\n"))) <= width
    assert options(command) - {"--options", "--recipe"} <= set(re.findall(r"--[a-z][a-z-]*", text)) | {
        f"--{name.replace('_', '-')}" for name, hint in fields(command) if Positional in marks(hint)
    }


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_the_page_of_a_family_tells_all_its_options(name, capsys, monkeypatch):
    text = page(["fit", "x.csv", name], capsys, monkeypatch)
    assert max(map(len, text.split("\n"))) <= 80
    kind = _kind(["x.csv", name])
    for holder in ("options", "recipe"):
        made = next(f for f in dataclasses.fields(kind) if f.name == holder).default_factory()
        for f in dataclasses.fields(made):
            spelled = ("no-" if f.default is True else "") + f.name.replace("_", "-")
            entry = re.search(rf"\n  --{holder}\.{spelled}( \S+)?\s+\S+", text)
            assert entry, f.name


def test_options_stand_in_groups(capsys, monkeypatch):
    text = page(["fit"], capsys, monkeypatch)
    order = ["arguments", "options", "budget, in one unit", "training", "tables", "images", "texts", "sounds"]
    assert re.findall(r"(?m)^([a-z].*):$", text) == [*order, "sequences", "output"]
    groups = dict(re.findall(r"(?ms)^([a-z][^\n]*):\n(.*?)(?=\n\n|\Z)", text))
    assert "--drop" in groups["tables"]
    assert "--shape" in groups["images"]
    assert "--seconds" in groups["budget, in one unit"]
    assert re.search(r"--checks N\s+\[20\] Validations", groups["training"])
    assert re.search(r"--out PATH\s+\[runs/<data>-<family>\] Run folder\.\n", groups["options"])
    own = page(["fit", "gmm"], capsys, monkeypatch)
    assert re.findall(r"(?m)^([a-z].*):$", own)[:3] == ["arguments", "gmm's own", "training by gradients"]
    assert {f.name for f in dataclasses.fields(Source)} <= {f.name for f in dataclasses.fields(Fit)}


def test_the_first_page_fits(capsys):
    assert main(["--help"]) == 0
    assert max(map(len, capsys.readouterr().out.split("\n"))) <= 80


@pytest.mark.parametrize("name", BUILT_IN)
def test_help_explains_every_option_of_a_family(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main(["fit", name, "--help"])
    entries = [" ".join(e.split()) for e in re.split(r"\n(?=  --|\n)", capsys.readouterr().out)]
    own = [e for e in entries if e.startswith("--options.")]
    assert len(own) == len(dataclasses.fields(family(name).Config))
    assert [e for e in own if re.fullmatch(r"--\S+( \S+)?( \[[^\]]*\])?", e)] == []  # a name, a kind, a default
