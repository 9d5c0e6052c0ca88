"""The README's picture: of phantoms alone, small, and with what it says."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.errors import RunError
from server.report.drawn import Example
from simulations.picture import GROUND, PANEL_HEIGHT, compose, panels_of, picture

ROOT = Path(__file__).resolve().parents[2]


def webp(grey: int, width: int = 200) -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (width, 100), (grey, grey, grey)).save(buffer, "WebP", lossless=True)
    return buffer.getvalue()


def example(role: str, grey: int) -> Example:
    names = ("Image", "Baseline", "Truth, outline", "Infusion over truth, outlines")
    panels = [(name, webp(grey + 20 * number)) for number, name in enumerate(names)]
    return Example("site", role, "median", {"baseline": 0.714, "infusion": 0.88}, panels)


def test_four_panels_stand_beside_each_other_with_the_dice_of_that_image() -> None:
    panels = panels_of(example("source", 30), example("target", 120))
    assert [quiet for _, _, quiet in panels[2:]] == ["Dice 71 %", "Dice 88 %, truth in yellow"]
    whole = np.asarray(Image.open(BytesIO(compose(panels))).convert("L")).astype(int)
    middle = whole[28 + PANEL_HEIGHT // 2]
    runs = [level for level in (70, 120, 140, 180) if (abs(middle - level) < 8).sum() > 600]
    assert runs == [70, 120, 140, 180]  # the source's truth; the target's image, baseline and method
    words = whole[28 + PANEL_HEIGHT + 12 :, 28:]
    for left in range(0, 4 * 744, 744):  # a panel and its gap
        assert words[:, left : left + 720].max() > 200
    assert (words[:, -20:] < max(GROUND) + 30).all()  # no word runs out of the picture


def test_other_sites_than_phantoms_are_not_drawn(tmp_path: Path, pair: Sequence[Path]) -> None:
    (tmp_path / "sites").mkdir()
    for folder in pair:
        (tmp_path / "sites" / folder.name).symlink_to(folder)
    with pytest.raises(RunError, match="other sites than phantoms"):
        picture(tmp_path, tmp_path / "out.webp")
    assert not (tmp_path / "out.webp").exists()


def test_the_readme_shows_it_above_the_fold_and_says_how_it_was_made() -> None:
    top = (ROOT / "README.md").read_text("utf-8").splitlines()[:8]
    assert any("(docs/picture.webp)" in line for line in top)
    assert "make picture" in " ".join(top).replace("make\npicture", "make picture")
    assert (ROOT / "docs" / "picture.webp").stat().st_size < 150_000
