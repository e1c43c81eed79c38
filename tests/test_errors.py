import copy
import pickle

import pytest

from mpskit import errors

_CLASSES = [getattr(errors, name) for name in errors.__all__]
_BUILTINS = {
    "ArgumentError": ValueError,
    "ArgumentTypeError": TypeError,
    "SettingsError": ValueError,
    "UnknownMachineError": LookupError,
    "DeviceUnavailableError": RuntimeError,
    "TooLateError": RuntimeError,
    "OutOfMemory": MemoryError,
    "EstimateError": RuntimeError,
    "SimulationError": RuntimeError,
    "UnsupportedTorchError": RuntimeError,
    "MissingExtraError": ImportError,
}


@pytest.mark.parametrize("cls", _CLASSES, ids=lambda cls: cls.__name__)
def test_every_class_stands_in_the_tree_and_has_a_docstring(cls):
    assert cls.__name__ in errors.__doc__
    assert cls.__doc__
    assert issubclass(cls, (errors.MpskitError, errors.MpskitWarning))


@pytest.mark.parametrize(("name", "builtin"), _BUILTINS.items())
def test_errors_are_also_what_a_caller_expects(name, builtin):
    assert issubclass(getattr(errors, name), builtin)


@pytest.mark.parametrize("name", _BUILTINS)
def test_an_error_keeps_its_input_through_a_pickle(name):
    error = getattr(errors, name)("say what to do", given={"x": 1})
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert (str(twin), twin.given) == ("say what to do", {"x": 1})
