"""Random flips and rotations, noise, magnification and crops, inside the jitted step.

An image and its targets share one draw.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Array, Bool, Float, Int, Key

from emjax.data.noise import (
    Bounds,
    Image,
    Scalar,
    gaussian_noise,
    log_uniform,
    poisson_noise,
    speckle_noise,
    uniform,
)

Example = dict[str, Float[Array, "_ _ 1"]]  # an image and its targets, of one size


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Flips and rotations of image and targets, noise on the image, then magnified crops of all.

    Flips and rotations come before the noise; otherwise XLA would draw the noise once for each of
    the eight symmetries. Noise is drawn only where the crop will be.

    Args:
        crop: side of the crop in pixels; 0 keeps the whole patch.
        turns: one of the eight flips and rotations by 90 degrees (four if the image is not square).
        resize: largest magnification, 0 for none. It is drawn uniformly, from its inverse or
            crop / side up, whichever is larger, so that the crop always fits.
        mirror: magnifications start at the inverse in any case; what the crop then shows beyond the
            border is mirrored.
        noise_probability: share of the images that get Gaussian, Poisson or speckle noise.
        gaussian: largest sigma, as a fraction of the full range, of Gaussian noise on every image;
            drawn uniformly from 0 up.
        foreground_crops: share of the crops that are centred on a pixel of the mask's foreground,
            each equally likely, as far as the border permits. An image without foreground gets an
            ordinary crop.
    """

    crop: int = 0
    turns: bool = True
    resize: float | int = 0.0
    mirror: bool = False
    noise_probability: float | int = 0.0
    gaussian: float | int = 0.0
    foreground_crops: float | int = 0.0

    def __call__(
        self, keys: Key[Array, " b"], example: dict[str, Float[Array, "b _ _ 1"]]
    ) -> dict[str, Float[Array, "b _ _ 1"]]:
        """Return the images and targets of `example`, of the size of the crop."""
        return jax.vmap(self.augment)(keys, example)

    def augment(self, key: Key[Array, ""], example: Example) -> Example:
        """Return one augmented image with its targets."""
        noise_key, dihedral_key, crop_key, gaussian_key = jax.random.split(key, 4)
        side = self.crop or min(example["image"].shape[:2])
        crop = None
        if self.turns:
            example = jax.tree.map(lambda x: random_dihedral(dihedral_key, x), example)
        if self.resize:
            smallest = 1 / self.resize
            if not self.mirror:
                smallest = max(smallest, side / min(example["image"].shape[:2]))
            crop = draw_crop(crop_key, example, side=side, magnification=(smallest, self.resize))
            if self.foreground_crops:
                centre, chosen = self.draw_centre(crop_key, example["mask"])
                room = jnp.array(example["image"].shape[:2]) - side / crop.scale
                origin = jnp.clip(
                    centre + 0.5 - side / crop.scale / 2, jnp.minimum(room, 0), jnp.maximum(room, 0)
                )
                crop = crop._replace(origin=jnp.where(chosen, origin, crop.origin))
            # Smaller before the noise: what is cut off needs none.
            example, crop = cut_window(example, crop, reach=math.ceil(side / smallest))
        elif self.crop and self.foreground_crops:
            centre, chosen = self.draw_centre(crop_key, example["mask"])
            room = jnp.array(example["image"].shape[:2]) - side
            elsewhere = draw_origin(crop_key, example["image"], side=side)
            origin = jnp.where(chosen, jnp.clip(centre - side // 2, 0, room), elsewhere)
            example = jax.tree.map(lambda x: crop_at(origin, x, side=side), example)
        elif self.crop:
            example = jax.tree.map(lambda x: random_crop(crop_key, x, side=self.crop), example)
        if self.noise_probability:
            image = random_noise(noise_key, example["image"], probability=self.noise_probability)
            example = {**example, "image": image}
        if self.gaussian:
            sigma_key, draw_key = jax.random.split(gaussian_key)
            sigma = uniform(sigma_key, (0.0, self.gaussian))
            image = gaussian_noise(draw_key, example["image"], sigma=sigma)
            example = {**example, "image": image}
        if crop is not None:
            example = resized_crop(example, crop, side=side)
        return example

    def draw_centre(
        self, key: Key[Array, ""], mask: Float[Array, "_ _ 1"]
    ) -> tuple[Int[Array, "2"], Bool[Array, ""]]:
        """Return (y and x of a random pixel of the foreground, whether to centre the crop on it).

        Args:
            key: that of the crop, which draws other numbers from it.
        """
        whether, which = jax.random.split(jax.random.fold_in(key, 1))
        counts = jnp.cumsum(mask.ravel() > 0)
        number = jax.random.randint(which, (), 1, jnp.maximum(counts[-1], 1) + 1)
        pixel = jnp.minimum(jnp.searchsorted(counts, number), counts.size - 1)
        chosen = jax.random.bernoulli(whether, self.foreground_crops) & (counts[-1] > 0)
        return jnp.stack(jnp.divmod(pixel, mask.shape[1])), chosen


def random_noise(key: Key[Array, ""], image: Image, *, probability: float | int) -> Image:
    """Return the image with one of Gaussian, Poisson and speckle noise, or the image itself.

    Sigma 0.01-0.1 of the full range, 10-1000 electrons per pixel, sigma 0.05-0.2.

    Args:
        probability: of any noise.
    """
    whether, which, amount, draw = jax.random.split(key, 4)
    noisy = jax.lax.select_n(
        jax.random.randint(which, (), 0, 3),
        gaussian_noise(draw, image, sigma=uniform(amount, (0.01, 0.1))),
        poisson_noise(draw, image, dose=log_uniform(amount, (10.0, 1000.0))),
        speckle_noise(draw, image, sigma=uniform(amount, (0.05, 0.2))),
    )
    return jnp.where(jax.random.bernoulli(whether, probability), noisy, image)


def random_dihedral(key: Key[Array, ""], image: Float[Array, "_ _ c"]) -> Float[Array, "_ _ c"]:
    """Return one of the eight symmetries of a square image, or of the four of a rectangle."""
    up, left, across = jax.random.bernoulli(key, shape=(3,))
    image = jnp.where(up, image[::-1], image)
    image = jnp.where(left, image[:, ::-1], image)
    if image.shape[0] == image.shape[1]:
        image = jnp.where(across, image.swapaxes(0, 1), image)
    return image


def random_crop(
    key: Key[Array, ""], image: Float[Array, "_ _ c"], *, side: int
) -> Float[Array, "_ _ c"]:
    """Return a side x side window of `image`; all positions are equally likely."""
    return crop_at(draw_origin(key, image, side=side), image, side=side)


def draw_origin(key: Key[Array, ""], image: Float[Array, "_ _ c"], *, side: int) -> Int[Array, "2"]:
    """Return y and x of a side x side window of `image`; all positions are equally likely."""
    return jax.random.randint(key, (2,), 0, jnp.array(image.shape[:2]) - side + 1)


def crop_at(
    origin: Int[Array, "2"], image: Float[Array, "_ _ c"], *, side: int
) -> Float[Array, "_ _ c"]:
    """Return the side x side window of `image` that begins at `origin`, y and x."""
    return jax.lax.dynamic_slice(image, (*origin, 0), (side, side, image.shape[2]))


class Crop(NamedTuple):
    """A part of an image and its magnification."""

    scale: Scalar
    origin: Float[Array, "2"]  # where it begins: y, x in pixels of the image, from the corner


def draw_crop(key: Key[Array, ""], example: Example, *, side: int, magnification: Bounds) -> Crop:
    """Return a Crop of side x side pixels, magnified by a number between two.

    A crop that shows less than the whole image is inside the image; for one that shows more, the
    image is inside the crop.
    """
    scale_key, origin_key = jax.random.split(key)
    shape = jnp.array(example["image"].shape[:2])
    scale = uniform(scale_key, magnification)
    return Crop(scale, jax.random.uniform(origin_key, (2,)) * (shape - side / scale))


def cut_window(example: Example, crop: Crop, *, reach: int) -> tuple[Example, Crop]:
    """Return the part that a crop of at most `reach` pixels needs, and the crop within it.

    Of small images that is the whole image.
    """
    shape = example["image"].shape[:2]
    window = [min(reach + 3, side) for side in shape]  # 3: the neighbours
    last = jnp.array(shape) - jnp.array(window)
    first = jnp.clip(jnp.floor(crop.origin).astype(jnp.int32) - 1, 0, last)
    cut = {
        name: jax.lax.dynamic_slice(image, (*first, 0), (*window, image.shape[2]))
        for name, image in example.items()
    }
    return cut, crop._replace(origin=crop.origin - first)


def resized_crop(example: Example, crop: Crop, *, side: int) -> Example:
    """Return the crop of each image, [side, side, 1], mirrored beyond borders.

    Images and restoration targets are interpolated linearly, masks take the nearest pixel.
    """
    offset = (jnp.arange(side) + 0.5) / crop.scale - 0.5
    grid = jnp.meshgrid(crop.origin[0] + offset, crop.origin[1] + offset, indexing="ij")

    def sample(name: str, image: Float[Array, "_ _ 1"]) -> Float[Array, "_ _ 1"]:
        order = 0 if name == "mask" else 1
        return map_coordinates(image[..., 0], grid, order=order, mode="mirror")[..., None]

    return {name: sample(name, image) for name, image in example.items()}
