"""No file of this folder can be imported where no Mac can be simulated: each is skipped."""

import pytest

from mpskit.backends.versions import require
from mpskit.errors import UnsupportedTorchError


class _TooOld(pytest.Module):
    def collect(self):
        try:
            require("simulation")
        except UnsupportedTorchError as error:
            pytest.skip(str(error), allow_module_level=True)
        return super().collect()


def pytest_pycollect_makemodule(module_path, parent):
    return _TooOld.from_parent(parent, path=module_path)
