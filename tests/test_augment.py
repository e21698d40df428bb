"""Ranges, flips and rotations, crops and sizes; image and targets always move together."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import skimage.transform

from emjax.data.augment import (
    Augmentation,
    cut_window,
    draw_crop,
    random_crop,
    random_dihedral,
    resized_crop,
)
from emjax.data.normalise import row_keys, to_network


def test_to_network_maps_the_range_to_minus_one_and_one():
    batch = dict(
        image=np.array([0, 50, 100, 150, 255], np.uint8).reshape(1, 1, 5, 1),
        denoised=np.full((1, 1, 5, 1), 100, np.uint8),
        mask=np.array([0, 1, 0, 1, 1], np.uint8).reshape(1, 1, 5, 1),
        intensity_range=np.float32([[50, 150]]),
        index=np.int32([3]),
    )
    example = to_network(batch)
    assert example["image"].ravel().tolist() == [-1, -1, 0, 1, 1]
    assert example["denoised"].ravel().tolist() == [0] * 5
    assert example["mask"].ravel().tolist() == [0, 1, 0, 1, 1]
    assert set(example) == {"image", "denoised", "mask"}


def test_row_keys_do_not_depend_on_the_number_of_rows(key):
    few, many = (jax.random.key_data(row_keys(key, rows)) for rows in (3, 8))
    assert (many[:3] == few).all()


def test_random_dihedral_returns_all_eight_symmetries_equally_often(key):
    image = jnp.arange(9.0).reshape(3, 3, 1)
    turned = jax.jit(jax.vmap(lambda k: random_dihedral(k, image)))(jax.random.split(key, 800))
    seen, counts = np.unique(np.array(turned).reshape(800, 9), axis=0, return_counts=True)
    square = np.arange(9.0).reshape(3, 3)
    dihedral = {tuple(np.rot90(x, k).ravel()) for k in range(4) for x in (square, square.T)}
    assert {tuple(row) for row in seen} == dihedral
    assert counts.min() > 60


def test_rectangles_keep_their_shape(key):
    assert random_dihedral(key, jnp.zeros((3, 5, 1))).shape == (3, 5, 1)


def test_random_crop_is_a_window(key):
    image = jnp.arange(100.0).reshape(10, 10, 1)
    corners = set()
    for k in jax.random.split(key, 200):
        window = random_crop(k, image, side=8)
        y, x = divmod(int(window[0, 0, 0]), 10)
        assert (window == image[y : y + 8, x : x + 8]).all()
        corners.add((y, x))
    assert len(corners) == 9


def centred(key, mask, rows=200, **options):
    """(augmented masks, ordinary crops with the same keys) of `rows` times the same mask."""
    stack = jnp.tile(jnp.array(mask, jnp.float32)[None, ..., None], (rows, 1, 1, 1))
    example = dict(image=2 * stack - 1, mask=stack)
    options = dict(turns=False, crop=16) | options
    found, plain = (
        jax.jit(Augmentation(**options, foreground_crops=share))(row_keys(key, rows), example)
        for share in (options.pop("foreground_crops", 1.0), 0.0)
    )
    assert ((found["image"] > 0) == (found["mask"] > 0)).mean() > 0.9  # both move together
    return np.array(found["mask"][..., 0]), np.array(plain["mask"][..., 0])


def test_crops_are_centred_on_the_foreground_as_far_as_the_border_permits(key):
    mask = np.zeros((64, 80))
    pixels = [(30, 40), (2, 79), (63, 10), (31, 70)]
    for y, x in pixels:
        mask[y, x] = 1
    crops, plain = centred(key, mask, rows=400)
    seen = [tuple(place) for crop in crops for place in np.argwhere(crop)]
    # A pixel inside is at the centre; those at the border are where the border is.
    expected = {(8, 8), (2, 15), (15, 8)}
    counts = {place: seen.count(place) for place in expected}
    assert {*seen} == expected and len(seen) == 400
    assert 150 < counts[8, 8] < 250 and 60 < counts[2, 15] < 140 and 60 < counts[15, 8] < 140
    assert plain.any((1, 2)).mean() < 0.5


def test_a_share_of_the_crops_is_centred_and_the_others_are_the_ordinary_ones(key):
    mask = np.zeros((90, 90))
    mask[50, 50] = 1
    crops, plain = centred(key, mask, rows=400, foreground_crops=0.25)
    differ = (crops != plain).any((1, 2))
    assert 70 < differ.sum() < 130 and crops[differ, 8, 8].all()
    empty, ordinary = centred(key, 0 * mask)
    np.testing.assert_array_equal(empty, ordinary)
    few, _ = centred(key, mask, rows=3, foreground_crops=0.25)  # a row's draw is its own
    np.testing.assert_array_equal(few, crops[:3])


@pytest.mark.parametrize("mirror", [False, True])
def test_magnified_crops_are_centred_too(key, mirror):
    mask = np.zeros((64, 64))
    mask[20:23, 40:43] = mask[0:3, 0:3] = 1
    crops, _ = centred(key, mask, resize=1.25, mirror=mirror)
    inside, corner = crops[:, 7:9, 7:9].any((1, 2)), crops[:, 0, 0] == 1
    assert (inside | corner).all() and inside.any() and corner.any() and not inside.all()
    whole, _ = centred(key, mask, rows=20, crop=64, resize=1.25, mirror=mirror)
    assert whole.shape == (20, 64, 64) and whole.any((1, 2)).all()


def test_resized_crop_is_a_magnified_window(key):
    """Against scikit-image's warp of the same window; a ramp shows origin and scale."""
    y, x = jnp.meshgrid(jnp.arange(64.0), jnp.arange(64.0), indexing="ij")
    for k in jax.random.split(key, 4):
        example = dict(image=x[..., None], mask=(x > 31)[..., None] * 1.0)
        crop = draw_crop(k, example, side=56, magnification=(56 / 64, 1.25))
        resized = resized_crop(example, crop, side=56)
        image = np.array(resized["image"][..., 0])
        step = np.diff(image[0, 2:-2]).mean()  # 1 / scale
        assert 1 / 1.25 <= step * 1.0001 and step <= 64 / 56 * 1.0001
        start = image[0, 2] - 2 * step
        matrix = np.array([[step, 0, start], [0, step, start], [0, 0, 1]])
        expected = skimage.transform.warp(
            np.array(x), matrix, output_shape=(56, 56), order=1, mode="edge"
        )
        np.testing.assert_allclose(image[2:-2, 2:-2], expected[2:-2, 2:-2], atol=1e-3)
        assert set(np.unique(resized["mask"])) <= {0.0, 1.0}
        inside = np.abs(image - 31.5) > 0.51  # farther than the nearest pixel can be off
        assert ((image > 31.5) == np.array(resized["mask"][..., 0] > 0))[inside].all()


@pytest.mark.parametrize("shape", [(90, 120), (50, 200), (40, 40)])
def test_the_window_has_all_that_the_crop_needs(key, shape):
    image = jax.random.normal(key, (*shape, 1))
    example = dict(image=image, mask=(image > 0) * 1.0)
    for k in jax.random.split(key, 20):
        crop = draw_crop(k, example, side=32, magnification=(0.8, 1.25))
        window, within = cut_window(example, crop, reach=40)
        assert window["image"].shape == (min(43, shape[0]), min(43, shape[1]), 1)
        expected = resized_crop(example, crop, side=32)
        for name, resized in resized_crop(window, within, side=32).items():
            np.testing.assert_allclose(resized, expected[name], atol=1e-4)


def test_image_and_mask_move_together(key):
    image = jax.random.uniform(key, (6, 48, 48, 1), minval=-1)
    example = dict(image=image, mask=(image > 0).astype(jnp.float32))
    augment = jax.jit(Augmentation(crop=32))
    out = augment(row_keys(key, 6), example)
    assert out["image"].shape == (6, 32, 32, 1)
    assert ((out["image"] > 0) == (out["mask"] > 0)).all()
    assert not (out["image"] == image[:, :32, :32]).all()


def test_noise_changes_the_stated_share_of_images_and_no_target(key):
    example = dict(image=jnp.zeros((300, 8, 8, 1)), mask=jnp.ones((300, 8, 8, 1)))
    out = Augmentation(noise_probability=0.5)(row_keys(key, 300), example)
    assert 120 < int((out["image"].std((1, 2, 3)) > 0).sum()) < 180
    assert (out["mask"] == 1).all()


def test_a_crop_larger_than_the_image_mirrors_it(key):
    """At 0.8 all of the image is inside, and what is beyond its border is its mirror image."""
    ramp = jnp.broadcast_to(jnp.arange(64.0)[:, None], (64, 64))[..., None]
    example = dict(image=ramp)
    crop = draw_crop(key, example, side=64, magnification=(0.8, 0.8))
    (resized,) = resized_crop(example, crop, side=64).values()
    column = np.array(resized[:, 20, 0])
    assert column.min() < 1 and column.max() > 62
    top, bottom = column.argmin(), column.argmax()
    assert top < bottom and np.allclose(np.diff(column[top + 1 : bottom]), 1.25, atol=1e-3)
    assert (np.diff(column[: max(top, 1)]) <= 0).all() and (np.diff(column[bottom + 1 :]) < 0).all()
    augment = Augmentation(crop=64, turns=False, resize=1.25, mirror=True)
    assert augment(row_keys(key, 2), dict(image=jnp.stack([ramp] * 2)))["image"].shape[1] == 64


def test_gaussian_noise_up_to_a_largest_sigma_on_the_image_alone(key):
    example = dict(image=jnp.zeros((400, 16, 16, 1)), denoised=jnp.zeros((400, 16, 16, 1)))
    out = Augmentation(turns=False, gaussian=0.05)(row_keys(key, 400), example)
    sigmas = np.array(out["image"].std((1, 2, 3))) / 2  # of the full range
    assert sigmas.max() < 0.06 and abs(sigmas.mean() - 0.025) < 0.003 and sigmas.min() < 0.005
    assert (out["denoised"] == 0).all()


def test_wrong_shapes_are_refused(key):
    with pytest.raises(Exception, match="[Tt]ype-check"):
        Augmentation()(row_keys(key, 2), dict(image=jnp.zeros((2, 8, 8, 3))))
