"""Which types are said to be in hardware: those that a device multiplies itself."""

from __future__ import annotations

import pytest
import torch
from gr4ad_core.model.compute_type import in_hardware

CPU = torch.device("cpu")
TYPES = (torch.float32, torch.bfloat16, torch.int8)


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        ({"avx2": True, "avx512_bf16": False}, {torch.float32}),
        ({"avx512_vnni": True}, {torch.float32}),  # the rest of an int8 policy is bfloat16
        ({"avx512_bf16": True}, {torch.float32, torch.bfloat16}),
        ({"avx512_bf16": True, "avx512_vnni": True}, set(TYPES)),
        ({"amx_bf16": True, "amx_int8": True}, set(TYPES)),
        ({"bf16": True, "i8mm": True}, set(TYPES)),
    ],
)
def test_a_processor_has_what_its_features_say(
    features: dict[str, bool], expected: set[torch.dtype], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features)
    assert {each for each in TYPES if in_hardware(each, CPU)} == expected


def test_the_names_of_features_are_torchs() -> None:
    features = torch.cpu.get_capabilities()
    if features["architecture"] != "x86_64":
        pytest.skip("torch names the features of the processor that it runs on, and these are for x86-64")
    assert {"avx512_bf16", "amx_bf16", "avx512_vnni", "amx_int8"} <= features.keys()


@pytest.mark.parametrize("emulated", [True, False])
def test_a_gpu_is_asked_for_bfloat16_and_has_no_int8(emulated: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: not emulated)
    expected = {torch.float32} if emulated else {torch.float32, torch.bfloat16}
    assert {each for each in TYPES if in_hardware(each, torch.device("cuda"))} == expected


def test_a_device_without_numbers_has_float32_only() -> None:
    assert {each for each in TYPES if in_hardware(each, torch.device("meta"))} == {torch.float32}
