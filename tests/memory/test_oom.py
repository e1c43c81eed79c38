"""is_oom, parse_oom and explain_oom on texts as people reported them."""

from __future__ import annotations

import builtins
import errno
import json
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpskit import OutOfMemory, explain_oom, is_oom, parse_oom
from mpskit.errors import ArgumentTypeError
from mpskit.memory.oom_texts import find_sizes, oom_texts, recognise

KIB, MIB, GIB = 2**10, 2**20, 2**30

# text -> what must be read out of it; a field that is not named must be None
REPORTED = {
    # Fooocus#1139, with GB
    "MPS backend out of memory (MPS allocated: 8.89 GB, other allocations: 172.98 MB, max allowed: "
    "9.07 GB). Tried to allocate 6.25 MB on private pool. Use PYTORCH_MPS_HIGH_WATERMARK_RATIO=0.0 "
    "to disable upper limit for memory allocations (may cause system failure).": {
        "backend": "mps",
        "allocated": 8.89 * GIB,
        "other": 172.98 * MIB,
        "max_allowed": 9.07 * GIB,
        "requested": 6.25 * MIB,
        "pool": "private",
    },
    # ComfyUI#8984, with GiB
    "MPS backend out of memory (MPS allocated: 15.72 GiB, other allocations: 2.41 MiB, max "
    "allowed: 18.13 GiB). Tried to allocate 5.81 GiB on private pool.": {
        "backend": "mps",
        "allocated": 15.72 * GIB,
        "other": 2.41 * MIB,
        "max_allowed": 18.13 * GIB,
        "requested": 5.81 * GIB,
        "pool": "private",
    },
    # runner-images#9918: a virtual machine, in bytes, on the shared pool
    "MPS backend out of memory (MPS allocated: 0 bytes, other allocations: 0 bytes, max allowed: "
    "7.93 GB). Tried to allocate 256 bytes on shared pool.": {
        "backend": "mps",
        "allocated": 0,
        "other": 0,
        "max_allowed": 7.93 * GIB,
        "requested": 256,
        "pool": "shared",
    },
    # the high ratio is 0: there is no limit to print (MPSAllocator.mm)
    "MPS backend out of memory (MPS allocated: 30.10 GiB, other allocations: 512.00 KiB). Tried to "
    "allocate 1.00 GiB on shared pool.": {
        "backend": "mps",
        "allocated": 30.10 * GIB,
        "other": 512 * KIB,
        "requested": GIB,
        "pool": "shared",
    },
    # ComfyUI-SUPIR#151, diffusers#5894, and without a unit
    "Invalid buffer size: 19.38 GiB": {"backend": "mps", "requested": 19.38 * GIB},
    "Invalid buffer size: 11.25 GB": {"backend": "mps", "requested": 11.25 * GIB},
    "Invalid buffer size: 9534832640": {"backend": "mps", "requested": 9534832640},
    # torch 2.4 and later (CADS#4)
    "CUDA out of memory. Tried to allocate 22.78 GiB. GPU 0 has a total capacity of 31.47 GiB of "
    "which 12.73 GiB is free. Including non-PyTorch memory, this process has 18.73 GiB memory in "
    "use. Of the allocated memory 9.08 GiB is allocated by PyTorch, and 9.35 GiB is reserved by "
    "PyTorch but unallocated. If reserved but unallocated memory is large try setting "
    "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True to avoid fragmentation.": {
        "backend": "cuda",
        "allocated": 9.08 * GIB,
        "max_allowed": 31.47 * GIB,
        "requested": 22.78 * GIB,
        "free": 12.73 * GIB,
        "cached": 9.35 * GIB,
    },
    # torch 2.1 spelt it so (NeuroLens#2)
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacty of 4.00 GiB of "
    "which 2.80 GiB is free. Of the allocated memory 0 bytes is allocated by PyTorch, and 0 bytes "
    "is reserved by PyTorch but unallocated.": {
        "backend": "cuda",
        "allocated": 0,
        "max_allowed": 4 * GIB,
        "requested": 2 * GIB,
        "free": 2.80 * GIB,
        "cached": 0,
    },
    # before torch 2.1 (pytorch#59778), and before 1.2 (pytorch#16417)
    "CUDA out of memory. Tried to allocate 2.26 GiB (GPU 0; 6.00 GiB total capacity; 781.59 MiB "
    "already allocated; 3.03 GiB free; 1.24 GiB reserved in total by PyTorch)": {
        "backend": "cuda",
        "allocated": 781.59 * MIB,
        "max_allowed": 6 * GIB,
        "requested": 2.26 * GIB,
        "free": 3.03 * GIB,
        "cached": 1.24 * GIB - 781.59 * MIB,
    },
    "CUDA out of memory. Tried to allocate 12.50 MiB (GPU 0; 10.92 GiB total capacity; 8.57 MiB "
    "already allocated; 9.28 GiB free; 4.68 MiB cached)": {
        "backend": "cuda",
        "allocated": 8.57 * MIB,
        "max_allowed": 10.92 * GIB,
        "requested": 12.5 * MIB,
        "free": 9.28 * GIB,
        "cached": 4.68 * MIB,
    },
    # under a cap (TheRock#2118): the cap is the limit, not the card
    "HIP out of memory. Tried to allocate 2.00 MiB. GPU 0 has a total capacity of 255.98 GiB of "
    "which 244.65 GiB is free. 1.05 GiB allowed; Of the allocated memory 1017.01 MiB is allocated "
    "by PyTorch, with 17.00 MiB allocated in private pools (e.g., HIP Graphs), and 54.99 MiB is "
    "reserved by PyTorch but unallocated.": {
        "backend": "rocm",
        "allocated": 1017.01 * MIB,
        "max_allowed": 1.05 * GIB,
        "requested": 2 * MIB,
        "free": 244.65 * GIB,
        "cached": 54.99 * MIB,
    },
    # torch-xpu-ops#3011, and the older extension (intel-extension-for-pytorch#629)
    "XPU out of memory. Tried to allocate 4.66 GiB. GPU 0 has a total capacity of 5.65 GiB of "
    "which 5.65 GiB is free. Of the allocated memory 195.50 KiB is allocated by PyTorch, and 1.81 "
    "MiB is reserved by PyTorch but unallocated.": {
        "backend": "xpu",
        "allocated": 195.5 * KIB,
        "max_allowed": 5.65 * GIB,
        "requested": 4.66 * GIB,
        "free": 5.65 * GIB,
        "cached": 1.81 * MIB,
    },
    "XPU out of memory. Tried to allocate 1.71 GiB (GPU 0; 15.56 GiB total capacity; 176.00 MiB "
    "already allocated; 176.00 MiB reserved in total by PyTorch)": {
        "backend": "xpu",
        "allocated": 176 * MIB,
        "max_allowed": 15.56 * GIB,
        "requested": 1.71 * GIB,
        "cached": 0,
    },
    "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported": {
        "backend": "cuda"
    },
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you "
    "tried to allocate 4000000000000000 bytes. Error code 12 (Cannot allocate memory)": {
        "backend": "cpu",
        "requested": 4000000000000000,
    },
    "[enforce fail at ..\\c10\\core\\impl\\alloc_cpu.cpp:72] data. DefaultCPUAllocator: not enough "
    "memory: you tried to allocate 26214400 bytes.": {"backend": "cpu", "requested": 26214400},
    "std::bad_alloc": {"backend": "cpu"},
    # pytorch#465, Matrix-Capsules-EM-PyTorch#1: how torch 0.1 to 1.x said it outside its allocator
    "cuda runtime error (2) : out of memory at /pytorch/aten/src/THC/generic/THCStorage.cu:58": {
        "backend": "cuda"
    },
    "HIP error: out of memory": {"backend": "rocm"},
}
FIELDS = ("allocated", "other", "max_allowed", "requested", "free", "cached")


@pytest.mark.parametrize("text", REPORTED, ids=lambda text: text[:40])
def test_reported_figures_are_read(text: str) -> None:
    figures, expected = parse_oom(text), REPORTED[text]
    assert figures.backend == expected["backend"]
    assert figures.pool == expected.get("pool")
    for field in FIELDS:
        value = getattr(figures, field)
        if field not in expected:
            assert value is None, field
        else:
            assert value == pytest.approx(expected[field], abs=2), field


@pytest.mark.parametrize("text", REPORTED, ids=lambda text: text[:40])
def test_reported_texts_are_recognised_as_runtime_errors(text: str) -> None:
    assert is_oom(RuntimeError(text))
    assert not is_oom(ValueError(text))


@pytest.mark.parametrize("row", oom_texts(), ids=lambda row: f"{row.backend}-{row.kind}")
def test_every_row_of_the_table_finds_its_own_example(row) -> None:
    figures = parse_oom(row.example)
    assert (figures.backend, figures.kind) == (row.backend, row.kind)
    assert row.source.startswith("https://")


# Texts from public threads, and look-alikes: tests/data/oom_corpus.jsonl.
CORPUS = [
    json.loads(line)
    for line in (Path(__file__).parents[1] / "data" / "oom_corpus.jsonl").read_text().splitlines()
]
# Of other packages, with what they derive from.
FOREIGN = {"DistBackendError": RuntimeError, "XlaRuntimeError": RuntimeError}


def raised(row: dict) -> BaseException:
    """Return the exception of a row; a type of another package is made with its name."""
    if "errno" in row:
        return OSError(row["errno"], row["text"])
    name = row["type"]
    foreign = type(name, (FOREIGN.get(name, Exception),), {})
    if name == "OutOfMemoryError":
        foreign.__module__ = "torch"
    return getattr(builtins, name, foreign)(row["text"])


@pytest.mark.parametrize("row", CORPUS, ids=lambda row: row["text"][:40])
def test_the_corpus_is_told_from_its_look_alikes(row: dict) -> None:
    assert is_oom(raised(row)) is row["oom"]
    figures = parse_oom(row["text"])
    for field, value in row.get("figures", {}).items():
        assert getattr(figures, field) == value, field


@pytest.mark.parametrize(
    ("text", "oom", "kind"),
    [
        ("zsh: killed     python train.py", False, "killed"),
        ("Training failed with exit code -9", False, "killed"),
        ("Process finished with exit code 137 (interrupted by signal 9:SIGKILL)", False, "killed"),
        ("Command '['python']' died with <Signals.SIGKILL: 9>.", False, "killed"),
        ("DataLoader worker (pid 12) is killed by signal: Killed. ", False, "killed"),
        ("Out of memory: Killed process 41 (python)", True, "host"),
        ("CUDA out of memory. Tried to allocate 2.00 GiB.", True, "limit"),
        # nothing of memory
        ("exit code 1379", False, None),
        ("the process exited with code 13", False, None),
        ("he killed the job", False, None),
        ("Failed to allocate private MTLBuffer for size 0", False, None),
    ],
)
def test_a_text_and_a_kill(text: str, oom: bool, kind: str | None) -> None:
    assert is_oom(text) is oom
    assert is_oom(RuntimeError(text)) is oom
    assert parse_oom(RuntimeError(text)).kind == kind


def test_texts_that_lost_their_head_or_gained_signs() -> None:
    wrapped = parse_oom(
        "# RuntimeError: MPS backend out of memory (MPS allocated: 9.57 GiB, other allocations:\n"
        "# 17.35 GiB, max allowed: 27.20 GiB). Tried\n# to allocate 292.50 MiB on private pool."
    )
    assert (wrapped.requested, wrapped.pool) == (int(292.5 * MIB), "private")
    bare = parse_oom(
        "(MPS allocated: 16.50 GB, other allocations: 72.57 GB, max allowed: 88.13 GB)"
    )
    assert (bare.backend, bare.other) == ("mps", int(72.57 * GIB))
    abort = parse_oom("failed assertion `Failed to allocate private MTLBuffer for size 9964830976'")
    assert (abort.backend, abort.requested) == ("mps", 9964830976)


SLOW = {
    "digits": "1" * 100,
    "digits and spaces": "1 " * 50,
    "spaces": " " * 100,
    "numbers with points": "1." * 50,
    "sizes": "1 B       " * 10,
    "mmap": "unable to mmap 1 bytes from file ",
    "signs": "# > | " * 20,
    "shapes": "OOM when allocating tensor with shape[1,1,1,1,1",
    "runs": ("1" * 24 + " " * 100),
}


@pytest.mark.parametrize("piece", SLOW.values(), ids=SLOW)
def test_the_time_is_linear_in_the_length(piece: str) -> None:
    def cost(length: int) -> float:
        text = "CUDA out of memory " + piece * (length // len(piece))
        times = []
        for _ in range(3):
            began = time.thread_time()
            recognise(text)
            find_sizes(text)
            times.append(time.thread_time() - began)
        return min(times)

    # Eight times the text takes eight times the time, not sixty-four; a small one is all overhead.
    assert cost(160_000) < 24 * max(cost(20_000), 0.001)


def test_groups_that_are_nested_deep_and_types_without_a_module() -> None:
    group: BaseException = MemoryError()
    for _ in range(3000):
        group = ExceptionGroup("one more", [group])
    assert is_oom(group)
    text = "CUDA out of memory. Tried to allocate 2.00 GiB."
    assert (
        parse_oom(ExceptionGroup("g", [ValueError("x"), RuntimeError(text)])).requested == 2 * GIB
    )
    strange = type("OutOfMemoryError", (Exception,), {"__module__": None})
    assert not is_oom(strange())


def test_a_wrapped_count_is_no_figure() -> None:
    figures = parse_oom(
        "MPS backend out of memory (MPS allocated: 1.49 GiB, other allocations: 67108914.49 GiB, "
        "max allowed: 30.19 GiB). Tried to allocate 9.19 MiB on private pool."
    )
    assert figures.other is None
    assert figures.allocated == pytest.approx(1.49 * GIB, abs=2)
    assert figures.max_allowed == pytest.approx(30.19 * GIB, abs=2)
    assert figures.requested == pytest.approx(9.19 * MIB, abs=2)
    assert "wrapped" in figures.notes[0]


def test_a_huge_request_is_a_figure() -> None:
    assert parse_oom("Invalid buffer size: 67108914.49 GiB").requested > 2**50


def test_a_log_that_wraps_its_lines_is_read() -> None:
    log = (
        "Epoch 3\n  RuntimeError: MPS backend out of\n memory (MPS allocated: 2.00 GiB, other\n"
        "allocations: 1.00 GiB, max\nallowed: 3.10 GiB). Tried to\nallocate 1.00 GiB on shared pool"
    )
    figures = parse_oom(log)
    assert (figures.other, figures.requested, figures.pool) == (GIB, GIB, "shared")


@pytest.mark.parametrize(
    "exc",
    [
        MemoryError(),
        OutOfMemory("x"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        ExceptionGroup("both", [MemoryError(), RuntimeError("CUDA out of memory. Tried")]),
    ],
)
def test_types_that_are_a_lack_of_memory(exc: BaseException) -> None:
    assert is_oom(exc)


@pytest.mark.parametrize(
    "exc",
    [
        RuntimeError("Expected all tensors to be on the same device"),
        RuntimeError("Invalid buffer"),
        KeyError("CUDA out of memory"),
        OSError(errno.ENOSPC, "No space left on device"),
        KeyboardInterrupt(),
        ExceptionGroup("one of them", [MemoryError(), ValueError("x")]),
        # https://github.com/pytorch/pytorch/issues/141909: too many elements, not too much memory
        RuntimeError("Output size of the matrix multiplication is larger than currently supported"),
    ],
)
def test_what_is_not_a_lack_of_memory(exc: BaseException) -> None:
    assert not is_oom(exc)


def test_torch_s_own_types_and_the_real_cpu_allocator() -> None:
    import torch

    assert is_oom(torch.cuda.OutOfMemoryError("anything"))
    with pytest.raises(RuntimeError) as caught:
        torch.empty(10**15)
    assert is_oom(caught.value)
    assert parse_oom(str(caught.value)).requested == 4 * 10**15


def test_an_exception_without_a_text_does_no_harm() -> None:
    class Broken(RuntimeError):
        def __str__(self) -> str:
            raise ValueError("no text")

    assert not is_oom(Broken())


@pytest.mark.parametrize("function", [is_oom, parse_oom, explain_oom])
@pytest.mark.parametrize("wrong", [None, 7, b"CUDA out of memory"])
def test_wrong_types_are_refused(function, wrong: object) -> None:
    with pytest.raises(ArgumentTypeError) as caught:
        function(wrong)
    assert caught.value.given is wrong


# Pieces of real texts in any order, with any figures between them.
PIECES = st.lists(
    st.one_of(
        st.sampled_from(sorted({word for text in REPORTED for word in text.split()})),
        st.floats(allow_nan=True).map(str),
        st.integers(-(10**40), 10**40).map(str),
        st.text(max_size=8),
        st.sampled_from(["MPS backend out of memory", "Invalid buffer size:", "GiB", "bytes"]),
    ),
    max_size=40,
)


@settings(deadline=None)
@given(PIECES)
def test_any_text_gives_figures(pieces: list[str]) -> None:
    figures = parse_oom(" ".join(pieces))
    for field in FIELDS:
        value = getattr(figures, field)
        assert value is None or (isinstance(value, int) and value >= 0)
    assert str(figures)


@settings(deadline=None)
@given(st.integers(0, 2**45), st.integers(0, 2**45), st.integers(1, 2**45), st.integers(1, 2**40))
def test_what_torch_prints_is_read_back(allocated, other, limit, requested) -> None:
    from mpskit.allocator.mps_text import oom_text

    for version in ("2.2.2", "2.13.0"):
        figures = parse_oom(
            oom_text(
                version,
                allocated=allocated,
                other=other,
                max_allowed=limit,
                requested=requested,
                pool="shared",
            )
        )
        # two decimals of the unit are printed
        for name, size in (("allocated", allocated), ("other", other), ("requested", requested)):
            assert getattr(figures, name) == pytest.approx(size, rel=0.006, abs=6)
