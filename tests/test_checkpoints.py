"""States on disk: exact, the latest two and the best kept, found again; never a broken one."""

import contextlib
import gc
import hashlib
import resource
import shutil
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import optax
import pytest
from flax import struct

from emjax.data.batches import TrainBatches
from emjax.data.records import open_records
from emjax.errors import InputError
from emjax.models.build import create
from emjax.models.network import Network
from emjax.parallel import sharding
from emjax.runs.checkpoints import (
    Checkpoints,
    LiteralPath,
    NotReadBack,
    OrbaxWarnings,
    load_generator,
    names_of,
    read_back,
    saved_steps,
)
from emjax.runs.manifests import fault


class State(struct.PyTreeNode):
    step: jax.Array
    key: jax.Array
    generator: Network


def make_state():
    unet = dict(name="unet", blocks=2, receptive_field=44)
    return State(
        step=np.int32(0),
        key=jax.random.key(3),
        generator=create(unet, optax.adam(1e-3), key=jax.random.key(0)),
    )


@pytest.fixture(scope="module")
def state():
    return jax.device_put(make_state(), sharding.replicated(sharding.data_mesh()))


def notes(caplog):
    """Return the notes since the last call, one per line."""
    lines = "\n".join(caplog.messages)
    caplog.clear()
    return lines


def open_folder(folder):
    return Checkpoints(folder, score="val/l1", higher_is_better=False)


def raw(tree):
    tree = tree.replace(key=jax.random.key_data(tree.key))
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def digest(state):
    """A digest of every array but the step."""
    return hashlib.sha256(b"".join(raw(state.replace(step=state.step * 0)))).hexdigest()


def test_latest_two_and_best_are_kept(state, tmp_path):
    checkpoints = open_folder(tmp_path)
    assert checkpoints.restore(state) is state
    for step, l1 in enumerate([0.9, 0.2, None, 0.5, float("nan"), 0.4, None], start=1):
        scores = None if l1 is None else {"val/l1": l1}
        if scores:
            assert checkpoints.is_best(scores) == (step <= 2)
        checkpoints.save(step, state.replace(step=state.step + step), scores)
    checkpoints.wait()
    assert sorted(int(p.name) for p in tmp_path.iterdir() if p.name.isdigit()) == [2, 6, 7]
    again = open_folder(tmp_path)
    assert int(again.restore(state).step) == 7
    assert not again.is_best({"val/l1": 0.3}) and again.is_best({"val/l1": 0.1})


def test_what_is_restored_is_what_was_saved_although_training_went_on(state, tmp_path):
    """The step donates its input while the write may still be under way."""
    checkpoints = open_folder(tmp_path)
    train = jax.jit(lambda s: jax.tree.map(lambda leaf: leaf * 2, s.generator), donate_argnums=0)
    mine = jax.tree.map(lambda leaf: leaf.copy(), state)
    saved = raw(mine)
    checkpoints.save(1, mine)
    for _ in range(20):
        mine = mine.replace(generator=train(mine))
        mine = mine.replace(step=state.step.copy(), key=state.key.copy())
    checkpoints.wait()
    assert raw(open_folder(tmp_path).restore(state)) == saved != raw(mine)


def test_generator_is_loaded_alone_by_best_last_or_number(state, tmp_path):
    checkpoints = open_folder(tmp_path)
    for step, l1 in enumerate([0.9, 0.2, 0.5, 0.4], start=1):
        generator = state.generator
        stats = {path: value * 0 + step for path, value in generator.stats.items()}
        moved = state.replace(generator=generator.replace(stats=stats))
        checkpoints.save(step, moved, {"val/l1": l1})
    checkpoints.wait()
    for wanted, step in (("best", 2), ("last", 4), ("3", 3), (3, 3)):
        params, stats = load_generator(tmp_path, wanted, score="val/l1", higher_is_better=False)
        assert set(params) == set(state.generator.params)
        np.testing.assert_array_equal(params["head/kernel"], state.generator.params["head/kernel"])
        assert (stats["down/0/norm1/mean"] == step).all()
    with pytest.raises(InputError, match="no good checkpoint '1'; there are: 2, 3, 4, last, best"):
        load_generator(tmp_path, "1", score="val/l1", higher_is_better=False)
    with pytest.raises(InputError, match="no good checkpoint 'best'; there are: none"):
        load_generator(tmp_path / "no", "best", score="val/l1", higher_is_better=False)


@pytest.fixture(scope="module")
def three(state, tmp_path_factory):
    """A folder with the steps 1 (the best), 2 and 3; a step's statistics are its number."""
    folder = tmp_path_factory.mktemp("three")
    checkpoints = open_folder(folder)
    for step, l1 in enumerate([0.1, 0.3, 0.2], start=1):
        generator = state.generator
        stats = {path: value * 0 + step for path, value in generator.stats.items()}
        moved = state.replace(generator=generator.replace(stats=stats), step=state.step + step)
        checkpoints.save(step, moved, {"val/l1": l1})
    checkpoints.close()
    return folder


def flip(path, at=None):
    """Change one bit of a file, in the middle if no byte is named."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if at is None else at] ^= 4
    path.write_bytes(content)


def test_a_flipped_bit_in_any_file_is_found_and_the_one_before_is_used(
    state, three, tmp_path, caplog
):
    files = [path.relative_to(three) for path in (three / "3").rglob("*") if path.is_file()]
    assert len(files) > 10
    for name in files:
        folder = shutil.copytree(three, tmp_path / "one")
        for at in (0, None, -1):
            flip(folder / name, at)
            # A line break in a manifest may become another character that JSON skips or refuses.
            assert fault(folder / "3"), (name, at)
            shutil.copy(three / name, folder / name)
        assert not fault(folder / "3")
        shutil.rmtree(folder)

    folder = shutil.copytree(three, tmp_path / "one")
    payload = max((folder / "3").rglob("*"), key=lambda path: path.stat().st_size)
    flip(payload)
    checkpoints = open_folder(folder)
    restored = checkpoints.restore(state)
    assert int(restored.step) == 2
    text = notes(caplog)
    assert (
        f"{folder}/3: cannot be used: {payload.relative_to(folder / '3')} differs from what was"
        in text
    )
    assert f"{folder}/2 is used instead" in text
    checkpoints.save(3, restored)  # its step can be saved again
    checkpoints.close()
    assert saved_steps(folder) == [1, 2, 3] and not fault(folder / "3")


def test_an_unfinished_save_is_not_used(state, three, tmp_path, caplog):
    folder = shutil.copytree(three, tmp_path / "one")
    (folder / "3" / "manifest.0-of-1.json").unlink()
    assert saved_steps(folder) == [1, 2]
    params, stats = load_generator(folder, "last", score="val/l1", higher_is_better=False)
    assert (stats["down/0/norm1/mean"] == 2).all()
    line = f"{folder}/3: cannot be used: its save was not completed; {folder}/2 is used instead"
    assert line in notes(caplog)
    assert int(open_folder(folder).restore(state).step) == 2
    assert line in notes(caplog) and not (folder / "3").exists()

    # Killed in the first save: it starts from step 0.
    shutil.rmtree(folder / "1")
    (folder / "2" / "manifest.0-of-1.json").unlink()
    assert open_folder(folder).restore(state) is state
    assert (
        f"{folder}/2: cannot be used: its save was not completed; the run starts from step 0"
        in (notes(caplog))
    )


@pytest.fixture
def filling(tmp_path):
    """(a folder, a context in which almost nothing more can be written there).

    A disk of 4 MB; where none can be mounted, a limit of the system on the sizes of files.
    """
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    mounted = shutil.which("mount") and not subprocess.run(mount, capture_output=True).returncode

    @contextlib.contextmanager
    def full():
        filler = folder / "filler"
        with pytest.raises(OSError, match="No space left"), filler.open("wb", 0) as file:
            while True:
                file.write(bytes(4096))
        yield
        filler.unlink()

    @contextlib.contextmanager
    def limited():
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    yield folder, full if mounted else limited
    if mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


# Orbax's own writes that fail after its event loop is closed: raised in threads, caught nowhere.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_full_disk_leaves_the_last_good_checkpoint(state, filling):
    folder, full = filling
    folder = folder / "checkpoints"
    checkpoints = open_folder(folder)
    checkpoints.save(1, state.replace(step=state.step + 1))
    checkpoints.wait()
    with (
        full(),
        pytest.raises(InputError, match="a checkpoint cannot be saved: .*last good one is step 1"),
    ):
        checkpoints.save(2, state)
        checkpoints.wait()
    checkpoints = open_folder(folder)
    restored = checkpoints.restore(state)
    assert int(restored.step) == 1 and digest(restored) == digest(state)
    checkpoints.save(2, state.replace(step=state.step + 2))
    checkpoints.close()
    assert saved_steps(folder) == [1, 2] and not fault(folder / "1") and not fault(folder / "2")


def test_what_a_failed_save_has_left_is_replaced(state, tmp_path):
    checkpoints = open_folder(tmp_path)
    checkpoints.save(1, state)
    checkpoints.wait()
    (tmp_path / "2.orbax-checkpoint-tmp").mkdir()
    checkpoints.save(2, state.replace(step=state.step + 1))
    checkpoints.close()
    assert saved_steps(tmp_path) == [1, 2] and not fault(tmp_path / "2")


def test_transfer_falls_back_too(three, tmp_path, caplog):
    def loaded(step):
        _, stats = load_generator(folder, step, score="val/l1", higher_is_better=False)
        return int(stats["down/0/norm1/mean"][0])

    folder = shutil.copytree(three, tmp_path / "one")
    assert (loaded("best"), loaded("last")) == (1, 3) and not notes(caplog)
    flip(folder / "1" / "metrics" / "metrics")
    assert (loaded("best"), loaded("last")) == (3, 3)
    text = notes(caplog)
    assert f"{folder}/1: cannot be used: metrics/metrics differs" in text
    assert f"{folder}/3 is used instead" in text
    with pytest.raises(
        InputError, match="no good checkpoint '1' .metrics/metrics differs from what"
    ):
        loaded("1")
    assert open_folder(folder).best == -0.2
    for step in (2, 3):
        flip(folder / str(step) / "_CHECKPOINT_METADATA")
    with pytest.raises(InputError, match="no good checkpoint 'best'; there are: none"):
        loaded("best")
    with pytest.raises(InputError, match="no good checkpoint: 2: .*; 3: .*Choose another workdir"):
        open_folder(folder)
    assert (folder / "2").exists() and (folder / "3").exists()


@pytest.mark.long
def test_eight_devices_then_one_then_two_processes_with_four(state, tiny_records, tmp_path):
    """Equal values and the same examples on each; a broken file of the other process is found.

    The third is two processes with two devices each.
    """
    folder = tmp_path / "run"
    checkpoints = open_folder(folder)
    checkpoints.save(5, state.replace(step=state.step + 5))
    checkpoints.close()
    one = sharding.data_mesh(devices=jax.devices()[:1])
    checkpoints = open_folder(folder)
    restored = checkpoints.restore(jax.device_put(state, sharding.replicated(one)))
    assert int(restored.step) == 5 and digest(restored) == digest(state)
    assert restored.generator.params["head/kernel"].sharding.device_set == set(jax.devices()[:1])
    checkpoints.save(6, restored.replace(step=restored.step + 1))
    checkpoints.close()

    records = open_records(tiny_records, "simulated/unlabelled", "train")
    orders = []
    for mesh in (sharding.data_mesh(), one):
        reader = TrainBatches([records], batch_size=8, seed=5, mesh=mesh).starting_at(3)
        orders.append(np.concatenate([next(reader)["index"] for _ in range(3)]).tolist())
    assert orders[0] == orders[1]

    shutil.copytree(folder / "6", folder / "7")  # one that is broken
    flip(folder / "7" / "_CHECKPOINT_METADATA")
    (first, note), (second, silent) = two_processes(folder, tiny_records)
    assert first == second == f"state 6 {digest(state)} {orders[0]}\n"
    assert f"{folder}/7: cannot be used: _CHECKPOINT_METADATA differs" in note
    assert f"{folder}/6 is used instead" in note and "cannot be used" not in silent

    assert saved_steps(folder) == [6, 7] and not fault(folder / "7")
    assert len(list((folder / "7").glob("manifest.?-of-2.json"))) == 2
    theirs = (folder / "7/state/ocdbt.process_1/d").iterdir()
    flip(max(theirs, key=lambda path: path.stat().st_size))
    assert "state/ocdbt.process_1/d/" in fault(folder / "7")
    (folder / "7" / "manifest.1-of-2.json").unlink()
    assert fault(folder / "7") == "its save was not completed"


def test_every_layout_reads_every_other(tmp_path):
    """Whole, spread over fsdp, and with averages, which are what others start from."""
    host = make_state()
    host = host.replace(generator=host.generator.with_ema(0.9))
    average = jax.tree.map(lambda value: value + 1, host.generator.average)
    host = host.replace(generator=host.generator.replace(average=average))
    state = None
    for step, axes in enumerate([{}, dict(fsdp=2, space=2), dict(fsdp=8), {}], start=1):
        start = host if state is None else zeros_like(host)
        placed = sharding.place_state(start, sharding.data_mesh(**axes))
        checkpoints = open_folder(tmp_path)
        state = checkpoints.restore(placed)
        assert digest(state) == digest(host)
        for leaf, expected in zip(*map(jax.tree.leaves, (state, placed)), strict=True):
            assert leaf.sharding == expected.sharding
        checkpoints.save(step, state.replace(step=state.step + 1), {"val/l1": 0.5})
        checkpoints.close()
        params, stats = load_generator(tmp_path, "last", score="val/l1", higher_is_better=False)
        np.testing.assert_array_equal(params["head/kernel"], average["params"]["head/kernel"])
        assert (stats["down/0/norm1/mean"] == 1).all()


def zeros_like(state):
    generator = jax.tree.map(np.zeros_like, state.generator)
    return state.replace(generator=generator)


def two_processes(folder, data):
    """[(stdout, stderr)] of both."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    line = [sys.executable, "-m", "tests.one_of_two"]
    both = [
        subprocess.Popen(
            [*line, *map(str, (index, port, folder, data))],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    outputs = [process.communicate(timeout=600) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    return [(out[out.index("state") :], err) for out, err in outputs]


@pytest.mark.parametrize(
    "name", ["run[1]", "a*b", "q?", "{0}", "#%:, ;", "ä b", "n" * 240, "*[!a]?{b,c}"]
)
def test_folders_may_have_any_name(state, three, tmp_path, name):
    """Another folder that the name would match as a pattern is not looked at."""
    folder = tmp_path / name
    for decoy in ("run1", "axb", "qx"):
        shutil.copytree(three, tmp_path / decoy)
    checkpoints = open_folder(folder)
    checkpoints.save(1, state.replace(step=state.step + 1), {"val/l1": 0.5})
    checkpoints.close()
    assert saved_steps(folder) == [1]
    restored = open_folder(folder).restore(state)
    assert int(restored.step) == 1 and digest(restored) == digest(state)
    params, _ = load_generator(folder, "best", score="val/l1", higher_is_better=False)
    np.testing.assert_array_equal(params["head/kernel"], state.generator.params["head/kernel"])


# Reads of TensorStore that are under way when the first of them fails end after their event loop.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("warns", [True, False])
def test_a_save_that_cannot_be_read_back_is_not_sealed(state, tmp_path, monkeypatch, warns):
    """Orbax skips what its patterns do not find and only warns; without the warning it is read."""
    checkpoints = open_folder(tmp_path)
    checkpoints.save(1, state.replace(step=state.step + 1))
    checkpoints.wait()
    monkeypatch.setattr(LiteralPath, "glob", lambda path, pattern: iter(()))
    if not warns:
        monkeypatch.setattr(OrbaxWarnings, "emit", lambda handler, record: None)
    checkpoints.save(2, state.replace(step=state.step + 2))
    words = "a checkpoint cannot be saved: .*" + "Skipping merge.*" * warns
    words += "last good one is step 1"
    with pytest.raises(InputError, match=words):
        checkpoints.wait()
    assert saved_steps(tmp_path) == [1]
    del checkpoints
    gc.collect()
    time.sleep(2)  # the reads end within this test, not in the next one


def test_a_checkpoint_of_other_arrays_or_another_step_does_not_read_back(state, three):
    names = names_of(state)
    read_back(three / "3", names, 3)
    with pytest.raises(NotReadBack, match="step 3 reads back as 3 updates"):
        read_back(three / "3", names, 4)
    with pytest.raises(NotReadBack, match="step 3 lacks or adds generator/params/new"):
        read_back(three / "3", names | {"generator/params/new"}, 3)
    with pytest.raises(NotReadBack, match="step 3 lacks or adds key"):
        read_back(three / "3", names - {"key"}, 3)
