"""The configurations and samples that come with the package, in a wheel or an editable install."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from virnucpro_pl.errors import UsageError

DEMO = "demo.yaml"
"""The one shipped config that names a file of data, a bundled sample."""


def shipped_configs() -> Path:
    """Folder of the shipped files: inside the package in a wheel, beside it in a checkout."""
    package = Path(__file__).parents[1]
    packed = package / "configs"
    return packed if packed.is_dir() else package.parent / "configs"


def config_files() -> list[Path]:
    """The shipped configs."""
    return sorted(shipped_configs().glob("*.yaml"))


def find_config(name: str) -> str:
    """Resolve a config given on the command line.

    Args:
        name: A path, or the bare name of a shipped config; a file of that name in the working
            folder comes first.

    Returns:
        The path of the shipped file, or `name` as it is.

    Raises:
        UsageError: If there is neither.
    """
    shipped = shipped_configs() / name
    if Path(name).exists() and not (Path(name).is_dir() and Path(name).name == name):
        return name
    if name and Path(name).name == name and shipped.is_file():
        return str(shipped)
    names = [path.name for path in config_files()]
    close = [f"{name}.yaml"] if f"{name}.yaml" in names else get_close_matches(name, names, 1, 0.7)
    hint = f"did you mean {close[0]}?" if close else f"the shipped ones are {', '.join(names)}"
    raise UsageError(f"There is no config {name}: {hint}")


def short_name(config: str) -> str:
    """A shipped config by its bare name, any other by its path."""
    return Path(config).name if Path(config).parent == shipped_configs() else config


def with_shipped_configs(words: Sequence[str]) -> list[str]:
    """Replace each name after `--config` in a command line by the path of that config.

    Raises:
        UsageError: If there is no such config.
    """
    resolved = list(words)
    for place, flag, name in _named_configs(words):
        resolved[place] = f"{flag}{find_config(name)}"
    return resolved


def config_names(words: Sequence[str]) -> list[str]:
    """What stands after each `--config` in a command line."""
    return [name for _, _, name in _named_configs(words)]


def _named_configs(words: Sequence[str]) -> Iterator[tuple[int, str, str]]:
    """The place of each word that names a config, what it begins with, and the name."""
    for place, word in enumerate(words):
        flag, equals, name = word.partition("=")
        if flag in ("-c", "--config") and equals:
            yield place, f"{flag}=", name
        elif word in ("-c", "--config") and place + 1 < len(words):
            yield place + 1, "", words[place + 1]


def configs_for(command: str) -> list[Path]:
    """The shipped configs of `predict` or `fit`."""
    predicting = command == "predict"
    return [path for path in config_files() if bool(classes_in(read_config(path))) == predicting]


def read_config(path: Path) -> dict[str, Any]:
    """Read a config file; a pipe can be read once only, by the parser, and counts as empty.

    Raises:
        UsageError: If it is no YAML file of options.
    """
    if path.is_dir():
        raise UsageError(f"--config {path} is a folder, not a config")
    if not path.is_file():
        return {}
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--config {path} cannot be read: {error}") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = "" if mark is None else f", line {mark.line + 1}, column {mark.column + 1}"
        raise UsageError(f"--config {path}{where}: this is no YAML: {error.problem}") from error
    except yaml.YAMLError as error:
        raise UsageError(f"--config {path} is no YAML: {error}") from error
    if not isinstance(content, dict):
        raise UsageError(f"--config {path} is no config: it holds no options such as `trainer:`")
    return content


def classes_in(config: Mapping[str, Any]) -> dict[str, str]:
    """Class paths of model, data and writer in a config, and of the classes within them."""
    named = ((key, config.get(key)) for key in ("model", "data", "writer"))
    return {name: path for key, value in named for name, path in _nested(key, value)}


def _nested(key: str, value: Any) -> list[tuple[str, str]]:
    if not isinstance(value, dict) or "class_path" not in value:
        return []
    options = value.get("init_args")
    inner = options.items() if isinstance(options, dict) else ()
    below = (pair for name, option in inner for pair in _nested(f"{key}.{name}", option))
    return [(key, str(value["class_path"])), *below]
