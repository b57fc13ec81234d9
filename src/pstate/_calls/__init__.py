"""Taking a call apart, running it, and what it gives back.

A call is the pytree `(callable, args, kwargs)`. The *carrier* of a callable is the part that is
threaded and given back, its *anchor* the innermost function. A *run* gives an output and *writes*, by
slot; a *note* says what its arrays mean. `pure` has a *contract*: which arguments it gives back.

Always: what was not written comes back as the same leaf objects that came in; a write is given back
or refused.

Start with `call.py`, then `running.py`, `giving_back.py`, `pure.py`; transforms share `transform.py`.
"""
