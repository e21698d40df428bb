"""Every field of a config has a range, which is checked before anything else."""

import numpy as np
import pytest

from configs import (
    few_images,
    models,
    paper,
    pretrain,
    real_small,
    restore_temimagenet,
    segment_au,
)
from emjax.config import FIELDS, RANGES, check_ranges, load_file, read_recipe, settle
from emjax.errors import UsageError
from emjax.main import parse
from emjax.training.assemble import assemble

RECIPES = [pretrain, segment_au, restore_temimagenet]
WRONG = {  # values that no field of the kind may have, as they are typed
    "epochs": ["0", "-1", "1000001"],
    "seed": ["-1", "4294967296"],
    "log_every": ["0", "-1"],
    "save_every": ["-1"],
    "early_stopping": ["-1"],
    "data.batch_size": ["0", "-8"],
    "data.train": ["('a',)", "('a','b',0)", "(('a','b',1),('c',))"],
    "data.evals.val": ["('a','b','c')", "(1,2)"],
    "objective.l1_weight": ["-1", "nan", "inf"],
    "objective.corruption.blur": ["(2.0,0.1)", "(0,2)", "(1,)", "('a','b')", "(nan,1)"],
    "objective.corruption.noise": ["(-0.1,0.1)"],
    "objective.corruption.dose": ["(0,10)", "(10,1e400)"],
    "objective.corruption.blur_probability": ["1.5", "-0.1", "nan"],
    "augment.crop": ["-32"],
    "model.blocks": ["0", "11"],
    "model.filters": ["(4,0,2)", "(4,'a',2)", "(4,2.5,2)", "(True,2,2)"],
    "model.input_interval": ["(1,1)", "(0,1,2)"],
    "optimizer.lr": ["-1e-3", "nan", "inf"],
    "optimizer.b1": ["1.0", "-0.1"],
    "optimizer.clip": ["-1"],
    "optimizer.warmup": ["-1"],
    "ema": ["1.0", "1.5", "-0.1"],
    "discriminator.width": ["0"],
    "mesh.fsdp": ["0"],
}
WRONG_FINETUNING = {
    "passes_per_epoch": ["0"],
    "augment.resize": ["0.5", "-1", "nan"],
    "augment.noise_probability": ["2", "-0.5"],
    "augment.foreground_crops": ["1.5", "-0.1", "nan"],
    "initialise.step": ["first", "-1", "2.5"],
    "initialise.fresh": ["('head/(',)", "(1,)"],
    "task": [""],
    "segmentation.loss": ["focal", "dice+cross_entropy", ""],
    "segmentation.foreground_weight": ["0", "-1", "nan"],
}
CASES = [("pretrain", field, typed) for field, each in WRONG.items() for typed in each]
CASES += [
    ("segment_au", field, typed) for field, each in WRONG_FINETUNING.items() for typed in each
]


def test_every_field_has_a_range():
    assert RANGES.keys() == FIELDS.keys()


@pytest.mark.parametrize("recipe, field, typed", CASES)
def test_a_value_outside_its_range_is_one_line_that_names_the_field(recipe, field, typed):
    with pytest.raises(UsageError) as error:
        parse([f"--config={recipe}:smoke", f"--config.{field}={typed}"])
    said = str(error.value)
    assert said.startswith(f"{field}=") and RANGES[field].expected in said and "\n" not in said


def test_all_recipes_are_within_their_ranges():
    for recipe in RECIPES:
        for variant in ("", *recipe.VARIANTS):
            settle(recipe.get_config(variant))
    for matrix in (paper, real_small, few_images):
        for name, make in matrix.runs(1).items():
            if "/released/" not in name:  # of a network that is not part of the project
                settle(make())
    for name in models.MODELS:
        settle(models.get_config(name))


def test_settling_changes_nothing_of_a_recipe():
    for recipe in RECIPES:
        config = recipe.get_config()
        settle(config)
        assert config == recipe.get_config()


def test_python_may_give_numbers_of_numpy_and_is_checked_too(tiny_records):
    config = pretrain.get_config("smoke")
    config.data.dir = str(tiny_records)
    with config.unlocked():
        config.objective.corruption.noise = (np.float32(0.1), np.float64(0.2))
        config.model = dict(config.model.to_dict(), pools=[2, np.int64(2)])
    check_ranges(config)
    config.optimizer.lr = -1.0
    with pytest.raises(UsageError, match=r"^optimizer.lr=-1.0, expected a number of at least 0$"):
        assemble(config)


def test_a_recipe_is_loaded_from_any_file(tmp_path):
    path = tmp_path / "a recipe [1].py"
    path.write_text("answer = 42")
    assert load_file(path)["answer"] == 42


@pytest.mark.parametrize("text", ["{", "[1]", '{"task": "segmentation"}'])
def test_a_json_file_that_is_no_config_is_refused(tmp_path, text):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"--config=.*config\.json: .*expected .*config\.json"):
        read_recipe(path, None)
