"""What calls leave behind: nothing that grows, and what one call takes."""

import gc

import jax
import jax.numpy as jnp
import pytest

import pstate as ps


WIDTH = 64


def step(model, x):
    model["sum"].value = 0.5 * model["sum"].value + model["scale"].value * x
    return model["sum"].value.sum()


def model_of(width=WIDTH):
    return {"scale": ps.ParamState(jnp.ones(width)), "sum": ps.ShortTermState(jnp.zeros(width))}


def held():
    """Live arrays, pstate's own objects, and all objects."""
    gc.collect()
    gc.collect()
    objects = gc.get_objects()
    kinds = [type(x) for x in objects]
    own = sum(str(k.__module__).startswith("pstate") for k in kinds)
    return len(jax.live_arrays()), own, len(objects)


@pytest.mark.parametrize("anew", [False, True], ids=["one wrapper", "a new wrapper for each call"])
def test_calls_leave_nothing_behind(anew):
    """After 300 more calls there are as many arrays and states, and no more objects of any kind."""
    make = lambda: ps.pure(ps.jit(step))
    run, model, x = make(), model_of(), jnp.ones(())

    def call(n):
        nonlocal model
        for _ in range(n):
            _, model = (make() if anew else run)(model, x)

    call(20)
    arrays, own, objects = held()
    call(300)
    arrays_after, own_after, objects_after = held()
    assert (arrays_after, own_after) == (arrays, own)
    assert objects_after < objects + 100


def test_a_new_function_for_each_call_takes_its_program_along():
    """Programs of functions that are gone are gone, and their states: of thirty, none is kept."""
    model, x = model_of(), jnp.ones(())

    def call(n):
        nonlocal model
        for _ in range(n):
            own = lambda model, x: step(model, x)
            _, model = ps.pure(ps.jit(own))(model, x)

    call(3)
    arrays, own, _ = held()
    call(30)
    arrays_after, own_after, _ = held()
    assert arrays_after == arrays
    assert own_after <= own + 3


@pytest.mark.parametrize("donate", [None, ...], ids=["kept", "donated"])
def test_what_one_call_takes(donate):
    """Inputs and outputs and no more; a donated state is overwritten where it is."""
    model, x = model_of(4096), jnp.ones(())
    compiled = ps.pure(ps.jit(step, donate=donate)).lower(model, x).compile()
    found = compiled.memory_analysis()
    state = model["sum"].value.nbytes
    assert found.argument_size_in_bytes == 2 * state + x.nbytes
    assert found.alias_size_in_bytes == (0 if donate is None else state)
    # The output, the written state, and the table of the results' addresses: not the parameter.
    assert state <= found.output_size_in_bytes < state + 256
