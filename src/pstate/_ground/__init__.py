"""The ground: what does not depend on states.

`errors` has every error and warning, `versions` is the one place that looks at JAX's version,
`values` says what a state may hold. A *key path* is JAX's, a *path* is `("layers", 0, "count")`, a
*place* is the same as code, `model.layers[0].count` (`paths`). `typing` and `annotations` have
aliases and `State[Float[Array, "n"]]`.

Start with `paths.py`.
"""
