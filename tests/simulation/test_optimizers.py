import pytest
import torch

from mpskit.simulation import simulate

sparse = pytest.mark.from_torch("2.10", "MPS has sparse_mask")
NAMES = sorted(
    name
    for name, value in vars(torch.optim).items()
    if isinstance(value, type)
    and issubclass(value, torch.optim.Optimizer)
    and value is not torch.optim.Optimizer
)


def parameters_for(name, model):
    if name == "Muon":  # it takes matrices only
        return [p for p in model.parameters() if p.dim() == 2]
    return model.parameters()


def train(name, device, **options):
    torch.manual_seed(0)
    if name == "SparseAdam":
        return train_sparse(device)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    model.to(device)
    x = torch.randn(16, 4).to(device)
    optimizer = getattr(torch.optim, name)(parameters_for(name, model), lr=0.01, **options)

    def closure():
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        return loss

    losses = [optimizer.step(closure).item() for _ in range(4)]
    state = [
        value
        for group in optimizer.state.values()
        for value in group.values()
        if isinstance(value, torch.Tensor) and value.dim()
    ]
    return losses, [p.detach() for p in model.parameters()], state


def train_sparse(device):
    table = torch.nn.Embedding(10, 4, sparse=True).to(device)
    optimizer = torch.optim.SparseAdam(table.parameters(), lr=0.01)
    losses = []
    for _ in range(4):
        loss = table(torch.tensor([1, 2, 2]).to(device)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, [p.detach() for p in table.parameters()], []


# Adafactor's norm takes the path that warns on every device but CPU and CUDA.
@pytest.mark.filterwarnings("ignore:at..frobenius_norm is deprecated")
@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=sparse) if n == "SparseAdam" else n for n in NAMES]
)
def test_every_optimizer_of_torch(name):
    losses, weights, _ = train(name, "cpu")
    with simulate("m1-8gb"):
        mac_losses, mac_weights, state = train(name, "mps")
        assert {t.device.type for t in (*mac_weights, *state)} == {"mps"}
        assert mac_losses == losses
        assert all(torch.equal(a.cpu(), b) for a, b in zip(mac_weights, weights, strict=True))
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", ["Adam", "AdamW", "SGD"])
@pytest.mark.parametrize("implementation", ["foreach", "fused"])
def test_other_implementations(name, implementation):
    losses, _, _ = train(name, "cpu", **{implementation: True})
    with simulate("m1-8gb"):
        assert train(name, "mps", **{implementation: True})[0] == losses


def test_clipping_and_schedules():
    def run(device):
        torch.manual_seed(0)
        model = torch.nn.Linear(4, 1).to(device)
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=5)
        norms = []
        for _ in range(4):
            model(torch.ones(2, 4).to(device)).sum().backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            norms.append(norm.item())
            optimizer.step()
            schedule.step()
        return norms, norm.device.type

    plain = run("cpu")
    with simulate("m1-8gb"):
        assert run("mps") == (plain[0], "mps")


def test_averaged_model():
    with simulate("m1-8gb"):
        model = torch.nn.Linear(2, 2, device="mps")
        averaged = torch.optim.swa_utils.AveragedModel(model)
        averaged.update_parameters(model)
        assert averaged.module.weight.is_mps


def test_tensors_are_grouped_by_the_simulated_device():
    with simulate("m1-8gb"):
        first, second = torch.ones(3, device="mps"), torch.ones(2, device="mps")
        plain, half = torch.ones(2), torch.ones(1, dtype=torch.float16)
        lists = [[first, plain, second, half], [first, None, None, None], []]
        groups = torch._C._group_tensors_by_device_and_dtype(lists, True)
        kinds = {(str(device), dtype): at for (device, dtype), (_, at) in groups.items()}
        (firsts, seconds, empty), _ = groups[torch.device("mps", 0), torch.float32]
        assert all(found is given for found, given in zip(firsts, [first, second], strict=True))
        assert (seconds[0] is first, seconds[1], empty) == (True, None, [])
    assert kinds == {
        ("mps:0", torch.float32): [0, 2],
        ("cpu", torch.float32): [1],
        ("cpu", torch.float16): [3],
    }


def test_clipping_loops_over_the_gradients_as_on_a_mac():
    clip = torch.nn.utils.clip_grad_norm_
    with simulate("m1-8gb"):
        model = torch.nn.Linear(4, 4).to("mps")
        model(torch.ones(2, 4, device="mps")).sum().backward()
        with pytest.raises(RuntimeError, match="can't use the foreach API on mps tensors"):
            clip(model.parameters(), 1.0, foreach=True)
        assert clip(model.parameters(), 1.0).device.type == "mps"
