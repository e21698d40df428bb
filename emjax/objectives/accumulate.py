"""Gradient accumulation: a batch in microbatches, one after the other."""

import jax
import jax.numpy as jnp


def accumulate_gradients(function, examples, parts):
    """The mean of what `function`, a tree of floats, gives of each of `parts` parts of `examples`.

    One part after the other, so that the memory is that of one. Part i has the rows i, i + parts,
    ...: of the rows on every device its share.
    """
    if parts == 1:
        return function(examples)
    split = jax.tree.map(
        lambda x: x.reshape(len(x) // parts, parts, *x.shape[1:]).swapaxes(0, 1), examples
    )

    def add(total, part):
        return jax.tree.map(jnp.add, total, function(part)), None

    shapes = jax.eval_shape(function, jax.tree.map(lambda x: x[0], split))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    # On a CPU, convolutions inside a loop run on one thread, 4 to 34 times slower.
    unroll = jax.default_backend() == "cpu"
    total, _ = jax.lax.scan(add, zeros, split, unroll=unroll)
    return jax.tree.map(lambda x: x / parts, total)
