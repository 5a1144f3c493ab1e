"""The configurations and samples that come with the package, in a wheel or an editable install."""

from __future__ import annotations

from pathlib import Path

__all__ = ["find_config", "shipped_configs", "with_shipped_configs"]


DEMO = "demo.yaml"
"""The one shipped config that names a file of data, a bundled sample."""


def shipped_configs() -> Path:
    """Folder of the shipped files: inside the package in a wheel, beside it in a checkout."""
    package = Path(__file__).parent
    packed = package / "configs"
    return packed if packed.is_dir() else package.parent / "configs"


def find_config(name: str) -> str:
    """Resolve a config given on the command line.

    Args:
        name: A path, or the bare name of a shipped config; a file of that name in the working
            folder comes first.

    Returns:
        The path of the shipped file, or `name` as it is.
    """
    shipped = shipped_configs() / name
    if Path(name).name == name and not Path(name).exists() and shipped.is_file():
        return str(shipped)
    return name


def with_shipped_configs(words: list[str]) -> list[str]:
    """Replace each name after `--config` in a command line by the path of that config."""
    resolved = list(words)
    for i, word in enumerate(words):
        flag, equals, name = word.partition("=")
        if flag not in ("-c", "--config"):
            continue
        if equals:
            resolved[i] = f"{flag}={find_config(name)}"
        elif i + 1 < len(words):
            resolved[i + 1] = find_config(words[i + 1])
    return resolved
