"""Modules with states."""

from ._dropout import Dropout as Dropout
from ._map import Map as Map
from ._module import Module as Module, init_all_states as init_all_states
