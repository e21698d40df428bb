"""Networks: parameter counts, receptive fields, shapes, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from emjax import networks
from emjax.errors import Usage
from emjax.models.blocks import BatchNorm, max_pool, upsample_nearest
from emjax.models.receptive_field import (
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


def count(params):
    return sum(leaf.size for leaf in params.values())


@pytest.mark.parametrize(("blocks", "field", "dilations", "parameters"), PAPER_UNETS)
def test_paper_unets(blocks, field, dilations, parameters):
    module = networks.build_abstract(dict(name="unet", blocks=blocks, receptive_field=field))
    params, stats = networks.arrays(module)
    assert count(params) == parameters
    assert unet_dilations(field, (2,) * blocks) == dilations
    assert unet_receptive_field(dilations, (2,) * blocks) == field
    assert [block.conv1.kernel_dilation for block in module.down] == dilations[:-1]
    assert [block.conv1.kernel_dilation for block in module.up] == dilations[:-1]
    assert module.bottleneck.conv2.kernel_dilation == dilations[-1]
    assert len(stats) == 4 * (2 * blocks + 1)  # mean and var, two norms a block


def test_two_channel_softmax_head_has_the_released_size():
    module = nnx.eval_shape(
        lambda: UNet(blocks=2, receptive_field=44, out_channels=2, rngs=nnx.Rngs(jax.random.key(0)))
    )
    assert count(networks.arrays(module)[0]) == 8_074


@pytest.mark.parametrize(("blocks", "field"), [(2, 44), (2, 84), (3, 96)])
def test_receptive_field_is_what_an_output_depends_on(blocks, field):
    """The width of the inputs whose change moves an output, averaged over the pooling phase.

    Big random changes, so that a maximum elsewhere does not hide them.
    """
    module = networks.build(
        dict(name="unet", blocks=blocks, receptive_field=field), key=jax.random.key(0)
    )
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


def test_patchgan():
    params, _ = networks.arrays(networks.build_abstract(dict(name="patchgan")))
    assert count(params) == 2_764_609
    assert patchgan_receptive_field(3) == 70
    module = networks.build(dict(name="patchgan", width=4), key=jax.random.key(0))
    for side, scores in ((224, 26), (256, 30)):
        pair = jax.ShapeDtypeStruct((1, side, side, 1), jnp.float32)
        shape = jax.eval_shape(lambda x: module(x, x, train=False), pair).shape  # noqa: B023
        assert shape == (1, scores, scores, 1)


def test_patchgan_refuses_images_without_a_single_score():
    module = networks.build(dict(name="patchgan", width=4), key=jax.random.key(0))
    tiny = jnp.zeros((1, 16, 16, 1))
    with pytest.raises(Usage, match="at least 24 pixels"):
        module(tiny, tiny, train=False)


def test_impossible_receptive_field_names_the_nearest():
    with pytest.raises(Usage, match="receptive_field=45; the nearest are 44, "):
        networks.build_abstract(dict(name="unet", blocks=2, receptive_field=45))


def test_unknown_model_and_argument():
    with pytest.raises(Usage, match="no model 'unett'; there are: hrnet, patchgan, unet"):
        networks.build_abstract(dict(name="unett"))
    with pytest.raises(Usage, match="model 'unet' with .*depth"):
        networks.build_abstract(dict(name="unet", depth=3))


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
