"""One step of each objective: the same on 1 and on 8 devices, pure, and as documented."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from emjax.data.augment import Augmentation
from emjax.data.corruptions import Corruption, Masking
from emjax.metrics import hard_dice
from emjax.models.build import assemble
from emjax.models.network import replace_in_networks
from emjax.objectives import Masked, Pix2Pix, Reconstruction, Supervised
from emjax.parallel import sharding
from emjax.tasks import TASKS
from emjax.tasks.segmentation import segmentation

UNET = dict(name="unet", blocks=1, dilations=(2, 2))
PATCHGAN = dict(name="patchgan", width=4, depth=2)
ADAM = optax.adam(2e-4, b1=0.5)
OBJECTIVES = {
    "pix2pix": Pix2Pix(UNET, PATCHGAN, ADAM, Augmentation(crop=32), Corruption()),
    "reconstruction": Reconstruction(UNET, ADAM, Augmentation(crop=32), Corruption()),
    "masked": Masked(UNET, ADAM, Augmentation(crop=32), Masking(side=8)),
    "supervised": Supervised(
        UNET,
        ADAM,
        Augmentation(crop=32, resize=1.25, noise_probability=0.5),
        TASKS["segmentation"],
    ),
    "dice": Supervised(
        UNET,
        ADAM,
        Augmentation(crop=32),
        segmentation(loss="cross_entropy+dice", foreground_weight=3.0),
    ),
}


def uneven_batch():
    """Rows that differ in content and scale, so that a mean over fewer rows is another mean."""
    rng = np.random.default_rng(0)
    scale = np.linspace(0.05, 1, 8).reshape(8, 1, 1, 1)
    image = (
        255 * scale * rng.random((8, 40, 40, 1)) ** 2 + 20 * np.arange(8).reshape(8, 1, 1, 1) / 8
    )
    return dict(
        image=np.clip(image, 0, 255).astype(np.uint8),
        mask=(rng.random((8, 40, 40, 1)) < scale).astype(np.uint8),
        intensity_range=np.tile(np.float32([0, 255]), (8, 1)),
        index=np.arange(8, dtype=np.int32),
    )


def plain_sgd(objective):
    """`objective` with an optimizer that subtracts the gradient itself."""
    return objective.__class__(**{**vars(objective), "optimizer": optax.sgd(1.0)})


def on(mesh, objective):
    """The objective's state at step 0, on the devices of `mesh`."""
    return sharding.place_state(replace_in_networks(objective.init(0), mesh=mesh), mesh)


def stepped(objective, devices, **axes):
    """(params before, state after one step, terms) on the first `devices` devices, as numpy."""
    mesh = sharding.data_mesh(**axes, devices=jax.devices()[:devices])
    state = on(mesh, objective)
    before = jax.device_get(network_arrays(state, "params"))
    batch = sharding.to_devices(uneven_batch(), mesh)
    layout = jax.tree.map(lambda leaf: leaf.sharding, state)
    step = jax.jit(
        objective.train_step, donate_argnums=0, out_shardings=(layout, sharding.replicated(mesh))
    )
    with jax.transfer_guard("disallow"):
        state, terms = step(state, batch)
    after = {part: network_arrays(state, part) for part in ("params", "stats")}
    return before, jax.device_get(after), jax.device_get(terms), int(state.step)


def network_arrays(state, part):
    return {
        f"{name}/{path}": value
        for name in ("generator", "discriminator")
        if hasattr(state, name)
        for path, value in getattr(getattr(state, name), part).items()
    }


LAYOUTS = {
    "data": {},
    "all": dict(fsdp=2, space=2),
    "fsdp": dict(fsdp=8),
    "space": dict(space=8),  # 32 pixels are 16 rows in the U-Net's bottleneck, 2 per device
}


@functools.cache
def on_one(name):
    return stepped(plain_sgd(OBJECTIVES[name]), 1)


@pytest.mark.parametrize(
    ("name", "layout"),
    [(name, "data") for name in OBJECTIVES]
    + [("pix2pix", "all"), ("pix2pix", "fsdp"), ("pix2pix", "space"), ("supervised", "all")],
)
def test_eight_devices_do_what_one_does(name, layout):
    same_update(on_one(name), stepped(plain_sgd(OBJECTIVES[name]), 8, **LAYOUTS[layout]))


def same_update(first, second):
    """Losses to 1e-5; gradients (an SGD step at rate 1) and statistics to 1e-4 of their largest."""
    before, one, terms, step = first
    _, eight, terms_of_eight, _ = second
    assert step == 1
    for term, value in terms.items():
        assert terms_of_eight[term] == pytest.approx(value, rel=1e-5), term

    def gradients(after):
        return {path: before[path] - value for path, value in after["params"].items()}

    expected, found = gradients(one), gradients(eight)
    for net in ("generator", "discriminator"):
        paths = [path for path in expected if path.startswith(net)]
        largest = max((np.abs(expected[path]).max() for path in paths), default=0)
        for path in paths:
            scale = np.abs(expected[path]).max()
            before_norm = path.endswith(("conv1/bias", "conv2/bias"))  # its true gradient is zero
            bound = 1e-4 * (largest if before_norm else scale)
            assert np.abs(expected[path] - found[path]).max() <= bound, path
            assert before_norm or scale > 0, path
    for path, value in one["stats"].items():
        bound = 1e-4 * np.abs(value).max()
        assert np.abs(value - eight["stats"][path]).max() <= bound, path


@pytest.mark.parametrize("name", ["pix2pix", "supervised"])
def test_evaluation_is_the_same_with_heights_spread(name):
    batch = {**uneven_batch(), "valid": np.ones((8, 40, 40, 1), bool)}
    batch["valid"][:, 37:] = batch["valid"][6] = False
    scores = []
    for devices, axes in ((1, {}), (8, dict(fsdp=2, space=2))):
        mesh = sharding.data_mesh(**axes, devices=jax.devices()[:devices])
        evaluate = jax.jit(OBJECTIVES[name].eval_step, out_shardings=sharding.replicated(mesh))
        scores.append(evaluate(on(mesh, OBJECTIVES[name]), sharding.to_devices(batch, mesh)))
    for metric, (values, counts) in scores[0].items():
        np.testing.assert_array_equal(counts, scores[1][metric][1], err_msg=metric)
        np.testing.assert_allclose(values, scores[1][metric][0], rtol=1e-5, err_msg=metric)


@pytest.mark.parametrize("name", ["pix2pix", "reconstruction", "supervised", "dice"])
def test_microbatches_give_the_update_of_the_batch(name, float64):
    """Two microbatches without statistics over the batch, Pix2Pix's on four devices.

    In float64: its generator's gradient passes a discriminator after a step at rate 1.
    """
    objective = plain_sgd(OBJECTIVES[name])
    changes = dict(generator=dict(UNET, norm="group"))
    if name == "pix2pix":
        changes["discriminator"] = dict(PATCHGAN, norm="instance")
    whole = dataclasses.replace(objective, **changes)
    parts = dataclasses.replace(whole, accumulate=2)
    same_update(stepped(whole, 1), stepped(parts, 4 if name == "pix2pix" else 1))


def test_microbatches_and_batch_norm():
    """Each has statistics of its own; the running mean is still that of the batch."""
    objective = OBJECTIVES["supervised"]
    _, whole, _, _ = stepped(objective, 1)
    _, parts, terms, _ = stepped(dataclasses.replace(objective, accumulate=4), 1)
    first = "generator/down/0/norm1/"
    mean, var = (whole["stats"][first + name] - start for name, start in (("mean", 0), ("var", 1)))
    of_parts = parts["stats"][first + "mean"]
    np.testing.assert_allclose(of_parts, mean, rtol=1e-4, atol=1e-7)
    assert (
        parts["stats"][first + "var"] - 1 <= var + 1e-6
    ).all()  # without the variance between them
    assert np.isfinite(terms["loss"])


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_step_is_a_function_of_state_and_batch(name):
    objective = OBJECTIVES[name]
    state, batch = objective.init(0), uneven_batch()
    step = jax.jit(objective.train_step)
    first, terms = step(state, batch)
    again, same = step(state, batch)
    jax.tree.map(np.testing.assert_array_equal, terms, same)
    for a, b in zip(
        jax.tree.leaves(first.generator), jax.tree.leaves(again.generator), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    _, other = step(first, batch)  # the next step draws other numbers
    assert any(terms[term] != other[term] for term in terms)
    assert (jax.random.key_data(first.key) == jax.random.key_data(state.key)).all()


def test_pix2pix_learns_to_restore():
    objective = dataclasses.replace(OBJECTIVES["pix2pix"], optimizer=optax.adam(3e-3))
    state, batch = objective.init(0), uneven_batch()
    step = jax.jit(objective.train_step)
    losses = []
    for _ in range(30):
        state, terms = step(state, batch)
        losses.append(float(terms["g_l1"]))
    assert np.mean(losses[-5:]) < 0.7 * losses[0]


def test_masked_counts_hidden_pixels_alone():
    """Errors in visible pixels cost nothing, in training and in evaluation."""
    objective = OBJECTIVES["masked"]
    rng = np.random.default_rng(5)
    micrograph = jnp.array(rng.uniform(0.1, 1, (4, 40, 40, 1)), jnp.float32)
    corrupted = objective.corrupt(jax.random.split(jax.random.key(0), 4), micrograph)
    hidden = np.array(corrupted != micrograph)
    assert (np.array(corrupted)[hidden] == 0).all()
    assert (hidden.mean((1, 2, 3)) == 15 / 25).all()  # of 25 blocks
    visible_wrong = jnp.where(hidden, micrograph, 9.0)
    assert float(objective.loss(visible_wrong, micrograph, corrupted)) == 0
    off = jnp.where(hidden, micrograph + 0.5, 9.0)
    assert float(objective.loss(off, micrograph, corrupted)) == pytest.approx(0.5)
    valid = jnp.ones(hidden.shape, bool).at[:, 20:].set(False)
    scored = objective.scored(micrograph, corrupted, valid)
    assert (np.array(scored) == (hidden & np.array(valid))).all()


def test_discriminator_statistics_are_updated_three_times_per_step():
    """Fake, real, and fake again in the generator's turn: 0.9 ** 3 of the initial mean is left."""
    objective = OBJECTIVES["pix2pix"]
    state = objective.init(0)
    far = {path: value + 1e6 for path, value in state.discriminator.stats.items()}
    state = state.replace(discriminator=state.discriminator.replace(stats=far))
    after, _ = jax.jit(objective.train_step)(state, uneven_batch())
    kept = after.discriminator.stats["norms/0/mean"] / far["norms/0/mean"]
    np.testing.assert_allclose(kept, 0.9**3, rtol=1e-3)


def test_validation_corruption_depends_on_the_record_alone():
    """Whatever the run's seed, the batch and the row."""
    objective = OBJECTIVES["pix2pix"]
    batch = {**uneven_batch(), "valid": np.ones((8, 40, 40, 1), bool)}
    generator = objective.init(0).generator
    other = objective.init(1).generator
    restore = jax.jit(objective.restore)
    _, corrupted, _ = restore(generator, batch)
    reverse = {name: value[::-1][:5] for name, value in batch.items()}
    _, again, _ = restore(other, reverse)
    np.testing.assert_array_equal(corrupted[::-1][:5], again)


def test_evaluation_scores_real_images_on_running_statistics():
    objective = OBJECTIVES["supervised"]
    state, batch = objective.init(0), uneven_batch()
    batch["valid"] = np.ones((8, 40, 40, 1), bool)
    batch["valid"][6:] = False
    values, counts = jax.jit(objective.eval_step)(state, batch)["dice"]
    module = assemble(UNET, state.generator.params, state.generator.stats)
    image = jnp.array(batch["image"][:6], jnp.float32) / 127.5 - 1
    expected = hard_dice(
        logits=jax.jit(lambda x: module(x, train=False))(image),
        target=jnp.array(batch["mask"][:6], jnp.float32),
        valid=jnp.ones((6, 40, 40, 1), bool),
    )
    assert counts.tolist() == 6 * [True] + 2 * [False]
    np.testing.assert_allclose(values[:6], expected, rtol=1e-4)
