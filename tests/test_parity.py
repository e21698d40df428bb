"""emjax and an independent PyTorch twin agree: outputs, statistics, gradients, whole updates.

Same weights, same images, no random augmentation. `pytest -s` prints the largest differences, each
as a share of the largest entry of its array.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from emjax import losses, networks, optimizers
from emjax.augment import Augmentation
from emjax.corruptions import Corruption
from emjax.models import blocks
from emjax.networks import Network
from emjax.objectives import Pix2Pix, Supervised, pix2pix, supervised
from emjax.tasks import TASKS

torch = pytest.importorskip("torch", reason="parity needs PyTorch: make test TORCH=1")

from tests import torch_twin as twin  # noqa: E402  needs torch

IN_FLOAT32 = 1e-4
IN_FLOAT64 = 1e-8

UNET_2_44 = dict(name="unet", blocks=2, receptive_field=44)
UNET_4_424 = dict(name="unet", blocks=4, receptive_field=424)
DILATIONS_4_424 = [1, 1, 2, 2, 3]


def drawn(model, optimizer=None, dtype=np.float32):
    """A Network whose every array is random: no scale is 1, no bias and no running mean 0."""
    rng = np.random.default_rng(0)
    module = networks.build_abstract(model)

    def draw(path, like):
        noise = rng.normal(size=like.shape)
        if path.endswith("kernel"):
            noise *= math.sqrt(2 / math.prod(like.shape[:-1]))
        elif path.endswith(("scale", "var")):
            noise = np.exp(0.1 * noise)
        else:
            noise *= 0.1
        return jnp.asarray(noise.astype(dtype))

    params, stats = (
        {path: draw(path, like) for path, like in flat.items()} for flat in networks.arrays(module)
    )
    memory = optimizer.init(params) if optimizer else None
    return Network(params, stats, memory, nnx.graphdef(module), optimizer)


def random_images(*, side, count=1, dtype=np.float32):
    """`count` batches of two images in [-1, 1]."""
    rng = np.random.default_rng(1)
    return [rng.uniform(-1, 1, (2, side, side, 1)).astype(dtype) for _ in range(count)]


def agree(ours, theirs, *, within, floor=0.0):
    """The largest difference, as text, of two dicts of arrays; an error if above `within`.

    A difference is a share of the largest entry of its array, or of `floor` if that is larger.
    """
    assert set(ours) == set(theirs)
    shares = {
        name: float(np.abs(np.asarray(ours[name]) - array).max() / max(np.abs(array).max(), floor))
        for name, array in theirs.items()
    }
    wrong = {name: share for name, share in shares.items() if not share <= within}
    assert not wrong, wrong
    worst = max(shares, key=shares.get)
    return f"{shares[worst]:.1e} ({worst})"


def before_norm(path):
    """Whether this is a bias that the next BatchNorm takes out again: its gradient is zero."""
    return path.endswith(("conv1/bias", "conv2/bias"))


def patchgan(**arguments):
    return dict(name="patchgan", **arguments)


@pytest.mark.parametrize(
    "model, build_twin, side",
    [
        pytest.param(UNET_2_44, lambda: twin.UNet([1, 1, 1]), 48, id="unet_2_44"),
        pytest.param(UNET_4_424, lambda: twin.UNet(DILATIONS_4_424), 48, id="unet_4_424"),
        pytest.param(patchgan(width=8), lambda: twin.PatchGAN(8), 48, id="patchgan_8"),
        pytest.param(patchgan(width=64), lambda: twin.PatchGAN(64), 32, id="patchgan_64"),
        pytest.param(
            patchgan(width=8, depth=4), lambda: twin.PatchGAN(8, 4), 64, id="patchgan_8_depth_4"
        ),
    ],
)
def test_outputs_statistics_and_gradients(model, build_twin, side):
    """Gradients are those of the least-squares loss, which is smooth; the updates have the rest."""
    ours = drawn(model)
    theirs = twin.load(build_twin(), ours.params, ours.stats)
    inputs = random_images(side=side, count=2 if model["name"] == "patchgan" else 1)

    def probe(params):
        trained, stats = ours.apply(params, ours.stats, *inputs, train=True)
        evaluated, _ = ours.apply(params, stats, *inputs, train=False)
        return losses.adversarial(trained, real=True), (
            {"train": trained, "eval": evaluated},
            stats,
        )

    probe = jax.jit(jax.grad(probe, has_aux=True))
    grads, (outputs, stats) = probe(ours.params)

    tensors = [twin.images(x) for x in inputs]
    trained = theirs(*tensors)
    ((trained - 1) ** 2).mean().backward()
    with torch.no_grad():
        evaluated = theirs.eval()(*tensors)
    torch_outputs = {"train": twin.pixels(trained), "eval": twin.pixels(evaluated)}
    torch_grads = twin.dump(theirs, grads, gradients=True)

    print(f"\n{model}")
    print("  outputs   ", agree(outputs, torch_outputs, within=IN_FLOAT32))
    print("  statistics", agree(stats, twin.dump(theirs, stats), within=IN_FLOAT32))
    zero = {path: grads.pop(path) for path in list(grads) if before_norm(path)}
    largest = max(np.abs(grad).max() for grad in torch_grads.values())
    if zero:
        torch_zero = {path: torch_grads.pop(path) for path in zero}
        print("  zero grads", agree(zero, torch_zero, within=IN_FLOAT32, floor=largest))
    print("  gradients ", agree(grads, torch_grads, within=IN_FLOAT32))


class FixedNoise(Corruption):
    """The same waves added to every image, whatever the key."""

    def __call__(self, keys, images):
        side = images.shape[1]
        waves = jnp.sin(jnp.arange(side * side, dtype=images.dtype) ** 2)
        return images + 0.3 * waves.reshape(1, side, side, 1)


def compare_weights(network, theirs, title):
    """Every parameter and statistic after Adam's steps.

    Biases before a BatchNorm have no gradient but rounding. Adam divides that by itself or by its
    epsilon of 1e-8: in float32 they take random steps, here 1e-9 ones, and the running mean after
    them follows. Both get a limit of their own; the network's output depends on neither.
    """
    held = {**network.params, **network.stats}
    shaken = {path: held.pop(path) for path in list(held) if shaken_by_rounding(path)}
    print(f"  {title}", agree(held, twin.dump(theirs, held), within=IN_FLOAT64))
    if shaken:
        print("    without effect", agree(shaken, twin.dump(theirs, shaken), within=1e-6))


def shaken_by_rounding(path):
    return before_norm(path) or path.endswith(("norm1/mean", "norm2/mean"))


def test_five_pix2pix_updates(float64):
    optimizer = optimizers.build(dict(name="adam", lr=2e-4, b1=0.5))
    objective = Pix2Pix(
        UNET_2_44,
        patchgan(width=8),
        optimizer,
        Augmentation(turns=False),
        FixedNoise(),
        l1_weight=100.0,
    )
    state = pix2pix.State(
        step=jnp.zeros((), jnp.int32),
        key=jax.random.key(0),
        generator=drawn(UNET_2_44, optimizer, float64),
        discriminator=drawn(patchgan(width=8), optimizer, float64),
    )
    g, d = state.generator, state.discriminator
    torch_g = twin.load(twin.UNet([1, 1, 1]), g.params, g.stats)
    torch_d = twin.load(twin.PatchGAN(8), d.params, d.stats)
    g_adam, d_adam = twin.adam(torch_g, b1=0.5), twin.adam(torch_d, b1=0.5)

    def step(state, image):
        batch = {"image": image, "intensity_range": jnp.array([[-1.0, 1.0]] * 2)}
        corrupted = objective.corrupt(None, image)
        g = state.generator
        restored, _ = g.apply(g.params, g.stats, corrupted, train=True)
        return *objective.train_step(state, batch), corrupted, restored

    step = jax.jit(step)
    for number, image in enumerate(random_images(side=32, count=5, dtype=float64), start=1):
        state, terms, corrupted, restored = step(state, image)
        tensors = twin.images(corrupted), twin.images(image)
        torch_restored, torch_terms = twin.pix2pix_step(torch_g, torch_d, g_adam, d_adam, *tensors)
        ours = {"restored": restored, **terms}
        theirs = {"restored": twin.pixels(torch_restored), **torch_terms}
        print(f"\npix2pix, update {number}")
        print("  images and losses", agree(ours, theirs, within=IN_FLOAT64))
        if number in (1, 5):
            compare_weights(state.generator, torch_g, "generator")
            compare_weights(state.discriminator, torch_d, "discriminator")


def test_five_supervised_updates(float64):
    optimizer = optimizers.build(dict(name="adam", lr=2e-4))
    task = TASKS["segmentation"]
    objective = Supervised(UNET_4_424, optimizer, Augmentation(turns=False), task)
    state = supervised.State(
        step=jnp.zeros((), jnp.int32),
        key=jax.random.key(0),
        generator=drawn(UNET_4_424, optimizer, float64),
    )
    theirs = twin.UNet(DILATIONS_4_424)
    twin.load(theirs, state.generator.params, state.generator.stats)
    adam = twin.adam(theirs, b1=0.9)
    step = jax.jit(objective.train_step)
    for number, image in enumerate(random_images(side=32, count=5, dtype=float64), start=1):
        mask = (image + image[:, ::-1] > 0.3).astype(np.uint8)
        ranges = jnp.array([[-1.0, 1.0]] * 2)
        state, terms = step(state, {"image": image, "mask": mask, "intensity_range": ranges})
        loss = twin.supervised_step(
            theirs, adam, twin.images(image), twin.images(mask).to(torch.float64)
        )
        print(f"\nsupervised, update {number}")
        print("  loss", agree(terms, {"loss": loss}, within=IN_FLOAT64))
        if number in (1, 5):
            compare_weights(state.generator, theirs, "U-Net")


@pytest.mark.parametrize(
    "model, theirs, due",
    [
        (UNET_2_44, lambda: twin.UNet([1] * 3), 8_069),
        (dict(name="unet", blocks=3, receptive_field=96), lambda: twin.UNet([1] * 4), 32_725),
        (UNET_4_424, lambda: twin.UNet(DILATIONS_4_424), 130_677),
        (patchgan(), lambda: twin.PatchGAN(64), 2_764_609),
    ],
)
def test_parameter_counts(model, theirs, due):
    params, _ = networks.arrays(networks.build_abstract(model))
    assert sum(leaf.size for leaf in params.values()) == twin.parameters(theirs()) == due


def same_distribution(ours, theirs, title):
    """Mean, deviation, fourth moment within five of their sampling errors; also the extremes."""
    ours, theirs = ours.astype(float), theirs.astype(float)
    assert ours.size == theirs.size
    line = []
    for power in (1, 2, 4):
        a, b = ours**power, theirs**power
        error = math.sqrt((a.var() + b.var()) / a.size)
        line.append(f"E x^{power} {a.mean():.4f} {b.mean():.4f}")
        assert abs(a.mean() - b.mean()) < 5 * error, (title, line, error)
    print(
        f"\n{title}: {', '.join(line)}, |x| <= {np.abs(ours).max():.3f} {np.abs(theirs).max():.3f}"
    )
    return np.abs(ours).max(), np.abs(theirs).max()


def pooled(params, ending, scaled=lambda path, array: array):
    """All values of the arrays whose path has this ending, each through `scaled(path, array)`."""
    chosen = {path: np.asarray(a) for path, a in params.items() if path.endswith(ending)}
    return np.concatenate([scaled(path, array).ravel() for path, array in chosen.items()])


def initial(model):
    """Our initial parameters and, under the same names, those of a new twin."""
    torch.manual_seed(0)
    ours = networks.create(model, optimizers.adam(lr=1.0), key=jax.random.key(0))
    theirs = twin.UNet(DILATIONS_4_424) if model["name"] == "unet" else twin.PatchGAN(64)
    assert twin.dump(theirs, ours.stats).keys() == ours.stats.keys()
    agree(ours.stats, twin.dump(theirs, ours.stats), within=0.0, floor=1.0)
    return ours.params, twin.dump(theirs, ours.params)


def unet_in_units(params):
    """Block kernels in units of kaiming_normal_'s deviation, biases in units of their bound."""
    convs = {path: array for path, array in params.items() if "norm" not in path}
    body = {path: array for path, array in convs.items() if not path.startswith("head")}

    def fan_in(path):
        return math.prod(convs[path.replace("bias", "kernel")].shape[:-1])

    return (
        pooled(body, "kernel", lambda path, array: array * math.sqrt(fan_in(path) / 2)),
        pooled(convs, "bias", lambda path, array: array * math.sqrt(fan_in(path))),
    )


def test_initial_values_of_the_unet():
    sides = initial(UNET_4_424)
    for params in sides:
        assert (pooled(params, "scale") == 1).all()
        assert (pooled(params, ("norm1/bias", "norm2/bias")) == 0).all()
        assert np.abs(params["head/kernel"]).max() <= 1 / math.sqrt(4)
    kernels, biases = zip(*map(unet_in_units, sides), strict=True)
    # 130,000 normal values reach four deviations; a truncated normal would stop at 2.3 of its own.
    assert min(same_distribution(*kernels, "U-Net kernels / kaiming_normal_")) > 4
    largest = same_distribution(*biases, "U-Net biases / default bound")
    assert 0.99 < min(largest) and max(largest) <= 1.000001


def test_initial_values_of_a_default_convolution():
    torch.manual_seed(0)
    ours = blocks.conv(64, 128, 1, rngs=nnx.Rngs(0))
    theirs = torch.nn.Conv2d(64, 128, 1)
    arrays = np.asarray(ours.kernel[...]).ravel(), theirs.weight.detach().numpy().ravel()
    largest = same_distribution(*(8 * a for a in arrays), "head kernel / default bound")
    assert 0.99 < min(largest) and max(largest) <= 1.000001


def test_initial_values_of_the_patchgan():
    sides = initial(patchgan())
    for params in sides:
        assert (pooled(params, "bias") == 0).all()
    kernels = [pooled(params, "kernel") / 0.02 for params in sides]
    scales = [(pooled(params, "scale") - 1) / 0.02 for params in sides]
    assert min(same_distribution(*kernels, "PatchGAN kernels / 0.02")) > 4
    same_distribution(*scales, "PatchGAN scales, (x - 1) / 0.02")
