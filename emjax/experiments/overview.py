"""Figure 1 as SVG."""

import itertools

BOXES = {  # what is drawn where: x, y, lines of text
    "unlabelled": (0, 30, "unlabelled", "micrographs"),
    "corrupted": (150, 30, "blurred, with", "noise added"),
    "generator": (300, 30, "generator", "(U-Net, HRNet)"),
    "restored": (450, 30, "restored", "micrograph"),
    "discriminator": (600, 30, "discriminator:", "restored or real?"),
    "labelled": (150, 140, "a few labelled", "micrographs"),
    "finetuned": (300, 140, "the same network,", "finetuned"),
    "results": (450, 140, "particles, or clean", "micrographs"),
}
ARROWS = [
    *itertools.pairwise(("unlabelled", "corrupted", "generator", "restored", "discriminator")),
    *itertools.pairwise(("labelled", "finetuned", "results")),
    ("generator", "finetuned"),
]


def overview():
    """Figure 1 as SVG: pretraining above, finetuning below, the weights between them."""
    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="-5 0 735 205" width="735" '
        'font-family="system-ui,sans-serif" font-size="12" text-anchor="middle">'
        '<rect x="-5" width="735" height="205" fill="#fff"/><defs><marker id="tip" refX="6" '
        'refY="4" markerWidth="8" markerHeight="8" orient="auto"><path d="M0 0L8 4L0 8z"/></marker>'
        '</defs><text x="0" y="18" text-anchor="start">pretraining: least L1, and a discriminator '
        'that takes the restored micrograph for the original</text><text x="0" y="165" '
        'text-anchor="start">finetuning</text>'
    ]
    for start, end in ARROWS:
        (x, y, *_), (to_x, to_y, *_) = BOXES[start], BOXES[end]
        line = (x + 120, y + 25, to_x - 2, to_y + 25) if y == to_y else (x + 60, y + 50, to_x + 60,
                                                                         to_y - 2)  # fmt: skip
        parts.append('<line x1="{}" y1="{}" x2="{}" y2="{}" stroke="#000" marker-end="url(#tip)"/>'
                     .format(*line))  # fmt: skip
    parts.append('<text x="370" y="112" text-anchor="start">weights</text>')
    for name, (x, y, *lines) in BOXES.items():
        fill = "#cfe8f7" if name in ("generator", "finetuned") else "#f3f3f3"
        parts.append(f'<rect x="{x}" y="{y}" width="120" height="50" rx="6" fill="{fill}" '
                     'stroke="#000"/>')  # fmt: skip
        parts += [f'<text x="{x + 60}" y="{y + 21 + 17 * n}">{line}</text>'
                  for n, line in enumerate(lines)]  # fmt: skip
    return "\n".join([*parts, "</svg>"]) + "\n"
