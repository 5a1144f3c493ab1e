"""What is wrong with a command line or a config, in one sentence without the parser's own words.

jsonargparse tells a fault in nested lines of text: keys from the outside in, then what it expected.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection, Sequence
from difflib import get_close_matches
from pathlib import Path
from pkgutil import resolve_name

import yaml

from virnucpro_pl.cli.shipped import (
    classes_in,
    config_names,
    configs_for,
    read_config,
    short_name,
)
from virnucpro_pl.errors import UsageError

_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "list": "a list",
    "dict": "a mapping",
}
"""Types in words."""
_PURPOSES = {
    "--data.path": "the FASTA or FASTQ files to read, or - for standard input",
    "--data.dnabert_s": "the embedding file of the nucleotides",
    "--data.esm2": "the embedding file of the proteins",
    "--writer.path": "the file or folder to write",
    "--model.classifier": "500_model.pth, which VirNucPro's own repository holds (git clone "
    "https://github.com/Li-Jing-1997/VirNucPro), a file that fit has made, or random for a trial",
    "--to": "per-id, biotrainer, anndata, npy or viral-pipelines",
}
"""What to give where an option is missing."""


def usage_error_in(error: BaseException) -> UsageError | None:
    """The fault that a class has found with its options, which the parser wraps in its own."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, UsageError):
            return cause
        cause = cause.__cause__
    return None


def describe_failure(error: BaseException) -> str:
    """What a class has said that does not take its options, without what was wrapped around it."""
    while str(error).startswith("Does not validate") and error.__cause__ is not None:
        error = error.__cause__
    return str(error).replace("`", "").strip()


def explain(fault: str, words: Sequence[str], options: Collection[str]) -> str:
    """Say in a sentence what the parser has found.

    Args:
        fault: The parser's message.
        words: The command line.
        options: All options of the command that belong to no class of a config, with their hyphens.
    """
    value = "".join(re.findall(r"(?:Got|Given) value: (.+)", fault)[:1])
    fault = " ".join(fault.split())
    configs = config_names(words)
    keys = re.findall(r'Parser key "([\w.]+)"', fault)
    place = _option(*dict.fromkeys(keys))
    classes = re.findall(r"given class_path '([^']+)'", fault)
    if missing := re.search(r"arguments are required: ([\w.]+(?:, [\w.]+)*)", fault):
        return _missing(place, missing[1].split(", "), options)
    if unknown := re.search(r"Option '([\w.]+)' is not accepted", fault):
        return _no_option(f"{place}.{unknown[1]}", _class_options(classes[-1], place), configs)
    if unknown := re.search(r"does not accept option '([\w.]+)'", fault):
        return _no_option(_option(unknown[1]), options, configs)
    if unknown := re.search(r"unrecognized arguments: (\S+)", fault):
        of_classes = (option for name in configs for option in _config_options(Path(name)))
        return _unrecognised(unknown[1], [*options, *of_classes], configs)
    if "codec can't decode" in fault:  # a file in place of a class, read as YAML
        given = {option: _value_of(option, words) for option in ("--data", "--writer", "--model")}
        place, value = next(((o, name) for o, name in given.items() if name), (place, value))
    if class_fault := _class_fault(fault, value, place):
        return class_fault
    if "Unable to load config" in fault:
        parts = [option for option in options if option.startswith(f"{place}.")]
        return f"{place} is given by its parts, {' and '.join(parts)}"
    if kinds := _kinds(fault):
        value = _value_of(place, words) or value
        return f"{place} must be {kinds}" + (f", not {value}" if value else "")
    return re.sub(r'Parser key "([\w.]+)": ?', "", fault)


def _class_fault(fault: str, value: str, place: str) -> str | None:
    """Say what stands where a class is wanted: one of another kind, or none at all."""
    if kind := re.search(r"Import path (\S+ )?does not correspond to a subclass of (\w+)", fault):
        return f"{place} must be a {kind[2]}, which {(kind[1] or value).strip()} is not"
    absent = re.search(
        r"given class_path '(\S+)': (?:No module|module \S+ has no|type object)"
        r"|(?:dot import path string:|import path format:|content in sub-config file) (\S+)"
        r"|codec can't decode",
        fault,
    )
    if absent is None or place == "--":  # of no option that is known
        return None
    is_word = value and not value.startswith("{")  # not a class_path of a config
    name = value if is_word else (absent[1] or absent[2] or "").rstrip(".")
    hint = f"; a file is {place}.path" if is_word and place in ("--data", "--writer") else ""
    return f"{place} names a class that does not exist: {name}{hint}"


def _option(*keys: str) -> str:
    """`--writer.path` of the keys writer and init_args.path."""
    joined = ".".join(keys).replace("init_args.", "")
    return "--" + re.sub(r"^(predict|fit)\.", "", joined)


def _missing(place: str, names: Sequence[str], options: Collection[str]) -> str:
    needed = []
    for name in names:
        option = f"{place}.{name}" if place != "--" else _option(name)
        is_word = place == "--" and option not in options
        needed.append(name.upper() if is_word else option)
    purposes = [_PURPOSES[name] for name in needed if name in _PURPOSES]
    what = f": give {purposes[0]}" if len(needed) == len(purposes) == 1 else ""
    return f"{_joined(needed, 'and')} {'is' if len(needed) == 1 else 'are'} missing{what}"


def _no_option(option: str, options: Collection[str], configs: Sequence[str]) -> str:
    """Say that there is none, and which may be meant, or which shipped config has it."""
    where = f" with {_joined([*map(short_name, configs)], 'and')}" if configs else ""
    said = f"There is no option {option}{where}"
    others = [path.name for path in configs_for("predict") if option in _config_options(path)]
    if configs and others:
        return f"{said}; {_joined(others, 'and')} {'has' if len(others) == 1 else 'have'} it"
    close = get_close_matches(option, options, 1)
    return f"{said}: did you mean {close[0]}?" if close else said


def _unrecognised(word: str, options: Sequence[str], configs: Sequence[str]) -> str:
    if word.startswith("-"):
        return _no_option(word.partition("=")[0], options, configs)
    return f"{word} is one word too many"


def _class_options(class_path: str, place: str) -> list[str]:
    try:
        parameters = inspect.signature(resolve_name(class_path)).parameters
    except (ImportError, AttributeError):  # there is another mistake, in a config
        return []
    return [f"{place}.{parameter}" for parameter in parameters]


def _config_options(config: Path) -> list[str]:
    classes = classes_in(read_config(config))
    return [option for key, path in classes.items() for option in _class_options(path, f"--{key}")]


def _kinds(fault: str) -> str:
    """The values that an option may have, in words: `a number`, or `auto, triton or sdpa`."""
    choices = [
        str(choice)
        for inner in re.findall(r"Expected a typing\.Literal\[(.+?)\]", fault)
        for choice in yaml.safe_load(f"[{inner}]")
    ]
    types = re.findall(r"Expected a <class '(\w+)'>", fault)
    if lengths := re.search(r"Expected a tuple with (\d+) elements", fault):
        choices.append(f"a list of {lengths[1]}")
    words = list(dict.fromkeys([*choices, *(_KINDS[name] for name in types if name in _KINDS)]))
    return _joined(words, "or")


def _joined(words: Sequence[str], last: str) -> str:
    """`a, b or c`."""
    return f" {last} ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))


def _value_of(option: str, words: Sequence[str]) -> str | None:
    """The value of an option on the command line."""
    for word, following in reversed(list(zip(words, [*words[1:], ""], strict=True))):
        flag, equals, value = word.partition("=")
        if flag.replace(".init_args", "") == option:
            return value if equals else following
    return None
