"""Key paths as people write them.

A *key path* is JAX's tuple of entries from `jax.tree_util.tree_flatten_with_path`. A *path* is the
same as plain names and indices, `("layers", 0, "count")`, which filters see. A *place* is the
same as code, `model.layers[0].count`, which error messages show.
"""

import re
from collections.abc import Sequence
from typing import Any

import jax.tree_util as jtu


Path = tuple[Any, ...]


def to_path(key_path: Sequence[Any]) -> Path:
    """The names and indices of a key path.

    >>> import jax.tree_util as jtu
    >>> to_path((jtu.GetAttrKey("layers"), jtu.SequenceKey(0), jtu.DictKey("w")))
    ('layers', 0, 'w')
    """
    return tuple(_entry(key) for key in key_path)


def _entry(key: Any) -> Any:
    match key:
        case jtu.GetAttrKey():
            return key.name
        case jtu.DictKey() | jtu.FlattenedIndexKey():
            return key.key
        case jtu.SequenceKey():
            return key.idx
        case _:
            return str(key)


def to_place(root: str, key_path: Sequence[Any]) -> str:
    """The key path as code that starts at `root`.

    >>> import jax.tree_util as jtu
    >>> to_place("model", (jtu.GetAttrKey("layers"), jtu.SequenceKey(0), jtu.DictKey("w")))
    "model.layers[0]['w']"
    """
    return root + jtu.keystr(tuple(key_path))


def snake_case(name: str) -> str:
    """A class name as a variable name.

    >>> snake_case("LinearLayer")
    'linear_layer'
    """
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower().lstrip("_") or "tree"
