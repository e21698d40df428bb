"""Check that LZW data are as TIFF 6.0 defines them, before a library decodes them.

imagecodecs 2026.3.6 crashed on some that are not; all of these are refused now.

Source: TIFF 6.0, section 13; old files have the bits of a code in the opposite order.
"""

import numpy as np

from emjax.errors import InputError

CLEAR, END = 256, 257
LONGEST = 3840  # codes until the table of 4096 is full and a clear code has to follow
DAMAGED = "damaged LZW data, not as TIFF 6.0 defines them; save the image again"
INDICES = np.arange(LONGEST)


def _widths(switch: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the bits of each code after a clear code, and the bits before it.

    A code has 9 bits, and 10 from index `switch` on.
    """
    widths = np.full(LONGEST, 9)
    for start in (switch, switch + 512, switch + 1536):
        widths += INDICES >= start
    return widths, np.cumsum(widths) - widths


NEW, OLD = _widths(254), _widths(255)


def check(data: bytes) -> None:
    """Refuse LZW `data` that are not as TIFF 6.0 defines them."""
    old = len(data) > 1 and data[0] == 0 and bool(data[1] & 1)
    widths, before = OLD if old else NEW
    content = np.frombuffer(bytes(data) + bytes(3), np.uint8).astype(np.uint32)
    at, clears = 0, 0
    while True:
        starts = at + before
        starts = starts[starts + widths <= 8 * len(data)]
        if not starts.size:
            return
        width, byte, bit = widths[: starts.size], starts >> 3, starts & 7
        first, second, third = content[byte], content[byte + 1], content[byte + 2]
        if old:
            codes = (first | second << 8 | third << 16) >> bit
        else:
            codes = (first << 16 | second << 8 | third) >> (24 - bit - width)
        codes &= (1 << width) - 1
        stops = np.flatnonzero((codes == CLEAR) | (codes == END))
        stop = stops[0] if stops.size else starts.size
        known = np.maximum(CLEAR + 1 + INDICES[:stop], 255) - 2 * (INDICES[:stop] == 0)
        if np.any(codes[:stop] > known) or (at == 0 and stop):
            raise InputError(DAMAGED)
        if not stops.size and starts.size == LONGEST and not old:  # some old files have none
            raise InputError(DAMAGED)
        if not stops.size or codes[stop] == END:
            return
        at, clears = starts[stop] + width[stop], clears + 1
        if clears > len(data) // 256 + 16:
            raise InputError(DAMAGED)
