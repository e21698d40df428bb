"""Repeated views are found, whatever the number of images; other views are not."""

import numpy as np
import pytest
from scipy import ndimage

from data_builders import duplicates

RNG = np.random.default_rng(3)


def smooth(h=224, w=200):
    return ndimage.gaussian_filter(RNG.normal(size=(h, w)), 12)


def bits_between(a, b):
    return (a ^ b).bit_count()


def test_a_fingerprint_says_where_the_image_grows_brighter():
    image = smooth(64, 72)
    print_ = duplicates.fingerprint(image)
    blocks = image.reshape(8, 8, 9, 8).mean(axis=(1, 3))
    for row in range(8):
        for column in range(8):
            expected = blocks[row, column + 1] > blocks[row, column]
            assert (print_ >> (8 * row + column)) & 1 == expected


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (8, 9), (9, 100), (223, 511)])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_any_size_and_number_format_has_one(shape, dtype):
    assert 0 <= duplicates.fingerprint(RNG.uniform(0, 200, shape).astype(dtype)) < 1 << 64


def test_brightness_and_contrast_do_not_change_it_and_other_views_do():
    image = smooth()
    one = duplicates.fingerprint(image)
    assert one == duplicates.fingerprint(7 * image + 100)
    noisy = image + RNG.normal(0, 0.2 * image.std(), image.shape)
    assert bits_between(one, duplicates.fingerprint(noisy)) <= duplicates.DISTANCE
    for other in (smooth(), image[::-1], np.rot90(image)):
        assert bits_between(one, duplicates.fingerprint(other)) > 10


@pytest.mark.parametrize("at_once", [1, 64, duplicates.MAX_COMPARISONS])
def test_look_alikes_are_those_of_a_full_comparison(at_once, monkeypatch):
    monkeypatch.setattr(duplicates, "MAX_COMPARISONS", at_once)
    among = RNG.integers(0, 1 << 64, 900, dtype=np.uint64)
    among[:100] &= np.uint64(0xFFFF)  # many share three of their four bands
    of = among[RNG.permutation(900)[:200]]
    for index in range(200):
        for bit in RNG.choice(64, index % 6, replace=False):
            of[index] ^= np.uint64(1) << np.uint64(bit)
    found = duplicates.look_alikes(of=of, among=among)
    distances = np.bitwise_count(of[:, None] ^ among[None])
    np.testing.assert_array_equal(found >= 0, distances.min(axis=1) <= duplicates.DISTANCE)
    rows = np.flatnonzero(found >= 0)
    assert len(rows) > 100 and (distances[rows, found[rows]] <= duplicates.DISTANCE).all()


def test_nothing_looks_like_nothing():
    none, one = np.zeros(0, np.uint64), np.zeros(1, np.uint64)
    assert duplicates.look_alikes(of=none, among=one).shape == (0,)
    assert duplicates.look_alikes(of=one, among=none).tolist() == [-1]


def test_seen_keeps_the_first_of_those_alike():
    prints = RNG.integers(0, 1 << 63, 2000, dtype=np.uint64).tolist()
    near = [p ^ (1 << 3) ^ (1 << 20) ^ (1 << 63) for p in prints[:200]]
    far = [p ^ 0xF for p in prints[200:400]]  # four bits
    seen = duplicates.Seen()
    found = [seen.first_like(p, 7 * i) for i, p in enumerate([*prints, *near, *far])]
    assert found == [None] * 2000 + [7 * i for i in range(200)] + [None] * 200
    assert len(seen.prints) == 2200


def test_seen_agrees_with_comparing_all():
    few = [sum(1 << bit for bit in RNG.choice(24, 6)) for _ in range(500)]  # many are alike
    seen, kept = duplicates.Seen(), []
    for print_ in few:
        alike = any(bits_between(print_, other) <= duplicates.DISTANCE for other in kept)
        assert (seen.first_like(print_, 0) is not None) == alike
        kept += [] if alike else [print_]


@pytest.mark.parametrize("shape", [(64, 72), (81, 50)])
def test_a_copy_in_any_flip_or_turn_is_found(shape):
    image = smooth(*shape)
    prints = duplicates.turned_fingerprints(image)
    assert prints[0] == duplicates.fingerprint(image) and len(set(prints)) == 8
    for flipped in (image, image[::-1]):
        for quarters in range(4):
            copy = np.ascontiguousarray(np.rot90(flipped, quarters))
            assert duplicates.fingerprint(copy) in prints
            assert duplicates.fingerprint(image) in duplicates.turned_fingerprints(copy)
