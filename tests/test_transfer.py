"""Filling new weights from old: every leaf is accounted for."""

import inspect

import jax
import numpy as np
import optax
import pytest

from emjax.errors import UsageError
from emjax.models import MODELS, transfer
from emjax.models.build import build_abstract, create
from emjax.models.network import flat_arrays

UNET = dict(name="unet", blocks=2, receptive_field=44)


def network(seed, **changes):
    return create({**UNET, **changes}, optax.adam(1e-3), key=jax.random.key(seed))


def test_body_comes_from_the_old_weights_and_the_head_stays_fresh():
    new, old = network(0), network(1)
    filled, report = transfer.fill(new, old.params, old.stats, fresh=["head/.*"])
    assert set(report.fresh) == {"head/bias", "head/kernel"}
    assert len(report.loaded) == len(new.params) + len(new.stats) - 2
    for path, value in filled.params.items():
        expected = new if path.startswith("head/") else old
        np.testing.assert_array_equal(value, expected.params[path])
    kept, _ = transfer.fill(new, old.params, old.stats)
    np.testing.assert_array_equal(kept.params["head/kernel"], old.params["head/kernel"])


def test_running_statistics_are_filled_too():
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
        "List in initialise.fresh the layers to re-initialise",
    ):
        assert words in str(error.value)


def test_another_architecture_does_not_fit():
    old = network(1, blocks=3, receptive_field=96)
    with pytest.raises(UsageError, match="only in the checkpoint down/2"):
        transfer.fill(network(0), old.params, old.stats, fresh=["head/.*"])


# For each network, settings that differ from its first in one argument.
VARIATIONS = {
    "unet": dict(
        base=dict(blocks=2),
        blocks=3,
        receptive_field=84,
        filters=(4, 8, 8),
        pools=(4, 1),
        dilations=(1, 2, 1),
        in_channels=3,
        out_channels=2,
        norm="none",
        input_interval=(0.0, 1.0),
    ),
    "hrnet": dict(
        base=dict(variant="w18_small_v1"),
        variant="w18_small_v2",
        in_channels=3,
        out_channels=2,
        upsampling="nearest",
        norm="instance",
    ),
    "patchgan": dict(base=dict(width=4), width=8, depth=2, in_channels=4, norm="group"),
}


@pytest.mark.parametrize("name", MODELS)
def test_whatever_changes_a_network_is_in_its_arrays_or_in_its_wiring(name):
    """A new argument of a network needs an entry in VARIATIONS."""
    base, *_ = VARIATIONS[name].values()
    changes = {key: value for key, value in VARIATIONS[name].items() if key != "base"}
    arguments = inspect.signature(MODELS[name].__init__).parameters
    assert changes.keys() == arguments.keys() - {"self", "rngs"}
    old = build_abstract(dict(name=name, **base))
    transfer.check_same_wiring(old, build_abstract(dict(name=name, **base)))
    for argument, value in changes.items():
        new = build_abstract({"name": name, **base, argument: value})
        if shapes(new) == shapes(old):
            with pytest.raises(UsageError, match="network with other settings: .* -> .*; set "):
                transfer.check_same_wiring(old, new)


def shapes(module):
    params, stats = flat_arrays(module)
    return {path: leaf.shape for path, leaf in {**params, **stats}.items()}


@pytest.mark.parametrize("norms", [("instance", "group"), ("group", "instance")])
@pytest.mark.parametrize("name", MODELS)
def test_norms_with_the_same_arrays_are_told_apart(name, norms):
    base = VARIATIONS[name]["base"]
    old, new = (build_abstract(dict(name=name, **base, norm=norm)) for norm in norms)
    assert shapes(old) == shapes(new)
    with pytest.raises(UsageError, match=f"norm {norms[0]} -> {norms[1]}; set config.model alike"):
        transfer.check_same_wiring(old, new)


def test_settings_that_only_one_of_two_networks_has_are_not_compared():
    unet = build_abstract(UNET)
    transfer.check_same_wiring(unet, build_abstract(dict(name="hrnet", variant="w18_small_v1")))
    assert unet.wiring.keys() >= {"pools", "dilations", "input_interval", "norm"}
