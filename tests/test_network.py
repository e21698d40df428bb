"""Networks as plain arrays: names, purity, updates."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from emjax.errors import UsageError
from emjax.models.build import assemble, build_abstract, create
from emjax.models.network import Network, flat_arrays, flatten
from emjax.training import optimizers

UNET = dict(name="unet", blocks=2, receptive_field=44)


@pytest.fixture(scope="module")
def network():
    return create(UNET, optax.sgd(0.5), key=jax.random.key(0))


def test_arrays_are_named_by_their_layers(network):
    assert network.params["down/0/conv1/kernel"].shape == (3, 3, 1, 4)
    assert network.params["head/kernel"].shape == (1, 1, 4, 1)
    assert {path.split("/")[0] for path in network.params} == {"down", "bottleneck", "up", "head"}
    assert {path.split("/")[-1] for path in network.stats} == {"mean", "var"}
    assert all(value.dtype == jnp.float32 for value in network.params.values())


def test_flat_names_nest_and_flatten_without_loss(network):
    flat = flatten(nnx.state(assemble(UNET, network.params, network.stats)))
    assert flat.keys() == network.params.keys() | network.stats.keys()
    np.testing.assert_array_equal(flat["up/1/conv2/kernel"], network.params["up/1/conv2/kernel"])


def test_applying_changes_nothing_but_what_it_returns(network):
    before = jax.tree.map(np.array, (network.params, network.stats))
    image = jax.random.normal(jax.random.key(1), (2, 16, 16, 1))
    output, stats = network.apply(network.params, network.stats, image, train=True)
    same, kept = network.apply(network.params, network.stats, image, train=False)
    assert output.shape == same.shape == image.shape
    assert kept is network.stats and stats.keys() == network.stats.keys()
    assert all((stats[path] != network.stats[path]).any() for path in stats)
    jax.tree.map(np.testing.assert_array_equal, before, (network.params, network.stats))


def test_apply_gradients_takes_one_optimizer_step(network):
    grads = jax.tree.map(jnp.ones_like, network.params)
    after = network.apply_gradients(grads, network.stats)
    for path, value in network.params.items():
        np.testing.assert_allclose(after.params[path], value - 0.5, rtol=1e-6)


def test_averages_follow_their_formula(network):
    """After k updates by -1 each, with decay d: start - k + d (1 - d**k) / (1 - d)."""
    averaging = network.replace(optimizer=optax.sgd(1.0)).with_ema(0.8)
    start = {path: np.array(value) for path, value in network.params.items()}
    grads = jax.tree.map(jnp.ones_like, network.params)
    for k in range(1, 4):
        stats = {path: value + k for path, value in network.stats.items()}
        averaging = averaging.apply_gradients(grads, stats)
        for path, value in averaging.ema_network.params.items():
            expected = start[path] - k + 0.8 * (1 - 0.8**k) / (1 - 0.8)
            np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(averaging.params[path], start[path] - k, atol=1e-6)
    # Running statistics, which rose by 1 each time, are averaged in the same way.
    lag = 0.8 * (1 - 0.8**3) / (1 - 0.8)
    for path, value in averaging.ema_network.stats.items():
        np.testing.assert_allclose(value, network.stats[path] + 3 - lag, rtol=1e-5, atol=1e-6)
    assert type(averaging.ema_network) is Network
    assert network.with_ema(0.0) is network is network.ema_network
    with pytest.raises(UsageError, match="ema=1.0, expected 0 for no averages or a number below 1"):
        network.with_ema(1.0)


@pytest.mark.parametrize(
    ("model", "images", "share"),
    [
        (UNET, 1, 0.5),
        (dict(name="patchgan", width=4), 2, 0.8),
        (dict(name="hrnet", variant="w18_small_v1"), 1, 0.5),
    ],
)
def test_rematerialisation_keeps_less(model, images, share):
    """The bytes that the forward pass keeps for the gradient, without the parameters."""
    module = build_abstract(model)
    params, stats = flat_arrays(module)
    network = Network(params, stats, definition=nnx.graphdef(module))
    shapes = [jax.ShapeDtypeStruct((2, 64, 64, 1), jnp.float32)] * images

    def kept_bytes(network):
        def residuals(params, stats, *images):
            return jax.vjp(lambda params: run(params, stats, *images), params)[1]

        def run(params, stats, *images):
            return network.apply(params, stats, *images, train=True)[0]

        leaves = jax.tree.leaves(jax.eval_shape(residuals, params, stats, *shapes))
        return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)

    own = sum(leaf.size * 4 for leaf in params.values())
    assert kept_bytes(network.replace(remat=True)) - own < share * (kept_bytes(network) - own)


def test_rematerialised_gradients(network):
    image = jax.random.normal(jax.random.key(1), (2, 16, 16, 1))

    def loss(params, network):
        output, stats = network.apply(params, network.stats, image, train=True)
        return jnp.square(output - 1).mean(), stats

    slope = jax.jit(jax.value_and_grad(loss, has_aux=True))
    plain, again = (slope(network.params, n) for n in (network, network.replace(remat=True)))
    for one, other in zip(jax.tree.leaves(plain), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_the_key_decides_the_initial_values_and_the_structure_does_not_change(network):
    again = create(UNET, network.optimizer, key=jax.random.key(0))
    other = create(UNET, network.optimizer, key=jax.random.key(1))
    jax.tree.map(np.testing.assert_array_equal, network.params, again.params)
    assert (network.params["head/kernel"] != other.params["head/kernel"]).any()
    assert jax.tree.structure(network) == jax.tree.structure(other)


HRNET = dict(name="hrnet", variant="tiny")
PATCHGAN = dict(name="patchgan", width=16)


@pytest.mark.parametrize(
    "model, tolerance",
    [
        pytest.param(UNET, 0.04, id="unet"),
        pytest.param(HRNET, 0.10, id="hrnet"),
        pytest.param(PATCHGAN, 0.02, id="patchgan"),
    ],
)
def test_bfloat16_is_near_float32_and_learns(model, tolerance, tiny_hrnet):
    """Arrays stay float32, and so does the output.

    A number has eight bits and is rounded in every layer. So the outputs differ by a few percent of
    their deviation, more for deeper networks, and the running statistics by as much of their
    largest.
    """
    half = create(model, optax.adam(1e-3), key=jax.random.key(0), precision="bfloat16")
    full = half.replace(precision="float32")
    images = list(jax.random.normal(jax.random.key(1), (1 + (model is PATCHGAN), 4, 64, 64, 1)))

    def update(network):
        def loss(params):
            output, stats = network.apply(params, network.stats, *images, train=True)
            return ((output - 0.5) ** 2).mean(), (output, stats)

        (value, (output, stats)), grads = jax.value_and_grad(loss, has_aux=True)(network.params)
        return network.apply_gradients(grads, stats), output, value

    update = jax.jit(update)
    after, output, loss = update(half)
    exact, expected, _ = update(full)

    for arrays in (after.params, after.stats, after.memory[0].mu, after.memory[0].nu):
        assert {array.dtype for array in arrays.values()} <= {jnp.dtype("float32")}
    assert output.dtype == jnp.float32
    difference = (output - expected).std() / expected.std()
    assert 1e-3 < difference < tolerance  # and not float32 after all
    for path, value in exact.stats.items():
        np.testing.assert_allclose(after.stats[path], value, atol=tolerance * np.abs(value).max())

    for _ in range(4):
        after, _, later = update(after)
    assert later < 0.9 * loss


def test_unknown_precision():
    with pytest.raises(UsageError, match="no precision 'float16'; there are: bfloat16, float32"):
        create(UNET, optax.sgd(0.5), key=jax.random.key(0), precision="float16")


def test_optimizers_by_name():
    params = {"x": jnp.ones(3)}
    adam = optimizers.build(dict(name="adam", lr=0.1, b1=0.5, b2=0.9))
    updates, _ = adam.update({"x": jnp.array([2.0, -3.0, 0.5])}, adam.init(params), params)
    np.testing.assert_allclose(updates["x"], [-0.1, 0.1, -0.1], rtol=1e-5)  # Adam's first step
    with pytest.raises(UsageError, match="no optimizer 'adamw'; there are: adam"):
        optimizers.build(dict(name="adamw", lr=0.1))
