"""Bounds of hyper-parameters, the same in YAML and in Python."""

import math
from typing import Any


def refused(value: Any, spec: dict[str, Any]) -> str | None:
    """What is allowed for a hyper-parameter, if `value` is not; spec: its entry in `ABOUT`.

    A default of None stands for a value that depends on others, such as a reading's own.
    """
    default = spec["default"]
    if default is None and value is None:
        return None
    if "choices" in spec:
        fits = any(type(value) is type(choice) and value == choice for choice in spec["choices"])
        return None if fits else f"one of {', '.join(map(str, spec['choices']))}"
    if "allowed" not in spec:
        return None if isinstance(value, bool) else "true or false"
    low, high = spec["allowed"]
    whole = isinstance(low, int) and isinstance(high, int)
    fits = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    if fits and low <= value <= high and math.isfinite(value):
        return None
    return f"a {'whole number' if whole else 'number'} from {low:.15g} to {high:.15g}"
