"""What each service is confined to, seen from inside. `make container-test`."""

import pytest
from container_story import COORDINATOR, HOSPITAL, SITES, Story
from kits import confined

pytestmark = pytest.mark.containers


@pytest.mark.parametrize("service", COORDINATOR)
def test_a_service_of_the_coordinator_is_confined(story: Story, service: str) -> None:
    confined(story.inside["coordinator", service])


@pytest.mark.parametrize("name", SITES)
@pytest.mark.parametrize("service", HOSPITAL)
def test_a_service_of_a_hospital_is_confined(story: Story, name: str, service: str) -> None:
    confined(story.inside[name, service])


@pytest.mark.parametrize("name", SITES)
def test_the_worker_has_no_interface_and_writes_its_state_and_the_socket(story: Story, name: str) -> None:
    inside = story.inside[name, "worker"]
    assert inside.interfaces == {"lo"}
    assert inside.writable() == {"/state", "/run/crossprobe", "/tmp"}
    assert "ro" in inside.mounts["/site"]


@pytest.mark.parametrize("name", SITES)
def test_the_other_two_write_nothing_that_lasts(story: Story, name: str) -> None:
    for service, interfaces in (("supernode", 3), ("superexec", 2)):
        inside = story.inside[name, service]
        assert inside.writable() == {"/tmp"}
        assert len(inside.interfaces) == interfaces
        assert not {path for path in inside.mounts if path.startswith(("/site", "/state"))}
    assert "/etc/crossprobe/node" not in story.inside[name, "superexec"].mounts
