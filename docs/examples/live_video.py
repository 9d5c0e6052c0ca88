"""Colour what the model marks, frame by frame: live_video.py model.onnx loop.mp4 marked.mp4 [mm a pixel]

For live speed take one branch: crossprobe export RELEASE --network target_branch --no-flips --out model.onnx
"""

import sys
import time

import av
import numpy as np
import onnxruntime
from PIL import Image

model, loop, marked, *spacing_mm = sys.argv[1:]
session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
facts = session.get_modelmeta().custom_metadata_map
with av.open(loop) as video, av.open(marked, "w") as out:
    size = width, height = video.streams.video[0].width, video.streams.video[0].height
    written = out.add_stream("mpeg4", rate=video.streams.video[0].average_rate, width=width, height=height)
    own = facts["spacing_mm"]  # empty where the study scales the longer side to `size` instead
    zoom = float(spacing_mm[0]) / float(own) if own else int(facts["size"]) / max(size)
    began, shown = time.perf_counter(), 0
    for frame in video.decode(video=0):
        picture = frame.to_ndarray(format="rgb24")
        on_grid = (round(width * zoom), round(height * zoom))
        small = Image.fromarray(picture).convert("L").resize(on_grid, Image.Resampling.BILINEAR)
        (p,) = session.run(None, {"image": np.asarray(small, np.float32)[None, None] / 255})
        mask = np.asarray(Image.fromarray(p[0, 0]).resize(size, Image.Resampling.BILINEAR)) > 0.5
        picture[mask, 0] = 255
        out.mux(written.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        shown += 1
    out.mux(written.encode())
print(f"{shown / (time.perf_counter() - began):.0f} frames a second, reading and writing of the video included")
