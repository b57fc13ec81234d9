"""Which libraries take part: those that are installed."""

import importlib

from job import Contenders
from lib_equinox import EQUINOX, FEW_BY_HAND
from lib_jax import LIMIT
from lib_pstate import PSTATE


#: The kinds of contenders: fields of `Contenders`.
KINDS = ("warm", "mapped", "loops", "few")

_PEERS = (("lib_flax", "FLAX"), ("lib_brainstate", "BRAINSTATE"))


def installed() -> tuple[list[Contenders], list[str]]:
    """The limit, pstate and its peers; and a note on each peer that is missing."""
    found, left_out = [LIMIT, FEW_BY_HAND, PSTATE, EQUINOX], []
    for module, name in _PEERS:
        try:
            found.append(getattr(importlib.import_module(module), name))
        except ImportError as error:
            left_out.append(f"left out: {error}. To take part: pip install 'pstate[peers]'")
    return found, left_out
