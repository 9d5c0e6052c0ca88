"""Flower's SuperNode with flat memory: run in the node image in the place of `flower-supernode`, with its options.

The threads that serve a SuperNode leave cyclic garbage. Python looks through its oldest objects only once the new ones
are a quarter as many, and most of the old ones are the imports: memory rose for some 70 rounds before it fell. Taken
out of the count, they cost no collection anything, and one comes soon.
"""

import gc
import sys

from flwr.supernode.cli import flower_supernode

if __name__ == "__main__":
    sys.argv[0] = "flower-supernode"  # what its help and its errors call it
    gc.collect()
    gc.freeze()
    gc.collect()  # only a collection counts the old objects anew
    flower_supernode()
