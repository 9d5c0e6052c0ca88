"""Is a site's folder large enough for a study? What could not run, and what would be kept back. Torch-free."""

from collections.abc import Iterator
from dataclasses import dataclass

from clients.data.findings import Finding
from clients.data.site import Site
from common.components import Split
from common.stage import Stage
from common.study import Study
from common.tasks import Task, TrainingTask


@dataclass(frozen=True)
class KeptBack:
    """Numbers of a stage that stay at the site because fewer patients stand behind them than its policy asks for.

    Attributes:
        patients: that the folder has in `split`.
        asked: the policy's `min_patients`.
    """

    stage: str
    numbers: tuple[str, ...]
    split: Split
    patients: int
    asked: int

    def __str__(self) -> str:
        return (
            f"stage {self.stage}: {', '.join(self.numbers)} would not be sent: {self.patients} {self.split} "
            f"patients, the policy asks for {self.asked} (min_patients)"
        )


def _same_draws(study: Study, site: Site) -> Iterator[Finding]:
    """Yield why a masked update hardly depends on its round: two sums would differ by whoever is missing in one."""
    role, augmentation = site.config.role, study.augmentation
    tasks = [task for stage in study.stages if (task := stage.task_of(role)) and study.masks(task, role)]
    if not any(isinstance(task, TrainingTask) for task in tasks):
        return
    if study.batch_size * 4 > len(site.patients("train")) * 3:
        yield Finding(
            "whole-batches",
            f"study {study.name} batch_size",
            "expected at most three quarters of your training patients in a batch, under masks, found "
            f"{study.batch_size}: where all are in every batch, two sums differ by the hospital missing in one of them",
            "Ask the coordinator for a smaller batch_size",
        )
    if not (augmentation.flip or augmentation.scale or augmentation.rotation_deg or augmentation.shift):
        yield Finding(
            "same-views",
            f"study {study.name} augmentation",
            "expected flip, scale, rotation_deg or shift in a study under masks, found none: without any, two "
            "sums differ by little but the hospital missing in one of them",
            "Ask the coordinator for a study with augmentation",
        )


def misfits(study: Study, site: Site) -> Iterator[Finding]:
    """Yield why the site's images could not be used in the study; with any, it cannot be approved."""
    if study.image.geometry == "spacing" and not site.has_spacing:
        yield Finding(
            "no-spacing",
            "manifest.csv",
            "expected spacing_mm for every image, since the study resamples by it; found none",
            "Fill it in, or ask the coordinator for a study with `geometry: letterbox`",
        )
    if study.privacy is not None and study.privacy.delta * len(site.patients("train")) > 0.1:
        # Without the number: whoever passes the finding on to the coordinator would tell it.
        yield Finding(
            "large-delta",
            f"study {study.name} privacy.delta",
            f"expected less than a tenth of one in your training patients, found {study.privacy.delta:g}: with it, the "
            "promise could be kept by publishing one of them",
            "Ask the coordinator for a much smaller delta, without telling how many patients you have",
        )
    yield from _same_draws(study, site)
    own = [(stage, task) for stage, task in _tasks(study, site) if stage in study.stages]
    if not own:
        yield Finding(
            "no-task",
            f"study {study.name}",
            f"expected a task for {site.config.role} sites, found none",
            "Ask the coordinator whether this is the right study",
        )
    few: dict[Split, list[str]] = {}
    # Under privacy the noise takes the place of the floor; nothing can be drawn from nobody all the same.
    least = 1 if site.config.policy.bounded(study) else site.config.policy.min_update_patients
    for stage, task in own:
        if isinstance(task, TrainingTask) and task.split and len(site.patients(task.split)) < least:
            few.setdefault(task.split, []).append(f"{task.task} (stage {stage.name})")
    for split, tasks in few.items():
        yield Finding(
            "few-patients",
            "manifest.csv",
            f"expected at least {least} {split} patients for {', '.join(tasks)}; found {len(site.patients(split))}",
            f"Give more patients the split {split}, ask the coordinator for a study without it, or lower "
            "min_update_patients in site.yaml: an update then tells more of each",
        )


def notes(site: Site) -> list[str]:
    """Return what is no fault of a folder, but would surprise its owner in a study."""
    found = []
    if site.config.role == "source" and not site.patients("calibrate"):
        found.append(
            "no calibrate patients: a study with the task infuse cannot be approved here (see the column split)"
        )
    if not site.has_spacing:
        found.append("not every image has spacing_mm: studies that resample by it cannot use this folder")
    if site.blank_masks:
        found.append(
            f"{site.blank_masks} mask(s) mark nothing: right for a frame without the structure, else export it again "
            "(--html shows them)"
        )
    return found


def kept_back(study: Study, site: Site) -> list[KeptBack]:
    """Return the numbers that a study asks for and the folder has too few patients for, in the study's order."""
    policy = site.config.policy
    found = []
    for stage, task in _tasks(study, site):
        by_split: dict[Split, list[str]] = {}
        for name in study.metrics_of(stage, site.config.role):
            if policy.permits_metric(name):
                by_split.setdefault(_behind(task, name), []).append(name.partition("/")[0])
        for split, names in by_split.items():
            patients = len(site.patients(split, labelled=True if split in ("val", "test") else None))
            if patients < policy.min_patients:
                found.append(KeptBack(stage.name, tuple(dict.fromkeys(names)), split, patients, policy.min_patients))
    return found


def _behind(task: Task, metric: str) -> Split:
    """The split of the patients behind a number."""
    if metric == "val_dice":
        return "val"
    return task.split or "train"


def _tasks(study: Study, site: Site) -> Iterator[tuple[Stage, Task]]:
    for round_ in study.rounds():
        task = round_.stage.task_of(site.config.role)
        if task is not None and round_.step == 0:
            yield round_.stage, task
