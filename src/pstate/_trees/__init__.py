"""Trees of states.

A *slot* is one state's place in a tree, a *layout* the slots of a structure, an *alias* one state at
two places. A recording makes a tree live; its *guard* refuses writes. In bulk, states are selected,
listed, updated and given axes. A *packed* tree is kept flat between calls.

Always: no tree that comes in is changed.

Start with `flattening.py`, `slots.py` and `recording.py`.
"""
