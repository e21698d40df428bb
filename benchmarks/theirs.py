"""PyTorch's side: each case as its users write it for speed, with the networks of the tests' twin.

channels_last, fused Adam, bfloat16 by autocast over float32 parameters, cuDNN's benchmark mode, no
gradients that nobody needs, no waiting for the device, DataLoader with a worker a core. `prepare`
gives {variant: function}, the function a Prepared. Nothing here calls emjax.
"""

import functools
import itertools
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, Sampler
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.cases import FILTERS, Case, Prepared, most_memory
from tests import torch_twin as twin

try:
    import cv2

    READER = "cv2"
except ImportError:
    from PIL import Image
    from scipy import ndimage

    READER = "PIL and scipy"

DILATIONS = {"unet_2_44": (1, 1, 1), "unet_4_424": (1, 1, 2, 2, 3)}
CORES = len(os.sched_getaffinity(0))
BLUR, NOISE = (0.1, 2.0), (0.02, 0.15)  # as in configs/pretrain.py


def prepare(case, data, modes=()):
    """{variant: function that gives its Prepared} of a Case.

    Args:
        data: the folder with `files/`, TIFF, and `patches.npy`, the same images in one array.
        modes: of torch.compile, each one more variant.
    """
    torch.set_num_threads(CORES)
    if case.device == "gpu":
        torch.backends.cudnn.benchmark = True
    if case.kind not in KINDS:
        return {}
    return KINDS[case.kind](case, data, modes)


def name_of(mode):
    return {None: "eager", "default": "compiled"}.get(mode, f"compiled, {mode}")


def compilable(build):
    """A kind of case whose variants are eager, and one a mode of torch.compile."""

    def variants(case, data, modes):
        return {
            f"PyTorch, {name_of(mode)}": functools.partial(build, case, data, mode)
            for mode in (None, *modes)
        }

    return variants


class Work:
    """The networks of a case, their optimizers and one update."""

    def __init__(self, case, mode=None):
        self.case, self.mode = case, mode
        self.device = torch.device("cuda" if case.device == "gpu" else "cpu")
        torch.manual_seed(0)
        if case.network in DILATIONS:
            filters = [case.channels * width for width in FILTERS[: len(DILATIONS[case.network])]]
            generator = twin.UNet(DILATIONS[case.network], filters=filters)
        else:
            generator = twin.HRNet(case.network.removeprefix("hrnet_"))
        self.generator, self.g_adam = self.ready(generator)
        if case.objective == "pix2pix":
            self.discriminator, self.d_adam = self.ready(twin.PatchGAN(64))

    def ready(self, network):
        """`network` on the device, perhaps to be compiled, and its optimizer."""
        network = network.to(self.device, memory_format=torch.channels_last)
        b1 = 0.5 if self.case.objective == "pix2pix" else 0.9
        adam = torch.optim.Adam(network.parameters(), lr=2e-4, betas=(b1, 0.999), fused=True)
        if self.mode:
            network = torch.compile(network, mode=self.mode)
        return network, adam

    def autocast(self):
        return torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.case.precision == "bfloat16"
        )

    def random(self, channels=1):
        case = self.case
        shape = case.batch, channels, case.side, case.side
        images = 2 * torch.rand(shape, device=self.device) - 1
        return images.to(memory_format=torch.channels_last)

    def update(self, corrupted, target):
        """One update; returns the loss on the device: L1 of Pix2Pix, or the task's."""
        if self.mode in ("reduce-overhead", "max-autotune"):
            torch.compiler.cudagraph_mark_step_begin()
        if self.case.objective != "pix2pix":
            return self.supervised(corrupted, target)
        g, d = self.generator, self.discriminator
        d.requires_grad_(True)
        with self.autocast():
            restored = g(corrupted)
            on_fake, on_real = d(corrupted, restored.detach()), d(corrupted, target)
            loss = 0.5 * (distance(on_fake, 0.0) + distance(on_real, 1.0))
        self.d_adam.zero_grad()
        loss.backward()
        self.d_adam.step()
        d.requires_grad_(False)
        with self.autocast():
            l1 = functional.l1_loss(restored, target)
            loss = distance(d(corrupted, restored), 1.0) + 100 * l1
        self.g_adam.zero_grad()
        loss.backward()
        self.g_adam.step()
        return l1.detach()

    def supervised(self, image, target):
        with self.autocast():
            output = self.generator(image)
            if self.case.objective == "segmentation":
                loss = functional.binary_cross_entropy_with_logits(output, target)
            else:
                loss = functional.l1_loss(output, target) + functional.mse_loss(output, target)
        self.g_adam.zero_grad()
        loss.backward()
        self.g_adam.step()
        return loss.detach()

    def wait(self):
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def repeated(self, function, images, *, flops=True):
        """A Prepared of `function()`, run again and again; its last result is the loss."""
        last = [torch.zeros(())]

        def run(steps):
            for _ in range(steps):
                last[0] = function()
            self.wait()

        def facts():
            found = {"loss": float(last[0].float().mean())}
            if flops and not self.mode:
                with FlopCounterMode(display=False) as counter:
                    function()
                found["flops"] = counter.get_total_flops()
            return found

        return Prepared(run, images, facts=facts)


def distance(scores, truth):
    return functional.mse_loss(scores, torch.full_like(scores, truth))


@compilable
def step(case, data, mode):
    works = [Work(case, mode) for _ in range(case.seeds)]
    image, target = works[0].random(), works[0].random()
    if case.objective == "segmentation":
        target = (target > 0).float()

    def updates():
        for work in works:
            loss = work.update(image, target)
        return loss

    return works[0].repeated(updates, case.seeds * case.batch)


@compilable
def generator(case, data, mode):
    work = Work(case, mode)
    return backwards(work, work.generator, [work.random()])


@compilable
def discriminator(case, data, mode):
    work = Work(case, mode)
    return backwards(work, work.discriminator, [work.random(), work.random()])


def backwards(work, network, images):
    def function():
        network.zero_grad()
        with work.autocast():
            loss = distance(network(*images), 1.0)
        loss.backward()
        return loss.detach()

    return work.repeated(function, work.case.batch)


@compilable
def forward(case, data, mode):
    work = Work(case, mode)
    work.generator.eval()
    image = work.random()

    def function():
        with torch.inference_mode(), work.autocast():
            return work.generator(image)

    return work.repeated(function, case.batch)


def predict(case, data, modes):
    """A micrograph in host memory to a probability there: whole, or in tiles that overlap."""

    def prepared(side, mode=None):
        work = Work(case, mode)
        network = work.generator.eval()
        image = np.random.default_rng(0).integers(0, 256, (case.side, case.side), np.uint8)

        def of(x):
            return torch.sigmoid(network(x.contiguous(memory_format=torch.channels_last)))

        def function():
            with torch.inference_mode(), work.autocast():
                x = torch.from_numpy(image).to(work.device).float()
                x = (x / 127.5 - 1).clamp(-1, 1)[None, None]
                return (of(x) if side >= case.side else tiled(of, x, side)).cpu().numpy()

        def run(steps):
            for _ in range(steps):
                function()

        return Prepared(run, facts=most_memory)

    variants = {"PyTorch, in tiles": functools.partial(prepared, min(1024, case.side // 2))}
    if case.name.startswith("growth"):
        return variants
    variants = {"PyTorch, whole": functools.partial(prepared, case.side), **variants}
    for mode in modes:
        variants[f"PyTorch, whole, {name_of(mode)}"] = functools.partial(prepared, case.side, mode)
    return variants


def tiled(function, x, side):
    """`function` on tiles, of which the middle is kept; those at borders are moved inwards."""
    result = torch.empty_like(x)
    (h, w), overlap = x.shape[-2:], min(64, side // 4)
    pitch = side - 2 * overlap
    for top, left in itertools.product(range(0, h, pitch), range(0, w, pitch)):
        y, z = (min(max(at - overlap, 0), size - side) for at, size in ((top, h), (left, w)))
        tile = function(x[..., y : y + side, z : z + side])
        kept = tile[..., top - y : top - y + pitch, left - z : left - z + pitch]
        result[..., top : top + pitch, left : left + pitch] = kept
    return result


class Patches(Dataset):
    """The images of a folder of TIFF files, or of one array on disk that is mapped into memory.

    Args:
        view: what a worker does to an image; by default nothing.
    """

    def __init__(self, data, *, files, side, view=None):
        self.files = sorted(Path(data, "files").glob("*.tif")) if files else None
        self.array = None if files else np.load(Path(data, "patches.npy"), mmap_mode="r")
        self.side, self.view = side, view

    def __len__(self):
        return len(self.files or self.array)

    def __getitem__(self, place):
        image = self.read(place)
        y, x = (torch.randint(size - self.side + 1, ()).item() for size in image.shape)
        image = image[y : y + self.side, x : x + self.side]
        return self.view(image) if self.view else torch.from_numpy(np.array(image)[None])

    def read(self, place):
        if not self.files:
            return self.array[place]
        if READER == "cv2":
            return cv2.imread(str(self.files[place]), cv2.IMREAD_GRAYSCALE)
        return np.asarray(Image.open(self.files[place]))


class Shuffled(Sampler):
    """Batches of places without end; every pass over the images has another order."""

    def __init__(self, count, batch):
        self.count, self.batch = count, batch

    def __iter__(self):
        places = itertools.chain.from_iterable(
            torch.randperm(self.count).tolist() for _ in itertools.count()
        )
        while True:
            yield [*itertools.islice(places, self.batch)]


def corrupted_pair(image):
    """([1, h, w] corrupted, [1, h, w] as it is) in [-1, 1], turned alike: what a worker does."""
    up, left, across, blurred = torch.rand(4) < 0.5
    image = image[:: -1 if up else 1, :: -1 if left else 1]
    image = np.ascontiguousarray(image.T if across else image, np.float32) * (2 / 255) - 1
    noisy = image
    if blurred:
        sigma = float(torch.empty(()).uniform_(*BLUR))
        if READER == "cv2":
            noisy = cv2.GaussianBlur(image, (0, 0), sigma)
        else:
            noisy = ndimage.gaussian_filter(image, sigma, mode="mirror")
    amplitude = float(torch.empty(()).uniform_(*NOISE))
    noisy = torch.from_numpy(noisy) + 2 * amplitude * torch.randn(image.shape)
    return noisy[None], torch.from_numpy(image)[None]


def corrupted_batch(images):
    """The same of uint8 [b, 1, h, w] on its device, all at once."""
    b, device = len(images), images.device
    x = images.float() * (2 / 255) - 1
    for turned in (lambda x: x.flip(2), lambda x: x.flip(3), lambda x: x.transpose(2, 3)):
        x = torch.where(torch.rand(b, 1, 1, 1, device=device) < 0.5, turned(x), x)
    radius = math.ceil(4 * BLUR[1])
    sigma = torch.empty(b, 1, device=device).uniform_(*BLUR)
    weights = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, device=device) / sigma) ** 2)
    weights = (weights / weights.sum(1, keepdim=True))[:, None, :, None]
    wide = functional.pad(x, 4 * [radius], mode="reflect").movedim(0, 1)  # an image a channel
    rows = functional.conv2d(wide, weights, groups=b)
    blurred = functional.conv2d(rows, weights.transpose(2, 3), groups=b).movedim(0, 1)
    noisy = torch.where(torch.rand(b, 1, 1, 1, device=device) < 0.5, blurred, x)
    amplitude = torch.empty(b, 1, 1, 1, device=device).uniform_(*NOISE)
    return noisy + 2 * amplitude * torch.randn_like(x), x


class Reader:
    """Batches on the device, out of a DataLoader with a worker a core.

    Args:
        views: corrupted pairs, made by "workers" or on the "device", or "none": images as stored.
    """

    def __init__(self, case, data, *, files, views):
        work = {"workers": corrupted_pair}.get(views)
        patches = Patches(data, files=files, side=case.side, view=work)
        self.device = torch.device("cuda" if case.device == "gpu" else "cpu")
        self.on_device = views == "device"
        self.loader = DataLoader(
            patches,
            batch_sampler=Shuffled(len(patches), case.batch),
            num_workers=CORES,
            pin_memory=case.device == "gpu",
        )
        self.lead = self.loader.prefetch_factor * CORES + 1

    def __iter__(self):
        for batch in self.loader:
            if torch.is_tensor(batch):
                batch = [batch]
            batch = [x.to(self.device, non_blocking=True) for x in batch]
            if self.on_device:
                batch = corrupted_batch(*batch)
            yield [x.to(memory_format=torch.channels_last) for x in batch]


WAYS = {  # how users hold and corrupt their images
    "files": dict(files=True, views="workers"),
    "one array": dict(files=False, views="workers"),
    "one array, corrupted on the device": dict(files=False, views="device"),
}


def read(case, data, modes, *, augmented=False):
    def prepared(way):
        reader = Reader(case, data, **way)
        batches = iter(reader)

        def run(steps):
            for _ in range(steps):
                next(batches)
            if case.device == "gpu":
                torch.cuda.synchronize()

        return Prepared(run, case.batch, lead=reader.lead)

    ways = WAYS if augmented else {
        name: dict(WAYS[name], views="none") for name in ("files", "one array")
    }  # fmt: skip
    return {f"PyTorch, {name}": functools.partial(prepared, way) for name, way in ways.items()}


def end_to_end(case, data, modes):
    """Images on disk to updates, compiled where that is asked for: by the first mode."""
    mode = modes[0] if modes else None

    @functools.cache
    def shared():
        return Work(case, mode)

    def prepared(way):
        work, reader = shared(), Reader(case, data, **way)
        batches = iter(reader)
        found = work.repeated(lambda: work.update(*next(batches)), case.batch, flops=False)
        return found._replace(lead=reader.lead)

    return {
        f"PyTorch, {name_of(mode)}, {name}": functools.partial(prepared, way)
        for name, way in WAYS.items()
    }


def startup(case, data, modes):
    """Of this file as a program: from the start of its process to its first finished update."""

    def started(mode, cache):
        line = [sys.executable, "-m", "benchmarks.theirs", json.dumps(vars(case)), data, mode or ""]
        environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(cache)}
        subprocess.run(line, env=environment, check=True, stdout=subprocess.DEVNULL)

    def cached(mode=None):
        cache = tempfile.mkdtemp(dir=data)
        started(mode, cache)
        return Prepared(lambda steps: started(mode, cache), steps=1)

    def cold(mode):
        def run(steps):
            with tempfile.TemporaryDirectory(dir=data) as folder:
                started(mode, folder)

        return Prepared(run, steps=1)

    variants = {"PyTorch, eager": cached}
    for mode in modes:
        variants[f"PyTorch, {name_of(mode)}"] = functools.partial(cached, mode)
        variants[f"PyTorch, {name_of(mode)}, cold"] = functools.partial(cold, mode)
    return variants


def first_update(case, data, mode):
    """What `startup` times."""
    work = Work(case, mode or None)
    batches = iter(Reader(case, data, **WAYS["files"]))
    loss = work.update(*next(batches)).item()
    print(f"first update: L1 {loss:.4f}", flush=True)
    os._exit(0)  # without waiting for the workers


def product(case, data, modes):
    def prepared():
        device = "cuda" if case.device == "gpu" else "cpu"
        a = torch.randn(case.side, case.side, device=device).to(getattr(torch, case.precision))

        def run(steps):
            for _ in range(steps):
                a @ a
            if device == "cuda":
                torch.cuda.synchronize()

        facts = {
            "machine": torch.cuda.get_device_name() if device == "cuda" else "CPU",
            "versions": {"torch": torch.__version__, "reading": READER},
        }
        return Prepared(run, facts=lambda: {"flops": 2 * case.side**3, **facts})

    return {"PyTorch, eager": prepared}


def copy(case, data, modes):
    def prepared():
        device = "cuda" if case.device == "gpu" else "cpu"
        x = torch.zeros(case.side * 2**18, device=device)

        def run(steps):
            for _ in range(steps):
                x.add_(1)
            if device == "cuda":
                torch.cuda.synchronize()

        return Prepared(run, facts=lambda: {"bytes": 2 * case.side * 2**20})

    return {"PyTorch, eager": prepared}


KINDS = {
    "step": step,
    "generator": generator,
    "discriminator": discriminator,
    "forward": forward,
    "predict": predict,
    "read": read,
    "read_augmented": functools.partial(read, augmented=True),
    "end_to_end": end_to_end,
    "startup": startup,
    "product": product,
    "copy": copy,
}

if __name__ == "__main__":
    first_update(Case(**json.loads(sys.argv[1])), sys.argv[2], sys.argv[3])
