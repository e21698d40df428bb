"""Each mistake in simulated pairs is found, and pairs without one give nothing."""

import numpy as np
import pytest
from scipy import ndimage

from data_builders.micrographs.alignment import VIEWS
from data_builders.micrographs.examination import KINDS, Examination, Pair
from data_builders.simulated import scenes
from tests import inject_faults

SIDE, NUMBER = 192, 10
CLEAR = scenes.CONTRASTS["clear"]


def simulated(i, side=SIDE):
    rng = np.random.default_rng([5, i])
    expected, mask = scenes.nanoparticles(rng, side, 0.06, CLEAR)
    image = rng.poisson(expected).astype(np.uint16)
    drawn = np.where(mask, 255, 0).astype(np.uint8)
    return Pair(f"{i:02d}.tif", image, mask.astype(np.uint8), drawn, f"{i:02d}", (0.06, 0.06))


@pytest.fixture(scope="module")
def pairs():
    return [simulated(i) for i in range(NUMBER)]


KNOWN = {}  # id of a pair: (the pair, its summary); most stand in many sets


def examined(pairs, rotations=True):
    examination = Examination(rotations)
    for pair in pairs:
        if rotations and id(pair) in KNOWN:
            examination.summaries.append(KNOWN[id(pair)][1])
        else:
            examination.add(pair)
            if rotations:
                KNOWN[id(pair)] = pair, examination.summaries[-1]
    return examination


def changed(pairs, function, which=(3,)):
    return [function(pair) if i in which else pair for i, pair in enumerate(pairs)]


def with_mask(pair, mask):
    return inject_faults.lies(pair, np.ascontiguousarray(mask).astype(np.uint8))


def test_pairs_without_a_mistake_give_nothing(pairs):
    examination = examined(pairs)
    assert examination.findings() == []
    assert examination.of_the_set() is None


def test_no_pairs_give_nothing():
    assert Examination().findings() == [] and Examination().of_the_set() is None


def test_one_pair_alone_gives_nothing(pairs):
    assert examined(pairs[:1]).findings() == []


def shifted(pair):
    return with_mask(pair, np.roll(pair.mask, (12, -7), (0, 1)))


def test_a_shifted_mask_is_found_with_its_shift(pairs):
    (found,) = examined(changed(pairs, shifted)).findings()
    assert found[:2] == ("03.tif", "shifted") and found.certain
    assert found.text == "mask is shifted by 12 rows down and 7 columns left against its image"


TURNS = {
    "mirrored left to right": np.fliplr,
    "mirrored top to bottom": np.flipud,
    "turned by 180 degrees": lambda mask: np.rot90(mask, 2),
    "mirrored at its diagonal, rows and columns are swapped": np.transpose,
    "turned by 90 degrees counterclockwise": np.rot90,
    "turned by 90 degrees clockwise": lambda mask: np.rot90(mask, -1),
    "mirrored at its other diagonal": lambda mask: np.rot90(mask, 2).T,
}


@pytest.mark.parametrize("what", TURNS)
def test_a_turned_mask_is_found_with_its_turn(pairs, what):
    changed_pair = with_mask(pairs[3], TURNS[what](pairs[3].mask))
    (found,) = examined([changed_pair]).findings()
    assert (found.kind, found.text, found.certain) == (
        "turned",
        f"mask is {what} against its image",
        True,
    )


def test_all_turns_are_tried():
    assert set(TURNS) == set(VIEWS[1:])


def test_a_pair_that_is_not_square_is_only_mirrored(pairs):
    image, mask = pairs[3].image[:160], pairs[3].mask[:160]
    (found,) = examined([with_mask(pairs[3]._replace(image=image), mask[:, ::-1])]).findings()
    assert found.text == "mask is mirrored left to right against its image"


def test_turns_are_left_alone_without_rotations(pairs):
    fault = with_mask(pairs[3], pairs[3].mask[:, ::-1])
    assert "turned" not in {one.kind for one in examined([fault], rotations=False).findings()}


def test_large_images_are_reduced_and_the_shift_is_that_of_the_image(pairs):
    pair = simulated(3, 640)
    (found,) = examined([with_mask(pair, np.roll(pair.mask, 40, 0))]).findings()
    assert found.text == "mask is shifted by 40 rows down against its image"


def test_an_outline_drawn_too_large_or_inexactly_is_no_mistake(pairs):
    large = changed(pairs, lambda p: with_mask(p, ndimage.grey_dilation(p.mask, (7, 7))))
    moved = changed(pairs, lambda p: with_mask(p, np.roll(p.mask, (2, -3), (0, 1))), range(NUMBER))
    assert examined(large).findings() == []
    assert examined(moved).findings() == [] and examined(moved).of_the_set() is None


def discs(pitch, side=SIDE, seed=0, noise=4.0, phase=0):
    """Return (image, mask) of dark discs in a square lattice."""
    y, x = (np.arange(side) + phase) % pitch - pitch // 2, np.arange(side) % pitch - pitch // 2
    mask = np.hypot(y[:, None], x[None]) < 0.3 * pitch
    image = 120 - 50 * mask + np.random.default_rng(seed).normal(0, noise, mask.shape)
    return image.astype(np.uint8), mask.astype(np.uint8)


def test_a_periodic_lattice_gives_nothing():
    """A lattice fits itself after each of its periods: nobody can know which one is right."""
    known = []
    for i in range(5):
        image, mask = discs(16 + 3 * i, seed=i)
        known.append(Pair(f"{i}", image, np.roll(mask, 4 * i, 1), None, f"{i}"))
    assert examined(known).findings() == [] and examined(known).of_the_set() is None


def test_masks_without_edges_in_their_images_give_nothing(pairs):
    rng = np.random.default_rng(0)
    known = [p._replace(image=rng.normal(0, 1, p.image.shape).astype(np.float32)) for p in pairs]
    assert examined(known).findings() == [] and examined(known).of_the_set() is None


def inverted(pair):
    return with_mask(pair, pair.mask == 0)


@pytest.mark.parametrize("which", [(7,), (1, 4, 6)])
def test_inverted_masks_are_found(pairs, which):
    """Certain if most of the border is labelled then: of 6 and 7, and doubtful of 1 and 4."""
    found = examined(changed(pairs, inverted, which)).findings()
    assert [(one.name, one.kind) for one in found] == [(f"{i:02d}.tif", "inverted") for i in which]
    assert [one.certain for one in found] == [i in (6, 7) for i in which]


def test_one_dark_field_image_among_bright_field_is_not_inverted(pairs):
    negative = changed(pairs, lambda p: p._replace(image=p.image.max() - p.image))
    assert examined(negative).findings() == []


@pytest.mark.parametrize("fault", [inject_faults.with_bar, inject_faults.with_banner])
def test_a_labelled_scale_bar_or_banner_is_found_and_one_that_is_not_labelled_is_none(pairs, fault):
    rng = np.random.default_rng(2)
    large = simulated(3, 320)
    drawn = fault(large, rng)
    (found,) = examined([drawn]).findings()
    assert found.kind == "drawn" and found.certain
    assert ("banner" in found.text) == (fault is inject_faults.with_banner)
    assert examined([drawn._replace(mask=large.mask, drawn=large.drawn)]).findings() == []


def test_empty_and_full_masks(pairs):
    empty = examined(changed(pairs, lambda p: with_mask(p, 0 * p.mask))).findings()
    assert [(one.kind, one.certain) for one in empty] == [("empty", False)]
    full = changed(pairs, lambda p: with_mask(p, 0 * p.mask + 1))
    assert [(one.kind, one.certain) for one in examined(full).findings()] == [("full", True)]
    alone = examined(full[3:4])
    assert [(one.kind, one.certain) for one in alone.findings()] == [("full", False)]


def test_a_copy_of_the_image_as_mask(pairs):
    def stored(quality):
        return lambda p: p._replace(
            image=(p.image / p.image.max() * 255).astype(np.uint8),
            drawn=inject_faults.as_jpeg((p.image / p.image.max() * 255).astype(np.uint8), quality),
        )

    for quality in (None, 95):
        (found,) = examined(changed(pairs, stored(quality))).findings()
        assert found.kind == "copy" and found.certain


def test_images_that_stand_twice(pairs):
    again = pairs[3]._replace(name="zz.tif", source="zz")
    (found,) = examined([*pairs, again]).findings()
    assert found[:2] == ("zz.tif", "repeated") and found.certain and found.other == "03.tif"
    turned = again._replace(image=np.rot90(again.image), mask=np.rot90(again.mask))
    (found,) = examined([*pairs, turned]).findings()
    assert found.kind == "repeated" and "turned" in found.text
    assert not examined([*pairs, turned], rotations=False).findings()


def test_one_image_with_two_masks_is_a_doubt_about_both(pairs):
    other = with_mask(pairs[3], ndimage.grey_dilation(pairs[3].mask, (5, 5)))
    found = examined([*pairs, other._replace(name="zz.tif", source="zz")]).findings()
    assert [(one.name, one.kind, one.certain, one.other) for one in found] == [
        ("03.tif", "contradicted", False, "zz.tif"),
        ("zz.tif", "contradicted", False, "03.tif"),
    ]


def test_equal_banners_do_not_make_images_look_alike(pairs):
    def with_banner(pair):
        image = pair.image.copy()
        image[-20:] = 4 * image.max()
        return pair._replace(image=image)

    assert examined([with_banner(pair) for pair in pairs]).findings() == []


def test_look_alikes_of_other_sources_are_doubtful(pairs):
    rng = np.random.default_rng(0)
    image = (0.7 * pairs[3].image[::-1] + rng.normal(20, 1, pairs[3].image.shape)).astype(
        np.float32
    )
    again = with_mask(pairs[3], pairs[3].mask[::-1])._replace(
        name="zz.tif", image=image, source="zz"
    )
    (found,) = examined([*pairs, again]).findings()
    assert found[:2] == ("zz.tif", "alike") and not found.certain and found.other == "03.tif"
    assert examined([*pairs, again._replace(source=pairs[3].source)]).findings() == []


def test_grey_edges_of_jpeg(pairs):
    def stored(pair):
        return pair._replace(drawn=inject_faults.as_jpeg(pair.drawn, 75))

    (found,) = examined(changed(pairs, stored)).findings()
    assert found.kind == "grey edges" and not found.certain and "JPEG" in found.text


def test_a_class_of_one_mask_only(pairs):
    both = [p._replace(mask=p.mask * (1 + i % 2), drawn=None) for i, p in enumerate(pairs)]
    assert examined(both).findings() == []
    (found,) = examined(changed(both, lambda p: p._replace(mask=p.mask // 2 * 7))).findings()
    assert found.kind == "rare class" and "class 7;" in found.text and not found.certain


def test_pixel_sizes_far_from_the_others(pairs):
    def sized(pair):
        return pair._replace(nm_per_pixel=(0.6, 0.6))

    (found,) = examined(changed(pairs, sized)).findings()
    assert found.kind == "pixel size" and "0.6 nm, 10 times the usual 0.06 nm" in found.text
    assert examined(changed(pairs, sized, range(0, NUMBER, 2))).findings() == []  # two kinds
    assert (
        examined(changed(pairs, lambda p: p._replace(nm_per_pixel=(np.nan,) * 2))).findings() == []
    )


def test_saturated_and_constant_images(pairs):
    def saturated(pair):
        return pair._replace(image=np.minimum(pair.image, np.quantile(pair.image, 0.4)))

    (found,) = examined(changed(pairs, saturated)).findings()
    assert found.kind == "saturated" and not found.certain and "highest" in found.text
    assert examined(changed(pairs, saturated, range(NUMBER))).findings() == []  # usual in this set
    (found,) = examined(changed(pairs, lambda p: p._replace(image=0 * p.image + 7))).findings()
    assert found.kind == "constant" and found.certain


SETS = {
    "shifted by 12 rows down and 7 columns left": shifted,
    "mirrored left to right": lambda p: with_mask(p, p.mask[:, ::-1]),
    "nothing is labelled": lambda p: with_mask(p, 0 * p.mask),
    "every pixel is labelled": lambda p: with_mask(p, 0 * p.mask + 1),
}


@pytest.mark.parametrize("message", SETS)
def test_a_fault_of_the_whole_set_is_named(pairs, message):
    problem = examined([SETS[message](pair) for pair in pairs]).of_the_set()
    assert problem is not None and message in problem and "\n" not in problem


def test_a_set_of_inverted_masks_is_named():
    """Without a right one to compare with, by the borders alone: the particles are inside."""
    known = []
    for i in range(5):
        image, mask = discs(16 + 3 * i, seed=i)
        image, mask = np.pad(image, 9, constant_values=120), np.pad(mask, 9)
        known.append(Pair(f"{i}", image, mask, None, f"{i}"))
    assert examined(known).of_the_set() is None
    problem = examined([inverted(pair) for pair in known]).of_the_set()
    assert problem is not None and "the background seems to be labelled" in problem


def test_all_that_look_alike_are_paired(pairs):
    turned = pairs[3]._replace(name="turned", image=pairs[3].image.T, mask=pairs[3].mask.T)
    again = pairs[3]._replace(name="again")
    known = [*pairs, turned, again]
    links = {frozenset(link) for link in examined(known).alike()}
    name = pairs[3].name
    expected = [(name, "turned"), (name, "again"), ("turned", "again")]
    assert links == {frozenset(link) for link in expected}


def test_findings_are_in_order_and_of_known_kinds(pairs):
    faults = changed(changed(pairs, shifted, (8, 2)), lambda p: with_mask(p, 0 * p.mask), (5,))
    found = examined(faults[::-1]).findings()
    assert [one.name for one in found] == ["02.tif", "05.tif", "08.tif"]
    assert {one.kind for one in found} <= set(KINDS)
    assert not any("\n" in one.text or one.name in one.text for one in found)


@pytest.mark.parametrize("shape", [(1, 1), (3, 90), (40, 40), (700, 40)])
def test_small_and_narrow_images(shape):
    rng = np.random.default_rng(0)
    image, mask = rng.integers(0, 255, shape).astype(np.uint8), rng.integers(0, 2, shape)
    examination = examined([Pair(f"{i}", image, mask.astype(np.uint8), None, "") for i in (1, 2)])
    assert all(one.kind in KINDS for one in examination.findings())


def test_values_that_are_not_finite(pairs):
    def broken(pair):
        image = pair.image.astype(np.float32)
        image[:3, :3] = np.nan
        return pair._replace(image=image)

    assert examined(changed(pairs, broken)).findings() == []


def test_a_mask_of_another_size_is_refused(pairs):
    with pytest.raises(ValueError, match="expected a mask of"):
        examined([pairs[0]._replace(mask=pairs[0].mask[1:])])
