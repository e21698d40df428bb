"""The check of a restoration: known residuals, known resolutions, what is alarming, the page."""

import io
import json
import re
from html import unescape

import jax
import numpy as np
import optax
import pytest
import tifffile
from PIL import Image

from emjax import load_model, micrographs, predict
from emjax.errors import UsageError
from emjax.measurement import residuals
from emjax.measurement.residuals import (
    Check,
    alarms,
    frequencies,
    residual,
    resolution,
    ring_correlation,
)
from emjax.micrographs import made_by
from emjax.models import saved
from emjax.models.build import create

RNG = np.random.default_rng(0)
Y, X = np.mgrid[:128, :160]
CLEAN = (100 + 30 * np.sin(Y / 9) * np.cos(X / 7)).astype(np.float32)


def noisy(deviation=10.0):
    return (CLEAN + RNG.normal(0, deviation, CLEAN.shape)).astype(np.float32)


def test_white_noise_that_is_taken_away_is_not_alarming():
    found = residual(image := noisy(), CLEAN)
    rest = image.astype(float) - CLEAN
    assert found["mean"] == pytest.approx(rest.mean())
    assert found["standard_deviation"] == pytest.approx(rest.std())
    expected = np.corrcoef(rest.ravel(), CLEAN.ravel())[0, 1]
    assert found["likeness"] == pytest.approx(expected)
    for lag, value in enumerate(found["autocorrelation"]["x"], start=1):
        expected = np.corrcoef(rest[:, lag:].ravel(), rest[:, :-lag].ravel())[0, 1]
        assert value == pytest.approx(expected, abs=3e-3)
    check = Check()
    check.add(image, CLEAN)
    assert alarms(check.numbers()) == []


@pytest.mark.parametrize(
    "restored, words",
    [
        (CLEAN + 2, "The result is brighter than the input by "),
        (CLEAN - 2, "The result is darker than the input by "),
        (0.5 * CLEAN + 50, "The residual looks like the result (correlation 0.6"),
        (np.float32(100) + 0 * CLEAN, "The residual is not white (autocorrelation up to 0.7"),
    ],
)
def test_what_is_alarming_is_said(restored, words):
    check = Check()
    check.add(noisy(), restored)
    assert any(line.startswith(words) for line in alarms(check.numbers())), alarms(check.numbers())
    same = Check()
    same.add(CLEAN, CLEAN)
    assert alarms(same.numbers()) == ["Nothing was taken away: the result is the input."]


def test_ring_correlation_of_what_is_known():
    """Equal images give 1, independent noise about 0; between them, the ratio of the spectra."""
    image = noisy()
    assert ring_correlation(image, image) == pytest.approx(np.ones(65))
    noise = [RNG.normal(0, 1, (512, 512)) for _ in range(3)]
    assert np.abs(ring_correlation(*noise[:2])[100:]).max() < 0.2
    both = ring_correlation(noise[0] + noise[1], noise[0] + noise[2])
    assert both[100:] == pytest.approx(np.full(157, 0.5), abs=0.12)
    frequency = np.hypot(np.fft.fftfreq(512)[:, None], np.fft.fftfreq(512)[None])
    low = np.fft.ifft2(np.fft.fft2(noise[0]) * (frequency < 0.2)).real
    limited = ring_correlation(low + 0.05 * noise[1], low + 0.05 * noise[2])
    assert resolution(limited, 512) == pytest.approx(0.2, abs=0.01)
    assert resolution(np.ones(10), 18) is None


@pytest.mark.parametrize("side", [64, 65])
def test_a_ring_has_the_frequency_of_the_wave_in_it(side):
    """A wave along the shorter side is in the ring of its periods per side."""
    x = np.arange(side)
    wave = np.cos(2 * np.pi * 15 * x / side)[:, None] * np.ones(2 * side)
    both = [wave + 0.01 * RNG.normal(size=wave.shape) for _ in range(2)]
    at = np.argmax(ring_correlation(*both))
    assert abs(at - 15) <= 1  # the window widens it
    assert frequencies(side)[15] == pytest.approx(15 / side)
    falling = np.where(np.arange(side // 2 + 1) < 15, 1.0, 0.0)
    assert resolution(falling, side) == pytest.approx(15 / side)


UNET = dict(name="unet", blocks=1, receptive_field=18)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """{task: the folder of a model of random weights}."""
    folder = tmp_path_factory.mktemp("models")
    for task in ("denoise", "segmentation"):
        network = create(UNET, optax.sgd(1.0), key=jax.random.key(0))
        saved.write(folder / task, network, dict(model=UNET, task=task, range_rule="percentile"))
    return {task: folder / task for task in ("denoise", "segmentation")}


def test_a_restoration_has_a_page_with_its_numbers(models, tmp_path, capsys):
    stack = np.stack([noisy() for _ in range(3)])
    micrographs.write(tmp_path / "in/a.tif", stack, 0.5)
    command = [f"--model={models['denoise']}", f"--out={tmp_path}/o", str(tmp_path / "in")]
    assert predict.main(command) == 0
    assert {p.name for p in (tmp_path / "o").iterdir()} == {"a.tif", "a.check.html"}
    html = (tmp_path / "o/a.check.html").read_text()
    facts = json.loads(re.search(r'id="numbers">(.*?)</script>', html)[1])
    restored = tifffile.imread(tmp_path / "o/a.tif")
    for index, plane in enumerate(facts["planes"]):
        rest = stack[index].astype(float) - restored[index]
        assert plane["mean"] == pytest.approx(rest.mean(), rel=1e-4, abs=1e-4)
    even, odd = (stack[0] + stack[2]) / 2, stack[1]
    expected = ring_correlation(even.astype(float), odd.astype(float))
    assert facts["ring_correlation_input"] == pytest.approx(expected, abs=1e-4)
    said = capsys.readouterr().out
    assert "something in the residual is alarming, see its .check.html" in said
    assert alarms(facts) and all(words in unescape(html) for words in alarms(facts))
    assert html.count("data:image/png") == 4 and "Fourier ring correlation" in html
    assert predict.main(command) == 0
    assert "is finished" in capsys.readouterr().out
    (tmp_path / "o/a.check.html").write_text(html.replace("Residual", "My residual"))
    with pytest.raises(UsageError, match="a.check.html would be overwritten"):
        predict.main(command)


@pytest.mark.parametrize("task", ["denoise", "segmentation"])
def test_the_spread_is_that_of_eight_flips_and_turns(models, tmp_path, task):
    image = np.clip(noisy(), 0, 255).astype(np.uint8)[:60, :90]
    micrographs.write(tmp_path / "in/a.tif", image)
    command = [f"--model={models[task]}", f"--out={tmp_path}/o", str(tmp_path / "in")]
    assert predict.main([*command, "--uncertainty"]) == 0
    model = load_model(models[task])
    values = model.intensity_range([image])
    found = []
    for array in (image, image[:, ::-1]):
        for turns in range(4):
            seen = model.predict(
                np.ascontiguousarray(np.rot90(array, turns)), intensity_range=values
            )
            seen = np.rot90(seen, 4 - turns)
            found.append(seen if array is image else seen[:, ::-1])
    expected = np.std(np.stack(found), axis=0)
    spread = tifffile.imread(tmp_path / "o/a.spread.tif")
    assert spread.dtype == np.float32
    np.testing.assert_allclose(spread, expected, rtol=1e-3, atol=1e-5 * np.ptp(found))
    assert predict.main(command) == 0  # the spread stays, and is named


def test_a_sealed_page_is_known_until_it_is_changed(tmp_path):
    path = tmp_path / "a.html"
    path.write_bytes(made_by.sealed({"options": {"channel": "--> <b>"}}, "check", "<html>ä</html>"))
    assert path.read_text().startswith("<!-- emjax {") and path.read_text().count("-->") == 1
    assert made_by.read(path)["options"] == {"channel": "--> <b>"}
    path.write_text(path.read_text().replace("ä", "a"))
    assert made_by.read(path) is None


def test_pictures_are_small():
    check = Check()
    check.add(np.tile(noisy(), (8, 8)), np.tile(CLEAN, (8, 8)))
    html = residuals.render("a", check, np.tile(CLEAN, (8, 8)))
    assert len(html) < 2_000_000 and "spread over eight flips" in html
    long = residuals.as_picture(np.zeros((2000, 10)), 0, 1, "")
    assert Image.open(io.BytesIO(long.png)).size == (3, 512)
