"""Results of prediction: their places, what they keep of their making, and what they replace."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
import tifffile
from PIL import Image

from data_builders import export
from emjax import convert, measure, micrographs, predict
from emjax.errors import InputError, UsageError
from emjax.inference import results
from emjax.micrographs import made_by
from emjax.models import saved
from emjax.models.build import create
from emjax.report import check_replaceable

UNET = dict(name="unet", blocks=2, receptive_field=44)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Return a function that makes a model folder with random weights."""

    def make(task="segmentation", seed=0):
        folder = tmp_path_factory.mktemp("run")
        network = create(UNET, optax.sgd(1.0), key=jax.random.key(seed))
        facts = dict(model=UNET, task=task, range_rule="percentile", title=str(folder))
        saved.write(folder / "model", network, facts)
        return folder

    return make


@pytest.fixture(scope="module")
def segments(model):
    return model()


def noise(seed=0, shape=(24, 20)):
    return np.random.default_rng(seed).integers(0, 250, shape).astype(np.uint8)


def put(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".png":
        Image.fromarray(noise(seed)).save(path)
    else:
        tifffile.imwrite(path, noise(seed))
    return path


def run(model, out, *inputs):
    return predict.main([f"--model={model}", f"--out={out}", *map(str, inputs)])


def content(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in Path(folder).rglob("*")
        if path.is_file()
    }


def places(out, *inputs):
    found = results.find_inputs(map(str, inputs), out)
    return {
        file.relative_to(out.parent).as_posix(): result.relative_to(out).as_posix()
        for file, result in found.items()
    }


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_a_folder_keeps_its_tree_and_equal_names_do_not_meet(tmp_path):
    out = tmp_path / "out"
    touch(tmp_path, "in/A/1.tif", "in/B/1.tif", "in/B/deep/1.dm4", "in/2.ome.tif", "in/.h.tif")
    assert places(out, tmp_path / "in") == {
        "in/2.ome.tif": "2.ome.tif",
        "in/A/1.tif": "A/1.tif",
        "in/B/1.tif": "B/1.tif",
        "in/B/deep/1.dm4": "B/deep/1.tif",
    }
    # Files, or folders, that were named one by one: below what they have in common.
    a, b = tmp_path / "in/A/1.tif", tmp_path / "in/B/1.tif"
    assert places(out, a, b) == {"in/A/1.tif": "A/1.tif", "in/B/1.tif": "B/1.tif"}
    assert places(out, a.parent, b.parent)["in/B/deep/1.dm4"] == "B/deep/1.tif"
    assert places(out, a) == {"in/A/1.tif": "1.tif"}
    # What is named twice counts once, in its place below the folder.
    assert places(out, a, tmp_path / "in", a.parent / ".." / "A" / "1.tif")["in/A/1.tif"] == (
        "A/1.tif"
    )


def test_the_same_stem_twice_in_a_folder_keeps_the_suffix(tmp_path):
    out = tmp_path / "out"
    touch(tmp_path, "in/x.tif", "in/x.png", "in/y.png", "in/s/x.png")
    assert places(out, tmp_path / "in") == {
        "in/x.tif": "x.tif.tif",
        "in/x.png": "x.png.tif",
        "in/y.png": "y.tif",
        "in/s/x.png": "s/x.tif",
    }
    touch(tmp_path, "in/x.tif.png")  # it would become x.tif.tif, too
    found = places(out, tmp_path / "in")
    assert found["in/x.tif.png"] == "x.tif.png.tif" and len({*found.values()}) == len(found)


def test_a_file_with_the_name_of_a_label_image_keeps_its_suffix(tmp_path):
    out = tmp_path / "out"
    touch(tmp_path, "in/x.tif", "in/x.labels.tif", "in/y.tif")
    kinds = ["mask", "overlay", "labels"]
    found = results.find_inputs([str(tmp_path / "in")], out, kinds)
    written = [path for result in found.values() for path in results.files_of(result, kinds)]
    assert len({*written}) == len(written) == 9
    assert found[tmp_path / "in/y.tif"] == out / "y.tif"
    assert places(out, tmp_path / "in")["in/x.labels.tif"] == "x.labels.tif"


def test_what_is_below_out_is_no_input(segments, tmp_path, capsys):
    images = tmp_path / "in"
    for name in ("a.tif", "s/b.png"):
        put(images / name)
    for _ in range(2):
        assert run(segments, images / "masks", images) == 0
    names = {"a.tif", "a.overlay.png", "s/b.tif", "s/b.overlay.png"}
    assert {*content(images / "masks")} == names
    assert capsys.readouterr().out.count("is finished") == 2
    more = ("--labels", "--probabilities")
    assert run(segments, images / "more", *more, images / "a.tif") == 0
    # The files of a mask are none of a micrograph either, for another --out.
    assert run(segments, images / "again", images) == 0
    assert {*content(images / "again")} == names
    assert f"note: {images}: 8 results of emjax in it are left out" in capsys.readouterr().err
    # By name they are.
    assert run(segments, tmp_path / "named", images / "masks/a.overlay.png") == 0
    with pytest.raises(InputError, match="holds no micrograph but results of emjax"):
        run(segments, tmp_path / "o", images / "masks")


def test_out_may_be_the_folder_of_the_inputs(segments, tmp_path):
    put(tmp_path / "a.png")
    for _ in range(2):
        assert run(segments, tmp_path, tmp_path) == 0
        assert {*content(tmp_path)} == {"a.png", "a.tif", "a.overlay.png"}
    b = put(tmp_path / "b.tif")
    for flags in ((), ("--overwrite",)):
        with pytest.raises(UsageError, match="b.tif would be overwritten by a result"):
            run(segments, tmp_path, *flags, b)


def test_restored_images_are_inputs_of_the_next_model(model, segments, tmp_path):
    put(tmp_path / "in/a.tif")
    assert run(model(task="denoise"), tmp_path / "restored", tmp_path / "in") == 0
    assert run(segments, tmp_path / "masks", tmp_path / "restored") == 0
    assert {*content(tmp_path / "masks")} == {"a.tif", "a.overlay.png"}


def test_what_was_restored_beside_its_micrographs_is_none_of_them(
    model, segments, tmp_path, capsys
):
    put(tmp_path / "in/a.tif")
    assert run(model(task="denoise"), tmp_path / "in" / made_by.RESULTS, tmp_path / "in") == 0
    assert run(segments, tmp_path / "masks", tmp_path / "in") == 0
    assert {*content(tmp_path / "masks")} == {"a.tif", "a.overlay.png"}
    assert "1 results of emjax in it are left out" in capsys.readouterr().err
    files = measure.find_inputs([tmp_path / "in"])
    assert {*files.values()} == {"a.tif"}
    named = measure.find_inputs([tmp_path / "in" / made_by.RESULTS])
    assert {*named.values()} == {"a.tif"}
    # The page on a restoration that is gone is named, as are other files of before.
    assert run(segments, tmp_path / "in" / made_by.RESULTS, tmp_path / "in/a.tif") == 0
    assert "a.check.html: it is of an earlier prediction" in capsys.readouterr().err


def test_a_corrected_mask_beside_its_micrograph_is_no_micrograph(segments, tmp_path, capsys):
    put(tmp_path / "in/a.tif")
    assert run(segments, tmp_path / "in" / made_by.RESULTS, tmp_path / "in") == 0
    put(tmp_path / "in" / made_by.RESULTS / "a.tif")
    assert run(segments, tmp_path / "masks", tmp_path / "in") == 0
    assert {*content(tmp_path / "masks")} == {"a.tif", "a.overlay.png"}


def test_what_is_left_from_before_is_found_by_its_name_and_what_it_says(tmp_path):
    """Of two classes as well, and not the result of another micrograph."""
    pixels = np.zeros((8, 8), np.uint8)
    kinds = {"a": "mask", "a.labels": "mask"}
    kinds |= {f"a.{kind}": kind for kind in ("probability_1", "probability_2")}
    for name, kind in kinds.items():
        line = made_by.line({}, kind, pixels)
        micrographs.write(tmp_path / f"{name}.tif", pixels, software=line)
    (tmp_path / "a.spread.tif").write_bytes(b"of a person")
    found = results.left_from_before(tmp_path / "a.tif", ["mask", "overlay", "probability_1"])
    assert [path.name for path in found] == ["a.probability_2.tif"]


def test_a_result_that_was_changed_is_none_any_more(tmp_path):
    pixels = np.zeros((8, 8), np.uint8)
    micrographs.write(tmp_path / "a.tif", pixels, software=made_by.line({}, "mask", pixels))
    assert made_by.read(tmp_path / "a.tif")["kind"] == "mask"
    tifffile.imwrite(tmp_path / "a.tif", pixels + 1)
    assert made_by.read(tmp_path / "a.tif") is None


def test_a_name_that_leaves_no_room_for_those_of_results_is_refused(segments, tmp_path):
    put(tmp_path / f"{'n' * 245}.tif")
    put(tmp_path / "a.tif")
    with pytest.raises(UsageError, match="has more than 255 bytes in its name; rename"):
        run(segments, tmp_path / "out", tmp_path)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("size", [None, (0.5, 0.25)])
def test_what_is_finished_is_skipped(segments, model, tmp_path, capsys, size):
    images, out = tmp_path / "in", tmp_path / "out"
    for index, name in enumerate(("a.tif", "b.tif", "c.ome.tif")):
        micrographs.write(images / name, noise(index), size)
    stack = np.stack([noise(7), noise(8)])
    micrographs.write(images / "stack.mrc", stack, size)

    def finished(*flags, model=segments):
        assert predict.main([f"--model={model}", f"--out={out}", *flags, str(images)]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == 4
        return {Path(line.split(" -> ")[0]).name for line in lines if "is finished" in line}

    everything = {"a.tif", "b.tif", "c.ome.tif", "stack.mrc"}
    assert finished() == set()
    before = content(out)
    assert finished() == everything and content(out) == before
    micrographs.write(images / "a.tif", noise(9), size)  # other pixels
    assert finished() == everything - {"a.tif"}
    assert content(out)["a.tif"] != before["a.tif"]
    (out / "b.overlay.png").unlink()
    assert finished() == everything - {"b.tif"}
    assert content(out)["b.overlay.png"] == before["b.overlay.png"]
    assert finished("--mrc_rows=bottom") == everything - {"stack.mrc"}
    assert finished("--mrc_rows=bottom", "--range=0,200") == set()
    assert finished(model=model(seed=1)) == set()


def test_another_program_predicts_again(segments, tmp_path, capsys, monkeypatch):
    image = put(tmp_path / "a.tif")
    assert run(segments, tmp_path / "out", image) == 0
    monkeypatch.setattr(predict, "code_digest", lambda: "another")
    assert run(segments, tmp_path / "out", image) == 0
    assert "is finished" not in capsys.readouterr().out


def test_results_hold_no_place_and_no_time(segments, tmp_path):
    """The same prediction elsewhere has the same bytes."""
    for folder in ("one", "two"):
        put(tmp_path / folder / "in" / "a.tif")
        micrographs.write(tmp_path / folder / "in" / "b.ome.tif", noise(1), 0.5)
        shutil.copytree(segments, tmp_path / folder / "run")
        assert run(tmp_path / folder / "run", tmp_path / folder / "out", tmp_path / folder / "in")\
            == 0  # fmt: skip
    one, two = (content(tmp_path / folder / "out") for folder in ("one", "two"))
    assert one == two and len(one) == 4
    facts = made_by.read(tmp_path / "one/out/a.tif")
    assert facts is not None
    assert {*facts} == {"engine", "input", "kind", "model", "options", "result", "version"}
    text = json.dumps(facts)
    assert str(tmp_path) not in text and "a.tif" not in text


def test_no_file_of_the_users_is_replaced(segments, tmp_path, capsys):
    image, out = put(tmp_path / "in/z.tif"), tmp_path / "out"
    put(tmp_path / "in/y.tif", 1)
    out.mkdir()
    hand = np.full((24, 20), 7, np.uint8)
    tifffile.imwrite(out / "z.tif", hand)
    before = content(out)
    with pytest.raises(UsageError, match="z.tif would be overwritten.*a result of emjax.*--overw"):
        run(segments, out, image.parent)
    assert content(out) == before  # nothing of the other one either
    assert run(segments, out, "--overwrite", image.parent) == 0
    assert set(np.unique(tifffile.imread(out / "z.tif"))) <= {0, 255}

    # A result that was corrected by hand is the user's own, also where its text was kept.
    with tifffile.TiffFile(out / "z.tif") as file:
        software = file.pages.first.software
        mask = file.asarray()
    assert software.startswith("emjax {") and made_by.read(out / "z.tif") is not None
    mask[0, 0] ^= 255
    tifffile.imwrite(out / "z.tif", mask, software=software)
    with pytest.raises(UsageError, match="z.tif would be overwritten"):
        run(segments, out, image)
    assert tifffile.imread(out / "z.tif")[0, 0] == mask[0, 0]

    # So is a picture with the name of an overlay, and whatever cannot be read.
    for name, bytes_ in (("y.overlay.png", b"mine"), ("y.tif", b"mine"), ("y.tif", b'emjax {"')):
        (out / name).write_bytes(bytes_)
        with pytest.raises(UsageError, match=f"{name} would be overwritten"):
            run(segments, out, tmp_path / "in/y.tif")
        assert run(segments, out, "--overwrite", tmp_path / "in/y.tif") == 0
    (out / "y.tif").unlink()
    (out / "y.tif").mkdir()
    (out / "y.tif" / "mine").touch()
    with pytest.raises(UsageError, match="y.tif would be overwritten"):
        run(segments, out, tmp_path / "in/y.tif")
    with pytest.raises(UsageError, match="y.tif is a folder"):
        run(segments, out, "--overwrite", tmp_path / "in/y.tif")
    assert (out / "y.tif" / "mine").exists()
    capsys.readouterr()


def test_a_folder_is_replaced_only_if_it_is_a_zarr_store(tmp_path):
    (tmp_path / "a.zarr").mkdir()
    (tmp_path / "a.zarr" / "mine").touch()
    with pytest.raises(UsageError, match="a.zarr is a folder, expected a name for a file"):
        micrographs.write(tmp_path / "a.zarr", noise())
    assert (tmp_path / "a.zarr" / "mine").exists()
    for seed in (1, 2):
        micrographs.write(tmp_path / "b.zarr", noise(seed))
    np.testing.assert_array_equal(micrographs.read(tmp_path / "b.zarr").image, noise(2))


@pytest.mark.parametrize("shape", [(1, 37), (30, 1), (3, 20, 30), (2, 1, 9)])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_a_result_knows_itself(tmp_path, shape, dtype):
    for size in (None, 0.5):
        for name in ("a.tif", "a.ome.tif"):
            pixels = np.random.default_rng(0).uniform(0, 200, shape).astype(dtype)
            text = made_by.line({"input": "x"}, "restored", pixels)
            micrographs.write(tmp_path / name, pixels, size, info="rows", software=text)
            facts = made_by.read(tmp_path / name)
            assert facts is not None and facts["input"] == "x", (name, size)


def test_records_that_were_written_back_are_replaced_and_no_other_files(tiny_records, tmp_path):
    line = ["simulated/nanoparticles", f"--data_dir={tiny_records}", "--split=test"]
    line += [f"--out={tmp_path}", "--first=2"]
    export.main(line)
    before = content(tmp_path)
    export.main(line)
    assert content(tmp_path) == before and len(before) == 4
    mask = next((tmp_path / "mask").iterdir())
    tifffile.imwrite(mask, noise())
    mine = content(tmp_path)
    with pytest.raises(UsageError, match=f"{mask.name} would be overwritten"):
        export.main(line)
    assert content(tmp_path) == mine
    export.main([*line, "--overwrite"])
    assert content(tmp_path) == before


def test_converted_models_replace_models_and_no_other_files(segments, tmp_path):
    exported, to = tmp_path / "a.safetensors", tmp_path / "to"
    exported.write_bytes(b"mine")
    back = [f"--from={segments}", f"--to={exported}"]
    with pytest.raises(UsageError, match="a.safetensors would be overwritten.*choose another --to"):
        convert.main(back)
    assert exported.read_bytes() == b"mine"
    assert convert.main([*back, "--overwrite"]) == convert.main(back) == 0
    forth = [f"--from={exported}", f"--to={to}"]
    to.mkdir()
    (to / "README.md").write_text("mine")
    with pytest.raises(UsageError, match="README.md would be overwritten.*a model of emjax"):
        convert.main(forth)
    assert content(to) == {"README.md": b"mine"}
    assert convert.main([*forth, "--overwrite"]) == convert.main(forth) == 0


def test_a_report_replaces_a_report_and_no_other_file(tmp_path):
    for name, report in (("report.md", "# Report\n\nReport made on 2026"),
                         ("report.html", "<title>emjax report</title>")):  # fmt: skip
        check_replaceable(tmp_path)
        (tmp_path / name).write_text("mine")
        with pytest.raises(UsageError, match=f"{name} would be overwritten"):
            check_replaceable(tmp_path)
        (tmp_path / name).write_text(report)
    check_replaceable(tmp_path)
