"""In the coordinator's console: submit this folder as if it were the study's app, and wait for its end."""

import os
import sys
import time
from pathlib import Path

from server.federation.flower_cli import FlowerCli

cli = FlowerCli(os.environ["CROSSPROBE_ADDRESS"], Path(os.environ["CROSSPROBE_CA"]))
answer = cli.call("run", str(Path(__file__).parent), "coordinator")
run = str(answer.get("run-id"))
print(answer)
while not cli.status(run).startswith("finished"):
    time.sleep(2)
print(cli.status(run))
sys.exit(0 if cli.status(run) == "finished:completed" else 1)
