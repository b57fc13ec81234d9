"""Mapping over lanes: the core of all mappings.

A *lane* is one index along a mapped axis. The *plan* gives each leaf its input axis; each array
that *leaves* the lanes gets an output axis. Lanes run *directly*, inside the mapping function, or
are *replayed*: traced once, and run by an *engine*, over devices or in chunks. A *probe* asks JAX
whether lanes differ.

Always: the body runs once; nothing is guessed from sizes.

Start with `mapping.py`, then `program.py`, `plan.py`, `direct.py`, `leaving.py`.
"""
