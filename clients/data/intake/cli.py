"""The arguments and the output of `crossprobe site new`."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from common.components import ROLES
from common.errors import CrossProbeError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `site new` takes."""
    parser.add_argument("source", type=Path, metavar="SRC", help="folder of images and loops, as they are; left alone")
    parser.add_argument("out", type=Path, metavar="OUT", help="the site's folder to write")
    parser.add_argument("--name", help="the site's name in studies (default: the name of OUT)")
    parser.add_argument("--role", choices=ROLES, required=True, help="source: with masks; target: without")
    parser.add_argument("--table", type=Path, help="CSV with `image` and any of a manifest's columns")
    parser.add_argument("--patient-pattern", metavar="REGEX", help=r"finds the patient in a path: '(case\d+)_'")
    parser.add_argument("--masks", type=Path, help="folder with a mask of the same path for each image")
    parser.add_argument("--spacing-mm", type=float, help="side of a pixel, where neither header nor table tells it")
    parser.add_argument("--device", default="", help="name of the probe, where neither header nor table tells it")
    parser.add_argument("--key", type=Path, help="the site's key for patients' names (default: OUT.key, made once)")
    parser.add_argument("--sheet", type=Path, help="pictures before and after (default: OUT-before-after.png)")
    parser.add_argument("--most-frames", type=int, default=20, help="of one loop (default: %(default)s)")
    parser.add_argument("--keep-outside", action="store_true", help="do NOT blank what is outside of the field of view")
    parser.add_argument("--keep-frames", action="store_true", help="also take frames that show the same")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier OUT")


def run(chosen: argparse.Namespace) -> int:
    """Take the images in, check the folder, and print what was removed and what is wrong."""
    from clients.data.findings import grouped
    from clients.data.intake.before_after import BeforeAfter
    from clients.data.intake.identity import site_key
    from clients.data.intake.intake import Rules, take_in
    from clients.data.intake.sources import find_sources
    from clients.data.manifest import SPACING_MM
    from clients.data.site import check_name, check_site

    source, out = chosen.source.resolve(), chosen.out.resolve()
    if out.is_relative_to(source) or source.is_relative_to(out):
        raise CrossProbeError(f"expected OUT apart from SRC, found {chosen.out} within it or around it. Give another.")
    if chosen.spacing_mm is not None and not SPACING_MM[0] <= chosen.spacing_mm <= SPACING_MM[1]:
        raise CrossProbeError(
            f"expected --spacing-mm from {SPACING_MM[0]} to {SPACING_MM[1]}, found {chosen.spacing_mm}."
        )
    if chosen.most_frames < 1:
        raise CrossProbeError(f"expected --most-frames of at least 1, found {chosen.most_frames}.")
    name = check_name(chosen.name or out.name)
    key = site_key(chosen.key or out.with_name(f"{out.name}.key"))
    sources = find_sources(chosen.source, table=chosen.table, pattern=chosen.patient_pattern, masks=chosen.masks)
    sheet = BeforeAfter()
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("taking in", total=None)
        removed = take_in(
            sources,
            chosen.out,
            name=name,
            rules=Rules(
                chosen.role,
                chosen.spacing_mm,
                chosen.device,
                chosen.keep_outside,
                chosen.keep_frames,
                chosen.most_frames,
            ),
            key=key,
            overwrite=chosen.overwrite,
            show=sheet.add,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    pictures = chosen.sheet or out.with_name(f"{out.name}-before-after.png")
    sheet.write(pictures)
    _, findings = check_site(chosen.out)
    if chosen.json:
        print(json.dumps({"ok": not findings, "removed": asdict(removed), "findings": [asdict(f) for f in findings]}))
        return 1 if findings else 0
    for line in (*grouped(removed.findings), *removed.lines()):
        print(line)
    print(
        f"look at {pictures}: left is before, red is what was blanked. It holds whatever was burned in; it stays here"
    )
    for line in grouped(findings):
        print(line)
    print(f"{chosen.out}: {f'{len(findings)} finding(s), mend them' if findings else 'a site without findings'}")
    return 1 if findings else 0
