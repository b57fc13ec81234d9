"""Compiled programs, and how a call finds its program.

A *program* is a flat function of a call's operands; an *entry* compiles and runs it. It belongs to
the anchor of the callable and to a key: options, structure, static leaves, what the function's names
are bound to. A *capture* is a state that a body reads without having received it.

Always: a program goes with its function, and keeps no model alive.

Start with `compiled.py`, then `cache.py` and `entry.py`.
"""
