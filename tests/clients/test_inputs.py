"""What `predict` is given: a folder, a site's folder, or a table."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import write_site

from clients.data.findings import SiteFolderError
from clients.inputs import find_inputs


def test_a_site_folder_is_read_by_its_manifest_so_that_no_mask_is_an_image(tmp_path: Path) -> None:
    site = write_site(tmp_path / "north", "source", patients={"train": 2})

    assert {given.name for given in find_inputs(site)} == {f"images/scan-north-train-{n}.png" for n in (0, 1)}


@pytest.mark.parametrize("row", ["../x.png,", "/etc/passwd,", ",0.1", "s0.png,nan", "s0.png,120"])
def test_a_table_that_makes_no_sense_is_refused(tmp_path: Path, row: str) -> None:
    Image.fromarray(np.zeros((48, 64), np.uint8)).save(tmp_path / "s0.png")
    (tmp_path / "list.csv").write_text(f"image,spacing_mm\n{row}\n")

    with pytest.raises(SiteFolderError, match=r"list\.csv line 2"):
        find_inputs(tmp_path / "list.csv")
