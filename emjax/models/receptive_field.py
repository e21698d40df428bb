"""How many input pixels one output pixel sees, and the dilations that give a wanted number."""

import itertools
from collections.abc import Sequence

from emjax.errors import UsageError

LARGEST_DILATION = 4


def unet_receptive_field(dilations: Sequence[int], pools: Sequence[int]) -> int:
    """Return the pixels that one output pixel of the residual U-Net sees along an axis.

    They are averaged over the phase of the pooling. Each block has two 3x3 convolutions on the way
    down and again on the way up, each 2 * dilation wide at the spacing of its level. Pooling adds
    its own width, and nearest upsampling adds nothing.

    Args:
        dilations: one per level, and the last for the bottleneck.
        pools: one per level.
    """
    spacing, field = 1, 0
    for dilation, pool in zip(dilations, pools, strict=False):
        field += 8 * dilation * spacing
        spacing *= pool
    return field + 4 * dilations[-1] * spacing + spacing


def unet_dilations(receptive_field: int, pools: Sequence[int]) -> list[int]:
    """Return the dilations, one per level and the bottleneck's, that see `receptive_field` pixels.

    They never decrease and are at most 4; of several such lists, the one with the largest dilation
    of the bottleneck. This one rule yields all nine networks of Kazimi et al. (arXiv 2402.18286).

    Raises: UsageError with the nearest possible receptive fields.
    """
    values = range(1, LARGEST_DILATION + 1)
    possible: dict[int, tuple[int, ...]] = {}
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


def patchgan_receptive_field(depth: int) -> int:
    """Return the pixels that one score of a PatchGAN sees along an axis.

    Args:
        depth: number of 4x4 convolutions of stride 2.
    """
    field, spacing = 1, 1
    for stride in [2] * depth + [1, 1]:
        field += 3 * spacing
        spacing *= stride
    return field


def hrnet_receptive_field(
    stage1: int, modules: Sequence[int], blocks: int, *, upsampling_mixes: bool
) -> int:
    """Return the pixels that one output pixel of an HRNet sees along an axis.

    They are averaged over the phase of the coarsest branch. Counted is the widest of all paths
    through the network. Pixels of branch i are 2**(i + 2) apart. A 3x3 convolution adds two
    spacings of its input. Upsampling adds one spacing of its input if it mixes neighbours
    (bilinear) and nothing if it does not (nearest).

    Args:
        stage1: bottleneck blocks before there are branches.
        modules: exchanges in the stages of 2, 3 and 4 branches.
        blocks: basic blocks of a branch between two exchanges.
    """

    def spacing(branch: int) -> int:
        return 4 * 2**branch

    def resampled(field: int, source: int, target: int) -> int:
        if source > target:
            return field + upsampling_mixes * spacing(source)
        return field + sum(2 * spacing(branch) for branch in range(source, target))

    stem = 1 + 2 * 1 + 2 * 2
    fields = [stem + stage1 * 2 * spacing(0)]
    for branches, count in zip((2, 3, 4), modules, strict=True):
        new = resampled(fields[-1], branches - 2, branches - 1)
        if branches == 2:  # a convolution to the branch's width; later the widths agree
            fields[0] += 2 * spacing(0)
        fields.append(new)
        for _ in range(count):
            fields = [f + blocks * 2 * 2 * spacing(branch) for branch, f in enumerate(fields)]
            fields = [
                max(resampled(f, source, target) for source, f in enumerate(fields))
                for target in range(branches)
            ]
    merged = max(resampled(f, source, 0) for source, f in enumerate(fields))
    return merged + upsampling_mixes * spacing(0)
