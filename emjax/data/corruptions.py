"""Corruptions of micrographs that the generator of a pretraining has to undo.

Images are float32 [h, w, 1] in [-1, 1]; amplitudes are fractions of the full range (2 in these
units). A corruption works on one image with one key; `corrupt` maps it over a batch.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from emjax.data.noise import Bounds, Image, gaussian_blur, gaussian_noise, poisson_noise, uniform


@dataclasses.dataclass(frozen=True)
class Corruption:
    """Gaussian blur, then Gaussian noise, then (if `dose` is given) Poisson noise; no clipping.

    Source: the kinds are from Kazimi et al. (arXiv 2402.18286), section 4.1, who state no
    amplitudes.

    Args:
        blur: smallest and largest sigma in pixels.
        blur_probability: share of the images that are blurred.
        noise: smallest and largest sigma as fractions of the full range.
        dose: smallest and largest electrons per pixel at full range; None for no Poisson noise.
    """

    blur: Bounds = (0.1, 2.0)
    blur_probability: float | int = 0.5
    noise: Bounds = (0.02, 0.15)
    dose: Bounds | None = None

    def __call__(
        self, keys: Key[Array, " b"], images: Float[Array, "b h w 1"]
    ) -> Float[Array, "b h w 1"]:
        """Return each image corrupted with its own key."""
        return jax.vmap(self.corrupt)(keys, images)

    def corrupt(self, key: Key[Array, ""], image: Image) -> Image:
        """Return one image corrupted."""
        whether, blur, amplitude, noise, dose, count = jax.random.split(key, 6)
        sigma = uniform(blur, self.blur)
        blurred = gaussian_blur(image, sigma=sigma, radius=math.ceil(4 * self.blur[1]))
        image = jnp.where(jax.random.bernoulli(whether, self.blur_probability), blurred, image)
        image = gaussian_noise(noise, image, sigma=uniform(amplitude, self.noise))
        if self.dose is not None:
            image = poisson_noise(count, image, dose=uniform(dose, self.dose))
        return image


@dataclasses.dataclass(frozen=True)
class Masking:
    """Square patches of an image replaced by mid-grey.

    Args:
        side: of a patch in pixels.
        share: the part of the patches that is hidden, the same in every image.
    """

    side: int = 16
    share: float | int = 0.6

    def __call__(
        self, keys: Key[Array, " b"], images: Float[Array, "b h w 1"]
    ) -> Float[Array, "b h w 1"]:
        """Return each image masked with its own key."""
        return jax.vmap(self.mask)(keys, images)

    def mask(self, key: Key[Array, ""], image: Image) -> Image:
        """Return one image masked."""
        h, w, _ = image.shape
        patches = -(-h // self.side), -(-w // self.side)
        order = jax.random.permutation(key, math.prod(patches)).reshape(patches)
        hidden = order < round(self.share * math.prod(patches))
        hidden = jnp.repeat(jnp.repeat(hidden, self.side, 0), self.side, 1)[:h, :w, None]
        return jnp.where(hidden, 0.0, image)
