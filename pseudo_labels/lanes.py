"""Sixteen float32 numbers side by side, as one value inside numba functions.

Numba cannot prove that two rows of an array lie apart, so loops over short rows stay scalar. These functions say it
outright: `load` and `store` move a row of 16 numbers at once, the others work on all 16 together, in whatever registers
the processor has (one of AVX-512, two of AVX, four of SSE or NEON). They are called inside numba functions only.

Rows are C-contiguous float32 arrays of shape (rows, LANES); row numbers are not checked. Used by `mean_field.py`, whose
compiled copy on disk does not notice changes here: save that file too after a change.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.errors import TypingError
from numba.extending import intrinsic, models, register_model
from numpy.typing import NDArray

LANES = 16
_FLOATS = ir.VectorType(ir.FloatType(), LANES)
_INTS = ir.VectorType(ir.IntType(32), LANES)
_CACHE_LINE = 64
# exp(f) = 1 + f + f² P(f) for |f| ≤ ln 2 / 2, highest power first: the minimax polynomial of Cephes (S. Moshier).
_EXP_POLYNOMIAL = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4  # the first has few digits, so small multiples of it are exact
_LOWEST_EXPONENT = -60.0


class LanesType(types.Type):
    """Numba's type of 16 float32 numbers."""

    def __init__(self) -> None:
        super().__init__(name=f"float32x{LANES}")


lanes_type = LanesType()


@register_model(LanesType)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, front_end_type: LanesType) -> None:
        super().__init__(manager, front_end_type, _FLOATS)


def empty_rows(num_rows: int) -> NDArray[np.float32]:
    """Uninitialised rows (num_rows, LANES), float32, each in a cache line of its own."""
    floats_per_line = _CACHE_LINE // 4
    memory = np.empty(num_rows * LANES + floats_per_line, np.float32)
    start = -memory.ctypes.data // 4 % floats_per_line
    return memory[start : start + num_rows * LANES].reshape(num_rows, LANES)


@intrinsic
def load(typing_context, rows, row):
    """The 16 numbers of a row."""
    _check_rows(rows)

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        return builder.load(_address(context, builder, signature, arguments), align=4)

    return lanes_type(rows, types.int64), generate


@intrinsic
def store(typing_context, rows, row, lanes):
    """Write 16 numbers to a row."""
    _check_rows(rows)

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        builder.store(arguments[2], _address(context, builder, signature, arguments), align=4)
        return context.get_dummy_value()

    return types.void(rows, types.int64, lanes_type), generate


@intrinsic
def prefetch(typing_context, rows, row):
    """Have a row brought into the second-level cache; it will be loaded some hundred instructions later."""
    _check_rows(rows)

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        number, pointer = ir.IntType(32), ir.IntType(8).as_pointer()
        function_type = ir.FunctionType(ir.VoidType(), [pointer, number, number, number])
        function = builder.module.declare_intrinsic("llvm.prefetch", [pointer], function_type)
        address = builder.bitcast(_address(context, builder, signature, arguments), pointer)
        # For reading, into the second level, data: the first level tracks too few rows on their way.
        builder.call(function, [address, *(ir.Constant(number, value) for value in (0, 2, 1))])
        return context.get_dummy_value()

    return types.void(rows, types.int64), generate


@intrinsic
def fill(typing_context, number):
    """One number 16 times."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        return _broadcast(builder, arguments[0])

    return lanes_type(types.float32), generate


@intrinsic
def multiply_add(typing_context, factor, lanes, addend):
    """factor · lanes + addend, where factor is one number; rounded once where the processor can."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        return _call(builder, "fmuladd", _broadcast(builder, arguments[0]), arguments[1], arguments[2])

    return lanes_type(types.float32, lanes_type, lanes_type), generate


def _of_two(emit: Callable[[ir.IRBuilder, ir.Value, ir.Value], ir.Value]) -> Any:
    @intrinsic
    def operation(typing_context, first, second):
        def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
            return emit(builder, arguments[0], arguments[1])

        return lanes_type(lanes_type, lanes_type), generate

    return operation


def _emit_maximum(builder: ir.IRBuilder, first: ir.Value, second: ir.Value) -> ir.Value:
    return builder.select(builder.fcmp_ordered(">", first, second), first, second)


def _emit_sum(builder: ir.IRBuilder, first: ir.Value, second: ir.Value) -> ir.Value:
    return builder.fadd(first, second)


add = _of_two(_emit_sum)
subtract = _of_two(lambda builder, first, second: builder.fsub(first, second))
multiply = _of_two(lambda builder, first, second: builder.fmul(first, second))
maximum = _of_two(_emit_maximum)


def _of_halves(emit: Callable[[ir.IRBuilder, ir.Value, ir.Value], ir.Value]) -> Any:
    """One number from 16, by combining one half with the other until one is left."""

    @intrinsic
    def reduction(typing_context, lanes):
        def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
            value, width = arguments[0], LANES
            while width > 1:
                width //= 2
                mask = ir.VectorType(ir.IntType(32), width)
                low, high = (
                    builder.shuffle_vector(value, value, ir.Constant(mask, list(range(first, first + width))))
                    for first in (0, width)
                )
                value = emit(builder, low, high)
            return builder.extract_element(value, ir.Constant(ir.IntType(32), 0))

        return types.float32(lanes_type), generate

    return reduction


total = _of_halves(_emit_sum)
largest = _of_halves(_emit_maximum)


@intrinsic
def exp(typing_context, lanes):
    """e to the power of numbers ≤ 0, to about 1e-7 of the result; exactly 0 below e⁻⁶⁰.

    The cut keeps products of results above the smallest normal number: below it processors are many times slower.
    """

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        lowest = _constant(_LOWEST_EXPONENT)
        power = _emit_maximum(builder, arguments[0], lowest)
        doublings = _call(builder, "rint", builder.fmul(power, _constant(1.4426950408889634)))
        rest = _call(builder, "fmuladd", doublings, _constant(-_LN2_HIGH), power)
        rest = _call(builder, "fmuladd", doublings, _constant(-_LN2_LOW), rest)
        result = _constant(_EXP_POLYNOMIAL[0])
        for coefficient in _EXP_POLYNOMIAL[1:]:
            result = _call(builder, "fmuladd", result, rest, _constant(coefficient))
        result = _call(builder, "fmuladd", result, builder.fmul(rest, rest), builder.fadd(rest, _constant(1.0)))
        exponent = builder.add(builder.fptosi(doublings, _INTS), ir.Constant(_INTS, [127] * LANES))
        two_to_the = builder.bitcast(builder.shl(exponent, ir.Constant(_INTS, [23] * LANES)), _FLOATS)
        is_tiny = builder.fcmp_ordered("<", arguments[0], lowest)
        return builder.select(is_tiny, _constant(0.0), builder.fmul(result, two_to_the))

    return lanes_type(lanes_type), generate


def _check_rows(array: types.Type) -> None:
    if not isinstance(array, types.Array) or (array.ndim, array.layout, array.dtype) != (2, "C", types.float32):
        raise TypingError(f"expected C-contiguous float32 rows, received {array}")


def _address(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
    """Where a row begins; the first two arguments are the array and the row's number."""
    start = context.make_array(signature.args[0])(context, builder, arguments[0]).data
    offset = builder.mul(arguments[1], ir.Constant(arguments[1].type, LANES))
    return builder.bitcast(builder.gep(start, [offset]), _FLOATS.as_pointer())


def _constant(number: float) -> ir.Constant:
    return ir.Constant(_FLOATS, [ir.Constant(ir.FloatType(), number)] * LANES)


def _broadcast(builder: ir.IRBuilder, number: ir.Value) -> ir.Value:
    nothing = ir.Constant(_FLOATS, ir.Undefined)
    first = builder.insert_element(nothing, number, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(first, nothing, ir.Constant(_INTS, [0] * LANES))


def _call(builder: ir.IRBuilder, name: str, *arguments: ir.Value) -> ir.Value:
    """One of LLVM's own functions of vectors."""
    function_type = ir.FunctionType(_FLOATS, [_FLOATS] * len(arguments))
    function = cgutils.get_or_insert_function(builder.module, function_type, f"llvm.{name}.v{LANES}f32")
    return builder.call(function, arguments)
