"""Contract with Flower 1.41: what the embedding uses beyond Flower's public interface, symbol by symbol.

When one of these fails after an upgrade of Flower, momkd_fl/federation/flower.py is what has to change, and nothing
else.
"""

from __future__ import annotations

import ast
import inspect
import threading
from pathlib import Path
from typing import Any

import flwr
import numpy as np
import pytest
from flwr.app import ArrayRecord, Error, Message, RecordDict
from flwr.common.serde import message_from_proto

from momkd_fl.federation import flower

PUBLIC = {"flwr.app", "flwr.clientapp", "flwr.serverapp", "flwr.serverapp.strategy", "flwr.serverapp.exception"}
ROOM = Path(flower.__file__).parent


def parameters(function: Any) -> list[str]:
    return list(inspect.signature(function).parameters)


def internal_imports(module: Path) -> set[tuple[str, str]]:
    return {
        (node.module, name.name)
        for node in ast.walk(ast.parse(module.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "flwr"
        for name in node.names
        if node.module not in PUBLIC
    }


def test_flowers_version_is_the_pinned_one() -> None:
    assert flwr.__version__.startswith("1.41.")


def test_only_one_module_knows_flowers_insides() -> None:
    others = {path.name: internal_imports(path) for path in ROOM.rglob("*.py") if path.name != "flower.py"}
    assert {name: found for name, found in others.items() if found} == {}


TESTED = {
    "remove_content_from_message",
    "NOOP_ACCOUNT_NAME",
    "NOOP_FLWR_AID",
    "SUPERLINK_NODE_ID",
    "TIMESTAMP_HEADER",
    "SubStatus",
    "message_to_proto",
    "ActivateNodeRequest",
    "DeactivateNodeRequest",
    "PullMessagesRequest",
    "PushMessagesRequest",
    "SendNodeHeartbeatRequest",
    "ConfirmMessageReceivedRequest",
    "ConfirmMessageReceivedResponse",
    "ObjectTree",
    "PullObjectRequest",
    "PullObjectResponse",
    "PushObjectRequest",
    "PushObjectResponse",
    "Node",
    "InMemoryLinkState",
    "telemetry",
    "FLEET_HTTP_PUBLIC_KEY_HEADER",
    "FLEET_HTTP_SIGNATURE_HEADER",
    "NOOP_FEDERATION_ID",
    "TaskType",
    "FlowerError",
    "UnexpectedObjectContentError",
    "get_all_nested_objects",
    "get_object_tree",
    "iterate_object_tree",
    "no_object_id_recompute",
    "inflate_object_from_contents",
    "NoObjectInStoreError",
    "InMemoryObjectStore",
    "public_key_to_bytes",
    "sign_message",
    "PROTOBUF_MEDIA_TYPE",
    "TaskIdentity",
    "NoOpFederationManager",
    "authenticate_node",
    "fleet_handlers",
    "FleetHttpClient",
}


def test_every_symbol_has_its_contract_here() -> None:
    used = {name for _, name in internal_imports(Path(flower.__file__))}
    assert used == TESTED


def test_telemetry_is_off() -> None:
    assert flower.telemetry.FLWR_TELEMETRY_ENABLED == "0"
    assert 'if FLWR_TELEMETRY_ENABLED == "1"' in inspect.getsource(flower.telemetry)


def test_constants() -> None:
    assert flower.SUPERLINK_NODE_ID == 1
    for text in (flower.NOOP_ACCOUNT_NAME, flower.NOOP_FLWR_AID, flower.NOOP_FEDERATION_ID, flower.TaskType.SERVER_APP):
        assert isinstance(text, str)
    headers = (flower.FLEET_HTTP_PUBLIC_KEY_HEADER, flower.FLEET_HTTP_SIGNATURE_HEADER, flower.TIMESTAMP_HEADER)
    assert all(header == header.lower() for header in headers)  # looked up in ASGI's lower-case names
    assert flower.PROTOBUF_MEDIA_TYPE.startswith("application/")
    assert {flower.SubStatus.COMPLETED, flower.SubStatus.FAILED} == {"completed", "failed"}


def fields(kind: Any) -> set[str]:
    return set(kind.DESCRIPTOR.fields_by_name)


def test_requests() -> None:
    assert fields(flower.ActivateNodeRequest) >= {"public_key", "heartbeat_interval"}
    assert fields(flower.DeactivateNodeRequest) >= {"node_id"}
    assert fields(flower.SendNodeHeartbeatRequest) >= {"node", "heartbeat_interval"}
    assert fields(flower.PullMessagesRequest) >= {"node"}
    assert fields(flower.PushMessagesRequest) >= {
        "node",
        "messages_list",
        "message_object_trees",
        "clientapp_runtime_list",
    }
    assert fields(flower.PushObjectRequest) >= {"node", "run_id", "session_id", "object_id", "object_content"}
    assert fields(flower.PullObjectRequest) >= {"node", "run_id", "object_id"}
    assert fields(flower.ConfirmMessageReceivedRequest) >= {"node", "run_id", "message_object_id"}
    assert flower.ConfirmMessageReceivedResponse().SerializeToString() == b""
    assert fields(flower.PullObjectResponse) >= {"object_found", "object_available", "object_content"}
    assert fields(flower.PushObjectResponse) >= {"stored"}
    assert fields(flower.ObjectTree) >= {"object_id", "children"}
    assert fields(flower.Node) >= {"node_id"}


def test_handlers_take_request_and_state() -> None:
    handlers = flower.fleet_handlers
    for name in ("activate_node", "deactivate_node", "send_node_heartbeat", "push_messages"):
        assert parameters(getattr(handlers, name)) == ["request", "state"], name
    assert parameters(handlers.pull_messages) == ["request", "state", "store"]
    used = inspect.getsource(handlers.push_messages)
    for method in ("start_session", "store_message_and_object_tree"):
        assert f"state.{method}(" in used, method
    assert "limit=1" in inspect.getsource(handlers.pull_messages)


def test_authentication_reads_what_it_is_given() -> None:
    assert parameters(flower.authenticate_node) == ["request"]
    source = inspect.getsource(flower.authenticate_node)
    for used in ("request.headers[", "request.state.protobuf_request", "get_linkstate(request)", "HTTP_401"):
        assert used in source, used


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("activate_node", ["self", "node_id", "heartbeat_interval"]),
        ("deactivate_node", ["self", "node_id"]),
        ("get_nodes", ["self", "run_id"]),
        ("get_node_id_by_public_key", ["self", "public_key"]),
        ("get_message_ins", ["self", "node_id", "limit", "run_id"]),
        ("store_message_and_object_tree", ["self", "message", "object_tree", "session_id"]),
        ("start_session", ["self", "run_id"]),
        ("preregister_object_tree", ["self", "object_tree", "session_id"]),
        ("delete_messages", ["self", "message_ins_ids"]),
        ("claim_task", ["self", "task_id"]),
        ("activate_task", ["self", "task_id"]),
        ("finish_task", ["self", "task_id", "sub_status", "details"]),
        ("acknowledge_task_heartbeat", ["self", "task_id"]),
    ],
)
def test_link_state_methods(method: str, expected: list[str]) -> None:
    assert parameters(getattr(flower.InMemoryLinkState, method)) == expected


def test_link_state_attributes() -> None:
    state = flower.InMemoryLinkState(flower.NoOpFederationManager(), flower.InMemoryObjectStore())
    assert isinstance(state.lock, type(threading.RLock()))
    assert state.message_ins_store == state.message_res_store == state.message_ins_id_to_message_res_id == {}
    assert parameters(state.create_run)[:8] == [
        "fab_id",
        "fab_version",
        "fab_hash",
        "override_config",
        "federation_id",
        "federation_config",
        "flwr_aid",
        "primary_task_type",
    ]
    assert parameters(state.create_node)[:4] == ["owner_aid", "owner_name", "public_key", "heartbeat_interval"]


def test_object_store() -> None:
    store = flower.InMemoryObjectStore()
    assert isinstance(store.lock_store, type(threading.RLock()))
    content = RecordDict({"a": ArrayRecord([np.arange(3.0)])})
    tree, objects = flower.get_object_tree(content), flower.get_all_nested_objects(content)
    assert {node.object_id for node in flower.iterate_object_tree(tree)} == set(objects)
    missing = store.preregister(1, tree)
    assert set(missing) == set(objects)
    root = tree.object_id
    assert store.get(root) == b""  # registered, not there yet
    with pytest.raises(ValueError):
        store.put(root, b"something else")
    assert issubclass(flower.UnexpectedObjectContentError, Exception)
    for each in missing:
        store.put(each, objects[each].deflate())
    contents = {each: store.get(each) for each in objects}
    back = flower.inflate_object_from_contents(root, contents)
    np.testing.assert_array_equal(back["a"].to_numpy_ndarrays()[0], np.arange(3.0))
    store.delete(root)
    assert len(store) == 0
    with pytest.raises(flower.NoObjectInStoreError):
        store.put(root, content.deflate())


@pytest.mark.usefixtures("task")
def test_messages_and_their_wire_form() -> None:
    message = Message(RecordDict(), dst_node_id=5, message_type="train", group_id="3")
    with flower.no_object_id_recompute():
        message.metadata.__dict__["_message_id"] = message.object_id
    header = message_from_proto(flower.message_to_proto(flower.remove_content_from_message(message)))
    assert not header.has_error()
    assert len(header.content) == 0
    assert header.metadata == message.metadata
    assert header.metadata.delivered_at == ""
    answer = Message(Error(7, "code"), reply_to=header)
    assert answer.metadata.reply_to_message_id == message.object_id
    assert (answer.metadata.src_node_id, answer.metadata.dst_node_id) == (5, message.metadata.src_node_id)
    wire = message_from_proto(flower.message_to_proto(flower.remove_content_from_message(answer)))
    assert (wire.error.code, wire.error.reason) == (7, "code")
    full = Message(content=RecordDict(), metadata=header.metadata)
    assert full.metadata is header.metadata


@pytest.mark.usefixtures("task")
def test_a_message_says_which_task_it_is_of() -> None:
    flower.identify(task_id=11, run_id=12)
    metadata = Message(RecordDict(), dst_node_id=5, message_type="train").metadata
    assert (metadata.run_id, metadata.src_node_id) == (12, flower.SUPERLINK_NODE_ID)
    assert (flower.TaskIdentity.task_id, flower.TaskIdentity.run_id) == (11, 12)


def test_client() -> None:
    assert set(parameters(flower.FleetHttpClient)) >= {"base_url", "interceptors", "verify", "timeout"}
    for call in (
        "ActivateNode",
        "DeactivateNode",
        "SendNodeHeartbeat",
        "PullMessages",
        "PullObject",
        "ConfirmMessageReceived",
        "PushMessages",
        "PushObject",
        "close",
    ):
        assert callable(getattr(flower.FleetHttpClient, call)), call


def test_keys_and_signatures() -> None:
    from cryptography.hazmat.primitives.asymmetric import ec
    from flwr.supercore.primitives.asymmetric import bytes_to_public_key, verify_signature

    key = ec.generate_private_key(ec.SECP384R1())
    raw = flower.public_key_to_bytes(key.public_key())
    assert verify_signature(bytes_to_public_key(raw), b"text", flower.sign_message(key, b"text"))


def test_errors_carry_a_code() -> None:
    assert "code" in parameters(flower.FlowerError)
