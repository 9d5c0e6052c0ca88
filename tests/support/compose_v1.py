"""`docker` for machines with Debian's docker-compose 1: `docker compose` with the words of the documents.

Environment: CROSSPROBE_DOCKER, the real `docker`.
"""

import json
import os
import signal
import subprocess
import sys
import time

DOCKER = os.environ["CROSSPROBE_DOCKER"]


def healths() -> dict[str, str]:
    """Return name -> health (`starting`, `healthy`, `unhealthy`, or the state of one without a check).

    What nobody starts again, such as a desk that was ended, is not waited for.
    """
    names = subprocess.run(["docker-compose", "ps", "-q"], capture_output=True, text=True, check=True).stdout.split()
    content = json.loads(subprocess.run([DOCKER, "inspect", *names], capture_output=True, text=True).stdout or "[]")
    kept = [each for each in content if each["HostConfig"]["RestartPolicy"]["Name"] not in ("", "no")]
    states = {each["Name"].lstrip("/"): each["State"] for each in kept}
    return {name: state.get("Health", {}).get("Status", state["Status"]) for name, state in states.items()}


def wait(patience_s: float) -> int:
    """Wait for every container's health as `docker compose up --wait` does."""
    deadline = time.monotonic() + patience_s
    found: dict[str, str] = {}
    while time.monotonic() < deadline:
        found = healths()
        if found and set(found.values()) == {"healthy"}:
            return 0
        sick = [name for name, health in found.items() if health == "unhealthy"]
        if sick:
            print(f"container {sick[0]} is unhealthy", file=sys.stderr)
            return 1
        time.sleep(1)
    print(f"not healthy in time: {found}", file=sys.stderr)
    return 1


def main(arguments: list[str]) -> int:
    """Run `docker` with these arguments."""
    if arguments[0] != "compose":
        os.execv(DOCKER, [DOCKER, *arguments])
    words = arguments[1:]
    if words[0] == "run" and not sys.stdin.isatty():
        words.insert(1, "-T")
    patience_s = 600.0
    if "--wait-timeout" in words:
        where = words.index("--wait-timeout")
        patience_s = float(words[where + 1])
        del words[where : where + 2]
    waiting = "--wait" in words
    process = subprocess.Popen(["docker-compose", *(word for word in words if word != "--wait")])
    signal.signal(signal.SIGINT, lambda *_: None)  # Ctrl-C is for compose, which then stops what it started
    code = process.wait()
    return wait(patience_s) if waiting and code == 0 else code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
