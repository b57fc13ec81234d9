"""A call taken apart, run, and what it gives back.

A call is the pytree `(callable, args, kwargs)`. The *carrier* of a callable is what is threaded and
given back, its *anchor* the function at its heart. A *run* gives an output and *writes*, by slot; a
*note* says what its arrays mean. The *contract* of `pure` says who gives written states back.

Always: what was not written comes back as the very leaves that came in; a write is given back or
refused.

Start with `call.py`, then `running.py`, `giving_back.py`, `pure.py`; `transform.py` is what all
share.
"""
