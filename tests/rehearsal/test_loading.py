"""Workers are not started; what a Mac's spawn would refuse is said."""

import json

import psutil
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

import mpskit

pytestmark = pytest.mark.needs_torch("simulation")


class Rows(Dataset):
    """Rows with an attribute that may not be picklable."""

    def __init__(self, extra=None):
        self.extra = extra

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return torch.full((4,), float(index))


def kinds(loader, passes=1):
    with mpskit.rehearse() as run:
        seen = [[batch.to("mps") for batch in loader] for _ in range(passes)]
        assert all(len(one) == 4 for one in seen)
    return [one.kind for one in run.report.findings]


def test_workers_that_can_be_spawned_are_fine():
    assert kinds(DataLoader(Rows(), batch_size=2, num_workers=2)) == []


def test_what_cannot_be_pickled_stops():
    assert kinds(DataLoader(Rows(lambda: 0), batch_size=2, num_workers=2)) == ["workers"]


def test_workers_that_start_again_are_slow():
    loader = DataLoader(Rows(), batch_size=2, num_workers=2)
    assert kinds(loader, passes=3) == ["workers-restarted"]
    kept = DataLoader(Rows(), batch_size=2, num_workers=2, persistent_workers=True)
    assert kinds(kept, passes=3) == []


def test_no_workers_are_no_matter():
    assert kinds(DataLoader(Rows(lambda: 0), batch_size=2), passes=2) == []


def weights_file(folder, shapes):
    """Write a safetensors file whose numbers are a hole of the file system."""
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return end


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "options", [{}, {"dtype": torch.float32}, {"device_map": "mps"}], ids=lambda one: "-".join(one)
)
def test_a_model_is_loaded_by_the_headers_of_its_files(tmp_path, options):
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        n_embd=2048, n_layer=8, n_head=16, architectures=["GPT2LMHeadModel"]
    )
    config.save_pretrained(tmp_path)
    with torch.device("meta"):
        model = transformers.GPT2LMHeadModel(config)
    shapes = {name: tuple(one.shape) for name, one in model.named_parameters()}
    size = weights_file(tmp_path, shapes)
    assert size > 900 << 20
    before = psutil.Process().memory_info().rss
    with mpskit.rehearse("m1-16gb") as run:
        loaded = transformers.AutoModelForCausalLM.from_pretrained(
            str(tmp_path), **{"dtype": torch.bfloat16, **options}
        ).to("mps")
        grown = psutil.Process().memory_info().rss - before
        assert {one.device.type for one in loaded.parameters()} == {"mps"}
    wanted = 2 * size if "dtype" in options else size
    assert run.report.peak_bytes == pytest.approx(wanted, rel=0.1)
    assert grown < 300 << 20


def test_files_are_mapped_in_a_rehearsal_only(tmp_path):
    safetensors = pytest.importorskip("safetensors")
    weights_file(tmp_path, {"weight": (4, 4)})
    before = safetensors.safe_open
    with mpskit.rehearse():
        replaced = safetensors.safe_open
        options = {"backend": "no such backend"}
        with replaced(tmp_path / "model.safetensors", "pt", **options) as file:
            assert file.get_slice("weight").get_shape() == [4, 4]
    assert safetensors.safe_open is before
    with pytest.raises((TypeError, safetensors.SafetensorError, ValueError)):
        replaced(tmp_path / "model.safetensors", "pt", **options)
