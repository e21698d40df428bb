"""emjax and an independent PyTorch twin agree: outputs, statistics, gradients, whole updates.

Same weights, same images, no random augmentation. `pytest -s` prints the largest differences, each
as a share of the largest entry of its array.
"""

import functools
import importlib.util
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from emjax.data.augment import Augmentation
from emjax.data.corruptions import Corruption
from emjax.metrics import losses
from emjax.models import blocks
from emjax.models.build import build_abstract, create
from emjax.models.cost import multiply_adds
from emjax.models.network import Network, flat_arrays, nest
from emjax.objectives import Pix2Pix, Supervised
from emjax.objectives.one_network import GeneratorState
from emjax.objectives.pix2pix import GanState
from emjax.tasks import TASKS
from emjax.training import optimizers

torch = pytest.importorskip("torch", reason="parity needs PyTorch: make test TORCH=1")

from tests import timm_trunk  # noqa: E402  need torch
from tests import torch_twin as twin  # noqa: E402

IN_FLOAT32 = 1e-4
IN_FLOAT64 = 1e-8

UNET_2_44 = dict(name="unet", blocks=2, receptive_field=44)
UNET_4_424 = dict(name="unet", blocks=4, receptive_field=424)
DILATIONS_4_424 = [1, 1, 2, 2, 3]


def drawn(model, optimizer=None, dtype=np.float32):
    """Return a Network with random arrays: no scale is 1, no bias and no running mean is 0."""
    rng = np.random.default_rng(0)
    module = build_abstract(model)

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
        {path: draw(path, like) for path, like in flat.items()} for flat in flat_arrays(module)
    )
    memory = optimizer.init(params) if optimizer else None
    return Network(params, stats, memory, nnx.graphdef(module), optimizer)


def random_images(*, side, count=1, dtype=np.float32):
    """Return `count` batches of two images in [-1, 1]."""
    rng = np.random.default_rng(1)
    return [rng.uniform(-1, 1, (2, side, side, 1)).astype(dtype) for _ in range(count)]


def agree(ours, theirs, *, within, floor=0.0):
    """Return the largest difference of two dicts of arrays as text; fail if it is above `within`.

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
    """Return whether this is a bias that the next norm removes: its gradient is zero.

    That holds for norms of each channel by itself: batch and instance.
    """
    return path.endswith(("conv1/bias", "conv2/bias", "merge/conv/bias"))


def unet(**arguments):
    return dict(name="unet", blocks=2, **arguments)


def patchgan(**arguments):
    return dict(name="patchgan", **arguments)


def hrnet(variant="w18_small_v1", **arguments):
    return dict(name="hrnet", variant=variant, **arguments)


def twin_of(model):
    """Return the twin of a config's `model`; a U-Net's dilations are 1 unless it is 4 424."""
    arguments = {key: value for key, value in model.items() if key != "name"}
    if model["name"] == "unet":
        dilations = [1] * (arguments.pop("blocks") + 1)
        field = arguments.pop("receptive_field", None)
        return twin.UNet(DILATIONS_4_424 if field == 424 else dilations, **arguments)
    return {"patchgan": twin.PatchGAN, "hrnet": twin.HRNet}[model["name"]](**arguments)


NORMS = ("instance", "group", "none")
UPSAMPLINGS = ("bilinear", "bilinear_corners", "nearest")
IN_SINGLE = {
    "unet_2_44": (UNET_2_44, 48),
    "unet_4_424": (UNET_4_424, 48),
    "unet_pools": (unet(pools=[4, 4]), 48),
    "unet_filters": (unet(filters=[3, 7, 10]), 48),
    **{f"unet_{norm}": (unet(norm=norm), 48) for norm in NORMS},
    "patchgan_8": (patchgan(width=8), 48),
    "patchgan_64": (patchgan(width=64), 32),
    "patchgan_8_depth_4": (patchgan(width=8, depth=4), 64),
    **{f"patchgan_{norm}": (patchgan(width=8, norm=norm), 48) for norm in NORMS},
}
# Among so many ReLUs some inputs are zero up to rounding. In float32 they fall on either side: the
# forward pass still agrees to 1e-5, but a gradient is off by 1e-3.
IN_DOUBLE = {
    "hrnet_v1": (hrnet(), 64),
    **{f"hrnet_{name}": (hrnet("tiny", upsampling=name), 64) for name in UPSAMPLINGS},
    **{f"hrnet_{norm}": (hrnet("tiny", norm=norm), 64) for norm in NORMS[:2]},
}


@pytest.mark.parametrize("name", [*IN_SINGLE, *IN_DOUBLE])
def test_outputs_statistics_and_gradients(name, request, tiny_hrnet):
    """They agree in float32 to 1e-4; where a ReLU flips by rounding, in float64 to 1e-8."""
    if name in IN_SINGLE:
        try:
            return compare(name, np.float32, IN_FLOAT32)
        except AssertionError as error:
            print(f"\n{name}: too far apart in float32, so in float64: {error}")
    compare(name, request.getfixturevalue("float64"), IN_FLOAT64)


def compare(name, dtype, within):
    """Compare outputs, statistics and the gradients of the least-squares loss, which is smooth."""
    model, side = {**IN_SINGLE, **IN_DOUBLE}[name]
    ours = drawn(model, dtype=dtype)
    theirs = twin.load(twin_of(model), ours.params, ours.stats)
    inputs = random_images(side=side, count=2 if model["name"] == "patchgan" else 1, dtype=dtype)
    tensors = [twin.images(x) for x in inputs]

    def probe(params):
        output, stats = ours.apply(params, ours.stats, *inputs, train=True)
        return losses.adversarial(output, real=True), (output, stats)

    grads, (output, stats) = jax.jit(jax.grad(probe, has_aux=True))(ours.params)
    torch_output = theirs(*tensors)
    ((torch_output - 1) ** 2).mean().backward()
    outputs, torch_outputs = {"train": output}, {"train": twin.pixels(torch_output)}
    torch_grads = twin.dump(theirs, grads, gradients=True)
    torch_stats = twin.dump(theirs, stats)

    if name != "hrnet_v1":  # the tiny ones do; compiling this one takes long
        outputs["eval"] = forward(ours, stats, inputs, train=False)[0]
        with torch.no_grad():
            torch_outputs["eval"] = twin.pixels(theirs.eval()(*tensors))

    print(f"\n{name}, {dtype.__name__}")
    print("  outputs   ", agree(outputs, torch_outputs, within=within))
    if stats:
        print("  statistics", agree(stats, torch_stats, within=within))
    by_channel = model.get("norm", "batch") in ("batch", "instance")
    zero = {path: grads.pop(path) for path in list(grads) if by_channel and before_norm(path)}
    largest = max(np.abs(grad).max() for grad in torch_grads.values())
    if zero:
        torch_zero = {path: torch_grads.pop(path) for path in zero}
        print("  zero grads", agree(zero, torch_zero, within=within, floor=largest))
    print("  gradients ", agree(grads, torch_grads, within=within))


def forward(network, stats, images, *, train):
    run = functools.partial(network.apply, train=train)
    return jax.jit(run)(network.params, stats, *images)


@pytest.mark.parametrize("variant", ["w18_small_v1", "w18"])
def test_an_hrnet_in_float32(variant):
    """The forward pass, which hardly changes if a ReLU flips, before and after the statistics."""
    model = hrnet(variant)
    ours = drawn(model)
    theirs = twin.load(twin_of(model), ours.params, ours.stats)
    images = random_images(side=64)
    (tensor,) = map(twin.images, images)
    outputs, torch_outputs = {}, {}
    outputs["train"], stats = forward(ours, ours.stats, images, train=True)
    outputs["eval"], _ = forward(ours, stats, images, train=False)
    with torch.no_grad():
        torch_outputs["train"] = twin.pixels(theirs(tensor))
        torch_outputs["eval"] = twin.pixels(theirs.eval()(tensor))
    print(f"\nhrnet, {variant}, float32")
    print("  outputs   ", agree(outputs, torch_outputs, within=IN_FLOAT32))
    print("  statistics", agree(stats, twin.dump(theirs, stats), within=IN_FLOAT32))


@pytest.mark.skipif(not importlib.util.find_spec("timm"), reason="needs timm: make test TORCH=1")
@pytest.mark.parametrize("variant, parameters", [("w18_small_v1", 13_187_464), ("w18", 21_299_004)])
def test_the_trunk_is_timms(variant, parameters):
    """The four branches of timm's network; of the smaller one also in training."""
    model = hrnet(variant, in_channels=3, upsampling="nearest")
    ours = drawn(model)
    theirs = timm_trunk.build(variant)
    assert twin.parameters(theirs) == parameters
    params, stats = map(without_head, (ours.params, ours.stats))
    theirs = timm_trunk.load(timm_trunk.trunk(theirs), params, stats)
    image = np.random.default_rng(1).normal(size=(2, 64, 64, 3)).astype(np.float32)

    def compare(stats, *, train):
        def trunk(params, stats):
            module = nnx.merge(ours.definition, nest(params), nest(stats))
            return dict(enumerate(module.trunk(image, train=train))), flat_arrays(module)[1]

        branches, after = jax.jit(trunk)(ours.params, stats)
        with torch.no_grad():
            tensors = theirs.train(train)(twin.images(image))
        torch_branches = dict(enumerate(map(twin.pixels, tensors)))
        print("  branches  ", agree(branches, torch_branches, within=IN_FLOAT32))
        return after

    print(f"\ntimm, {timm_trunk.NAMES[variant]}, float32: eval, train, statistics")
    compare(ours.stats, train=False)
    if variant == "w18_small_v1":  # the other compiles long, and is compared with the twin
        after = without_head(compare(ours.stats, train=True))
        held = theirs.state_dict()
        torch_stats = {path: held[timm_trunk.timm_name(path)].numpy() for path in after}
        print("  statistics", agree(after, torch_stats, within=IN_FLOAT32))


def without_head(arrays):
    return {path: a for path, a in arrays.items() if not path.startswith(("merge", "head"))}


class FixedNoise(Corruption):
    """Adds the same waves to every image, whatever the key."""

    def __call__(self, keys, images):
        side = images.shape[1]
        waves = jnp.sin(jnp.arange(side * side, dtype=images.dtype) ** 2)
        return images + 0.3 * waves.reshape(1, side, side, 1)


def compare_weights(network, theirs, title):
    """Compare every parameter and statistic after Adam's steps.

    The gradients of biases before a BatchNorm are nothing but rounding. Adam divides them by
    themselves or by its epsilon of 1e-8. So in float32 the biases take random steps, here steps of
    1e-9, and the running mean after them follows. Both have their own limit; the network's output
    depends on neither.
    """
    held = {**network.params, **network.stats}
    shaken = {path: held.pop(path) for path in list(held) if shaken_by_rounding(path)}
    print(f"  {title}", agree(held, twin.dump(theirs, held), within=IN_FLOAT64))
    if shaken:
        print("    without effect", agree(shaken, twin.dump(theirs, shaken), within=1e-6))


def shaken_by_rounding(path):
    return before_norm(path) or path.endswith(("norm1/mean", "norm2/mean", "merge/norm/mean"))


@pytest.mark.parametrize(
    "model, side",
    [pytest.param(UNET_2_44, 32, id="unet"), pytest.param(hrnet("tiny"), 64, id="hrnet")],
)
def test_five_pix2pix_updates(model, side, float64, tiny_hrnet):
    optimizer = optimizers.build(dict(name="adam", lr=2e-4, b1=0.5))
    objective = Pix2Pix(
        model,
        patchgan(width=8),
        optimizer,
        Augmentation(turns=False),
        FixedNoise(),
        l1_weight=100.0,
    )
    state = GanState(
        step=jnp.zeros((), jnp.int32),
        key=jax.random.key(0),
        generator=drawn(model, optimizer, float64),
        discriminator=drawn(patchgan(width=8), optimizer, float64),
    )
    g, d = state.generator, state.discriminator
    torch_g = twin.load(twin_of(model), g.params, g.stats)
    torch_d = twin.load(twin.PatchGAN(8), d.params, d.stats)
    g_adam, d_adam = twin.adam(torch_g, b1=0.5), twin.adam(torch_d, b1=0.5)

    def step(state, image):
        batch = {"image": image, "intensity_range": jnp.array([[-1.0, 1.0]] * 2)}
        corrupted = objective.corrupt(None, image)
        g = state.generator
        restored, _ = g.apply(g.params, g.stats, corrupted, train=True)
        return *objective.train_step(state, batch), corrupted, restored

    step = jax.jit(step)
    for number, image in enumerate(random_images(side=side, count=5, dtype=float64), start=1):
        state, terms, corrupted, restored = step(state, image)
        tensors = twin.images(corrupted), twin.images(image)
        torch_restored, torch_terms = twin.pix2pix_step(torch_g, torch_d, g_adam, d_adam, *tensors)
        ours = {"restored": restored, **terms}
        theirs = {"restored": twin.pixels(torch_restored), **torch_terms}
        print(f"\npix2pix, {model['name']}, update {number}")
        print("  images and losses", agree(ours, theirs, within=IN_FLOAT64))
        if number in (1, 5):
            compare_weights(state.generator, torch_g, "generator")
            compare_weights(state.discriminator, torch_d, "discriminator")


def test_five_supervised_updates(float64):
    optimizer = optimizers.build(dict(name="adam", lr=2e-4))
    task = TASKS["segmentation"]
    objective = Supervised(UNET_4_424, optimizer, Augmentation(turns=False), task)
    state = GeneratorState(
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
    "model, expected",
    [
        (UNET_2_44, 8_069),
        (dict(name="unet", blocks=3, receptive_field=96), 32_725),
        (UNET_4_424, 130_677),
        (patchgan(width=64), 2_764_609),
        (hrnet(), 1_535_329),
        (hrnet("w18_small_v2"), 3_933_549),
        (hrnet("w18"), 9_635_089),
    ],
)
def test_parameters_and_multiply_adds(model, expected):
    """The published number of parameters; multiply-adds counted at torch's convolutions."""
    module = build_abstract(model)
    theirs = twin_of(model)
    params, _ = flat_arrays(module)
    assert sum(leaf.size for leaf in params.values()) == twin.parameters(theirs) == expected
    images = [torch.zeros(1, 1, 96, 96)] * (2 if model["name"] == "patchgan" else 1)
    assert multiply_adds(module, 96) == twin.multiply_adds(theirs, *images)


def same_distribution(ours, theirs, title):
    """Compare mean, deviation and fourth moment within five sampling errors; return extremes."""
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
    """Return all values of the arrays with this path ending, after `scaled(path, array)`."""
    chosen = {path: np.asarray(a) for path, a in params.items() if path.endswith(ending)}
    return np.concatenate([scaled(path, array).ravel() for path, array in chosen.items()])


def initial(model):
    """Return our initial parameters and, under the same names, those of a new twin."""
    torch.manual_seed(0)
    ours = create(model, optimizers.adam(lr=1.0), key=jax.random.key(0))
    theirs = twin_of(model)
    assert twin.dump(theirs, ours.stats).keys() == ours.stats.keys()
    agree(ours.stats, twin.dump(theirs, ours.stats), within=0.0, floor=1.0)
    return ours.params, twin.dump(theirs, ours.params)


def unet_in_units(params):
    """Return block kernels in units of kaiming_normal_'s deviation, biases in their bound's."""
    convs = {path: array for path, array in params.items() if "norm" not in path}
    body = {path: array for path, array in convs.items() if not path.startswith("head")}

    def fan_in(path):
        return math.prod(convs[path.replace("bias", "kernel")].shape[:-1])

    return (
        pooled(body, "kernel", lambda path, array: array * math.sqrt(fan_in(path) / 2)),
        pooled(convs, "bias", lambda path, array: array * math.sqrt(fan_in(path))),
    )


def test_initial_values_of_the_unet():
    both = initial(UNET_4_424)
    for params in both:
        assert (pooled(params, "scale") == 1).all()
        assert (pooled(params, ("norm1/bias", "norm2/bias")) == 0).all()
        assert np.abs(params["head/kernel"]).max() <= 1 / math.sqrt(4)
    kernels, biases = zip(*map(unet_in_units, both), strict=True)
    # 130,000 normal values reach four deviations; a truncated normal would stop at 2.3 of its own.
    assert min(same_distribution(*kernels, "U-Net kernels / kaiming_normal_")) > 4
    largest = same_distribution(*biases, "U-Net biases / default bound")
    assert 0.99 < min(largest) and max(largest) <= 1.000001


def test_initial_values_of_a_default_convolution():
    torch.manual_seed(0)
    ours = blocks.Conv(64, 128, 1, rngs=nnx.Rngs(0))
    theirs = torch.nn.Conv2d(64, 128, 1)
    arrays = np.asarray(ours.kernel[...]).ravel(), theirs.weight.detach().numpy().ravel()
    largest = same_distribution(*(8 * a for a in arrays), "head kernel / default bound")
    assert 0.99 < min(largest) and max(largest) <= 1.000001


def test_initial_values_of_the_patchgan():
    both = initial(patchgan(width=64))
    for params in both:
        assert (pooled(params, "bias") == 0).all()
    kernels = [pooled(params, "kernel") / 0.02 for params in both]
    scales = [(pooled(params, "scale") - 1) / 0.02 for params in both]
    assert min(same_distribution(*kernels, "PatchGAN kernels / 0.02")) > 4
    same_distribution(*scales, "PatchGAN scales, (x - 1) / 0.02")


def test_initial_values_of_the_hrnet():
    both = initial(hrnet())
    for params in both:
        assert (pooled(params, "scale") == 1).all()
        assert (pooled(params, "norm/bias") == 0).all()
        assert {path for path in params if path.endswith("bias") and "norm" not in path} == {
            "merge/conv/bias",
            "head/bias",
        }
    kernels = [pooled(params, "kernel") / 0.001 for params in both]
    assert min(same_distribution(*kernels, "HRNet kernels / 0.001")) > 4
    biases = [math.sqrt(240) * pooled(params, ("conv/bias", "head/bias")) for params in both]
    largest = same_distribution(*biases, "HRNet biases / default bound")
    assert 0.98 < min(largest) and max(largest) <= 1.000001


def test_two_channels_are_scored_as_cross_entropy_and_softmax():
    """As in Sytwu et al.: CrossEntropyLoss over background and particle, smoothed Dice of softmax.

    The loss and its gradient in both channels agree to rounding, also for logits that saturate.
    """
    rng = np.random.default_rng(0)
    output = rng.normal(size=(3, 16, 16, 2), scale=8).astype(np.float32)
    mask = (rng.random((3, 16, 16, 1)) < 0.3).astype(np.float32)
    task = TASKS["segmentation"]
    loss, gradient = jax.value_and_grad(task.loss)(jnp.array(output), jnp.array(mask))

    logits = torch.tensor(output.transpose(0, 3, 1, 2), requires_grad=True)
    labels = torch.tensor(mask[..., 0]).long()
    expected = torch.nn.CrossEntropyLoss()(logits, labels)
    expected.backward()
    assert float(loss) == pytest.approx(expected.item(), rel=1e-6)
    np.testing.assert_allclose(gradient, twin.pixels(logits.grad), rtol=1e-5, atol=1e-9)

    soft = torch.softmax(logits.detach(), 1)[:, 1].numpy()
    valid = jnp.ones(mask.shape, bool)
    scores = task.metrics(jnp.array(output), jnp.array(mask), valid)
    for name, share in (("soft_dice", soft), ("dice", np.round(soft))):
        overlap, both = (share * mask[..., 0]).sum((1, 2)), (share + mask[..., 0]).sum((1, 2))
        np.testing.assert_allclose(scores[name], (2 * overlap + 1) / (both + 1), rtol=1e-5)
