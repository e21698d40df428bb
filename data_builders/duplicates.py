"""Find images that look the same by 64-bit fingerprints: 8 bytes per image."""

from array import array

import numpy as np
from jaxtyping import Int64, Real, UInt64

DISTANCE = 3  # bits in which two fingerprints of one view may differ
BANDS = 4  # one more than DISTANCE: of so many parts at least one is then the same in both
MAX_COMPARISONS = 1 << 22  # held in memory


def fingerprint(image: Real[np.ndarray, "h w"]) -> int:
    """Return 64 bits, as an int, that say where `image` grows brighter from left to right.

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


def turned_fingerprints(image: Real[np.ndarray, "h w"]) -> list[int]:
    """Return the fingerprints of `image` and its flips and quarter turns: eight, its own first.

    A turned copy of an image has the image's fingerprint among these.
    """
    views = [view for side in (image, image.T) for view in (side, side[::-1])]
    return [fingerprint(turned) for view in views for turned in (view, view[:, ::-1])]


class Seen:
    """The fingerprints met so far, compared one by one.

    28 bytes per kept fingerprint, and 30 MB at most for the bands. Each band yields only those
    fingerprints that share its 16 bits: time grows with the number kept / 16384.
    """

    def __init__(self) -> None:
        self.prints, self.numbers = array("Q"), array("I")
        self.bands: list[dict[int, array]] = [{} for _ in range(BANDS)]

    def first_like(self, fingerprint: int, number: int) -> int | None:
        """Return the number of a kept fingerprint like this one; if there is none, keep this one.

        Args:
            fingerprint: of 64 bits.
            number: to return later for those like it; of 32 bits.
        """
        bands = [
            band.setdefault((fingerprint >> i * 64 // BANDS) & 0xFFFF, array("I"))
            for i, band in enumerate(self.bands)
        ]
        index = self._index_like(fingerprint, bands)
        if index is not None:
            return self.numbers[index]
        for band in bands:
            band.append(len(self.prints))
        self.prints.append(fingerprint)
        self.numbers.append(number)
        return None

    def _index_like(self, fingerprint: int, bands: list[array]) -> int | None:
        for band in bands:
            if band:
                indices = np.frombuffer(band, np.uint32)
                prints = np.frombuffer(self.prints, np.uint64)[indices]
                differing = np.bitwise_count(prints ^ np.uint64(fingerprint))
                if differing.min() <= DISTANCE:
                    return int(indices[differing.argmin()])
        return None


def look_alikes(
    *, of: UInt64[np.ndarray, " n"], among: UInt64[np.ndarray, " m"]
) -> Int64[np.ndarray, " n"]:
    """Return, for each fingerprint of `of`, the index of one like it in `among`, or -1.

    Fingerprints are alike if at most DISTANCE bits differ; of several alike any may be returned,
    the same at every call. Memory: some ten times that of the arguments.
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
            indices = order[starts[key] : starts[key + 1]]
            step = max(1, MAX_COMPARISONS // len(rows))
            for start in range(0, len(indices), step):
                some = indices[start : start + step]
                differing = np.bitwise_count(of[rows][:, None] ^ among[some][None])
                nearest = differing.argmin(axis=1)
                alike = differing[np.arange(len(rows)), nearest] <= DISTANCE
                found[rows[alike]] = some[nearest[alike]]
                rows = rows[~alike]
                if len(rows) == 0:
                    break
    return found
