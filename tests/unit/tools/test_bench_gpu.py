"""The benchmark of a GPU at tiny sizes on a CPU, and what it does when a case dies, hangs or does not fit."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

TOOLS = Path(__file__).parents[3] / "tools"
WORKER = """
import json, os, sys, time
def say(**row): print(json.dumps(row), flush=True)
say(machine={"device": "none", "pid": os.getpid()})
for line in sys.stdin:
    case = json.loads(line)
    what = case["model"]
    if what == "dies": os._exit(3)
    if what == "fails": say(error="RuntimeError: no"); os._exit(0)
    say(row={"model": what, "value": 1.5, "unit": "s", "what": what})
    if what == "hangs": time.sleep(1000)
    say(done=True)
"""


@pytest.fixture(autouse=True)
def _as_a_script(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(TOOLS))


def measured(models: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch, seconds: float = 60) -> dict[str, Any]:
    """gpu.json of a run over cases with these names, by a process that does what the names say."""
    import time

    from benchmarks import gpu
    from benchmarks.gpu.cases import Case

    (folder / "fake_worker.py").write_text(WORKER)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.setattr(gpu.Worker, "module", "fake_worker")
    results = gpu.Results(folder, time.monotonic() + seconds)
    gpu._measure([Case("ceilings", 1 if model == "hangs" else 30, model) for model in models], results)
    return json.loads((folder / "gpu.json").read_text())


def test_a_case_that_fails_costs_itself_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a case had measured before it was ended stays."""
    found = measured(["one", "dies", "two", "fails", "hangs", "three"], tmp_path, monkeypatch)
    assert [row["model"] for row in found["rows"]] == ["one", "two", "hangs", "three"]
    assert [problem["why"] for problem in found["problems"]] == [
        "its process ended with 3; see worker.log",
        "RuntimeError: no",
        "took too long and was ended",
    ]
    table = (tmp_path / "gpu.md").read_text()
    assert "| three | 1.50 s |" in table
    assert "took too long" in table


def test_it_ends_in_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = measured(["one", "two"], tmp_path, monkeypatch, seconds=0)
    assert not found["rows"]
    assert [problem["why"] for problem in found["problems"]] == ["no time was left"] * 2


def test_tiny(tmp_path: Path) -> None:
    """Every kind of case, on a CPU, by the real process."""
    command = [sys.executable, str(TOOLS / "bench.py"), "gpu", "--tiny", "--minutes", "4", "--output", str(tmp_path)]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, cwd=TOOLS.parent)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert not found["problems"], (tmp_path / "worker.log").read_text()
    assert {row["kind"] for row in found["rows"]} == {"ceilings", "train", "profile", "event"}
    trained = [row for row in found["rows"] if row["kind"] == "train"]
    assert [row["micro_batch"] for row in trained] == [4, 1, 2]
    for row in trained:
        assert row["first_loss"] == pytest.approx(4.16, abs=0.1)  # the logarithm of 64 pieces
        assert row["tflops"] == pytest.approx(row["flops_per_token"] * row["tokens_per_second"] / 1e12)
    (profiled,) = (row for row in found["rows"] if row["kind"] == "profile")
    assert sum(profiled["shares"].values()) == pytest.approx(1)
    assert profiled["shares"]["GEMM"] > 0
    assert profiled["shares"]["attention"] > 0
    assert len(json.loads(done.stdout)["rows"]) == 3


def test_no_gpu_is_an_error(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from tools.bench import main

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["gpu"]) == 2
    assert capsys.readouterr().err == "error: there is no CUDA device: --tiny tries the benchmark on a CPU\n"


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        ("nvjet_tst_256x128_64x4_1x2_h_bz_coopA_NTT", "GEMM"),
        ("void cutlass::Kernel2<cutlass_80_wmma_tensorop_bf16_s161616gemm_bf16_16x16_128x2_tn_align8>", "GEMM"),
        ("ampere_bf16_s16816gemm_bf16_128x256_ldg8_f2f_stages_64x3_tn", "GEMM"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64_warpgroupsize1x1x1_execute", "GEMM"),
        ("void cublasLt::splitKreduce_kernel<32, 16, int, __nv_bfloat16>", "GEMM"),
        ("aten::addmm", "GEMM"),
        (
            "void pytorch_flash::flash_fwd_kernel<pytorch_flash::Flash_fwd_kernel_traits<cutlass::bfloat16_t>>",
            "attention",
        ),
        ("void pytorch_flash::flash_bwd_dq_dk_dv_loop_seqk_parallel_kernel<cutlass::bfloat16_t>", "attention"),
        ("fmha_cutlassF_bf16_aligned_64x64_rf_sm80(PyTorchMemEffAttention::AttentionKernel)", "attention"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_3_64x128x128", "attention"),
        ("ncclDevKernel_AllReduce_Sum_f32_RING_LL(ncclDevKernelArgsStorage<4096ul>)", "communication"),
        ("triton_poi_fused_mul_silu_0", "memory-bound"),
        (
            "void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<c10::BFloat16>>",
            "memory-bound",
        ),
        ("Memcpy DtoD (Device -> Device)", "memory-bound"),
        ("void at::native::(anonymous namespace)::multi_tensor_apply_kernel<FusedAdamMathFunctor>", "memory-bound"),
    ],
)
def test_kinds_of_kernels(kernel: str, kind: str) -> None:
    from benchmarks.gpu import trace

    assert trace.kind(kernel) == kind


def test_shares_of_a_trace(tmp_path: Path) -> None:
    """A product of 40 us, a copy that begins in it and ends 10 us later, 30 us of nothing, attention of 20 us."""
    from benchmarks.gpu import trace

    events = [
        {"ph": "X", "cat": "cuda_runtime", "name": "cudaLaunchKernel", "ts": 0, "dur": 500},
        {"ph": "X", "cat": "kernel", "name": "flash_fwd_kernel", "ts": 180, "dur": 20},
        {"ph": "X", "cat": "kernel", "name": "nvjet_tst", "ts": 100, "dur": 40},
        {"ph": "X", "cat": "gpu_memcpy", "name": "Memcpy HtoD", "ts": 130, "dur": 20},
        {"ph": "M", "name": "process_name"},
    ]
    (tmp_path / "trace.json").write_text(json.dumps({"traceEvents": events}))
    found = trace.shares(trace.read(tmp_path / "trace.json"))
    assert found["ms"] == pytest.approx(0.1)
    assert found["kernels"] == 3
    assert found["shares"] == pytest.approx(
        {"attention": 0.2, "communication": 0, "GEMM": 0.4, "memory-bound": 0.1, "idle": 0.3}
    )
    assert found["longest"][0] == {"kernel": "nvjet_tst", "kind": "GEMM", "calls": 1, "ms": 0.04}


def test_seven_billion_wide_as_deep_as_fits() -> None:
    """As many layers as the plan says will fit into the memory, and no more."""
    from benchmarks.gpu import worker
    from benchmarks.gpu.cases import MOST_LAYERS, Case

    case = Case("train", 1, "7B wide", seq_len=4096)
    found = {}
    for memory in (40, 80, 10_000):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(worker, "available", lambda memory=memory: memory << 30)
            arch = worker.architecture(case)
            found[memory] = arch.layers
            (micro_batch,) = worker.micro_batches(case, arch)
            assert worker.planned(arch, case, micro_batch) < memory << 30
    assert 1 <= found[40] < found[80] < found[10_000] == MOST_LAYERS


def test_gpu_names_what_is_missing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """In one line."""
    from tools import gpu

    monkeypatch.setattr(gpu, "NEEDED", (*gpu.NEEDED, "no-such-package", "nor-this"))
    assert gpu.main([]) == 2
    assert capsys.readouterr().err == (
        "error: not installed: no-such-package, nor-this; docs/gpu.md says how to bring them along\n"
    )


def running(group: int) -> list[str]:
    """The processes of a group that have not been killed."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            fields = path.read_text().rpartition(")")[2].split()
            if fields[2] == str(group) and fields[0] not in "ZX":
                found.append(path.parent.name)
    return found


@pytest.mark.parametrize(
    ("program", "how"),
    [("echo fine; exit 0", "passed"), ("echo bad; exit 3", "FAILED"), ("echo slow; sleep 100", "took too long")],
)
def test_parts_end_in_their_time(program: str, how: str, tmp_path: Path) -> None:
    """With all of their processes."""
    import time

    from tools import gpu

    part = gpu.Part("part", ["bash", "-c", f"{program} & wait $!"], tmp_path / "log", dict(os.environ))
    part.end(time.monotonic() + (0.5 if how == "took too long" else 60))
    assert part.outcome.startswith(f"part: {how}")
    assert part.code == {"passed": 0, "FAILED": 3}.get(how)
    assert not running(part.process.pid)


def test_drawn_text_is_always_the_same() -> None:
    from benchmarks.gpu.drawn import Drawn

    one, other = (Drawn.of(documents=300, words=20) for _ in range(2))
    assert one == other
    assert [text for batch in one.batches(290) for text in batch] == list(one.documents[290:])
    assert all(len(text.split()) == 20 for text in one.documents)
