"""Sphinx: pages are Markdown; those of families, figures and the API are filled from the code (``generate``)."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import generate
import mathml
import plain
import pofx

project, author, release = "pofx", "The pofx authors", pofx.__version__
copyright = "The pofx authors, Apache-2.0"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = [f"families/{name}.md" for name in generate.unregistered()]

myst_enable_extensions = ["dollarmath", "deflist", "colon_fence"]
myst_heading_anchors = 3

nitpicky = (
    True  # of our own names: all that a page or docstring refers to has to be there, but for nets and type variables
)
nitpick_ignore_regex = [(r"py:.*", r"(?!pofx\.).*"), (r"py:class", r"pofx\.(nn\..*|.*\.[A-Z])")]

autosummary_generate = False  # the pages of the API are our own
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_use_ivar = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
maximum_signature_line_length = 88

html_theme = "furo"
html_title = "pofx"
html_static_path = ["_static"]
html_css_files = ["pofx.css"]
html_show_sourcelink = False
html_theme_options = {"navigation_with_keys": True, "top_of_page_buttons": []}
pygments_style, pygments_dark_style = "friendly", "github-dark"


def setup(app):
    app.add_html_math_renderer("mathml", (mathml.inline, None), (mathml.display, None))
    app.connect("source-read", generate.fill)
    app.connect("autodoc-process-docstring", plain.process, priority=1)  # before napoleon
    return {"parallel_read_safe": True}


html_math_renderer = "mathml"
