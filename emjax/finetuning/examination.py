"""The look at all pairs before a finetuning: what is wrong with them, and a picture of each."""

from typing import NamedTuple

import numpy as np

from data_builders.micrographs import checking
from data_builders.micrographs.checking import Checked
from data_builders.micrographs.listing import Listing
from emjax import micrographs, pictures
from emjax.errors import note
from emjax.experiments.page import Picture, Row
from emjax.finetuning import scores
from emjax.finetuning.bases import FINDER, Base
from emjax.finetuning.options import Options
from emjax.micrographs import Micrograph
from emjax.models import pretrained
from emjax.training import choices

JUDGED = 100  # pairs whose masks are compared with what FINDER predicts


class Examined(NamedTuple):
    """Pairs that were read once.

    Attributes:
        checked: which can be used, and what is wrong.
        shown: a picture of each, by name.
        beyond: why the base's fixed intensity range does not fit an image, by name.
    """

    checked: Checked
    shown: dict[str, Picture]
    beyond: dict[str, str]

    def in_a_range_that_fits(self, base: Base) -> Base:
        """Return `base` with a rule of intensity ranges that fits all images, saying so."""
        outside = [
            f"{s.name}: {self.beyond[s.name]}" for s in self.checked.kept if s.name in self.beyond
        ]
        if not outside:
            return base
        note(base.name, f"its intensity range is not taken, but that of each image; {outside[0]}")
        return base._replace(rule="percentile")

    def labels(self) -> list[tuple[Row, list[Picture]]]:
        """Return a row and the pictures of everything that was found."""
        return [
            (
                {"file": one.name, "": "left out" if one.certain else "doubtful", "what": one.text},
                [self.shown[name] for name in (one.name, one.other) if name in self.shown],
            )
            for one in self.checked.findings
        ]


def examine(listing: Listing, base: Base, options: Options) -> Examined:
    """Read all pairs once and print what is wrong with them.

    Raises: as `checking.check`.
    """
    asks = options.is_mask and not (options.classes or options.foreground)
    judges = asks and base.name in pretrained.DIGESTS
    model = scores.open_model(pretrained.BOX / FINDER) if judges else None
    shown: dict[str, Picture] = {}
    beyond: dict[str, str] = {}

    def watch(name: str, micrograph: Micrograph, target: np.ndarray) -> float | None:
        drawn = target if options.is_mask else np.zeros(target.shape, np.uint8)
        shown[name] = scores.picture(pictures.overlay(micrograph.image, drawn), name)
        if base.rule == "fixed" and (reason := micrographs.beyond_fixed(micrograph.image)):
            beyond[name] = reason
        if model is None or len(shown) > JUDGED:
            return None
        return scores.agreement(model, micrograph, target)

    checked = checking.check(
        listing,
        options.reading,
        options.images,
        is_mask=options.is_mask,
        smallest=choices.SMALLEST,
        asks=asks,
        keep_all=options.keep_all,
        watch=watch,
    )
    return Examined(checked, shown, beyond)
