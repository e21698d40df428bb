"""Optimizers by name."""

import optax

from emjax.choose import choose


def adam(*, lr, b1=0.9, b2=0.999):
    """Adam with a constant learning rate; epsilon 1e-8 outside the root, as in PyTorch."""
    return optax.adam(lr, b1=b1, b2=b2)


OPTIMIZERS = {"adam": adam}


def build(optimizer):
    """The optax transformation of a config's `optimizer` field, `{"name": ..., **arguments}`."""
    arguments = dict(optimizer)
    return choose("optimizer", arguments.pop("name"), OPTIMIZERS)(**arguments)
