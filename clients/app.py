"""The thin Flower ClientApp: passes a message's bytes to the worker and its reply back.

It imports neither torch nor anything that opens an image. In Flower's simulation, known by the
`partition-id` in its context, the worker is called in the same process.
"""

import os

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from common.contract import METRICS, Refusal, pack

app = ClientApp()


def _ask_worker(payload: bytes, context: Context) -> bytes:
    partition = context.node_config.get("partition-id")
    if partition is None:
        return pack(Refusal(code="no-worker", message="this site has no worker that the app could reach"))
    from clients.simulated import cached_worker

    folder = str(context.run_config["sites"]).split(os.pathsep)[int(partition)]
    return cached_worker(str(context.run_config["study"]), folder).handle(payload)


@app.query()
def forward(message: Message, context: Context) -> Message:
    """Answer a message with the worker's reply. Nothing raised here may reach Flower: it forwards the text."""
    try:
        payload = message.content.array_records["message"]["payload"].numpy().tobytes()
        reply = _ask_worker(payload, context)
    except Exception:
        reply = pack(Refusal(code="client-app-failed", message="the site's app failed; see the site's log"))
    array = Array(np.frombuffer(reply, dtype=np.uint8))
    return Message(RecordDict({"message": ArrayRecord({"payload": array})}), reply_to=message)


for _task in METRICS:
    app.train(_task)(forward)
