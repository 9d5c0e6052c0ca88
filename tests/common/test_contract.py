"""Messages: the same bytes both ways, hostile bytes refused, nothing outside the contract accepted."""

import json
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.components import component_of, select
from common.contract import check_metrics, check_tensors
from common.errors import ContractError
from common.messages import MAGIC, MAX_HEADER_BYTES, EnrolRequest, Header, TaskReply, TaskRequest, pack, unpack
from common.tasks import TASKS

HASH = "ab" * 32
SHARES = ("dice", "iou", "calibration_error")
DIFFERENCES = ("difference", "difference_low", "difference_high")
TENSORS = {
    "projector/out.bias": np.arange(3, dtype=np.float32),
    "infusion_head/out.weight": np.array([[1.5, -0.25]], np.float32),
}
SHAPES = {name: x.shape for name, x in TENSORS.items()}
REQUEST = TaskRequest(study=HASH, round=3, stage="refine", task="self_train", foreground_prior=0.125)
MESSAGE = pack(REQUEST, TENSORS)
HEADERS = [
    EnrolRequest(study=HASH),
    REQUEST,
    TaskReply(study=HASH, round=0, stage="a", task="score", request=HASH, metrics={"score": 0.1}),
]


def framed(header: bytes, blob: bytes = b"") -> bytes:
    return MAGIC + struct.pack("<I", len(header)) + header + blob


def blob(entries: dict, data: bytes = b"\0" * 8) -> bytes:
    head = json.dumps(entries).encode()
    return struct.pack("<Q", len(head)) + head + data


def code_of(payload: bytes) -> str:
    with pytest.raises(ContractError) as caught:
        unpack(payload)
    return caught.value.code


@pytest.mark.parametrize("header", HEADERS, ids=lambda h: h.kind)
def test_a_message_survives_the_round_trip_byte_by_byte(header: Header) -> None:
    payload = pack(header, TENSORS)
    found, tensors = unpack(payload)
    assert found == header
    assert {name: x.tobytes() for name, x in tensors.items()} == {name: x.tobytes() for name, x in TENSORS.items()}
    assert pack(found, tensors) == payload


def test_the_bytes_do_not_depend_on_the_order_or_memory_layout_of_tensors() -> None:
    turned = {name: np.asfortranarray(TENSORS[name]) for name in reversed(TENSORS)}
    assert pack(REQUEST, turned) == MESSAGE


@given(st.binary(max_size=300), st.sampled_from([b"", MAGIC, MAGIC + b"\x02\0\0\0{}", MESSAGE[:200]]))
def test_arbitrary_bytes_raise_nothing_but_contract_errors(tail: bytes, head: bytes) -> None:
    assert code_of(head + tail) in {"not-a-message", "bad-tensors"}


@given(
    st.integers(0, len(MESSAGE)),
    st.lists(st.tuples(st.integers(0, len(MESSAGE) - 1), st.integers(0, 255)), max_size=4),
)
def test_a_cut_or_changed_message_raises_nothing_but_contract_errors(cut: int, changes: list[tuple[int, int]]) -> None:
    payload = bytearray(MESSAGE)
    for place, value in changes:
        payload[place] = value
    for candidate in (bytes(payload), bytes(payload[:cut])):
        try:
            unpack(candidate)
        except ContractError as error:
            assert error.code in {"not-a-message", "bad-tensors"}  # noqa: PT017


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(st.sampled_from([*json.loads(REQUEST.model_dump_json()), "extra"]), JSON)
def test_any_json_value_in_any_field_is_accepted_as_declared_or_refused(field: str, value: object) -> None:
    fields = json.loads(REQUEST.model_dump_json()) | {field: value}
    try:
        header, _ = unpack(framed(json.dumps(fields).encode()))
    except ContractError as error:
        assert error.code == "not-a-message"  # noqa: PT017
    else:
        assert field != "extra"
        assert set(header.model_dump()) == set(REQUEST.model_dump())


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"XPRB",
        b"PK\x03\x04" + MESSAGE[4:],
        MESSAGE[:40],
        MAGIC + struct.pack("<I", MAX_HEADER_BYTES + 1) + b" " * (MAX_HEADER_BYTES + 1),
        framed(b"[" * 100_000),
        framed(b'{"kind":"enrol"}'),
        framed(b'{"kind":"approve","study":"%s"}' % HASH.encode()),
        framed(b'{"kind":"enrol","study":"%s","patient":"x"}' % HASH.encode()),
        framed(b'{"kind":"enrol","protocol":2,"study":"%s"}' % HASH.encode()),
        framed(b'{"kind":"enrol","study":"%s\\u0000"}' % HASH[:63].encode()),
        framed(MESSAGE[8 : 8 + len(REQUEST.model_dump_json())].replace(b'"round":3', b'"round":"3"')),
        framed(MESSAGE[8 : 8 + len(REQUEST.model_dump_json())].replace(b'"round":3', b'"round":-3')),
    ],
)
def test_what_is_no_message_is_refused(payload: bytes) -> None:
    assert code_of(payload) == "not-a-message"


@pytest.mark.parametrize("more", [b'},"patient":{"id":"x"', b'},"header":{"kind":"enrol","study":"%s"' % HASH.encode()])
def test_nothing_can_be_smuggled_in_beside_the_header(more: bytes) -> None:
    header = b'{"kind":"enrol","study":"%s"' % HASH.encode() + more + b"}"
    assert code_of(framed(header)) == "not-a-message"


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    "entries",
    [
        {"x": ENTRY | {"shape": [3]}},
        {"x": ENTRY | {"shape": [2**63, 2**63]}},
        {"x": ENTRY | {"shape": [-2]}},
        {"x": ENTRY | {"data_offsets": [0, 2**62]}},
        {"x": ENTRY | {"data_offsets": [8, 0]}},
        {"x": ENTRY | {"dtype": "F99"}},
        {"x": ENTRY, "y": ENTRY},
        {"x": 3},
        {"__metadata__": {"a": 1}},
    ],
)
def test_a_broken_tensor_table_is_refused(entries: dict) -> None:
    assert code_of(framed(REQUEST.model_dump_json().encode(), blob(entries))) == "bad-tensors"


@pytest.mark.parametrize(("kind", "size"), [("BF16", 4), ("F8_E4M3", 8), ("F16", 4), ("I64", 1), ("BOOL", 8)])
def test_only_float32_tensors_pass(kind: str, size: int) -> None:
    payload = framed(REQUEST.model_dump_json().encode(), blob({"x": ENTRY | {"dtype": kind, "shape": [size]}}))
    with pytest.raises(ContractError):
        check_tensors(unpack(payload)[1], {"x": (size,)}, max_norm=1e9)


def value(x: float) -> dict[str, np.ndarray]:
    return TENSORS | {"projector/out.bias": np.array([0, x, 0], np.float32)}


@pytest.mark.parametrize(
    ("tensors", "code"),
    [
        (TENSORS | {"source_branch.encoder/x": np.zeros(1, np.float32)}, "unknown-tensor"),
        ({"projector/out.bias": TENSORS["projector/out.bias"]}, "missing-tensor"),
        ({}, "missing-tensor"),
        (TENSORS | {"projector/out.bias": np.zeros(3, np.float64)}, "wrong-dtype"),
        (TENSORS | {"projector/out.bias": np.zeros(3, np.int32)}, "wrong-dtype"),
        (TENSORS | {"projector/out.bias": np.zeros((3, 1), np.float32)}, "wrong-shape"),
        (TENSORS | {"projector/out.bias": np.zeros((), np.float32)}, "wrong-shape"),
        (value(np.nan), "not-finite"),
        (value(np.inf), "not-finite"),
        (value(-np.inf), "not-finite"),
        (value(11), "absurd-norm"),
        (value(3e38), "absurd-norm"),
    ],
)
def test_tensors_outside_the_contract_are_refused(tensors: dict[str, np.ndarray], code: str) -> None:
    with pytest.raises(ContractError) as caught:
        check_tensors(tensors, SHAPES, max_norm=10)
    assert caught.value.code == code


def test_the_norm_is_taken_over_all_tensors_together() -> None:
    shapes = {"a": (1,), "b": (1,)}
    tensors = {"a": np.array([3], np.float32), "b": np.array([4], np.float32)}
    check_tensors(tensors, shapes, max_norm=5)
    with pytest.raises(ContractError, match="absurd-norm"):
        check_tensors(tensors, shapes, max_norm=4.99)


@pytest.mark.parametrize("name", ["Anna Schmidt, born 2014", "../../etc/passwd;", "x\x1b[2J\n" * 9, "a" * 5000])
def test_a_hostile_tensor_name_is_not_repeated(name: str) -> None:
    with pytest.raises(ContractError) as caught:
        check_tensors(TENSORS | {name: np.zeros(1, np.float32)}, SHAPES, max_norm=10)
    assert name not in str(caught.value)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("task", TASKS)
def test_only_the_metrics_of_its_own_task_may_be_sent(task: str) -> None:
    check_metrics(task, dict.fromkeys(TASKS[task].metrics, 0.5))
    for name in {metric for own in TASKS.values() for metric in own.metrics} - set(TASKS[task].metrics) | {"patient-7"}:
        with pytest.raises(ContractError, match="unknown-metric") as caught:
            check_metrics(task, {name: 0.5})
        assert name not in str(caught.value)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_a_metric_that_is_no_number_is_refused(number: float) -> None:
    with pytest.raises(ContractError, match="not-finite"):
        check_metrics("score", {"score": number})


EVALUATED = "infusion/{}/{}"
RANGES: dict[str, tuple[str, float, float]] = {
    "foreground_fraction": ("supervise", 0, 1),
    "val_dice": ("infuse", 0, 1),
    "confidence": ("self_train", 0, 1),
    "pseudo_foreground_fraction": ("self_train", 0, 1),
    "score": ("score", 0, 1),
    "mean_weight": ("infuse", 0, 1),
    "loss": ("supervise", 0, 1e9),
    "reconstruction_loss": ("self_supervise", 0, 1e9),
    "contrast_loss": ("self_supervise", 0, 1e9),
    **{EVALUATED.format(measure, part): ("evaluate", 0, 1) for measure in SHARES for part in ("mean", "low", "high")},
    **{EVALUATED.format(measure, part): ("evaluate", -1, 1) for measure in SHARES for part in DIFFERENCES},
    **{EVALUATED.format("hd95", part): ("evaluate", 0, 1e9) for part in ("mean", "low", "high", "patients")},
    **{EVALUATED.format("hd95", part): ("evaluate", -1e9, 1e9) for part in DIFFERENCES},
    **{EVALUATED.format(measure, "patients"): ("evaluate", 0, 1e9) for measure in SHARES},
    "infusion/empty_truth_share": ("evaluate", 0, 1),
    "infusion/empty_prediction_share": ("evaluate", 0, 1),
}


def test_every_metric_has_its_range() -> None:
    names = {name for own in TASKS.values() for name in own.metrics}
    assert {name for name in names if "/" not in name or name.startswith("infusion/")} == RANGES.keys()


@pytest.mark.parametrize(("name", "task", "low", "high"), [(name, *range_) for name, range_ in RANGES.items()])
def test_a_metric_outside_its_range_is_refused_and_rounding_is_not(
    name: str, task: str, low: float, high: float
) -> None:
    for value in (low, high, low - 1e-7, high + 1e-7):
        check_metrics(task, {name: value})
    for value in [low - 1e-5] * (low > -2) + [high + 1e-5] * (high < 2):
        with pytest.raises(ContractError, match=f"out-of-range: {name}: expected {low:g} to "):
            check_metrics(task, {name: value})


def test_tensors_are_selected_by_whole_component_names() -> None:
    names = ["source_branch.encoder/a.b", "source_branch.encoder2/a", "source_branch.decoder/a"]
    tensors = {name: np.zeros(1, np.float32) for name in names}
    assert list(select(tensors, ["source_branch.encoder"])) == names[:1]
    assert component_of(names[0]) == "source_branch.encoder"
