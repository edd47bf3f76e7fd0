from __future__ import annotations

import json
import os
import platform

import pytest
import torch
from support.model_settings import model_config

from fedtune.errors import MachineError, ModelError
from fedtune.models import hardware


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (set(), torch.float32),
        ({"avx512f", "avx512_vnni", "avx2"}, torch.float32),
        ({"avx512f", "avx512_bf16"}, torch.bfloat16),
        ({"amx_bf16", "amx_tile"}, torch.bfloat16),
    ],
)
def test_auto_takes_bfloat16_only_where_the_cpu_multiplies_it(
    flags: set[str], expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "_cpu_flags", lambda: frozenset(flags))
    assert hardware.compute_dtype(model_config("m", compute_dtype="auto"), "cpu") == expected


def test_a_chosen_type_is_taken_whatever_the_cpu() -> None:
    for name in ("float32", "bfloat16", "float16"):
        chosen = hardware.compute_dtype(model_config("m", compute_dtype=name), "cpu")
        assert str(chosen) == f"torch.{name}"
    exact = model_config("m", compute_dtype="float64", quantization="none")
    assert hardware.compute_dtype(exact, "cpu") == torch.float64


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_a_quantized_base_in_float64_is_refused(quantization: str) -> None:
    with pytest.raises(
        ModelError, match=f"FT309: a base quantized to {quantization} cannot compute in float64"
    ):
        hardware.compute_dtype(model_config("m", compute_dtype="float64", quantization=quantization), "cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_named_and_auto_takes_the_cpu() -> None:
    assert hardware.resolve_device("auto") == "cpu"
    assert hardware.resolve_device("cpu") == "cpu"
    with pytest.raises(MachineError, match=r"FT801: torch .* finds no GPU"):
        hardware.resolve_device("cuda")


def test_physical_cores_shrink_with_what_the_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware.os, "cpu_count", lambda: 16)
    monkeypatch.setattr(hardware.psutil, "cpu_count", lambda logical: 8)
    for allowed, quota, expected in ((16, None, 8), (4, None, 2), (1, None, 1), (16, 3, 3), (4, 3, 2)):
        monkeypatch.setattr(hardware.os, "sched_getaffinity", lambda _, n=allowed: set(range(n)))
        monkeypatch.setattr(hardware, "_cgroup_cpus", lambda quota=quota: quota)
        hardware.physical_cores.cache_clear()
        assert hardware.physical_cores() == expected
    hardware.physical_cores.cache_clear()


def test_set_threads_sets_what_torch_uses() -> None:
    before = torch.get_num_threads()
    try:
        assert hardware.set_threads(1) == 1
        assert torch.get_num_threads() == 1
        assert hardware.set_threads(None) == hardware.physical_cores() == torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


def test_machine_facts_are_plain_and_name_nobody() -> None:
    facts = hardware.machine_facts()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["torch"] == torch.__version__
    assert facts["cpus"] == os.cpu_count()
    assert isinstance(facts["memory_mib"], int)
    assert facts["memory_mib"] > 100
    said = json.dumps(facts)
    for secret in (platform.node(), os.path.expanduser("~")):
        assert len(secret) < 3 or secret not in said


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a switch of glibc")
def test_freed_memory_can_be_returned_where_the_c_library_is_glibc() -> None:
    assert hardware.return_freed_memory()
