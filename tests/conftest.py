"""What the tests share: small models in the published formats, sequence files, and processes."""

import argparse
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from functools import lru_cache
from pathlib import Path
from typing import ClassVar, NamedTuple

# Tests run side by side, and threads of one that spin keep the others waiting. Besides, a run in
# this process and one in another have to sum in the same order to be equal bit by bit.
os.environ["OMP_NUM_THREADS"] = "1"

import h5py
import numpy as np
import pytest
import torch
from hypothesis import settings
from safetensors.torch import save_file

from virnucpro_pl.input.dna_tokens import built_in_tokenizer

# The same examples on every machine, however slow it is.
settings.register_profile("same", derandomize=True, deadline=None, database=None)
settings.load_profile("same")

RESIDUES = "LAGVSERTIDPKQNFYMHWCXBUZO"
LAYERS, WIDTH, HEADS = 3, 32, 4
SLACK = 3
"""Times as long as alone may a process take: others run beside it, on few cores."""
PACKAGE_VARIABLES = ("VIRNUCPRO_DISABLE_FP16", "VIRNUCPRO_DISABLE_PACKING")


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items):
    """Leave out what needs a GPU where there is none, and share none between workers."""
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.xdist_group("gpu"))
            if not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))


def pytest_make_parametrize_id(val, argname):
    """Number bytes instead of naming tests by them: what gzip has made differs by worker."""
    return argname if isinstance(val, bytes) else None


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch):
    for name in PACKAGE_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    precision = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(precision)


@pytest.fixture
def bf16_units(monkeypatch):
    """Say of any processor that it has units for bf16, so that 16-mixed is bf16-mixed on it."""
    monkeypatch.setattr("virnucpro_pl.devices.has_bf16_units", lambda: True)


# Models -------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def reference():
    """fair-esm's own ESM2, small, with random numbers in every parameter, norms included."""
    from esm.model.esm2 import ESM2

    torch.manual_seed(0)
    model = ESM2(LAYERS, WIDTH, HEADS, alphabet="ESM-1b", token_dropout=True)
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, std=0.2)
        if "norm" in name and name.endswith("weight"):
            torch.nn.init.normal_(parameter, mean=1.0, std=0.2)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def save_published():
    """Write a state dict of fair-esm's ESM2 as the published files are written."""

    def save(state, path, *, half=False, zipped=True, layers=LAYERS, width=WIDTH, heads=HEADS):
        tensors = {
            f"encoder.{'' if name.startswith('lm_head') else 'sentence_encoder.'}{name}": (
                tensor.half() if half else tensor.clone()
            )
            for name, tensor in state.items()
            if not name.startswith("contact_head")
        }
        config = argparse.Namespace(
            encoder_layers=layers,
            encoder_embed_dim=width,
            encoder_attention_heads=heads,
            token_dropout=True,
            arch="esm2",
        )
        content = {"cfg": {"model": config}, "model": tensors}
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
        return path

    return save


@pytest.fixture(scope="session")
def weights_file(reference, save_published, tmp_path_factory):
    """The reference as a published `.pt` file."""
    path = tmp_path_factory.mktemp("weights") / "tiny.pt"
    return save_published(reference.state_dict(), path)


@pytest.fixture(scope="session")
def poisoned_file(reference, save_published, tmp_path_factory):
    """The reference, but the embedding of W is NaN: exactly the proteins with a W fail."""
    from virnucpro_pl.input.protein_tokens import ProteinTokenizer

    state = {name: tensor.clone() for name, tensor in reference.state_dict().items()}
    tokens, _ = ProteinTokenizer().encode([b"W"])
    state["embed_tokens.weight"][tokens[1]] = torch.nan
    return save_published(state, tmp_path_factory.mktemp("weights") / "poisoned.pt")


@pytest.fixture(scope="session")
def fair_esm_layers(reference):
    """Hidden states (layers + 1, L + 2, D) of one protein, by fair-esm, alone."""
    from esm.data import Alphabet

    convert = Alphabet.from_architecture("ESM-1b").get_batch_converter()

    def compute(sequence, model=reference):
        tokens = convert([("x", sequence)])[2]
        with torch.no_grad():
            out = model(tokens, repr_layers=range(LAYERS + 1))["representations"]
        return torch.stack([out[k][0] for k in range(LAYERS + 1)])

    return compute


@pytest.fixture(scope="session")
def fair_esm_vectors(fair_esm_layers, reference):
    """Mean over residues of the last layer, by fair-esm: (N, D)."""

    def compute(sequences, model=reference):
        return torch.stack([fair_esm_layers(s, model)[-1, 1:-1].mean(0) for s in sequences]).numpy()

    return compute


class PlainDNABERTS:
    """MosaicBERT from its formulas: fp32, dense attention, one sequence at a time.

    `state` has the authors' names, `config` is their config.json.
    """

    SLOPES: ClassVar = {
        4: [2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8],
        12: [2.0**-k for k in range(1, 9)] + [2.0**-0.5, 2.0**-1.5, 2.0**-2.5, 2.0**-3.5],
    }

    def __init__(self, heads, layers=3, width=48, inner=80, vocabulary=4096, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.heads, self.layers = heads, layers
        self.config = {
            "model_type": "bert",
            "num_hidden_layers": layers,
            "hidden_size": width,
            "num_attention_heads": heads,
            "intermediate_size": inner,
            "vocab_size": vocabulary,
            "type_vocab_size": 2,
            "layer_norm_eps": 1e-12,
            "hidden_act": "gelu",
        }
        shapes = {
            "embeddings.word_embeddings.weight": (vocabulary, width),
            "embeddings.token_type_embeddings.weight": (2, width),
            "embeddings.LayerNorm.weight": (width,),
            "embeddings.LayerNorm.bias": (width,),
            "pooler.dense.weight": (width, width),
            "pooler.dense.bias": (width,),
        }
        for n in range(layers):
            at = f"encoder.layer.{n}"
            shapes |= {
                f"{at}.attention.self.Wqkv.weight": (3 * width, width),
                f"{at}.attention.self.Wqkv.bias": (3 * width,),
                f"{at}.attention.output.dense.weight": (width, width),
                f"{at}.attention.output.dense.bias": (width,),
                f"{at}.attention.output.LayerNorm.weight": (width,),
                f"{at}.attention.output.LayerNorm.bias": (width,),
                f"{at}.mlp.gated_layers.weight": (2 * inner, width),
                f"{at}.mlp.wo.weight": (width, inner),
                f"{at}.mlp.wo.bias": (width,),
                f"{at}.mlp.layernorm.weight": (width,),
                f"{at}.mlp.layernorm.bias": (width,),
            }
        self.state = {
            name: 0.1 * torch.randn(shape, generator=generator)
            + (1.0 if "norm.weight" in name.lower() else 0.0)
            for name, shape in shapes.items()
        }

    def norm(self, x, name):
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-12).sqrt()
        return scaled * self.state[f"{name}.weight"] + self.state[f"{name}.bias"]

    def linear(self, x, name):
        return x @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]

    def hidden(self, tokens):
        """Hidden states (layers + 1, T, D) of one sequence of token numbers."""
        word = self.state["embeddings.word_embeddings.weight"][torch.as_tensor(tokens)]
        kind = self.state["embeddings.token_type_embeddings.weight"][0]
        x = self.norm(word + kind, "embeddings.LayerNorm")
        place = torch.arange(len(tokens))
        distance = (place[:, None] - place).abs()
        states = [x]
        for n in range(self.layers):
            at = f"encoder.layer.{n}"
            q, k, v = self.linear(x, f"{at}.attention.self.Wqkv").chunk(3, dim=1)
            heads = []
            for h, slope in enumerate(self.SLOPES[self.heads]):
                size = q.shape[1] // self.heads
                part = slice(h * size, (h + 1) * size)
                scores = q[:, part] @ k[:, part].T / size**0.5 - slope * distance
                heads.append(torch.softmax(scores, dim=1) @ v[:, part])
            attended = self.linear(torch.cat(heads, 1), f"{at}.attention.output.dense")
            x = self.norm(attended + x, f"{at}.attention.output.LayerNorm")
            gate, value = (x @ self.state[f"{at}.mlp.gated_layers.weight"].T).chunk(2, dim=1)
            gelu = 0.5 * gate * (1 + torch.erf(gate / 2**0.5))
            fed = self.linear(gelu * value, f"{at}.mlp.wo")
            x = self.norm(fed + x, f"{at}.mlp.layernorm")
            states.append(x)
        return torch.stack(states)

    def save(self, folder, *, prefix="", form="bin"):
        """Write a checkpoint as the authors do, with the built-in tokenizer."""
        folder.mkdir(parents=True, exist_ok=True)
        state = {f"{prefix}{name}": tensor for name, tensor in self.state.items()}
        if form == "bin":
            torch.save(state, folder / "pytorch_model.bin")
        else:
            save_file(state, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(self.config))
        built_in_tokenizer().save(str(folder / "tokenizer.json"))
        return folder


@pytest.fixture(scope="session")
def plain_dnabert_s():
    """Make an independent DNABERT-S with random numbers in every parameter."""
    return lru_cache(PlainDNABERTS)


# Sequences ----------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def random_proteins():
    """Random proteins of given lengths, without W."""

    def draw(lengths, seed=0):
        generator = np.random.default_rng(seed)
        letters = np.array(list(RESIDUES.replace("W", "")))
        return ["".join(generator.choice(letters, length)) for length in lengths]

    return draw


@pytest.fixture(scope="session")
def write_fasta():
    """Write sequences as FASTA with ids p0, p1, ..."""

    def write(path, sequences):
        path.write_text("".join(f">p{i} protein\n{s}\n" for i, s in enumerate(sequences)))
        return path

    return write


# Processes ----------------------------------------------------------------------------------------


class Ended(NamedTuple):
    """A command that has ended."""

    code: int
    log: str
    """Standard output and error together."""


_PORTS = itertools.count(os.getpid())


def find_free_port():
    """A port that nobody listens on, another one at each call.

    Not one that the system would give to a connection before its command listens there (from
    32,768 on), nor one of another worker of pytest-xdist.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 20
    for number in _PORTS:
        port = 20_000 + 20 * (number % 600) + worker
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return port
    raise AssertionError


class Command:
    """A running command; a variable in their environment tells which processes belong to it."""

    def __init__(self, words, folder, env, stdin):
        self.log_file = folder / f"log-{time.monotonic_ns()}.txt"
        mine = {k: v for k, v in os.environ.items() if k not in PACKAGE_VARIABLES}
        mine |= {"MASTER_PORT": str(find_free_port())}
        self.mark = f"VIRNUCPRO_PL_TEST={os.getpid()}-{time.monotonic_ns()}"
        mine |= {"PYTHONUNBUFFERED": "1", "COLUMNS": "200"} | dict([self.mark.split("=")])
        with self.log_file.open("w") as log:
            self.process = subprocess.Popen(
                [str(word) for word in words],
                cwd=folder,
                env=mine | {k: str(v) for k, v in env.items()},
                stdin=stdin,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.pid = self.process.pid

    @property
    def log(self):
        return self.log_file.read_text(errors="replace")

    def processes(self):
        """Pids of the command that are alive, zombies not counted."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if self.mark.encode() in (folder / "environ").read_bytes().split(b"\0"):
                    state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
                    found += [int(folder.name)] if state != "Z" else []
            except OSError:
                continue
        return sorted(found)

    def rank(self, rank):
        """Pid of a rank that Lightning's own launcher has started, or None."""
        for pid in self.processes():
            try:
                pairs = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
                parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            if parent == self.pid and f"LOCAL_RANK={rank}".encode() in pairs:
                return pid
        return self.pid if rank == 0 else None

    def wait(self, timeout=60):
        """Wait for the end of the command; fail with what it has said if that takes too long."""
        try:
            return Ended(self.process.wait(SLACK * timeout), self.log)
        except subprocess.TimeoutExpired:
            pytest.fail(f"still running after {SLACK * timeout} s:\n{self.log}")

    def wait_for(self, condition, timeout=60):
        """Wait until a condition holds; fail if the command ends first."""
        deadline = time.monotonic() + SLACK * timeout
        while not condition():
            assert self.process.poll() is None, self.log
            assert time.monotonic() < deadline, f"waited too long:\n{self.log}"
            time.sleep(0.02)

    def assert_nothing_left(self, seconds=15):
        """Fail if a process of the command is alive after some seconds."""
        deadline = time.monotonic() + seconds
        while (left := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not left, f"processes {left} are left:\n{self.log}"

    def kill(self, number=signal.SIGKILL):
        """Send a signal to every process of the command."""
        for pid in self.processes():
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                pass


@pytest.fixture
def free_port():
    """Find a port that nobody listens on."""
    return find_free_port


@pytest.fixture
def start(tmp_path):
    """Start a command: `start("predict", ..., env={})`; whatever is left of it is killed."""
    running = []

    def launch(
        *words,
        env=None,
        folder=tmp_path,
        launcher=("-m", "virnucpro_pl"),
        stdin=subprocess.DEVNULL,
    ):
        running.append(Command([sys.executable, *launcher, *words], folder, env or {}, stdin))
        return running[-1]

    yield launch
    for command in running:
        command.kill()
        command.process.wait(10)


@pytest.fixture
def predict_words():
    """Words of a small run on a CPU: weights, input, output, and what else is given."""

    def words(weights, fasta, output, *more, ranks=1):
        return [
            *("predict", "--config", "esm2.yaml", "--trainer.accelerator", "cpu"),
            *("--trainer.enable_progress_bar", "false", "--trainer.precision", "32"),
            *("--model.weights", weights, "--data.path", fasta, "--writer.path", output),
            *("--data.num_workers", 0, "--data.tokens_per_batch", 400),
            *(("--trainer.devices", ranks, "--trainer.strategy", "ddp") if ranks > 1 else ()),
            *more,
        ]

    return words


@pytest.fixture
def predict(start, predict_words):
    """Run a small prediction to its end, and check that no process stays behind."""

    def run(weights, fasta, output, *more, ranks=1, env=None, timeout=90):
        command = start(*predict_words(weights, fasta, output, *more, ranks=ranks), env=env)
        ended = command.wait(timeout)
        command.assert_nothing_left()
        return ended

    return run


# Calls --------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def seeded_classifier():
    """Make a classifier's state dict by seed, running statistics included."""

    def make(features=3328, hidden=512, seed=0):
        torch.manual_seed(seed)
        layers = {
            "hidden_layer": torch.nn.Linear(features, hidden),
            "bn1": torch.nn.BatchNorm1d(hidden),
            "output_layer": torch.nn.Linear(hidden, 2),
        }
        init, norm = torch.nn.init, layers["bn1"]
        init.xavier_uniform_(layers["hidden_layer"].weight)
        init.xavier_uniform_(layers["output_layer"].weight)
        layers["output_layer"].bias.data = torch.tensor([0.05, -0.05])
        init.normal_(norm.running_mean, 0.0, 0.5)
        init.uniform_(norm.running_var, 0.5, 1.5)
        init.uniform_(norm.weight, 0.8, 1.2)
        init.normal_(norm.bias, 0.0, 0.1)
        init.normal_(layers["hidden_layer"].bias, 0.0, 0.1)
        norm.num_batches_tracked += 7
        return {
            f"{layer}.{name}": tensor.clone()
            for layer, module in layers.items()
            for name, tensor in module.state_dict().items()
        }

    return make


@pytest.fixture(scope="session")
def save_classifier(seeded_classifier):
    """Write a seeded classifier as its authors do: the whole module, pickled."""

    class MLPClassifier(torch.nn.Module):
        def __init__(self, features, hidden):
            super().__init__()
            self.hidden_layer = torch.nn.Linear(features, hidden)
            self.bn1 = torch.nn.BatchNorm1d(hidden)
            self.output_layer = torch.nn.Linear(hidden, 2)
            self.dropout = torch.nn.Dropout(0.5)

    MLPClassifier.__module__, MLPClassifier.__qualname__ = "__main__", "MLPClassifier"

    def save(path, features=3328, hidden=512, *, edit=lambda module: None):
        module = MLPClassifier(features, hidden)
        module.load_state_dict(seeded_classifier(features, hidden))
        edit(module)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys.modules["__main__"], "MLPClassifier", MLPClassifier, raising=False)
            torch.save(module, path)
        return path

    return save


@pytest.fixture(scope="session")
def plain_probabilities():
    """P(others) and P(virus) of features (N, F) by the formulas, in double precision: (N, 2)."""

    def compute(state, features):
        w = {name: tensor.double().numpy() for name, tensor in state.items()}
        x = np.asarray(features, np.float64) @ w["hidden_layer.weight"].T + w["hidden_layer.bias"]
        x = (x - w["bn1.running_mean"]) / np.sqrt(w["bn1.running_var"] + 1e-5)
        x = np.maximum(x * w["bn1.weight"] + w["bn1.bias"], 0)
        logits = x @ w["output_layer.weight"].T + w["output_layer.bias"]
        powers = np.exp(logits - logits.max(1, keepdims=True))
        return powers / powers.sum(1, keepdims=True)

    return compute


@pytest.fixture(scope="session")
def formula_vectors():
    """Embeddings (N, width) of strings by a formula, for which no model is needed."""

    def compute(strings, width):
        vectors = np.empty((len(strings), width), np.float32)
        for vector, text in zip(vectors, strings, strict=True):
            h = (sum(ord(c) * (i + 1) for i, c in enumerate(text)) % 9973) / 9973
            vector[:] = [np.sin((j + 1) * h * 0.7 + len(text) * 0.01) for j in range(width)]
        return vectors

    return compute


@pytest.fixture(scope="session")
def write_embeddings():
    """Write an embedding file with what a reader needs, and more if it is given."""

    def write(path, ids, vectors, lengths=None, **attributes):
        with h5py.File(path, "w") as file:
            file["embeddings"] = vectors
            file.create_dataset("sequence_ids", data=list(ids), dtype=h5py.string_dtype())
            if lengths is not None:
                file["lengths"] = np.asarray(lengths, np.int32)
            kind = {"format": "virnucpro-pl embeddings", "format_version": 1, "complete": True}
            file.attrs.update({**kind, **attributes})
        return path

    return write


@pytest.fixture(scope="session")
def read_fasta():
    """Ids (first words) and sequences of a FASTA file."""

    def read(path):
        records = []
        for line in Path(path).read_text().splitlines():
            if line.startswith(">"):
                records.append([line[1:].split()[0], ""])
            else:
                records[-1][1] += line
        return [name for name, _ in records], [letters for _, letters in records]

    return read


@pytest.fixture
def run_main(capfd, tmp_path, monkeypatch):
    """Run the command in this process: its exit code, and what it said."""
    from virnucpro_pl.cli.main import main

    monkeypatch.chdir(tmp_path)

    def run(*words, command="predict"):
        fixed = ("--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false")
        try:
            main([command, *map(str, words), *fixed])
            code = 0
        except SystemExit as end:
            code = end.code
        return Ended(code, "".join(capfd.readouterr()))

    return run


@pytest.fixture
def look_ahead(monkeypatch):
    """Give each batch the one behind it on a CPU, too, as a GPU's loader does."""
    from virnucpro_pl.input import loader

    plain = loader.PackLoader.__iter__
    monkeypatch.setattr(
        loader.PackLoader, "__iter__", lambda self: loader.with_following(plain(self))
    )
