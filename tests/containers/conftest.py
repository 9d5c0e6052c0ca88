"""The kits in running containers, once for all tests here: they read what happened."""

import contextlib
from collections.abc import Iterator
from functools import partial

import pytest
from container_desk import sit_at
from container_story import (
    COMES_BACK_S,
    HOSPITAL,
    Story,
    look_inside,
    make_kits,
    register,
    run_through_a_restart,
    start_before_registration,
    take_down,
)
from engine import engine, missing, serving, serving_wheels
from processes import wait_until
from questions import RESOLVER, Questions
from shipped_code import Doorbell, attack

from simulations.processes import free_port


@pytest.fixture(scope="session")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    """The whole of it, in about ten minutes; whatever fails, everything is taken down."""
    lacking = missing()
    assert not lacking, f"{lacking}. On Debian: apt-get install docker.io docker-compose debootstrap"
    root, port = tmp_path_factory.mktemp("containers"), free_port()
    with engine() as found, contextlib.ExitStack() as stack:
        kits = make_kits(root, found, port)
        story = Story(found, kits)
        with serving_wheels(found):
            for kit in (story.coordinator, kits["north"]):  # the targets' images are the source's
                kit.do(1)
        if found.own:
            found.stop()
            found.start(RESOLVER)
            story.questions = Questions()
            stack.callback(story.questions.close)
        for kit in kits.values():
            stack.callback(partial(found.docker, "container", "prune", "-f", check=False))
            stack.callback(partial(kit.compose, "down", "-v", "-t", "2"))
        doorbell = stack.enter_context(serving(("0.0.0.0", 0), Doorbell))
        story.coordinator.do(2)
        for name, kit in story.hospitals.items():
            story.said[f"{name} check"] = kit.do(2)
            kit.do(3)
            kit.do(4)
            story.said[f"{name} approve"] = kit.do(5, answer="yes\n")
        story.desk = sit_at(kits["east"], root)
        start_before_registration(story)
        register(story)
        for name in ("north", "east"):
            kits[name].do(6)
        wait_until(lambda: kits["west"].healthy(*HOSPITAL), "the newcomer got in by itself", COMES_BACK_S)
        look_inside(story)
        attack(story, doorbell, port)
        run_through_a_restart(story, root)
        story.said["status"], story.said["report"] = story.coordinator.do(5), story.coordinator.do(6)
        for name, kit in story.hospitals.items():
            story.said[f"{name} ledger"] = kit.do(7)
        take_down(story)
        yield story
