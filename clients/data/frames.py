"""The images and masks of a site: checked one row after the other, and read one by one.

The masks of a target are never opened by the check, but for the 24 header bytes of those of its
test rows; only `read_mask` decodes one.
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
import numpy.typing as npt

from clients.data.findings import Finding, SiteFolderError, remedy_of
from clients.data.images import (
    Grey,
    Mask,
    PictureError,
    check_mask_size,
    decode_grey,
    decode_mask,
    png_size,
)
from clients.data.manifest import SPACING_MM, Row
from common.components import Role, Split

SMALLEST_SIDE_PX = 16
#: What an ultrasound image can show, long side. Beyond, spacing_mm was most likely given in another unit.
FIELD_MM = (10.0, 500.0)
#: Shares of the pixels, of all masks together and along the images' borders: an outline seldom covers half of an image
#: and does not run along all four sides.
INVERTED_SHARE, INVERTED_BORDER = 0.5, 0.9
#: Findings with which the listed files themselves would be taken for unlisted ones.
UNLISTED_UNKNOWN = {"path-outside-folder", "wrong-cell-count"}
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".dcm")


@dataclass(frozen=True)
class Frame:
    """One image of a site, of `height` x `width` px, with its mask where there is one."""

    image: Path
    mask: Path | None
    patient: str
    video: str
    frame: int
    device: str
    spacing_mm: float | None
    split: Split
    height: int
    width: int


def read_image(frame: Frame) -> npt.NDArray[np.float32]:
    """The image of a frame, float32 [H, W] in [0, 1]. Raises SiteFolderError with one finding."""
    try:
        pixels = decode_grey(frame.image, "image")
    except PictureError as error:
        raise SiteFolderError([error.finding(str(frame.image))]) from error
    return pixels.astype(np.float32) / np.float32(np.iinfo(pixels.dtype).max)


def read_mask(frame: Frame) -> Mask:
    """The mask of a frame, bool [H, W]. Raises SiteFolderError with one finding.

    ValueError for a frame without a mask: the caller should have asked `Site` for labelled frames.
    """
    if frame.mask is None:
        raise ValueError(f"{frame.image} has no mask")
    try:
        mask = decode_mask(frame.mask)
        check_mask_size(mask.shape, (frame.height, frame.width))
    except PictureError as error:
        raise SiteFolderError([error.finding(str(frame.mask))]) from error
    return mask


class FileChecker:
    """The files of the rows, one row after the other; what was seen is kept to find it again."""

    def __init__(self, folder: Path, role: Role | None, findings: list[Finding]) -> None:
        self.folder, self.role, self.findings = folder, role, findings
        self.root = folder.resolve()
        self.row_of_path: dict[Path, Row] = {}
        self.listed: set[str] = set()
        self.image_folders: set[str] = set()
        self.foreground: list[tuple[float, float]] = []  # of each mask: share of all pixels, share of the border's
        self.first_of_content: dict[bytes, tuple[Row, Split]] = {}
        self.first_of_mask: dict[str, Row] = {}

    def frame(self, row: Row, split: Split) -> Frame:
        """The frame of a row; if there were findings, the caller must not use it."""
        image, mask = self.folder / row.image, self.folder / row.mask if row.mask else None
        size = (0, 0)
        self.listed |= {os.path.normpath(name) for name in (row.image, row.mask) if name}
        there = self._is_file(row, row.image, "image")
        if there:
            self.image_folders.add(os.path.dirname(row.image))
        if there and self._is_first(row, image):
            try:
                pixels = decode_grey(image, "image")
            except PictureError as error:
                self.findings.append(error.finding(row.where))
            else:
                size = (pixels.shape[0], pixels.shape[1])
                self._check_pixels(row, split, pixels)
        if mask is not None:
            self._check_mask(row, split, mask, size)
        return Frame(
            image=image,
            mask=mask,
            patient=row.patient,
            video=row.video,
            frame=row.frame,
            device=row.device,
            spacing_mm=row.spacing_mm,
            split=split,
            height=size[0],
            width=size[1],
        )

    def check_whole(self) -> None:
        """What only all files together show: masks of one mistake, images that no row lists."""
        shares = np.array(self.foreground).reshape(-1, 2)
        share, border = shares.mean(0) if len(shares) else (0.1, 0.0)
        faults = {
            "masks-all-empty": (share == 0, "no foreground in any mask", "Export the outlines again, filled"),
            "masks-all-full": (share == 1, "nothing but foreground in all masks", "Export the outlines again, filled"),
            "masks-inverted": (
                INVERTED_SHARE < share < 1 and border > INVERTED_BORDER,
                f"{share:.0%} of all pixels and {border:.0%} of the images' borders marked",
                "0 is background: swap the two values of every mask",
            ),
        }
        for code, (wrong, found, remedy) in faults.items():
            if wrong:
                message = f"expected an outlined structure within the images, found {found}"
                self.findings.append(Finding(code, f"{len(shares)} masks", message, remedy))
        for name in sorted(self._unlisted()):
            message = "expected a row for each image in the folder, found none that names this file"
            remedy = "Add a row for it, correct the row that names it otherwise, or move it out of the folder"
            self.findings.append(Finding("unlisted-image", name, message, remedy))

    def _unlisted(self) -> set[str]:
        """Pictures beside the listed ones; masks that a target keeps in a folder of their own are its own business."""
        if {finding.code for finding in self.findings} & UNLISTED_UNKNOWN:
            return set()
        found = {
            os.path.normpath(os.path.join(folder, name))
            for folder in self.image_folders
            for name in os.listdir(self.folder / folder)
            if name.lower().endswith(PICTURE_SUFFIXES)
        }
        return found - self.listed

    def _add(self, code: str, row: Row, message: str, remedy: str) -> None:
        self.findings.append(Finding(code, row.where, message, remedy))

    def _is_file(self, row: Row, name: str, kind: str) -> bool:
        parts = {*PurePosixPath(name).parts, *PureWindowsPath(name).parts}
        absolute = name.startswith("/") or PureWindowsPath(name).anchor
        try:
            path = (self.root / name).resolve()
            outside = absolute or ".." in parts or not path.is_relative_to(self.root)
            exists = not outside and path.is_file()
        except PermissionError as error:
            self._add(f"unreadable-{kind}", row, f"expected to read it, found: {error.strerror}", remedy_of(error))
            return False
        except (OSError, RuntimeError, ValueError):  # too long a name, a loop of links, a NUL
            outside = exists = False
        if outside:
            self._add(
                "path-outside-folder",
                row,
                f"expected a path within the site's folder, found {name!r}",
                "Copy the file into the folder and give its path from there",
            )
        elif not exists:
            found = f"found no file {name!r}" if name else "found an empty cell"
            self._add(
                f"missing-{kind}",
                row,
                f"expected the file of the {kind}, {found}",
                "Copy the file there, correct its name (A is not a), or remove the row",
            )
        return bool(exists)

    def _is_first(self, row: Row, image: Path) -> bool:
        first = self.row_of_path.setdefault(image.resolve(), row)
        if first is not row:
            self._add(
                "duplicate-row",
                row,
                f"expected each image once, found it in {first.where} too",
                "Remove one of the rows",
            )
        return first is row

    def _check_pixels(self, row: Row, split: Split, pixels: Grey) -> None:
        height, width = pixels.shape
        if min(height, width) < SMALLEST_SIDE_PX:
            self._add(
                "small-image",
                row,
                f"expected {SMALLEST_SIDE_PX} px a side or more, found {width} x {height} px",
                "Export the image in full size, or remove the row",
            )
        self._check_field(row, max(height, width))
        if pixels.min() == pixels.max():
            self._add(
                "constant-image",
                row,
                f"expected an ultrasound image, found all pixels of value {pixels.max()}",
                "Export the image again, or remove the row",
            )
            return  # two black images are one mistake, not one image twice
        content = hashlib.sha256(repr((pixels.shape, pixels.dtype)).encode() + pixels.tobytes())
        first, first_split = self.first_of_content.setdefault(content.digest(), (row, split))
        if (first.patient, first_split) != (row.patient, split):
            self._add(
                "same-image-twice",
                row,
                f"expected an image in one patient and split, found that of {first.where} again",
                "Find out whose image it is, and remove the other row",
            )

    def _check_field(self, row: Row, side_px: int) -> None:
        spacing = row.spacing_mm
        if spacing is None or not SPACING_MM[0] <= spacing <= SPACING_MM[1]:
            return  # a fault of its own
        if not FIELD_MM[0] <= spacing * side_px <= FIELD_MM[1]:
            self._add(
                "implausible-size",
                row,
                f"expected an image that shows {FIELD_MM[0]:g} to {FIELD_MM[1]:g} mm, found {spacing * side_px:.3g} mm "
                f"({side_px} px of spacing_mm {spacing:g})",
                "Give spacing_mm in millimetres a pixel, not in cm, inches or dots per inch",
            )

    def _check_mask(self, row: Row, split: Split, mask: Path, size: tuple[int, int]) -> None:
        if self.role == "target" and split != "test":
            self._add(
                "training-mask-at-target",
                row,
                f"expected no mask outside test (role: target), found {row.mask!r} in {split}",
                "Empty the mask cell, give all rows of the patient the split test, or make the site a source",
            )
            return  # such a mask is not even looked at
        if not self._is_file(row, row.mask, "mask") or self.role is None:
            return
        first = self.first_of_mask.setdefault(row.mask, row)
        if first.patient != row.patient:
            self._add(
                "mask-of-two-patients",
                row,
                f"expected a mask of its own, found {row.mask!r}, which is that of {first.where} too",
                "Give each image its own mask",
            )
        try:
            found = png_size(mask, "mask")
            if size != (0, 0):  # before the values: a mask that was resized has smeared edges too
                check_mask_size(found, size)
            if self.role == "source":
                decoded = decode_mask(mask)
                border = np.concatenate([decoded[0], decoded[-1], decoded[:, 0], decoded[:, -1]])
                self.foreground.append((float(decoded.mean()), float(border.mean())))
        except PictureError as error:
            self.findings.append(error.finding(row.where))
