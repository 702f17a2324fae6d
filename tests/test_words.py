"""A word means one thing: the score is the gradient of the log-density, but in the names of other libraries."""

import re
from pathlib import Path

import pofx

ROOT = Path(pofx.__file__).parent
DOCS = ROOT.parent.parent
GRADIENT = {  # where it is spoken of
    "information.py", "commands/show.py", "core/abilities.py", "core/conditional.py", "families/continuous.py",
    "families/path.py", "families/flow.py", "families/cnf.py", "families/gmm.py", "families/energies.py",
    "families/linear.py", "families/ebm.py",
    "evaluate/entrant.py",
    "paths/predict.py", "paths/matching.py", "families/student.py", "paths/schedule.py", "families/diffusion.py",
    "core/registry.py", "testing/checks.py", "testing/conformance.py", "testing/wrong.py",
}  # fmt: skip
LIBRARIES = {
    "evaluate/latent.py": {"score"},
    "evaluate/latent_space.py": {"adjusted_rand_score", "silhouette_score"},
    "evaluate/pairs.py": {"score", "corpus_score", "_compute_score_from_stats"},  # of sacrebleu; and CRPS by its name
    "interop/sklearn.py": {"score", "score_samples"},
}
GRADIENTS = {
    "score", "scores", "noised_score", "rows_score", "rows_noised_score", "has_score", "has_noised_score",
    "hasscore", "hasnoisedscore", "score_noise", "scoresde", "scoresdeconfig",
    "score_is_the_gradient", "noised_score_is_the_gradient", "scoresign",
    "scorewithoutnoise",
}  # fmt: skip


def words(text: str) -> set[str]:
    """Those of a text, identifiers as they are, that have the word within them."""
    return {w for w in re.findall(r"\w*scor\w*", text.lower()) if "underscore" not in w}


def test_score_means_the_gradient_in_code_and_comments():
    for path in [*ROOT.rglob("*.py"), *ROOT.rglob("*.jinja")]:
        name = path.relative_to(ROOT).as_posix()
        allowed = LIBRARIES.get(name, set()) | (GRADIENTS if name in GRADIENT else set())
        # the families' table and its page say of all whether there is one
        allowed |= {"has_score", "has_noised_score"} if name.startswith(("commands/", "evaluate/")) else set()
        assert words(path.read_text()) <= allowed, name


def test_no_file_is_named_after_it():
    assert not words(" ".join(p.name for p in ROOT.rglob("*.py")))


def test_pages_speak_of_it_as_the_gradient():
    for path in [DOCS / "README.md", DOCS / "CONTRIBUTING.md", *(DOCS / "docs").rglob("*.md")]:
        assert words(path.read_text()) <= GRADIENTS, path.name
