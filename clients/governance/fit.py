"""Is a site's folder large enough for a study? What could not run, and what would be kept back. Torch-free."""

from collections.abc import Iterator
from dataclasses import dataclass

from clients.data.findings import Finding
from clients.data.site import Site, Split
from clients.governance.disclosure import possible_metrics
from common.study import Stage, Study
from common.tasks import AnyTask, Infuse, TrainingTask


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


def drawn_split(task: TrainingTask) -> Split:
    """Return whose patients a training task draws."""
    return "calibrate" if isinstance(task, Infuse) else "train"


def misfits(study: Study, site: Site) -> Iterator[Finding]:
    """Yield why the site's images could not be used in the study; with any, it cannot be approved."""
    if study.image.geometry == "spacing" and not site.has_spacing:
        yield Finding(
            "no-spacing",
            "manifest.csv",
            "expected spacing_mm for every image, since the study resamples by it; found none",
            "Fill it in, or ask the coordinator for a study with `geometry: letterbox`",
        )
    own = [(stage, task) for stage, task in _tasks(study, site) if stage in study.stages]
    if not own:
        yield Finding(
            "no-task",
            f"study {study.name}",
            f"expected a task for {site.config.role} sites, found none",
            "Ask the coordinator whether this is the right study",
        )
    empty: dict[Split, list[str]] = {}
    for stage, task in own:
        if isinstance(task, TrainingTask) and not site.patients(drawn_split(task)):
            empty.setdefault(drawn_split(task), []).append(f"{task.task} (stage {stage.name})")
    for split, tasks in empty.items():
        yield Finding(
            "no-patients",
            "manifest.csv",
            f"expected {split} patients for {', '.join(tasks)}; found none",
            f"Give some patients the split {split}, or ask the coordinator for a study without it",
        )


def notes(site: Site) -> list[str]:
    """Return what is no fault of a folder, but would surprise its owner in a study."""
    if site.config.role == "source" and not site.patients("calibrate"):
        return ["no calibrate patients: a study with the task infuse cannot be approved here (see the column split)"]
    return []


def kept_back(study: Study, site: Site) -> list[KeptBack]:
    """Return the numbers that a study asks for and the folder has too few patients for, in the study's order."""
    policy = site.config.policy
    found = []
    for stage, task in _tasks(study, site):
        by_split: dict[Split, list[str]] = {}
        for name in possible_metrics(study, task, site.config.role):
            if policy.permits_metric(name):
                by_split.setdefault(_behind(task, name), []).append(name.partition("/")[0])
        for split, names in by_split.items():
            patients = len(site.patients(split, labelled=True if split in ("val", "test") else None))
            if patients < policy.min_patients:
                found.append(KeptBack(stage.name, tuple(dict.fromkeys(names)), split, patients, policy.min_patients))
    return found


def _behind(task: AnyTask, metric: str) -> Split:
    """The split of the patients behind a number."""
    if task.task == "evaluate":
        return "test"
    if metric == "val_dice":
        return "val"
    return drawn_split(task) if isinstance(task, TrainingTask) and metric != "score" else "train"


def _tasks(study: Study, site: Site) -> Iterator[tuple[Stage, AnyTask]]:
    for round_ in study.rounds():
        task = round_.stage.task_of(site.config.role)
        if task is not None and round_.step == 0:
            yield round_.stage, task
