"""JAX's other transforms, lifted to functions that write states.

Loops and branches are *statements*: made and called at once. They *carry* states, which go in and
come out with their current values. A derivative is taken *with respect to* the leaves that a filter
selects.

Always: writes inside are kept, and the traced program is the same as the hand-threaded one.

Start with `jit.py` and `checkpoint.py`; then `control_flow.py` for loops and branches.
"""
