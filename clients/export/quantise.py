"""The graph in 8 bits: convolutions with integer weights and activations, their ranges from images of the user."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from clients.export.export import INPUT, agreement, segmenter
from common.files import PUBLIC, write_atomically


class _Pictures(CalibrationDataReader):
    def __init__(self, pictures: Sequence[np.ndarray]) -> None:
        self.left = iter(pictures)

    def get_next(self) -> dict[str, np.ndarray] | None:
        image = next(self.left, None)
        return None if image is None else {INPUT: image}


def quantise(model: Path, out: Path, pictures: Sequence[np.ndarray]) -> float:
    """Write an exported model in 8 bits to `out`; return the Dice of its masks with the float model's.

    Every second image calibrates, the others are compared. The normalisation and the small head stay in float32: they
    cost next to nothing and lose most.

    Raises:
        RunError: if `out` cannot be written.
    """
    content = onnx.load(model)
    convolutions = [node.name for node in content.graph.node if node.op_type == "Conv" and "head" not in node.name]
    with tempfile.TemporaryDirectory() as folder:
        ready, made = Path(folder) / "ready.onnx", Path(folder) / "int8.onnx"
        # symbolic shapes would need sympy, and every size stays open anyway
        quant_pre_process(content, ready, skip_symbolic_shape=True)
        quantize_static(
            ready,
            made,
            _Pictures(pictures[::2]),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_quantize=convolutions,
        )
        small = onnx.load(made)
    onnx.helper.set_model_props(small, {p.key: p.value for p in content.metadata_props} | {"bits": "8"})
    write_atomically(out, small.SerializeToString(), then="run the command again", mode=PUBLIC)
    return agreement(segmenter(model), segmenter(out), pictures[1::2])
