"""Which of JAX's or Equinox's transforms is running the user's function, for messages.

JAX has no public way to ask. The names of public functions in its stack frames tell which one it
is; if they do not, messages mention transforms in general.
"""

import re
import sys
import sysconfig
import types
from collections.abc import Iterator
from typing import Any, NamedTuple

from .._ground.tracebacks import package_of, users_frame
from .threads import local


class Raw(NamedTuple):
    """A transform that threads no states, and the line that calls its counterpart that does."""

    name: str
    line: str


_MAPPED = "out = ps.{name}({fn}{axes})({arguments})"
_SHARDS = "out = ps.shard_map2({fn}, mesh=mesh, in_specs={specs}, out_specs=P('data'))({arguments})"
_PLAIN = "out = ps.{name}({fn})({arguments})"
_VJP = "f = ps.custom_vjp(f)\n    f.defvjp(fwd, bwd)"
_JVP = "f = ps.custom_jvp(f)\n    f.defjvp(jvp)"
_GRADIENT = "out = ps.{name}({fn}, argnums={last})({arguments})"

#: By the function that the frame belongs to, within JAX and Equinox.
_TRANSFORMS = {
    "_cpp_pjit": Raw("jax.jit", _PLAIN.replace("{name}", "jit")),
    "_JitWrapper": Raw("eqx.filter_jit", _PLAIN.replace("{name}", "jit")),
    "vmap": Raw("jax.vmap", _MAPPED.replace("{name}", "vmap2")),
    "_VmapWrapper": Raw("eqx.filter_vmap", _MAPPED.replace("{name}", "vmap2")),
    "_cpp_pmap": Raw("jax.pmap", _MAPPED.replace("{name}", "pmap2")),
    "pmap": Raw("jax.pmap", _MAPPED.replace("{name}", "pmap2")),  # since JAX 0.8
    "_PmapWrapper": Raw("eqx.filter_pmap", _MAPPED.replace("{name}", "pmap2")),
    "_shard_map": Raw("jax.shard_map", _SHARDS),
    "checkpoint": Raw("jax.checkpoint", _PLAIN.replace("{name}", "checkpoint")),
    "_CheckpointWrapper": Raw("eqx.filter_checkpoint", _PLAIN.replace("{name}", "checkpoint")),
    "grad": Raw("jax.grad", _GRADIENT.replace("{name}", "grad")),
    "_GradWrapper": Raw("eqx.filter_grad", _GRADIENT.replace("{name}", "grad")),
    "value_and_grad": Raw("jax.value_and_grad", _GRADIENT.replace("{name}", "value_and_grad")),
    "_ValueAndGradWrapper": Raw(
        "eqx.filter_value_and_grad", _GRADIENT.replace("{name}", "value_and_grad")
    ),
    "jacfwd": Raw("jax.jacfwd", _GRADIENT.replace("{name}", "jacfwd")),
    "jacrev": Raw("jax.jacrev", _GRADIENT.replace("{name}", "jacrev")),
    "vjp": Raw("jax.vjp", "out, pull = ps.vjp({fn}, {arguments}, argnums={last})"),
    "jvp": Raw("jax.jvp", "out, tangent = ps.jvp({fn}, ({arguments},), (tangent,), argnums={last})"),
    "custom_vjp": Raw("jax.custom_vjp", _VJP),
    "filter_custom_vjp": Raw("eqx.filter_custom_vjp", _VJP),
    "custom_jvp": Raw("jax.custom_jvp", _JVP),
    "filter_custom_jvp": Raw("eqx.filter_custom_jvp", _JVP),
    "scan": Raw("jax.lax.scan", "carry, ys = ps.scan({bound}, carry, xs)"),
    "map": Raw("jax.lax.map", "ys = ps.for_loop({bound}, xs)"),
    "fori_loop": Raw("jax.lax.fori_loop", "carry = ps.fori_loop(lower, upper, {bound}, carry)"),
    "while_loop": Raw("jax.lax.while_loop", "carry = ps.while_loop(condition, {bound}, carry)"),
    "cond": Raw("jax.lax.cond", "out = ps.cond(pred, {fn}, other, {arguments})"),
    "switch": Raw("jax.lax.switch", "out = ps.switch(index, [{fn}, other], {arguments})"),
}


#: Where libraries are.
_INSTALLED = tuple(sysconfig.get_path(name) for name in ("purelib", "platlib"))


class Running(NamedTuple):
    """The user's function, and the raw transform that runs it."""

    transform: Raw
    code: types.CodeType

    @property
    def function(self) -> str:
        """The function as code."""
        name = self.code.co_name
        if self._is_method:
            return "self" if name == "__call__" else f"self.{name}"
        return "f" if name == "<lambda>" else name

    @property
    def _is_method(self) -> bool:
        return self.code.co_varnames[:1] == ("self",)

    def line(self, root: str) -> str:
        """The line that calls the counterpart, with the tree called `root` as the first argument.

        A method is bound to its tree already.
        """
        names = self.code.co_varnames[: self.code.co_argcount]
        if self._is_method:
            arguments, axes, bound = list(names[1:]), "", self.function
            specs = "P('data')"
        else:
            arguments = [root, *(name for name in names if name != root)]
            each = ["None", *["0"] * (len(arguments) - 1)]
            axes = f", in_axes=({', '.join(each)}{',' if len(each) == 1 else ''})"
            cut = ["P('data')"] * (len(arguments) - 1)
            specs = f"({', '.join(['P()', *cut])}{'' if cut else ','})"
            bound = f"ft.partial({self.function}, {root})"
        return self.transform.line.format(
            fn=self.function,
            bound=bound,
            arguments=", ".join(arguments),
            axes=axes,
            specs=specs,
            last=max(len(arguments) - 1, 0),
        )

    def advice(self, root: str) -> str:
        """What to write instead."""
        take = "Call" if self._is_method else f"Let it take `{root}` first, and call"
        return f"{take} the counterpart that threads them:\n    {self.line(root)}"


def running() -> Running | None:
    """The raw transform that runs the user's function here, if its frames say so."""
    function: types.CodeType | None = None
    found: Raw | None = None
    for package, frame in _frames():
        if package in ("jax", "equinox"):
            # The outermost of neighbouring frames is what the user called.
            first = frame.f_code.co_qualname.partition(".")[0]
            found = _TRANSFORMS.get(first, found)
            continue
        if found is not None or package == "pstate":
            break
        function = frame.f_code
    if found is None or function is None or function.co_filename.startswith(_INSTALLED):
        return None  # the user cannot change what a library runs
    return Running(found, function)


def _frames() -> Iterator[tuple[str, types.FrameType]]:
    """The frames from the user's function outwards, without our frames that handle the write."""
    frame: types.FrameType | None = users_frame(sys._getframe())[1]
    while frame is not None:
        package = package_of(frame)
        if package not in ("jaxtyping", "beartype"):  # which check the types of a function around it
            yield package, frame
        frame = frame.f_back


def trace_message(place: str, kind: str, recording: Any) -> str:
    """The message for a write under another trace than that of its recording."""
    root = root_of(place)
    start = f"`{place}` ({kind}) was written under a JAX trace inside {recording.title}: "
    found, inner = running(), local.recordings[-1]
    if found is not None:
        return (
            f"{start}{found.transform.name} runs `{found.function}`, threads no states, and the write "
            f"would leak a tracer. {found.advice(root)}"
        )
    if inner is not recording:
        return (
            f"{start}a function of {inner.title} closed over it, and the write would leak a tracer. Let "
            f"the function take `{root}` as an argument, or bind it: ft.partial(f, {root})."
        )
    return (
        f"{start}a function that a transform runs closed over it, and the write would leak a tracer. "
        "Pass the tree through the transform and take it back:\n"
        f"    out, {root} = transform(ps.pure(f))({root}, x)"
    )


def copy_message(place: str, kind: str) -> str:
    """The message for a write to a copy of a live state that is no longer live."""
    found = running()
    start = f"`{place}` ({kind}) was written through a changed copy of its live tree"
    if found is not None:
        return (
            f"{start}: {found.transform.name} made it for `{found.function}`, and threads no states, so "
            f"the write would be lost. {found.advice(root_of(place))}"
        )
    return (
        f"{start} (by jax.tree.map, a raw transform, or eqx.tree_at), so the write would be lost. Write "
        "to the live tree itself, or record the copy:\n"
        "    out, copied = ps.pure(f)(copied)"
    )


def root_of(place: str) -> str:
    """The name with which a place starts."""
    found = re.match(r"\w+", place)
    return found[0] if found else "tree"
