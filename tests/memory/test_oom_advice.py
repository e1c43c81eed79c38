"""explain_oom: what happened, who holds the memory, and advice that fits the case."""

from __future__ import annotations

import pytest

from mpskit import OutOfMemory, explain_oom
from mpskit.errors import ArgumentError
from mpskit.memory import oom_advice
from mpskit.memory.oom import OomFigures
from mpskit.system import process
from mpskit.system.process import MemoryUser

MIB, GIB = 2**20, 2**30


def mps(allocated: float, other: float, limit: float, requested: float = 0.1) -> str:
    return (
        f"MPS backend out of memory (MPS allocated: {allocated:.2f} GiB, other allocations: "
        f"{other:.2f} GiB, max allowed: {limit:.2f} GiB). Tried to allocate {requested:.2f} GiB on "
        "private pool."
    )


PLAIN = mps(8.89, 0.16, 9.07)
BUFFER = "Invalid buffer size: 19.38 GiB"
CARD = (
    "CUDA out of memory. Tried to allocate 22.78 GiB. GPU 0 has a total capacity of 31.47 GiB of "
    "which 12.73 GiB is free. Including non-PyTorch memory, this process has 18.73 GiB memory in "
    "use. Of the allocated memory 9.08 GiB is allocated by PyTorch, and 9.35 GiB is reserved by "
    "PyTorch but unallocated."
)


@pytest.fixture
def users(monkeypatch: pytest.MonkeyPatch) -> None:
    chrome = MemoryUser(name="Chrome", resident_bytes=3 * GIB, processes=20)
    monkeypatch.setattr(oom_advice, "largest_users", lambda: (chrome,))


def train_step(error: BaseException) -> None:
    loss_backward = error
    raise loss_backward


def generate(error: BaseException) -> None:
    raise error


def in_(work, error: BaseException) -> BaseException:
    """Return the error with the traceback of some work."""
    with pytest.raises(type(error)) as caught:
        work(error)
    return caught.value


def test_the_explanation_names_figures_holders_and_the_steps_in_order(users: None) -> None:
    explained = explain_oom(in_(train_step, RuntimeError(PLAIN)))
    text = str(explained)
    assert "102.40 MiB" in explained.summary
    assert "9.07 GiB" in explained.summary
    assert explained.holders[0] == "PyTorch's tensors and cache: 8.89 GiB"
    assert any("Chrome 3.00 GiB" in holder for holder in explained.holders)
    words = ("batch", "Accumulate", "sequences", "checkpointing", "LoRA", "smaller model")
    words += ("other programs", "Restart", "cloud")
    for word, step in zip(words, explained.steps, strict=True):
        assert word in step
    assert "Chrome 3.00 GiB" in explained.steps[6]
    assert text.index("1. ") < text.index("9. ")


TRAINING = ("Accumulate", "checkpointing", "LoRA")
INFERENCE = ("inference_mode", "tiles", "quantized")


@pytest.mark.parametrize(
    ("work", "given", "left_out"),
    [(train_step, TRAINING, INFERENCE), (generate, INFERENCE, TRAINING)],
)
def test_advice_fits_the_work(users: None, work, given, left_out) -> None:
    steps = " ".join(explain_oom(in_(work, RuntimeError(PLAIN))).steps)
    assert all(word in steps for word in given)
    assert not any(word in steps for word in left_out)
    assert "In training" not in steps
    assert "In inference" not in steps


def test_a_log_tells_the_work_too_and_else_each_step_says_which_it_is_for() -> None:
    log = f'File "comfy/sample.py", line 29, in sample\n{PLAIN}'
    assert not any("LoRA" in step for step in explain_oom(log).steps)
    assert any(step.startswith("In training: Train LoRA") for step in explain_oom(PLAIN).steps)
    assert any(step.startswith("In inference: Run") for step in explain_oom(PLAIN).steps)
    assert not any(step.startswith("In None") for step in explain_oom(PLAIN).steps)


def test_a_text_from_elsewhere_does_not_blame_this_machine(users: None) -> None:
    explained = explain_oom(PLAIN)
    assert explained.users == ()
    assert "Chrome" not in str(explained)


def test_small_programs_and_a_failing_list_of_them_are_left_out(monkeypatch) -> None:
    small = MemoryUser(name="sshd", resident_bytes=4 * MIB, processes=1)
    monkeypatch.setattr(oom_advice, "largest_users", lambda: (small,))
    assert "sshd" not in str(explain_oom(RuntimeError(PLAIN)))


def test_a_program_is_worth_closing_from_512_mib_on(monkeypatch) -> None:
    sizes = (512 * MIB, 512 * MIB - 1)
    both = tuple(MemoryUser(name=f"p{size}", resident_bytes=size, processes=1) for size in sizes)
    monkeypatch.setattr(oom_advice, "largest_users", lambda: both)
    assert explain_oom(RuntimeError(PLAIN)).users == both[:1]


# backend, kind -> how the summary begins
SUMMARIES = [
    ("gpu", "limit", "The GPU is out of memory"),
    ("mps", "limit", "MPS is out of memory"),
    ("cuda", "limit", "CUDA is out of memory"),
    ("gpu", "buffer", "The GPU cannot make one buffer"),
    ("mps", "buffer", "MPS cannot make one buffer"),
    ("cpu", "host", "The computer has no memory left"),
    ("cpu", "shm", "Shared memory (/dev/shm) is full"),
    ("cpu", "killed", "The system killed the process"),
]


@pytest.mark.parametrize(("backend", "kind", "begins"), SUMMARIES)
def test_the_summary_names_the_device(backend: str, kind: str, begins: str) -> None:
    said = oom_advice._summary(OomFigures(backend=backend, kind=kind))
    assert said.startswith(begins)
    assert " of " not in said.partition("buffer")[2]
    asked = oom_advice._summary(OomFigures(backend=backend, kind=kind, requested=GIB))
    assert ("1.00 GiB" in asked) is (kind not in ("shm", "killed"))


@pytest.mark.parametrize("error", [RuntimeError("odd"), ValueError("odd"), OSError("odd")])
def test_programs_that_cannot_be_listed_are_none(monkeypatch, error: Exception) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("psutil.process_iter", fail)
    assert process.largest_users() == ()


def test_a_buffer_is_not_helped_by_freeing_memory(users: None) -> None:
    text = str(explain_oom(RuntimeError(BUFFER)))
    assert "Split that tensor" in text
    assert "Close other programs" not in text
    assert "Restart" not in text


def test_after_the_smallest_batch_no_retry_is_advised(users: None) -> None:
    error = RuntimeError(PLAIN)
    assert "run_with_batch_size" in explain_oom(error).steps[0]
    assert "run_with_batch_size" not in str(explain_oom(error, gave_up=True))


# text -> what its notes say, and what they do not
NOTES = [
    # runner-images#9918: nothing held
    (mps(0, 0, 7.93, 0), ["virtual machine"], ["no cap"]),
    # held and asked for far less than the limit: the runner's GPU, with something in it
    (mps(0.55, 0.02, 7.93), ["Metal refused the memory, not the limit", "MPSKIT_DEVICE=cpu"], []),
    (mps(8.0, 0.1, 9.07, 0.5), [], ["virtual machine"]),
    # SeedVR2#393: Metal's own is most, and more than the limit is held
    (mps(16.5, 72.57, 88.13, 0.25), ["81% of it", "Pad inputs", "962.56 MiB more"], []),
    (mps(9.57, 17.35, 27.2), ["64% of it", "scaled_dot_product_attention"], ["more than the"]),
    (mps(8.89, 0.17, 9.07), [], ["Pad inputs", "more than the limit"]),
    # PyTorch's own limits: 8 GiB, 16 GiB on macOS 13 and later, a runner of 7 GiB
    (mps(8.9, 0.1, 9.07), ["above the Mac's memory already"], ["a cap seems"]),
    (mps(18.0, 0.1, 18.13), ["above the Mac's memory already"], ["a cap seems"]),
    # a ratio of 0.8 in force on a Mac of 16 GiB
    (mps(9.3, 0.1, 9.47), ["9.47 GiB is not PyTorch's own limit", "a cap seems"], ["already, and"]),
]


@pytest.mark.parametrize(("text", "said", "unsaid"), NOTES)
def test_what_is_special_about_one(text: str, said: list[str], unsaid: list[str]) -> None:
    notes = " ".join(explain_oom(text).notes)
    for part in said:
        assert part in notes
    for part in unsaid:
        assert part not in notes


def test_shared_memory_and_a_kill_get_their_own_words(users: None) -> None:
    shm = explain_oom("DataLoader worker (pid 1) is killed by signal: Bus error. It is possible")
    assert "--shm-size" in shm.steps[0]
    assert "num_workers" in shm.steps[1]
    assert not any("programs" in step for step in shm.steps)
    killed = explain_oom("zsh: killed     python train.py")
    assert "SIGKILL" in killed.summary
    assert any("limit_memory" in step for step in killed.steps)
    assert killed.figures.kind == "killed"
    assert explain_oom(RuntimeError("process 0 terminated with signal SIGKILL")).users


def test_a_card(users: None) -> None:
    card = explain_oom(RuntimeError(CARD))
    # 31.47 less 12.73 free, and 9.08 and 9.35 that are torch's own
    (rest,) = [line for line in card.holders if line.startswith("everything else")]
    assert rest.endswith("317.44 MiB")
    assert not any("Chrome" in line for line in card.holders)
    assert card.holders[0] == "PyTorch's tensors: 9.08 GiB"


def test_a_cap_on_a_card_does_not_tell_what_others_hold(users: None) -> None:
    # With a cap the text prints it in place of the device's memory, which is then not known.
    capped = explain_oom(
        "CUDA out of memory. Tried to allocate 20.00 MiB (GPU 0; 7.79 GiB total capacity; 5.61 GiB "
        "already allocated; 1.50 GiB free; 6.00 GiB allowed; 5.63 GiB reserved in total by PyTorch)"
    )
    assert not any("everything else" in line for line in capped.holders)


def test_the_cause_of_an_out_of_memory_is_what_is_explained(users: None) -> None:
    error = OutOfMemory("no batch size fits")
    error.__cause__ = RuntimeError(PLAIN)
    assert explain_oom(error).figures.pool == "private"
    assert explain_oom(MemoryError()).figures.backend == "cpu"


@pytest.mark.parametrize("wrong", ["a text about nothing", ValueError("x")])
def test_what_is_not_about_memory_is_not_explained(wrong: object) -> None:
    with pytest.raises(ArgumentError) as caught:
        explain_oom(wrong)
    assert caught.value.given is wrong
