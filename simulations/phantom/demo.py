"""`crossprobe demo`: two phantom sites, one labelled and one not, and the whole method on them."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from common.components import Role, Split
from common.errors import RunError
from common.files import refuse_other_content
from simulations.phantom.sites import CONTENT, remove_phantom_sites, write_phantom_site

#: Patients by split, for each role; a target has no use for `calibrate` and `val` without labels.
PATIENTS: dict[Role, dict[Split, int]] = {
    "source": {"train": 48, "calibrate": 10, "val": 8, "test": 16},
    "target": {"train": 48, "test": 24},
}
FRAMES = 3


def write_sites(
    out: Path,
    *,
    source: Sequence[str] = (),
    target: Sequence[str] = (),
    seed: int,
    patients: Mapping[Role, Mapping[Split, int]] = PATIENTS,
    frames: int = FRAMES,
    workers: int = 1,
    overwrite: bool = False,
    on_site: Callable[[str], Callable[[int, int], None] | None] = lambda name: None,
) -> list[Path]:
    """Write one phantom site for each device profile and return the folders. No patient is at two sites.

    Args:
        source, target: profiles of the sites of either role, as `PROFILE` or `NAME=PROFILE`; a site without a name
            is called after its role, number and profile.
        overwrite: replace what phantom sites `out` holds, also those of other names: whoever takes all of its
            folders would else train on patients that two sites share.
        on_site: is told each site's name and gives the callback for its progress.

    Raises:
        RunError: if two sites have one name.
        FolderInUseError: before anything is written, if a folder holds what must not be removed; and, without
            `overwrite`, if it holds another phantom site. Sites that were drawn before stay.
    """
    texts: list[tuple[Role, str]] = [("source", text) for text in source] + [("target", text) for text in target]
    profiles: list[tuple[Role, str]] = [(role, text.rpartition("=")[2]) for role, text in texts]
    names = [
        text.rpartition("=")[0] or f"{role}-{number}-{text.replace('_', '-')}"
        for number, (role, text) in enumerate(texts, 1)
    ]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise RunError(f"sites need different names, found {', '.join(twice)} twice. Name one as NAME=PROFILE.")
    for name in names:
        refuse_other_content(CONTENT, out / name)
    if overwrite:
        remove_phantom_sites(out, but=names)
    folders = []
    first = 0
    for name, (role, profile) in zip(names, profiles, strict=True):
        folders.append(
            write_phantom_site(
                out / name,
                name=name,
                role=role,
                profile=profile,
                seed=seed,
                first_patient=first,
                patients=dict(patients[role]),
                frames_per_patient=frames,
                overwrite=overwrite,
                workers=workers,
                progress=on_site(name),
            )
        )
        first += sum(patients[role].values())
    return folders
