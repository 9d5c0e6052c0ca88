"""Every message, number and component that a site may send, in plain words. Torch-free."""

from collections.abc import Iterable

from common.contract import MEASURES, PREDICTORS, STATISTICS

MESSAGES = {
    "enrolled": "when a run starts or goes on",
    "done": "once for each task of a round",
    "refused": "instead of either",
}
#: Of all these messages; `metrics` and the tensors behind a header are explained name by name below.
FIELDS = {
    "protocol": "version of the messages' format",
    "kind": "which of these messages it is",
    "study": "hash of the study",
    "site": "your site's name",
    "role": "source or target",
    "patients": "number of your training patients, rounded and capped by your policy, or the study's public number",
    "labelled_test": "whether you have enough labelled test patients for the evaluation",
    "software": "version of CrossProbe",
    "round": "number of the round",
    "stage": "name of the stage",
    "task": "name of the task",
    "request": "hash of the request that is answered",
    "metrics": "the numbers below",
    "code": "a fixed word for the reason",
    "message": "the fixed sentence of that word",
    "ledger_head": "hash of your ledger's last line",
}

TASKS = {
    "supervise": "trains on your labelled images",
    "self_supervise": "trains on your images without labels: fills in hidden parts, matches two views of an image",
    "self_train": "trains on your images without labels, with the present model's own predictions as labels",
    "infuse": "trains the small network that weighs the two branches, on your labelled `calibrate` patients",
    "score": "trains nothing; measures the model that you received",
    "evaluate": "trains nothing; compares the models with your labelled `test` patients",
}

COMPONENTS = {
    "source_branch.encoder": "first half of the segmentation network that learns from labels",
    "source_branch.decoder": "second half of the segmentation network that learns from labels",
    "target_branch.encoder": "first half of the segmentation network for the unlabelled probe",
    "target_branch.decoder": "second half of the segmentation network for the unlabelled probe",
    "mim_decoder": "helper network that fills in hidden parts of images; not part of the released model",
    "projector": "helper network that compares views of an image; not part of the released model",
    "infusion_head": "small network that weighs the two branches pixel by pixel",
}

_SINGLE = {
    "loss": "mean training error of this round; no unit",
    "foreground_fraction": "mean share of the image that is marked, over your labelled training patients",
    "val_dice": "mean agreement (Dice, 0 to 1) of the received model with your labels on `val` patients",
    "reconstruction_loss": "mean error of filled-in image parts; no unit",
    "contrast_loss": "mean error of matching two views of an image; no unit",
    "confidence": "how sure the received model is of its predictions on your images, a mean from 0 to 1",
    "pseudo_foreground_fraction": "mean share of the image that the received model marks on your images",
    "score": "how steady the received model's predictions are under simulated changes of device, 0 to 1",
    "mean_weight": "mean weight of the first branch on your `calibrate` patients, 0 to 1",
}

_PREDICTORS = {
    "baseline": "the model trained on labels alone",
    "source_branch": "the branch that learns from labels",
    "target_branch": "the branch for the unlabelled probe",
    "average": "the plain average of both branches",
    "infusion": "both branches, weighed by the infusion head",
}
_MEASURES = {
    "dice": "Dice (0 to 1)",
    "iou": "intersection over union (0 to 1)",
    "hd95": "95th percentile of the distance between outlines (mm, or pixels without spacing)",
    "calibration_error": "calibration error (0 to 1)",
}
_STATISTICS = {
    "mean": "mean over test patients",
    "low": "lower end of the mean's 95 % interval",
    "high": "upper end of the mean's 95 % interval",
    "difference": "mean difference to the baseline",
    "difference_low": "lower end of that difference's 95 % interval",
    "difference_high": "upper end of that difference's 95 % interval",
    "patients": "number of test patients behind it, rounded and capped by your policy",
}
_SHARES = {
    "empty_truth_share": "share of test images, to a hundredth, on which nothing is marked in your labels",
    "empty_prediction_share": "share of test images, to a hundredth, on which the model marks nothing",
}


def explain_metric(name: str) -> str:
    """Return what a metric of the contract says, as one sentence. Raises KeyError for any other name."""
    parts = name.split("/")
    if len(parts) == 1:
        return _SINGLE[name]
    if len(parts) == 2:
        return f"{_SHARES[parts[1]]} ({_PREDICTORS[parts[0]]})"
    predictor, measure, statistic = parts
    return f"{_MEASURES[measure]}, {_STATISTICS[statistic]} ({_PREDICTORS[predictor]})"


def explain_together(names: Iterable[str]) -> list[tuple[str, str]]:
    """Return a row of name and sentence for each metric, those of an evaluation by their parts.

    An evaluation has about 150 numbers, one for each predictor, measure and statistic; what each part
    means is 18 rows. Every name still stands in the machine-readable output.
    """
    listed = list(names)
    rows = [(name, _SINGLE[name]) for name in listed if name in _SINGLE]
    split = [name.split("/") for name in listed if "/" in name]
    if split:
        rows.append(("PREDICTOR/MEASURE/STATISTIC", "of the evaluation, one number for each combination of:"))
        for title, order, words, place in (
            ("PREDICTOR", PREDICTORS, _PREDICTORS, 0),
            ("MEASURE", (*MEASURES, *_SHARES), {**_MEASURES, **_SHARES}, 1),
            ("STATISTIC", STATISTICS, _STATISTICS, 2),
        ):
            used = {parts[place] for parts in split if len(parts) > place}
            rows += [(f"  {title} {word}", words[word]) for word in order if word in used]
    return rows
