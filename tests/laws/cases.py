"""The table of cases over which the laws run.

Each case is a stateful function, the options of its mapping, arguments, and a twin: the same
computation threaded by hand through raw JAX. A new feature is finished when it stands here.
"""

from laws import (  # noqa: F401 (they fill the table)
    axes_and_draws,
    lanes,
    nests,
    options,
    partials,
    random_lanes,
    sown,
)
from laws.table import CASES, Case, case, tick, ticks


__all__ = ["CASES", "Case", "case", "tick", "ticks"]
