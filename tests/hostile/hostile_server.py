"""Sends every site the plan of an attack and writes down what the sites' attackers found."""

import json
from pathlib import Path

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

PLAN, FOUND = Path("/runs/hostile-plan.json"), Path("/runs/hostile-found.json")

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Ask all nodes once."""
    plan = RecordDict({"plan": ConfigRecord({"plan": PLAN.read_text()})})
    messages = [Message(plan, dst_node_id=node, message_type="query") for node in grid.get_node_ids()]
    replies = list(grid.send_and_receive(messages, timeout=240.0))
    FOUND.write_text(json.dumps([json.loads(str(r.content.config_records["found"]["found"])) for r in replies]))
