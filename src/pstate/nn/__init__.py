"""Modules with states."""

from ._dropout import Dropout as Dropout
from ._from_equinox import from_equinox as from_equinox
from ._map import Map as Map
from ._module import Module as Module, init_all_states as init_all_states
