"""Steps that look at numbers which nobody computes: what is assumed, and what is refused, where."""

import inspect
import linecache
import math
import sys
import warnings

import pytest
import torch
from torch import nn

from mpskit import estimate_inference_memory, estimate_training_memory
from mpskit.cli.main import main
from mpskit.errors import EstimateError
from mpskit.estimate import TensorSpec
from mpskit.estimate.trace import finite_floats
from mpskit.estimate.trace.control_flow import answer_without_raise, reading_frame

pytestmark = pytest.mark.needs_torch("estimate")

X = TensorSpec((8, 16))


def told(step, **more):
    return estimate_training_memory(lambda: nn.Linear(16, 4), X, step=step, device="mps", **more)


def plain(model, x):
    return model(x).mean()


def raises_if_not_finite(model, x):
    loss = model(x).mean()
    if not torch.isfinite(loss):
        raise FloatingPointError(loss)
    return loss


def skips_what_is_nan(model, x):
    loss = model(x).mean()
    return loss * 0 if torch.isnan(loss) or torch.isinf(loss).any() else loss


def counts_what_is_nan(model, x):
    y = model(x)
    return y.mean() if int((y != y).sum()) == 0 else y.sum()


def stays_in_range(model, x):
    y = model(x).sigmoid()
    if not ((y >= 0).all() and not (y > 1).any()):
        raise ValueError("not a probability")
    return y.mean()


def raises_in_the_other_branch(model, x):
    y = model(x).sigmoid()
    if bool((y <= 1).all()):
        loss = y.mean()
    else:
        raise ValueError("not a probability")
    return loss


def warns(model, x):
    y = model(x)
    if (y.abs() > 100).any():
        warnings.warn("large", stacklevel=1)
    return y.mean()


def exits(model, x):
    y = model(x)
    if (y.abs() > 100).any().item():
        print("diverged")
        sys.exit(1)
    return y.mean()


def normal(model, x):
    distribution = torch.distributions.Normal(model(x), 1.0, validate_args=True)
    return -distribution.log_prob(distribution.rsample()).mean()


def categorical(model, x):
    distribution = torch.distributions.Categorical(logits=model(x), validate_args=True)
    return -distribution.log_prob(distribution.sample()).mean()


def on_a_device(model, x):
    with torch.device("cpu"):  # a function mode between the reader and the tensor
        return stays_in_range(model, x)


PASSING = [
    raises_if_not_finite,
    skips_what_is_nan,
    counts_what_is_nan,
    stays_in_range,
    raises_in_the_other_branch,
    warns,
    exits,
    normal,
    categorical,
    on_a_device,
]


@pytest.mark.parametrize("step", PASSING)
def test_a_check_is_taken_to_pass_and_noted(step):
    notes = told(step).notes
    assert [n for n in notes if "taken to pass" in n or "taken for finite" in n], notes


def test_a_check_of_the_loss_costs_no_more_than_it_takes():
    checked, bare = told(raises_if_not_finite), told(plain)
    assert 0 <= checked.peak_bytes - bare.peak_bytes < 4096


def branches(model, x):
    y = model(x)
    if (y > 0).any():
        y = y * 2
    return y.mean()


def loops(model, x):
    y = model(x)
    while (y > 1).any():
        y = y * 0.5
    return y.mean()


def asks_first(model, x):
    return model(x).mean() if holds(model(x)) else x.mean()


def holds(y):
    return bool((y > 0).all())


def compares(model, x):
    y = model(x)
    if (y > 0).any().item() is True:
        raise ValueError("positive")
    return y.mean()


def both_raise(model, x):
    y = model(x)
    if (y > 0).any():
        raise ValueError("positive")
    else:  # noqa: RET506 - the point
        raise ValueError("negative")


def neither_raises(model, x):
    y = model(x)
    return y.sum() if bool(torch.isnan(y).any() | (y > 0).any()) else y.mean()


def line_of(function, text):
    lines, start = inspect.getsourcelines(function)
    return start + next(i for i, line in enumerate(lines) if text in line)


REFUSED = {
    branches: (branches, "if (y"),
    loops: (loops, "while"),
    asks_first: (holds, "return"),
    compares: (compares, "if (y"),
    both_raise: (both_raise, "if (y"),
    neither_raises: (neither_raises, "return"),
}


@pytest.mark.parametrize("step", REFUSED)
def test_other_truth_values_are_refused_by_line(step):
    place = f"{__file__}:{line_of(*REFUSED[step])}"
    with pytest.raises(EstimateError) as error:
        told(step)
    assert f"_local_scalar_dense in the step itself ({place})" in str(error.value)
    assert "--step on the command line" in str(error.value)


def test_an_error_of_the_step_is_told_by_line_too():
    def step(model, x):
        return model(x)["loss"]

    with pytest.raises(EstimateError) as error:
        told(step)
    assert f"({__file__}:{line_of(step, 'return')})" in str(error.value)


def test_a_check_without_source_is_refused():
    names = {}
    source = "def step(model, x):\n    y = model(x)\n    assert (y < 9).all()\n    return y.mean()"
    exec(compile(source, "<no file>", "exec"), names)
    with pytest.raises(EstimateError, match="<no file>:3"):
        told(names["step"])


def test_an_assertion_is_a_check():
    names = {}
    source = (
        "def step(model, x):\n    y = model(x)\n    assert (y < 9).all()\n    return y.mean()\n"
    )
    lines = source.splitlines(keepends=True)
    linecache.cache["<checks>"] = (len(source), None, lines, "<checks>")
    exec(compile(source, "<checks>", "exec"), names)
    assert "(<checks>:3) was taken to pass" in told(names["step"]).notes[0]


def test_the_command_names_the_line(tmp_path, capsys):
    path = tmp_path / "train.py"
    path.write_text(
        "from torch import nn\n"
        "model = nn.Linear(16, 4)\n"
        "def step(model, batch):\n"
        "    y = model(batch)\n"
        "    return y.mean() if y.sum() > 0 else y.sum()\n"
    )
    arguments = ["estimate", f"{path}:model", "--batch", "float32[8,16]", "--step", "step"]
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert f"{path}:5" in said
    assert "--step" in said


class Asks:
    """Says of a truth value what the test that asks for it would let go on."""

    def __init__(self, leave_loops=False):
        self.leave_loops, self.answer = leave_loops, None

    def __bool__(self):
        frame = reading_frame(sys._getframe().f_back)
        self.answer = answer_without_raise(frame, leave_loops=self.leave_loops)
        return bool(self.answer)


def test_what_ends_a_loop_is_only_answered_where_it_is_asked_for():
    stays, leaves = Asks(), Asks(leave_loops=True)
    for question in (stays, leaves):
        for _ in range(2):
            if not question:
                break
    assert (stays.answer, leaves.answer) == (None, False)
    while leaves:
        pytest.fail("it stays")
    assert leaves.answer is False


def test_the_truth_of_several_parts_is_one_answer():
    one, other = Asks(), Asks()
    if not (one and not other):
        raise AssertionError
    assert (one.answer, other.answer) == (True, False)


@pytest.mark.parametrize(
    ("name", "args", "number"),
    [
        ("isnan", [None], False),
        ("ne", [None, math.inf], True),
        ("eq", [None, -math.inf], False),
        ("lt", [None, math.inf], True),
        ("gt", [None, 3.0], None),
        ("logical_or", [False, None], None),
        ("logical_or", [True, None], True),
        ("logical_and", [False, None], False),
        ("bitwise_not", [False], True),
        ("any", [None], None),
        ("all", [True], True),
        ("sum", [True], 6),
        ("gt", [0, 0], False),
    ],
)
def test_what_follows_from_finite_floats(name, args, number):
    values = {}
    tensors = []
    for value in args:
        tensor = torch.empty(2, 3, dtype=torch.bool if isinstance(value, bool) else torch.float32)
        values[id(tensor)] = value
        tensors.append(tensor if not isinstance(value, float) else value)
    of = lambda value: values.get(id(value), value if not torch.is_tensor(value) else None)
    result = torch.empty((), dtype=torch.int64 if name == "sum" else torch.bool)
    found = finite_floats.number_everywhere(name, tensors, result, of)
    assert found == number


def test_a_check_that_is_written_over_is_unknown_again():
    def step(model, x):
        y = model(x)
        bad = torch.isnan(y)
        bad |= y > 0
        return y.sum() if bad.any() else y.mean()

    with pytest.raises(EstimateError, match="_local_scalar_dense"):
        told(step)


@pytest.mark.parametrize("device", ["cpu", "mps", "cuda"])
@pytest.mark.parametrize("clip", ["value", "norm"])
def test_clipping(device, clip):
    def train_step(model, x, optimizer):
        model(x).mean().backward()
        if clip == "value":
            nn.utils.clip_grad_value_(model.parameters(), 1.0)
        else:
            nn.utils.clip_grad_norm_(model.parameters(), 1.0, error_if_nonfinite=True)
        optimizer.step()
        optimizer.zero_grad()

    found = estimate_training_memory(nn.Linear(16, 4), X, train_step=train_step, device=device)
    assert found.peak_bytes > 0


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode])
def test_what_is_off_around_the_call_is_on_in_the_step(around):
    alone = told(plain)
    with around():
        assert told(plain) == alone
        assert not torch.is_grad_enabled()


def test_anomaly_detection_around_the_call():
    alone = told(plain)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        with torch.autograd.detect_anomaly():
            found = told(plain)
    assert found.peak_bytes == alone.peak_bytes
    assert "finite" in found.notes[0]


def test_a_builder_may_draw_until_it_is_satisfied():
    def make():
        model = nn.Linear(512, 512)
        nn.init.trunc_normal_(model.weight, std=0.02)
        nn.init.trunc_normal_(model.weight, a=1.5, b=2.0)  # so rare that torch draws otherwise
        return model

    found = estimate_training_memory(make, TensorSpec((4, 512)), device="cpu")
    bare = estimate_training_memory(lambda: nn.Linear(512, 512), TensorSpec((4, 512)), device="cpu")
    assert found.peak_bytes == bare.peak_bytes


def test_a_builder_leaves_the_random_state_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    estimate_training_memory(lambda: nn.Linear(16, 4), X, device="cpu")
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("options", [{}, {"early_stopping": True}, {"do_sample": True}])
def test_beam_search_goes_on_to_its_last_token(options, true_peak_of):
    transformers = pytest.importorskip("transformers")
    sizes = {"n_layer": 1, "n_embd": 32, "n_head": 2, "vocab_size": 99, "eos_token_id": 98}
    make = lambda: transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes)).eval()
    fixed = {"max_new_tokens": 6, "min_new_tokens": 6, "num_beams": 3, "pad_token_id": 98}
    ids = torch.ones(2, 4, dtype=torch.int64)

    def search(model, ids):
        return model.generate(ids, attention_mask=torch.ones_like(ids), **fixed, **options)

    def run():
        model, tokens = make(), ids.clone()

        def steps():
            with torch.no_grad():
                search(model, tokens)

        return steps

    found = estimate_inference_memory(make, ids, step=search, device="cpu")
    assert found.peak_bytes == pytest.approx(true_peak_of(run), rel=1e-3)
    assert "beam search" in found.notes[0]


def test_grouped_products_in_float32(true_peak_of):
    if not hasattr(torch, "_grouped_mm"):
        pytest.skip("this torch has no _grouped_mm")

    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4, 64, 64))

        def forward(self, x):
            ends = torch.tensor([8, 16, 24, 32], dtype=torch.int32)
            return torch._grouped_mm(x, self.weight, offs=ends)

    def run():
        model, x = Experts(), torch.ones(32, 64)

        def steps():
            for _ in range(2):
                (model(x) * 2).sum().backward()  # the kernel wants a gradient with strides
                model.zero_grad()

        return steps

    try:
        run()()
    except RuntimeError as error:
        pytest.skip(f"this torch has it on CUDA only: {error}")

    def train_step(model, x, _):
        (model(x) * 2).sum().backward()
        model.zero_grad()

    found = estimate_training_memory(
        Experts, TensorSpec((32, 64)), train_step=train_step, optimizer=None, device="cpu"
    )
    assert found.peak_bytes == pytest.approx(true_peak_of(run), rel=1e-3)


def test_no_frame_reads_where_all_are_the_librarys():
    assert reading_frame(None) is None


def finite(found):
    """Whether a value is finite, in a test of each shape."""
    seen = []
    for index in range(2):
        if found == index:
            continue
        seen.append(index)
        break
    return seen


def test_what_only_skips_a_turn_of_a_loop_is_not_answered():
    """Neither branch of such a test ends the loop, so that both ways are possible."""

    class Asked:
        answers: list = []

        def __eq__(self, other):
            frame = sys._getframe(1)
            self.answers.append(answer_without_raise(frame, leave_loops=True))
            return False

        __hash__ = None

    assert finite(Asked()) == [0]
    assert Asked.answers == [None]
