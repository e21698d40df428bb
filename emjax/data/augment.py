"""From stored patches to what a network is trained on: range, noise, turns, size, crop.

Everything here runs inside the jitted step, one draw for an image and its targets.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Array, Float, Key

from emjax.data.noise import gaussian_noise, log_uniform, poisson_noise, speckle_noise, uniform


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Turns of image and targets alike, noise on the image alone, then size and crop of all.

    Turned after the noise, every pixel's noise would be drawn eight times over, once a symmetry.
    Noise is drawn only where the crop will be.

    Args:
        crop: side of the crop in pixels; 0 keeps the whole patch.
        turns: one of the eight flips and quarter turns (four where the image is not square).
        resize: largest magnification, 0 for none; drawn uniformly, from its inverse or crop / side
            up, whichever is larger, so that the crop always fits.
        mirror: magnifications go down to the inverse all the same; what the crop then shows beyond
            the border is mirrored.
        noise_probability: share of the images that get Gaussian, Poisson or speckle noise.
        gaussian: largest sigma, as a fraction of the full range, of Gaussian noise on every image;
            drawn uniformly from 0 up.
    """

    crop: int = 0
    turns: bool = True
    resize: float = 0.0
    mirror: bool = False
    noise_probability: float = 0.0
    gaussian: float = 0.0

    def __call__(
        self, keys: Key[Array, " b"], example: dict[str, Float[Array, "b _ _ 1"]]
    ) -> dict[str, Float[Array, "b _ _ 1"]]:
        """`example`: float32 [b, h, w, 1] each. Returns the same names at the crop's size."""
        return jax.vmap(self.augment)(keys, example)

    def augment(self, key, example):
        noise, turns, crop, gaussian = jax.random.split(key, 4)
        if self.turns:
            example = jax.tree.map(lambda x: random_dihedral(turns, x), example)
        if self.resize:
            side = self.crop or min(example["image"].shape[:2])
            smallest = 1 / self.resize
            if not self.mirror:
                smallest = max(smallest, side / min(example["image"].shape[:2]))
            crop = drawn_crop(crop, example, side=side, magnification=(smallest, self.resize))
            reach = math.ceil(side / smallest)
            example, crop = window(example, crop, reach=reach)  # noise on what is cut off is lost
        elif self.crop:
            example = jax.tree.map(lambda x: random_crop(crop, x, side=self.crop), example)
        if self.noise_probability:
            image = one_noise(noise, example["image"], probability=self.noise_probability)
            example = {**example, "image": image}
        if self.gaussian:
            amount, draw = jax.random.split(gaussian)
            sigma = uniform(amount, (0.0, self.gaussian))
            image = gaussian_noise(draw, example["image"], sigma=sigma)
            example = {**example, "image": image}
        if self.resize:
            example = resized_crop(example, crop, side=side)
        return example


def one_noise(key, image, *, probability):
    """With `probability` one of Gaussian, Poisson and speckle noise, else the image as it is.

    Sigma 0.01-0.1 of the full range, 10-1000 electrons per pixel, sigma 0.05-0.2.
    """
    whether, which, amount, draw = jax.random.split(key, 4)
    noisy = jax.lax.select_n(
        jax.random.randint(which, (), 0, 3),
        gaussian_noise(draw, image, sigma=uniform(amount, (0.01, 0.1))),
        poisson_noise(draw, image, dose=log_uniform(amount, (10.0, 1000.0))),
        speckle_noise(draw, image, sigma=uniform(amount, (0.05, 0.2))),
    )
    return jnp.where(jax.random.bernoulli(whether, probability), noisy, image)


def random_dihedral(key, image):
    """One of the eight symmetries of the square, or of the four of a rectangle."""
    up, left, across = jax.random.bernoulli(key, shape=(3,))
    image = jnp.where(up, image[::-1], image)
    image = jnp.where(left, image[:, ::-1], image)
    if image.shape[0] == image.shape[1]:
        image = jnp.where(across, image.swapaxes(0, 1), image)
    return image


def random_crop(key, image, *, side):
    """A side x side window of `image`, any place equally likely."""
    y, x = jax.random.randint(key, (2,), 0, jnp.array(image.shape[:2]) - side + 1)
    return jax.lax.dynamic_slice(image, (y, x, 0), (side, side, image.shape[2]))


class Crop(NamedTuple):
    """A part of an image and how much larger it is to be."""

    scale: Array  # []
    origin: Array  # [2], where it begins: y, x in pixels of the image, from the corner


def drawn_crop(key, example, *, side, magnification):
    """A Crop that is side x side pixels, magnified by a number between two.

    One that shows less than the whole image lies inside it, one that shows more has all of it
    inside.
    """
    scale_key, place_key = jax.random.split(key)
    shape = jnp.array(example["image"].shape[:2])
    scale = uniform(scale_key, magnification)
    return Crop(scale, jax.random.uniform(place_key, (2,)) * (shape - side / scale))


def window(example, crop, *, reach):
    """(what a crop of at most `reach` pixels is made of, the crop in it); all of small images."""
    shape = example["image"].shape[:2]
    sides = [min(reach + 3, side) for side in shape]  # and its neighbours
    last = jnp.array(shape) - jnp.array(sides)
    first = jnp.clip(jnp.floor(crop.origin).astype(jnp.int32) - 1, 0, last)
    cut = {
        name: jax.lax.dynamic_slice(image, (*first, 0), (*sides, image.shape[2]))
        for name, image in example.items()
    }
    return cut, crop._replace(origin=crop.origin - first)


def resized_crop(example, crop, *, side):
    """The crop of each image, [side, side, 1], mirrored beyond borders.

    Images and restoration targets by linear interpolation, masks by the nearest pixel.
    """
    place = (jnp.arange(side) + 0.5) / crop.scale - 0.5
    grid = jnp.meshgrid(crop.origin[0] + place, crop.origin[1] + place, indexing="ij")

    def sample(name, image):
        order = 0 if name == "mask" else 1
        return map_coordinates(image[..., 0], grid, order=order, mode="mirror")[..., None]

    return {name: sample(name, image) for name, image in example.items()}
