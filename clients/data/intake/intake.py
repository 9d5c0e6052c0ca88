"""`crossprobe site new`: a site's folder from whatever lies in another, with what tells of people taken out.

What is taken out: every header (only listed tags are read at all), file names, patients' ids, all pixels outside of
the field of view, and what is found of text, arrows and calipers within it. No mask is ever changed.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from clients.data.findings import Finding, SiteFolderError
from clients.data.folders import write_site_files
from clients.data.formats import open_recording
from clients.data.formats.recording import Pixels, Recording, b_mode
from clients.data.images import Grey, Mask, PictureError, check_depth, check_mask_size
from clients.data.intake.before_after import BeforeAfter
from clients.data.intake.fill import filled
from clients.data.intake.identity import pseudonym
from clients.data.intake.marks import find_marks
from clients.data.intake.sources import Found, Source
from clients.data.intake.view import Novelty, bright, field_of_view
from clients.data.pseudonyms import placeholder
from clients.data.site import read_config
from common.components import Role
from common.errors import CrossProbeError
from common.files import FolderInUseError, whole_folder

#: Frames that are taken from one loop at most: a long one is still one patient.
MOST_FRAMES = 20
#: Share of a frame's pixels that, when blanked, is worth a look: consoles write less than that around an image.
MUCH = 0.15
#: The same of pixels that were taken for marks: a line of text and its calipers are less.
MUCH_MARKED = 0.08
#: Frames of a loop, spread over it, by which its field of view is found: it stands still.
LOOKED_AT = 32
CONTENT = ("site.yaml", "manifest.csv", "images", "masks")


@dataclass(frozen=True)
class Rules:
    """What is taken out, and how much is taken in. Everything is on by default.

    Attributes:
        spacing_mm: for files of which neither header nor table tells it.
        keep_outside: leave the pixels outside of the field of view.
        keep_marks: leave text and marks within the field of view.
        keep_frames: take every frame, also those that show the same.
    """

    role: Role
    spacing_mm: float | None = None
    device: str = ""
    keep_outside: bool = False
    keep_marks: bool = False
    keep_frames: bool = False
    most_frames: int = MOST_FRAMES


@dataclass
class Removed:
    """What an intake did, as counts, for the person who answers for it."""

    files: int = 0
    frames_seen: int = 0
    frames_taken: int = 0
    frames_with_mask: int = 0
    frames_alike: int = 0
    frames_beyond_most: int = 0
    frames_blanked: int = 0
    frames_much_blanked: int = 0
    pixels_blanked: int = 0
    frames_filled: int = 0
    frames_much_filled: int = 0
    pixels_filled: int = 0
    patients_renamed: int = 0
    findings: list[Finding] = field(default_factory=list)
    unused_masks: list[str] = field(default_factory=list)

    def add(self, other: "Removed") -> None:
        """Count what another one counted, too."""
        for one in fields(self):
            setattr(self, one.name, getattr(self, one.name) + getattr(other, one.name))

    def lines(self) -> list[str]:
        """The counts in words."""
        return [
            f"{self.files} files, {self.frames_seen} frames seen, {self.frames_taken} taken",
            f"{self.frames_with_mask} of the frames taken have a mask",
            f"{self.frames_alike} frames left out because they show what the one before shows",
            f"{self.frames_beyond_most} frames left out because their loop has enough",
            f"{self.pixels_blanked} pixels outside of the field of view blanked, in {self.frames_blanked} frames",
            f"{self.frames_much_blanked} frames lost more than {MUCH:.0%} of what they showed: a shadow at the edge?",
            f"{self.pixels_filled} pixels of text and marks within the field filled, in {self.frames_filled} frames",
            f"{self.frames_much_filled} frames had more than {MUCH_MARKED:.0%} of their image filled: was it tissue?",
            f"{self.patients_renamed} patients under new names; no header, no file name and no id was taken over",
            f"{len(self.findings)} files or folders not taken in",
            f"{len(self.unused_masks)} masks that belong to no image here",
            "NOT all text and marks are found (docs/site-folder.md says which). Look at every image before it is used",
        ]


def take_in(
    found: Found,
    out: Path,
    *,
    name: str,
    rules: Rules,
    key: bytes,
    overwrite: bool = False,
    sheet: BeforeAfter,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Removed:
    """Write the site's folder `out` and return what was done.

    A site.yaml that is replaced keeps its content: it holds the hospital's policy.

    Args:
        sheet: receives the frames that were taken in.

    Raises:
        FolderInUseError: see `whole_folder`; also if site.yaml there is of another site or role.
        SiteFolderError: if site.yaml there cannot be used.
        CrossProbeError: if not one file could be taken in; then nothing is written.
    """
    kept = _settings(out, name, rules.role) if overwrite else None
    sources, patients = found.sources, set()
    removed = Removed(files=len(sources), findings=[*found.findings], unused_masks=[*found.unused_masks])
    rows: list[dict[str, str]] = []
    with whole_folder(out, CONTENT, overwrite=overwrite) as work:
        for kind in ("images", "masks"):
            (work / kind).mkdir()
        for done, source in enumerate(sources, 1):
            begun, own = len(rows), Removed()
            try:
                recording = open_recording(source.file)
                patient = _patient(source, recording)
                for index, before, after, mask in _frames(source, recording, rules, own):
                    row = _row(key, source, recording, patient, index, rules)
                    rows.append(row)
                    Image.fromarray(after).save(work / row["image"])
                    if mask is not None:
                        row["mask"] = row["image"].replace("images/", "masks/")
                        Image.fromarray(mask.astype(np.uint8) * 255).save(work / row["mask"])
                        own.frames_with_mask += 1
                    sheet.add(source.name, before, after)
            except PictureError as error:
                removed.findings.append(error.finding(source.name))
                for row in rows[begun:]:  # a file is taken in whole or not at all
                    for kind in ("image", "mask"):
                        if kind in row:
                            (work / row[kind]).unlink(missing_ok=True)
                del rows[begun:]
                sheet.forget(source.name)
                continue
            finally:
                progress(done, len(sources))
            patients.add(patient)
            removed.add(own)
        removed.frames_taken = len(rows)
        if not rows:
            reasons = "\n".join(str(finding) for finding in removed.findings[:3])
            raise CrossProbeError(f"none of {len(sources)} files could be taken in; nothing was written:\n{reasons}")
        removed.patients_renamed = len(patients)
        write_site_files(work, name=name, role=rules.role, rows=rows)
        if kept is not None:
            (work / "site.yaml").write_bytes(kept)
    return removed


def _settings(folder: Path, name: str, role: Role) -> bytes | None:
    """The content of a folder's site.yaml, if there is one. Raises if it cannot be that of this site."""
    path = folder / "site.yaml"
    if not path.exists():
        return None
    findings: list[Finding] = []
    config, _ = read_config(path, findings)
    if config is None:
        raise SiteFolderError(findings)
    if (config.name, config.role) != (name, role):
        raise FolderInUseError(
            f"expected the settings of {name}, a {role} site, in {path}, found those of {config.name}, a {config.role} "
            "site. Give its --name and --role, or another folder"
        )
    return path.read_bytes()


def _patient(source: Source, recording: Recording) -> str:
    patient = source.patient or recording.patient
    if not patient:
        raise PictureError(
            "no-patient",
            "expected to know whose image it is, found it neither in a table nor in its name or header",
            "Give a table with --table, or the pattern of the names with --patient-pattern",
        )
    if reason := placeholder(patient, header=not source.patient):
        raise PictureError(
            "placeholder-patient",
            f"expected to know whose image it is, found {patient!r}, {reason}: several people may have it",
            "Give each image its own patient in a table with --table",
        )
    return patient


def _row(key: bytes, source: Source, recording: Recording, patient: str, index: int, rules: Rules) -> dict[str, str]:
    own, video = pseudonym(key, "patient", patient), pseudonym(key, "video", source.name)
    spacing = next((s for s in (source.spacing_mm, recording.spacing_mm, rules.spacing_mm) if s is not None), None)
    return {
        "image": f"images/{own}_{video}_{index:04d}.png",
        "patient": own,
        "video": video,
        "frame": str(index),
        "device": source.device or rules.device or recording.device,
        "spacing_mm": "" if spacing is None else f"{spacing:.6g}",
        "split": source.split or "",
    }


def _frames(
    source: Source, recording: Recording, rules: Rules, removed: Removed
) -> Iterator[tuple[int, Grey, Grey, Mask | None]]:
    """Index, image before and after, and mask of the frames of a file that are taken in."""
    shape = (max(1, recording.count), recording.height, recording.width)
    try:
        masks = source.mask(shape) if source.mask else None
    except PictureError as error:  # the image itself may be whole
        raise PictureError(error.code, f"its mask: {error.message}", error.remedy) from None
    if masks is None and rules.role == "source":
        raise PictureError(
            "no-mask",
            "expected a mask (role: source), found none",
            "Give one for each image with --masks: a file of its path, or an entry in a COCO file",
        )
    # Twice over the file: a loop of a minute would not fit into memory as a whole.
    shown: Mask | None = None
    novelty, fresh, seen, apart = Novelty(), [], 0, max(1, recording.count // LOOKED_AT)
    for index, frame in enumerate(_greys(recording)):
        if shown is None or (index % apart == 0 and not rules.keep_outside):
            shown = bright(frame) if shown is None else shown | bright(frame)
        if rules.keep_frames or novelty.is_new(frame):
            fresh.append(index)
        seen += 1
    if shown is None:
        raise PictureError("no-pixels", "expected frames, found none", "Copy or export it again")
    if masks is not None and len(masks) != seen:
        message = f"expected a mask for each of {seen} frames, found {len(masks)}"
        raise PictureError("mask-count", message, "Export image and masks of the same clip")
    view = None if rules.keep_outside else field_of_view(shown, recording.field)
    if view is None and not rules.keep_outside:
        raise PictureError(
            "no-field",
            "expected a bright sector or rectangle, found nothing that looks like the image of a probe",
            "Leave the file out; or, if it shows nothing else than the image, give --keep-outside",
        )
    spread = np.unique(np.linspace(0, len(fresh) - 1, min(rules.most_frames, len(fresh))).round().astype(int))
    removed.frames_seen += seen
    removed.frames_alike += seen - len(fresh)
    removed.frames_beyond_most += len(fresh) - len(spread)
    chosen = {fresh[place] for place in spread}
    for index, pixels in enumerate(islice(recording.frames(), max(chosen) + 1)):
        if index in chosen:
            frame = b_mode(pixels)
            mask = masks[index] if masks is not None else None
            if mask is not None:
                check_mask_size(mask.shape, frame.shape)
            unmarked = frame if rules.keep_marks else _unmarked(pixels, frame, view, removed)
            yield index, frame, _blanked(unmarked, view, removed), mask


def _greys(recording: Recording) -> Iterator[Grey]:
    """Each frame as grey levels."""
    for pixels in recording.frames():
        if pixels.shape[:2] != (recording.height, recording.width):
            raise PictureError("frame-size", "expected frames of one size, found others", "Export them one by one")
        yield check_depth(b_mode(pixels), "image")


def _unmarked(pixels: Pixels, frame: Grey, view: Mask | None, removed: Removed) -> Grey:
    inside = np.ones(frame.shape, bool) if view is None else view
    marks = find_marks(pixels, frame, inside) & inside
    removed.frames_filled += bool(marks.any())
    removed.pixels_filled += int(marks.sum())
    removed.frames_much_filled += bool(marks.sum() > MUCH_MARKED * inside.sum())
    return filled(frame, marks, inside)


def _blanked(frame: Grey, view: Mask | None, removed: Removed) -> Grey:
    if view is None:
        return frame
    after = np.where(view, frame, frame.dtype.type(0))
    lost = int(np.count_nonzero(frame) - np.count_nonzero(after))
    removed.frames_blanked += lost > 0
    removed.pixels_blanked += lost
    removed.frames_much_blanked += lost > MUCH * int(np.count_nonzero(frame))
    return after
