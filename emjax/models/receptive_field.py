"""How many input pixels one output pixel sees, and the dilations that give a wanted number."""

import itertools

from emjax.errors import UsageError

LARGEST_DILATION = 4


def unet_receptive_field(dilations, pools):
    """Pixels one output of the residual U-Net sees along an axis, averaged over its pooling phase.

    `dilations` has one entry a level and a last one for the bottleneck, `pools` one a level.
    Each block adds two 3x3 convolutions on the way down and again on the way up, each 2 * dilation
    wide at its level's spacing; pooling adds its own width; nearest upsampling adds nothing.
    """
    spacing, field = 1, 0
    for dilation, pool in zip(dilations, pools, strict=False):
        field += 8 * dilation * spacing
        spacing *= pool
    return field + 4 * dilations[-1] * spacing + spacing


def unet_dilations(receptive_field, pools):
    """The dilations, level by level and the bottleneck last, that see `receptive_field` pixels.

    Non-decreasing, none above 4, and of those the list with the largest bottleneck dilation: the
    one rule that yields all nine networks of Kazimi et al. (arXiv 2402.18286).

    Raises: UsageError naming the nearest possible receptive fields.
    """
    values = range(1, LARGEST_DILATION + 1)
    possible = {}
    for dilations in itertools.combinations_with_replacement(values, len(pools) + 1):
        field = unet_receptive_field(dilations, pools)
        possible[field] = max(possible.get(field, dilations), dilations, key=lambda d: d[::-1])
    if receptive_field not in possible:
        nearest = sorted(sorted(possible, key=lambda f: abs(f - receptive_field))[:4])
        raise UsageError(
            f"no U-Net with {len(pools)} levels has receptive_field={receptive_field}; "
            f"the nearest are {', '.join(map(str, nearest))}"
        )
    return list(possible[receptive_field])


def patchgan_receptive_field(depth):
    """Pixels one output of a PatchGAN with `depth` strided 4x4 convolutions sees along an axis."""
    field, spacing = 1, 1
    for stride in [2] * depth + [1, 1]:
        field += 3 * spacing
        spacing *= stride
    return field


def hrnet_receptive_field(stage1, modules, blocks, *, upsampling_mixes):
    """Pixels one output of an HRNet sees along an axis, averaged over its phase in the coarsest.

    The widest of all ways through the network: branch i lies 2**(i + 2) pixels apart; a 3x3
    convolution adds two spacings of its input, upsampling one of its input where it mixes
    neighbours (bilinear) and nothing where it does not (nearest).

    Args:
        stage1: bottleneck blocks before there are branches.
        modules: exchanges in the stages of 2, 3 and 4 branches.
        blocks: basic blocks of a branch between two exchanges.
    """

    def spacing(branch):
        return 4 * 2**branch

    def brought(field, source, target):
        if source > target:
            return field + upsampling_mixes * spacing(source)
        return field + sum(2 * spacing(branch) for branch in range(source, target))

    stem = 1 + 2 * 1 + 2 * 2
    fields = [stem + stage1 * 2 * spacing(0)]
    for branches, count in zip((2, 3, 4), modules, strict=True):
        new = brought(fields[-1], branches - 2, branches - 1)
        if branches == 2:  # a convolution to the branch's width; further on the widths agree
            fields[0] += 2 * spacing(0)
        fields.append(new)
        for _ in range(count):
            fields = [f + blocks * 2 * 2 * spacing(branch) for branch, f in enumerate(fields)]
            fields = [
                max(brought(f, source, target) for source, f in enumerate(fields))
                for target in range(branches)
            ]
    joined = max(brought(f, source, 0) for source, f in enumerate(fields))
    return joined + upsampling_mixes * spacing(0)
