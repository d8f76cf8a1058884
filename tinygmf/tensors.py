"""NumPy arrays to tinygrad tensors, without running a kernel.

`Tensor(array).realize()` plans, schedules and runs a copy for every tensor: up to 0.1 s each. A
network has one to three thousand tensors, so this file writes each array straight into its device
buffer: 0.2 ms each.
"""

import numpy as np
from tinygrad import Context, Device, Tensor, dtypes
from tinygrad.device import Buffer
from tinygrad.dtype import to_dtype
from tinygrad.uop.ops import Ops, UOp

DTYPES = {"float32": dtypes.float32, "float16": dtypes.float16, "bfloat16": dtypes.bfloat16}


def on_cpu(device: str | tuple[str, ...]) -> bool:
    """Whether this is one of tinygrad's CPU devices, which run loop nests."""
    return isinstance(device, str) and device.split(":")[0] == "CPU"


def without_device() -> Context:
    """A context for code that computes nothing: tensors stay in Python's memory and no device is
    opened."""
    return Context(DEV="PYTHON")


def tensor_from_numpy(array: np.ndarray, device: str | None = None) -> Tensor:
    """Return a realized tensor holding a copy of `array`, of its shape and type.

    The tensor owns its buffer: it may be assigned to, trained and captured by a `TinyJit`, and a
    later change of `array` does not affect it. `device` names one device; None is the default one.
    """
    dtype = to_dtype(array.dtype.name)
    if array.size == 0:
        return Tensor.empty(*array.shape, dtype=dtype, device=device)
    buffer = Buffer(Device.canonicalize(device), array.size, dtype, preallocate=True)
    tensor = Tensor(UOp.from_buffer(buffer).reshape(array.shape))
    write_tensor(tensor, array)
    return tensor


def write_tensor(tensor: Tensor, array: np.ndarray) -> None:
    """Copy an array of the same shape and type into a realized tensor's own buffer.

    As `tinygrad.engine.realize.exec_copy` does it, for every backend.
    """
    buffer = tensor.uop.base.realized
    native = array.astype(array.dtype.newbyteorder("="), order="C", copy=False)
    data = native.reshape(-1).view(np.uint8)
    if hasattr(buffer.allocator, "_as_buffer"):  # memory that the processor can write
        buffer.as_memoryview(force_zero_copy=True)[:] = data.data
    else:  # the copy may run later, so it gets its own bytes
        buffer.allocator._copyin(buffer._buf, memoryview(bytearray(data)))


def read_tensor(tensor: Tensor) -> np.ndarray:
    """Return a copy of a realized tensor's numbers.

    `Tensor.numpy` plans and runs a copy, 0.4 ms. Where the tensor is its own buffer, in memory that
    the processor can read, the buffer is copied.
    """
    node = tensor.uop
    while node.op is Ops.RESHAPE:
        node = node.src[0]
    buffer = node.realized if node.op is Ops.BUFFER and tensor.dtype == dtypes.float32 else None
    if buffer is None or not hasattr(buffer.allocator, "_as_buffer"):
        return tensor.numpy()
    numbers = np.frombuffer(buffer.as_memoryview(force_zero_copy=True), np.float32)
    return numbers.reshape(tensor.shape).copy()
