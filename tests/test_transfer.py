"""Filling new weights from old: every leaf is accounted for."""

import jax
import numpy as np
import optax
import pytest

from emjax.errors import UsageError
from emjax.models import transfer
from emjax.models.build import create

UNET = dict(name="unet", blocks=2, receptive_field=44)


def network(seed, **changes):
    return create({**UNET, **changes}, optax.adam(1e-3), key=jax.random.key(seed))


def test_body_comes_from_the_old_weights_and_the_head_stays_fresh():
    new, old = network(0), network(1)
    filled, account = transfer.fill(new, old.params, old.stats, fresh=["head/.*"])
    assert set(account.fresh) == {"head/bias", "head/kernel"}
    assert len(account.loaded) == len(new.params) + len(new.stats) - 2
    for path, value in filled.params.items():
        expected = new if path.startswith("head/") else old
        np.testing.assert_array_equal(value, expected.params[path])
    kept, _ = transfer.fill(new, old.params, old.stats)
    np.testing.assert_array_equal(kept.params["head/kernel"], old.params["head/kernel"])


def test_running_statistics_come_along():
    new, old = network(0), network(1)
    stats = {path: value + 3 for path, value in old.stats.items()}
    filled, _ = transfer.fill(new, old.params, stats, fresh=["head/.*"])
    np.testing.assert_array_equal(filled.stats["down/0/norm1/mean"], stats["down/0/norm1/mean"])


def test_every_misfit_is_named_at_once():
    new, old = network(0), network(1)
    params = dict(old.params)
    params["extra/kernel"] = params.pop("up/0/conv1/bias")
    params["head/kernel"] = np.zeros((1, 1, 4, 2), np.float32)
    stats = {path: value for path, value in old.stats.items() if path != "down/0/norm1/var"}
    with pytest.raises(UsageError) as error:
        transfer.fill(new, params, stats, fresh=["haed/.*"])
    for words in (
        "fresh pattern 'haed/.*' matches nothing",
        "only in the new network down/0/norm1/var",
        "only in the new network up/0/conv1/bias",
        "only in the checkpoint extra/kernel",
        "shapes differ head/kernel (1, 1, 4, 2) -> (1, 1, 4, 1)",
    ):
        assert words in str(error.value)


def test_another_architecture_does_not_fit():
    old = network(1, blocks=3, receptive_field=96)
    with pytest.raises(UsageError, match="only in the checkpoint down/2"):
        transfer.fill(network(0), old.params, old.stats, fresh=["head/.*"])
