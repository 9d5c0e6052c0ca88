"""A video with the outline drawn on it, for video input, frame for frame at the input's rate."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from clients.data.formats.video import rate_of


class OverlayVideo:
    """`overlays/NAME.mp4`, H.264."""

    def __init__(self, source: Path, out: Path, name: str, model: str) -> None:
        self.rate: Fraction = rate_of(source)
        self.file = out / "overlays" / f"{name}.mp4"
        self.container: Any = None

    def add(self, mask: np.ndarray, overlay: np.ndarray) -> None:
        """Encode a frame, uint8 [H, W, 3]."""
        import av

        picture = np.pad(overlay, ((0, overlay.shape[0] % 2), (0, overlay.shape[1] % 2), (0, 0)), mode="edge")
        if self.container is None:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self.container = av.open(str(self.file), "w")
            # every player reads 4:2:0, whose sides are even
            self.stream = self.container.add_stream(
                "h264", rate=self.rate, width=picture.shape[1], height=picture.shape[0], pix_fmt="yuv420p"
            )
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
        self.container.mux(self.stream.encode(frame))

    def close(self) -> Path:
        """Finish the file."""
        self.container.mux(self.stream.encode(None))
        self.container.close()
        return self.file
