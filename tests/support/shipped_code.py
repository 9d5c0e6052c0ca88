"""Code that a hostile coordinator ships to every hospital, and what it tries there (tests/hostile)."""

import json
import subprocess
from http.server import BaseHTTPRequestHandler

from container_story import COORDINATOR, HOSPITAL, ROOT, Story

HOSTILE = ROOT / "tests" / "hostile"
#: An address for documents that no packet is delivered to (RFC 5737).
OUTSIDE = "198.51.100.1"
CAPTIVE = "was-carried-out.example.org"
#: All that shipped code can read beside itself: what proves to the SuperNode who asks.
SHARED_SECRET = "/etc/crossprobe/superexec.secret"


class Doorbell(BaseHTTPRequestHandler):
    """Something that a machine of a hospital's serves to its own network."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def addresses(story: Story, doorbell: int, port: int) -> list[tuple[str, int]]:
    """Return every place that a hospital's shipped code has no business at."""
    machine = [
        story.engine.gateway(),
        *subprocess.run(["hostname", "-I"], capture_output=True, text=True).stdout.split(),
    ]
    places = [(host, number) for host in machine if ":" not in host for number in (doorbell, port)]
    places += [(OUTSIDE, 443), ("127.0.0.1", 9094)]
    for kit in story.kits.values():
        for service in COORDINATOR if kit is story.coordinator else HOSPITAL:
            for network, content in kit.inspect(service)["NetworkSettings"]["Networks"].items():
                if network.endswith("_inner"):
                    story.inner[f"{kit.name}-{service}"] = content["IPAddress"]
                elif content["IPAddress"]:
                    places += [(content["IPAddress"], number) for number in (8443, 9443, 9094)]
                gateway = story.engine.gateway(network)
                places += [(gateway, number) for number in (doorbell, port) if gateway]
    places += [(address, 9094) for name, address in story.inner.items() if name.endswith("supernode")]
    return sorted(set(places))


def attack(story: Story, doorbell: int, port: int) -> None:
    """Have the coordinator ship code that tries, and see that the same attempts work where they may."""
    plan = {
        "addresses": addresses(story, doorbell, port),
        "names": ["superlink", "proxy", "worker", CAPTIVE],
        "files": [
            *(
                f"/etc/crossprobe/{name}"
                for name in ("node", "runtime.key", "ca.crt", "server.key", "superexec.secret")
            ),
            *("/site/site.yaml", "/state/secret", "/node/node", "/study/study.yaml", "/etc/shadow"),
            *("/var/run/docker.sock", "/dev/mem", "/dev/kmsg", "/proc/kcore", "/proc/sysrq-trigger"),
        ],
        "folders": ["/", "/app", "/etc", "/etc/crossprobe", "/run/crossprobe", "/usr/local/bin", "/var/tmp", "/tmp"],
    }
    runs = story.coordinator.folder / "runs"
    (runs / "hostile-plan.json").write_text(json.dumps(plan))
    mount = ("-v", f"{HOSTILE}:/hostile:ro")
    story.said["hostile"] = story.coordinator.compose("run", "--rm", *mount, "console", "python", "/hostile/submit.py")
    story.found = json.loads((runs / "hostile-found.json").read_text())
    code = (
        "import socket\n"
        f"try: socket.create_connection(({story.engine.gateway()!r}, {doorbell}), 5); print('connected')\n"
        "except OSError as error: print(error)\n"
    )
    story.controls["doorbell"] = story.kits["north"].run_in("supernode", "python", "-c", code).strip()
    ask = "import socket\ntry: socket.getaddrinfo('control.example.org', 443)\nexcept OSError: pass\n"
    story.kits["north"].run_in("supernode", "python", "-c", ask)
