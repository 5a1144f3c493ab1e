import pytest

RUN = r"""
import re, sys
from pathlib import Path
from types import SimpleNamespace
import torch
from lightning.pytorch import Trainer
from virnucpro_pl import ESM2Embedder, HDF5Writer, SequenceDataModule

class Zeros(torch.nn.Module):
    config = SimpleNamespace(name="zeros", width=4, layers=1)
    tokens = 0

    def forward(self, tokens, *others):
        self.tokens += len(tokens)
        return torch.zeros(len(tokens), self.config.width)

class Embedder(ESM2Embedder):
    def load_encoder(self, path, device, matrix_dtype):
        return Zeros(), []

count, distinct = map(int, sys.argv[1:])
with open("x.faa", "w") as file:
    letters = str.maketrans("0123456789", "ACDEFGHIKL")
    marks = (f"{i % distinct:09}".translate(letters) for i in range(count))
    file.writelines(f">protein{i}\n{mark}KLMKVLAAGIVKLMKVLAAG\n" for i, mark in enumerate(marks))
trainer = Trainer(
    accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
    enable_progress_bar=False, enable_model_summary=False,
    callbacks=[HDF5Writer("out.h5", commit_seconds=0)],  # what waits is bounded by bytes and time
)
model = Embedder(weights="random", enable_fp16=False)
trainer.predict(model, SequenceDataModule("x.faa", num_workers=0), return_predictions=False)
assert model.encoder.tokens == distinct * 31
assert Path("out.h5").exists()
# Not ru_maxrss, which begins with the peak of the process that started this one.
print("peak", 1024 * int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]))
"""
FEW, MANY = 20_000, 200_000


@pytest.mark.slow
@pytest.mark.parametrize("copies", [1, 2])
def test_memory_of_a_rank_grows_less_than_200_bytes_a_record(tmp_path, start, copies):
    peaks = []
    for count in (FEW, MANY):
        folder = tmp_path / str(count)
        folder.mkdir()
        (folder / "run.py").write_text(RUN)
        ended = start(count, count // copies, launcher=["run.py"], folder=folder).wait(120)
        assert ended.code == 0, ended.log
        peaks.append(int(ended.log.split("peak ")[1].split()[0]))
    grown = (peaks[1] - peaks[0]) / (MANY - FEW)
    print(f"{grown:.0f} bytes a record")
    assert 20 < grown < 200  # at least what lies in the mapped records
