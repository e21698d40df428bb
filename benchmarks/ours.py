"""emjax's side: each case made of the objects that its runs are made of.

`prepare(case, data)` gives {variant: function}, the function a Prepared; the first is the one that
all others are compared with. `data` is the folder of the records.
"""

import dataclasses
import functools
import importlib.metadata
import importlib.util
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from copy import copy as duplicate
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.cases import FILTERS, Prepared, most_memory
from configs import pretrain, restore_temimagenet, segment_au
from emjax.data.augment import Augmentation
from emjax.data.batches import TrainBatches
from emjax.data.normalise import row_keys, to_network
from emjax.data.records import Records, open_mixture
from emjax.inference.engines import ENGINES, default_engine
from emjax.inference.predictor import Predictor
from emjax.metrics import losses
from emjax.micrographs import from_range
from emjax.models import saved
from emjax.models.build import build_abstract
from emjax.models.cost import operations
from emjax.models.formulation import PLAIN, Formulation, formulated, formulation
from emjax.models.network import flat_arrays
from emjax.parallel import devices, sharding
from emjax.training.assemble import build_objective
from emjax.training.timing import StepTimer

TARGETS = {"pix2pix": {}, "segmentation": {"mask": 2}, "denoise": {"denoised": 256}}
TRAINS = ("step", "devices", "end_to_end")  # kinds of cases that run as a training does
PREFETCHED = 5  # batches that TrainBatches reads ahead, and the one in hand
RECORDS = "simulated/unlabelled"
BLOCKS = Formulation(blocked=True, strided=True, products=True)  # what may help a GPU, too


def prepare(case, data):
    """{variant: function that gives its Prepared} of a Case."""
    if case.kind == "devices":
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", case.devices)
    if case.kind in TRAINS:
        devices.keep_memory()
    devices.keep_compiled()
    return KINDS[case.kind](case, data)


def config_of(case):
    """The recipe of the case's objective with its sizes."""
    if case.objective == "pix2pix":
        config = pretrain.get_config(case.network)
    elif case.objective == "segmentation":
        config = segment_au.get_config(case.network)
    else:
        config = restore_temimagenet.get_config(f"{case.objective},{case.network}")
    config.data.batch_size = case.batch
    config.augment.crop = case.side
    config.precision = case.precision
    if case.channels > 1:
        config.model.filters = tuple(case.channels * width for width in FILTERS)
    return config


def random_batch(case, mesh):
    """A fixed batch of random images and targets on the devices."""
    rng = np.random.default_rng(0)
    shape = (case.batch, case.side, case.side, 1)
    arrays = {"image": 256, **TARGETS[case.objective]}
    batch = {name: rng.integers(0, top, shape, np.uint8) for name, top in arrays.items()}
    batch["intensity_range"] = np.float32([[0, 255]] * case.batch)
    batch["index"] = np.arange(case.batch, dtype=np.int32)
    return sharding.to_devices(batch, mesh)


def objective_of(case, mixture=None):
    """The objective as a run has it; without `mixture`, as it takes ready images.

    Then nothing is turned, cropped or noised, and corrupting is a product, as the step of the other
    side gets its images ready.
    """
    config = config_of(case)
    divisor = build_abstract(config.model.to_dict()).divisor
    if mixture:
        return build_objective(config, mixture, divisor)
    card = {"name": "random", "targets": [*TARGETS[case.objective]]}
    image = np.zeros((case.side, case.side, 1), np.uint8)
    objective = build_objective(config, [Records([{"image": image}], card)], divisor)
    ready = {"augment": Augmentation(turns=False)}
    if case.objective == "pix2pix":
        ready["corrupt"] = lambda keys, images: 0.9 * images
    return dataclasses.replace(objective, **ready)


class Training:
    """An objective's jitted update and its state, as the loop has them."""

    def __init__(self, objective, mesh, seeds=1, rows=lambda batch: batch):
        everywhere = sharding.replicated(mesh)
        self.objective, self.mesh, self.terms = objective, mesh, {}
        train_step = objective.train_step
        if seeds == 1:
            state = objective.init(0)
        else:
            states = [objective.init(seed) for seed in range(seeds)]
            state = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
            train_step = jax.vmap(train_step)

        def update(state, batch):
            return train_step(state, rows(batch))

        self.state = sharding.place_state(state, mesh)
        options = devices.supported_options()
        self.step = jax.jit(
            update, donate_argnums=0, out_shardings=everywhere, compiler_options=options
        )

    def again(self):
        """The same update with a state of its own."""
        other = duplicate(self)
        other.state = sharding.place_state(self.objective.init(1), self.mesh)
        return other

    def run(self, batches, steps):
        """As `train.fit` does: the loop hands updates over, a thread waits for each."""
        timer = StepTimer()
        for step in range(steps):
            batch = timer.read(batches, step)
            self.state, self.terms = self.step(self.state, batch)
            timer.stepped(step, self.terms)
        self.pace = timer.row()
        jax.block_until_ready(self.state)

    def on(self, batch):
        """A Prepared of updates on one batch."""
        forever = iter(lambda: batch, None)
        images = math.prod(batch["image"].shape[:-3])
        return Prepared(
            functools.partial(self.run, forever),
            images,
            facts=lambda: {**loss_of(self.terms), **cost(self.step, self.state, batch)},
        )


def loss_of(terms):
    return {"loss": float(jnp.mean(terms["g_l1" if "g_l1" in terms else "loss"]))}


def cost(function, *arguments):
    """{"flops", "bytes"} of a call: counted in the traced program, and by XLA in the compiled."""
    analysis = function.lower(*arguments).compile().cost_analysis() or {}
    counted = operations(function.trace(*arguments).jaxpr)
    return {"flops": counted, "bytes": analysis.get("bytes accessed", 0)}


def repeated(function, *arguments, images=1):
    """A Prepared of a jitted function that is called again and again."""

    def run(steps):
        for _ in range(steps):
            result = function(*arguments)
        jax.block_until_ready(result)

    return Prepared(run, images, facts=lambda: cost(function, *arguments))


def step(case, data):
    """As a run does it, and in the formulation of its layers that this backend does not take."""

    def prepared(way):
        mesh = sharding.data_mesh()
        batch = random_batch(case, mesh)
        if case.seeds > 1:
            batch = {name: jnp.stack([rows] * case.seeds) for name, rows in batch.items()}
        with formulated(way):
            found = Training(objective_of(case), mesh, case.seeds).on(batch)
            found.run(1)  # traces it
        return found

    return in_every_way(case, prepared)


def in_every_way(case, prepared):
    """{variant: `prepared` of a formulation}: that of runs, and the other one beside it."""
    ways = {"emjax": formulation()}
    if not case.name.startswith("growth"):
        other, way = (
            ("emjax, plain", PLAIN) if formulation() != PLAIN else ("emjax, in blocks", BLOCKS)
        )
        ways[other] = way
    return {name: functools.partial(prepared, way) for name, way in ways.items()}


def virtual(case, data):
    """Always as many updates, so that the losses can be compared."""

    def prepared():
        found = step(case, data)["emjax"]()
        found.run(5)
        return found._replace(steps=1)

    return {"emjax": prepared}


def generator(case, data, *, train=True, part="generator"):
    """Forward and backward of one network, or forward with running statistics."""

    def prepared(way):
        mesh = sharding.data_mesh()
        objective = objective_of(case)
        network = sharding.place_state(getattr(objective.init(0), part), mesh)
        image = jax.jit(to_network)(random_batch(case, mesh))["image"]
        images = [image] * (2 if part == "discriminator" else 1)

        def loss(params, images):
            output, stats = network.apply(params, network.stats, *images, train=True)
            return losses.adversarial(output, real=True), stats

        if train:
            options = devices.supported_options()
            function = jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=options)
        else:
            function = jax.jit(lambda params, images: network.apply(
                params, network.stats, *images, train=False)[0])  # fmt: skip
        found = repeated(function, network.params, images, images=case.batch)
        with formulated(way):
            found.run(1)  # traces it
        return found

    return in_every_way(case, prepared)


def predict(case, data):
    """The predictor in each of its engines, and the libraries themselves on the whole image."""
    image = np.random.default_rng(0).integers(0, 256, (case.side, case.side), np.uint8)

    def prepared(engine, *, tiled=True):
        objective = objective_of(dataclasses.replace(case, side=512))
        facts = dict(model=objective.generator, task="segmentation", range_rule="fixed")
        with tempfile.TemporaryDirectory() as folder:
            saved.write(folder, objective.init(0).generator, facts)
            predictor = Predictor(folder, engine=engine)

        def run(steps):
            for _ in range(steps):
                if tiled:
                    predictor(image, (0.0, 255.0))
                else:
                    predictor.apply(from_range(image, (0, 255))[None, ..., None])

        return Prepared(run, facts=most_memory)

    first = default_engine()
    ways = {"emjax": functools.partial(prepared, first)}
    if case.device == "cpu" and not case.name.startswith("growth"):
        others = ENGINES if importlib.util.find_spec("onnx") else ["jax"]
        installed = [name for name in others if importlib.util.find_spec(name)]
        for engine in installed:
            if engine != first:
                ways[f"emjax, {engine}"] = functools.partial(prepared, engine)
            if engine != "jax":
                ways[f"{engine}, whole"] = functools.partial(prepared, engine, tiled=False)
    return ways


def batches_of(case, data, resident=False):
    mixture = open_mixture(Path(data) / "records", (RECORDS, "train"))
    mesh = sharding.data_mesh()
    options = dict(batch_size=case.batch, seed=0, mesh=mesh, resident=resident)
    return mixture, TrainBatches(mixture, **options)


def read(case, data, *, augmented=False):
    """Batches on the device; `augmented`: and what a step does to them before the networks."""

    def prepared():
        mixture, batches = batches_of(case, data)
        objective, reader = objective_of(case, mixture), batches.starting_at(0)

        @jax.jit
        def views(batch):
            keys = row_keys(jax.random.key(0), case.batch)
            micrograph = objective.augment(keys, to_network(batch))["image"]
            return objective.corrupt(keys, micrograph), micrograph

        def run(steps):
            for _ in range(steps):
                result = next(reader)
                if augmented:
                    result = views(result)
            jax.block_until_ready(result)

        return Prepared(run, case.batch, lead=PREFETCHED)

    return {"emjax": prepared}


def end_to_end(case, data):
    """Records to updates, read from disk or resident; beside them updates on one batch that stays.

    On a GPU the first is what a run does by default: such few records are resident.
    """

    @functools.cache
    def training(resident):
        mixture, batches = batches_of(case, data, resident)
        training = Training(objective_of(case, mixture), batches.mesh, rows=batches.rows)
        return training, batches.starting_at(0)

    def prepared(resident):
        trained, reader = training(resident)
        return Prepared(
            functools.partial(trained.run, reader),
            case.batch,
            lead=PREFETCHED,
            facts=lambda: {**loss_of(trained.terms), "data_wait": trained.pace["pace/data_wait"]},
        )

    def fixed():
        trained, reader = training(False)
        return trained.again().on(next(reader))

    here = jax.default_backend() != "cpu"
    ways = {True: "emjax, resident", False: "emjax, streaming"}
    return {
        "emjax": functools.partial(prepared, here),
        ways[not here]: functools.partial(prepared, not here),
        "emjax, one fixed batch": fixed,
    }


def convolutions(case):
    """How many kernels the network of a case has."""
    params, _ = flat_arrays(build_abstract(config_of(case).model.to_dict()))
    return sum(array.ndim == 4 for array in params.values())


def startup(case, data):
    """A run of emjax.main from the start of its process to the first report, after one step."""
    cache = Path(tempfile.mkdtemp(dir=data))

    def started(folder):
        """The seconds until metrics.jsonl has a row, which is when the first step has ended."""
        workdir = Path(tempfile.mkdtemp(dir=data))
        line = [
            *(sys.executable, "-m", "emjax.main", f"--config=configs/pretrain.py:{case.network}"),
            *(f"--workdir={workdir}", "--config.log_every=1"),
            f"--config.precision={case.precision}",
            *(f"--config.data.dir={data}/records", f"--config.data.batch_size={case.batch}"),
            *(f"--config.data.train=('{RECORDS}','train')", f"--config.augment.crop={case.side}"),
            f"--config.data.evals.val=('{RECORDS}','val')",
        ]  # fmt: skip
        environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(folder)}
        rows = workdir / "metrics.jsonl"
        process = subprocess.Popen(line, env=environment, stdout=subprocess.DEVNULL)
        try:
            while not (rows.exists() and rows.read_text().endswith("\n")):
                if process.poll() is not None:
                    raise RuntimeError(f"{' '.join(line)} ended with {process.returncode}")
                time.sleep(0.01)
            loss = json.loads(rows.read_text().splitlines()[0])["train/g_l1"]
        finally:
            process.kill()
            process.wait()
            shutil.rmtree(workdir)
        return loss

    def cached():
        losses = [started(cache)]
        return Prepared(
            lambda steps: losses.append(started(cache)),
            steps=1,
            facts=lambda: {"loss": losses[-1], "convolutions": convolutions(case)},
        )

    def cold():
        def run(steps):
            with tempfile.TemporaryDirectory(dir=data) as folder:
                started(folder)

        return Prepared(run, steps=1)

    return {"emjax": cached, "emjax, cold": cold}


def product(case, data):
    def prepared():
        a = jax.random.normal(jax.random.key(0), (case.side, case.side), case.precision)
        found = repeated(jax.jit(jnp.matmul), a, a)
        facts = {
            "machine": sharding.devices_in_use(),
            "versions": {name: importlib.metadata.version(name) for name in ("jax", "flax")},
        }
        return found._replace(facts=lambda: {"flops": 2 * case.side**3, **facts})

    return {"emjax": prepared}


def copy(case, data):
    """Every value of an array is read and written, in its place."""

    def prepared():
        state = [jnp.zeros(case.side * 2**18, jnp.float32)]
        add = jax.jit(lambda x: x + 1, donate_argnums=0)

        def run(steps):
            for _ in range(steps):
                state[0] = add(state[0])
            jax.block_until_ready(state)

        return Prepared(run, facts=lambda: {"bytes": 2 * case.side * 2**20})

    return {"emjax": prepared}


KINDS = {
    "step": step,
    "devices": virtual,
    "generator": generator,
    "discriminator": functools.partial(generator, part="discriminator"),
    "forward": functools.partial(generator, train=False),
    "predict": predict,
    "read": read,
    "read_augmented": functools.partial(read, augmented=True),
    "end_to_end": end_to_end,
    "startup": startup,
    "product": product,
    "copy": copy,
}
