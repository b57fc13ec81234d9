"""What the package says of itself: its version in one place, and its README on the package index."""

import importlib.metadata
import re
import tomllib

import pstate as ps
from pages.repository import ROOT


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_the_version_stands_in_one_place():
    """The version is read from `__init__.py`, and what is installed has it."""
    assert "version" in PROJECT["project"]["dynamic"]
    assert PROJECT["tool"]["hatch"]["version"]["path"] == "src/pstate/__init__.py"
    assert importlib.metadata.version("pstate") == ps.__version__


def test_the_readme_of_the_index_has_no_dead_links():
    """What pyproject.toml replaces leaves no link or figure of the repository, and no word is lost."""
    hook = PROJECT["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]
    (fragment,) = hook["fragments"]
    text = (ROOT / fragment["path"]).read_text()
    assert "](docs/" in text
    for rule in hook["substitutions"]:
        text = re.sub(rule["pattern"], rule["replacement"], text)
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    assert targets
    assert [t for t in targets if not t.startswith("https://")] == []
    assert "![" not in text
    assert "- Getting started: " in text
