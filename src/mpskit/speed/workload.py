"""What a step computes, as far as it is known: the facts that a prediction of its speed needs."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, Field, ValidationError

from mpskit._base.arguments import check_seconds, shown
from mpskit._base.values import Value
from mpskit.backends.precisions import PrecisionLike
from mpskit.errors import ArgumentError, ArgumentTypeError

__all__ = ["Workload"]

# The widths that change the arithmetic rate. Others are counted at the rate of float32.
_ALIASES = {"half": "float16", "fp": "float", "bf": "bfloat"}


def _number(given: Any) -> Any:
    """Refuse what pydantic would turn into a number: True, "12", b"12"."""
    if isinstance(given, bool | str | bytes):
        raise ArgumentTypeError(f"a count or a time is a number, not {shown(given)}", given=given)
    return given


def _dtype(given: Any) -> Any:
    """Accept a name or a ``torch.dtype``, whose text is ``torch.`` and the name."""
    name = str(given)
    if not isinstance(given, str) and not name.startswith("torch."):
        raise ArgumentTypeError(
            f"a dtype is a name or a torch.dtype, not {shown(given)}; write 'bfloat16'", given=given
        )
    name = name.removeprefix("torch.")
    short = re.fullmatch(r"(fp|bf)(\d+)", name)
    return f"{_ALIASES[short[1]]}{short[2]}" if short else _ALIASES.get(name, name)


# pydantic 2.1 takes allow_inf_nan only beside the type, before a validator wraps it.
_Amount = Annotated[float, Field(ge=0, allow_inf_nan=False), BeforeValidator(_number)]
_Count = Annotated[int, Field(ge=0), BeforeValidator(_number)]
_Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False), BeforeValidator(_number)]
_Name = Annotated[str, Field(min_length=1, strict=True)]


class Workload(Value):
    """One step (an operator, a forward pass, a training step): counts and, if measured, its time.

    Every field is optional; what is None is unknown. Amounts are those of one step.

    Attributes:
        flops: floating-point operations; a multiply and an add are two.
        bytes_moved: bytes that the operators read and write.
        launches: kernels: operators that compute, views not counted.
        params: parameters of the model.
        peak_bytes: memory at the peak. A prediction of speed does not use it: whether a step fits
            is decided before.
        dtype: of the arithmetic: ``float32``, ``bfloat16``, or a ``torch.dtype``.
        op_class: what kind of operators dominate: a table of ``data/speed.toml`` (``gemm``,
            ``conv``, ``transformer``, ``rnn``, ...). A class without figures there is predicted
            like None.
        training: whether the step computes gradients.
        cpu_seconds: the measured time of one warmed step on the CPU.
        torch_version: of the torch that runs the step; None for any torch 2.

    Raises:
        ArgumentError: a value that no step can have: negative, infinite, an empty name.
        ArgumentTypeError: a value of the wrong type: a str or a bool where a number belongs.
    """

    flops: _Amount | None = None
    bytes_moved: _Amount | None = None
    launches: _Amount | None = None
    params: _Count | None = None
    peak_bytes: _Count | None = None
    dtype: Annotated[_Name, BeforeValidator(_dtype)] | None = None
    op_class: _Name | None = None
    training: Annotated[bool, Field(strict=True)] | None = None
    cpu_seconds: _Seconds | None = None
    torch_version: _Name | None = None

    if not TYPE_CHECKING:  # type checkers see the signature that pydantic derives from the fields

        def __init__(self, **facts: Any) -> None:
            try:
                super().__init__(**facts)
            except ValidationError as error:
                raise _typed(error) from error

    @classmethod
    def of(
        cls,
        model: Any,
        batch: Any,
        *,
        step: Any = None,
        train_step: Any = None,
        optimizer: Any = "AdamW",
        precision: PrecisionLike = "fp32",
        accumulate: int = 1,
        training: bool = True,
    ) -> Workload:
        """Count what one step computes, in the trace that also gives its memory; nothing is run.

        Args:
            model: as for :func:`mpskit.estimate_training_memory`: a module on any device, a class,
                or a callable that makes one.
            batch: tensors or ``TensorSpec``, nested.
            step: ``(model, batch) -> loss``; without gradients, any call.
            train_step: ``(model, batch, optimizer)``, a whole step of one's own.
            optimizer: as there, or the name of one of ``torch.optim``; None for none.
            precision: as there.
            accumulate: as there.
            training: False counts a call without gradients.

        Raises:
            EstimateError: the step cannot be traced; the message names operator and module.
            ArgumentError: a value that cannot be used.
        """
        from mpskit.speed.count import count_step

        return count_step(
            model,
            batch,
            step=step,
            train_step=train_step,
            optimizer=optimizer,
            precision=precision,
            accumulate=accumulate,
            training=training,
        )

    @classmethod
    def measure(cls, model: Any, batch: Any, *, seconds: float = 1.0, **options: Any) -> Workload:
        """Count a step and time it on the CPU, warmed up, on copies of the model and the batch.

        Args:
            model: as for :meth:`of`; it is copied, and stays as it is.
            batch: as there; a ``TensorSpec`` gets random numbers.
            seconds: about how long the step is timed. One that takes longer runs three times.
            options: ``step``, ``train_step``, ``optimizer``, ``precision``, ``accumulate`` and
                ``training`` as for :meth:`of`; an optimizer that exists is refused, since it holds
                the parameters of the model that was given.

        Raises:
            EstimateError: the step cannot be traced.
            ArgumentError: a value that cannot be used, also ``seconds`` that are not above 0.
            ArgumentTypeError: the model is none, or cannot be copied.
            Whatever the step raises on the CPU.
        """
        from mpskit.speed.steps import cpu_seconds

        check_seconds("seconds", seconds)
        counted = cls.of(model, batch, **options)
        taken = cpu_seconds(model, batch, seconds=seconds, **options)
        return counted.model_copy(update={"cpu_seconds": taken})

    def __str__(self) -> str:
        known = [f"{name}={value}" for name, value in self if value is not None]
        return f"workload: {', '.join(known) or 'nothing known'}"


def _typed(error: ValidationError) -> ArgumentError | ArgumentTypeError:
    """Return the first of pydantic's complaints as an error of mpskit's tree."""
    first = error.errors(include_url=False, include_context=False)[0]
    name = ".".join(str(part) for part in first["loc"]) or "workload"
    kind = ArgumentTypeError if first["type"].endswith("_type") else ArgumentError
    return kind(
        f"Workload.{name}: {first['msg']}, got {shown(first['input'])}", given=first["input"]
    )
