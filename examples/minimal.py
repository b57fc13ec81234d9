"""A recurrent network learns to hold the last pulse it was given. It is saved in the middle of a
sequence, loaded, and continues: `python examples/minimal.py` draws that into `minimal.png`."""

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import matplotlib.pyplot as plt
import optax

import pstate as ps


class Memory(eqx.Module):  # written for one step of one sequence
    cell: eqx.nn.GRUCell
    hidden: ps.HiddenState

    def __call__(self, x):
        self.hidden.value = self.cell(x, self.hidden.value)
        return 2 * self.hidden.value[:1]


def loss(model, xs, ys):
    return jnp.mean((run(model, xs) - ys) ** 2)


@ps.jit
def train_step(model, opt_state, key):
    (value, grads), model = ps.pure(ps.value_and_grad(loss))(model, *pulses(key))
    updates, opt_state = optim.update(grads, opt_state)
    return eqx.apply_updates(model, updates), opt_state, value


def pulses(key):  # 16 sequences of 60 steps, and the last pulse at each step
    xs = jnp.round(jr.uniform(key, (16, 60, 1), minval=-0.55, maxval=0.55))
    last = jnp.maximum.accumulate(jnp.where(xs == 0, 0, jnp.arange(60)[:, None]), axis=1)
    return xs, jnp.take_along_axis(xs, last, axis=1)


# A loop over time, mapped over sequences: each has its own hidden state, all share the weights.
run = ps.vmap2(ps.for_loop, in_axes=(None, 0), state_in_axes={0: ps.HiddenState})
fresh = Memory(eqx.nn.GRUCell(1, 16, key=jr.key(0)), ps.HiddenState(jnp.zeros((16, 16))))
model, optim = fresh, optax.adam(2e-2)
opt_state = optim.init(ps.trainable(fresh))
for key in jr.split(jr.key(1), 300):
    model = ps.update(model, ps.states(fresh, ps.HiddenState))  # reset
    model, opt_state, _ = train_step(model, opt_state, key)

(xs, ys), predict = pulses(jr.key(2)), ps.pure(ps.jit(run))
model = ps.update(model, ps.states(fresh, ps.HiddenState))
before, model = predict(model, xs[:, :30])
eqx.tree_serialise_leaves("minimal.eqx", model, filter_spec=ps.serialise_filter_spec)
model = eqx.tree_deserialise_leaves("minimal.eqx", fresh, filter_spec=ps.deserialise_filter_spec)
output = jnp.concatenate([before, predict(model, xs[:, 30:])[0]], axis=1)
plt.figure(figsize=(8, 3.5), layout="constrained").add_subplot(xlabel="time step", yticks=[])
plt.plot(ys[:4, :, 0].T + 3 * jnp.arange(4), "0.8", linewidth=6)
plt.plot(output[:4, :, 0].T + 3 * jnp.arange(4), "#0072B2")
plt.axvline(29.5, color="black", linestyle="--")
plt.title("Four outputs (blue) hold the last pulse (grey), also when saved and loaded (dashed)")
plt.savefig("minimal.png", dpi=120)
print(f"test loss {jnp.mean((output - ys) ** 2):.4f}, see minimal.png")
