"""The same training on NVFLARE's simulator, to be measured beside; run by the interpreter of an environment with it.

    PYTHON nvflare_job.py STUDY FOLDER ROUNDS PACKAGES SITE ...

PACKAGES is where CrossProbe's interpreter has torch, which is taken from there. The sites take the very same gradient
steps, see nvflare_site.py. Prints a line of JSON: when each round began and ended, in seconds since 1970.
"""

import json
import sys
from pathlib import Path

_, STUDY, FOLDER, ROUNDS, PACKAGES, *SITES = sys.argv
sys.path.append(PACKAGES)

if __name__ == "__main__":
    import numpy as np
    from nvflare.app_common.np.recipes.fedavg import NumpyFedAvgRecipe
    from nvflare.recipe.sim_env import SimEnv

    from common.networks import initial_networks
    from common.study import load_study

    study = load_study(Path(STUDY))
    task = study.stages[0].source
    assert task is not None
    tensors = initial_networks(study).export(task.trains)
    names = [Path(site).name for site in SITES]
    recipe = NumpyFedAvgRecipe(
        name="beside",
        model=np.concatenate([x.reshape(-1) for _, x in sorted(tensors.items())]),
        min_clients=len(SITES),
        num_rounds=int(ROUNDS),
        train_script=str(Path(__file__).with_name("nvflare_site.py")),
        train_args=" ".join([STUDY, FOLDER, PACKAGES, str(Path(SITES[0]).parent)]),
    )
    recipe.execute(SimEnv(clients=names, num_threads=len(SITES), workspace_root=FOLDER))
    sites = [json.loads(line) for file in Path(FOLDER).glob("*.times") for line in file.read_text().splitlines()]
    rounds = sorted({own["round"] for own in sites})
    began = [min(own["began"] for own in sites if own["round"] == index) for index in rounds]
    ended = [max(own["ended"] for own in sites if own["round"] == index) for index in rounds]
    print(json.dumps({"began": began, "ended": ended}))
