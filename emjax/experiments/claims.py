"""The claims of the paper (Kazimi et al., arXiv 2402.18286) as rules that runs can decide.

Each rule is a difference whose sign the claim predicts, written so that the claim says it is
positive. A claim is supported if the whole 95 % interval of that difference is above zero, not
supported if it is not, and not measured where the runs that it needs are not there. R: from random
weights; P: from a Pix2Pix pretraining. "Early" is after a twelfth of a run, epoch 5 of the paper's
60. Arms are compared if they share everything but network and initial weights, seed by seed and
image by image; on every dataset that has the runs, the paper's or not.
"""

import collections
import math
from collections.abc import Callable
from typing import NamedTuple

from emjax.experiments.intervals import NOTHING, by_seed, contrast, tested, volatility
from emjax.runs.run import PARTS

EARLY, TENTH_EPOCH = 1, 2  # twelfths of a run


class Claim(NamedTuple):
    """A claim, the rule that decides it, and what works the rule's difference out."""

    name: str
    words: str
    rule: str
    measure: Callable  # (board or pretraining arms) to the Interval of the difference
    of: str  # "pretraining", or the tasks it is about: "segmentation", "restoration", "both"
    none: bool = False  # the claim is that there is no difference: zero lies in the interval
    rates: bool = False  # it compares learning rates, which are boards of their own


class Finding(NamedTuple):
    """A claim on one dataset."""

    claim: Claim
    where: str
    difference: NamedTuple

    @property
    def verdict(self):
        if math.isnan(self.difference.low):
            return "not measured"
        held = self.difference.low > 0
        if self.claim.none:
            held = self.difference.low <= 0 <= self.difference.high
        return "supported" if held else "not supported"


def boards(arms):
    """{dataset and task: [[Arm] that differ in network and initial weights alone]}."""
    alike = {}
    for arm in arms:
        alike.setdefault(arm.key_without("model", "initialise"), []).append(arm)
    found = collections.defaultdict(list)
    for members in alike.values():
        found[f"{members[0].data}, {members[0].config['task']}"].append(members)
    return found


def judge(arms, pretrained):
    """[Finding]: of each claim on each dataset that has the runs, one without if none has."""
    findings, found_boards = [], boards(arms)
    for claim in CLAIMS:
        if claim.of == "pretraining":
            places = {"pretraining": claim.measure(pretrained)}
        else:
            places = {
                where: most_runs(claim, candidates)
                for where, candidates in found_boards.items()
                if claim.of in ("both", kind(candidates[0][0]))
            }
        measured = {w: found for w, found in places.items() if not math.isnan(found.low)}
        findings += [Finding(claim, w, found) for w, found in measured.items()]
        if not measured:
            findings.append(Finding(claim, "-", NOTHING))
    return findings


def kind(arm):
    return "segmentation" if arm.config["task"] == "segmentation" else "restoration"


def most_runs(claim, candidates):
    """What `claim` finds on the board with the most finished runs that decides it."""
    if claim.rates:
        return claim.measure([arm for board in candidates for arm in board])
    largest = sorted(candidates, key=lambda board: -sum(len(arm.seeds) for arm in board))
    found = (claim.measure(board) for board in largest)
    return next((f for f in found if not math.isnan(f.low)), NOTHING)


def better(arm, part=PARTS):
    """The arm's test scores, turned so that more is better."""
    return {seed: {image: arm.runs[0].sign * value for image, value in scores.items()}
            for seed, scores in tested(arm, part).items()}  # fmt: skip


def is_random(arm):
    return not arm.pretraining and arm.start == "random"


def is_pix2pix(arm):
    return arm.start.startswith("pix2pix")


def unets(arms, blocks=(2, 3, 4)):
    return [arm for arm in arms if arm.config["model"].get("blocks") in blocks]


def hrnets(arms):
    return [arm for arm in arms if arm.config["model"]["name"] == "hrnet"]


def field(arm):
    return arm.config["model"]["receptive_field"]


def validation(arm, part=PARTS):
    """The best validation score after `part` twelfths, by seed, as it is."""
    return by_seed(arm, lambda run: run.best(part).get(run.score, math.nan))


def twins(arms, blocks=(2, 3, 4)):
    """[(P arm, R arm of the same network)] of the U-Nets."""
    random = [arm for arm in unets(arms, blocks) if is_random(arm)]
    return [(arm, base) for arm in unets(arms, blocks) if is_pix2pix(arm)
            for base in random if arm.config["model"] == base.config["model"]]  # fmt: skip


def calmer(arm):
    """How much the validation score changes from one evaluation to the next, by seed."""
    return by_seed(arm, volatility)


# Pretraining. Lower L1 is better, so differences are turned round.


def falls_with_subset(arms):
    models = collections.defaultdict(list)
    for arm in filter(is_pix2pix, arms):
        models[arm.key_without("data")].append(arm)
    ordered = [sorted(same, key=lambda arm: arm.runs[0].records) for same in models.values()]
    several = [same for same in ordered if same[0].runs[0].records < same[-1].runs[0].records]
    return contrast([validation(same[0]) for same in several],
                    [validation(same[-1]) for same in several])  # fmt: skip


def copies(arms):
    largest = [arm for arm in unets(arms) if is_pix2pix(arm) and field(arm) == 424]
    pairs = [(other, arm) for arm in largest for other in hrnets(arms)
             if is_pix2pix(other) and other.data == arm.data]  # fmt: skip
    return contrast([validation(hrnet) for hrnet, _ in pairs], [validation(u) for _, u in pairs])


# Segmentation.


def early_same(arms):
    pairs = twins(arms, blocks=(2,))
    return contrast([better(p, EARLY) for p, _ in pairs], [better(r, EARLY) for _, r in pairs])


def early_larger(arms):
    small = [arm for arm in unets(arms, (2,)) if is_pix2pix(arm)]
    larger = [arm for arm in unets(arms, (3, 4)) if is_random(arm)]
    return contrast([better(arm, EARLY) for arm in small], [better(arm, EARLY) for arm in larger])


def late(arms):
    pairs = twins(arms, blocks=(2,))
    ours = [better(p, EARLY) for p, _ in pairs] + [better(r) for _, r in pairs]
    theirs = [better(r, EARLY) for _, r in pairs] + [better(p) for p, _ in pairs]
    return contrast(ours, theirs).halved()


def calms(arms):
    if kind(arms[0]) == "segmentation":
        pairs = twins(arms, blocks=(2,))
    else:
        pairs = twins(arms) + hrnet_pairs(arms)
    return contrast([calmer(r) for _, r in pairs], [calmer(p) for p, _ in pairs])


def larger_field(arms):
    wide, narrow = [], []
    for blocks in (2, 3, 4):
        same = sorted((arm for arm in unets(arms, (blocks,)) if is_random(arm)), key=field)
        if same and field(same[0]) < field(same[-1]):
            narrow.append(better(same[0]))
            wide.append(better(same[-1]))
    return contrast(wide, narrow)


def hrnet_pairs(arms):
    return [(p, r) for p in hrnets(arms) if is_pix2pix(p) for r in hrnets(arms) if is_random(r)]


def hrnet_below_unets(arms):
    return contrast([better(arm) for arm in unets(arms) if is_pix2pix(arm)],
                    [better(arm) for arm in hrnets(arms) if is_random(arm)])  # fmt: skip


def hrnet_gains(arms):
    pairs = hrnet_pairs(arms)
    return contrast([better(p) for p, _ in pairs], [better(r) for _, r in pairs])


def hrnet_above_unets(arms):
    pretrained = [better(arm) for arm in hrnets(arms) if is_pix2pix(arm)]
    against = [contrast(pretrained, [better(arm)]) for arm in unets(arms)]
    return min((found for found in against if not math.isnan(found.low)),
               key=lambda found: found.mean, default=NOTHING)  # fmt: skip


# Restoration.


def gains_in_l1(arms):
    pairs = hrnet_pairs(arms) + twins(arms)
    return contrast([validation(r) for _, r in pairs], [validation(p) for p, _ in pairs])


def smaller_subset(arms, part):
    """Val L1 after `part` twelfths: from the smallest pretraining minus from the largest."""
    ordered = sorted(filter(is_pix2pix, arms), key=lambda arm: arm.pretraining["records"])
    if not ordered or ordered[0].pretraining["records"] == ordered[-1].pretraining["records"]:
        return NOTHING
    return contrast([validation(ordered[0], part)], [validation(ordered[-1], part)])


# Learning rates.


def steadier(arms):
    """How far the scores over the learning rates lie apart: R minus P."""
    apart = {}
    for start in (is_random, is_pix2pix):
        rates = collections.defaultdict(dict)
        for arm in filter(start, arms):
            rates[arm.key_without("optimizer", "initialise"), arm.start][
                arm.config["optimizer"]["lr"]
            ] = arm
        for (key, _), same in rates.items():
            if len(same) > 2:
                apart.setdefault(key, {}).setdefault(start, []).append(spread_of(same.values()))
    both = [each for each in apart.values() if len(each) == 2]
    return contrast([s for each in both for s in each[is_random]],
                    [s for each in both for s in each[is_pix2pix]])  # fmt: skip


def spread_of(arms):
    """{seed: {"all": highest minus lowest mean test score}} over the seeds that all arms have."""
    means = [
        {seed: sum(scores.values()) / len(scores) for seed, scores in tested(arm).items()}
        for arm in arms
    ]
    common = set.intersection(*map(set, means))
    return {s: {"all": max(m[s] for m in means) - min(m[s] for m in means)} for s in common}


CLAIMS = (
    Claim("1a", "The val L1 of GAN pretraining falls with the subset's size.",
          "best val L1 on the smallest subset minus on the largest, mean over networks",
          falls_with_subset, "pretraining"),
    Claim("1b", "U-Net 4 424 restores with a lower val L1 than HRNet.",
          "best val L1 of HRNet minus U-Net 4 424, mean over subsets",
          copies, "pretraining"),
    Claim("2a", "Early, small pretrained U-Nets are ahead of the same from random weights.",
          "early test score of P minus R, mean over 2-block U-Nets",
          early_same, "segmentation"),
    Claim("2b", "Early, small pretrained U-Nets are ahead of larger ones from random weights.",
          "mean early test score of 2-block U-Nets P minus that of 3- and 4-block U-Nets R",
          early_larger, "segmentation"),
    Claim("2c", "Random weights catch up late.",
          "half of: (P minus R early) minus (P minus R at the end), 2-block U-Nets",
          late, "segmentation"),
    Claim("2d", "Random weights oscillate more.",
          "standard deviation of the val score's change between evaluations, R minus P, "
          "2-block U-Nets",
          calms, "segmentation"),
    Claim("3", "From random weights, a larger receptive field is better.",
          "final test score with the largest minus the smallest receptive field of R U-Nets of "
          "equal depth, mean over depths",
          larger_field, "segmentation"),
    Claim("4a", "HRNet from random weights is below finetuned U-Nets.",
          "mean final test score of U-Nets P minus that of HRNet R",
          hrnet_below_unets, "segmentation"),
    Claim("4b", "Pretrained HRNet is above HRNet from random weights.",
          "final test score of HRNet P minus R, mean over pretrainings",
          hrnet_gains, "segmentation"),
    Claim("4c", "Pretrained HRNet is above all U-Nets.",
          "mean final test score of HRNet P minus that of the U-Net that comes nearest",
          hrnet_above_unets, "segmentation"),
    Claim("5a", "Pretraining lowers the val L1 of restoration.",
          "best val L1 of R minus P, mean over pretrainings",
          gains_in_l1, "restoration"),
    Claim("5b", "From a smaller pretraining subset, the val L1 starts higher.",
          "val L1 early, from the smallest minus the largest subset",
          lambda arms: smaller_subset(arms, EARLY), "restoration"),
    Claim("5c", "That difference is gone after about ten epochs.",
          "val L1 after two twelfths, from the smallest minus the largest subset; zero lies in the "
          "interval",
          lambda arms: smaller_subset(arms, TENTH_EPOCH), "restoration", none=True),
    Claim("5d", "Random weights fluctuate more in restoration.",
          "standard deviation of the val L1's change between evaluations, R minus P",
          calms, "restoration"),
    Claim("6", "Pretraining makes the result depend less on hyperparameters.",
          "highest minus lowest final test score over at least three learning rates, R minus P",
          steadier, "both", rates=True),
)  # fmt: skip
