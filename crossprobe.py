"""The command `crossprobe`: finds the part that a command belongs to and imports only that."""

import argparse
import logging
import os
import signal
import sys
from importlib import import_module

from common.errors import CrossProbeError

COMMANDS = {
    "demo": ("simulations.cli", "the whole method on two phantom sites, with a report"),
    "simulate": ("simulations.cli", "run a study over site folders on this machine"),
    "ablate": ("simulations.cli", "which part of the method wins how much: variants x seeds x data sets"),
    "phantom": ("simulations.cli", "write phantom site folders"),
    "import": ("simulations.cli", "make site folders from a public data set"),
    "site": ("clients.cli", "hospital: check a site folder, approve studies, see what they would send"),
    "worker": ("clients.cli", "hospital: answer the messages of approved studies"),
    "ledger": ("clients.cli", "hospital: what this site sent, and when"),
    "predict": ("clients.cli", "segment images with a trained model"),
    "provision": ("server.cli", "coordinator: make certificates and a startup kit for each hospital"),
    "study": ("server.cli", "coordinator: check, run, follow and stop a study"),
    "report": ("server.cli", "render the report of a run"),
}

EXAMPLES = """\
examples:
  crossprobe demo
  crossprobe phantom runs/sites --source lumify_like --target telemed_like
  crossprobe simulate configs/demo.yaml --sites runs/sites/a runs/sites/b --out runs/first
  crossprobe site check /data/our-site
  crossprobe predict --model runs/first --images scans/ --out masks/

`crossprobe COMMAND --help` explains a command.
"""


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit code.

    0 done, 1 a reported problem, 2 wrong usage, 130 Ctrl-C, 141 nobody reads the output any more (`| head`).
    """
    try:
        try:
            return _run(sys.argv[1:] if arguments is None else arguments)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        pass
    except SystemExit as end:
        if not isinstance(end.__context__, BrokenPipeError):  # rich's way to say it
            raise
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # where the rest of the output goes
    return 128 + signal.SIGPIPE


def _run(arguments: list[str]) -> int:
    width = max(map(len, COMMANDS))
    listing = "\n".join(f"  {name:{width}}  {text}" for name, (_, text) in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="crossprobe",
        usage="crossprobe COMMAND ...",
        description="Federated ultrasound segmentation for probes that nobody labelled.",
        epilog=f"commands:\n{listing}\n\n{EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="see below")
    chosen = parser.parse_args(arguments[:1])
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    module = import_module(COMMANDS[chosen.command][0])
    try:
        code = module.main(chosen.command, arguments[1:])
    except CrossProbeError as error:
        print(f"crossprobe {chosen.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; what was saved is whole, --resume continues a run", file=sys.stderr)
        return 130
    return int(code or 0)


if __name__ == "__main__":
    sys.exit(main())
