"""What code that the coordinator ships reaches, reads and writes at a hospital. `make container-test`."""

import re

import pytest
from container_story import SITES, Story
from shipped_code import CAPTIVE, SHARED_SECRET

pytestmark = pytest.mark.containers


def test_shipped_code_ran_at_every_hospital(story: Story) -> None:
    assert len(story.found) == len(SITES)
    for found in story.found:
        assert sorted(found["interfaces"]) == ["eth0", "lo"]
        assert found["write"]["/tmp"] == "written"  # the attempts do work where they may
        assert found["read"][SHARED_SECRET] is True


def test_shipped_code_reaches_its_supernode_and_nothing_else(story: Story) -> None:
    assert story.controls["doorbell"] == "connected"  # somebody does answer there
    reached = [{place for place, came in found["connect"].items() if came == "connected"} for found in story.found]
    own = [f"{address}:9094" for name, address in story.inner.items() if name.endswith("supernode")]
    assert sorted(place for places in reached for place in places) == sorted(own)
    assert {len(places) for places in reached} == {1}
    for found in story.found:
        assert found["ipv6"] == "" or found["ipv6"].split()[-1] == "lo"


def test_shipped_code_tells_nothing_by_the_names_that_it_asks_for(story: Story) -> None:
    assert all("gaierror" in came for found in story.found for came in found["names"].values())
    if story.questions is not None:
        assert story.questions.heard("control.example.org")  # a container with a way out is heard
        assert not story.questions.heard(CAPTIVE)


def test_shipped_code_finds_no_image_no_key_and_nothing_to_write(story: Story) -> None:
    for found in story.found:
        assert found["files"]["images"] == []
        assert found["files"]["keys"] == [SHARED_SECRET]
        assert [path for path, came in found["read"].items() if came is True] == [SHARED_SECRET]
        assert "written" not in {came for folder, came in found["write"].items() if folder != "/tmp"}
        assert "Read-only" in found["replace_socket"]


def test_shipped_code_gets_no_more_rights_than_it_has(story: Story) -> None:
    for found in story.found:
        assert set(found["ids"]) == {1000}
        for attempt in ("become_root", "raw_socket", "packet_socket", "chroot", "device"):
            assert "not permitted" in found[attempt], attempt
        for attempt in ("mount", "remount", "new_user", "new_net"):
            assert "not permitted" in found[attempt], attempt
        assert found["forks"] < 512
        assert not [line for line in found["processes"] if "crossprobe worker" in line or "deploy/supernode.py" in line]
        assert not [name for name in found["environment"] if re.search("KEY|SECRET|TOKEN|PASS|KIT|DATA|ADDRESS", name)]


def test_shipped_code_hears_no_more_from_the_worker_than_the_contract_has(story: Story) -> None:
    for found in story.found:
        assert '"kind":"refused","code":"not-a-message"' in found["junk"]
        assert "UNIMPLEMENTED" in found["other_method"]
