"""What the pages take from the code: families from the registry, figures from result files, the API from modules.

A page that is filled begins as a file of Markdown with what only a person can write: of a family, its mathematics.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import re
import textwrap
import typing
from functools import cache
from pathlib import Path
from typing import Any

import pofx
from pofx.core.abilities import ABILITIES, titles
from pofx.core.learner import Recipe
from pofx.core.likelihood import SYMBOL
from pofx.core.registry import BUILT_IN, family
from pofx.core.space import Space
from pofx.spaces import Audio, Category, Image, Integer, Label, Pair, Real, Reals, Sequence, Table, Text
from results import page as figures
from results import table

DOCS = Path(__file__).parent
SOURCE = Path(pofx.__file__).parent


def fill(app: Any, page: str, content: list[str]) -> None:
    """Sphinx has read a page: put in what is generated."""
    folder, _, name = page.rpartition("/")
    if page in PAGES:
        content[0] += "\n\n" + PAGES[page]()
    elif folder == "families" and name != "index":
        content[0] = family_page(name, content[0])
    elif folder == "api" and name != "index":
        content[0] += room(name)


# ------------------------------------------------------------------------------------------- families

REAL, NUMBER, KIND = Real("a"), Integer("b", 0, 9), Category("c", ("x", "y"))
SPACES: dict[str, Space] = {
    "tables of real columns": Table((REAL, Real("d"))),
    "tables of integers or grids": Table((NUMBER, Integer("d", 0, 9))),
    "tables of categories": Table((KIND, Category("d", ("x", "y", "z")))),
    "mixed tables with missing values": Table((Real("a", nullable=True), NUMBER, KIND)),
    "images": Image(8, 8, 1, 16),
    "texts": Text("abc"),
    "sounds": Audio(8000, 256),
    "sequences": Sequence(Table((REAL, NUMBER))),
    "arrays of reals": Reals((2, 3)),
    "pairs, as of a text and an image": Pair(Text("abc", length=8), Image(8, 8, 1, 16)),
}
CONTEXTS: dict[str, Space] = {
    "a label": Label(("x", "y")),
    "columns": Table((REAL, KIND)),
    "an image": Image(8, 8, 1, 16),
    "a text": Text("abc"),
    "a sound": Audio(8000, 256),
    "a sequence": Sequence(Table((REAL, NUMBER))),
    "an array of reals": Reals((2, 3)),
}
GIVEN = {"labels": None, "a label given a table": "columns", "a label given an image": "an image"}


def unregistered() -> list[str]:
    """Pages of families that this pofx does not have."""
    return [p.stem for p in (DOCS / "families").glob("*.md") if p.stem not in (*BUILT_IN, "index")]


def family_page(name: str, maths: str) -> str:
    """The page of one family: its mathematics, as written, and all that the class tells of itself."""
    cls = family(name)
    parts = [f"# {name}", f"{cls.summary[0].upper()}{cls.summary[1:]}.", facts(cls), picture(name)]
    parts += ["## Mathematics", maths, "## Data", data(cls), "## Options", options(cls), "## Training", training(cls)]
    if cls.known_failures:
        lines = [f"- *{check}*: {reason}." for check, reason in cls.known_failures.items()]
        parts += ["## Known failures", "Checks of the conformance suite that are declared to fail, and must:", *lines]
    parts += ["## Use", use(name, cls)]
    return "\n\n".join(p for p in parts if p)


def facts(cls: Any) -> str:
    """Kind, place, paper and abilities as a table."""
    kinds = [f"`{SYMBOL[k]}` {k.__name__}" for k in SYMBOL if k in cls.claims()]
    rows = [("likelihood", ", ".join(kinds)), ("place", cls.taxonomy), ("paper", cls.paper)]
    for word, kinds in (("estimators", cls.estimators), ("samplers", cls.samplers)):
        rows.append((word, "; ".join(asked(kind) for kind in kinds)))
    if able := [f"{a.title} (`{a.asked}`)" for a in ABILITIES if issubclass(cls, a)]:
        rows.append(("abilities", ", ".join(able)))
    return table(["", ""], rows)


def asked(kind: Any) -> str:
    """A request by its name, with its options and what it is."""
    flags = " ".join(f"--{f.name.replace('_', '-')}" for f in dataclasses.fields(kind))
    return f"`{f'{kind.name} {flags}'.strip()}` {inspect.getdoc(kind).partition(chr(10))[0].rstrip('.')}"


def picture(name: str) -> str:
    """The figure of a family, where ``figures.py`` has drawn one."""
    file = DOCS / "_static" / "families" / f"{name}.png"
    caption = CAPTIONS.get(name, "")
    return f"```{{figure}} /_static/families/{name}.png\n:alt: {caption}\n\n{caption}\n```" if file.exists() else ""


CAPTIONS: dict[str, str] = json.loads((DOCS / "_static" / "families" / "captions.json").read_text())


def data(cls: Any) -> str:
    """Which spaces and contexts the family serves, and why not others."""
    served, refused = [], []
    for words, space in SPACES.items():
        reason = cls.refuses(space, None, cls.Config())
        (refused if reason else served).append((words, space, reason))
    contexts = [w for w, c in CONTEXTS.items() if served and not cls.refuses(served[0][1], c, cls.Config())]
    if not served:  # without a context
        known = given(cls)
        served = [(f"{w} given {listed(known[w], 'or')}", SPACES[w], None) for w in known]
        label = CONTEXTS["a label"]
        refused = [(w, s, cls.refuses(s, label, cls.Config())) for w, s in SPACES.items() if w not in known]
    labels = [w for w, c in GIVEN.items() if not cls.refuses(CONTEXTS["a label"], c and CONTEXTS[c], cls.Config())]
    lines = [f"Serves {listed([*(w for w, _, _ in served), *labels])}."]
    if contexts:
        lines.append(f"May be given {listed(contexts, 'or')}.")
    reasons: dict[str, list[str]] = {}
    for words, _, reason in refused:
        reasons.setdefault(reason, []).append(words)
    lines += [f"\n- Not {listed(words, 'or')}: {reason}" for reason, words in reasons.items()]
    return "\n".join(lines)


def given(cls: Any) -> dict[str, list[str]]:
    """Which spaces the family serves given which contexts."""
    found = {
        words: [w for w, c in CONTEXTS.items() if not cls.refuses(space, c, cls.Config())]
        for words, space in SPACES.items()
    }
    return {words: contexts for words, contexts in found.items() if contexts}


def options(cls: Any) -> str:
    """Name, type, default and meaning of every option."""
    hints, fields = typing.get_type_hints(cls.Config), dataclasses.fields(cls.Config)
    rows = [(f"`{f.name}`", f"`{shown(f.default)}`", kind(hints[f.name]), meaning(cls.Config, f.name)) for f in fields]
    head = 'On the command line `--options.NAME VALUE` (with hyphens), in Python `options={"NAME": VALUE}`.'
    return f"{head}\n\n" + table(["option", "default", "type", "meaning"], rows)


def training(cls: Any) -> str:
    """What the family's recipe changes of the general one, on the first space that it serves."""
    plain = {f.name: f.default for f in dataclasses.fields(Recipe)}
    found: dict[str, list[str]] = {}
    for words, space in SPACES.items():
        if not cls.refuses(space, None, cls.Config()):
            own = {k: v for k, v in vars(cls.recipe(space)).items() if v != plain[k]}
            found.setdefault(", ".join(f"`{k}` {shown(v)}" for k, v in own.items()), []).append(words)
    if not found:  # it needs a context, or its space is a label
        first = next(iter(given(cls)), "labels")
        own = {k: v for k, v in vars(cls.recipe(SPACES.get(first, CONTEXTS["a label"]))).items() if v != plain[k]}
        found[", ".join(f"`{k}` {shown(v)}" for k, v in own.items())] = [first]
    lines = [f"- {listed(words)}: {changes or 'the general recipe'}" for changes, words in found.items()]
    head = "As far as its recipe (`--recipe.NAME`) differs from the [general one](index.md#recipes):"
    return "\n".join([head, "", *lines])


def use(name: str, cls: Any) -> str:
    """A command that fits it to data that are at hand."""
    if name in IN_PYTHON:
        return f"See [{IN_PYTHON[name]}](../howto/{IN_PYTHON[name]}.md)."
    source, extra = EXAMPLES.get(name, ("two-moons", ""))
    where = " --out drawn.npz" if source == "digits" else ""  # images need a place
    known = "Unavailable" not in {k.__name__ for k in cls.claims()}
    then = f"log-prob runs/{name}" if known else f"sample runs/{name} 100{where}"
    return f"```sh\npofx fit {source} {name} --seconds 60{extra} --out runs/{name}\npofx {then}\n```"


IN_PYTHON = {"ctc": "speech"}  # pages that fit it
EXAMPLES = {
    "gpt": ("book.txt", ""),
    "rnn": ("book.txt", ""),
    "wavenet": ("recordings/", ""),
    "mel-vocoder": ("recordings/", ""),
    "joint-gpt": ("digits", " --given label --joint"),
    "rssm": ("walks.csv", " --sequence walk --order t"),
    "glow": ("digits", ""),
    "image-gpt": ("digits", ""),
    "pixelcnn": ("digits", ""),
    "gated-pixelcnn": ("digits", ""),
    "pixelcnn++": ("digits", ""),
    "pixelrnn": ("digits", ""),
    "dcgan": ("digits", ""),
    "resnet-gan": ("digits", ""),
    "stylegan": ("digits", ""),
    "classifier": ("digits", " --target label"),
    "jem": ("digits", " --given label"),
    "rbm": ("ising", ""),
}


def index() -> str:
    """All families as a table with links, the general recipe, and the tree of pages."""
    rows = []
    for name in BUILT_IN:
        cls = family(name)
        kinds = " ".join(f"`{SYMBOL[k]}`" for k in SYMBOL if k in cls.claims())
        rows.append((f"[{name}]({name}.md)", kinds, cls.summary, ", ".join(titles(cls))))
    recipe = [(f"`{f.name}`", f"`{shown(f.default)}`", f.metadata["help"]) for f in dataclasses.fields(Recipe)]
    tree = "\n".join(["```{toctree}", ":hidden:", "", *BUILT_IN, "```"])
    return "\n\n".join(
        [
            "",
            table(["family", "likelihood", "how it models p(x)", "also"], rows),
            "(recipes)=\n## Recipes",
            "How a family is trained by gradients unless the command says otherwise (`--recipe.NAME VALUE`). Families "
            "that count or run EM read only `epochs` of it.",
            table(["name", "default", "meaning"], recipe),
            tree,
        ]
    )


# ------------------------------------------------------------------------------- options of a dataclass


NAMES = "[a-z_]+(?:, [a-z_]+)*"


@cache
def option_docs(cls: type) -> dict[str, str]:
    """Field -> what it means: from "Attributes:" of the docstrings, and strings below fields, nearest class first."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if dataclasses.is_dataclass(base):
            found |= _attributes(inspect.cleandoc(vars(base).get("__doc__") or "")) | _below(base)
    return found


def meaning(cls: type, name: str) -> str:
    """What an option means; of one that another's entry tells of, where."""
    docs = option_docs(cls)
    told = (f"see `{other}`" for other, text in docs.items() if f"``{name}``" in text)
    return docs.get(name) or next(told, "")


def _attributes(text: str) -> dict[str, str]:
    """Entries 'name: meaning' of the section, where one line may hold several ('a: ...; b: ...', 'a, b: ...')."""
    section = re.search(r"^Attributes:\n((?:[ ]+.*\n?|\n)+)", text, re.M)
    if not section:
        return {}
    lines = re.sub(r"\n {5,}", " ", textwrap.indent(textwrap.dedent(section[1]), " " * 4))
    found = {}
    for line in lines.splitlines():
        for names, meaning in re.findall(rf"(?:^ *|; )({NAMES}): (.*?)(?=; {NAMES}: |$)", line):
            found |= dict.fromkeys(names.split(", "), meaning)
    return found


def _below(cls: type) -> dict[str, str]:
    """Strings that stand below fields in the source of the class."""
    [node] = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(node, ast.ClassDef)
    return {
        a.target.id: " ".join(b.value.value.split())
        for a, b in zip(node.body, node.body[1:], strict=False)
        if isinstance(a, ast.AnnAssign)
        and isinstance(a.target, ast.Name)
        and isinstance(b, ast.Expr)
        and isinstance(b.value, ast.Constant)
        and isinstance(b.value.value, str)
    }


# ------------------------------------------------------------------------------------------------ API


def public() -> str:
    """The names that ``import pofx`` offers."""
    names = [name for name in pofx._PUBLIC]
    lines = ["```{eval-rst}", ".. currentmodule:: pofx", "", ".. autosummary::", ""]
    lines += [f"   {name}" for name in names]
    lines.append("")
    for name in names:
        thing = getattr(pofx, name)
        lines += [f".. auto{'class' if inspect.isclass(thing) else 'function'}:: {name}"]
        lines += ["   :members:", ""] if inspect.isclass(thing) else [""]
    return "\n\n" + "\n".join([*lines, "```"])


def room(name: str) -> str:
    """The public members of every module of one room of the package (or of a module beside the rooms)."""
    place = SOURCE / name
    files = sorted(place.glob("*.py")) if place.is_dir() else [place.with_suffix(".py")]
    parts = [""]
    for file in files:
        module = ".".join(("pofx", *file.relative_to(SOURCE).with_suffix("").parts))
        if file.stem == "__init__":
            continue
        known = ", ".join(n for n, where in pofx._PUBLIC.items() if where == module)
        lines = [f"## {file.stem}", "", "```{eval-rst}", f".. automodule:: {module}", "   :members:"]
        lines += [f"   :exclude-members: {known}", ""] if known else [""]
        lines.append("```")
        if known:
            links = ", ".join(f"{{py:obj}}`pofx.{n}`" for n in known.split(", "))
            lines += ["", f"Public from here: {links}."]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


# ---------------------------------------------------------------------------------------------- words


def listed(words: list[str], last: str = "and") -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {last} {words[-1]}"


def shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def kind(hint: Any) -> str:
    """A type in few words: the values of a Literal, or its name."""
    if typing.get_origin(hint) is typing.Literal:
        return ", ".join(map(str, typing.get_args(hint)))
    parts = [kind(a) for a in typing.get_args(hint) if a is not type(None)]
    if typing.get_origin(hint) is tuple:
        return " ".join(p for p in parts if p != "...")
    return " or ".join(parts) if parts else getattr(hint, "__name__", str(hint))


PAGES = {"families/index": index, "figures": figures, "api/pofx": public}
