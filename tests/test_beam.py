"""Builds on Beam give the bytes of one process, whatever runs them, and fail as it does."""

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time

import mrcfile
import numpy as np
import psutil
import pytest
import tifffile
from tensorflow_datasets.core.utils import shard_utils

from data_builders import beam, beam_flags, build, writer
from emjax import errors, measure, predict
from emjax.micrographs import reading
from tests import test_au_nanoparticles as au
from tests import test_cem500k as cem
from tests import test_temimagenet as tem
from tests.test_build import SIMULATED, call, files_of, grey, limited_build, write_all

tiny, clone = au.tiny, tem.clone  # fixtures
DIRECT = "--beam_runner=DirectRunner"


@pytest.fixture
def shuffled(monkeypatch):
    """A loop instead of Beam: the last items first, and some of them twice."""

    def on_workers(work, count, runner, flags):
        for number in [*reversed(range(count)), *range(0, count, 3)]:
            beam._task.cache_clear()
            work(number)

    monkeypatch.setattr(beam_flags, "_checked", lambda runner, flags: flags)
    monkeypatch.setattr(beam, "on_workers", on_workers)


@pytest.fixture
def needs_beam():
    pytest.importorskip("apache_beam", reason="needs the extra beam, in an environment of its own")


@pytest.fixture
def many_shards(monkeypatch):
    monkeypatch.setattr(shard_utils.ShardConfig, "min_shard_size", 20_000)


def assert_same(tmp_path, capsys, *argv, flags=(DIRECT,)):
    """Check that the build `argv` on Beam equals that of one process; return its files."""
    code, out, err = call(capsys, *argv, f"--data_dir={tmp_path / 'one'}")
    assert code == 0, err
    code, out_of_beam, err = call(capsys, *argv, f"--data_dir={tmp_path / 'many'}", *flags)
    assert code == 0, err
    one, many = files_of(tmp_path / "one"), files_of(tmp_path / "many")
    assert one.keys() == many.keys()
    assert [name for name in one if one[name] != many[name]] == []
    assert out.replace(str(tmp_path / "one"), str(tmp_path / "many")) == out_of_beam
    return one


def micrographs(tmp_path):
    """Write images, stacks, masks and files to skip; return the flags to build them."""
    stems = [f"{i:02d}.tif" for i in range(20)]
    source = write_all(tmp_path / "in", {name: grey(60, 70) for name in stems})
    tifffile.imwrite(source / "stack.tif", np.stack([grey(50, 50) for _ in range(5)]))
    masks = tmp_path / "masks"
    write_all(masks, {name: (grey(60, 70) > 99).astype(np.uint8) for name in stems})
    tifffile.imwrite(masks / "stack.tif", np.ones((5, 50, 50), np.uint8))
    (source / "03.tif").write_bytes((source / "04.tif").read_bytes()[:100])
    rows = [
        f"{name},../masks/{name},{'val' if i > 15 else 'train'}"
        for i, name in enumerate([*stems, "stack.tif"])
    ]
    (tmp_path / "t.csv").write_text("\n".join(["image,mask,split", *rows]))
    return "micrographs", f"--source={source}", f"--table={tmp_path / 't.csv'}", "--patch=20"


def cem500k(tmp_path):
    """Write a tree with patches to mirror, to drop and to skip; return the flags to build it."""
    cem.write_tree(tmp_path / "in", {f"v{i:02d}": 1 + i % 4 for i in range(20)})
    cem.write_tree(tmp_path / "in", {"edge": 5}, (150, 224))
    cem.write_tree(tmp_path / "in", {"small": 3}, (100, 224))
    cem.write(tmp_path / "in", {"v03/colour.tif": grey(224, 224)[..., None].repeat(3, -1)})
    (tmp_path / "in" / "v07" / "broken.tif").write_bytes(b"II*\0")
    return "cem500k", f"--source={tmp_path / 'in'}"


@pytest.mark.parametrize("flags", [micrographs, cem500k])
def test_shards_card_and_text_are_those_of_one_process(
    tmp_path, capsys, shuffled, many_shards, flags
):
    found = assert_same(tmp_path, capsys, *flags(tmp_path))
    assert sum("array_record" in name for name in found) > 2
    card = json.loads(next(found[name] for name in found if name.endswith("card.json")))
    assert card["unusable"] == (1 if flags is micrographs else 2) and len(card["splits"]) == 2


def test_curated_slices_of_one_process(tmp_path, capsys, shuffled):
    source = write_all(tmp_path / "in", {f"{i}.tif": grey(60, 70) for i in range(9)})
    tifffile.imwrite(source / "stack.tif", np.stack([grey(50, 50) for _ in range(24)]))
    found = assert_same(
        tmp_path,
        capsys,
        "micrographs",
        f"--source={source}",
        "--patch=24",
        "--curate",
        "--axes=z,y",
    )
    assert sum(name.endswith("png") for name in found) == 1


def test_every_dataset_can_be_taken_in_parts(tmp_path, capsys, shuffled, many_shards, tiny, clone):
    for name in ("nanoparticles", "unlabelled", "atoms"):
        assert_same(tmp_path, capsys, f"simulated/{name}", "--patch=32", "--records=40")
    assert_same(tmp_path, capsys, "temimagenet", f"--source={clone}")
    au.write_raw(tmp_path / "h5", "au5nm")
    for name in ("au5nm", "au5nm_by_source"):  # patches of one micrograph in two splits
        assert_same(tmp_path, capsys, f"au_nanoparticles/{name}", f"--source={tmp_path / 'h5'}")


def test_a_dataset_of_one_unit(tmp_path, capsys, shuffled):
    assert_same(tmp_path, capsys, "simulated/nanoparticles", "--patch=32", "--records=1")


def test_beam_stops_with_the_same_error_as_one_process(tmp_path, capsys, shuffled, monkeypatch):
    argv = [*cem500k(tmp_path), f"--data_dir={tmp_path / 'data'}"]
    for flags in (["--left_out=0"], ["--left_out=0.02"]):
        one, many = (call(capsys, *argv, *flags, *on) for on in ((), (DIRECT,)))
        assert one[0] == 3 and one[2] == many[2] and many[0] == 3
        assert not (tmp_path / "data").exists()
    monkeypatch.setattr(
        build.Nanoparticles,
        "records",
        lambda self, split, units=None: iter([writer.Skipped(split, "gone")]),
    )
    argv = [*SIMULATED, f"--data_dir={tmp_path / 'data'}", "--left_out=1"]
    one, many = (call(capsys, *argv, *on) for on in ((), (DIRECT,)))
    assert one == many and one[0] == 3 and not (tmp_path / "data").exists()

    def breaks(self, split, units=None):
        raise errors.InputError(f"{split}: it has changed")
        yield

    monkeypatch.setattr(build.Nanoparticles, "records", breaks)
    one, many = (call(capsys, *argv, *on) for on in ((), (DIRECT,)))
    assert one == many == (3, "", "error: train: it has changed\n")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    "flags, line",
    [
        (["--workers=2"], "--workers=2 without --beam_runner; expected one of DirectRunner, "),
        (["--beam_options=--x"], "--beam_options=--x without --beam_runner"),
        (["--beam_runner=Quick"], "no runner 'Quick'; there are: DataflowRunner, DirectRunner, "),
        ([DIRECT, "--workers=0"], "--workers=0, expected at least 1"),
        ([DIRECT, "--beam_options='"], "--beam_options=': No closing quotation"),
        ([DIRECT, "--beam_options=x=3"], "--beam_options=x=3, expected --FLAG=VALUE"),
        (
            ["--beam_runner=FlinkRunner", "--workers=2"],
            "--workers=2 is for DirectRunner, got Flink",
        ),
    ],
)
def test_impossible_flags_are_one_line(tmp_path, capsys, flags, line):
    code, _, err = call(capsys, *SIMULATED, f"--data_dir={tmp_path / 'data'}", *flags)
    assert code == 2 and err.startswith(f"error: {line}") and err.count("\n") == 1
    assert not (tmp_path / "data").exists()


def test_without_beam_the_extra_is_named_and_nothing_else_imports_it(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    code, _, err = call(capsys, *SIMULATED, f"--data_dir={tmp_path / 'data'}", DIRECT)
    assert code == 2 and "pip install -e '.[beam]'" in err and err.count("\n") == 1
    assert call(capsys, *SIMULATED, f"--data_dir={tmp_path / 'data'}")[0] == 0


@pytest.mark.parametrize(
    "flags, line",
    [
        ("--nope=3", "Beam has no option --nope"),
        ("--direct_num_workers=x", "argument --direct_num_workers: invalid int value: 'x'"),
    ],
)
def test_options_that_beam_does_not_know(tmp_path, capsys, needs_beam, flags, line):
    flags = (DIRECT, f"--beam_options={flags}")
    code, _, err = call(capsys, *SIMULATED, f"--data_dir={tmp_path / 'data'}", *flags)
    last = err.splitlines()[-1]
    assert code == 2 and last.startswith("error: --beam_options: ") and line in last


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("flags", [micrographs, cem500k, lambda _: SIMULATED])
def test_beam_gives_the_bytes_of_one_process(
    tmp_path, capsys, monkeypatch, needs_beam, workers, flags
):
    """Two workers are two processes (multi_processing): threads would take turns in Python."""
    monkeypatch.setenv("PYTHONWARNINGS", "ignore")
    assert_same(tmp_path, capsys, *flags(tmp_path), flags=(DIRECT, f"--workers={workers}"))


def archive(folder):
    """Write micrographs as people keep them, one of them damaged, in subfolders."""
    rng = np.random.default_rng(2)
    for number in range(6):
        y, x = np.mgrid[:96, :80]
        image = rng.normal(120, 8, (96, 80))
        image[(y - 40) ** 2 + (x - 12 * number - 8) ** 2 < 90] -= 60
        place = folder / ("a" if number % 2 else "b") / f"{number}.tif"
        place.parent.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(
            place,
            np.clip(image, 0, 255).astype(np.uint8),
            resolution=(2e7, 2e7),  # 0.5 nm
            resolutionunit="CENTIMETER",
        )
    (folder / "a" / "2.tif").write_bytes((folder / "b" / "4.tif").read_bytes()[:300])
    with mrcfile.new(folder / "c.mrc") as file:
        file.set_data(rng.normal(9, 1, (64, 64)).astype(np.float32))
        file.voxel_size = 5.0
    return folder


def both(capsys, command, out, *argv, on):
    """Run a command in one process and on Beam; check that all is alike; return (files, notes)."""
    said = []
    for name, flags in (("one", ()), ("many", on)):
        reading._note_rows.cache_clear()  # said once in a process
        code = command.main([f"--out={out / name}", *flags, *map(str, argv)])
        text = capsys.readouterr()
        said.append((code, *(part.replace(str(out / name), "OUT") for part in text)))
    assert said[0] == said[1]
    one, many = files_of(out / "one"), files_of(out / "many")
    assert one.keys() == many.keys()
    assert [name for name in one if one[name] != many[name]] == []
    return one, said[0]


PREDICTED = [(), ("--range=shared", "--uncertainty", "--labels")]


@pytest.mark.parametrize("flags", PREDICTED)
def test_predictions_on_workers_are_those_of_one_process(tmp_path, capsys, shuffled, flags):
    folder = archive(tmp_path / "in")
    if flags:  # of one number format
        (folder / "c.mrc").unlink()
    files, (code, out, err) = both(capsys, predict, tmp_path, folder, *flags, on=[DIRECT])
    good = 6 if flags else 7
    assert code == 3 and f"1 of {good + 1} inputs were not predicted" in err
    assert out.count(" -> OUT") == good and err.count("--mrc_rows=top") == (not flags)
    assert len(files) == good * (4 if flags else 2)
    again = predict.main([f"--out={tmp_path / 'many'}", DIRECT, str(folder), *flags])
    assert again == 3 and capsys.readouterr().out.count("is finished") == good


@pytest.mark.parametrize(("flags", "unread"), [((), 1), (("--atoms",), 6)])
def test_measurements_on_workers_are_those_of_one_process(
    tmp_path, capsys, shuffled, flags, unread
):
    folder = archive(tmp_path / "in")
    y, x = np.mgrid[:96, :96]
    columns = 100 + 50 * np.cos(2 * np.pi * y / 12) + 50 * np.cos(2 * np.pi * x / 12)
    tifffile.imwrite(folder / "atoms.tif", columns.astype(np.uint8), resolution=(1e9, 1e9),
                     resolutionunit="CENTIMETER")  # fmt: skip
    files, (code, _, err) = both(capsys, measure, tmp_path, folder, *flags, on=[DIRECT])
    assert code == 3 and f"{unread} of 9 inputs were not measured" in err
    assert len(files) == 4  # two tables, a summary and a page
    table = files["atoms.csv" if flags else "particles.csv"].decode()
    assert table.count("\n") > 6 and ("atoms.tif" in table or not flags)


def test_beam_is_asked_for_before_a_model_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(predict.flags, "predictor", None)
    file = tmp_path / "a.tif"
    tifffile.imwrite(file, grey(60, 70))
    for command in (predict, measure):
        for flag, line in {
            "--workers=2": "--workers=2 without --beam_runner",
            "--beam_options=a": "--beam_options=a without --beam_runner",
            "--beam_runner=a": "no runner 'a'",
        }.items():
            with pytest.raises(errors.UsageError, match=line):
                command.main([f"--out={tmp_path / 'out'}", flag, str(file)])


def test_threads_keep_their_own_notes(tmp_path):
    """Two items done by threads of one process, one while the other is being done."""
    (tmp_path / "task").write_bytes(pickle.dumps((say_two, ["a", "b"])))
    threads = [
        threading.Thread(target=beam._work, args=(number, str(tmp_path), None)) for number in (0, 1)
    ]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    for number, name in enumerate("ab"):
        _, error, notes = pickle.loads((tmp_path / str(number)).read_bytes())
        assert error is None and notes == [(name, "first", ""), (name, "second", "kind")]


BOTH = threading.Barrier(2, timeout=60)


def say_two(name):
    BOTH.wait()
    errors.note(name, "first")
    BOTH.wait()
    errors.note(name, "second", "kind")


def test_masks_are_measured_on_workers_and_units_are_not_mixed(tmp_path, capsys, shuffled):
    masks = tmp_path / "in"
    masks.mkdir()
    for number in range(6):
        mask = np.zeros((60, 60), np.uint8)
        mask[5 : 20 + number, 9:30] = 255
        tifffile.imwrite(masks / f"{number}.tif", mask)
    files, _ = both(capsys, measure, tmp_path, "--masks", masks, on=[DIRECT])
    assert len(files) == 4
    known = masks / "known.tif"
    tifffile.imwrite(known, mask, resolution=(2e7, 2e7), resolutionunit="CENTIMETER")
    for flags in ((), (DIRECT,)):
        out = tmp_path / f"mixed{len(flags)}"
        assert measure.main([f"--out={out}", "--masks", *flags, str(masks)]) == 3
        assert f"{known}: states its pixel size, but " in capsys.readouterr().err
        assert (out / "particles.csv").read_bytes() == files["particles.csv"]


@pytest.mark.parametrize("workers", [1, 2])
def test_beam_predicts_and_measures_as_one_process(tmp_path, capsys, needs_beam, workers):
    folder, on = archive(tmp_path / "in"), [DIRECT, f"--workers={workers}"]
    both(capsys, predict, tmp_path / "predicted", folder, on=on)
    both(capsys, measure, tmp_path / "measured", folder, on=on)


def test_a_full_disk_in_a_worker_is_one_error_and_leaves_nothing(tmp_path, needs_beam):
    data = tmp_path / "data"
    done = limited_build(20_000, *SIMULATED, f"--data_dir={data}", DIRECT, "--workers=2")
    assert done.returncode == 3 and done.stderr.splitlines()[-1] == (
        f"error: {data / 'simulated' / 'nanoparticles'}: File too large; expected a folder "
        "to write to, with room for the records"
    )
    assert not data.exists()


def started(tmp_path, **kwargs):
    """Start a long build; return (process, its workers, home) once the workers write."""
    home = tmp_path / "simulated" / "nanoparticles"
    line = [sys.executable, "-m", "data_builders.build", *SIMULATED[:2], f"--data_dir={tmp_path}"]
    line += ["--records=100000", DIRECT, "--workers=2"]
    running = subprocess.Popen(line, stdout=subprocess.DEVNULL, text=True, **kwargs)
    deadline = time.monotonic() + 120
    while not list(home.glob(".building-*/parts/*/train")) and time.monotonic() < deadline:
        time.sleep(0.05)
    return running, psutil.Process(running.pid).children(recursive=True), home


def test_a_killed_worker_ends_the_build_and_leaves_nothing(tmp_path, needs_beam):
    running, workers, _ = started(tmp_path / "data", stderr=subprocess.PIPE)
    os.kill(workers[-1].pid, signal.SIGKILL)
    err = running.communicate(timeout=120)[1]
    last = [line for line in err.splitlines() if line.startswith("error: ")]
    assert running.returncode == 3 and "it was killed, perhaps for its memory" in last[0]
    assert not (tmp_path / "data").exists()


def test_a_killed_build_leaves_no_process_and_nothing_that_looks_finished(tmp_path, needs_beam):
    running, workers, home = started(tmp_path, stderr=subprocess.DEVNULL)
    os.kill(running.pid, signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL and not (home / "1.0.0").exists()
    assert psutil.wait_procs(workers, timeout=60)[1] == []
    build.main([*SIMULATED, f"--data_dir={tmp_path}"])
    assert [path.name for path in home.iterdir()] == ["1.0.0"]
