"""Every exception and warning of mpskit, in one tree.

MpskitError
├── ArgumentError            also a ValueError: an argument has a value nobody can use
│   └── UnknownMachineError  also a LookupError: no machine of that name
├── ArgumentTypeError        also a TypeError: an argument has the wrong type
├── SettingsError            also a ValueError: an environment variable has a wrong value
├── DeviceUnavailableError   also a RuntimeError: the device asked for cannot work here
├── TooLateError             also a RuntimeError: torch has already read what was to be set
├── OutOfMemory              also a RuntimeError and a MemoryError
├── EstimateError            also a RuntimeError: the model cannot be traced
├── CheckError               also a RuntimeError: the step to be checked fails by itself
├── SimulationError          also a RuntimeError: the simulated machine cannot do that
├── UnsupportedTorchError    also a RuntimeError: this torch is too old for the feature
└── MissingExtraError        also an ImportError: an optional package is not installed

MpskitWarning (a UserWarning)
├── DeviceFallbackWarning    the device asked for was not used
├── PrecisionWarning         numbers were narrowed because the device has no such type
├── MemoryGrowthWarning      the driver's memory grows while the tensors' does not
├── EnvironmentWarning       a variable is set to something that does not do what it seems to
├── SimulationWarning        a simulated machine does something else than a real one here
└── PowerWarning             the machine could not be kept awake
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "ArgumentError",
    "ArgumentTypeError",
    "CheckError",
    "DeviceFallbackWarning",
    "DeviceUnavailableError",
    "EnvironmentWarning",
    "EstimateError",
    "MemoryGrowthWarning",
    "MissingExtraError",
    "MpskitError",
    "MpskitWarning",
    "OutOfMemory",
    "PowerWarning",
    "PrecisionWarning",
    "SettingsError",
    "SimulationError",
    "SimulationWarning",
    "TooLateError",
    "UnknownMachineError",
    "UnsupportedTorchError",
]


class MpskitError(Exception):
    """Root of every error that mpskit raises on purpose.

    Attributes:
        given: the input that could not be used, unchanged (None where there was none).
    """

    def __init__(self, message: str, *, given: Any = None) -> None:
        super().__init__(message)
        self.given = given


class ArgumentError(MpskitError, ValueError):
    """An argument has the right type and a value that cannot be used."""


class UnknownMachineError(ArgumentError, LookupError):
    """No machine profile has that name; the message lists near ones."""


class ArgumentTypeError(MpskitError, TypeError):
    """An argument has the wrong type."""


class SettingsError(MpskitError, ValueError):
    """An environment variable has a value that cannot be used; the message lists the right ones."""


class DeviceUnavailableError(MpskitError, RuntimeError):
    """The device that was asked for cannot work on this machine; the message says why."""


class TooLateError(MpskitError, RuntimeError):
    """Torch has already read the variable that was to be set; a new process is needed."""


class OutOfMemory(MpskitError, RuntimeError, MemoryError):  # noqa: N818 - the field's own name for it
    """An allocation did not fit; the backend's original error is the ``__cause__``.

    Attributes:
        next_plan: the plan to try next, where a plan was being trained and one is left; else None.
    """

    def __init__(self, message: str, *, given: Any = None, next_plan: Any = None) -> None:
        super().__init__(message, given=given)
        self.next_plan = next_plan


class EstimateError(MpskitError, RuntimeError):
    """The model cannot be traced; the message names the operator and the module."""


class CheckError(MpskitError, RuntimeError):
    """The step whose results were to be checked fails by itself; the message says where."""


class SimulationError(MpskitError, RuntimeError):
    """The simulated machine cannot do what was asked of it."""


class UnsupportedTorchError(MpskitError, RuntimeError):
    """The installed torch is too old for the feature; the message names the version needed."""


class MissingExtraError(MpskitError, ImportError):
    """An optional package is not installed; the message says how to install it."""


class MpskitWarning(UserWarning):
    """Root of every warning that mpskit gives."""


class DeviceFallbackWarning(MpskitWarning):
    """The device that was asked for cannot be used, so the next best one is."""


class PrecisionWarning(MpskitWarning):
    """Numbers were narrowed (float64 to float32) because the device has no such type."""


class MemoryGrowthWarning(MpskitWarning):
    """The driver's memory grows while the tensors' does not: shapes that vary, or a cache."""


class EnvironmentWarning(MpskitWarning):
    """A PYTORCH_* variable is set to something that does not do what its user expects."""


class SimulationWarning(MpskitWarning):
    """A simulated machine behaves unlike a real one here; said once."""


class PowerWarning(MpskitWarning):
    """The machine could not be kept awake, or runs in a mode that slows the GPU."""
