"""A GPU program's own fault: a kernel that stores to an address nobody gave it, through the driver API alone."""

from __future__ import annotations

import ctypes
import sys

PTX = b"""
.version 6.0
.target sm_50
.address_size 64
.visible .entry fault() {
  .reg .u64 %a; .reg .u32 %v;
  mov.u64 %a, 0xdead0000; mov.u32 %v, 1;
  st.global.u32 [%a], %v;
  ret;
}
"""


def main() -> int:
    cuda = ctypes.CDLL("libcuda.so.1")

    def call(name: str, *arguments: object) -> None:
        code = getattr(cuda, name)(*arguments)
        if code:
            raise RuntimeError(f"{name}: CUDA error {code}")

    context, module, function = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_void_p()
    call("cuInit", 0)
    call("cuDevicePrimaryCtxRetain", ctypes.byref(context), 0)
    call("cuCtxSetCurrent", context)
    call("cuModuleLoadData", ctypes.byref(module), ctypes.c_char_p(PTX))
    call("cuModuleGetFunction", ctypes.byref(function), module, b"fault")
    call("cuLaunchKernel", function, 1, 1, 1, 1, 1, 1, 0, None, None, None)
    try:
        call("cuCtxSynchronize")
    except RuntimeError as error:
        print(error)
        return 0
    return 1


if __name__ == "__main__":
    sys.exit(main())
