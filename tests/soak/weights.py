"""Spoilt weights and embedding files: exactly what an independent reader finds, or exit code 2."""

import argparse
import json
import logging
import os
import random
import signal
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from safetensors.torch import load as load_bytes
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.soak import file_mutations as mutate
from tests.soak import tiny
from tests.soak.children import run_cases
from virnucpro_pl.cli.fit import fit  # noqa: F401 - imported once, not in each child
from virnucpro_pl.cli.main import main
from virnucpro_pl.cli.predict import predict  # noqa: F401 - imported once, not in each child
from virnucpro_pl.compare.original_file import OriginalFile
from virnucpro_pl.embeddings.embedding_file import EmbeddingFile
from virnucpro_pl.embeddings.pair_datamodule import PairStore, join
from virnucpro_pl.errors import UsageError
from virnucpro_pl.fit.classifier_writer import ClassifierWriter
from virnucpro_pl.input.dna_tokens import DNATokenizer, built_in_tokenizer
from virnucpro_pl.models.classifier import load_classifier
from virnucpro_pl.models.dnabert_s_files import load_dnabert_s
from virnucpro_pl.models.esm2_files import load_esm2

CASES = 50
MEMORY = 512 << 20
"""Bytes that a file of some kilobytes may take."""
LARGE = 64 << 20
"""Bytes of a file that is none of some kilobytes any more, such as an expanded tensor saved."""
CPU = {"device": torch.device("cpu"), "matrix_dtype": torch.float32}
IDS = [f"contig{i}_chunk_1F{i % 3 + 1}" for i in range(7)]


def trial(seed: int, folder: Path) -> dict:
    """Load spoilt files, all but the last by the functions that load them, that by the command."""

    def check(number: int, place: Path) -> str | None:
        rng = random.Random(f"weights {seed} {number}")
        name = rng.choice(sorted(KINDS))
        run = KINDS[name]
        if number == CASES - 1:
            run = check_training if rng.random() < 0.3 else check_command
        logging.disable(logging.CRITICAL if number < CASES - 1 else logging.NOTSET)
        said: list[str] = [name]
        try:
            wrong = run(rng, place, said)
        except UsageError as error:
            wrong = f"refused an untouched file: {error}" if len(said) == 1 else None
        except LibraryDiesError:
            with (folder / "library").open("a") as deaths:
                deaths.write(f"{number}\n")
            wrong = None
        if (place / "bait").exists():
            wrong = f"ran the file's code; {wrong}"
        return f"{', '.join(said)}: {wrong}" if wrong else None

    found = run_cases(check, CASES, folder, MEMORY)
    deaths, what = folder / "library", "spoilt weights and embedding files"
    of_library = len(deaths.read_text().split()) if deaths.exists() else 0
    counts = {"count": CASES, "library_dies": of_library}
    return {"ok": not found, "what": what, **counts, "found": found}


# Torch files --------------------------------------------------------------------------------------


def write_torch(rng: random.Random, place: Path, said: list[str], content: Any, tensors: Any):
    """Spoil the tensors in a content, and write it."""
    path = place / rng.choice(["weights.pt", "weights.pth", "weights.ckpt", "weights.bin"])
    try:
        for _ in range(rng.choice([0, 0, 1, 1, 2])):
            said.append(mutate.edit_tensors(rng, tensors, place / "bait"))
        said.append(mutate.save_torch(rng, content, path))
    except (RuntimeError, NotImplementedError, UnicodeEncodeError):  # it cannot be saved so
        torch.save({}, path)
        said.append("empty")
    if rng.random() < 0.3:
        said.append(mutate.spoil_file(rng, path))
    said[:] = list(filter(None, said))
    return path


def read_torch(path: Path, *classes: Any) -> Any:
    """What torch itself finds; a head within a zip file is read only where nothing is mapped."""
    with torch.serialization.safe_globals([argparse.Namespace, *classes]):
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except RuntimeError:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)


def check_fair_esm(rng: random.Random, place: Path, said: list[str]) -> str | None:
    content = tiny.fair_esm_file(rng.randrange(99))
    if rng.random() < 0.3:
        said.append(mutate.edit_namespace(rng, content["cfg"]["model"]))
    path = write_torch(rng, place, said, content, content["model"])
    encoder, _ = load_esm2(None, path, **CPU)
    found = read_torch(path)
    sizes = vars(found["cfg"]["model"])
    names = ("encoder_layers", "encoder_embed_dim", "encoder_attention_heads", "token_dropout")
    wrong = check_sizes(encoder.config, [sizes[name] for name in names])
    return wrong or check_esm2(encoder, found["model"], FAIR_ESM)


def check_state_dict(rng: random.Random, place: Path, said: list[str]) -> str | None:
    """A state dict of ESM-2, bare or in a training's checkpoint, with a config.json beside it."""
    tensors, config = tiny.transformers_esm(rng.randrange(99))
    wrapper = rng.choice(["", "state_dict", "model_state_dict", "model", "module"])
    content = {wrapper: tensors, "epoch": 3} if wrapper else tensors
    config = write_config(rng, place, said, config)
    path = write_torch(rng, place, said, content, tensors)
    encoder, _ = load_esm2(None, path, **CPU)
    found = read_torch(path)
    found = next((found[n] for n in WRAPPERS if isinstance(found.get(n), dict)), found)
    return check_sizes(encoder.config, config) or check_esm2(encoder, found, TRANSFORMERS)


WRAPPERS = ("state_dict", "model_state_dict", "model", "module")
SIZES = ("num_hidden_layers", "hidden_size", "num_attention_heads", "token_dropout")


def write_config(rng: random.Random, place: Path, said: list[str], config: dict) -> list[Any]:
    """Write a config.json; the sizes that it tells, if it can be read."""
    for _ in range(rng.choice([0, 0, 0, 1, 1, 2])):
        said.append(mutate.edit_table(rng, config))
    said.append(mutate.write_json(rng, config, place / "config.json"))
    if rng.random() < 0.1:
        said.append(mutate.spoil_file(rng, place / "config.json"))
    said[:] = list(filter(None, said))
    try:
        content = json.loads((place / "config.json").read_text())
        return [content.get(name, name == "token_dropout" and False) for name in SIZES]
    except (ValueError, RecursionError, AttributeError):
        return []


def check_sizes(config: Any, sizes: list[Any]) -> str | None:
    """Numbers are taken as they are, and nothing else for a number."""
    plain = [type(value) for value in sizes[:3]] == [int] * 3
    if not plain or sizes != [config.layers, config.width, config.heads, config.token_dropout]:
        return f"{config} of {sizes!r}"
    return None


def check_transformers(rng: random.Random, place: Path, said: list[str]) -> str | None:
    """A folder with safetensors, ESM-2's or DNABERT-S's."""
    esm2 = rng.random() < 0.5
    tensors, config = (tiny.transformers_esm if esm2 else tiny.dnabert_s)(rng.randrange(99))
    if rng.random() < 0.5:
        said.append(mutate.edit_tensors(rng, tensors, place / "bait"))
    folder = place / "model"
    folder.mkdir()
    sizes = write_config(rng, folder, said, config)
    path = folder / "model.safetensors"
    try:
        save_file({name: t.contiguous() for name, t in tensors.items()}, path)
    except Exception:  # noqa: BLE001 - it cannot be saved so
        save_file({}, path)
        said.append("empty")
    if path.stat().st_size > LARGE:
        return None
    if rng.random() < 0.4:
        said.append(mutate.spoil_file(rng, path))
    if rng.random() < 0.1:
        said.append(spoil_header(rng, path))
    if rng.random() < 0.1:
        said.append(split_file(rng, path, sorted(map(str, tensors))))
        path = folder / "model-1.safetensors"
    load: Callable[..., Any] = load_esm2 if esm2 else load_dnabert_s
    encoder, _ = load(None if esm2 else "published", folder, **CPU)
    if path.suffix != ".safetensors":
        return None
    found = load_bytes(path.read_bytes())
    if esm2:
        return check_sizes(encoder.config, sizes) or check_esm2(encoder, found, TRANSFORMERS)
    return check_dnabert_s(encoder, found)


def spoil_header(rng: random.Random, path: Path) -> str:
    """Change numbers in the head of a safetensors file."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    head = data[8 : 8 + size].decode(errors="replace")
    old = str(rng.choice([16, 33, 64, 512, 1024]))
    head = head.replace(old, str(rng.choice([0, 17, 2**31, 2**62, 10**25])), 1)
    path.write_bytes(len(head.encode()).to_bytes(8, "little") + head.encode() + data[8 + size :])
    return "head"


def split_file(rng: random.Random, path: Path, names: list[str]) -> str:
    """Name a file by an index, as large models have it, or name what is none."""
    other = path.with_name("model-1.safetensors")
    path.rename(other)
    odd = ["../../../../etc/passwd", "", ".", "/dev/null", "model-2.safetensors", 7, None]
    file = rng.choice([other.name] * 4 + odd)
    index: Any = {"weight_map": dict.fromkeys(names, file)}
    if rng.random() < 0.3:
        index = rng.choice([[], {}, {"weight_map": []}, {"weight_map": {}}, "x"])
    return f"index {file} " + mutate.write_json(
        rng, index, path.with_name("model.safetensors.index.json")
    )


def check_authors(rng: random.Random, place: Path, said: list[str]) -> str | None:
    """A folder of DNABERT-S as its authors have it."""
    tensors, config = tiny.dnabert_s(rng.randrange(99))
    path = write_torch(rng, place, said, tensors, tensors)
    path = path.rename(place / "pytorch_model.bin")
    write_config(rng, place, said, config)
    encoder, _ = load_dnabert_s("published", place, **CPU)
    found = read_torch(path)
    found = next((found[n] for n in WRAPPERS if isinstance(found.get(n), dict)), found)
    return check_dnabert_s(encoder, found)


FAIR_ESM = {
    "qkv": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    "out": ["self_attn.out_proj"],
    "attention_norm": ["self_attn_layer_norm"],
    "feedforward_norm": ["final_layer_norm"],
    "fc1": ["fc1"],
    "fc2": ["fc2"],
}
TRANSFORMERS = {
    "qkv": ["attention.self.query", "attention.self.key", "attention.self.value"],
    "out": ["attention.output.dense"],
    "attention_norm": ["attention.LayerNorm"],
    "feedforward_norm": ["LayerNorm"],
    "fc1": ["intermediate.dense"],
    "fc2": ["output.dense"],
}
DNABERT_S = {
    "qkv": ["attention.self.Wqkv"],
    "out": ["attention.output.dense"],
    "attention_norm": ["attention.output.LayerNorm"],
    "gated": ["mlp.gated_layers"],
    "wo": ["mlp.wo"],
    "feedforward_norm": ["mlp.layernorm"],
}


def check_esm2(encoder: nn.Module, found: dict[str, Tensor], names: dict) -> str | None:
    fair_esm = names is FAIR_ESM
    table = "embed_tokens" if fair_esm else "embeddings.word_embeddings"
    layer = "layers" if fair_esm else "encoder.layer"
    last = ("" if fair_esm else "encoder.") + "emb_layer_norm_after"
    return compare(encoder, found, {"embed_tokens": table, "final_norm": last}, layer, names)


def check_dnabert_s(encoder: nn.Module, found: dict[str, Tensor]) -> str | None:
    top = {
        "embed_tokens": "embeddings.word_embeddings",
        "embed_types": "embeddings.token_type_embeddings",
        "embed_norm": "embeddings.LayerNorm",
    }
    return compare(encoder, found, top, "encoder.layer", DNABERT_S)


def compare(
    encoder: nn.Module, found: dict[str, Tensor], top: dict[str, str], layer: str, names: dict
) -> str | None:
    """Compare all parameters with the tensors that stand behind one prefix."""
    table = next(iter(top.values()))
    prefix = next(key for key in found if key.endswith(f"{table}.weight"))
    prefix = prefix.removesuffix(f"{table}.weight")
    wanted = {ours: [theirs] for ours, theirs in top.items()}
    for n in range(len(encoder.layers)):
        for ours, parts in names.items():
            wanted[f"layers.{n}.{ours}"] = [f"{layer}.{n}.{part}" for part in parts]
    for name, value in encoder.named_parameters():
        module, _, kind = name.rpartition(".")
        parts = [found[f"{prefix}{part}.{kind}"] for part in wanted[module]]
        expected = torch.cat([part.float() for part in parts])
        if value.dtype != torch.float32 or not torch.equal(
            value.nan_to_num(9.5), expected.nan_to_num(9.5)
        ):
            return f"{name} is not as in the file"
    return None


# Classifiers --------------------------------------------------------------------------------------


class MLPClassifier(nn.Module):
    """As the authors pickle it."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        super().__init__()
        hidden, features = state["hidden_layer.weight"].shape
        self.hidden_layer = nn.Linear(features, hidden)
        self.bn1 = nn.BatchNorm1d(hidden)
        self.output_layer = nn.Linear(hidden, 2)
        self.dropout = nn.Dropout(0.5)
        self.load_state_dict(state)


MLPClassifier.__module__, MLPClassifier.__qualname__ = "__main__", "MLPClassifier"


def check_classifier(rng: random.Random, place: Path, said: list[str]) -> str | None:
    state = tiny.classifier(rng.randrange(99))
    form = rng.choice(["module", "state dict", "checkpoint"])
    said[0] = f"classifier, {form}"
    parts = [MLPClassifier, nn.Linear, nn.BatchNorm1d, nn.Dropout, nn.ReLU, set, OrderedDict]
    if form == "module":
        import __main__

        __main__.MLPClassifier = MLPClassifier
        module = MLPClassifier(state)
        if rng.random() < 0.3:
            said.append(edit_module(rng, module, place))
        path = write_torch(rng, place, said, module, {})
    elif form == "state dict":
        path = write_torch(rng, place, said, state, state)
    else:
        tensors = {f"classifier.{name}": tensor for name, tensor in state.items()}
        content = {"state_dict": tensors, **fitted()}
        if rng.random() < 0.4:
            said.append(mutate.edit_table(rng, content))
            tensors = tensors if content.get("state_dict") is tensors else {}
        if rng.random() < 0.3 and isinstance(content.get("calibration"), dict):
            said.append(mutate.edit_table(rng, content["calibration"]))
        path = write_torch(rng, place, said, content, tensors)
    classifier = load_classifier(str(path))
    found = read_torch(path, (MLPClassifier, "__main__.MLPClassifier"), *parts)
    if isinstance(found, nn.Module):
        expected = {
            f"{child}.{name}": tensor
            for child in ("hidden_layer", "bn1", "output_layer")
            for table in ("_parameters", "_buffers")
            for name, tensor in vars(vars(found)["_modules"][child])[table].items()
        }
    else:
        inner = found.get("state_dict")
        expected = inner if isinstance(inner, dict) else found
        ours = {k: v for k, v in expected.items() if str(k).startswith("classifier.")}
        expected = {str(k).removeprefix("classifier."): v for k, v in (ours or expected).items()}
        known = found if isinstance(inner, dict) else {}
        for name in ("chunk_length", "embedders", "calibration"):
            value = getattr(classifier, name)
            value = value._asdict() if name == "calibration" and value is not None else value
            if known.get(name) != value or isinstance(value, bool):
                return f"{name} is {value}, not {known.get(name)!r}"
    expected.setdefault("bn1.num_batches_tracked", torch.tensor(0))  # that nothing reads
    for name, value in classifier.state_dict().items():
        given = expected[name].to(value.dtype).reshape(value.shape)
        if not torch.equal(value, given) or not value.isfinite().all():
            return f"{name} is not as in the file"
    features = torch.ones(3, classifier.features)
    sums = classifier.probabilities(features).sum(1)
    return None if sums.isnan().any() or (sums - 1).abs().max() < 1e-5 else "no probabilities"


def fitted() -> dict[str, Any]:
    """What `fit` keeps beside the tensors."""
    return {
        "epoch": 3,
        "hyper_parameters": {"learning_rate": 0.1},
        "chunk_length": 500,
        "embedders": {"esm2": {"model": "x"}, "dnabert_s": {"model": "y"}},
        "calibration": {
            "temperature": 1.5,
            "loss_log_odds": 0.0,
            "record_centre": 0.1,
            "record_slope": 1.0,
            "record_growth": 0.5,
            "prevalence": 0.3,
        },
    }


def edit_module(rng: random.Random, module: nn.Module, place: Path) -> str:
    """Change what a pickled module has in it."""
    child = rng.choice(["hidden_layer", "bn1", "output_layer"])

    def put(name: str, value: Any) -> Callable[[], None]:
        return lambda: vars(module)["_modules"].__setitem__(name, value)

    edits: dict[str, Callable[[], Any]] = {
        "code": lambda: vars(module).__setitem__("x", mutate.Bait(place / "bait")),
        "child lost": lambda: vars(module)["_modules"].pop(child),
        "child is none": put(child, rng.choice(mutate.VALUES)),
        "other child": put(child, nn.Conv1d(1, 1, 1)),
        "own class": put(child, MLPClassifier(tiny.classifier(0))),
        "attributes lost": lambda: vars(module).pop("_modules"),
        "table is none": lambda: vars(vars(module)["_modules"][child]).update(_buffers=3),
        "tensor lost": lambda: vars(vars(module)["_modules"][child])["_parameters"].popitem(),
        "tensor is none": lambda: vars(vars(module)["_modules"][child])["_parameters"].update(
            weight=rng.choice(mutate.VALUES)
        ),
    }
    return mutate.pick(rng, edits)


# Embedding files ----------------------------------------------------------------------------------


def write_hdf5(rng: random.Random, path: Path, said: list[str]) -> Path:
    tiny.save_embeddings(path, IDS, rng.randrange(99))
    with h5py.File(path, "r+") as file:
        if rng.random() < 0.5:
            file["lengths"] = np.arange(1, len(IDS) + 1, dtype=np.int32)
        if rng.random() < 0.2:
            file["failed"] = np.array([2], np.int64)
    for _ in range(rng.choice([0, 1, 1, 2])):
        try:
            said.append(mutate.edit_hdf5(rng, path))
        except Exception as error:  # noqa: BLE001 - of a file that is spoilt already
            said.append(f"something that cannot be done: {error}")
    if rng.random() < 0.4:
        said.append(mutate.spoil_file(rng, path))
    if library_dies(path):
        raise LibraryDiesError
    return path


class LibraryDiesError(Exception):
    """HDF5 itself crashes with a file, or does not come to an end."""


def library_dies(path: Path) -> bool:
    """Whether HDF5 does, as its plainest reader."""
    pid = os.fork()
    if not pid:
        signal.setitimer(signal.ITIMER_PROF, 3)
        for name in ("/", "embeddings", "sequence_ids", "lengths", "failed"):
            with suppress(BaseException), h5py.File(path) as file:  # an error is no end of it
                dict(file[name].attrs)
                if name != "/" and file[name].nbytes < MEMORY:
                    file[name][:]
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    return status != 0


def check_embeddings(rng: random.Random, place: Path, said: list[str]) -> str | None:
    path = write_hdf5(rng, place / "e.h5", said)
    with EmbeddingFile(path, foreign=rng.random() < 0.2) as file:
        ids, vectors = file.ids, file.rows(np.arange(len(file)))
        blocks = [(names, rows) for names, rows in file.row_blocks()]
        lengths, failed, width, _ = file.lengths, file.failed, file.width, file.chunk_length
        for row, name in enumerate(ids):
            if ids.count(name) == 1 and not same(file[name], vectors[row]):
                return "a vector by its id is another one's"
    with h5py.File(path) as raw:
        rows = raw["embeddings"][:].astype(np.float32)
        names = [name.decode() for name in raw["sequence_ids"][:].tolist()]
        known = {name: raw[name][:] for name in ("lengths", "failed") if name in raw}
    if names != ids or not same(rows, vectors) or vectors.shape != (len(names), width):
        return "ids or vectors are not as in the file"
    if [name for block, _ in blocks for name in block] != ids:
        return "blocks are not the rows"
    if lengths is not None and lengths.tolist() != known["lengths"].tolist():
        return f"lengths are {lengths}, not {known['lengths']}"
    if failed.tolist() != known.get("failed", np.zeros(0)).tolist():
        return f"failed are {failed}, not {known['failed']}"
    return None


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return np.array_equal(a, b, equal_nan=True)


def check_pair(rng: random.Random, place: Path, said: list[str]) -> str | None:
    """Two embedding files of the same ORFs, joined by id."""
    first = write_hdf5(rng, place / "dna.h5", said)
    second = tiny.save_embeddings(place / "proteins.h5", IDS[::-1], 5)
    join(place, EmbeddingFile(first), EmbeddingFile(second))
    store = PairStore(place, first, second)
    got = store.features(np.arange(len(store)))
    with h5py.File(first) as a, h5py.File(second) as b:
        names = [name.decode() for name in a["sequence_ids"][:].tolist()]
        rows = dict(zip(b["sequence_ids"].asstr()[:].tolist(), b["embeddings"][:], strict=True))
        expected = [np.hstack([v, rows[n]]) for n, v in zip(names, a["embeddings"][:], strict=True)]
    if store.ids(np.arange(len(store))) != names or not same(got, np.array(expected, np.float32)):
        return "features are not those of the files"
    return None


def check_original(rng: random.Random, place: Path, said: list[str]) -> str | None:
    """A file of embeddings as VirNucPro writes it."""
    vectors = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
    names = [f"p{i}" for i in range(4)]
    entries = [
        {"label": n, "mean_representation": v.tolist()} for n, v in zip(names, vectors, strict=True)
    ]
    data = rng.choice([vectors, list(vectors), entries, vectors.tolist()])
    content: dict[str, Any] = {"nucleotide": names, "data": data}
    if rng.random() < 0.5:
        key = rng.choice(sorted(content))
        content[key] = rng.choice(
            [*mutate.VALUES, names, vectors, names[:3], [[1], "x"], [vectors]]
        )
        said.append(key)
    path = write_torch(rng, place, said, content, {})
    file = OriginalFile(path)
    got = file.rows(np.arange(len(file)))
    names = [name.decode() for block in file.id_blocks() for name in block]
    found = read_torch(path)
    kind = next(kind for kind in ("nucleotide", "proteins") if kind in found)
    rows = found["data"]
    if isinstance(rows, list) and rows and isinstance(rows[0], dict):
        rows = [entry["mean_representation"] for entry in rows]
    expected = np.array([np.asarray(row, np.float32) for row in rows]).reshape(got.shape)
    return None if names == found[kind] and same(got, expected) else "not as in the file"


# Tokenizers and the command -----------------------------------------------------------------------


def check_tokenizer(rng: random.Random, place: Path, said: list[str]) -> str | None:
    path = place / "tokenizer.json"
    content = json.loads(built_in_tokenizer().to_str())
    part = content
    for _ in range(rng.choice([0, 1, 1, 2, 3])):
        inner = [value for value in part.values() if isinstance(value, dict) and value]
        part = rng.choice(inner) if inner and rng.random() < 0.6 else part
        said.append(mutate.edit_table(rng, part))
        if not part:
            break
    said.append(mutate.write_json(rng, content, path))
    said[:] = list(filter(None, said))
    if rng.random() < 0.3:
        said.append(mutate.spoil_file(rng, path))
    tokenizer = DNATokenizer(path)
    tokenizer.load()
    tokens, counts = tokenizer.encode([b"ACGTACGTNN", b"ACG"])
    if len(counts) != 2 or tokens.max() >= tokenizer.vocabulary or tokens.min() < 0:
        return f"tokens {tokens} of {tokenizer.vocabulary}"
    return None


def check_command(rng: random.Random, place: Path, said: list[str]) -> str | None:
    """Run the command with a spoilt file: exit code 0 and all rows, 3, or 2 and nothing."""
    output = place / "out"
    words = ["predict", "-o", str(output), "--trainer.accelerator", "cpu"]
    words += ["--trainer.precision", "32", "--trainer.enable_progress_bar", "false"]
    if rng.random() < 0.5:
        content = tiny.fair_esm_file(0)
        weights = write_torch(rng, place, said, content, content["model"])
        (place / "in.fa").write_text(">a\nMKVL\n>b\nWWAVK\n")
        words += ["--config", "esm2.yaml", "--model.weights", str(weights)]
        words += ["--data.path", str(place / "in.fa"), "--data.num_workers", "0"]
    else:
        first = write_hdf5(rng, place / "dna.h5", said)
        second = tiny.save_embeddings(place / "proteins.h5", IDS, 5)
        words += ["--config", "classify.yaml", "--model.classifier", "random"]
        words += ["--data.dnabert_s", str(first), "--data.esm2", str(second)]
    code = exit_code(words)
    if code not in (0, 2, 3) or (code == 0) != output.exists():
        return f"exit code {code}"
    if code == 2 and len(said) == 1:
        return "refused an untouched file"
    return None


def check_training(rng: random.Random, place: Path, said: list[str]) -> str | None:
    """Go on with a training whose state is spoilt: to the same weights, or exit code 2."""
    words = ["fit", "--config", "train_classifier.yaml", "--trainer.accelerator", "cpu"]
    words += ["--trainer.enable_progress_bar", "false", "--trainer.max_epochs", "2"]
    for name, seed in (("viral", 1), ("other", 2)):
        ids = [f"{name}{i}_chunk_1F1" for i in range(40)]
        for kind in ("dnabert_s", "esm2"):
            path = tiny.save_embeddings(place / f"{name}_{kind}.h5", ids, seed)
            words += [f"--data.{name}.{kind}", str(path)]
    words += ["--writer.path"]
    whole, broken = str(place / "whole"), str(place / "broken")
    if code := exit_code([*words, whole]):
        return f"an untouched training: exit code {code}"
    ClassifierWriter.on_fit_end, end = lambda *_: os._exit(9), ClassifierWriter.on_fit_end
    pid = os.fork()
    if not pid:
        exit_code([*words, broken])
        os._exit(1)
    os.waitpid(pid, 0)
    ClassifierWriter.on_fit_end = end
    said.append(mutate.spoil_file(rng, place / "broken.parts" / "state.ckpt"))
    code = exit_code([*words, broken])
    if code == 2:
        return None
    one, other = (load_classifier(f"{folder}/best.ckpt").state_dict() for folder in (whole, broken))
    same = all(torch.equal(one[name], other[name]) for name in one)
    return None if code == 0 and same else f"exit code {code}, the same weights: {same}"


def exit_code(words: list[str]) -> int:
    """Run the command."""
    try:
        main(words)
    except SystemExit as end:
        return end.code
    return 0


KINDS: dict[str, Callable[[random.Random, Path, list[str]], str | None]] = {
    "fair-esm": check_fair_esm,
    "state dict": check_state_dict,
    "transformers": check_transformers,
    "authors": check_authors,
    "classifier": check_classifier,
    "embeddings": check_embeddings,
    "pair": check_pair,
    "original": check_original,
    "tokenizer": check_tokenizer,
}
