"""Networks: parameter counts, receptive fields, shapes, refusals."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from emjax.errors import UsageError
from emjax.models import Model, __main__
from emjax.models.blocks import max_pool, upsample_bilinear, upsample_nearest
from emjax.models.build import assemble, build, build_abstract, create
from emjax.models.cost import multiply_adds, operations
from emjax.models.formulation import FASTEST, PLAIN, Formulation, formulated
from emjax.models.hrnet import VARIANTS
from emjax.models.named import GENERATORS
from emjax.models.network import Network, flat_arrays, nest
from emjax.models.norms import BatchNorm, GroupNorm, normalisation
from emjax.models.receptive_field import (
    hrnet_receptive_field,
    patchgan_receptive_field,
    unet_dilations,
    unet_receptive_field,
)
from emjax.models.unet import UNet

# blocks, receptive field, dilations (bottleneck last), parameters: Kazimi et al., arXiv 2402.18286
PAPER_UNETS = [
    (2, 44, [1, 1, 1], 8_069),
    (2, 84, [2, 2, 2], 8_069),
    (2, 116, [2, 2, 4], 8_069),
    (3, 96, [1, 1, 1, 1], 32_725),
    (3, 176, [1, 2, 2, 2], 32_725),
    (3, 240, [1, 2, 2, 4], 32_725),
    (4, 200, [1, 1, 1, 1, 1], 130_677),
    (4, 360, [1, 1, 2, 2, 2], 130_677),
    (4, 424, [1, 1, 2, 2, 3], 130_677),
]

# Parameters 1 -> 1, 1 -> 2 and 3 -> 19 channels; the last are those of the authors' Cityscapes
# networks, of which they print 1.5 M, 3.9 M and 65.8 M.
HRNETS = {
    "w18_small_v1": (1_535_329, 1_535_570, 1_540_819),
    "w18_small_v2": (3_933_549, 3_933_820, 3_939_579),
    "w18": (9_635_089, 9_635_360, 9_641_119),
    "w32": (29_536_705, 29_537_186, 29_546_515),
    "w44": (55_411_729, 55_412_390, 55_424_779),
    "w48": (65_845_249, 65_845_970, 65_859_379),
}


def count(params):
    return sum(leaf.size for leaf in params.values())


def hrnet(variant="w18_small_v1", **arguments):
    return dict(name="hrnet", variant=variant, **arguments)


@pytest.mark.parametrize(("blocks", "field", "dilations", "parameters"), PAPER_UNETS)
def test_paper_unets(blocks, field, dilations, parameters):
    module = build_abstract(dict(name="unet", blocks=blocks, receptive_field=field))
    params, stats = flat_arrays(module)
    assert count(params) == parameters
    assert unet_dilations(field, (2,) * blocks) == dilations
    assert unet_receptive_field(dilations, (2,) * blocks) == field
    assert [block.conv1.dilation for block in module.down] == dilations[:-1]
    assert [block.conv1.dilation for block in module.up] == dilations[:-1]
    assert module.bottleneck.conv2.dilation == dilations[-1]
    assert len(stats) == 4 * (2 * blocks + 1)  # mean and var, two norms a block


def test_two_channel_softmax_head_has_the_released_size():
    module = nnx.eval_shape(
        lambda: UNet(blocks=2, receptive_field=44, out_channels=2, rngs=nnx.Rngs(jax.random.key(0)))
    )
    assert count(flat_arrays(module)[0]) == 8_074


@pytest.mark.parametrize(("blocks", "field"), [(2, 44), (2, 84), (3, 96)])
def test_receptive_field_is_what_an_output_depends_on(blocks, field):
    """The width of the inputs that change an output, averaged over the pooling phase.

    The changes are large and random, so that no maximum elsewhere hides them.
    """
    module = build(dict(name="unet", blocks=blocks, receptive_field=field), key=jax.random.key(0))
    width = -(-2 * field // module.divisor) * module.divisor
    height, middle = 4 * module.divisor, width // 2
    rng = np.random.default_rng(0)
    run = jax.jit(lambda x: module(x, train=False)[:, 0, :, 0])
    seen = np.zeros((width, width), bool)  # input column, output column
    for _ in range(8):
        base = jnp.array(rng.normal(size=(1, height, width, 1)), jnp.float32)
        poke = jnp.array(100 * rng.normal(size=(width, height, 1)), jnp.float32)
        column = jnp.arange(width)
        poked = jnp.repeat(base, width, 0).at[column, :, column].add(poke)
        seen |= np.array(run(poked) != run(base))
    phases = slice(middle, middle + module.divisor)
    assert seen.sum(axis=0)[phases].mean() == field


# An oracle of receptive fields: [first, last] of the pixels that each of PERIOD samples sees.
# Samples continue periodically on both sides. PERIOD is a multiple of every divisor below.
PERIOD = 192


def seen_at(x, indices):
    return x[indices % len(x)] + PERIOD * (indices // len(x))[:, None]


def union(*spans):
    spans = np.stack(spans)
    return np.stack([spans[..., 0].min(0), spans[..., 1].max(0)], -1)


def convolved(x, reach=1, *, stride=1):
    indices = np.arange(0, len(x), stride)
    return union(*(seen_at(x, indices + shift) for shift in (-reach, 0, reach)))


def pooled(x, size):
    return union(*(seen_at(x, np.arange(0, len(x), size) + shift) for shift in range(size)))


def repeated(x, size):
    return np.repeat(x, size, 0)


def interpolated(x, size):
    left = np.floor((np.arange(len(x) * size) + 0.5) / size - 0.5).astype(int)
    return union(seen_at(x, left), seen_at(x, left + 1))


def mean_width(x):
    return (x[:, 1] - x[:, 0] + 1).mean()


PIXELS = np.stack([np.arange(PERIOD)] * 2, -1)


def unet_oracle(dilations, pools):
    def block(x, dilation):
        return convolved(convolved(x, dilation), dilation)

    x, skips = PIXELS, []
    for dilation, pool in zip(dilations, pools, strict=False):
        skips.append(block(x, dilation))
        x = pooled(skips[-1], pool)
    x = block(x, dilations[-1])
    for level in reversed(range(len(pools))):
        x = block(union(skips[level], repeated(x, pools[level])), dilations[level])
    return x


def hrnet_oracle(variant, magnified):
    _, stage1, _, modules, blocks = VARIANTS[variant]
    x = convolved(convolved(PIXELS, stride=2), stride=2)
    for _ in range(stage1):
        x = convolved(x)
    branches = [x]
    for number, exchanges in enumerate(modules):
        new = convolved(branches[-1], stride=2)
        branches = [convolved(x) if number == 0 else x for x in branches] + [new]
        for _ in range(exchanges):
            for _ in range(2 * blocks):
                branches = [convolved(x) for x in branches]
            before, branches = branches, []
            for i in range(len(before)):
                terms = [magnified(x, 2**j) if j else x for j, x in enumerate(before[i:])]
                for j, x in enumerate(before[:i]):
                    for _ in range(i - j):
                        x = convolved(x, stride=2)
                    terms.append(x)
                branches.append(union(*terms))
    merged = union(*(magnified(x, 2**i) if i else x for i, x in enumerate(branches)))
    return magnified(merged, 4)


@pytest.mark.parametrize(
    ("dilations", "pools"),
    [(dilations, [2] * blocks) for blocks, _, dilations, _ in PAPER_UNETS]
    + [([1, 1, 4, 2, 2], [2] * 4), ([1, 1, 1], [4, 4]), ([1, 2, 1], [2, 4]), ([3, 1, 2], [8, 2])],
)
def test_receptive_field_of_any_unet(dilations, pools):
    assert unet_receptive_field(dilations, pools) == mean_width(unet_oracle(dilations, pools))


@pytest.mark.parametrize("pools, field", [([4, 4], 120), ([2, 4], 64), ([8, 8], 392)])
def test_receptive_fields_that_sytwu_reports_for_pools(pools, field):
    module = build_abstract(dict(name="unet", blocks=2, pools=pools))
    assert module.receptive_field == field
    assert module.divisor == math.prod(pools)


@pytest.mark.parametrize("variant", ["w18_small_v1", "w18_small_v2", "w18"])
@pytest.mark.parametrize("mixes", [True, False])
def test_receptive_field_of_an_hrnet(variant, mixes):
    _, stage1, _, modules, blocks = VARIANTS[variant]
    field = hrnet_receptive_field(stage1, modules, blocks, upsampling_mixes=mixes)
    assert field == mean_width(hrnet_oracle(variant, interpolated if mixes else repeated))


@pytest.mark.parametrize("upsampling", ["bilinear", "bilinear_corners", "nearest"])
def test_receptive_field_of_an_hrnet_is_where_its_gradient_is_not_zero(upsampling, tiny_hrnet):
    """All weights and pixels are positive: no ReLU stops a gradient, none cancels another."""
    module = build_abstract(hrnet("tiny", upsampling=upsampling))
    definition = nnx.graphdef(module)

    def value(path, like):
        if path.endswith("kernel"):
            return jnp.full(like.shape, 1 / math.prod(like.shape[:-1]))
        return jnp.full(like.shape, float(path.endswith(("scale", "var"))))

    params, stats = (
        {path: value(path, like) for path, like in flat.items()} for flat in flat_arrays(module)
    )
    network = Network(params, stats, definition=definition)

    def pixel(image, column):
        return network.apply(params, stats, image, train=False)[0][0, 0, column, 0]

    gradient = jax.jit(jax.grad(pixel))
    image, columns = jnp.ones((1, 32, 704, 1)), 352 + np.arange(module.divisor)
    seen = np.stack([(gradient(image, column) != 0).any((0, 1, 3)) for column in columns])
    assert not seen[:, [0, -1]].any()
    assert seen.sum(1).mean() == module.receptive_field


@pytest.mark.parametrize("variant", HRNETS)
def test_hrnet_parameters(variant):
    for (before, after), expected in zip([(1, 1), (1, 2), (3, 19)], HRNETS[variant], strict=True):
        model = hrnet(variant, in_channels=before, out_channels=after)
        assert count(flat_arrays(build_abstract(model))[0]) == expected


# Millions at 224, 256, 448 and 512 pixels, worked out by hand from the layers.
@pytest.mark.parametrize(
    "model, millions",
    [
        (dict(name="unet", blocks=2), (95, 123, 378, 494)),
        (dict(name="unet", blocks=3), (137, 179, 548, 716)),
        (dict(name="unet", blocks=4), (180, 235, 719, 938)),
        (dict(name="patchgan"), (2380, 3130)),
    ],
)
def test_multiply_adds(model, millions):
    module = build_abstract(model)
    counted = [multiply_adds(module, side) / 1e6 for side in __main__.SIDES[: len(millions)]]
    np.testing.assert_allclose(counted, millions, rtol=0.01)


@pytest.mark.long
def test_table_of_all_networks(capsys):
    assert __main__.main([]) == 0
    lines = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines()}
    assert set(GENERATORS) | {"patchgan"} <= set(lines)
    assert lines["unet_4_424"] == "unet_4_424 130,677 424 16 180 235 719 938".split()
    assert lines["hrnet_w48"][1:4] == ["65,845,249", "2,835", "32"]
    assert lines["patchgan"][1:4] == ["2,764,609", "70", "-"]
    cost = multiply_adds(build_abstract(hrnet()), 256)  # not scaled from another
    assert lines["hrnet_w18_small_v1"][5] == f"{cost / 1e6:,.0f}"


@pytest.mark.parametrize("norm", ["batch", "instance", "group", "none"])
@pytest.mark.parametrize("name", ["unet", "patchgan", "hrnet"])
def test_every_norm(name, norm, tiny_hrnet):
    """It starts at scale 1 and bias 0 (a discriminator's scales near 1) and keeps the size."""
    arguments = dict(unet=dict(blocks=2), patchgan=dict(width=4), hrnet=dict(variant="tiny"))
    model = dict(name=name, norm=norm, **arguments[name])
    network = create(model, optax.sgd(1.0), key=jax.random.key(0))
    images = [jax.random.normal(jax.random.key(1), (2, 64, 64, 1))] * (1 + (name == "patchgan"))

    scales = {path: value for path, value in network.params.items() if path.endswith("scale")}
    assert bool(scales) == (norm != "none")
    for path, value in scales.items():
        np.testing.assert_allclose(value, 1, atol=0.1 if name == "patchgan" else 0)
        assert (network.params[path.replace("scale", "bias")] == 0).all()
    assert bool(network.stats) == (norm == "batch")

    def run(params):
        return network.apply(params, network.stats, *images, train=True)[0]

    output = jax.jit(run)(network.params)
    assert output.shape == ((2, 6, 6, 1) if name == "patchgan" else images[0].shape)
    assert np.isfinite(output).all() and output.std() > 1e-6


def test_an_hrnet_without_norms_learns_in_every_layer(tiny_hrnet):
    network = create(hrnet("tiny", norm="none"), optax.sgd(1.0), key=jax.random.key(0))
    image = jax.random.normal(jax.random.key(1), (2, 64, 64, 1))

    def loss(params):
        return ((network.apply(params, {}, image, train=True)[0] - image) ** 2).mean()

    gradients = jax.jit(jax.grad(loss))(network.params)
    largest = {path: np.abs(g).max() for path, g in gradients.items() if path.endswith("kernel")}
    assert min(largest.values()) > 1e-6, largest


def test_patchgan():
    params, _ = flat_arrays(build_abstract(dict(name="patchgan")))
    assert count(params) == 2_764_609
    assert patchgan_receptive_field(3) == 70
    module = build(dict(name="patchgan", width=4), key=jax.random.key(0))
    for side, scores in ((224, 26), (256, 30)):
        pair = jax.ShapeDtypeStruct((1, side, side, 1), jnp.float32)
        shape = jax.eval_shape(lambda x: module(x, x, train=False), pair).shape  # noqa: B023
        assert shape == (1, scores, scores, 1)


def test_patchgan_refuses_images_without_a_single_score():
    module = build(dict(name="patchgan", width=4), key=jax.random.key(0))
    tiny = jnp.zeros((1, 16, 16, 1))
    with pytest.raises(UsageError, match="at least 24 pixels"):
        module(tiny, tiny, train=False)


def test_impossible_receptive_field_names_the_nearest():
    with pytest.raises(UsageError, match="receptive_field=45; the nearest are 44, "):
        build_abstract(dict(name="unet", blocks=2, receptive_field=45))


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(blocks=0), "blocks=0, expected at least 1"),
        (dict(blocks=2, filters=[4, 8]), r"filters=\(4, 8\), expected 3 positive whole numbers"),
        (dict(blocks=2, pools=[2, 0]), r"pools=\(2, 0\), expected 2 positive whole numbers"),
        (dict(blocks=2, pools=[2, 1.5]), r"pools=\(2, 1.5\), expected 2 positive whole numbers"),
        (dict(blocks=2, dilations=[1]), r"dilations=\(1,\), expected 3 positive whole numbers"),
        (dict(blocks=2, pools=2), "model 'unet' with .*'pools': 2"),
        (
            dict(blocks=2, pools=[4, 4], receptive_field=121),
            "no U-Net with 2 levels has receptive_field=121; the nearest are 120, ",
        ),
        (
            dict(blocks=2, dilations=[1, 1, 2], receptive_field=44),
            "dilations=.* with pools=.* see 60 pixels; leave one of the two out",
        ),
    ],
)
def test_impossible_unets(arguments, message):
    with pytest.raises(UsageError, match=message):
        build_abstract(dict(name="unet", **arguments))


def test_dilations_together_with_the_receptive_field_that_they_give():
    arguments = dict(blocks=4, dilations=[1, 1, 4, 2, 2], receptive_field=424)
    module = build_abstract(dict(name="unet", filters=(8,) * 5, **arguments))
    assert module.receptive_field == 424
    assert module.bottleneck.conv1.kernel.shape[-1] == 8


@pytest.mark.parametrize(
    "model, message",
    [
        (hrnet("w19"), "no variant 'w19'; there are: w18, w18_small_v1, w18_small_v2, w32, "),
        (
            hrnet(upsampling="cubic"),
            "no upsampling 'cubic'; there are: bilinear, bilinear_corners, nearest",
        ),
        (hrnet(norm="layer"), "no norm 'layer'; there are: batch, group, instance, none"),
        (dict(name="unet", blocks=2, norm="layer"), "no norm 'layer'"),
        (dict(name="patchgan", norm="layer"), "no norm 'layer'"),
    ],
)
def test_unknown_names(model, message):
    with pytest.raises(UsageError, match=message):
        build_abstract(model)


@pytest.mark.parametrize(
    "model, height, width, message",
    [
        (hrnet(), 64, 450, "divisible by 32, got 64 x 450; change the size: 450 -> 448 or 480"),
        (hrnet(), 50, 70, "50 x 70; change the size: 50 -> 32 or 64, 70 -> 64 or 96"),
        (hrnet(), 20, 20, "20 x 20; change the size: 20 -> 32(?! or)"),
        (dict(name="unet", blocks=2, pools=[3, 2]), 12, 14, "divisible by 6, .*: 14 -> 12 or 18"),
    ],
)
def test_sizes_that_are_not_divisible(model, height, width, message):
    module = build_abstract(model)
    definition, state = nnx.split(module)

    def run(state, x):
        return nnx.merge(definition, state)(x, train=False)

    with pytest.raises(UsageError, match=message):
        jax.eval_shape(run, state, jax.ShapeDtypeStruct((1, height, width, 1), jnp.float32))


@pytest.mark.parametrize("model", [dict(name="unet", blocks=2), hrnet()], ids=str)
def test_generators_have_the_interface_of_a_model(model):
    module = build_abstract(model)
    assert isinstance(module, Model) and module.inputs == 1


def test_a_discriminator_takes_two_images_of_any_size():
    module = build_abstract(dict(name="patchgan"))
    assert module.inputs == 2 and not hasattr(module, "divisor")


def test_unknown_model_and_argument():
    with pytest.raises(UsageError, match="no model 'unett'; there are: hrnet, patchgan, unet"):
        build_abstract(dict(name="unett"))
    with pytest.raises(UsageError, match="model 'unet' with .*depth"):
        build_abstract(dict(name="unet", depth=3))


def test_batchnorm_normalises_and_keeps_the_unbiased_variance():
    norm = BatchNorm(3, rngs=nnx.Rngs(jax.random.key(0)))
    x = np.random.default_rng(0).normal(1000, 2, (2, 4, 4, 3)).astype(np.float32)
    y = norm(jnp.array(x), train=True)
    np.testing.assert_allclose(y.mean((0, 1, 2)), 0, atol=1e-4)
    np.testing.assert_allclose(y.var((0, 1, 2)), 1, atol=1e-3)
    np.testing.assert_allclose(norm.mean[...], 0.1 * x.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(norm.var[...], 0.9 + 0.1 * x.var((0, 1, 2), ddof=1), rtol=1e-4)
    before = norm.mean[...]
    norm(jnp.array(x), train=False)
    assert (norm.mean[...] == before).all()


def test_pool_and_upsample():
    x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    assert max_pool(x, 2)[0, :, :, 0].tolist() == [[5, 7], [13, 15]]
    assert upsample_nearest(max_pool(x, 2), 2)[0, :2, :, 0].tolist() == [[5, 5, 7, 7]] * 2


def test_pool_gradient_goes_to_the_first_maximum():
    x = jnp.array([[1.0, 3, 0, 0], [3, 2, 0, 0]]).reshape(1, 2, 4, 1)
    gradient = jax.grad(lambda x: (max_pool(x, 2) * jnp.array([5.0, 7]).reshape(1, 1, 2, 1)).sum())
    assert gradient(x)[0, :, :, 0].tolist() == [[0, 5, 7, 0], [0, 0, 0, 0]]


def test_groupnorm_normalises_groups_of_each_image():
    norm = GroupNorm(4, groups=2, rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).normal(1000, 2, (2, 8, 8, 4)).astype(np.float32)
    for train in (True, False):
        y = norm(jnp.array(x), train=train).reshape(2, 8, 8, 2, 2)
        np.testing.assert_allclose(y.mean((1, 2, 4)), 0, atol=1e-4)
        np.testing.assert_allclose(y.var((1, 2, 4)), 1, atol=1e-3)


@pytest.mark.parametrize(
    "channels, groups", [(1, 1), (2, 1), (4, 2), (18, 9), (36, 18), (64, 32), (720, 30)]
)
def test_groups_of_two_channels_or_more(channels, groups):
    assert normalisation("group", channels, rngs=nnx.Rngs(0)).groups == groups
    assert normalisation("instance", channels, rngs=nnx.Rngs(0)).groups == channels


def test_bilinear_upsampling():
    x = jnp.arange(12.0).reshape(1, 3, 4, 1)
    for size in (2, 4):
        expected = jax.image.resize(x, (1, 3 * size, 4 * size, 1), "bilinear")
        np.testing.assert_allclose(upsample_bilinear(x, size), expected, rtol=1e-6)
    corners = upsample_bilinear(x, 2, corners=True)[0, :, :, 0]
    np.testing.assert_allclose(corners[0], np.linspace(0, 3, 8), rtol=1e-6)
    np.testing.assert_allclose(corners[:, 0], np.linspace(0, 8, 6), rtol=1e-6)


@pytest.mark.parametrize(
    "model",
    [
        dict(name="unet", blocks=2, receptive_field=44),
        dict(name="unet", blocks=2, receptive_field=116, norm="group"),
        dict(name="unet", blocks=1, dilations=(3, 1), norm="instance"),
        dict(name="unet", blocks=1, pools=(4,), norm="none"),
        dict(name="patchgan", width=4, depth=2),
        dict(name="hrnet", variant="tiny"),
    ],
    ids=str,
)
def test_formulations_agree(model, float64, tiny_hrnet):
    """Outputs, statistics and gradients, of parameters and images, in training and after it.

    Also the number of operations, which is that of the plain formulation.
    """
    rng = np.random.default_rng(0)
    module = build_abstract(model)
    definition = nnx.graphdef(module)
    params, stats = (
        {path: jnp.asarray(1 + 0.1 * rng.normal(size=like.shape)) for path, like in part.items()}
        for part in flat_arrays(module)
    )
    images = [jnp.asarray(rng.normal(size=(2, 64, 32, 1)))] * (1 + (model["name"] == "patchgan"))

    def loss(params, images):
        run = nnx.merge(definition, nest(params), nest(stats))
        in_training = run(*images, train=True)
        after = run(*images, train=False)
        ramp = jnp.cos(jnp.arange(in_training.size)).reshape(in_training.shape)
        return (ramp * in_training).mean(), (in_training, after, flat_arrays(run)[1])

    def traced(chosen, of=(0, 1)):
        def chosen_loss(*arguments):  # gradients are traced after it, as in a step
            with formulated(chosen):
                return loss(*arguments)

        whole = jax.jit(lambda *a: jax.value_and_grad(chosen_loss, of, has_aux=True)(*a))
        return whole.trace(params, images)

    def run(traced):
        return jax.device_get(traced.lower().compile()(params, images))

    def counted(*traces):
        return [operations(each.jaxpr) for each in traces]

    plain, fixed = traced(PLAIN), traced(PLAIN, of=0)  # the second with fixed images
    expected, differing = run(plain), 0
    single = (Formulation(*way) for way in np.eye(len(PLAIN), dtype=bool).tolist())
    for chosen in (*single, FASTEST["cpu"]):
        other = traced(chosen)
        if str(other.jaxpr) == str(plain.jaxpr):  # no layer of this network has two forms
            continue
        differing += 1
        assert counted(other, traced(chosen, of=0)) == counted(plain, fixed)
        for ours, theirs in zip(
            jax.tree.leaves(run(other)), jax.tree.leaves(expected), strict=True
        ):
            np.testing.assert_allclose(
                ours, theirs, rtol=0, atol=1e-9 * max(np.abs(theirs).max(), 1)
            )
    assert differing


def test_a_bias_before_a_norm_is_in_the_running_mean_alone():
    """As in PyTorch, but its gradient is exactly zero and not what rounding leaves."""
    model = dict(name="unet", blocks=1)
    net = create(model, optax.sgd(1.0), key=jax.random.key(0))
    image = jax.random.normal(jax.random.key(1), (2, 16, 16, 1))

    def loss(params):
        output, stats = net.apply(params, net.stats, image, train=True)
        return (output**2).mean(), stats

    gradient, stats = jax.grad(loss, has_aux=True)(net.params)
    conv = assemble(model, net.params, net.stats).down[0].conv1
    assert np.asarray(conv.bias[...]).all()
    assert not np.asarray(gradient["down/0/conv1/bias"]).any()
    expected = 0.1 * conv(image).mean((0, 1, 2))
    np.testing.assert_allclose(stats["down/0/norm1/mean"], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("model", [dict(name="unet", blocks=1), dict(name="patchgan", width=4)])
def test_initial_values_drawn_together_are_those_of_each_array_alone(model):
    key = jax.random.key(5)
    network = create(model, optax.sgd(1.0), key=key)
    params, stats = jax.jit(lambda key: flat_arrays(build(model, key=key)))(key)
    assert network.params.keys() == params.keys() and network.stats.keys() == stats.keys()
    for path, value in {**params, **stats}.items():
        found = {**network.params, **network.stats}[path]
        np.testing.assert_array_equal(found, value, err_msg=path)
        assert found.dtype == jnp.float32
