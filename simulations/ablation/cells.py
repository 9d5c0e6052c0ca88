"""`crossprobe ablate`: variants x seeds x data sets, cached by stage, resumable, unattended.

Per-patient numbers stay in the ablation's own folder; what is published are means, intervals and tests.
"""

import json
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any, Self

import torch
from pydantic import Field, model_validator

from clients.data.site import Site
from common.baseline import baseline_of
from common.components import ROLES
from common.errors import RunError
from common.files import write_atomically
from common.names import NAME
from common.run_folder import RunFolder
from common.settings import Settings, read_settings
from common.study import Study, load_study
from server.history import RoundRecord
from simulations.ablation import measuring
from simulations.ablation.code_version import code_digest
from simulations.ablation.stage_cache import StageCache
from simulations.ablation.tally import tally
from simulations.ablation.variants import Variant, chosen
from simulations.phantom.demo import write_sites
from simulations.phantom.sites import RECORD, write_phantom_site
from simulations.simulate import hardware, open_sites

#: Test patients of a role without whom there is no interval.
LEAST_MEASURED = 2

LOG, SUMMARY = "ablation.log", "ablation.json"


class DataSet(Settings):
    """Where the images of one comparison come from: phantom profiles, or site folders.

    Attributes:
        source, target: device profiles of phantom sites, whose patients follow the seed.
        sites: site folders, relative to the configuration's file; the same patients for every seed.
    """

    name: str = Field(pattern=NAME)
    source: tuple[str, ...] = ()
    target: tuple[str, ...] = ()
    sites: tuple[Path, ...] = ()

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        roles = bool(self.source), bool(self.target)
        if roles != ((False, False) if self.sites else (True, True)):
            raise ValueError("give either `sites` or phantom profiles, `source` and `target`")
        return self

    @property
    def phantom(self) -> bool:
        """Whether its patients are simulated, so that an oracle may have the target's labels."""
        return not self.sites

    def folders(self, seed: int, out: Path) -> list[Path]:
        """Return the site folders of a seed; phantom ones are written into `out` where they are missing."""
        if self.sites:
            return list(self.sites)
        folder = out / "sites" / f"{self.name}-{seed}"
        return write_sites(folder, source=self.source, target=self.target, seed=seed, overwrite=True)

    def oracle_folders(self, seed: int, out: Path) -> list[Path]:
        """Return the same phantom sites, each target rendered anew as a source: with all of its labels."""
        labelled = []
        for folder in self.folders(seed, out):
            request = json.loads((folder / RECORD).read_text(encoding="utf-8"))
            del request["code"]
            if request["role"] == "target":
                request["role"] = "source"
                folder = write_phantom_site(folder.parent / f"labelled-{folder.name}", **request, overwrite=True)
            labelled.append(folder)
        return labelled


class Ablation(Settings):
    """An ablation's file.

    Attributes:
        study: the method, whose stages the variants are made of; relative to this file.
        seeds: of the first weights, the sites' secrets and the phantom's patients.
        variants: names; where left out all of them but `variants.RIVALS`.
    """

    name: str = Field(pattern=NAME)
    study: Path
    seeds: tuple[int, ...] = Field(min_length=1)
    data: tuple[DataSet, ...] = Field(min_length=1)
    variants: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _one_of_each(self) -> Self:
        names = [data.name for data in self.data]
        twice = [str(x) for given in (names, self.seeds, self.variants) for x in sorted({*given}) if given.count(x) > 1]
        if twice:
            raise ValueError(f"given twice, and would be trained into the same folder: {', '.join(twice)}")
        if self.variants and "baseline" not in self.variants:
            raise ValueError("`variants` lack `baseline`, which every other one is compared with")
        return self


def load_ablation(path: Path) -> Ablation:
    """Read and validate an ablation's file.

    Raises:
        StudyError: with every problem at once, or naming an unknown variant.
    """
    ablation = read_settings(Ablation, path, what="ablation")
    chosen(ablation.variants)
    data = [d.model_copy(update={"sites": tuple(path.parent / site for site in d.sites)}) for d in ablation.data]
    return ablation.model_copy(update={"study": path.parent / ablation.study, "data": tuple(data)})


@dataclass(frozen=True)
class Cell:
    """One data set with one seed: the unit that a process works on."""

    ablation: Ablation
    data: DataSet
    seed: int
    out: Path

    def file(self, variant: Variant) -> Path:
        """Return where a variant's numbers are kept."""
        return self.out / "cells" / self.data.name / f"seed-{self.seed}" / f"{variant.name}.json"

    def variants(self) -> list[Variant]:
        """Return the variants that this data set can have: real test masks train no oracle."""
        return [v for v in chosen(self.ablation.variants) if self.data.phantom or v.where != "oracle"]


def accelerator() -> str:
    """Return the device to compute on: a GPU where torch sees one. `CUDA_VISIBLE_DEVICES=` in front hides it."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def check_measurable(sites: Sequence[Site]) -> None:
    """See to it, before anything is trained, that either role has test patients to compare by. Raises RunError."""
    for role in ROLES:
        labelled = sum(len(site.patients("test", labelled=True)) for site in sites if site.config.role == role)
        if labelled < LEAST_MEASURED:
            raise RunError(
                f"expected at least {LEAST_MEASURED} patients with masks on the split `test` at the {role} sites, "
                f"found {labelled}; models are compared by them. Give such sites, or use `crossprobe simulate`."
            )


def run_cell(cell: Cell) -> None:
    """Train and measure every variant of a cell that has no numbers yet."""
    from simulations.ablation import rivals  # noqa: F401  # before a site is opened, which allows the tasks there are

    study = load_study(cell.ablation.study).model_copy(update={"seed": cell.seed})
    device = accelerator()
    torch.set_num_threads(1)  # pooled stages have no worker that would set it
    torch.backends.cudnn.deterministic = True  # of the ways to convolve on a GPU, one that gives the same bits again
    parent, code = os.getppid(), code_digest(measuring.__name__)

    def on_round(record: RoundRecord) -> None:
        _log(cell, f"  {record.stage} {record.round}")
        if os.getppid() != parent:  # the command was killed: two of its kind must not write one folder
            os._exit(1)  # an exception would only make the pool take the next cell

    def stage_cache(folders: list[Path], whose: Study) -> StageCache:
        return StageCache(study, open_sites(folders, whose), cell.out / "stages", on_round, device)

    usual = stage_cache(cell.data.folders(cell.seed, cell.out), study)
    check_measurable(usual.sites)
    # the oracle's target is a source as it trains, and a target as it is measured
    roles = {site.config.name: site.config.role for site in usual.sites}
    for variant in cell.variants():
        oracle = variant.where == "oracle"
        cached = stage_cache(cell.data.oracle_folders(cell.seed, cell.out), baseline_of(study)) if oracle else usual
        stages, pooled = variant.stages(study), variant.where == "pooled"
        if variant.knowing is not None:
            stages = variant.knowing(stages, [usual.data[name] for name, role in roles.items() if role == "target"])
        known = {
            "stages": cached.folder(stages, pooled).name,
            "predictors": dict(variant.rows),
            "code": code,
        }
        file = cell.file(variant)
        if file.exists() and json.loads(file.read_text(encoding="utf-8")).get("made_of") == known:
            continue
        _log(cell, f"{variant.name} begins")
        if variant.each_round:
            measured = measuring.course(cached, stages, roles)
        else:
            measured = measuring.measure(cached, variant, stages, pooled, roles)
        content = {"made_of": known, **measured}
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, json.dumps(content, indent=1).encode())
        _log(cell, f"{variant.name} ends")


def summarise(ablation: Ablation, cells: Sequence[Cell]) -> dict[str, Any]:
    """Return what an ablation found and the versions of the code behind it, without any patient's number."""
    tables: dict[str, Any] = {}
    versions = set()
    for data in ablation.data:
        of_data = [cell for cell in cells if cell.data.name == data.name]
        contents = [
            {v.name: json.loads(cell.file(v).read_text(encoding="utf-8")) for v in cell.variants()} for cell in of_data
        ]
        versions |= {content["made_of"]["code"] for by_variant in contents for content in by_variant.values()}
        tables[data.name] = tally(of_data[0].variants(), contents, same_patients=not data.phantom)
    return {
        "name": ablation.name,
        "study": ablation.study.name,
        "seeds": list(ablation.seeds),
        "code": sorted(versions),
        "data": tables,
    }


def _log(cell: Cell, line: str) -> None:
    with open(cell.out / LOG, "a", encoding="utf-8") as file:
        file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {cell.data.name} seed {cell.seed}: {line}\n")


def run_ablation(ablation: Ablation, out: Path, jobs: int, on_progress: Callable[[int, int], None]) -> dict[str, Any]:
    """Run all cells, `jobs` at a time, and return the summary, which is written to `out/ablation.json` too.

    What is there already is kept: a run that was stopped goes on where it was.

    Raises:
        CrossProbeError: of the folders, the study or a run; what was trained stays.
    """
    cells = [Cell(ablation, data, seed, out) for data in ablation.data for seed in ablation.seeds]
    total = sum(len(cell.variants()) for cell in cells)

    def progress() -> None:
        on_progress(sum(cell.file(v).exists() for cell in cells for v in cell.variants()), total)

    with RunFolder(out).only_one(), ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        waiting = {pool.submit(run_cell, cell) for cell in cells}
        try:
            while waiting:
                done, waiting = wait(waiting, timeout=1.0, return_when=FIRST_EXCEPTION)
                for future in done:
                    future.result()
                progress()
        except BaseException:
            for process in active_children():
                process.terminate()  # every round is on disk; what a process is at now is done again
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    summary = summarise(ablation, cells) | {"hardware": hardware(accelerator())}
    write_atomically(out / SUMMARY, (json.dumps(summary, indent=1) + "\n").encode())
    return summary
