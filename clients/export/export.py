"""A release as an ONNX file: written after it was checked against torch, with all that its user has to know in it."""

import copy
import io
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch

from clients.export.graph import Graph
from clients.export.pictures import speckle
from clients.released import Model
from common.errors import RunError
from common.files import PUBLIC, write_atomically
from common.geometry import Placement, to_grid
from common.infusion import predict_maps
from common.messages import digest
from common.release import CARD, WEIGHTS, find_release
from common.study import Study
from common.version import software_version

#: An exported model's probabilities may be off by this much, against the same graph in torch and float64.
TOLERANCE = 1e-4
#: The newest that torch's exporter without onnxscript knows has nothing that the graph needs.
OPSET = 17
INPUT, OUTPUT = "image", "probability"

#: Images [B, 1, H, W] in [0, 1] on the study's grid -> foreground probability [B, 1, H, W] in [0, 1].
Segmenter = Callable[[np.ndarray], np.ndarray]


def graph_of(model: Model, *, flips: bool = True) -> Graph:
    """Return the graph of a model; `flips` False leaves the mirrored image out where the study has it.

    A student never sees it, see `common.infusion.predict_maps`.
    """
    flips = flips and model.study.flips_at_inference and model.predictor != "student"
    graph: Graph = Graph(model, flips=flips).eval()
    return graph


def in_torch(graph: Graph, precision: torch.dtype = torch.float32) -> Segmenter:
    """Return a graph as a function of images."""
    graph = copy.deepcopy(graph).to(precision)

    def segment(image: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            found: np.ndarray = graph(torch.from_numpy(image).to(precision)).numpy()
        return found

    return segment


def to_onnx(graph: Graph, metadata: dict[str, str]) -> bytes:
    """Return a graph as ONNX of any batch, height and width, with metadata."""
    sample, dynamic = torch.from_numpy(speckle(72, 88)), {0: "batch", 2: "height", 3: "width"}
    content = io.BytesIO()
    with warnings.catch_warnings():
        # The exporter on TorchScript is deprecated and needs nothing besides torch, which is pinned. The new one needs
        # onnxscript, and took seventeen times as long for the same numbers.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            graph,
            (sample.repeat(2, 1, 1, 1),),
            content,  # type: ignore[arg-type]  # its stubs know files alone
            dynamo=False,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_axes={INPUT: dynamic, OUTPUT: dynamic},
        )
    model = onnx.load_from_string(content.getvalue())
    onnx.helper.set_model_props(model, metadata)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def session_of(model: bytes | Path, threads: int = 1) -> onnxruntime.InferenceSession:
    """Return an ONNX model ready to run on so many threads."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # waiting threads would starve the others
    return onnxruntime.InferenceSession(
        model if isinstance(model, bytes) else str(model), options, providers=["CPUExecutionProvider"]
    )


def segmenter(model: bytes | Path, threads: int = 1) -> Segmenter:
    """Return an ONNX model as a function of images."""
    session = session_of(model, threads)
    return lambda image: session.run([OUTPUT], {INPUT: image})[0]


def agreement(one: Segmenter, other: Segmenter, pictures: Sequence[np.ndarray]) -> float:
    """Return the mean Dice of the masks that two ways to segment give for at least one image; empty masks agree."""
    found = []
    for image in pictures:
        a, b = one(image) > 0.5, other(image) > 0.5
        found.append(2 * float((a & b).sum()) / float(a.sum() + b.sum()) if (a | b).any() else 1.0)
    return float(np.mean(found))


def as_predict(model: Model) -> Segmenter:
    """Return `crossprobe predict`, with its tiles, as a function of one image [1, 1, H, W] on the study's grid."""
    grid, stride = model.study.image, model.study.network.stride

    def segment(image: np.ndarray) -> np.ndarray:
        height, width = image.shape[-2:]
        pixels, valid = to_grid(image[0, 0], Placement((height, width), (height, width)), grid, stride=stride)
        maps = predict_maps(model.networks, model.study, pixels, valid, [model.predictor])
        return maps[model.predictor][None, None, :height, :width].numpy()

    return segment


def difference(one: Segmenter, other: Segmenter, pictures: Sequence[np.ndarray]) -> float:
    """Return the largest difference of a pixel's probability between two ways to segment."""
    return max((float(np.abs(one(image) - other(image)).max()) for image in pictures), default=0.0)


@dataclass(frozen=True)
class Exported:
    """How an exported model compares.

    Attributes:
        largest_difference: of a pixel's probability to the same graph in torch.
        dice_predict: mean Dice of its masks with those of `crossprobe predict`, on the user's images; None without.
    """

    largest_difference: float
    dice_predict: float | None


def export(
    model: Model, folder: Path, out: Path, *, flips: bool = True, pictures: Sequence[np.ndarray] = ()
) -> Exported:
    """Write a released model as ONNX to `out`, and its card beside it.

    Args:
        model: of `folder`, see `clients.released.load_model`.
        folder: a release, or the finished run that holds it.
        pictures: images [1, 1, H, W] on the study's grid to compare on, besides generated ones of several sizes.

    Raises:
        RunError: if the release is not whole, the graph differs from torch by more than `TOLERANCE` (on generated
            noise: by more than torch itself rounds), or `out` cannot be written. Nothing was written then.
    """
    release = find_release(folder)
    graph, card = graph_of(model, flips=flips), (release / CARD).read_text(encoding="utf-8")
    content = to_onnx(graph, _metadata(model.study, digest((release / WEIGHTS).read_bytes()), graph, card))
    size = model.study.image.size
    generated = [speckle(height, width) for height, width in ((size, size), (size // 2 + 1, size + 3), (256, 200))]
    generated.append(np.concatenate([speckle(size, size, seed=seed) for seed in range(3)]))
    segment, exact = segmenter(content), in_torch(graph, torch.float64)
    # In float64: rounding, which a network that never saw noise enlarges on it, is then in one of the two only.
    worst = 0.0
    for kind, images, allowed in (
        ("the given images", pictures, TOLERANCE),
        ("generated noise", generated, max(TOLERANCE, difference(exact, in_torch(graph), generated))),
    ):
        found = difference(exact, segment, images)
        if not found <= allowed:
            raise RunError(
                f"the exported graph differs from torch by {found:.2g} on {kind}, expected at most {allowed:.2g}; "
                "nothing was written. Use `crossprobe predict`, and report this with the study."
            )
        worst = max(worst, found)
    write_atomically(out, content, then="run the command again", mode=PUBLIC)
    write_atomically(card_of(out), card.encode(), then="run the command again", mode=PUBLIC)
    return Exported(worst, agreement(as_predict(model), segment, pictures) if pictures else None)


def card_of(out: Path) -> Path:
    """Return where the card of an exported model lies."""
    return out.with_name(f"{out.stem}.card.md")


def _metadata(study: Study, weights: str, graph: Graph, card: str) -> dict[str, str]:
    """Return what stands in the file itself, so that it cannot be lost."""
    grid = study.image
    size = (
        f"pixels of {grid.spacing_mm:g} mm a side: resample the image first"
        if grid.spacing_mm
        else f"the longer side {grid.size} pixels: resample the image first"
    )
    return {
        "study": study.name,
        "study_sha256": study.hash(),
        "weights_sha256": weights,
        "spacing_mm": f"{grid.spacing_mm:g}" if grid.spacing_mm else "",
        "size": str(grid.size),
        "input": f"{INPUT}, float32 [batch, 1, height, width], grey in [0, 1], {size}",
        "output": f"{OUTPUT}, float32 [batch, 1, height, width] in [0, 1]; the mask is above 0.5",
        "predictor": graph.predictor,
        "mirrored": str(graph.flips).lower(),
        "limits": (
            "Research software, no medical device. An image larger than `size` is seen whole, where `crossprobe "
            "predict` cuts it into tiles, so that masks may differ; small parts "
            + (f"below {study.smallest_part:g} of the largest are not dropped" if study.smallest_part else "stay")
            + ". Nobody has measured it on your images."
        ),
        "software": f"CrossProbe {software_version()}",
        "card": card,
    }
