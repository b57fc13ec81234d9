"""What a state is.

A *state* is a pytree node with one child, its value. It is *frozen*, or *live*: then it shares a
*cell* with a *recording*, which takes its writes. A *kind* is the class of a state. A *deferred*
value is computed when it is first needed.

Always: taking a state apart and putting it together does not count as a read, and validates
nothing.

Start with `state.py`, then `cell.py`; `threads.py` has what JAX's callbacks must know in addition
to the node.
"""
