"""States on disk: exact, the latest two and the best kept, found again."""

import jax
import numpy as np
import optax
import pytest
from flax import struct

from emjax import networks, sharding
from emjax.checkpoints import Checkpoints, load_generator
from emjax.errors import BadInput
from emjax.networks import Network


class State(struct.PyTreeNode):
    step: jax.Array
    key: jax.Array
    generator: Network


@pytest.fixture(scope="module")
def state():
    unet = dict(name="unet", blocks=2, receptive_field=44)
    state = State(
        step=np.int32(0),
        key=jax.random.key(3),
        generator=networks.create(unet, optax.adam(1e-3), key=jax.random.key(0)),
    )
    return jax.device_put(state, sharding.replicated(sharding.data_mesh()))


def open_folder(folder):
    return Checkpoints(folder, score="val/l1", higher_is_better=False)


def raw(tree):
    tree = tree.replace(key=jax.random.key_data(tree.key))
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def test_latest_two_and_best_are_kept(state, tmp_path):
    checkpoints = open_folder(tmp_path)
    assert checkpoints.restore(state) is state
    for step, l1 in enumerate([0.9, 0.2, None, 0.5, float("nan"), 0.4, None], start=1):
        scores = None if l1 is None else {"val/l1": l1}
        if scores:
            assert checkpoints.is_best(scores) == (step <= 2)
        checkpoints.save(step, state.replace(step=state.step + step), scores)
    checkpoints.wait()
    assert sorted(int(p.name) for p in tmp_path.iterdir() if p.name.isdigit()) == [2, 6, 7]
    again = open_folder(tmp_path)
    assert int(again.restore(state).step) == 7
    assert not again.is_best({"val/l1": 0.3}) and again.is_best({"val/l1": 0.1})


def test_what_is_restored_is_what_was_saved_although_training_went_on(state, tmp_path):
    """The step donates its input while the write may still be under way."""
    checkpoints = open_folder(tmp_path)
    train = jax.jit(lambda s: jax.tree.map(lambda leaf: leaf * 2, s.generator), donate_argnums=0)
    mine = jax.tree.map(lambda leaf: leaf.copy(), state)
    saved = raw(mine)
    checkpoints.save(1, mine)
    for _ in range(20):
        mine = mine.replace(generator=train(mine))
        mine = mine.replace(step=state.step.copy(), key=state.key.copy())
    checkpoints.wait()
    assert raw(open_folder(tmp_path).restore(state)) == saved != raw(mine)


def test_generator_is_loaded_alone_by_best_last_or_number(state, tmp_path):
    checkpoints = open_folder(tmp_path)
    for step, l1 in enumerate([0.9, 0.2, 0.5, 0.4], start=1):
        generator = state.generator
        stats = {path: value * 0 + step for path, value in generator.stats.items()}
        moved = state.replace(generator=generator.replace(stats=stats))
        checkpoints.save(step, moved, {"val/l1": l1})
    checkpoints.wait()
    for wanted, step in (("best", 2), ("last", 4), ("3", 3), (3, 3)):
        params, stats = load_generator(tmp_path, wanted, score="val/l1", higher_is_better=False)
        assert set(params) == set(state.generator.params)
        np.testing.assert_array_equal(params["head/kernel"], state.generator.params["head/kernel"])
        assert (stats["down/0/norm1/mean"] == step).all()
    with pytest.raises(BadInput, match="no checkpoint '1'; there are: 2, 3, 4, last, best"):
        load_generator(tmp_path, "1", score="val/l1", higher_is_better=False)
    with pytest.raises(BadInput, match="no checkpoint 'best'; there are: none"):
        load_generator(tmp_path / "no", "best", score="val/l1", higher_is_better=False)


def test_saved_on_eight_devices_restored_on_one(state, tmp_path):
    checkpoints = open_folder(tmp_path)
    checkpoints.save(5, state.replace(step=state.step + 5))
    checkpoints.wait()
    one = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("data",))
    restored = open_folder(tmp_path).restore(jax.device_put(state, sharding.replicated(one)))
    assert raw(restored.replace(step=state.step)) == raw(state)
    assert restored.generator.params["head/kernel"].sharding.device_set == set(jax.devices()[:1])
