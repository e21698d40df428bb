"""Every path that a command takes may have any characters."""

import jax
import numpy as np
import optax
import pytest
import tifffile

from data_builders import build, export
from emjax import convert, micrographs, predict
from emjax.main import parse
from emjax.models import saved
from emjax.models.build import create

ODD = ["a b", "[1]", "{x}", "a*", "q?", "#1", "5%", "a,b", "a:b", "äöü µ"]
UNET = dict(name="unet", blocks=2, receptive_field=44)
FIELDS = dict(title="a U-Net", model=UNET, task="segmentation", range_rule="percentile")


def picture(seed):
    return np.random.default_rng(seed).integers(0, 200, (40, 48)).astype(np.uint8)


@pytest.fixture(scope="module")
def weights():
    return create(UNET, optax.sgd(1.0), key=jax.random.key(0))


@pytest.mark.parametrize("part", [*ODD, "".join(ODD)])
def test_every_command_takes_the_path(tmp_path, part, weights, capsys):
    """Build with masks and a table, export, convert, predict a file and a folder, read a recipe."""
    odd = tmp_path / part
    for folder in ("images", "masks"):
        (odd / f"{part}{folder}").mkdir(parents=True)
    names = [f"{i}{part}.tif" for i in range(3)]
    images, masks = odd / f"{part}images", odd / f"{part}masks"
    for i, name in enumerate(names):
        tifffile.imwrite(images / name, picture(i))
        tifffile.imwrite(masks / name, (picture(i + 9) > 100).astype(np.uint8) * 255)
    data = f"--data_dir={odd / 'data'}"
    common = ["micrographs", data, "--patch=16"]
    assert build.main([*common, f"--source={images}", f"--target=mask={masks}"]) == 0
    rows = [f'"{name}","{masks / name}",{split}' for name, split in
            zip(names, ("train", "val", "test"), strict=True)]  # fmt: skip
    table = odd / f"{part}.csv"
    table.write_text("image,mask,split\n" + "\n".join(rows) + "\n", encoding="utf-8")
    assert build.main([*common, f"--source={images}", f"--table={table}", "--target=mask",
                       "--name=table"]) == 0  # fmt: skip
    exported = odd / f"out{part}"
    assert export.main(["micrographs/table", data, "--split=test", f"--out={exported}"]) == 0
    assert len(list((exported / "mask").iterdir())) == 9

    model = odd / f"model{part}"
    saved.write(model, weights, FIELDS)
    safetensors = odd / f"{part}.safetensors"
    assert convert.main([f"--from={model}", f"--to={safetensors}"]) == 0
    back = odd / f"back{part}"
    assert convert.main([f"--from={safetensors}", f"--to={back}"]) == 0
    for given, out in ((images, "of a folder"), (images / names[0], "of a file")):
        out = odd / f"{part}{out}"
        assert predict.main([f"--model={back}", f"--out={out}", str(given)]) == 0
        mask = micrographs.read(out / names[0]).image
        assert mask.shape == (40, 48) and set(np.unique(mask)) <= {0, 255}
    assert capsys.readouterr().err == ""

    recipe = odd / f"{part}.py"
    recipe.write_text("from configs.segment_au import get_config")
    config, workdir = parse([f"--config={recipe}:smoke", f"--workdir={odd}",
                             f"--config.data.dir={odd}",
                             f"--config.initialise.workdir={odd}"])  # fmt: skip
    assert workdir == odd and config.data.dir == config.initialise.workdir == str(odd)


@pytest.mark.parametrize("suffix", [".tif", ".zarr", ".mrc", ".npy"])
def test_names_of_240_characters_are_read_and_predicted(tmp_path, weights, suffix):
    saved.write(tmp_path / "m", weights, FIELDS)
    name = "n" * (240 - len(suffix))
    path = tmp_path / f"{name}{suffix}"
    if suffix == ".npy":
        np.save(path, picture(0))
    else:
        micrographs.write(path, picture(0))
    assert predict.main([f"--model={tmp_path / 'm'}", f"--out={tmp_path / 'out'}", str(path)]) == 0
    assert sorted(each.name for each in (tmp_path / "out").iterdir()) == [
        f"{name}.overlay.png",
        f"{name}.tif",
    ]
