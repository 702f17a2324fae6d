"""Docstrings as they are written for readers of the source, made into reStructuredText.

They mark code by ``double backquotes``, examples by >>> and sections as Google does. All else is plain text: a block
that is indented after an empty line is shown as it stands (a formula, a table), and a star, a bar or a backslash means
itself.
"""

import re

MARKUP = re.compile(r"([*|\\]|(?<=\w)_(?![\w`]))")
LITERAL = re.compile(r"(``.*?``)")


def process(app, what, name, obj, options, lines):
    """Change ``lines`` in place, as Sphinx asks."""
    lines[:] = restructured(lines)


def restructured(lines):
    """The lines with blocks and signs marked."""
    found, block, example, before, empty = [], None, False, 0, False
    for line in lines:
        indent = len(line) - len(line.lstrip())
        if not line.strip():
            example, empty = False, True
            found.append(line)
            continue
        if block is not None and indent < block:
            block = None
        if line.lstrip().startswith(">>> "):
            example = True
        elif block is None and empty and indent > before and found and not example:
            block = indent
            found += [" " * before + "::", ""]
        found.append(line if block is not None or example else escaped(line))
        before, empty = (before if block is not None else indent), False
    return found


def escaped(line):
    """A line whose signs mean themselves, but in literals; a letter may follow a literal."""
    parts = (part if part.startswith("``") else MARKUP.sub(r"\\\1", part) for part in LITERAL.split(line))
    return re.sub(r"``(?=\w)(?<=\w``)", r"``\\ ", "".join(parts))
