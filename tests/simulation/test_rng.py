import pytest
import torch

from mpskit.errors import ArgumentError
from mpskit.simulation import simulate


def test_one_stream_gives_the_cpu_s_numbers():
    torch.manual_seed(4)
    plain = [torch.randn(3), torch.rand(2), torch.randperm(5)]
    with simulate("m1-8gb"):
        torch.manual_seed(4)
        mixed = [torch.randn(3, device="mps"), torch.rand(2), torch.randperm(5, device="mps")]
    assert all(torch.equal(a, b) for a, b in zip(plain, mixed, strict=True))


def test_two_streams_are_seeded_alike_and_run_apart():
    with simulate("m1-8gb", rng="separate"):
        torch.manual_seed(4)
        first = torch.rand(2, device="mps")
        on_cpu = torch.rand(2)
        second = torch.rand(2, device="mps")
        torch.manual_seed(4)
        torch.rand(100)  # the CPU's stream does not move the GPU's
        assert torch.equal(torch.rand(2, device="mps"), first)
        assert torch.equal(torch.rand(2, device="mps"), second)
        assert torch.equal(first.cpu(), on_cpu)
        assert not torch.equal(first, second)


def test_two_streams_with_dropout_and_in_place_draws():
    with simulate("m1-8gb", rng="separate"):
        torch.manual_seed(1)
        a = torch.nn.functional.dropout(torch.ones(64, device="mps"))
        b = torch.empty(8, device="mps").normal_()
        torch.manual_seed(1)
        torch.rand(5)
        assert torch.equal(a, torch.nn.functional.dropout(torch.ones(64, device="mps")))
        assert torch.equal(b, torch.empty(8, device="mps").normal_())


@pytest.mark.parametrize("mode", ["cpu", "separate"])
def test_state_of_the_device_is_saved_and_restored(mode):
    with simulate("m1-8gb", rng=mode):
        torch.mps.manual_seed(7)
        state = torch.mps.get_rng_state()
        first = torch.rand(3, device="mps")
        torch.mps.set_rng_state(state)
        assert torch.equal(torch.rand(3, device="mps"), first)
        torch.mps.seed()
        with torch.random.fork_rng(device_type="mps"):
            inner = torch.rand(3, device="mps")
        assert torch.equal(torch.rand(3, device="mps"), inner)


def test_generators():
    with simulate("m1-8gb"):
        generator = torch.Generator(device="mps").manual_seed(3)
        assert generator.device == torch.device("mps", 0)
        assert isinstance(generator, torch.Generator)
        assert isinstance(torch.Generator(), torch.Generator)
        assert torch.Generator().device.type == "cpu"
        first = torch.randn(4, device="mps", generator=generator)
        clone = generator.clone_state()
        assert clone.device.type == "mps"
        later = torch.randn(4, device="mps", generator=generator)
        assert torch.equal(torch.randn(4, device="mps", generator=clone), later)
        generator.manual_seed(3)
        assert torch.equal(torch.randn(4, device="mps", generator=generator), first)
        assert generator.initial_seed() == 3
        torch.empty(2, device="mps").uniform_(generator=generator)
        torch.randperm(4, device="mps", generator=generator)
        torch.bernoulli(torch.full((4,), 0.5, device="mps"), generator=generator)


def test_the_default_generator_shares_the_stream():
    with simulate("m1-8gb"):
        default = torch.mps._get_default_mps_generator()
        assert default.device.type == "mps"
        torch.manual_seed(9)
        named = torch.rand(2, device="mps", generator=default)
        torch.manual_seed(9)
        assert torch.equal(torch.rand(2, device="mps"), named)


def test_generators_made_before_still_count():
    before = torch.Generator()
    with simulate("m1-8gb"):
        assert isinstance(before, torch.Generator)
        torch.rand(2, generator=before)
    assert isinstance(before, torch.Generator)
    assert type(torch.Generator()) is torch.Generator


def test_a_third_mode_is_refused():
    with pytest.raises(ArgumentError, match="'cpu', 'separate'"):
        simulate("m1-8gb", rng="three")
