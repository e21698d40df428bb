"""Blur against scipy, noises against their moments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
import scipy.stats

from emjax.data.corruptions import Corruption
from emjax.data.noise import gaussian_blur, gaussian_noise, poisson_noise, speckle_noise


@pytest.mark.parametrize("sigma", [0.1, 0.7, 2.0])
def test_blur_is_scipys(key, sigma):
    image = jax.random.normal(key, (40, 33, 1))
    expected = scipy.ndimage.gaussian_filter(image[..., 0], sigma, mode="mirror", radius=8)
    blurred = jax.jit(gaussian_blur, static_argnames="radius")(image, sigma=sigma, radius=8)
    np.testing.assert_allclose(blurred[..., 0], expected, atol=2e-6)


def test_gaussian_noise_is_a_fraction_of_the_full_range(key):
    noise = gaussian_noise(key, jnp.zeros((400, 400, 1)), sigma=0.15)
    assert float(noise.std()) == pytest.approx(0.30, rel=0.01)
    assert float(noise.mean()) == pytest.approx(0, abs=0.003)


@pytest.mark.parametrize("electrons", [2.0, 5.0, 20.0, 300.0])
def test_poisson_noise_has_poissons_moments(key, electrons):
    """At full range (1) the counts are Poisson(electrons), at -1 they are zero."""
    counts = poisson_noise(key, jnp.ones((500, 500, 1)), dose=electrons)
    counts = (np.array(counts, np.float64) + 1) / 2 * electrons
    np.testing.assert_allclose(counts, np.rint(counts), atol=1e-4)
    assert counts.mean() == pytest.approx(electrons, rel=0.02)
    assert counts.var() == pytest.approx(electrons, rel=0.02 + 0.1 / electrons)
    skew = scipy.stats.poisson(electrons).stats("s")
    assert scipy.stats.skew(counts.ravel()) == pytest.approx(float(skew), abs=0.08)
    assert (poisson_noise(key, -jnp.ones((9, 9, 1)), dose=electrons) == -1).all()


def test_speckle_leaves_black_black(key):
    assert (speckle_noise(key, -jnp.ones((9, 9, 1)), sigma=0.2) == -1).all()
    assert float(speckle_noise(key, jnp.ones((300, 300, 1)), sigma=0.2).std()) == pytest.approx(
        0.4, rel=0.02
    )


def test_corruption_draws_each_image_from_its_own_key(key):
    image = jax.random.uniform(key, (1, 32, 32, 1), minval=-1)
    keys = jax.random.split(key, 3)
    corrupt = jax.jit(Corruption(dose=(20.0, 100.0)))
    three = corrupt(keys, jnp.repeat(image, 3, 0))
    assert not np.allclose(three[0], three[1])
    np.testing.assert_allclose(three[1], corrupt(keys[1:2], image)[0], atol=1e-6)


def test_corruption_amplitudes_lie_in_their_bounds(key):
    """A flat image shows the noise alone: its deviation is uniform in twice (0.02, 0.15)."""
    corrupted = Corruption()(jax.random.split(key, 200), jnp.zeros((200, 64, 64, 1)))
    sigmas = np.array(corrupted.std((1, 2, 3))) / 2
    assert 0.018 < sigmas.min() < 0.03 and 0.14 < sigmas.max() < 0.155
    assert sigmas.mean() == pytest.approx(0.085, abs=0.01)


def test_half_of_the_images_are_blurred(key):
    image = jax.random.normal(key, (1, 48, 48, 1))
    corrupt = Corruption(blur=(1.5, 2.0), noise=(0.0, 0.0))
    corrupted = corrupt(jax.random.split(key, 200), jnp.repeat(image, 200, 0))
    blurred = np.array(jnp.abs(corrupted - image).max((1, 2, 3))) > 1e-3
    assert 70 < blurred.sum() < 130
