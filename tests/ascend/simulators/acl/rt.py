"""The one call of pyACL that vllm-ascend imports, over the simulated libascendcl."""

import ctypes

_memcpy = ctypes.CDLL("libascendcl.so").aclrtMemcpy
_memcpy.argtypes = (
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
)


def memcpy(target: int, room: int, source: int, count: int, kind: int) -> int:
    """Copy between host and device; returns ACL's error code, 0 for success."""
    code: int = _memcpy(target, room, source, count, kind)
    return code
