"""What the tests share: small models in the published formats, sequence files, and processes."""

import argparse
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

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from virnucpro_pl.sequences.dna_tokens import built_in_tokenizer

RESIDUES = "LAGVSERTIDPKQNFYMHWCXBUZO"
LAYERS, WIDTH, HEADS = 3, 32, 4
PACKAGE_VARIABLES = ("VIRNUCPRO_DISABLE_FP16", "VIRNUCPRO_DISABLE_PACKING")


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch):
    for name in PACKAGE_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    precision = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(precision)


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
    from virnucpro_pl.sequences.tokens import ProteinTokenizer

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
            name: 0.2 * torch.randn(shape, generator=generator)
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


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Command:
    """A running command, in a session of its own, so that all its processes can be found."""

    def __init__(self, words, folder, env):
        self.log_file = folder / f"log-{time.monotonic_ns()}.txt"
        mine = {k: v for k, v in os.environ.items() if k not in PACKAGE_VARIABLES}
        mine |= {"OMP_NUM_THREADS": "1", "MASTER_PORT": str(free_port())}
        mine |= {"PYTHONUNBUFFERED": "1", "COLUMNS": "200"}
        with self.log_file.open("w") as log:
            self.process = subprocess.Popen(
                [str(word) for word in words],
                cwd=folder,
                env=mine | {k: str(v) for k, v in env.items()},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.session = self.process.pid

    @property
    def log(self):
        return self.log_file.read_text(errors="replace")

    def processes(self):
        """Pids of the session that are alive, zombies not counted."""
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == self.session and fields[0] != "Z":
                found.append(int(stat.parent.name))
        return found

    def ranks(self):
        """Pid of each rank that runs under the command itself: rank 0, then its children."""
        by_rank = {}
        for pid in self.processes():
            try:
                pairs = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
                parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            rank = next((int(p[11:]) for p in pairs if p.startswith(b"LOCAL_RANK=")), 0)
            if pid == self.session or parent == self.session:
                by_rank[rank] = pid
        return by_rank

    def wait(self, timeout=60):
        """Wait for the end of the command."""
        return Ended(self.process.wait(timeout), self.log)

    def wait_for(self, condition, timeout=60):
        """Wait until a condition holds; fail if the command ends first."""
        deadline = time.monotonic() + timeout
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
def start(tmp_path):
    """Start a command: `start("predict", ..., env={})`; whatever is left of it is killed."""
    running = []

    def launch(*words, env=None, folder=tmp_path, launcher=("-m", "virnucpro_pl")):
        running.append(Command([sys.executable, *launcher, *words], folder, env or {}))
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
