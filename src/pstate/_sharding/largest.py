"""`largest`: a spec for fully sharded parameters, whatever their shapes."""

import dataclasses
import math
from typing import Any

from jax.sharding import PartitionSpec

from .._ground.integers import Integer, as_count
from .._ground.public import public
from .meshes import current_mesh
from .specs import check_spec


@dataclasses.dataclass(frozen=True)
class Largest:
    """What `largest` returns: a function of the leaf. Two with the same options are equal."""

    name: Any
    n: int | None
    min_size: int

    def __call__(self, leaf: Any) -> PartitionSpec:
        return self.of(leaf, None)

    def of(self, leaf: Any, mesh: Any) -> PartitionSpec:
        """The spec of a leaf on a mesh; `None` stands for the mesh of the context."""
        n = self.n
        if n is None:
            mesh = current_mesh(repr(self)) if mesh is None else mesh
            check_spec(PartitionSpec(self.name), mesh, repr(self))
            names = self.name if isinstance(self.name, tuple) else (self.name,)
            n = math.prod(mesh.shape[name] for name in names)
        shape = tuple(leaf.shape)
        axes = [axis for axis, size in enumerate(shape) if size and size % n == 0]
        if not axes or math.prod(shape) < self.min_size:
            return PartitionSpec()
        axis = max(axes, key=lambda axis: shape[axis])
        return PartitionSpec(*[None] * axis, self.name)

    def __repr__(self) -> str:
        more = "" if self.n is None else f", {self.n}"
        more += f", min_size={self.min_size}" if self.min_size else ""
        return f"ps.largest({self.name!r}{more})"


@public
def largest(name: Any, n: Integer | None = None, min_size: Integer = 0) -> Any:
    """A spec by shape: the largest axis that `n` divides is cut, for fully sharded parameters.

    Use it instead of a `PartitionSpec` in the rules of `pstate.shard`, `pstate.shardings`,
    `pstate.sharded_init` and of `in_shardings=` and `out_shardings=`.

    **Arguments:**

    - `name`: the mesh axis along which arrays are cut, or a tuple of several.
    - `n`: the number of shards; by default the size of that mesh axis.
    - `min_size`: arrays with fewer elements stay whole: gathering small ones costs more than it
        saves.

    **Returns:** a function of an array (anything with a `shape`) that returns a `PartitionSpec`. An
    array without such an axis stays whole, `P()`; among axes of the same size, the first is cut.

    **Raises:** `TypeError` for anything but a name; `ValueError` for an `n` that is not a number
    of shards. When used without `n`: `ValueError` if there is no mesh, or the mesh does not have
    that axis.

    !!! example

        >>> import jax
        >>> import pstate as ps
        >>> spec = ps.largest("data", 4)
        >>> [tuple(spec(jax.ShapeDtypeStruct(s, "float32"))) for s in ((8, 64), (64, 6), (3,), ())]
        [(None, 'data'), ('data',), (), ()]
    """
    several = isinstance(name, tuple | list) and all(isinstance(one, str) for one in name)
    if not isinstance(name, str) and not (several and name):
        raise TypeError(
            f"ps.largest takes the name of a mesh axis, or a tuple of names; got {name!r} of type "
            f"{type(name).__name__}. Write ps.largest('data')."
        )
    n = None if n is None else as_count(n, "n", "the number of shards", least=1, example=8)
    least = as_count(min_size, "min_size", "a number of elements", least=0, example=1024)
    return Largest(name if isinstance(name, str) else tuple(name), n, least)
