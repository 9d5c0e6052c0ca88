"""A NIfTI mask for NIfTI input, with the input's shape and place in space."""

from pathlib import Path

import numpy as np

from clients.data.formats.nifti import read_header
from clients.results.masks import Masks


class NiftiMask:
    """`segmentations/NAME.seg.nii.gz`: 0 and 1 as uint8."""

    def __init__(self, source: Path, out: Path, name: str, model: str) -> None:
        self.source, self.masks = source, Masks()
        self.file = out / "segmentations" / f"{name.removesuffix('.gz').removesuffix('.nii')}.seg.nii.gz"

    def add(self, mask: np.ndarray, overlay: np.ndarray) -> None:
        """Take a frame's mask, bool [H, W]."""
        self.masks.add(mask)

    def close(self) -> Path:
        """Write the file. Raises PictureError."""
        import nibabel

        given = read_header(self.source)
        volume = self.masks.stacked().transpose(2, 1, 0)  # [F, H, W] -> [W, H, F], as NIfTI's first axis is a row
        volume = volume.reshape(given.get_data_shape(), order="F")
        made = (nibabel.Nifti2Image if isinstance(given, nibabel.Nifti2Header) else nibabel.Nifti1Image)(volume, None)
        made.header.set_xyzt_units(*given.get_xyzt_units())
        made.header.set_zooms(given.get_zooms())
        made.set_qform(given.get_qform(), int(given["qform_code"]))
        made.set_sform(given.get_sform(), int(given["sform_code"]))
        self.file.parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(made, self.file)
        return self.file
