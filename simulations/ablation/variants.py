"""The variants of an ablation: which stages of the method each of them trains, and what of it is measured."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from common.baseline import baseline_of
from common.components import BRANCH_PARTS
from common.errors import StudyError
from common.stage import Stage
from common.study import Study
from common.tasks import Infuse, SelfSupervise, SelfTrain, Supervise, TrainingTask

if TYPE_CHECKING:
    from clients.data.dataset import Dataset

Where = Literal["federated", "pooled", "oracle"]


@dataclass(frozen=True)
class Variant:
    """A sequence of stages and the predictors of it that get a row.

    Attributes:
        stages: of a study, the stages to train.
        rows: name of the row -> predictor.
        where: `federated`, `pooled` (all images in one place), or `oracle` (the target's labels too).
        each_round: measure the model after each round of the last stage, for a line below the table.
        knowing: changes the stages by what the targets' unlabelled images tell, as no task may send it from a site.
    """

    name: str
    stages: Callable[[Study], list[Stage]]
    rows: Mapping[str, str]
    where: Where = "federated"
    each_round: bool = False
    knowing: Callable[[list[Stage], Sequence["Dataset"]], list[Stage]] | None = None


def _baseline(study: Study) -> list[Stage]:
    return list(baseline_of(study).stages)


def _two(study: Study) -> list[Stage]:
    """Return one stage in which both branches share the study's supervised steps, rounded up to ten whole rounds.

    The two models differ by their first weights and by the views that they see.
    """
    task = next(stage.source for stage in study.stages if isinstance(stage.source, Supervise))
    steps = -(-(study.supervised_steps() // 2) // 10)
    return [Stage(name="supervise", rounds=10, source=task.model_copy(update={"trains": BRANCH_PARTS, "steps": steps}))]


def _without_refine(study: Study) -> Study:
    stages = tuple(stage for stage in study.stages if not isinstance(stage.target, SelfTrain))
    return study.model_copy(update={"stages": stages})


def _only_refine(study: Study) -> list[Stage]:
    """Return the method without pretraining: both branches supervised as long as the method does it, then the rest."""
    rest = [s for s in study.stages if isinstance(s.target, SelfTrain) or isinstance(s.source, Infuse)]
    return [*_two(_without_refine(study)), *rest]


def _through_refine(study: Study) -> list[Stage]:
    last = max(i for i, stage in enumerate(study.stages) if isinstance(stage.target, SelfTrain))
    return list(study.stages[: last + 1])


def _without(weight: str) -> Callable[[Study], list[Stage]]:
    """Return the stages before `refine` and the head with one term of `self_supervise` switched off."""

    def stages(study: Study) -> list[Stage]:
        return [
            stage.model_copy(update={"target": stage.target.model_copy(update={weight: 0.0})})
            if isinstance(stage.target, SelfSupervise)
            else stage
            for stage in _without_refine(study).stages
            if not isinstance(stage.source, Infuse)
        ]

    return stages


def _plain(study: Study) -> list[Stage]:
    """Return the baseline without artefacts and without an average of its weights."""
    return [
        stage.model_copy(update={"source": stage.source.model_copy(update={"artefacts": {}, "average": 0.0})})
        for stage in _baseline(study)
        if isinstance(stage.source, Supervise)
    ]


def _instead(study: Study, rival: Callable[[SelfTrain], TrainingTask]) -> list[Stage]:
    """Return the stages with what `rival` makes of `self_train` in its place."""
    return [
        stage.model_copy(update={"target": rival(stage.target)}) if isinstance(stage.target, SelfTrain) else stage
        for stage in study.stages
    ]


def _with_rival(study: Study, kind: type[TrainingTask]) -> list[Stage]:
    """Return the stages with a rival in the place of `self_train`, under those of its settings that the rival has."""
    shared = {*kind.model_fields} - {"task"}
    return _instead(study, lambda task: kind(**task.model_dump(include=shared)))


def _class_ratio(study: Study) -> list[Stage]:
    from simulations.ablation.rivals.class_ratio import ClassRatio  # here: a task is known from its import on

    return _with_rival(study, ClassRatio)


def _masked_consistency(study: Study) -> list[Stage]:
    from simulations.ablation.rivals.masked_consistency import MaskedConsistency

    return _with_rival(study, MaskedConsistency)


def _mean_teacher(study: Study) -> list[Stage]:
    from simulations.ablation.rivals.mean_teacher import MeanTeacher

    return _with_rival(study, MeanTeacher)


def _fourier(stages: list[Stage], targets: Sequence["Dataset"]) -> list[Stage]:
    from simulations.ablation.rivals.fourier import at_the_source

    return at_the_source(stages, targets)


VARIANTS = (
    Variant("baseline", _baseline, {"baseline": "source_branch"}),
    # Where the study's source trains with artefacts and an average: what these two are worth to the baseline.
    Variant("plain-baseline", _plain, {"plain baseline: no artefacts, no averaged weights": "source_branch"}),
    # On phantoms the baseline gets worse on the other probe the longer it trains on its own: show it.
    Variant(
        "short-baseline",
        lambda study: _baseline(_without_refine(study)),
        {"baseline with the paper's recipe's steps": "source_branch"},
    ),
    # The paper's recipe is two branches of fewer steps, averaged: this is what pretraining has to beat.
    Variant(
        "short-two-baselines",
        lambda study: _two(_without_refine(study)),
        {"two averaged baselines with the paper's recipe's steps": "average"},
    ),
    Variant("two-baselines", _two, {"two averaged baselines": "average"}),
    Variant("mim", _without("contrast_weight"), {"+ masked modelling": "average"}),
    Variant("contrast", _without("reconstruction_weight"), {"+ contrast": "average"}),
    Variant(
        "paper",
        lambda study: list(_without_refine(study).stages),
        {
            "+ both (average)": "average",
            "+ both (source branch)": "source_branch",
            "+ both (target branch)": "target_branch",
            "+ both, infusion head: the paper's recipe": "infusion",
        },
    ),
    Variant("only-refine", _only_refine, {"refine without pretraining": "average"}),
    Variant(
        "all",
        lambda study: list(study.stages),
        {
            "all stages (average)": "average",
            "all stages (source branch)": "source_branch",
            "all stages (target branch)": "target_branch",
            "all stages, as released": "infusion",
        },
    ),
    # Whether `refine` rises and then collapses, and whether the release, picked without labels of the target, is near
    # the best.
    Variant("rounds", _through_refine, {}, each_round=True),
    Variant("pooled", lambda study: list(study.stages), {"all stages on pooled data": "infusion"}, "pooled"),
    Variant("oracle", _baseline, {"oracle: the target's labels too": "source_branch"}, "oracle"),
)

#: The field's methods: other stages, settings, steps, artefacts and averages as the study has them.
RIVALS = (
    Variant(
        "class-ratio",
        _class_ratio,
        {"class-ratio adaptation (target branch)": "target_branch", "class-ratio adaptation": "infusion"},
    ),
    Variant(
        "masked-consistency",
        _masked_consistency,
        {"masked image consistency (target branch)": "target_branch", "masked image consistency": "infusion"},
    ),
    Variant("fourier", _baseline, {"Fourier domain adaptation": "source_branch"}, knowing=_fourier),
    Variant(
        "mean-teacher",
        _mean_teacher,
        {"mean teacher (target branch)": "target_branch", "mean teacher": "infusion"},
    ),
)


def chosen(names: Sequence[str]) -> list[Variant]:
    """Return the variants of these names, all but the rivals for none.

    Raises:
        StudyError: for an unknown name.
    """
    known = {variant.name: variant for variant in (*VARIANTS, *RIVALS)}
    if wrong := [name for name in names if name not in known]:
        raise StudyError(f"unknown variant {', '.join(wrong)}; known: {', '.join(known)}")
    return [known[name] for name in names] or list(VARIANTS)
