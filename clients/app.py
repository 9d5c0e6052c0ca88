"""The thin Flower ClientApp: passes a message's bytes to the worker and its reply back.

It imports neither torch nor anything that opens an image, and holds no key: at a hospital it reaches
the worker over a Unix socket only. In Flower's simulation, known by the `partition-id` in its context,
the worker is called in the same process.
"""

import os
from pathlib import Path

from flwr.app import Array, ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from clients.node.channel import ask
from clients.node.refusals import refusal
from common.messages import pack
from common.payload import fields_of, payload_of
from common.tasks import TASKS

#: The worker's socket where the node's configuration does not name one.
SOCKET_VARIABLE = "CROSSPROBE_SOCKET"
#: Left of a message's time for its reply to travel, in seconds; Flower drops a reply that comes later.
MARGIN_S = 5.0

app = ClientApp()


def _ask_worker(payload: bytes, context: Context, timeout_s: float) -> bytes:
    partition = context.node_config.get("partition-id")
    if partition is None:
        socket = context.node_config.get("socket") or os.environ.get(SOCKET_VARIABLE)
        if not socket:
            return pack(refusal("no-worker"))
        return ask(Path(str(socket)), payload, timeout_s)
    from clients.node.simulated import answer, cached_worker

    config = context.run_config
    folder = str(config["sites"]).split("\n")[int(partition)]
    return answer(cached_worker(str(config["study"]), folder, int(config["threads"])), payload)


@app.query()
def forward(message: Message, context: Context) -> Message:
    """Answer a message with the worker's reply. Nothing raised here may reach Flower: it forwards the text."""
    try:
        payload = payload_of(message.content.array_records["message"]["payload"])
        # The time that the server gave, from now: the two machines' clocks may differ by more than a round.
        ttl_s = message.metadata.ttl
        reply = _ask_worker(payload, context, ttl_s - min(MARGIN_S, 0.05 * ttl_s))
    except Exception:
        reply = pack(refusal("client-app-failed"))
    return Message(RecordDict({"message": ArrayRecord({"payload": Array(**fields_of(reply))})}), reply_to=message)


for _task in TASKS:
    app.train(_task)(forward)
