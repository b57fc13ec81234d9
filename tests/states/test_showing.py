"""How treescope, Equinox and `repr` show states."""

import re
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import treescope

import pstate as ps
from states.cells import Net, cell, net


# Treescope ------------------------------------------------------------------------------------------


def drawn(tree, **options):
    """What treescope draws as text, on one line wherever it would break lines."""
    text = " ".join(treescope.render_to_text(tree, **options).split())
    return re.sub(r"(?<=[(\[]) |,? (?=[)\]])", "", text)


def test_treescope_shows_states():
    """A state is drawn as its kind with value and tags, inside modules and with containers."""
    cells = [ps.ParamState(jnp.arange(2), tag="slow"), ps.State({"a": jnp.arange(2)})]
    assert drawn(Net(cells, ps.RandomState())) == (
        "Net(cells=["
        "ParamState(value=<jax.Array([0, 1], dtype=int32)>, tag=('slow',)), "
        "State(value={'a': <jax.Array([0, 1], dtype=int32)>})], "
        "rng=RandomState(), rate=0.5)"
    )


def test_treescope_says_where_code_cannot_rebuild_a_state():
    """In the mode whose text is code, a state is marked as none."""
    assert drawn(ps.RandomState(), roundtrip_mode=True) == "<pstate.RandomState()>"


def test_treescope_is_no_dependency():
    """No file of pstate imports treescope: it is not needed, and importing it costs about 80 ms."""
    files = list(Path(ps.__file__).parent.rglob("*.py"))
    assert [
        file.name for file in files if re.search(r"^\s*(import|from) treescope", file.read_text(), re.M)
    ] == []


def test_treescope_draws_html():
    """Notebooks get HTML, for trees, shapes, masks and what `summary` gives."""
    trees = [net(), eqx.filter_eval_shape(net), ps.select(net()), ps.summary(net())]
    for tree in trees:
        assert treescope.render_to_html(tree).startswith("<")


def test_treescope_does_not_read():
    """States are drawn live, under a trace and before their key is drawn, and stay as they are."""
    shown = []

    def peek(rng, total, x):
        shown.append(drawn([rng, total]))
        total.value += x

    mapped = ps.vmap2(peek, in_axes=(None, None, 0), state_out_axes={0: ps.State})
    rows = mapped.explain(ps.RandomState(0), ps.State(0.0), jnp.ones(2)).rows
    assert rows[0].use == "unused"
    ps.pure(peek, argnums=(0, 1))(ps.RandomState(0), ps.State(0.0), 1.0)
    assert shown[0].startswith("[RandomState(value=<not drawn yet>), State(value=")
    assert shown[-1].endswith("State(value=<jax.Array(0., dtype=float32)>)]")


# Equinox --------------------------------------------------------------------------------------------


def test_equinox_prints_states():
    """`eqx.tree_pformat` shows states as it shows modules, and breaks lines where they are too long."""
    assert (
        eqx.tree_pformat(cell())
        == """\
Cell(
  weight=ParamState(f32[3,3], tag='slow'),
  hidden=HiddenState(f32[3]),
  scale=f16[]
)"""
    )
    assert eqx.tree_pformat([cell().weight, ps.State()], width=20, indent=4) == (
        "[\n    ParamState(\n        f32[3,3],\n        tag='slow'\n    ),\n    State()\n]"
    )
    assert eqx.tree_pformat(ps.State({"a": jnp.arange(2)}), short_arrays=False) == (
        "State({'a': Array([0, 1], dtype=int32)})"
    )


def test_equinox_prints_every_sort_of_state():
    """Shapes, masks, live states and tracers print alike; a key that is not drawn yet says so."""
    shapes = eqx.filter_eval_shape(cell)
    assert eqx.tree_pformat(shapes, struct_as_array=True) == eqx.tree_pformat(cell())
    assert "ShapeDtypeStruct(shape=(3,), dtype=float32)" in eqx.tree_pformat(shapes)
    assert eqx.tree_pformat(ps.select(cell()).weight) == "ParamState(True, tag='slow')"
    with ps.record(cell()) as live:
        live.hidden.value = jnp.ones(2)
        assert eqx.tree_pformat(live.hidden) == "HiddenState(f32[2])"
    jax.jit(lambda s: eqx.error_if(s.value, eqx.tree_pformat(s) != "State(f32[3])", ""))(
        ps.State(jnp.ones(3))
    )
    shown = []
    ps.vmap2(lambda rng, x: shown.append(eqx.tree_pformat(rng)) or x, in_axes=(None, 0)).explain(
        ps.RandomState(0), jnp.ones(2)
    )
    assert set(shown) == {"RandomState(<not drawn yet>)"}


def test_repr_shows_arrays_in_short():
    """`repr` gives shapes and dtypes as JAX does, and shows an empty state as one."""
    assert repr([ps.State(jnp.ones(2, jnp.bfloat16))]) == "[State(bf16[2])]"
    assert repr(jtu.tree_map(lambda leaf: None, ps.State(1, tag=("a", "b")))) == "State(tag=('a', 'b'))"
    assert ps.vmap2(jnp.sin).explain(jnp.ones(2, jnp.bfloat16)).rows[0].shape == "bf16[]"
