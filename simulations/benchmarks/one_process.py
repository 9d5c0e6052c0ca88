"""A study in one process, without Flower: `python -m simulations.benchmarks.one_process STUDY OUT SITE ...`."""

import sys
from pathlib import Path

import torch

from clients.node.simulated import open_worker
from common.study import load_study
from server.run import run_study
from simulations.local import LocalTransport

if __name__ == "__main__":
    torch.set_num_threads(1)
    study = load_study(Path(sys.argv[1]))
    workers = [open_worker(study, Path(folder)) for folder in sys.argv[3:]]
    run_study(study, LocalTransport(workers), Path(sys.argv[2]))
    print("{}")
