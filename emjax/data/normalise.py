"""From stored values to what networks see, and one random key per row."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

RESTORATION_TARGETS = ("denoised", "background_removed", "superresolved")


def to_network(batch: Mapping[str, Array]) -> dict[str, Float[Array, "b h w 1"]]:
    """Return the batch's image and targets as float32 [b, h, w, 1].

    Images and restoration targets go from the record's intensity range to [-1, 1], clipped there;
    masks stay 0 and 1. This is the only place where a step changes ranges; prediction does the same
    on the host, by `micrographs.from_range`.
    """
    low, high = batch["intensity_range"].reshape(-1, 2, 1, 1, 1).swapaxes(0, 1)
    example = {}
    for name in ("image", *RESTORATION_TARGETS):
        if name in batch:
            unit = (batch[name].astype(jnp.float32) - low) / (high - low)
            example[name] = jnp.clip(2 * unit - 1, -1, 1)
    if "mask" in batch:
        example["mask"] = batch["mask"].astype(jnp.float32)
    return example


def row_keys(key: Key[Array, ""], rows: int) -> Key[Array, " b"]:
    """Return one key per row; row i draws the same on any number of devices and processes."""
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(rows))
