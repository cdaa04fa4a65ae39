"""Shape annotations for tensors: `Float[Tensor, "B 3 H W"]`, checked on every call while the tests run.

They come from jaxtyping, a development dependency. Modules that annotate use `from __future__ import annotations`, so
that without jaxtyping the annotations are never evaluated and cost nothing; an alias of types, which is, gets the plain type.
"""

from __future__ import annotations

from typing import Any

try:
    from jaxtyping import Bool, Float, Int, UInt8
except ImportError:

    class _Plain:
        def __class_getitem__(cls, item: tuple[Any, str]) -> Any:
            return item[0]

    Bool = Float = Int = UInt8 = _Plain  # type: ignore[assignment,misc]

__all__ = ["Bool", "Float", "Int", "UInt8"]
