"""The networks of the paper by name, as a config's `model` field."""

from ml_collections.config_dict import placeholder


def unet(blocks, receptive_field):
    return dict(
        name="unet",
        blocks=blocks,
        receptive_field=receptive_field,
        filters=placeholder(tuple),  # channels, a number a level and one for the bottleneck
        pools=placeholder(tuple),  # one a level; unset: 2
        dilations=placeholder(tuple),  # in place of those that give the receptive field
        norm="batch",  # or instance, group, none
        input_interval=placeholder(tuple),  # for converted weights that were not trained on [-1, 1]
    )


def hrnet(variant):
    return dict(name="hrnet", variant=variant, upsampling="bilinear", norm="batch")


GENERATORS = {
    f"unet_{blocks}_{field}": unet(blocks, field)
    for blocks, fields in {2: (44, 84, 116), 3: (96, 176, 240), 4: (200, 360, 424)}.items()
    for field in fields
} | {
    f"hrnet_{variant}": hrnet(variant)
    for variant in ("w18_small_v1", "w18_small_v2", "w18", "w32", "w44", "w48")
}
