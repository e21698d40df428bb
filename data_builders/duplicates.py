"""Images that look the same, found by 64-bit fingerprints: 8 bytes an image."""

from array import array

import numpy as np

DISTANCE = 3  # bits in which two fingerprints of one view may differ
BANDS = 4  # one more than DISTANCE: of so many parts at least one is then the same in both
AT_ONCE = 1 << 22  # comparisons held in memory


def fingerprint(image):
    """64 bits, as an int, of a real image [h, w]: where it grows brighter from left to right.

    The image is averaged to 8 rows of 9 blocks; bit 8 i + j says whether block j + 1 of row i is
    brighter than block j. Brightness, contrast and a little noise do not change it.
    Source: N. Krawetz, "Kind of like that" (2013), the difference hash.
    """
    h, w = image.shape
    tops, lefts = np.arange(8) * h // 8, np.arange(9) * w // 9
    rows = np.add.reduceat(image, tops, axis=0, dtype=np.float64)
    blocks = np.add.reduceat(rows, lefts, axis=1)
    # Of an image smaller than 8 x 9, reduceat takes the pixel itself for an empty block.
    blocks /= np.maximum(np.diff(np.append(lefts, w)), 1)
    bits = blocks[:, 1:] > blocks[:, :-1]
    return int.from_bytes(np.packbits(bits, bitorder="little").tobytes(), "little")


class Seen:
    """The fingerprints met so far, asked one by one.

    28 bytes a fingerprint that is kept, and 30 MB at most for the bands. Of each band only those
    fingerprints are compared that have its 16 bits: time grows with the number kept / 16384.
    """

    def __init__(self):
        self.prints, self.numbers = array("Q"), array("I")
        self.bands = [{} for _ in range(BANDS)]

    def first_like(self, fingerprint, number):
        """The number of a kept fingerprint like this one, or None, and this one is then kept.

        Args:
            fingerprint: an int of 64 bits.
            number: what to tell of it later; an int of 32 bits.
        """
        bands = [
            band.setdefault((fingerprint >> i * 64 // BANDS) & 0xFFFF, array("I"))
            for i, band in enumerate(self.bands)
        ]
        place = self._place_like(fingerprint, bands)
        if place is not None:
            return self.numbers[place]
        for band in bands:
            band.append(len(self.prints))
        self.prints.append(fingerprint)
        self.numbers.append(number)
        return None

    def _place_like(self, fingerprint, bands):
        for band in bands:
            if band:
                places = np.frombuffer(band, np.uint32)
                prints = np.frombuffer(self.prints, np.uint64)[places]
                differing = np.bitwise_count(prints ^ np.uint64(fingerprint))
                if differing.min() <= DISTANCE:
                    return places[differing.argmin()]
        return None


def look_alikes(*, of, among):
    """int64 [len(of)]: for each fingerprint of `of` the place of one like it in `among`, or -1.

    Both are uint64 [n]. Fingerprints are alike if at most DISTANCE bits differ; of those alike
    any may be named, the same at every call. Memory: some ten times that of the arguments.
    """
    found = np.full(len(of), -1, np.int64)
    for band in range(BANDS):
        shift = np.uint64(band * 64 // BANDS)
        keys, others = ((prints >> shift).astype(np.uint16) for prints in (among, of))
        order = np.argsort(keys, kind="stable")
        starts = np.searchsorted(keys[order], np.arange((1 << 16) + 1))
        waiting = np.flatnonzero(found < 0)
        waiting = waiting[np.argsort(others[waiting], kind="stable")]
        for rows in np.split(waiting, np.flatnonzero(np.diff(others[waiting])) + 1):
            if len(rows) == 0:
                continue
            key = int(others[rows[0]])
            places = order[starts[key] : starts[key + 1]]
            step = max(1, AT_ONCE // len(rows))
            for at in range(0, len(places), step):
                some = places[at : at + step]
                differing = np.bitwise_count(of[rows][:, None] ^ among[some][None])
                nearest = differing.argmin(axis=1)
                alike = differing[np.arange(len(rows)), nearest] <= DISTANCE
                found[rows[alike]] = some[nearest[alike]]
                rows = rows[~alike]
                if len(rows) == 0:
                    break
    return found
