import threading
from concurrent.futures import ThreadPoolExecutor

import torch

from mpskit.simulation import simulate


def device_of_a_new_tensor():
    x = torch.ones(2, device="mps") + 1
    return str(x.device), str(torch.tensor([1.0]).device), str(x.to("cpu").device)


RIGHT = ("mps:0", "cpu", "cpu")


def test_new_threads_are_inside():
    answers = []
    with simulate("m1-8gb"):
        thread = threading.Thread(target=lambda: answers.append(device_of_a_new_tensor()))
        thread.start()
        thread.join()
        with ThreadPoolExecutor(4) as pool:
            answers += pool.map(lambda _: device_of_a_new_tensor(), range(8))
    assert answers == [RIGHT] * 9


def test_a_thread_with_a_run_of_its_own():
    class Worker(threading.Thread):
        def run(self):
            self.answer = device_of_a_new_tensor()

    with simulate("m1-8gb"):
        worker = Worker()
        worker.start()
        worker.join()
    assert worker.answer == RIGHT


def test_training_in_four_threads_gives_the_same_as_alone():
    def train():
        generator = torch.Generator().manual_seed(0)
        weight = torch.randn(4, 4, generator=generator).to("mps").requires_grad_()
        for _ in range(5):
            (weight @ weight).sum().backward()
            weight = (weight - 0.01 * weight.grad).detach().requires_grad_()
        return weight.detach().cpu()

    with simulate("m1-8gb") as mac:
        alone = train()
        with ThreadPoolExecutor(4) as pool:
            together = list(pool.map(lambda _: train(), range(8)))
        assert all(torch.equal(alone, weight) for weight in together)
        assert mac.allocated_bytes == 0


def test_backward_in_another_thread():
    with simulate("m1-8gb"):
        x = torch.ones(3, device="mps", requires_grad=True)
        y = (x * 2).sum()
        thread = threading.Thread(target=y.backward)
        thread.start()
        thread.join()
        assert x.grad.is_mps


def test_a_thread_that_outlives_the_simulation_is_on_the_cpu_afterwards():
    go, done, answers = threading.Event(), threading.Event(), []

    def work():
        x = torch.ones(2, device="mps")
        answers.append(str(x.device))
        go.wait(10)
        answers.append(str((x + 1).device))
        done.set()

    with simulate("m1-8gb"):
        thread = threading.Thread(target=work)
        thread.start()
        while not answers:
            pass
    go.set()
    done.wait(10)
    thread.join()
    assert answers == ["mps:0", "cpu"]


def test_autocast_belongs_to_its_thread():
    dtypes = []
    with simulate("m1-8gb"), torch.autocast("mps"):
        x = torch.ones(2, 2, device="mps")
        thread = threading.Thread(target=lambda: dtypes.append((x @ x).dtype))
        thread.start()
        thread.join()
        dtypes.append((x @ x).dtype)
    assert dtypes == [torch.float32, torch.float16]
