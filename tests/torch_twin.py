"""The networks and one update of each objective in PyTorch, written from the papers, as an oracle.

Nothing here calls emjax. Modules carry the names that emjax's parameter paths have, so that
`down/0/conv1/kernel` is `down.0.conv1.weight` and copying is a rule, not a table. Images are
torch's [b, c, h, w]; `load` and `dump` turn kernels between [h, w, in, out] and [out, in, h, w].
"""

import numpy as np
import torch
from torch import nn
from torch.nn import functional


class ResidualBlock(nn.Module):
    """conv, norm, ReLU, conv, norm, plus a 1x1 projection of the input, ReLU.

    Source: Sytwu et al. 2022 (arXiv 2204.04250); its code has the projection without a norm.
    """

    def __init__(self, before, after, dilation):
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, padding=dilation, dilation=dilation)
        self.norm1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=dilation, dilation=dilation)
        self.norm2 = nn.BatchNorm2d(after)
        self.project = nn.Conv2d(before, after, 1)
        for conv in (self.conv1, self.conv2, self.project):
            nn.init.kaiming_normal_(conv.weight)

    def forward(self, x):
        y = functional.relu(self.norm1(self.conv1(x)))
        return functional.relu(self.norm2(self.conv2(y)) + self.project(x))


class UNet(nn.Module):
    """4, 8, 16 ... channels; one dilation a level, the bottleneck's last; pools of two."""

    def __init__(self, dilations):
        super().__init__()
        *levels, deepest = dilations
        widths = [4 * 2**level for level in range(len(dilations))]
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        before = 1
        for level, dilation in enumerate(levels):
            self.down.append(ResidualBlock(before, widths[level], dilation))
            before = widths[level]
            self.up.append(ResidualBlock(before + widths[level + 1], before, dilation))
        self.bottleneck = ResidualBlock(before, widths[-1], deepest)
        self.head = nn.Conv2d(widths[0], 1, 1)
        self.grow = nn.Upsample(scale_factor=2, mode="nearest")
        self.pool = nn.MaxPool2d(2)

    def forward(self, x):
        skips = []
        for block in self.down:
            skips.append(block(x))
            x = self.pool(skips[-1])
        x = self.bottleneck(x)
        for block in reversed(self.up):
            x = block(torch.cat([skips.pop(), self.grow(x)], 1))
        return self.head(x)


class ReleasedUNet:
    """The U-Net of Sytwu et al. run on their arrays under their names.

    Args:
        tensors: arrays as in the file; those without a gradient are running statistics.
        pools: what each level is reduced by.
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
        """float32 [h, w] of a particle, for float32 [h, w]."""
        with torch.no_grad():
            logits = self(torch.from_numpy(image)[None, None], train=False)
        return torch.softmax(logits, 1)[0, 1].numpy()

    def trained_once(self, image):
        """Output [h, w, 2], {name: gradient or new statistic}, in float64, for [h, w].

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

    def __init__(self, width, depth=3):
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(2, width, 4, 2, 1)])
        self.norms = nn.ModuleList()
        before = width
        for level in range(1, depth + 1):
            after = width * min(2**level, 8)
            stride = 2 if level < depth else 1
            self.convs.append(nn.Conv2d(before, after, 4, stride, 1, bias=False))
            self.norms.append(nn.BatchNorm2d(after))
            before = after
        self.head = nn.Conv2d(before, 1, 4, 1, 1)
        for conv in [*self.convs, self.head]:
            nn.init.normal_(conv.weight, 0, 0.02)
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)
        for norm in self.norms:
            nn.init.normal_(norm.weight, 1, 0.02)

    def forward(self, corrupted, image):
        x = torch.cat([corrupted, image], 1)
        x = functional.leaky_relu(self.convs[0](x), 0.2)
        for conv, norm in zip(self.convs[1:], self.norms, strict=True):
            x = functional.leaky_relu(norm(conv(x)), 0.2)
        return self.head(x)


def adam(network, *, b1):
    """torch's own Adam at the paper's learning rate."""
    return torch.optim.Adam(network.parameters(), lr=2e-4, betas=(b1, 0.999))


def pix2pix_step(generator, discriminator, g_adam, d_adam, corrupted, micrograph):
    """One update of both networks, in place; returns the restored images and the loss terms.

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
    """One update on binary cross-entropy with logits, in place; returns the loss."""
    loss = functional.binary_cross_entropy_with_logits(network(image), mask)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def parameters(network):
    """The number of trained values."""
    return sum(p.numel() for p in network.parameters())


def images(array):
    """A tensor [b, c, h, w] from an array [b, h, w, c]."""
    return torch.from_numpy(np.array(array)).movedim(-1, 1)


def pixels(tensor):
    """An array [b, h, w, c] from a tensor [b, c, h, w]."""
    return tensor.detach().movedim(1, -1).numpy()


def load(network, params, stats):
    """Copy emjax's flat dicts into `network`, whose precision follows; every name must match."""
    state = {}
    for path, array in {**params, **stats}.items():
        array = torch.from_numpy(np.array(array))
        state[torch_name(path)] = array.permute(3, 2, 0, 1) if array.ndim == 4 else array
    own = {name for name in network.state_dict() if not name.endswith("num_batches_tracked")}
    assert own == set(state), own ^ set(state)
    network.to(array.dtype).load_state_dict(state, strict=False)
    return network


def torch_name(path):
    *module, leaf = path.split("/")
    names = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
    return ".".join([*module, names.get(leaf, leaf)])


def dump(network, like, *, gradients=False):
    """What `network` holds (or the gradients) under the names and in the layout of `like`."""
    held = dict(network.named_parameters())
    held = {name: p.grad for name, p in held.items()} if gradients else network.state_dict()
    arrays = {path: held[torch_name(path)].detach().clone() for path in like}
    return {
        path: (array.permute(2, 3, 1, 0) if array.ndim == 4 else array).numpy()
        for path, array in arrays.items()
    }
