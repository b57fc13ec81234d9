"""The house rules: wings, imports at the top, public JAX, public names, tests of a readable size."""

import ast
import doctest
import inspect
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import pytest

import pstate as ps
from pages.repository import DOCS, MODULES, ROOT, SOURCE, parsed


WINGS = re.findall(r"^\| `(\w+)` \| .* \|$", (DOCS / "contributing.md").read_text(), re.MULTILINE)


def wing_of(name: str) -> str:
    """The wing that a file of the package stands in."""
    first, *rest = Path(name).parts
    return first if rest else Path(first).stem


def absolute_imports(tree: ast.AST) -> set[str]:
    """The modules, and names in modules, that a file imports from elsewhere."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def relative_imports(name: str) -> set[str]:
    """The files of the package that a file imports."""
    found: set[Path] = set()
    for node in ast.walk(parsed(name)):
        if isinstance(node, ast.ImportFrom) and node.level > 0:
            folder = (SOURCE / name).parents[node.level - 1]
            modules = [node.module] if node.module else [alias.name for alias in node.names]
            found |= {folder.joinpath(*module.split(".")) for module in modules}
    files = {path / "__init__.py" if path.is_dir() else path.with_suffix(".py") for path in found}
    return {path.relative_to(SOURCE).as_posix() for path in files}


def reached_from(name: str) -> Iterator[str]:
    """The files of its own wing that a file imports, directly or through others."""
    seen: set[str] = set()
    queue = [name]
    while queue:
        for below in relative_imports(queue.pop()):
            if wing_of(below) == wing_of(name) and below not in seen:
                seen.add(below)
                queue.append(below)
                yield below


# Wings ----------------------------------------------------------------------------------------------


def test_every_wing_is_listed():
    """The table of wings has the folders and public files of the package, each once and no others."""
    assert sorted(WINGS) == sorted({wing_of(name) for name in MODULES})


@pytest.mark.parametrize("name", MODULES)
def test_imports_go_down(name: str):
    """A file imports, relatively, from its own wing and from those above it in the table only."""
    assert not any(module.split(".")[0] == "pstate" for module in absolute_imports(parsed(name)))
    own = WINGS.index(wing_of(name))
    assert [below for below in relative_imports(name) if WINGS.index(wing_of(below)) > own] == []


@pytest.mark.parametrize("name", MODULES)
def test_no_circles(name: str):
    """No file reaches itself through the files of its wing."""
    assert name not in set(reached_from(name))


@pytest.mark.parametrize("name", [n for n in MODULES if "/" in n and not n.startswith("nn/")])
def test_names_of_files(name: str):
    """Files in private wings need no underscore; a wing's `__init__.py` is a docstring, and short."""
    if Path(name).name != "__init__.py":
        assert not Path(name).name.startswith("_")
        return
    (only,) = parsed(name).body
    assert isinstance(only, ast.Expr)
    assert len((SOURCE / name).read_text().splitlines()) <= 12


# The source -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODULES)
def test_imports_stand_at_the_top(name: str):
    """No function imports anything."""
    for node in ast.walk(parsed(name)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            assert not any(isinstance(n, ast.Import | ast.ImportFrom) for n in ast.walk(node))


@pytest.mark.parametrize("name", MODULES)
def test_public_jax_only(name: str):
    """No file uses JAX's private modules, neither imported nor reached through an attribute."""
    tree = parsed(name)
    used = absolute_imports(tree) | {
        ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)
    }
    assert [u for u in used if re.match(r"jax(\.\w+)*\.(_(?!_)\w+|interpreters)\b", u)] == []


@pytest.mark.parametrize("name", MODULES)
def test_no_private_name_leaves_its_file(name: str):
    """What one file imports from another has no underscore in front."""
    for node in ast.walk(parsed(name)):
        if isinstance(node, ast.ImportFrom) and node.level > 0 and node.module:
            assert [a.name for a in node.names if a.name.startswith("_")] == []


def test_no_test_file_is_long():
    """No file of tests has more than 600 lines."""
    sizes = {path: len(path.read_text().splitlines()) for path in (ROOT / "tests").rglob("*.py")}
    assert [path.name for path, lines in sizes.items() if lines > 600] == []


# Public names ---------------------------------------------------------------------------------------


def public_things(module: Any) -> dict[str, Any]:
    """The classes and functions that a public module exports."""
    names = getattr(module, "__all__", [name for name in vars(module) if not name.startswith("_")])
    found = {name: getattr(module, name) for name in names}
    return {n: x for n, x in found.items() if inspect.isclass(x) or inspect.isroutine(x)}


@pytest.mark.parametrize("module", [ps, ps.nn, ps.filter], ids=lambda module: module.__name__)
def test_public_names_say_where_they_are_public(module: Any):
    """Public classes and functions are those of `pstate`, `pstate.nn` or `pstate.filter`."""
    assert {name: x.__module__ for name, x in public_things(module).items()} == dict.fromkeys(
        public_things(module), module.__name__
    )


class Model(eqx.Module):
    weight: ps.ParamState
    rng: ps.RandomState
    drop: ps.nn.Dropout


def step(model: Model, x: Any) -> Any:
    return model.weight.value * x


def model() -> Model:
    return Model(ps.ParamState(jnp.ones(2), tag="w"), ps.RandomState(0), ps.nn.Dropout(0.5))


@ps.jit
def decorated(model: Model) -> Any:
    return model.weight.value


PICKLED = {
    "model": model,
    "packed": lambda: ps.pack(model()),
    "pure": lambda: ps.pure(step, argnums=0, writes=ps.ParamState),
    "jit": lambda: ps.jit(step, donate=ps.ParamState),
    "decorated": lambda: decorated,
    "grad": lambda: ps.grad(step, wrt=ps.ParamState),
    "value_and_grad": lambda: ps.value_and_grad(step),
    "hessian": lambda: ps.hessian(step),
    "checkpoint": lambda: ps.checkpoint(step, prevent_cse=False),
    "vmap2": lambda: ps.vmap2(step, in_axes=(None, 0), state_in_axes={0: ps.HiddenState}),
    "pmap2": lambda: ps.pmap2(step, donate=ps.ParamState),
    "lane": lambda: ps.vmap2(step, in_axes=(None, 0)).lane(1),
    "nested": lambda: ps.pure(ps.jit(ps.vmap2(step, in_axes=(None, 0)))),
    "error": lambda: ps.FrozenStateError("message"),
    "filter": lambda: ps.filter.OfType(ps.ParamState) | "w",
}


@pytest.mark.parametrize("make", PICKLED.values(), ids=PICKLED)
def test_pickles_know_nothing_of_wings(make: Any):
    """What is pickled names public modules only, and comes back as it was."""
    thing = make()
    data = pickle.dumps(thing)
    assert re.findall(rb"pstate\.(?:\w+\.)*_\w+", data) == []
    assert repr(pickle.loads(data)) == repr(thing)


def test_every_docstring_example_is_run():
    """Each method of a public class whose docstring has an example passes it.

    pytest collects classes and functions; it takes methods of a class for another module's.
    """
    finder, runner = (
        doctest.DocTestFinder(recurse=False),
        doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE),
    )
    ran = 0
    for module in (ps, ps.nn, ps.filter):
        for cls in filter(inspect.isclass, public_things(module).values()):
            for name, member in vars(cls).items():
                if ">>>" in (getattr(member, "__doc__", None) or "") and inspect.isroutine(member):
                    for test in finder.find(member, f"{cls.__name__}.{name}", globs={}):
                        assert runner.run(test).failed == 0
                        ran += 1
    assert ran
