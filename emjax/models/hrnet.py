"""The high-resolution network: parallel branches that exchange what they see."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.nn import initializers

from emjax.errors import choose
from emjax.models.blocks import (
    KEPT_OUTPUT,
    UPSAMPLING,
    Conv,
    Images,
    check_divisible,
    conv_norm,
)
from emjax.models.model import KeySource
from emjax.models.norms import Norm, normalisation
from emjax.models.receptive_field import hrnet_receptive_field


class Variant(NamedTuple):
    """What HRNets differ in."""

    width: int  # channels of the finest branch; each coarser one has twice as many
    stage1: int  # bottleneck blocks at one resolution, before there are branches
    planes: int  # their inner channels; their output has four times as many
    modules: tuple[int, int, int]  # exchanges in the stages of 2, 3 and 4 branches
    blocks: int  # basic blocks of a branch between two exchanges


# Source: HRNet/HRNet-Semantic-Segmentation, the experiments of its branch pytorch-v1.1.
VARIANTS = {
    "w18_small_v1": Variant(16, 1, 32, (1, 1, 1), 2),
    "w18_small_v2": Variant(18, 2, 64, (1, 3, 2), 2),
    **{f"w{width}": Variant(width, 4, 64, (1, 4, 3), 4) for width in (18, 32, 44, 48)},
}


SMALL = initializers.normal(0.001)


class HRNet(nnx.Module):
    """Image to image: a stem of stride 4, four stages of 1, 2, 3 and 4 branches, and a linear head.

    Branch i works at 1 / 2**(i + 2) of the input's size with width * 2**i channels. The head
    concatenates all branches at the size of the finest, and its output is magnified to the size of
    the input. Input and output [b, h, w, channels], h and w divisible by 32. Convolutions before a
    norm have no bias. Kernels start at N(0, 0.001); without norms, which compensate for such small
    values, at PyTorch's default.
    Source: Wang et al. 2019 (arXiv 1908.07919), the segmentation network of its authors.
    Differs: one input channel and one linear output channel.

    Args:
        variant: w18_small_v1, w18_small_v2, w18, w32, w44 or w48.
        upsampling: bilinear, bilinear_corners (the authors' later weights) or nearest (their
            classification networks, and timm's).
        norm: batch, instance, group or none.
    """

    inputs = 1
    divisor = 32

    def __init__(
        self,
        *,
        variant: str,
        in_channels: int = 1,
        out_channels: int = 1,
        upsampling: str = "bilinear",
        norm: str = "batch",
        rngs: KeySource,
    ) -> None:
        width, stage1, planes, modules, blocks = choose("variant", variant, VARIANTS)
        self.norm, self.upsampling = norm, upsampling
        self.upsample = choose("upsampling", upsampling, UPSAMPLING)
        self.receptive_field = hrnet_receptive_field(
            stage1, modules, blocks, upsampling_mixes=upsampling != "nearest"
        )
        layers = Layers(norm, rngs)

        self.stem = layers.chain((in_channels, 64, 64), stride=2)
        self.stage1 = nnx.List(
            Bottleneck(64 if block == 0 else 4 * planes, planes, layers) for block in range(stage1)
        )
        widths, self.transitions, self.stages = [4 * planes], nnx.List(), nnx.List()
        for branches, count in zip((2, 3, 4), modules, strict=True):
            before, widths = widths, [width * 2**branch for branch in range(branches)]
            self.transitions.append(Transition(before, widths, layers))
            self.stages.append(
                nnx.List(
                    nnx.Dict(
                        branches=nnx.List(Branch(width, blocks, layers) for width in widths),
                        fuse=Fuse(widths, self.upsample, layers),
                    )
                    for _ in range(count)
                )
            )
        self.merge = layers.conv_norm(sum(widths), sum(widths), 1, use_bias=True)
        self.head = layers.conv(sum(widths), out_channels, 1)

    @property
    def wiring(self) -> dict[str, Any]:
        """The settings that change what the same arrays compute."""
        return {"upsampling": self.upsampling, "norm": self.norm}

    def __call__(self, x: Images, *, train: bool) -> Images:
        """Return the output for x; in training, the norms' running statistics are updated."""
        finest, *coarser = self.trunk(x, train=train)
        magnified = [self.upsample(x, 2**level) for level, x in enumerate(coarser, start=1)]
        x = self.merge(jnp.concatenate([finest, *magnified], -1), train=train)
        return self.upsample(self.head(x), 4)

    def trunk(self, x: Images, *, train: bool) -> list[Images]:
        """Return the four branches, finest first: [b, h / 2**(i + 2), w / 2**(i + 2), c]."""
        check_divisible(x, self.divisor)
        x = sequential(self.stem, x, train=train)
        x = sequential(self.stage1, x, train=train)
        branches = [x]
        for transition, modules in zip(self.transitions, self.stages, strict=True):
            branches = transition(branches, train=train)
            for module in modules:
                branches = [
                    branch(x, train=train)
                    for branch, x in zip(module.branches, branches, strict=True)
                ]
                branches = module.fuse(branches, train=train)
        return branches


class Transition(nnx.Module):
    """From the branches of one stage to those of the next: one more, made from the coarsest."""

    def __init__(self, before: Sequence[int], widths: Sequence[int], layers: "Layers") -> None:
        *kept, new = widths
        self.keep = nnx.List(
            layers.chain((old, width) if old != width else ())
            for old, width in zip(before, kept, strict=True)
        )
        self.new = layers.chain((before[-1], new), stride=2)

    def __call__(self, branches: Sequence[Images], *, train: bool) -> list[Images]:
        """Return the branches of the next stage, finest first."""
        kept = [sequential(c, x, train=train) for c, x in zip(self.keep, branches, strict=True)]
        return [*kept, sequential(self.new, branches[-1], train=train)]


class Branch(nnx.Module):
    """Basic blocks at one resolution."""

    def __init__(self, width: int, blocks: int, layers: "Layers") -> None:
        self.blocks = nnx.List(BasicBlock(width, layers) for _ in range(blocks))

    def __call__(self, x: Images, *, train: bool) -> Images:
        """Return the output of the last block."""
        return sequential(self.blocks, x, train=train)


class Fuse(nnx.Module):
    """Each branch becomes the sum of all branches, converted to its width and size.

    `paths[i][j]` leads from branch j to branch i: a 1x1 convolution and upsampling from a coarser
    one, nothing from itself, 3x3 convolutions of stride 2 from a finer one.
    """

    def __init__(
        self, widths: Sequence[int], upsample: Callable[[Images, int], Images], layers: "Layers"
    ) -> None:
        self.upsample = upsample

        def path(i: int, j: int) -> nnx.List:
            if j > i:
                return layers.chain((widths[j], widths[i]), size=1, last_relu=False)
            kept = [widths[j]] * (i - j)
            return layers.chain((*kept, widths[i]), stride=2, last_relu=False)

        indices = range(len(widths))
        self.paths = nnx.List(nnx.List(path(i, j) for j in indices) for i in indices)

    def __call__(self, branches: Sequence[Images], *, train: bool) -> list[Images]:
        """Return as many branches of the same shapes."""
        fused = []
        for i, paths in enumerate(self.paths):
            total: Any = 0
            for j, (path, x) in enumerate(zip(paths, branches, strict=True)):
                x = sequential(path, x, train=train)
                total += self.upsample(x, 2 ** (j - i)) if j > i else x
            fused.append(checkpoint_name(nnx.relu(total), KEPT_OUTPUT))
        return fused


class BasicBlock(nnx.Module):
    """Two 3x3 convolutions plus the input itself, then a ReLU."""

    def __init__(self, width: int, layers: "Layers") -> None:
        self.convs = layers.chain((width, width, width), last_relu=False)

    def __call__(self, x: Images, *, train: bool) -> Images:
        """Return an output of the same shape as x."""
        y = sequential(self.convs, x, train=train)
        return checkpoint_name(nnx.relu(y + x), KEPT_OUTPUT)


class Bottleneck(nnx.Module):
    """1x1, 3x3 and 1x1 convolutions to 4 * planes channels, plus the input, then a ReLU.

    The input is projected if it has another number of channels.
    """

    def __init__(self, in_channels: int, planes: int, layers: "Layers") -> None:
        out = 4 * planes
        self.reduce = layers.conv_norm(in_channels, planes, 1)
        self.conv = layers.conv_norm(planes, planes, 3)
        self.expand = layers.conv_norm(planes, out, 1, relu=False)
        self.project = layers.chain(
            (in_channels, out) if in_channels != out else (), size=1, last_relu=False
        )

    def __call__(self, x: Images, *, train: bool) -> Images:
        """Return [b, h, w, 4 * planes] for x [b, h, w, c]."""
        y = self.expand(self.conv(self.reduce(x, train=train), train=train), train=train)
        projected = sequential(self.project, x, train=train)
        return checkpoint_name(nnx.relu(y + projected), KEPT_OUTPUT)


class ConvNorm(nnx.Module):
    """A convolution, a norm and, if `relu` is true, a ReLU."""

    def __init__(self, conv: Conv, norm: Norm, relu: bool) -> None:
        self.conv, self.norm, self.relu = conv, norm, relu

    def __call__(self, x: Images, *, train: bool) -> Images:
        """Return the output for x."""
        x = conv_norm(self.conv, self.norm, x, train=train)
        return nnx.relu(x) if self.relu else x


class Layers(NamedTuple):
    """Makes the layers of one HRNet, with what they have in common."""

    norm: str
    rngs: KeySource

    def conv(self, before: int, after: int, size: int, **options: Any) -> Conv:
        """Return a convolution with an HRNet's initial values; `options` are Conv's."""
        init = None if self.norm == "none" else SMALL
        return Conv(before, after, size, kernel_init=init, rngs=self.rngs, **options)

    def conv_norm(
        self,
        before: int,
        after: int,
        size: int,
        *,
        stride: int = 1,
        relu: bool = True,
        use_bias: bool = False,
    ) -> ConvNorm:
        """Return a ConvNorm; without a norm, the convolution has a bias in any case."""
        use_bias = use_bias or self.norm == "none"
        layer = self.conv(before, after, size, stride=stride, use_bias=use_bias)
        return ConvNorm(layer, normalisation(self.norm, after, rngs=self.rngs), relu)

    def chain(
        self, widths: Sequence[int], *, size: int = 3, stride: int = 1, last_relu: bool = True
    ) -> nnx.List:
        """Return ConvNorms from each of `widths` to the next; none for fewer than two."""
        steps = list(zip(widths, widths[1:], strict=False))
        return nnx.List(
            self.conv_norm(
                before, after, size, stride=stride, relu=last_relu or index < len(steps) - 1
            )
            for index, (before, after) in enumerate(steps)
        )


def sequential(layers: Iterable[Any], x: Images, *, train: bool) -> Images:
    """Return the output of the last layer, each called on the output of the one before."""
    for layer in layers:
        x = layer(x, train=train)
    return x
