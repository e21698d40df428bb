"""Metrics against hand cases and numpy, with padding that must not count."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy
import skimage.metrics

from emjax import metrics


def images(*rows):
    return jnp.array(rows, jnp.float32).reshape(len(rows), 2, 2, 1)


def test_hard_dice_by_hand():
    logits = images([9, 9, -9, -9], [-9, -9, -9, -9], [9, -9, -9, -9])
    target = images([1, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 1])
    valid = jnp.ones((3, 2, 2, 1), bool)
    dice = metrics.hard_dice(logits=logits, target=target, valid=valid)
    assert dice.tolist() == pytest.approx([(2 * 1 + 1) / (2 + 2 + 1), 1.0, 1 / 3])


def test_soft_dice_is_the_formula():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(4, 8, 8, 1)).astype(np.float32)
    target = (rng.random((4, 8, 8, 1)) < 0.3).astype(np.float32)
    q = 1 / (1 + np.exp(-logits))
    expected = (2 * (q * target).sum((1, 2, 3)) + 1) / ((q + target).sum((1, 2, 3)) + 1)
    dice = metrics.soft_dice(
        logits=jnp.array(logits), target=jnp.array(target), valid=jnp.ones((4, 8, 8, 1), bool)
    )
    np.testing.assert_allclose(dice, expected, rtol=1e-5)


RESTORATION = ("l1", "l2", "psnr", "ssim", "bias")
SEGMENTATION = ("hard_dice", "soft_dice", "iou", "precision", "recall", "binary_cross_entropy")


@pytest.mark.parametrize("metric", RESTORATION + SEGMENTATION)
def test_padding_does_not_count(metric):
    rng = np.random.default_rng(1)
    output = rng.normal(size=(2, 15, 17, 1)).astype(np.float32)
    target = (rng.random((2, 15, 17, 1)) < 0.4).astype(np.float32)
    more = ((0, 0), (0, 3), (0, 1), (0, 0))
    name = "prediction" if metric in RESTORATION else "logits"

    def score(pad):
        arrays = {name: np.pad(output, pad, constant_values=5.0), "target": np.pad(target, pad)}
        valid = np.pad(np.ones(output.shape, bool), pad)
        arrays = {key: jnp.array(value) for key, value in arrays.items()}
        return getattr(metrics, metric)(**arrays, valid=jnp.array(valid))

    np.testing.assert_allclose(score(more), score(((0, 0),) * 4), rtol=1e-6)


def test_l1_is_in_unit_range():
    both = dict(prediction=images([1, 1, 1, 1]), target=images([-1, -1, -1, 1]))
    assert float(metrics.l1(**both, valid=jnp.ones((1, 2, 2, 1), bool))[0]) == 0.75


def test_an_image_of_padding_does_not_count():
    valid = jnp.array([True, True, False]).reshape(3, 1, 1, 1)
    values, counts = metrics.counted({"dice": jnp.array([0.5, 1.0, 0.9])}, valid)["dice"]
    assert values.tolist() == pytest.approx([0.5, 1.0, 0.9]) and counts.tolist() == [1, 1, 0]


def test_images_to_which_a_metric_does_not_apply_do_not_count_and_nothing_hides_nan():
    valid = jnp.array([True, True, False]).reshape(3, 1, 1, 1)
    value, applies = jnp.array([0.5, jnp.nan, 0.9]), jnp.array([False, True, True])
    values, counts = metrics.counted({"size_error": (value, applies)}, valid)["size_error"]
    assert counts.tolist() == [False, True, False] and np.isnan(values[1])


def pair(side=48):
    """Two float32 images in [-1, 1] and the same in [0, 1] as numpy has them."""
    rng = np.random.default_rng(3)
    target = scipy.ndimage.gaussian_filter(rng.normal(size=(side, side)), 3)
    target = np.clip(4 * target, -1, 1)
    prediction = np.clip(target + 0.1 * rng.normal(size=target.shape), -1, 1)
    ours = {"prediction": prediction, "target": target}
    ours = {name: jnp.array(x, jnp.float32)[None, :, :, None] for name, x in ours.items()}
    return ours, (prediction + 1) / 2, (target + 1) / 2


def test_restoration_metrics_are_those_of_scikit_image():
    ours, prediction, target = pair()
    valid = jnp.ones((1, 48, 48, 1), bool)
    due = {
        "l1": np.abs(prediction - target).mean(),
        "l2": skimage.metrics.mean_squared_error(target, prediction),
        "psnr": skimage.metrics.peak_signal_noise_ratio(target, prediction, data_range=1),
        "ssim": skimage.metrics.structural_similarity(
            target, prediction, data_range=1, gaussian_weights=True, sigma=1.5,
            use_sample_covariance=False,
        ),
        "bias": prediction.mean() - target.mean(),
    }  # fmt: skip
    for name, value in due.items():
        assert float(getattr(metrics, name)(**ours, valid=valid)[0]) == pytest.approx(
            value, rel=1e-4, abs=1e-6
        ), name


def test_restoration_metrics_of_equal_and_of_tiny_images():
    ours, *_ = pair()
    same = {"prediction": ours["target"], "target": ours["target"]}
    valid = jnp.ones((1, 48, 48, 1), bool)
    assert float(metrics.psnr(**same, valid=valid)[0]) == 100
    assert float(metrics.ssim(**same, valid=valid)[0]) == pytest.approx(1)
    tiny = {name: x[:, :8, :8] for name, x in same.items()}
    assert float(metrics.ssim(**tiny, valid=valid[:, :8, :8])[0]) == 0


def test_segmentation_metrics_are_those_of_scipy_and_set_theory():
    rng = np.random.default_rng(4)
    logits, target = rng.normal(size=(9, 9)), rng.random((9, 9)) < 0.4
    mask = logits > 0
    due = {
        "iou": 1 - scipy.spatial.distance.jaccard(mask.ravel(), target.ravel()),
        "precision": target[mask].mean(),
        "recall": mask[target].mean(),
    }
    ours = {"logits": logits, "target": target}
    ours = {name: jnp.array(x, jnp.float32)[None, :, :, None] for name, x in ours.items()}
    for name, value in due.items():
        got = getattr(metrics, name)(**ours, valid=jnp.ones((1, 9, 9, 1), bool))
        assert float(got[0]) == pytest.approx(value, rel=1e-5), name


def test_segmentation_metrics_of_empty_masks():
    nothing, something = images([-9, -9, -9, -9]), images([9, 9, -9, -9])
    valid = jnp.ones((1, 2, 2, 1), bool)
    for name, both, predicted_only, true_only in (
        ("iou", 1, 0, 0), ("precision", 1, 0, 1), ("recall", 1, 1, 0)
    ):  # fmt: skip
        metric = getattr(metrics, name)
        empty, full = jnp.zeros((1, 2, 2, 1)), images([1, 1, 0, 0])
        assert float(metric(logits=nothing, target=empty, valid=valid)[0]) == both
        assert float(metric(logits=something, target=empty, valid=valid)[0]) == predicted_only
        assert float(metric(logits=nothing, target=full, valid=valid)[0]) == true_only
