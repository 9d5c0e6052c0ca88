"""A registered hospital turns on its neighbour: what Flower lets it send there, and what the neighbour makes of it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from federation import Federation
from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_to_proto
from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.inflatable.inflatable_protobuf_utils import make_push_object_fn_protobuf
from flwr.supercore.inflatable.inflatable_utils import push_objects
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor
from processes import wait_until
from tiny import content, request, write_study

from clients.data.site import load_site
from clients.governance.approval import approve
from clients.governance.state import State
from common.messages import EnrolRequest, digest, pack
from common.payload import fields_of
from common.run_folder import RunFolder
from common.signing import seal
from common.study import load_study

pytestmark = pytest.mark.faults

SUPERLINK = 1


@dataclass
class Neighbour:
    """Speaks Flower's Fleet API with a registered site's own key, and says that it is the SuperLink."""

    client: FleetHttpClient
    node: int
    run: int

    @classmethod
    def of(cls, federation: Federation, name: str) -> "Neighbour":
        key = load_ssh_private_key((federation.kits / name / "node" / "node").read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        client = FleetHttpClient.from_server_address(
            server_address=federation.address,
            insecure=False,
            root_certificates=(federation.kits / name / "ca.crt").read_bytes(),
            interceptors=[NodeAuthHttpInterceptor(key, key.public_key())],
        )
        folder = RunFolder(federation.run_folder)
        nodes = json.loads(folder.nodes.read_text())
        return cls(client, int(nodes[name]), int(json.loads(folder.flower.read_text())["run_id"]))

    def instruct(self, victim: int, payload: bytes, kind: str) -> None:
        carried = RecordDict({"message": ArrayRecord({"payload": Array(**fields_of(payload))})})
        message = Message(carried, dst_node_id=victim, message_type=kind, ttl=60.0)
        message.metadata.__dict__["_run_id"] = self.run
        message.metadata.__dict__["_src_node_id"] = SUPERLINK
        message.metadata.__dict__["_message_id"] = message.object_id
        pushed = self.client.PushMessages(
            PushMessagesRequest(
                node=Node(node_id=self.node),
                messages_list=[message_to_proto(remove_content_from_message(message))],
                message_object_trees=[get_object_tree(message)],
            )
        )
        push_objects(
            get_all_nested_objects(message),
            make_push_object_fn_protobuf(
                push_object_protobuf=self.client.PushObject,
                node=Node(node_id=self.node),
                run_id=self.run,
                session_id=pushed.session_id,
            ),
            object_ids_to_push=set(pushed.objects_to_push),
        )


@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
def test_a_neighbours_instruction_arrives_and_only_a_signature_keeps_it_from_being_followed(
    signed: bool, pair: Sequence[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = [stage | {"rounds": 6 if stage["name"] == "refine" else 1} for stage in content()["stages"]]
    study = write_study(tmp_path / "study.yaml", stages=stages)
    of = load_study(study)
    foreign, ahead = pack(EnrolRequest(study="ab" * 32)), request(of, "refine", "source", step=5)
    with Federation(tmp_path, study, pair) as federation:
        if not signed:  # what the key in an approval is worth
            for name in federation.names:
                approve(State(federation.kits / name / "state"), load_site(federation.data[name]), of, by="anna")
        federation.start_coordinator()
        federation.register()
        federation.start_sites()

        def answers(payload: bytes) -> list[str]:
            """What north's ledger says it answered to a request: the code of a refusal, else the kind."""
            lines = federation.ledger("north")
            follows = [lines[i + 1 :] for i, line in enumerate(lines) if line["sha256"] == digest(payload)]
            outs = [[line for line in rest if line["direction"] == "out"] for rest in follows]
            return [out[0]["refusal"] or f"{out[0]['kind']} {out[0]['round']}" for out in outs if out]

        with federation.running():
            wait_until(lambda: len(federation.records()) > 0, "the first round", 180)
            east = Neighbour.of(federation, "east")
            for name in ("_run_id", "_node_id", "_task_id"):
                monkeypatch.setattr(TaskIdentity, name, east.run if name == "_run_id" else SUPERLINK)
            north = int(json.loads(RunFolder(federation.run_folder).nodes.read_text())["north"])
            east.instruct(north, foreign, "query")
            wait_until(lambda: answers(foreign), "the neighbour's first instruction is answered", 90)
            for _ in range(5):  # the worker may be at work for the coordinator
                told = len(answers(ahead))
                east.instruct(north, ahead, "train.supervise")
                wait_until(lambda told=told: len(answers(ahead)) > told, "its second is answered", 90)
                if answers(ahead)[-1] != "busy":
                    break
            assert answers(foreign) == ["not-approved"]
            assert answers(ahead)[-1] == ("not-signed" if signed else "done 7")
            if signed:  # its own signature helps it as little
                told, own = len(answers(ahead)), State(federation.kits / "east" / "state").signing_key()
                east.instruct(north, seal(ahead, own, "request"), "train.supervise")
                wait_until(lambda: len(answers(ahead)) > told, "its third is answered", 90)
                assert answers(ahead)[-1] == "bad-signature"
            if signed:  # and the run goes on
                done = len(federation.records())
                wait_until(lambda: len(federation.records()) > done, "another round", 90)
                assert federation.records()[-1].sites["north"].status == "ok", federation.records()[-1]
