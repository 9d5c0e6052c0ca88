"""A site's folder: site.yaml, manifest.csv and PNG files; checked whole, then read frame by frame.

Every problem is reported at once, as findings. What may be opened of a target's masks, and when,
is in `clients.data.frames`.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from clients.data.findings import Finding, SiteFolderError, remedy_of
from clients.data.frames import FileChecker, Frame
from clients.data.manifest import assign_splits, check_rows, read_manifest
from clients.governance.policy import Policy
from common.components import Role, Split
from common.errors import CrossProbeError
from common.names import NAME
from common.plain_words import problems
from common.strict_text import TextError, read_yaml
from common.study import Study

OnProgress = Callable[[int, int], None]
_ONE_A_LINE = "Write one `key: value` a line, each key once"


def check_name(name: str) -> str:
    """The name, if a site may have it. Raises CrossProbeError."""
    if not re.fullmatch(NAME, name):
        raise CrossProbeError(
            f"expected a site's name of lower-case letters, digits and hyphens, found {name!r}. Give one with --name."
        )
    return name


class SiteConfig(BaseModel):
    """site.yaml."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: str = Field(pattern=NAME)
    role: Role
    # CPU threads the worker may use; one, since a hospital's machine has other work to do.
    threads: int = Field(default=1, ge=1)
    # Where the networks compute; images, losses and all randomness stay on the CPU.
    device: str = Field(default="cpu", pattern=r"^(cpu|cuda(:\d{1,2})?)$")
    # On a GPU: convolutions in bfloat16, see `common.networks.Networks`. Never under differential privacy.
    mixed_precision: bool = False
    policy: Policy = Field(default_factory=Policy)

    @model_validator(mode="after")
    def _mixed_precision_needs_a_gpu(self) -> "SiteConfig":
        if self.mixed_precision and self.device == "cpu":
            raise ValueError("mixed_precision needs a GPU: set device to cuda, or leave mixed_precision out")
        return self


@dataclass(frozen=True)
class Site:
    """A folder without findings; `frames` in the order of the manifest.

    Attributes:
        blank_masks: masks of a source that mark nothing.
    """

    config: SiteConfig
    folder: Path
    frames: tuple[Frame, ...]
    blank_masks: int = 0

    def frames_of(self, split: Split, labelled: bool | None = None) -> list[Frame]:
        """The frames of a split; with `labelled`, only those with (True) or without a mask."""
        return [frame for frame in self.frames if frame.split == split and labelled in (None, frame.mask is not None)]

    def patients(self, split: Split, labelled: bool | None = None) -> list[str]:
        """The patients behind `frames_of`, sorted, each once."""
        return sorted({frame.patient for frame in self.frames_of(split, labelled)})

    def declared_in(self, study: Study) -> int:
        """How many training patients the site tells a study that it has, see `Policy.declared_in`."""
        return self.config.policy.declared_in(study, len(self.patients("train")))

    @property
    def has_spacing(self) -> bool:
        """Whether distances in mm can be measured here."""
        return all(frame.spacing_mm is not None for frame in self.frames)


def load_site(folder: Path, progress: OnProgress | None = None) -> Site:
    """The site in a folder. Raises SiteFolderError with all findings together."""
    site, findings = check_site(folder, progress)
    if site is None:
        raise SiteFolderError(findings)
    return site


def check_site(folder: Path, progress: OnProgress | None = None) -> tuple[Site | None, list[Finding]]:
    """The site, or None and every finding. `progress(done, total)` is called after each row.

    Every image is decoded, and every mask of a source.
    """
    try:
        next(folder.iterdir(), None)
    except OSError as error:
        known = isinstance(error, FileNotFoundError | NotADirectoryError)
        found, remedy = ("none", "Give the path of the site's folder") if known else (error.strerror, remedy_of(error))
        message = f"expected a folder with site.yaml and manifest.csv, found {found}"
        return None, [Finding("missing-folder", str(folder), message, remedy)]
    findings: list[Finding] = []
    config, role = read_config(folder / "site.yaml", findings)
    rows = read_manifest(folder / "manifest.csv", findings)
    check_rows(rows, role, findings)
    splits = assign_splits(rows, role)
    if rows and "train" not in splits.values():
        masked = role == "target" and all(row.mask for row in rows)
        findings.append(
            Finding(
                "no-train-patients",
                "manifest.csv",
                "expected at least one patient in split train, found none"
                + (": all have masks, which a target keeps for test" if masked else ""),
                "Give some no mask, or make the site a source" if masked else "Give more patients the split train",
            )
        )
    checker = FileChecker(folder, role, findings)
    frames = []
    for done, row in enumerate(rows, start=1):
        frames.append(checker.frame(row, splits[row.patient]))
        if progress is not None:
            progress(done, len(rows))
    checker.check_whole()
    if config is None or findings:
        return None, findings
    return Site(config, folder, tuple(frames), sum(share == 0 for share, _ in checker.foreground)), []


def read_config(path: Path, findings: list[Finding]) -> tuple[SiteConfig | None, Role | None]:
    """site.yaml, and its role even where other keys are wrong, so that the rows can be checked."""

    def wrong(code: str, message: str, remedy: str) -> None:
        findings.append(Finding(code, path.name, message, remedy))

    try:
        content = read_yaml(path)
    except FileNotFoundError:
        wrong(
            "missing-site-yaml",
            "expected this file, found none",
            "Write it with `name:` and `role:` (source or target)",
        )
        return None, None
    except OSError as error:
        wrong("unreadable-site-yaml", f"expected to read it, found: {error.strerror}", remedy_of(error))
        return None, None
    except TextError as error:
        where = f"{path.name} line {error.line}" if error.line else path.name
        findings.append(
            Finding("invalid-yaml", where, f"found what has no single meaning: {error.reason}", _ONE_A_LINE)
        )
        return None, None
    if not isinstance(content, dict):
        wrong("invalid-yaml", f"expected keys, found {type(content).__name__}", _ONE_A_LINE)
        return None, None
    role = next((known for known in get_args(Role) if known == content.get("role")), None)
    try:
        return SiteConfig.model_validate(content), role
    except ValidationError as error:
        for problem in problems(error, SiteConfig):
            wrong(problem.kind, f"{problem.key}: {problem.text}", f"Correct `{problem.key}`")
        return None, role
