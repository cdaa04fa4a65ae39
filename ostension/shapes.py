"""Shape annotations for tensors: `Float[Tensor, "B 3 H W"]`, checked on every call while the tests run.

They come from jaxtyping, a development dependency. Modules that annotate use `from __future__ import annotations`, so
that without jaxtyping the annotations are never evaluated and cost nothing.
"""

from __future__ import annotations

try:
    from jaxtyping import Bool, Float, Int, UInt8
except ImportError:
    Bool = Float = Int = UInt8 = None  # type: ignore[assignment,misc]

__all__ = ["Bool", "Float", "Int", "UInt8"]
