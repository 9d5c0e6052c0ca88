"""The README's picture: what both probes see, and what baseline and method make of it. Phantoms only.

Run as `python -m simulations.picture runs/demo docs/picture.webp`, after `crossprobe demo`.
"""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Annotated

import torch
import typer
from PIL import Image, ImageDraw, ImageFont

from clients.data.site import load_site
from common.errors import RunError
from common.files import PUBLIC, write_atomically
from common.options import RunArgument, only
from common.study import read_study_of_run
from server.report.conclusions import RELEASED
from server.report.drawn import Example
from simulations.examples import draw_examples
from simulations.phantom.sites import RECORD

#: In pixels; a README shows the whole about half as wide.
PANEL_HEIGHT, GAP, MARGIN, LETTER = 360, 24, 28, 25
#: Behind the panels, of their words, and of the quieter ones: dark, like the images, on any page.
GROUND, INK, SOFT = (20, 24, 28), (240, 242, 244), (160, 170, 178)
#: WebP's quality: speckle takes most of the file.
QUALITY = 62


def compose(panels: Sequence[tuple[bytes, str, str]]) -> bytes:
    """Return one WebP of panels in a row: picture, words, quieter words."""
    font, small = (ImageFont.load_default(size) for size in (LETTER, LETTER - 4))
    images = [Image.open(BytesIO(content)).convert("RGB") for content, _, _ in panels]
    images = [image.resize((round(image.width * PANEL_HEIGHT / image.height), PANEL_HEIGHT)) for image in images]
    width = 2 * MARGIN + sum(image.width for image in images) + GAP * (len(images) - 1)
    whole = Image.new("RGB", (width, 2 * MARGIN + PANEL_HEIGHT + 3 * LETTER), GROUND)
    draw, left = ImageDraw.Draw(whole), MARGIN
    for image, (_, words, quiet) in zip(images, panels, strict=True):
        whole.paste(image, (left, MARGIN))
        draw.text((left, MARGIN + PANEL_HEIGHT + 12), words, INK, font)
        draw.text((left, MARGIN + PANEL_HEIGHT + 12 + round(1.3 * LETTER)), quiet, SOFT, small)
        left += image.width + GAP
    buffer = BytesIO()
    whole.save(buffer, "WEBP", quality=QUALITY, method=6)
    return buffer.getvalue()


def panels_of(source: Example, target: Example) -> list[tuple[bytes, str, str]]:
    """Return the panels of one labelled and one unlabelled patient, with the Dice of that very image."""
    seen, unseen = dict(source.panels), dict(target.panels)

    def dice(predictor: str) -> str:
        return f"Dice {100 * target.dice[predictor]:.0f} %"

    method = next(picture for words, picture in target.panels if words.startswith("Infusion over truth"))
    return [
        (seen["Truth, outline"], "labelled probe", "image and label (yellow)"),
        (unseen["Image"], "another probe", "no label to learn from"),
        (unseen["Baseline"], "trained on labels alone", dice("baseline")),
        (method, "CrossProbe (green)", f"{dice(RELEASED)}, truth in yellow"),
    ]


def picture(
    run: RunArgument,
    out: Annotated[Path, typer.Argument(metavar="FILE", help="the picture, WebP")],
) -> None:
    """Draw the median test patients of a finished demo, whose sites are phantoms."""
    torch.set_num_threads(1)
    sites = [load_site(folder) for folder in sorted((run / "sites").iterdir()) if folder.is_dir()]
    if not all((site.folder / RECORD).is_file() for site in sites):
        raise RunError(f"{run / 'sites'} holds other sites than phantoms. Give the run of `crossprobe demo`.")
    drawn = draw_examples(read_study_of_run(run), run, sites)
    median = {example.role: example for example in drawn.pictures if "median" in example.label}
    if len(median) < 2:
        raise RunError(f"{run} has no pictures of both roles. Give the run of `crossprobe demo`.")
    write_atomically(out, compose(panels_of(median["source"], median["target"])), mode=PUBLIC)
    print(f"{out}: {median['source'].label} and {median['target'].label}")


if __name__ == "__main__":
    only(picture, "python -m simulations.picture runs/demo docs/picture.webp")
