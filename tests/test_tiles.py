"""Tiles: their geometry, and that their values are those of the whole image."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emjax.inference import tiles
from emjax.inference.predictor import WHOLE, Predictor, needs_whole_image
from emjax.micrographs import units
from emjax.models import cost, saved
from emjax.models.build import assemble, build_abstract
from emjax.models.network import Network, flat_arrays
from tests.test_models import PAPER_UNETS, hrnet_oracle, interpolated, repeated, unet_oracle


@pytest.mark.parametrize("divisor, margin", [(1, 0), (4, 26), (9, 40), (16, 228), (32, 317)])
def test_tiles_cover_an_axis_and_none_uses_its_border(divisor, margin):
    largest = tiles.largest_side(margin, divisor)
    shapes = set()
    for side in range(divisor, 9000, divisor):
        tile, placed = tiles.split_axis(side, largest, margin, divisor)
        shapes |= {tile} if side > largest else set()
        assert tile <= largest and tile % divisor == 0
        assert [first for _, first, _ in placed] == [0, *(end for _, _, end in placed[:-1])]
        assert placed[-1][2] == side and placed[-1][0] + tile == side
        for start, first, end in placed:
            assert start >= 0 and start % divisor == 0 and start <= first < end <= start + tile
            assert start == 0 or first - start >= margin
            assert start + tile == side or start + tile - end >= margin
    assert len(shapes) <= 6  # each is compiled
    if 4096 % divisor == 0:
        assert len(tiles.split_axis(4096, largest, margin, divisor)[1]) == 2


def test_a_tile_is_no_larger_than_as_many_tiles_need():
    assert (
        tiles.split_axis(2304, 2288, 228, 16)[0] == 1520
    )  # not four tiles of 2288 for a little more
    assert tiles.split_axis(4096, 2288, 228, 16) == (2288, [(0, 0, 2036), (1808, 2036, 4096)])
    assert tiles.split_axis(2288, 2288, 228, 16) == (2288, [(0, 0, 2288)])


def test_margins_reach_as_far_as_any_output_sees():
    def reach(seen):
        pixels = np.arange(len(seen))
        return max((pixels - seen[:, 0]).max(), (seen[:, 1] - pixels).max())

    networks_seen = [
        (dict(name="unet", blocks=len(pools), dilations=dilations, pools=pools),
         unet_oracle(dilations, pools))
        for dilations, pools in [
            *((dilations, [2] * blocks) for blocks, _, dilations, _ in PAPER_UNETS),
            ([1, 1, 1], [4, 4]), ([1, 2, 1], [2, 4]), ([3, 1, 2], [8, 2]), ([2, 1, 1], [3, 2]),
        ]
    ] + [
        (dict(name="hrnet", variant=variant, upsampling=upsampling), hrnet_oracle(variant, grown))
        for variant in ("w18_small_v1", "w18")
        for upsampling, grown in (("bilinear", interpolated), ("nearest", repeated))
    ]  # fmt: skip
    for model, seen in networks_seen:
        module = build_abstract(model)
        expected = reach(seen)
        assert expected <= tiles.margin(module) <= expected + module.divisor + 2, model


def random_module(model, seed=0):
    """Return (Network, module) of a `model` field, with varied statistics and a lasting signal."""
    rng = np.random.default_rng(seed)

    def value(path, like):
        if path.endswith("kernel"):
            return rng.normal(0, math.sqrt(2 / math.prod(like.shape[:-1])), like.shape)
        if path.endswith(("var", "scale")):
            return rng.uniform(0.7, 1.4, like.shape)
        return rng.normal(0, 0.2, like.shape)

    flat = flat_arrays(build_abstract(model))
    params, stats = (
        {path: value(path, like).astype(np.float32) for path, like in part.items()} for part in flat
    )
    return Network(params, stats), assemble(model, params, stats)


UNET = dict(name="unet", blocks=2, receptive_field=44)
HRNET = dict(name="hrnet", variant="w18_small_v1")


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (UNET, (252, 300)),
        (UNET, (4, 1000)),
        (dict(UNET, norm="none"), (200, 8)),
        (dict(UNET, receptive_field=116), (240, 260)),
        (dict(name="unet", blocks=3, receptive_field=240), (560, 424)),
        (dict(name="unet", blocks=2, pools=[4, 4]), (368, 416)),
        (dict(name="unet", blocks=2, pools=[3, 2], dilations=[2, 1, 3]), (378, 402)),
        (dict(name="unet", blocks=4, receptive_field=424), (64, 1040)),
        (HRNET, (1024, 64)),
        (dict(HRNET, upsampling="nearest"), (64, 1024)),
    ],
)
def test_tiles_give_what_the_whole_image_gives(model, shape):
    _, module = random_module(model)
    function = jax.jit(lambda x: module(x, train=False))
    image = np.random.default_rng(1).uniform(-1, 1, shape).astype(np.float32)
    whole = np.asarray(function(image[None, ..., None]))[0, ..., 0]
    margin, divisor = tiles.margin(module), module.divisor
    sizes = dict(largest=tiles.round_up(2 * margin + 4 * divisor, divisor), divisor=divisor)
    assert max(shape) > sizes["largest"]

    tiled = tiles.apply(function, image, margin=margin, **sizes)
    scale = np.abs(whole).max()
    assert np.abs(tiled - whole).max() <= 1e-5 * scale
    # The margin is needed: without one there are seams.
    seams = np.abs(tiles.apply(function, image, margin=0, **sizes) - whole)
    assert seams.max() > 1e-3 * scale


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Return a function that makes the model folder of a network with random weights."""

    @functools.cache
    def make(**changed):
        folder = tmp_path_factory.mktemp("run")
        config = dict(model=UNET | changed, task="segmentation", range_rule="percentile")
        saved.write(folder / "model", random_module(config["model"])[0], config)
        return folder

    return make


def noise(h, w):
    return np.random.default_rng(h * w).integers(0, 4096, (h, w)).astype(np.uint16)


def test_a_predictor_tiles_what_is_larger_than_its_memory(model, caplog):
    whole = Predictor(model())
    few = Predictor(model(), memory=whole.bytes_per_pixel * 150**2)
    assert few.tiling(1000, 1000) == (148, 26)
    for size in ((401, 333), (333, 401), (1, 700), (501, 3), (149, 150), (31, 90)):
        image = noise(*size)
        np.testing.assert_allclose(few(image), whole(image), atol=1e-5)
    assert caplog.messages == [] and few.memory_for_whole == 0


def test_images_of_many_sizes_have_few_shapes(model):
    predictor = Predictor(model())
    predictor.memory = predictor.bytes_per_pixel * 150**2
    for h in range(300, 420, 10):
        predictor(noise(h, h + 37))
    assert predictor.apply._cache_size() == 1


@pytest.mark.parametrize("norm", ["instance", "group"])
def test_networks_that_need_the_whole_image_warn_when_it_does_not_fit(model, caplog, norm):
    predictor = Predictor(model(norm=norm))
    image = noise(200, 203)
    expected = predictor(image)
    assert caplog.messages == []
    predictor.memory = predictor.bytes_per_pixel * 180**2
    tiled = predictor(image)
    assert np.abs(tiled - expected).mean() < 0.05  # noise has similar statistics everywhere
    (message,) = caplog.messages
    start = "200 x 204 pixels: predicted in tiles of 180 with margins of 26, which is approximate: "
    assert message.startswith(f"{start}norm={norm} takes statistics over the whole image, and the ")
    whole, part = (units.amount(size * predictor.bytes_per_pixel) for size in (200 * 204, 180**2))
    assert message.endswith(f"the whole image takes about {whole}; {part} may be used")
    assert predictor.memory_for_whole == 200 * 204 * predictor.bytes_per_pixel
    predictor.memory = predictor.memory_for_whole
    np.testing.assert_array_equal(predictor(image), expected)


def test_far_fields_and_corners_are_approximate_too(model, caplog):
    predictor = Predictor(model(receptive_field=116))
    predictor.memory = predictor.bytes_per_pixel * 160**2
    assert predictor.tiling(161, 160) == (160, 40)
    assert "an output depends on pixels 62 away" in caplog.text
    caplog.clear()
    assert predictor.tiling(160, 160)[0] == 160
    assert caplog.messages == []
    assert "stretches" in needs_whole_image(dict(HRNET, upsampling="bilinear_corners"))
    assert needs_whole_image(HRNET) == needs_whole_image(UNET) == ""


@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_memory_is_estimated(norm):
    _, module = random_module(dict(UNET, norm=norm))

    def function(x):
        return module(x, train=False)

    image = jax.ShapeDtypeStruct((1, 512, 512, 1), jnp.float32)
    taken = jax.jit(function).lower(image).compile().memory_analysis().temp_size_in_bytes
    estimate = cost.bytes_per_pixel(function, module.divisor) * 512**2
    assert taken <= estimate <= 4 * taken


@pytest.mark.parametrize("divisor, margin", [(4, 26), (9, 40), (16, 228), (32, 317)])
def test_square_tiles_have_few_sides_and_cover_an_axis(divisor, margin):
    largest = tiles.largest_side(margin, divisor)
    for side in range(divisor, 4000, 7 * divisor):
        shape = (side, tiles.round_up(900, divisor))
        tile = tiles.square(shape, largest, margin, divisor)
        if tile is None:
            assert min(*shape) < tiles.round_up(4 * margin, divisor)
            continue
        assert tile <= min(*shape, largest) and tile - divisor < max(tiles.SQUARES)
        placed = tiles.place(side, tile, margin, divisor)
        assert [first for _, first, _ in placed] == [0, *(end for _, _, end in placed[:-1])]
        assert placed[-1][2] == side and placed[-1][0] + tile == side
        for start, first, end in placed:
            assert start % divisor == 0 and start <= first < end <= start + tile
            assert start == 0 or first - start >= margin
            assert start + tile == side or start + tile - end >= margin


@pytest.mark.parametrize(("norm", "exact"), [("batch", True), ("instance", False)])
def test_many_sizes_need_few_programs(norm, exact, tmp_path):
    """And have the values of the whole image. A blur that sees 9 pixels stands for the network."""
    model = dict(UNET, norm=norm)
    network, _ = random_module(model)
    saved.write(tmp_path, network, dict(model=model, task=None, range_rule="fixed"))
    predictor = Predictor(tmp_path)
    kernel = np.random.default_rng(3).normal(size=(9, 9, 1, 1)).astype(np.float32)
    dimensions = ("NHWC", "HWIO", "NHWC")

    def blur(x):
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=dimensions)

    predictor.apply = jax.jit(blur)
    predictor.network = predictor.network._replace(forget=predictor.apply.clear_cache)
    rng = np.random.default_rng(2)
    programs, shapes = [], set()
    for _ in range(40):
        image = rng.uniform(0, 1, rng.integers(4, 150, 2)).astype(np.float32)
        output = predictor(image)
        shapes.add(tuple(-side // 4 for side in image.shape))
        programs.append(predictor.apply._cache_size())
        h, w = image.shape
        padded = np.pad(2 * image - 1, ((0, -h % 4), (0, -w % 4)), mode="reflect")
        whole = np.asarray(blur(padded[None, ..., None]))[0, :h, :w, 0]
        np.testing.assert_allclose(output, (whole + 1) / 2, atol=1e-4)
    assert len(shapes) > 30 and max(programs) <= WHOLE + len(tiles.SQUARES)
    assert (max(programs) > WHOLE) == exact
