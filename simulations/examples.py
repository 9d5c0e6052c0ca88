"""Example pictures for a report: what each predictor made of a few test images. Only where folders may be read."""

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.numpy import load

from clients.data.dataset import Dataset, by_patient
from clients.data.frames import Frame, read_image, read_mask
from clients.data.images import outline
from clients.data.site import Site
from clients.learning.evaluate import measure_patients
from common.components import BASELINE, ROLES, select
from common.errors import RunError
from common.geometry import from_grid
from common.infusion import predict_maps
from common.metric_name import PREDICTORS
from common.metrics import frame_dice
from common.networks import Networks
from common.run_folder import RunFolder
from common.study import Study
from server.report.conclusions import RELEASED
from server.report.drawn import Drawn, Example, PatientDice
from server.report.summary import summary_of
from server.state import load_state

PANEL_WIDTH_PX = 400
#: A page with pictures of more sites takes minutes to make and seconds to open, and nobody looks at them all.
MOST_SITES = 6
#: Patients among which examples are picked; more would cost minutes and show nothing else.
CANDIDATES = 24
CONTOUR_PX = 3
FILL = 0.35
LEGEND_PX = 14
#: WebP's quality: outlines stay sharp, and a panel takes a tenth of its PNG.
QUALITY = 70

Colour = tuple[int, int, int]
#: Okabe and Ito's palette (jfly.uni-koeln.de/color), told apart with any colour vision.
ORANGE, SKY, GREEN, YELLOW, GREY = (230, 159, 0), (86, 180, 233), (0, 190, 140), (240, 228, 66), (200, 200, 200)
PURPLE = (204, 121, 167)
WHITE = (245, 245, 245)
COLOURS: dict[str, Colour] = {
    "baseline": GREY,
    "source_branch": ORANGE,
    "target_branch": SKY,
    "student": PURPLE,
    "infusion": GREEN,
}


@dataclass(frozen=True)
class Candidate:
    """A test frame that may be shown; `number` counts the split's patients from 1, `dice` is the infusion's."""

    frame: Frame
    number: int
    dice: float | None


def draw_examples(study: Study, run: Path, sites: Sequence[Site], *, per_site: int = 3) -> Drawn:
    """Return pictures of `per_site` test patients of each site, the same ones every time, and the Dice of all of them.

    Of up to 24 labelled patients, evenly spaced, shown are those whose middle frame has the best Dice, the worst and
    evenly between, by rank. A site without labels on `test` shows evenly spaced patients, without Dice and truth. Of
    more than six sites only each role's best, median and worst are looked at, and of these the middle patient is shown.
    A study of one branch has nothing to show.

    Raises:
        RunError: if the run has no final model.
    """
    if not study.fused:
        return Drawn()
    # On tiles this small a second thread within an operation costs more than it brings: each site has one.
    torch.set_num_threads(1)
    networks = _networks(study, run)
    per_site = per_site if len(sites) <= MOST_SITES else 1
    pictures, patients = [], []

    def measure(site: Site) -> dict[str, dict[str, list[float]]]:
        # its images go when it is measured: a few are read again to be drawn
        return measure_patients(networks, study, Dataset(site, study), study.predictors, _dice)

    shown = _worth_a_look(run, sites)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = list(pool.map(measure, shown))
    for site, measured in zip(shown, found, strict=True):
        data = Dataset(site, study)
        if any(measured.values()):
            dice = {name: [float(np.mean(of_patient)) for of_patient in own.values()] for name, own in measured.items()}
            patients.append(PatientDice(site.config.name, site.config.role, dice))
        for candidate, rank in _picked(_candidates(data, measured), per_site):
            pictures.append(_example(networks, study, data, candidate, rank))
    return Drawn(pictures, patients)


def _dice(probability: np.ndarray, truth: np.ndarray, spacing_mm: float | None) -> float:
    """Return a frame's Dice; as `measure_patients` calls it."""
    return frame_dice(probability, truth)


def _worth_a_look(run: Path, sites: Sequence[Site]) -> list[Site]:
    """Return all sites if they are few, else each role's best, median and worst, by the released model's Dice."""
    if len(sites) <= MOST_SITES:
        return list(sites)
    dice = {name: own[RELEASED]["mean"] for name, own in summary_of(run)["dice"].items() if RELEASED in own}
    chosen = []
    for role in ROLES:
        own = [site for site in sites if site.config.role == role]
        ranked = sorted(own, key=lambda site: (-dice.get(site.config.name, -1.0), site.config.name))
        known = [site for site in ranked if site.config.name in dice] or ranked
        chosen += [known[index] for index in _evenly(len(known), MOST_SITES // len(ROLES))]
    return chosen


def _networks(study: Study, run: Path) -> Networks:
    """Return the released networks, with the baseline's where the study names one."""
    try:
        tensors = load(RunFolder(run).model.read_bytes())
    except OSError:
        raise RunError(f"{run} holds no {RunFolder(run).model.name}; continue the run with --resume.") from None
    state = load_state(RunFolder(run).checkpoint, study.hash())
    if state is not None:
        tensors |= select(state.components, BASELINE)
    networks = Networks(study).eval()
    networks.load(tensors)
    return networks


def _maps(networks: Networks, study: Study, data: Dataset, frame: Frame) -> dict[str, np.ndarray]:
    """Return every predictor's probability and the weight, [H, W] in [0, 1] on the frame's own pixels."""
    sample = data.sample(frame)
    maps = predict_maps(networks, study, sample.image, sample.valid, (*study.predictors, "weight"))
    return {name: from_grid(values, sample.place).numpy() for name, values in maps.items()}


def _candidates(data: Dataset, measured: Mapping[str, Mapping[str, Sequence[float]]]) -> list[Candidate]:
    """Return the frames to pick from: by falling Dice where there are labels, else by patient."""
    labelled = data.site.frames_of("test", labelled=True)
    frames = by_patient(labelled or data.site.frames_of("test"))
    found = []
    for index in _evenly(len(frames), CANDIDATES):
        patient = sorted(frames)[index]
        middle = len(frames[patient]) // 2
        dice = measured[RELEASED][patient][middle] if labelled else None
        found.append(Candidate(frames[patient][middle], index + 1, dice))
    return sorted(found, key=lambda candidate: -(candidate.dice or 0.0))


def _evenly(count: int, most: int) -> list[int]:
    """Return up to `most` of the indices 0 to `count - 1`, evenly spaced, both ends included."""
    if count == 0:
        return []
    return sorted({round(share) for share in np.linspace(0, count - 1, min(count, most))})


def _picked(candidates: Sequence[Candidate], count: int) -> list[tuple[Candidate, str]]:
    """Return the candidates to show, each with how it ranks by the released model's Dice."""
    last = len(candidates) - 1
    picked = []
    for index in _evenly(len(candidates), count) if count > 1 else [last // 2] if candidates else []:
        if candidates[index].dice is None:
            rank = "not labelled"
        elif index in (0, last):
            rank = f"{'best' if index == 0 else 'worst'} Dice of {len(candidates)} patients"
        else:
            middle = abs(2 * index - last) <= 1
            rank = f"{'median' if middle else f'rank {index + 1} by'} Dice of {len(candidates)} patients"
        picked.append((candidates[index], rank))
    return picked


def _example(networks: Networks, study: Study, data: Dataset, candidate: Candidate, rank: str) -> Example:
    frame = candidate.frame
    maps = _maps(networks, study, data, frame)
    truth = read_mask(frame) if candidate.dice is not None else None
    dice = {}
    if truth is not None:
        dice = {p: frame_dice(maps[p], truth) for p in PREDICTORS if p in maps}
    return Example(
        site=data.site.config.name,
        role=data.site.config.role,
        label=f"patient {candidate.number} of the test split, {rank}",
        dice=dice,
        panels=_panels(read_image(frame), maps, truth),
    )


def _panels(image: np.ndarray, maps: Mapping[str, np.ndarray], truth: np.ndarray | None) -> list[tuple[str, bytes]]:
    """Return captions and WebP pictures of one image [H, W] in [0, 1] and its maps."""
    ground = np.repeat(_resized(image)[..., None] * 255, 3, axis=-1)
    masks = {name: _resized(maps[name]) > 0.5 for name in COLOURS if name in maps}
    panels = [("Image", _encoded(ground))]
    panels += [
        (name.replace("_", " ").capitalize(), _encoded(_overlaid(ground, masks[name], COLOURS[name])))
        for name in ("baseline", "source_branch", "target_branch", "student")
        if name in masks
    ]
    panels.append((f"Infusion weight, mean {maps['weight'].mean():.2f}", _encoded(_weight_picture(maps["weight"]))))
    panels.append(("Infusion (released)", _encoded(_overlaid(ground, masks["infusion"], GREEN))))
    if truth is not None:
        true = _resized(truth.astype(np.float32)) > 0.5
        outlined = _outlined(ground, true, YELLOW)
        panels.append(("Truth, outline", _encoded(outlined)))
        panels.append(("Infusion over truth, outlines", _encoded(_outlined(outlined, masks["infusion"], GREEN))))
    return panels


def _resized(values: np.ndarray) -> np.ndarray:
    """Return a map [H, W] in [0, 1] at the panels' width, its aspect ratio kept."""
    height, width = values.shape
    size = (PANEL_WIDTH_PX, max(1, round(height * PANEL_WIDTH_PX / width)))
    picture = Image.fromarray(np.ascontiguousarray(values, dtype=np.float32))
    return np.asarray(picture.resize(size, Image.Resampling.BILINEAR)).clip(0, 1)


def _outlined(ground: np.ndarray, mask: np.ndarray, colour: Colour) -> np.ndarray:
    """Return `ground` [H, W, 3] in [0, 255] with the outline of a mask."""
    return np.where(outline(mask, CONTOUR_PX)[..., None], np.array(colour, dtype=float), ground)


def _overlaid(ground: np.ndarray, mask: np.ndarray, colour: Colour) -> np.ndarray:
    """Return `ground` [H, W, 3] in [0, 255] with a mask filled and outlined."""
    tinted = ground + FILL * mask[..., None] * (np.array(colour, dtype=float) - ground)
    return _outlined(tinted, mask, colour)


def _weight_picture(weight: np.ndarray) -> np.ndarray:
    """Return the source branch's share [H, W] in colours, [h, w, 3] in [0, 255], above a strip of 0 to 1."""
    colours = _diverging(_resized(weight))
    strip = _diverging(np.tile(np.linspace(0, 1, PANEL_WIDTH_PX), (LEGEND_PX, 1)))
    strip[:2] = 0.0
    colours[-LEGEND_PX:] = strip[-len(colours) :]
    return colours


def _diverging(share: np.ndarray) -> np.ndarray:
    """Return blue at 0, white at 0.5 and orange at 1, [..., 3] in [0, 255]."""
    stops = np.array([SKY, WHITE, ORANGE], dtype=float)
    return np.stack([np.interp(share, [0, 0.5, 1], stops[:, channel]) for channel in range(3)], axis=-1)


def _encoded(pixels: np.ndarray) -> bytes:
    """Return the WebP of [H, W, 3] in [0, 255]."""
    buffer = BytesIO()
    Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8)).save(buffer, "WebP", quality=QUALITY)
    return buffer.getvalue()
