"""The pages for those who come from other libraries: their code runs too, and both sides agree.

Blocks of a page that are marked `<!-- needs: flax -->` run here, among its other blocks. The extra
`peers` has the libraries; where one is not installed the test is skipped.
"""

import importlib
import re
from pathlib import Path

import pytest

from pages.blocks import PAGES, blocks, check, examples, name_of


def needed(page: Path) -> list[str]:
    """The libraries that blocks of a page need."""
    return sorted({block.needs for block in blocks(page)} - {""})


def peer(name: str) -> None:
    """Import a peer, or skip the test."""
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        pytest.skip(f"the page compares with {name}, which is not here: pip install -e '.[peers]'")


#: The pages that need a peer.
COMPARED = [page for page in PAGES if needed(page)]


# Peers may call what JAX deprecates. A deprecation of what the page itself calls is still an error.
@pytest.mark.filterwarnings("ignore::DeprecationWarning:(flax|brain)")
@pytest.mark.parametrize("page", COMPARED, ids=name_of)
def test_both_sides_do_what_the_page_shows(page: Path):
    """Every python block of a page runs, also those that need a peer."""
    for name in needed(page):
        peer(name)
    check(page, having=needed(page))


@pytest.mark.parametrize("page", COMPARED, ids=name_of)
def test_names_of_peers_exist(page: Path):
    """What a page names of a peer, in code and prose alike, is there."""
    for name in needed(page):
        peer(name)
    text = page.read_text()
    for prefix, module in {"nnx": "flax.nnx", "brainstate": "brainstate"}.items():
        if module.partition(".")[0] in needed(page):
            names = re.findall(rf"\b{prefix}\.([A-Za-z]\w*(?:\.[A-Za-z]\w*)*)", text)
            assert [n for n in names if not exists(importlib.import_module(module), n)] == []


def exists(thing: object, name: str) -> bool:
    """Whether a thing has an attribute, by a dotted name."""
    for part in name.split("."):
        if not hasattr(thing, part):
            return False
        thing = getattr(thing, part)
    return True


PAGE = """
```python
x = 1
```

<!-- needs: json -->
```python
import json

x = json.loads("2")
```

```python
print(x)
```

```text
{shown}
```

<!-- needs: json -->
<!-- raises: IndexError -->
```python
json.loads("[]")[0]
```

```text
list index out of range
```
"""


def test_a_block_may_need_a_library(tmp_path: Path):
    """The mark stands before `raises`; a marked block, and no other, is left out without its library."""
    page = tmp_path / "page.md"
    page.write_text(PAGE.format(shown=1))
    assert [block.needs for block, _ in examples(page)] == ["", "json", "", "json"]
    assert [block.mark[0] for block, _ in examples(page)] == ["prints", "prints", "prints", "raises"]
    assert needed(page) == ["json"]
    check(page)
    with pytest.raises(AssertionError, match="page:14: got\n2"):
        check(page, having=["json"])
    page.write_text(PAGE.format(shown=2))
    check(page, having=["json"])


def test_a_library_that_is_not_here_skips():
    """The test of a page is skipped, with the reason, where a library that it needs is missing."""
    peer("json")
    with pytest.raises(pytest.skip.Exception, match=r"compares with no_such_library.*\[peers\]"):
        peer("no_such_library")
