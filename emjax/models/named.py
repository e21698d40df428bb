"""The networks of Kazimi et al. by name, as the `model` and `discriminator` fields of a config."""

from typing import Any

from ml_collections.config_dict import placeholder


def unet(blocks: int, receptive_field: int) -> dict[str, Any]:
    """Return the `model` field of a U-Net with `blocks` levels; the field of view is in pixels."""
    return dict(
        name="unet",
        blocks=blocks,
        receptive_field=receptive_field,
        filters=placeholder(tuple),  # channels, one number per level and one for the bottleneck
        pools=placeholder(tuple),  # one per level; unset: 2
        dilations=placeholder(tuple),  # instead of those that give the receptive field
        norm="batch",  # or instance, group, none
        input_interval=placeholder(tuple),  # for converted weights that were not trained on [-1, 1]
    )


def hrnet(variant: str) -> dict[str, Any]:
    """Return the `model` field of an HRNet; `variant` is a key of `emjax.models.hrnet.VARIANTS`."""
    return dict(name="hrnet", variant=variant, upsampling="bilinear", norm="batch")


GENERATORS = {
    f"unet_{blocks}_{field}": unet(blocks, field)
    for blocks, fields in {2: (44, 84, 116), 3: (96, 176, 240), 4: (200, 360, 424)}.items()
    for field in fields
} | {
    f"hrnet_{variant}": hrnet(variant)
    for variant in ("w18_small_v1", "w18_small_v2", "w18", "w32", "w44", "w48")
}
DISCRIMINATORS = {
    "patchgan": dict(name="patchgan", width=64, depth=3, norm="batch"),  # sees 70 x 70 pixels
}
