"""Looking at trees: `summary` and `diff`, as tables.

An *entry* is a state, or a leaf outside states; a *change* is what differs between two of them.

Always: looking is not reading, and computes nothing that was deferred.

Start with `entries.py`; `tables.py` draws.
"""
