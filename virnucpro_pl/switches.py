"""On/off switches in the environment."""

from __future__ import annotations

import os
from collections.abc import Mapping

from virnucpro_pl.errors import UsageError

_ON = {"1", "true", "yes", "on"}
_OFF = {"", "0", "false", "no", "off"}


def env_switch(name: str, env: Mapping[str, str] | None = None) -> bool:
    """Read an on/off switch from the environment; case and blanks do not matter.

    Args:
        name: Name of the variable.
        env: Environment to read, `os.environ` by default.

    Returns:
        True for 1, true, yes, on; False when unset, empty, 0, false, no, off.

    Raises:
        UsageError: On any other value: a safety switch with a typo must not be taken for off.
    """
    value = (os.environ if env is None else env).get(name, "")
    word = value.strip().lower()
    if word in _ON:
        return True
    if word in _OFF:
        return False
    raise UsageError(
        f"{name}={value!r} is neither on (1, true, yes, on) nor off (0, false, no, off, empty): "
        "correct or unset it"
    )
