"""A site of nvflare_job.py: takes a worker's gradient steps, with NVFLARE's client interface around them."""

import json
import sys
import time
from pathlib import Path

_, STUDY, FOLDER, PACKAGES, SITES = sys.argv
sys.path.append(PACKAGES)

if __name__ == "__main__":
    import nvflare.client as flare
    import torch
    from nvflare.client import FLModel

    from clients.learning.training import TaskContext, perform
    from clients.node.simulated import open_worker
    from common.study import load_study

    torch.set_num_threads(1)
    flare.init()
    name = flare.get_site_name()
    worker = open_worker(load_study(Path(STUDY)), Path(SITES) / name)
    while flare.is_running():
        received = flare.receive()
        began, index = time.time(), received.current_round
        round_ = worker.rounds[index]
        task = round_.stage.source
        assert task is not None
        (key,) = received.params
        values, place, tensors = received.params[key], 0, {}
        for tensor, shape in sorted(worker.networks.shapes(task.trains).items()):
            size = int(torch.Size(shape).numel())
            tensors[tensor] = values[place : place + size].reshape(shape).astype("float32")
            place += size
        worker.networks.load(tensors)
        policy = worker.site.config.policy
        perform(TaskContext(worker.study, round_, task, worker.networks, worker.data, policy, worker.secret))
        trained = worker.networks.export(task.trains)
        flat = torch.cat([torch.from_numpy(x).reshape(-1) for _, x in sorted(trained.items())]).numpy()
        steps = {"NUM_STEPS_CURRENT_ROUND": worker.patients}
        flare.send(FLModel(params={key: flat}, metrics={"accuracy": 0.0}, meta=steps))
        with (Path(FOLDER) / f"{name}.times").open("a") as file:
            file.write(json.dumps({"round": index, "began": began, "ended": time.time()}) + "\n")
