"""The outlines that come with images: a mask for each frame, from every kind of file that people draw them into.

A kind of file that holds the masks of one image is a module here with `matches(path) -> bool` and `read(path, shape)
-> list[Mask]`, and a line in `FORMATS`. A file that holds those of many images, such as COCO's, is read once: `coco`.
"""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from clients.data.images import Mask
from clients.data.intake.masks import labels, slicer

#: The last one takes whatever the others do not.
FORMATS: tuple[ModuleType, ...] = (slicer, labels)

#: Frames, height and width of the image, as far as its header tells.
Shape = tuple[int, int, int]
#: Gives the masks of the frames of one image, when they are needed. Raises PictureError.
Outlines = Callable[[Shape], list[Mask]]


def outlines_of(path: Path) -> Outlines:
    """The masks in a file, read when they are asked for."""

    def read(shape: Shape) -> list[Mask]:
        own = next(own for own in FORMATS if own.matches(path))
        masks: list[Mask] = own.read(path, shape)
        return masks

    return read
