"""The desk in its containers. `make container-test`."""

import pytest
from container_story import Story
from kits import confined

pytestmark = pytest.mark.containers


def test_the_desk_answers_at_this_machines_loopback_to_who_has_the_token(story: Story) -> None:
    assert story.desk is not None
    status, text = story.desk.shown
    assert status == 200
    assert "east" in text
    assert story.desk.without_token == 403
    assert story.desk.elsewhere
    assert not any(story.desk.elsewhere.values()), story.desk.elsewhere


def test_the_desks_process_with_the_images_has_no_network_and_the_other_one_no_data(story: Story) -> None:
    assert story.desk is not None
    for inside in (story.desk.pages, story.desk.forward):
        confined(inside)
    assert story.desk.pages.interfaces == {"lo"}
    assert story.desk.pages.writable() == {"/state", "/run/desk", "/tmp", "/predictions"}
    assert story.desk.forward.writable() == {"/tmp"}
    assert not {
        path for path in story.desk.forward.mounts if path.startswith(("/site", "/state", "/study", "/predictions"))
    }


def test_the_desks_forwarder_tells_nothing_by_the_names_that_it_asks_for(story: Story) -> None:
    if story.questions is not None:
        assert not story.questions.heard("desk.example.org")


def test_the_desk_ends_with_its_command(story: Story) -> None:
    assert story.desk is not None
    assert story.desk.running == []
