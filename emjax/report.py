"""Tables, curves, pictures and verdicts of runs: python -m emjax.report --runs=DIR --out=DIR.

Writes OUT/report.html (one self-contained page), OUT/report.md (its tables) and OUT/curves/*.png;
there are no micrographs in the latter two. Every number comes from the runs' own files; a partial
matrix gives a partial report that names what is missing.
"""

import collections
import datetime
import re
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from emjax import cli
from emjax.errors import UsageError
from emjax.experiments import claims, gallery, page
from emjax.experiments.arms import group_arms, group_pretrainings
from emjax.experiments.curves import curves_png
from emjax.experiments.opening import opening
from emjax.experiments.page import Picture, Section
from emjax.experiments.tables import (
    by_network,
    claim_row,
    count_rows,
    finetuning_tables,
    pretraining_row,
    run_row,
    settings_row,
    versions_of,
)
from emjax.files import check_writable, write_atomically
from emjax.runs.run import find_runs, missing_runs

PROTOCOL = (
    "Test scores are those of the evaluation with the best validation score so far, given after "
    "each twelfth of a run (every 5 of the paper's 60 epochs). Finished runs only. In brackets: "
    "95 % intervals of a bootstrap over seeds and test images together; over seeds alone where the "
    "scores of single images were not kept. Runs of different settings, pretrainings or versions "
    "of the program are never in one cell. Dice and L1 are between 0 and 1; * marks the best of a "
    "row. The numbers of the paper itself are not known to this project."
)


@cli.command
def main(arguments: Sequence[str]) -> int:
    """Write the report and print its main tables; returns the exit code."""
    parser = cli.Parser(prog="emjax.report", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", required=True, type=Path, help="folder with workdirs in it")
    parser.add_argument("--out", required=True, type=Path, help="folder for the report")
    parser.add_argument("--overwrite", action="store_true", help="replace what is no report, too")
    options = parser.parse_args(arguments)
    root, out = options.runs, options.out
    check_writable(out)
    if not options.overwrite:
        check_replaceable(out)
    found = find_runs(root)
    groups = group_arms([run for run in found if "task" in run.config], root)
    pretrained = group_pretrainings([run for run in found if "task" not in run.config])

    tables, panels = finetuning_tables(groups)
    if pretrained:
        tables["Pretraining"] = [pretraining_row(arm) for arm in pretrained]
        panels["Pretraining"] = by_network(pretrained)
    printed = {title: rows for title, rows in tables.items() if "by epoch" not in title}
    findings = claims.judge([arm for arms in groups.values() for arm in arms], pretrained)
    tables["Claims of the paper"] = [claim_row(finding) for finding in findings]
    tables["Table 1: records"] = [*count_rows(found)]
    versions = collections.Counter(map(versions_of, found))
    details = {
        "Runs": [run_row(run) for run in found],
        "What was run": [settings_row(run) for run in found],
        "Versions": [{"runs": str(n), "versions": text} for text, n in versions.items()],
    }
    curves = {title: curves_png(title, networks) for title, networks in panels.items()}
    datasets = {run.config["data"]["evals"]["val"][0]: run for run in found}
    galleries = {
        f"Samples: {name}": partial(gallery.samples, run) for name, run in sorted(datasets.items())
    }
    galleries |= {
        f"Test records: {group}": partial(gallery.predictions, arms)
        for group, arms in groups.items()
    }
    galleries |= {
        f"Pretraining: {arm.model}, {arm.name}": partial(
            gallery.restorations, gallery.first_run(arm)
        )
        for arm in pretrained
    }

    today = datetime.date.today()
    missing = missing_runs(root, found)
    paragraphs = [
        f"Report made on {today}; where and when each run ran is under Versions.",
        PROTOCOL,
        f"Missing, {len(missing)} runs: {', '.join(missing)}." if missing else "All runs done.",
    ]
    sections = [
        *opening(groups, root),
        Section("Figure 1: what is learned from what", drawing="overview.svg"),
        *(Section(title, table=rows) for title, rows in tables.items()),
        *(Section(f"Curves: {title}", curves=Picture(png, title)) for title, png in curves.items()),
        *(gallery.section(title, rows) for title, rows in galleries.items()),
        *(Section(title, table=rows) for title, rows in details.items()),
    ]
    texts = [f"## {title}\n\n{page.markdown(rows)}" for title, rows in (tables | details).items()]
    (out / "curves").mkdir(parents=True, exist_ok=True)
    for title, png in curves.items():
        write_atomically(out / "curves" / f"{slug(title)}.png", png)
    text = "\n\n".join(["# Report", *paragraphs, *texts]) + "\n"
    write_atomically(out / "report.md", text.encode())
    html = page.render("emjax report", paragraphs, sections)
    write_atomically(out / "report.html", html.encode())
    for title, rows in printed.items():
        print(f"{title}\n\n{page.markdown(rows)}\n")
    print(out / "report.html")
    return 0


def check_replaceable(out: Path) -> None:
    """Raise UsageError if a report in `out` would replace a file that is not one."""
    for name, words in (("report.md", "Report made on "), ("report.html", ">emjax report<")):
        path = out / name
        if path.exists() and not (path.is_file() and words.encode() in path.read_bytes()):
            raise UsageError(
                f"{path} would be overwritten: expected nothing or a report of emjax, got another "
                "file; choose another --out, or --overwrite"
            )


def slug(title: str) -> str:
    """Return a title as a file name."""
    return re.sub(r"[^a-z0-9]+", "_", title.lower()).strip("_")


if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
