"""A bidirectional LSTM as `torch.nn` computes, draws and names it."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float

from unils_jax.nn.layers import Linear, uniform_init


class LSTM(nnx.Module):
    """One layer in one direction from a zero state; the gates are input, forget, cell, output.

    There are two biases, which are added: each one gets the whole gradient, so that under Adam
    their sum moves twice as far as one merged bias would.
    """

    def __init__(self, in_dim: int, hidden_dim: int, *, reverse: bool, rngs: nnx.Rngs):
        init = uniform_init(hidden_dim**-0.5)
        self.input = Linear(in_dim, 4 * hidden_dim, kernel_init=init, bias_init=init, rngs=rngs)
        self.state = Linear(hidden_dim, 4 * hidden_dim, kernel_init=init, bias_init=init, rngs=rngs)
        self.reverse = reverse

    def __call__(self, x: Float[Array, "B T I"]) -> Float[Array, "B T H"]:
        """Returns the output of every frame; `reverse` reads frames from the last to the first."""
        hidden_dim, (kernel, bias) = self.state.kernel.shape[0], (self.state.kernel[...], self.state.bias[...])
        # The input's part of all gates is one product; only the state's part is in the scan.
        gates_TBG = jnp.swapaxes(self.input(x), 0, 1)
        gates_TBG = gates_TBG + jnp.broadcast_to(bias.astype(x.dtype), gates_TBG.shape)

        def step(carry: tuple[Array, Array], gates: Array) -> tuple[tuple[Array, Array], Array]:
            hidden, cell = carry
            enter, forget, content, leave = jnp.split(gates + hidden @ kernel.astype(x.dtype), 4, axis=-1)
            cell = jax.nn.sigmoid(forget) * cell + jax.nn.sigmoid(enter) * jnp.tanh(content)
            hidden = jax.nn.sigmoid(leave) * jnp.tanh(cell)
            return (hidden, cell), hidden

        zeros = jnp.zeros((x.shape[0], hidden_dim), x.dtype)
        return jnp.swapaxes(jax.lax.scan(step, (zeros, zeros), gates_TBG, reverse=self.reverse)[1], 0, 1)


class BidirectionalLSTM(nnx.Module):
    """Layers of two directions; all but the first read [forward | backward] of the one before."""

    def __init__(self, in_dim: int, hidden_dim: int, depth: int, *, rngs: nnx.Rngs):
        in_dims = [in_dim] + [2 * hidden_dim] * (depth - 1)
        self.forward = nnx.List(LSTM(dim, hidden_dim, reverse=False, rngs=rngs) for dim in in_dims)
        self.backward = nnx.List(LSTM(dim, hidden_dim, reverse=True, rngs=rngs) for dim in in_dims)

    def __call__(self, x: Float[Array, "B T I"]) -> Float[Array, "B T H"]:
        """Returns [forward | backward] of every frame of the last layer."""
        for forward, backward in zip(self.forward, self.backward, strict=True):
            x = jnp.concatenate([forward(x), backward(x)], axis=-1)
        return x
