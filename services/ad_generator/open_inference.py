"""The generator's tensors of the Open Inference Protocol v2, to and from the typed contract (README.md lists them)."""

from __future__ import annotations

import math
import struct
import uuid
from typing import Any, Final

import numpy as np
from google.protobuf.timestamp_pb2 import Timestamp
from gr4ad.generation.v1 import generation_pb2
from gr4ad.type.v1 import type_pb2
from gr4ad_runtime.errors import InvalidArgumentError
from kserve import InferOutput, InferRequest, InferResponse
from kserve.errors import InvalidInput
from numpy.typing import NDArray

AD_IDS: Final = "history_ad_ids"
BEHAVIORS: Final = "history_behaviors"
EVENT_TIMES: Final = "history_event_times"
CANDIDATE_COUNT: Final = "candidate_count"
USER_ID: Final = "user_id"
COLD_START: Final = "cold_start"
REQUEST_TIME: Final = "request_time"
LATENCY_BUDGET: Final = "latency_budget_us"
FEATURE_NAMES: Final = "feature_names"
FEATURE_VALUES: Final = "feature_values"

ANY_LENGTH: Final = -1
WHOLE: Final = ("INT32", "INT64")
TIMES: Final = ("FP64", "INT64")
INPUTS: Final[dict[str, tuple[tuple[str, ...], int]]] = {
    AD_IDS: (("BYTES",), ANY_LENGTH),
    BEHAVIORS: (WHOLE, ANY_LENGTH),
    EVENT_TIMES: (TIMES, ANY_LENGTH),
    CANDIDATE_COUNT: (WHOLE, 1),
    USER_ID: (("BYTES",), 1),
    COLD_START: (("BOOL",), 1),
    REQUEST_TIME: (TIMES, 1),
    LATENCY_BUDGET: (WHOLE, 1),
    FEATURE_NAMES: (("BYTES",), ANY_LENGTH),
    FEATURE_VALUES: (("BYTES",), ANY_LENGTH),
}
"""Every input by name: its data types, the preferred one first, and its length."""
OPTIONAL: Final = frozenset(
    {EVENT_TIMES, USER_ID, COLD_START, REQUEST_TIME, LATENCY_BUDGET, FEATURE_NAMES, FEATURE_VALUES}
)


def input_types() -> list[dict[str, Any]]:
    """Return the inputs as model metadata tells them."""
    return [{"name": name, "datatype": types[0], "shape": [length]} for name, (types, length) in INPUTS.items()]


def output_types(n_levels: int) -> list[dict[str, Any]]:
    """Return the outputs as model metadata tells them."""
    return [
        {"name": "ad_ids", "datatype": "BYTES", "shape": [ANY_LENGTH]},
        {"name": "sids", "datatype": "INT32", "shape": [ANY_LENGTH, n_levels]},
        {"name": "log_probs", "datatype": "FP32", "shape": [ANY_LENGTH]},
        {"name": "predicted_ecpm_micros", "datatype": "INT64", "shape": [ANY_LENGTH]},
    ]


def to_message(request: InferRequest) -> generation_pb2.GenerateAdsRequest:
    """Translate tensors to the typed request; its own rules are not checked here.

    A request without an id gets one.

    Raises:
        InvalidArgumentError: A tensor is missing, unknown, of another type or shape than documented, or not readable.
    """
    tensors = _tensors(request)
    for one, other in ((BEHAVIORS, AD_IDS), (EVENT_TIMES, AD_IDS), (FEATURE_VALUES, FEATURE_NAMES)):
        if one in tensors and len(tensors[one]) != len(tensors.get(other, ())):
            raise InvalidArgumentError(
                f"inputs.{one}", f"{len(tensors[one])} values", f"give as many as {other} has, one for each"
            )
    behaviors = tensors[BEHAVIORS].tolist()
    if any(not 0 <= behavior <= type_pb2.BEHAVIOR_CONVERSION for behavior in behaviors):
        raise InvalidArgumentError(
            f"inputs.{BEHAVIORS}", behaviors, "give 1 (impression), 2 (click) or 3 (conversion) for each event"
        )
    ad_ids = _texts(tensors, AD_IDS)
    times = tensors.get(EVENT_TIMES, np.full(len(ad_ids), np.nan)).tolist()
    count = int(tensors[CANDIDATE_COUNT][0])
    budget = int(tensors[LATENCY_BUDGET][0]) if LATENCY_BUDGET in tensors else 0
    for name, number, most in ((CANDIDATE_COUNT, count, 2**32), (LATENCY_BUDGET, budget, 2**63)):
        if not 0 <= number < most:
            raise InvalidArgumentError(f"inputs.{name}", number, "give a number from 0")
    context = type_pb2.UserContext(
        user_id=_texts(tensors, USER_ID)[0] if USER_ID in tensors else "",
        history=[
            type_pb2.HistoryEvent(ad_id=ad_id, behavior=behavior, event_time=_timestamp(time, EVENT_TIMES))
            for ad_id, behavior, time in zip(ad_ids, behaviors, times, strict=True)
        ],
        features=dict(zip(_texts(tensors, FEATURE_NAMES), _texts(tensors, FEATURE_VALUES), strict=True)),
        cold_start=bool(tensors[COLD_START][0]) if COLD_START in tensors else False,
        request_time=_timestamp(tensors[REQUEST_TIME].tolist()[0], REQUEST_TIME) if REQUEST_TIME in tensors else None,
    )
    return generation_pb2.GenerateAdsRequest(
        request_id=request.id or uuid.uuid4().hex,
        user_context=context,
        candidate_count=count,
        latency_budget_us=budget,
    )


def to_tensors(request: InferRequest, response: generation_pb2.GenerateAdsResponse, request_id: str) -> InferResponse:
    """Translate the typed answer to tensors, raw ones where the request's are."""
    ads = response.candidates
    n_levels = len(response.beam_trace.widths)
    arrays: dict[str, NDArray[Any]] = {
        "ad_ids": np.array([ad.ad_id.encode() for ad in ads], np.object_),
        "sids": np.array([ad.sid.codes for ad in ads], np.int32).reshape(-1, n_levels),
        "log_probs": np.array([ad.log_prob for ad in ads], np.float32),
        "predicted_ecpm_micros": np.array([ad.predicted_ecpm_micros for ad in ads], np.int64),
    }
    outputs = []
    for declared in output_types(n_levels):
        array = arrays[declared["name"]]
        output = InferOutput(declared["name"], list(array.shape), declared["datatype"])
        output.set_data_from_numpy(array, binary_data=request.use_binary_outputs)
        outputs.append(output)
    return InferResponse(
        response_id=request_id,
        model_name=request.model_name,
        infer_outputs=outputs,
        parameters={
            "policy_id": response.policy.policy_id,
            "codebook_id": response.policy.codebook_id,
            "skipped_history_events": response.skipped_history_events,
            "beam_widths": "-".join(map(str, response.beam_trace.widths)),
            "beam_constrained_by": generation_pb2.BeamTrace.Constraint.Name(response.beam_trace.constrained_by),
        },
        use_binary_outputs=request.use_binary_outputs,
        requested_outputs=request.request_outputs,
    )


def _tensors(request: InferRequest) -> dict[str, NDArray[Any]]:
    tensors = {}
    for tensor in request.inputs:
        field = f"inputs.{tensor.name}"
        if tensor.name not in INPUTS:
            raise InvalidArgumentError(field, "unknown", f"give only {', '.join(INPUTS)}")
        types, length = INPUTS[tensor.name]
        if tensor.datatype not in types:
            raise InvalidArgumentError(field, tensor.datatype, f"send it as {' or '.join(types)}")
        try:
            array = tensor.as_numpy()
        except (ValueError, TypeError, OverflowError, struct.error, InvalidInput) as error:
            raise InvalidArgumentError(
                field, f"shape {list(tensor.shape)}: {error}", "send as many values as the shape says"
            ) from error
        if array.ndim != 1 or length not in (ANY_LENGTH, len(array)):
            raise InvalidArgumentError(
                field, f"shape {list(array.shape)}", f"give shape [{'n' if length == ANY_LENGTH else length}]"
            )
        tensors[tensor.name] = array
    missing = [name for name in INPUTS if name not in OPTIONAL and name not in tensors]
    if missing:
        raise InvalidArgumentError(f"inputs.{missing[0]}", "missing", "send the tensor; README.md lists them all")
    return tensors


def _texts(tensors: dict[str, NDArray[Any]], name: str) -> list[str]:
    try:
        return [text.decode() if isinstance(text, bytes) else str(text) for text in tensors.get(name, ())]
    except UnicodeDecodeError as error:
        raise InvalidArgumentError(f"inputs.{name}", error.object, "send UTF-8") from error


def _timestamp(seconds: float, name: str) -> Timestamp | None:
    if math.isnan(seconds):
        return None
    whole = math.floor(seconds) if math.isfinite(seconds) else 0
    if not math.isfinite(seconds) or not -62_135_596_800 <= whole < 253_402_300_800:  # years 1 to 9999
        raise InvalidArgumentError(f"inputs.{name}", seconds, "give Unix seconds, or NaN where the time is unknown")
    return Timestamp(seconds=whole, nanos=min(int((seconds - whole) * 1e9), 999_999_999))
