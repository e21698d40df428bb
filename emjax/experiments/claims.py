"""The claims of the paper (Kazimi et al., arXiv 2402.18286) as rules that runs can decide.

Each rule is a difference with a sign that the claim predicts, written so that it is positive if the
claim holds. A claim is supported if the whole 95 % interval of that difference is above zero, not
supported if it is not, and not measured where the runs that it needs are missing. R: from random
weights; P: from a Pix2Pix pretraining. "Early" is after a twelfth of a run, epoch 5 of the paper's
60. Arms are compared if they share everything except network and initial weights, seed by seed and
image by image; on every dataset that has the runs, the paper's or not.
"""

import collections
import json
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple

from emjax.experiments.arms import RANDOM, Arm
from emjax.experiments.intervals import (
    NOTHING,
    Interval,
    Scores,
    by_seed,
    contrast,
    image_scores,
    volatility,
)
from emjax.models.build import build_abstract
from emjax.runs.run import PARTS

EARLY, TENTH_EPOCH = 1, 2  # twelfths of a run

PAPER = {  # where the paper has the scores on a dataset
    "au_nanoparticles/au5nm_v1": "Table 2, Figure 6",
    "au_nanoparticles/au2_2nm": "Table 3, Figure 7",
    "au_nanoparticles/au5nm": "Table 4, Figure 8",
    "au_nanoparticles/au10nm": "Table 5, Figure 9",
    "au_nanoparticles/au20nm": "Table 6, Figure 11",
    "temimagenet": "Table 7, Figure 19",
    "cem500k": "Figure 4",
}


class Claim(NamedTuple):
    """A claim, the rule that decides it, and the function that computes the rule's difference."""

    name: str
    words: str
    rule: str
    measure: Callable[[Sequence[Arm]], Interval]  # of comparable arms, or of pretrainings
    of: Literal["pretraining", "segmentation", "restoration", "both"]  # the tasks it is about
    none: bool = False  # the claim is that there is no difference: zero lies in the interval
    rates: bool = False  # it compares arms of different learning rates, too


class Finding(NamedTuple):
    """A claim on one dataset."""

    claim: Claim
    where: str
    difference: Interval

    @property
    def verdict(self) -> str:
        """`supported`, `not supported` or `not measured`."""
        if math.isnan(self.difference.low):
            return "not measured"
        held = self.difference.low > 0
        if self.claim.none:
            held = self.difference.low <= 0 <= self.difference.high
        return "supported" if held else "not supported"


def judge(arms: Iterable[Arm], pretrained: Sequence[Arm]) -> list[Finding]:
    """Return the findings of all claims: one per dataset with the runs, one without if none has.

    Args:
        arms: of finetuning runs.
        pretrained: arms of pretraining runs.
    """
    findings, comparable = [], group_comparable(arms)
    for claim in CLAIMS:
        if claim.of == "pretraining":
            found = {"pretraining": claim.measure(pretrained)}
        else:
            found = {
                where: measure_largest(claim, groups)
                for where, groups in comparable.items()
                if claim.of in ("both", kind_of(groups[0][0]))
            }
        measured = {w: interval for w, interval in found.items() if not math.isnan(interval.low)}
        findings += [Finding(claim, w, interval) for w, interval in measured.items()]
        if not measured:
            findings.append(Finding(claim, "-", NOTHING))
    return findings


def group_comparable(arms: Iterable[Arm]) -> dict[str, list[list[Arm]]]:
    """Return {dataset and task: [[Arm] that differ in network and initial weights alone]}."""
    alike: dict[tuple[str, str], list[Arm]] = {}
    for arm in arms:
        alike.setdefault(arm.key_without("model", "initialise"), []).append(arm)
    found = collections.defaultdict(list)
    for members in alike.values():
        found[f"{members[0].data}, {members[0].config['task']}"].append(members)
    return found


def measure_largest(claim: Claim, groups: Sequence[Sequence[Arm]]) -> Interval:
    """Return what `claim` finds in the group with the most finished runs that decides it."""
    if claim.rates:
        return claim.measure([arm for group in groups for arm in group])
    largest = sorted(groups, key=lambda group: -sum(len(arm.seeds) for arm in group))
    found = (claim.measure(group) for group in largest)
    return next((f for f in found if not math.isnan(f.low)), NOTHING)


def with_paper_table(name: str) -> str:
    """Return a dataset and task's `name`, with its table in the paper in front if it has one."""
    tables = [table for dataset, table in PAPER.items() if name.startswith(dataset + ":")]
    return f"{tables[0]}: {name}" if tables else name


# Choosing arms, and what is measured of one.


def kind_of(arm: Arm) -> str:
    """Return `segmentation` or `restoration`."""
    return "segmentation" if arm.config["task"] == "segmentation" else "restoration"


def is_random(arm: Arm) -> bool:
    """Return whether the arm starts from random weights (R)."""
    return not arm.pretraining and arm.start == RANDOM[0]


def is_pix2pix(arm: Arm) -> bool:
    """Return whether the arm starts from a Pix2Pix pretraining (P), or is one."""
    return arm.start.startswith("pix2pix")


def unets(arms: Iterable[Arm], blocks: Sequence[int] = (2, 3, 4)) -> list[Arm]:
    """Return the arms of U-Nets with so many blocks."""
    return [arm for arm in arms if arm.config["model"].get("blocks") in blocks]


def hrnets(arms: Iterable[Arm]) -> list[Arm]:
    """Return the arms of HRNets."""
    return [arm for arm in arms if arm.config["model"]["name"] == "hrnet"]


def receptive_field(arm: Arm) -> int:
    """Return the receptive field of a U-Net, in pixels."""
    network: Any = build_abstract(arm.config["model"])
    return network.receptive_field


def matched_pairs(arms: Sequence[Arm]) -> list[tuple[Arm, Arm]]:
    """Return [(P arm, R arm of the same network)]."""
    return [
        (arm, base)
        for arm in filter(is_pix2pix, arms)
        for base in filter(is_random, arms)
        if arm.config["model"] == base.config["model"]
    ]


def by_subset(
    arms: Iterable[Arm], network: Callable[[Arm], str], records: Callable[[Arm], int]
) -> tuple[list[Arm], list[Arm]]:
    """Return the arms on the smallest and on the largest subset of each network that has several.

    Args:
        network: a key that is equal for arms that differ in nothing but the subset.
        records: the size of the subset.
    """
    alike: dict[str, list[Arm]] = collections.defaultdict(list)
    for arm in arms:
        alike[network(arm)].append(arm)
    ordered = [sorted(same, key=records) for same in alike.values()]
    several = [same for same in ordered if records(same[0]) < records(same[-1])]
    return [same[0] for same in several], [same[-1] for same in several]


def oriented(arm: Arm, part: int = PARTS) -> Scores:
    """Return the arm's test scores after `part` twelfths, negated where less is better."""
    return {
        seed: {image: arm.runs[0].sign * value for image, value in scores.items()}
        for seed, scores in image_scores(arm, part).items()
    }


def validation(arm: Arm, part: int = PARTS) -> Scores:
    """Return the best validation score after `part` twelfths, by seed, not negated."""
    return by_seed(arm, lambda run: run.best(part).get(run.score, math.nan))


def volatilities(arm: Arm) -> Scores:
    """Return the volatility of the validation score, by seed."""
    return by_seed(arm, volatility)


# Pretraining. Lower L1 is better, so differences are reversed.


def pretraining_l1_falls_with_subset_size(arms: Sequence[Arm]) -> Interval:
    """Return best val L1 of Pix2Pix pretraining, smallest minus largest subset; + if it falls."""
    begun = [arm for arm in filter(is_pix2pix, arms) if arm.runs[0].planned]
    smallest, largest = by_subset(
        begun, lambda arm: str(arm.key_without("data")), lambda arm: arm.runs[0].records
    )
    return contrast([*map(validation, smallest)], [*map(validation, largest)])


def unet_restores_better_than_hrnet(arms: Sequence[Arm]) -> Interval:
    """Return best val L1 of Pix2Pix pretraining, HRNet minus U-Net 4 424; + if the U-Net leads."""
    largest = [arm for arm in unets(arms) if is_pix2pix(arm) and receptive_field(arm) == 424]
    pairs = [
        (other, arm)
        for arm in largest
        for other in hrnets(arms)
        if is_pix2pix(other) and other.key_without("model") == arm.key_without("model")
    ]
    return contrast([validation(hrnet) for hrnet, _ in pairs], [validation(u) for _, u in pairs])


# Segmentation.


def small_pretrained_unet_leads_early(arms: Sequence[Arm]) -> Interval:
    """Return early test score of 2-block U-Nets, P minus R; + if pretraining leads."""
    pairs = matched_pairs(unets(arms, (2,)))
    return contrast([oriented(p, EARLY) for p, _ in pairs], [oriented(r, EARLY) for _, r in pairs])


def small_pretrained_unet_leads_larger_early(arms: Sequence[Arm]) -> Interval:
    """Return early test score, 2-block U-Nets P minus 3- and 4-block R; + if the small lead."""
    small = [arm for arm in unets(arms, (2,)) if is_pix2pix(arm)]
    larger = [arm for arm in unets(arms, (3, 4)) if is_random(arm)]
    return contrast(
        [oriented(arm, EARLY) for arm in small], [oriented(arm, EARLY) for arm in larger]
    )


def random_weights_catch_up(arms: Sequence[Arm]) -> Interval:
    """Return half of (P minus R early) minus (P minus R at the end); + if the lead of P shrinks."""
    pairs = matched_pairs(unets(arms, (2,)))
    ours = [oriented(p, EARLY) for p, _ in pairs] + [oriented(r) for _, r in pairs]
    theirs = [oriented(r, EARLY) for _, r in pairs] + [oriented(p) for p, _ in pairs]
    return contrast(ours, theirs).halved()


def random_weights_are_more_volatile(arms: Sequence[Arm]) -> Interval:
    """Return volatility of the val score, R minus P; + if random weights fluctuate more."""
    is_segmentation = kind_of(arms[0]) == "segmentation"
    pairs = matched_pairs(unets(arms, (2,)) if is_segmentation else arms)
    return contrast([volatilities(r) for _, r in pairs], [volatilities(p) for p, _ in pairs])


def larger_receptive_field_is_better(arms: Sequence[Arm]) -> Interval:
    """Return final test score of R U-Nets, largest minus smallest field; + if large is better."""
    wide, narrow = [], []
    for blocks in (2, 3, 4):
        random = [arm for arm in unets(arms, (blocks,)) if is_random(arm)]
        same = sorted(random, key=receptive_field)
        if same and receptive_field(same[0]) < receptive_field(same[-1]):
            narrow.append(oriented(same[0]))
            wide.append(oriented(same[-1]))
    return contrast(wide, narrow)


def random_hrnet_is_below_pretrained_unets(arms: Sequence[Arm]) -> Interval:
    """Return final test score, U-Nets P minus HRNet R; + if the HRNet is below."""
    return contrast(
        [oriented(arm) for arm in unets(arms) if is_pix2pix(arm)],
        [oriented(arm) for arm in hrnets(arms) if is_random(arm)],
    )


def hrnet_gains_from_pretraining(arms: Sequence[Arm]) -> Interval:
    """Return final test score of HRNet, P minus R; + if pretraining helps."""
    pairs = matched_pairs(hrnets(arms))
    return contrast([oriented(p) for p, _ in pairs], [oriented(r) for _, r in pairs])


def pretrained_hrnet_is_above_all_unets(arms: Sequence[Arm]) -> Interval:
    """Return final test score, HRNet P minus the nearest U-Net, P or R; + if all are below."""
    pretrained = [oriented(arm) for arm in hrnets(arms) if is_pix2pix(arm)]
    against = [contrast(pretrained, [oriented(arm)]) for arm in unets(arms)]
    measured = (found for found in against if not math.isnan(found.low))
    return min(measured, key=lambda found: found.mean, default=NOTHING)


# Restoration.


def pretraining_lowers_restoration_l1(arms: Sequence[Arm]) -> Interval:
    """Return best val L1, R minus P; + if pretraining lowers it."""
    pairs = matched_pairs(arms)
    return contrast([validation(r) for _, r in pairs], [validation(p) for p, _ in pairs])


def smaller_subset_starts_higher(arms: Sequence[Arm]) -> Interval:
    """Return early val L1 of P, smallest minus largest subset; + if the smallest starts higher."""
    return smallest_minus_largest_subset(arms, EARLY)


def subsets_are_equal_after_ten_epochs(arms: Sequence[Arm]) -> Interval:
    """Return val L1 of P after two twelfths, smallest minus largest subset; around 0 if equal."""
    return smallest_minus_largest_subset(arms, TENTH_EPOCH)


def smallest_minus_largest_subset(arms: Sequence[Arm], part: int) -> Interval:
    """Return val L1 of P after `part` twelfths, from the smallest minus the largest subset."""
    smallest, largest = by_subset(
        filter(is_pix2pix, arms),
        lambda arm: json.dumps(arm.config["model"], sort_keys=True),
        lambda arm: arm.pretraining["records"],
    )
    return contrast(
        [validation(arm, part) for arm in smallest], [validation(arm, part) for arm in largest]
    )


# Learning rates.


def pretraining_lowers_dependence_on_learning_rate(arms: Sequence[Arm]) -> Interval:
    """Return the spread of test scores over learning rates, R minus P; + if P depends less."""
    spreads = {}
    for start in (is_random, is_pix2pix):
        rates = collections.defaultdict(dict)
        for arm in filter(start, arms):
            key = arm.key_without("optimizer", "initialise"), arm.start
            rates[key][arm.config["optimizer"]["lr"]] = arm
        for (key, _), same in rates.items():
            if len(same) > 2:
                spreads.setdefault(key, {}).setdefault(start, []).append(spread(same.values()))
    both = [each for each in spreads.values() if len(each) == 2]
    return contrast(
        [s for each in both for s in each[is_random]],
        [s for each in both for s in each[is_pix2pix]],
    )


def spread(arms: Iterable[Arm]) -> Scores:
    """Return {seed: {"all": highest minus lowest mean test score}} over the seeds all arms have."""
    means = [
        {seed: sum(scores.values()) / len(scores) for seed, scores in image_scores(arm).items()}
        for arm in arms
    ]
    common = set.intersection(*map(set, means))
    return {s: {"all": max(m[s] for m in means) - min(m[s] for m in means)} for s in common}


CLAIMS = (
    Claim("1a", "The val L1 of GAN pretraining falls with the subset's size.",
          "best val L1 on the smallest subset minus on the largest, mean over networks",
          pretraining_l1_falls_with_subset_size, "pretraining"),
    Claim("1b", "U-Net 4 424 restores with a lower val L1 than HRNet.",
          "best val L1 of HRNet minus U-Net 4 424, mean over subsets",
          unet_restores_better_than_hrnet, "pretraining"),
    Claim("2a", "Early, small pretrained U-Nets are ahead of the same from random weights.",
          "early test score of P minus R, mean over 2-block U-Nets",
          small_pretrained_unet_leads_early, "segmentation"),
    Claim("2b", "Early, small pretrained U-Nets are ahead of larger ones from random weights.",
          "mean early test score of 2-block U-Nets P minus that of 3- and 4-block U-Nets R",
          small_pretrained_unet_leads_larger_early, "segmentation"),
    Claim("2c", "Random weights catch up late.",
          "half of: (P minus R early) minus (P minus R at the end), 2-block U-Nets",
          random_weights_catch_up, "segmentation"),
    Claim("2d", "Random weights oscillate more.",
          "standard deviation of the val score's change between evaluations, R minus P, "
          "2-block U-Nets",
          random_weights_are_more_volatile, "segmentation"),
    Claim("3", "From random weights, a larger receptive field is better.",
          "final test score with the largest minus the smallest receptive field of R U-Nets of "
          "equal depth, mean over depths",
          larger_receptive_field_is_better, "segmentation"),
    Claim("4a", "HRNet from random weights is below finetuned U-Nets.",
          "mean final test score of U-Nets P minus that of HRNet R",
          random_hrnet_is_below_pretrained_unets, "segmentation"),
    Claim("4b", "Pretrained HRNet is above HRNet from random weights.",
          "final test score of HRNet P minus R, mean over pretrainings",
          hrnet_gains_from_pretraining, "segmentation"),
    Claim("4c", "Pretrained HRNet is above all U-Nets.",
          "mean final test score of HRNet P minus that of the U-Net that comes nearest",
          pretrained_hrnet_is_above_all_unets, "segmentation"),
    Claim("5a", "Pretraining lowers the val L1 of restoration.",
          "best val L1 of R minus P, mean over pretrainings",
          pretraining_lowers_restoration_l1, "restoration"),
    Claim("5b", "From a smaller pretraining subset, the val L1 starts higher.",
          "val L1 early, from the smallest minus the largest subset, mean over networks",
          smaller_subset_starts_higher, "restoration"),
    Claim("5c", "That difference is gone after about ten epochs.",
          "val L1 after two twelfths, from the smallest minus the largest subset, mean over "
          "networks; zero lies in the interval",
          subsets_are_equal_after_ten_epochs, "restoration", none=True),
    Claim("5d", "Random weights fluctuate more in restoration.",
          "standard deviation of the val L1's change between evaluations, R minus P",
          random_weights_are_more_volatile, "restoration"),
    Claim("6", "Pretraining makes the result depend less on hyperparameters.",
          "highest minus lowest final test score over at least three learning rates, R minus P",
          pretraining_lowers_dependence_on_learning_rate, "both", rates=True),
)  # fmt: skip
