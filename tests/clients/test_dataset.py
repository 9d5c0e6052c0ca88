"""A site's frames in memory: as many as fit, and the same whichever they are."""

import gc
import weakref
from pathlib import Path

import pytest
import torch
from tiny import study

from clients.data import dataset
from clients.data.dataset import Dataset
from clients.data.frames import Frame
from clients.data.site import Site


def test_a_site_keeps_the_frames_that_it_was_asked_for_last_and_gives_the_same_for_all(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []
    plain = dataset.read_image

    def counting(frame: Frame) -> object:
        read.append(frame.image)
        return plain(frame)

    frames = site.frames_of("train", labelled=True)[:3]
    whole = Dataset(site, study())
    monkeypatch.setattr(dataset, "read_image", counting)
    monkeypatch.setattr(dataset, "KEPT_PIXELS", 2 * study().image.size ** 2)
    bounded = Dataset(site, study())
    order = [0, 1, 0, 1, 2, 1, 0]  # the third one takes the place of the first
    for index in order:
        kept, seen = whole.labelled(frames[index]), bounded.labelled(frames[index])
        assert kept.truth is not None
        assert seen.truth is not None
        for name in ("image", "valid", "truth"):
            assert torch.equal(getattr(kept, name), getattr(seen, name)), name
    by_bounded = [frames[index].image for index in (0, 1, 2, 0)]
    by_whole = [frame.image for frame in frames]
    assert sorted(read) == sorted(by_bounded + by_whole)


def test_a_site_that_nobody_needs_any_more_leaves_its_images_at_once(site: Site) -> None:
    """A simulation opens thousands of sites one after the other; the garbage collector does not see their size."""
    data = Dataset(site, study())
    image = weakref.ref(data.labelled(site.frames_of("train", labelled=True)[0]).image)
    gc.disable()
    try:
        assert image() is not None
        del data
        assert image() is None
    finally:
        gc.enable()
