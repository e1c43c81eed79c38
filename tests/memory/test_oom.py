"""is_oom, parse_oom and explain_oom on texts as people reported them."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpskit import OutOfMemory, explain_oom, is_oom, parse_oom
from mpskit.errors import ArgumentError, ArgumentTypeError
from mpskit.memory import oom
from mpskit.memory.oom_texts import oom_texts
from mpskit.system.process import MemoryUser

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


@pytest.fixture
def users(monkeypatch: pytest.MonkeyPatch) -> None:
    chrome = MemoryUser(name="Chrome", resident_bytes=3 * GIB, processes=20)
    monkeypatch.setattr(oom, "largest_users", lambda: (chrome,))


def test_the_explanation_names_figures_holders_and_the_steps_in_order(users: None) -> None:
    explained = explain_oom(RuntimeError(next(iter(REPORTED))))
    text = str(explained)
    assert "6.25 MiB" in explained.summary
    assert "9.07 GiB" in explained.summary
    assert any("8.89 GiB" in holder for holder in explained.holders)
    assert any("Chrome 3.00 GiB" in holder for holder in explained.holders)
    words = ("batch", "ccumulate", "sequences", "checkpointing", "LoRA", "smaller model")
    words += ("other programs", "Restart", "cloud")
    for word, step in zip(words, explained.steps, strict=True):
        assert word in step
    assert "Chrome 3.00 GiB" in explained.steps[6]
    assert text.index("1. ") < text.index("9. ")


def test_a_virtual_machine_a_buffer_and_a_card_get_their_own_words(users: None) -> None:
    texts = list(REPORTED)
    assert "virtual machine" in str(explain_oom(texts[2]))
    assert "Split that tensor" in str(explain_oom(texts[4]))
    card = explain_oom(texts[7])
    # 31.47 less 12.73 free, and 9.08 and 9.35 that are torch's own
    (rest,) = [line for line in card.holders if line.startswith("everything else")]
    assert rest.endswith("317.44 MiB")
    assert not any("Chrome" in line for line in card.holders)


def test_a_cap_on_a_card_does_not_tell_what_others_hold(users: None) -> None:
    # With a cap the text prints it in place of the device's memory, which is then not known.
    capped = explain_oom(
        "CUDA out of memory. Tried to allocate 20.00 MiB (GPU 0; 7.79 GiB total capacity; 5.61 GiB "
        "already allocated; 1.50 GiB free; 6.00 GiB allowed; 5.63 GiB reserved in total by PyTorch)"
    )
    assert not any("everything else" in line for line in capped.holders)


def test_the_cause_of_an_out_of_memory_is_what_is_explained(users: None) -> None:
    error = OutOfMemory("no batch size fits")
    error.__cause__ = RuntimeError(next(iter(REPORTED)))
    assert explain_oom(error).figures.pool == "private"
    assert explain_oom(MemoryError()).figures.backend == "cpu"


@pytest.mark.parametrize("wrong", ["a text about nothing", ValueError("x")])
def test_what_is_not_about_memory_is_not_explained(wrong: object) -> None:
    with pytest.raises(ArgumentError) as caught:
        explain_oom(wrong)
    assert caught.value.given is wrong


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
