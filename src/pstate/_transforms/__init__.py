"""JAX's other transforms, lifted to functions that write states.

Loops and branches are *statements*: made and called at once. They *carry* states, which go in with
their newest values and come out with them. A derivative is taken *with respect to* the leaves a
filter chooses.

Always: what is written inside is kept, and the traced program is the hand-threaded one.

Start with `jit.py` and `checkpoint.py`; then `control_flow.py` for loops and branches.
"""
