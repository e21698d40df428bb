"""From stored values to what networks see, and one random key per row."""

import jax
import jax.numpy as jnp

RESTORATION_TARGETS = ("denoised", "background_removed", "superresolved")


def to_network(batch):
    """The batch's image and targets as float32 [b, h, w, 1]; the only place where ranges change.

    Images and restoration targets go from the record's intensity range to [-1, 1], clipped there;
    masks stay 0 and 1.
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


def row_keys(key, rows):
    """One key a row, so that row i draws the same on any number of devices and processes."""
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(rows))
