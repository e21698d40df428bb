"""The networks and one update of each objective in PyTorch, written from the papers, as an oracle.

Nothing here calls emjax. Modules have the names of emjax's parameter paths, so that
`down/0/conv1/kernel` is `down.0.conv1.weight` and copying is a rule, not a table. Images are
torch's [b, c, h, w]; `load` and `dump` convert kernels between [h, w, in, out] and
[out, in, h, w].
"""

import numpy as np
import torch
from torch import nn
from torch.nn import functional


def normalisation(norm, channels):
    """Return emjax's layer `norm`; a group norm has up to 32 groups of two channels or more."""
    if norm == "group":
        groups = 32
        while groups > 1 and (channels % groups or channels < 2 * groups):
            groups -= 1
        return nn.GroupNorm(groups, channels)
    if norm == "instance":
        return nn.InstanceNorm2d(channels, affine=True)
    return {"batch": nn.BatchNorm2d, "none": nn.Identity}[norm](channels)


class ResidualBlock(nn.Module):
    """conv, norm, ReLU, conv, norm, plus a 1x1 projection of the input, ReLU.

    Source: Sytwu et al. 2022 (arXiv 2204.04250); its code has the projection without a norm.
    """

    def __init__(self, before, after, dilation, norm):
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, padding=dilation, dilation=dilation)
        self.norm1 = normalisation(norm, after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=dilation, dilation=dilation)
        self.norm2 = normalisation(norm, after)
        self.project = nn.Conv2d(before, after, 1)
        for conv in (self.conv1, self.conv2, self.project):
            nn.init.kaiming_normal_(conv.weight)

    def forward(self, x):
        y = functional.relu(self.norm1(self.conv1(x)))
        return functional.relu(self.norm2(self.conv2(y)) + self.project(x))


class UNet(nn.Module):
    """4, 8, 16 ... channels (or `filters`); one dilation per level, the bottleneck's last."""

    def __init__(self, dilations, *, pools=None, filters=None, norm="batch"):
        super().__init__()
        *levels, deepest = dilations
        widths = filters or [4 * 2**level for level in range(len(dilations))]
        self.pools = pools or [2] * len(levels)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        before = 1
        for level, dilation in enumerate(levels):
            self.down.append(ResidualBlock(before, widths[level], dilation, norm))
            before = widths[level]
            self.up.append(ResidualBlock(before + widths[level + 1], before, dilation, norm))
        self.bottleneck = ResidualBlock(before, widths[-1], deepest, norm)
        self.head = nn.Conv2d(widths[0], 1, 1)

    def forward(self, x):
        skips = []
        for block, pool in zip(self.down, self.pools, strict=True):
            skips.append(block(x))
            x = functional.max_pool2d(skips[-1], pool)
        x = self.bottleneck(x)
        for block, pool in zip(reversed(self.up), reversed(self.pools), strict=True):
            x = functional.interpolate(x, scale_factor=pool, mode="nearest")
            x = block(torch.cat([skips.pop(), x], 1))
        return self.head(x)


class ReleasedUNet:
    """The U-Net of Sytwu et al., run on their arrays under their names.

    Args:
        tensors: arrays as in the file; those without a gradient are running statistics.
        pools: pooling factor of each level.
        down, up: patterns of the levels' names, down from 1 if they are "down{}", ups from the
            deepest if they are "ups.{}".
    """

    def __init__(self, tensors, pools, down, up):
        self.tensors = {
            name: torch.tensor(array, requires_grad="running" not in name and array.dtype != int)
            for name, array in tensors.items()
        }
        levels = range(len(pools))
        self.pools, first = pools, 1 if down == "down{}" else 0
        self.downs = [down.format(level + first) for level in levels]
        self.ups = [up.format(level + 1 if first else len(pools) - 1 - level) for level in levels]

    def probability(self, image):
        """Return the probability of a particle, float32 [h, w], for float32 [h, w]."""
        with torch.no_grad():
            logits = self(torch.from_numpy(image)[None, None], train=False)
        return torch.softmax(logits, 1)[0, 1].numpy()

    def trained_once(self, image):
        """Return (output [h, w, 2], {name: gradient or new statistic}) for [h, w], in float64.

        The gradients are those of the output's mean squared distance to 1.
        """
        for name, value in self.tensors.items():
            self.tensors[name] = value.detach().double().requires_grad_(value.requires_grad)
        output = self(torch.from_numpy(image)[None, None], train=True)
        ((output - 1) ** 2).mean().backward()
        moved = {name: t if t.grad is None else t.grad for name, t in self.tensors.items()}
        return pixels(output)[0], {name: value.numpy() for name, value in moved.items()}

    def layer(self, name):
        return self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"]

    def norm(self, name, x, train):
        mean, var = (self.tensors[f"{name}.running_{what}"] for what in ("mean", "var"))
        return functional.batch_norm(x, mean, var, *self.layer(name), training=train)

    def block(self, name, x, train):
        y = functional.conv2d(x, *self.layer(f"{name}.conv1"), padding=1)
        y = functional.relu(self.norm(f"{name}.bn1", y, train))
        y = functional.conv2d(y, *self.layer(f"{name}.conv2"), padding=1)
        y = self.norm(f"{name}.bn2", y, train)
        return functional.relu(y + functional.conv2d(x, *self.layer(f"{name}.conv_add")))

    def __call__(self, x, *, train):
        kept = []
        for name, pool in zip(self.downs, self.pools, strict=True):
            kept.append(self.block(name, x, train))
            x = functional.max_pool2d(kept[-1], pool)
        x = self.block("bottleneck", x, train)
        for name, pool in zip(self.ups[::-1], self.pools[::-1], strict=True):
            x = torch.cat([kept.pop(), functional.interpolate(x, scale_factor=pool)], 1)
            x = self.block(name, x, train)
        return functional.conv2d(x, *self.layer("final_conv"))


class PatchGAN(nn.Module):
    """Strided 4x4 convolutions, one more of stride 1, and one to the map of scores.

    Source: Isola et al. 2017 (arXiv 1611.07004), section 6.1.2.
    """

    def __init__(self, width, depth=3, *, norm="batch"):
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(2, width, 4, 2, 1)])
        self.norms = nn.ModuleList()
        before = width
        for level in range(1, depth + 1):
            after = width * min(2**level, 8)
            stride = 2 if level < depth else 1
            self.convs.append(nn.Conv2d(before, after, 4, stride, 1, bias=norm == "none"))
            self.norms.append(normalisation(norm, after))
            before = after
        self.head = nn.Conv2d(before, 1, 4, 1, 1)
        for conv in [*self.convs, self.head]:
            nn.init.normal_(conv.weight, 0, 0.02)
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)
        for layer in self.norms:
            if norm != "none":
                nn.init.normal_(layer.weight, 1, 0.02)

    def forward(self, corrupted, image):
        x = torch.cat([corrupted, image], 1)
        x = functional.leaky_relu(self.convs[0](x), 0.2)
        for conv, norm in zip(self.convs[1:], self.norms, strict=True):
            x = functional.leaky_relu(norm(conv(x)), 0.2)
        return self.head(x)


# Bottleneck blocks, their inner channels, modules of stages 2 to 4, blocks per branch, first width.
HRNETS = {
    "tiny": (1, 8, (1, 2, 1), 1, 4),
    "w18_small_v1": (1, 32, (1, 1, 1), 2, 16),
    "w18_small_v2": (2, 64, (1, 3, 2), 2, 18),
    "w18": (4, 64, (1, 4, 3), 4, 18),
    "w32": (4, 64, (1, 4, 3), 4, 32),
    "w44": (4, 64, (1, 4, 3), 4, 44),
    "w48": (4, 64, (1, 4, 3), 4, 48),
}
INTERPOLATION = {
    "bilinear": dict(mode="bilinear", align_corners=False),
    "bilinear_corners": dict(mode="bilinear", align_corners=True),
    "nearest": dict(mode="nearest"),
}


class ConvNorm(nn.Sequential):
    """Convolution, with a bias only if there is no norm, norm, and perhaps a ReLU."""

    def __init__(self, before, after, kernel, stride, norm, *, relu=True, bias=False):
        super().__init__()
        bias = bias or norm == "none"
        self.conv = nn.Conv2d(before, after, kernel, stride, kernel // 2, bias=bias)
        self.norm = normalisation(norm, after)
        if relu:
            self.act = nn.ReLU()


class Bottleneck(nn.Module):
    def __init__(self, before, planes, norm):
        super().__init__()
        self.reduce = ConvNorm(before, planes, 1, 1, norm)
        self.conv = ConvNorm(planes, planes, 3, 1, norm)
        self.expand = ConvNorm(planes, 4 * planes, 1, 1, norm, relu=False)
        self.project = nn.Sequential()
        if before != 4 * planes:
            self.project.append(ConvNorm(before, 4 * planes, 1, 1, norm, relu=False))

    def forward(self, x):
        return functional.relu(self.expand(self.conv(self.reduce(x))) + self.project(x))


class BasicBlock(nn.Module):
    def __init__(self, width, norm):
        super().__init__()
        last = ConvNorm(width, width, 3, 1, norm, relu=False)
        self.convs = nn.Sequential(ConvNorm(width, width, 3, 1, norm), last)

    def forward(self, x):
        return functional.relu(self.convs(x) + x)


class Transition(nn.Module):
    """3x3 to the new width if it differs; the new branch by stride 2 from the last one."""

    def __init__(self, old, new, norm):
        super().__init__()
        self.keep = nn.ModuleList(nn.Sequential() for _ in old)
        for chain, before, after in zip(self.keep, old, new, strict=False):
            if before != after:
                chain.append(ConvNorm(before, after, 3, 1, norm))
        self.new = nn.Sequential(ConvNorm(old[-1], new[-1], 3, 2, norm))

    def forward(self, xs):
        return [chain(x) for chain, x in zip(self.keep, xs, strict=True)] + [self.new(xs[-1])]


class Exchange(nn.Module):
    """One module of a stage: blocks on every branch, then every branch summed into every other."""

    def __init__(self, widths, blocks, interpolation, norm):
        super().__init__()
        self.interpolation = interpolation
        self.branches = nn.ModuleList()
        for width in widths:
            branch = nn.Module()
            branch.blocks = nn.Sequential(*(BasicBlock(width, norm) for _ in range(blocks)))
            self.branches.append(branch)
        self.fuse = nn.Module()
        self.fuse.paths = nn.ModuleList(nn.ModuleList() for _ in widths)
        for i, row in enumerate(self.fuse.paths):
            for j, width in enumerate(widths):
                path = nn.Sequential()
                if j > i:
                    path.append(ConvNorm(width, widths[i], 1, 1, norm, relu=False))
                for step in range(j, i):
                    last = step == i - 1
                    after = widths[i] if last else width
                    path.append(ConvNorm(width, after, 3, 2, norm, relu=not last))
                row.append(path)

    def forward(self, xs):
        xs = [branch.blocks(x) for branch, x in zip(self.branches, xs, strict=True)]
        fused = []
        for row, own in zip(self.fuse.paths, xs, strict=True):
            terms = [path(x) for path, x in zip(row, xs, strict=True)]
            grown = [enlarge(term, own.shape[-2:], self.interpolation) for term in terms]
            fused.append(functional.relu(sum(grown)))
        return fused


class HRNet(nn.Module):
    """The segmentation network: trunk, branches concatenated, 1x1 convolution, head, enlarged to x.

    Source: Wang et al. 2019 (arXiv 1908.07919) and the layer tables of the authors' networks.
    """

    def __init__(self, variant, *, upsampling="bilinear", norm="batch", channels=(1, 1)):
        super().__init__()
        bottlenecks, planes, modules, blocks, width = HRNETS[variant]
        self.interpolation = INTERPOLATION[upsampling]
        self.stem = nn.Sequential(
            ConvNorm(channels[0], 64, 3, 2, norm), ConvNorm(64, 64, 3, 2, norm)
        )
        self.stage1 = nn.Sequential(Bottleneck(64, planes, norm))
        for _ in range(1, bottlenecks):
            self.stage1.append(Bottleneck(4 * planes, planes, norm))
        self.transitions, self.stages = nn.ModuleList(), nn.ModuleList()
        widths = [4 * planes]
        for branches, count in enumerate(modules, start=2):
            old, widths = widths, [width, 2 * width, 4 * width, 8 * width][:branches]
            self.transitions.append(Transition(old, widths, norm))
            stage = (Exchange(widths, blocks, self.interpolation, norm) for _ in range(count))
            self.stages.append(nn.Sequential(*stage))
        self.merge = ConvNorm(sum(widths), sum(widths), 1, 1, norm, bias=True)
        self.head = nn.Conv2d(sum(widths), channels[1], 1)
        for parameter in self.parameters():
            if parameter.ndim == 4:
                nn.init.normal_(parameter, 0, 0.001)

    def forward(self, x):
        branches = [self.stage1(self.stem(x))]
        for transition, stage in zip(self.transitions, self.stages, strict=True):
            branches = stage(transition(branches))
        size = branches[0].shape[-2:]
        enlarged = [enlarge(branch, size, self.interpolation) for branch in branches]
        merged = self.merge(torch.cat(enlarged, 1))
        return enlarge(self.head(merged), x.shape[-2:], self.interpolation)


def enlarge(x, size, interpolation):
    return x if x.shape[-2:] == size else functional.interpolate(x, size=size, **interpolation)


def multiply_adds(network, *inputs):
    """Return the multiply-adds of the convolutions, counted at their outputs; padding included."""
    total = 0

    def count(conv, inputs, output):
        nonlocal total
        total += output.numel() * conv.weight[0].numel()

    convs = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    hooks = [conv.register_forward_hook(count) for conv in convs]
    with torch.no_grad():
        network(*inputs)
    for hook in hooks:
        hook.remove()
    return total


def adam(network, *, b1):
    """Return torch's own Adam at the paper's learning rate."""
    return torch.optim.Adam(network.parameters(), lr=2e-4, betas=(b1, 0.999))


def pix2pix_step(generator, discriminator, g_adam, d_adam, corrupted, micrograph):
    """Update both networks in place, and return the restored images and the loss terms.

    Source: Isola et al. 2017, section 3.3, in the order of the authors' public code: the
    discriminator on the detached fake, then on the real image, then the generator through the
    updated discriminator. Every forward is in training mode, so the discriminator's running
    statistics move three times.
    """

    def distance(scores, truth):
        return functional.mse_loss(scores, torch.full_like(scores, truth))

    restored = generator(corrupted)

    d_fake = distance(discriminator(corrupted, restored.detach()), 0.0)
    d_real = distance(discriminator(corrupted, micrograph), 1.0)
    d_adam.zero_grad()
    (0.5 * (d_fake + d_real)).backward()
    d_adam.step()

    g_gan = distance(discriminator(corrupted, restored), 1.0)
    g_l1 = functional.l1_loss(restored, micrograph)
    g_adam.zero_grad()
    (g_gan + 100 * g_l1).backward()
    g_adam.step()

    terms = {"d_fake": d_fake, "d_real": d_real, "g_gan": g_gan, "g_l1": g_l1}
    return restored.detach(), {name: term.item() for name, term in terms.items()}


def supervised_step(network, optimizer, image, mask):
    """Update the network on binary cross-entropy with logits, in place, and return the loss."""
    loss = functional.binary_cross_entropy_with_logits(network(image), mask)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def parameters(network):
    """Return the number of trained values."""
    return sum(p.numel() for p in network.parameters())


def images(array):
    """Return a tensor [b, c, h, w] from an array [b, h, w, c]."""
    return torch.from_numpy(np.array(array)).movedim(-1, 1)


def pixels(tensor):
    """Return an array [b, h, w, c] from a tensor [b, c, h, w]."""
    return tensor.detach().movedim(1, -1).numpy()


def load(network, params, stats):
    """Copy emjax's flat dicts into `network`, in their precision; every name must match."""
    arrays = torch_state({**params, **stats})
    state = {torch_name(path): array for path, array in arrays.items()}
    own = {name for name in network.state_dict() if not name.endswith("num_batches_tracked")}
    assert own == set(state), own ^ set(state)
    network.to(next(iter(state.values())).dtype).load_state_dict(state, strict=False)
    return network


def torch_state(arrays):
    """Return tensors in torch's layout, under the names of `arrays`."""
    tensors = {path: torch.from_numpy(np.array(array)) for path, array in arrays.items()}
    return {path: a.permute(3, 2, 0, 1) if a.ndim == 4 else a for path, a in tensors.items()}


def torch_name(path):
    *module, leaf = path.split("/")
    names = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
    return ".".join([*module, names.get(leaf, leaf)])


def dump(network, like, *, gradients=False):
    """Return the arrays of `network`, or their gradients, with the names and layout of `like`."""
    held = dict(network.named_parameters())
    held = {name: p.grad for name, p in held.items()} if gradients else network.state_dict()
    arrays = {path: held[torch_name(path)].detach().clone() for path in like}
    return {
        path: (array.permute(2, 3, 1, 0) if array.ndim == 4 else array).numpy()
        for path, array in arrays.items()
    }
