"""Site folders of simulated patients, in the same format as real ones."""

import hashlib
import json
import shutil
import signal
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from PIL import Image

from clients.data.folders import write_site_files
from clients.data.manifest import SPLITS
from clients.data.site import SiteConfig
from common.components import Role, Split
from common.files import refuse_other_content, whole_folder
from simulations.phantom import formation
from simulations.phantom.population import profile_of

RECORD = "phantom.json"
#: All that a phantom site's folder holds.
CONTENT = ("site.yaml", "manifest.csv", "images", "masks", RECORD)
RENDERING = ("anatomy", "devices", "echo", "formation", "population")


@dataclass(frozen=True)
class Request:
    """All that decides the bytes of a simulated site; kept beside it as `phantom.json`."""

    name: str
    role: Role
    profile: str
    seed: int
    first_patient: int
    patients: dict[Split, int]
    frames_per_patient: int
    code: str

    def to_json(self) -> str:
        """The request as text, the same for equal requests."""
        return json.dumps(asdict(self), indent=2, sort_keys=True) + "\n"


def write_phantom_site(
    folder: Path,
    *,
    name: str,
    role: Role,
    profile: str,
    seed: int,
    first_patient: int,
    patients: Mapping[Split, int],
    frames_per_patient: int,
    overwrite: bool = False,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Render a site of simulated patients seen with a device profile, and return `folder`.

    Patients are numbered from `first_patient` on, so that sites of one `seed` with ranges apart
    share no patient, and are dealt to the splits in the order of `SPLITS`. A source has masks on
    all rows, a target on `test` rows only. Each patient is one video.

    A folder that holds exactly this request, rendered by the same code, is left as it is. The
    bytes do not depend on `workers`. Raises ValueError for an unknown profile, role or split or an
    impossible count, and FolderInUseError for a folder with other content unless `overwrite`.
    """
    request = Request(
        name=name,
        role=role,
        profile=profile,
        seed=seed,
        first_patient=first_patient,
        patients=dict(patients),
        frames_per_patient=frames_per_patient,
        code=_code_hash(),
    )
    _check(request)
    record = folder / RECORD
    if record.is_file() and record.read_text(encoding="utf-8") == request.to_json():
        return folder
    with whole_folder(folder, CONTENT, overwrite=overwrite) as work:
        for kind in ("images", "masks"):
            (work / kind).mkdir()
        frames = list(_frames(request))
        rows = []
        with _mapper(workers) as mapper:
            for row in mapper(partial(_render, work, request), frames):
                rows.append(row)
                if progress is not None:
                    progress(len(rows), len(frames))
        write_site_files(work, name=name, role=role, rows=rows)
        (work / RECORD).write_text(request.to_json(), encoding="utf-8")
    return folder


def remove_phantom_sites(root: Path, *, but: Collection[str]) -> None:
    """Remove the phantom sites in a folder that are not of the names in `but`; other folders stay.

    Raises:
        FolderInUseError: before anything is removed, if one holds more than a phantom site does.
    """
    old = [record.parent for record in sorted(root.glob(f"*/{RECORD}")) if record.parent.name not in but]
    for folder in old:
        refuse_other_content(CONTENT, folder)
    for folder in old:
        shutil.rmtree(folder)


def _code_hash() -> str:
    """A hash of the source of `RENDERING`: other code may render other bytes."""
    digest = hashlib.sha256()
    for module in RENDERING:
        digest.update(Path(__file__).with_name(f"{module}.py").read_bytes())
    return digest.hexdigest()


def _check(request: Request) -> None:
    SiteConfig(name=request.name, role=request.role)
    profile_of(request.profile)
    if unknown := sorted(set(request.patients) - set(SPLITS)):
        raise ValueError(f"expected splits of {', '.join(SPLITS)}; found {', '.join(unknown)}")
    counts = (request.seed, request.first_patient, *request.patients.values())
    if min(counts) < 0 or request.frames_per_patient < 1:
        raise ValueError("expected a seed and patients from 0 and at least one frame per patient")


def _frames(request: Request) -> Iterator[tuple[int, Split, int]]:
    """(patient, split, frame) of all frames, in the order of the manifest."""
    patient = request.first_patient
    for split in SPLITS:
        for _ in range(request.patients.get(split, 0)):
            for frame in range(request.frames_per_patient):
                yield patient, split, frame
            patient += 1


def _render(folder: Path, request: Request, item: tuple[int, Split, int]) -> dict[str, object]:
    """Render one frame into the folder and return its row."""
    patient, split, frame = item
    profile = profile_of(request.profile)
    rendered = formation.render_frame(seed=request.seed, patient=patient, frame=frame, profile=profile)
    name = f"p{patient:04d}"
    file = f"{name}_{frame:03d}.png"
    Image.fromarray(rendered.image).save(folder / "images" / file)
    row: dict[str, object] = {
        "image": f"images/{file}",
        "patient": name,
        "video": name,
        "frame": frame,
        "device": request.profile,
        "spacing_mm": rendered.spacing_mm,
        "split": split,
    }
    if request.role == "source" or split == "test":
        Image.fromarray(rendered.mask).save(folder / "masks" / file)
        row["mask"] = f"masks/{file}"
    return row


@contextmanager
def _mapper(workers: int) -> Iterator[Callable[..., Iterable[dict[str, object]]]]:
    """An ordered map over frames, in this process or in several."""
    if workers == 1:
        yield map
        return
    # Spawned, not forked: the caller may hold the threads of torch or gRPC.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:

        def mapped(*items: Any) -> Iterable[dict[str, object]]:
            # Its processes start here, and never hear of Ctrl-C: one that does while it starts prints a traceback.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            try:
                return pool.map(*items, chunksize=4)
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)

        try:
            yield mapped
        except BaseException:
            # Leaving the block would otherwise first render all that is still queued.
            pool.shutdown(cancel_futures=True)
            raise
