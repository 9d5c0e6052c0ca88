"""`crossprobe site new`: a site folder from images, loops and DICOM as a hospital has them."""

import json
import re
import unicodedata
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.progress import Progress

from common.errors import CrossProbeError
from common.files import check_apart, check_outside, write_atomically
from common.options import Json, number


def new(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="folder of images and loops; it is left alone")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="the site's folder to write")],
    role: Annotated[Literal["source", "target"], typer.Option(help="source: with masks; target: without")],
    name: Annotated[str | None, typer.Option(help="the site's name in studies (default: the name of OUT)")] = None,
    table: Annotated[
        Path | None, typer.Option(metavar="FILE", help="CSV with `image` and any of a manifest's columns")
    ] = None,
    patient_pattern: Annotated[
        str | None, typer.Option(metavar="REGEX", help=r"finds the patient in a path: '(case\d+)_'")
    ] = None,
    masks: Annotated[
        Path | None,
        typer.Option(metavar="DIR|FILE", help="folder with a mask of the same path for each image, or a COCO file"),
    ] = None,
    spacing_mm: Annotated[
        float | None, typer.Option(parser=number, help="side of a pixel, where neither header nor table tells it")
    ] = None,
    device: Annotated[str, typer.Option(help="name of the probe, where neither header nor table tells it")] = "",
    key: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="the site's key for patients' names (default: OUT.key, made once)"),
    ] = None,
    sheet: Annotated[
        Path | None, typer.Option(metavar="FILE", help="pictures before and after (default: OUT-before-after.png)")
    ] = None,
    write_all: Annotated[
        Path | None, typer.Option("--all", metavar="FILE", help="write all findings to FILE; three of a kind are shown")
    ] = None,
    most_frames: Annotated[int, typer.Option(min=1, help="of one loop")] = 20,
    keep_outside: Annotated[
        bool, typer.Option("--keep-outside", help="do NOT blank what is outside of the field of view")
    ] = False,
    keep_marks: Annotated[
        bool, typer.Option("--keep-marks", help="do NOT look for text and marks within the field of view")
    ] = False,
    keep_frames: Annotated[bool, typer.Option("--keep-frames", help="also take frames that show the same")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace an earlier OUT")] = False,
    as_json: Json = False,
) -> None:
    """Make a site folder from images, loops and DICOM as a hospital has them.

    Takes the images in, checks the folder, and prints what was removed and what is wrong.
    """
    from clients.data.findings import EXAMPLES, grouped, one_line
    from clients.data.intake.before_after import BeforeAfter
    from clients.data.intake.identity import pseudonym_key
    from clients.data.intake.intake import Rules, take_in
    from clients.data.intake.sources import find_sources
    from clients.data.manifest import SPACING_MM
    from clients.data.site import check_name, check_site

    check_apart(source, out)
    outside = out.resolve()
    sheet = sheet or outside.with_name(f"{outside.name}-before-after.png")
    for written in filter(None, (sheet, key, write_all)):
        check_outside(written, source, out)
    if spacing_mm is not None and not SPACING_MM[0] <= spacing_mm <= SPACING_MM[1]:
        raise CrossProbeError(f"expected --spacing-mm from {SPACING_MM[0]} to {SPACING_MM[1]}, found {spacing_mm}.")
    plain = unicodedata.normalize("NFKD", outside.name).encode("ascii", "ignore").decode().lower()
    site_name = check_name(name or re.sub("[^a-z0-9]+", "-", plain).strip("-")[:63])
    found = find_sources(source, table=table, pattern=patient_pattern, masks=masks)
    secret = pseudonym_key(key or outside.with_name(f"{outside.name}.key"))
    pictures = BeforeAfter()
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("taking in", total=None)
        removed = take_in(
            found,
            out,
            name=site_name,
            rules=Rules(role, spacing_mm, device, keep_outside, keep_marks, keep_frames, most_frames),
            key=secret,
            overwrite=overwrite,
            sheet=pictures,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    _, findings = check_site(out)
    if write_all:
        lines = "".join(f"{finding}\n" for finding in (*removed.findings, *findings))
        write_atomically(write_all, lines.encode(errors="surrogateescape"), then="check the site")
    if as_json:
        print(json.dumps({"ok": not findings, "removed": asdict(removed), "findings": [asdict(f) for f in findings]}))
        pictures.write(sheet)
        raise typer.Exit(1 if findings else 0)
    for line in (*grouped(removed.findings), *removed.lines()):
        print(line)
    for name_of_mask in removed.unused_masks[:EXAMPLES]:
        print(one_line(f"no image for the mask {name_of_mask}"))
    pictures.write(sheet)  # after the report, which is not lost where the sheet cannot be written
    print(
        f"look at {sheet}: left is before, red was blanked, orange filled. It holds what was burned in, and stays here"
    )
    for line in grouped(findings):
        print(line)
    left = ""
    if removed.findings:
        every = write_all or "--all FILE"
        left = f"; {len(removed.findings)} file(s) or folder(s) were NOT taken in: see above, and each in {every}"
    print(f"{out}: {f'{len(findings)} finding(s), mend them' if findings else 'a site without findings'}{left}")
    if findings:
        raise typer.Exit(1)
