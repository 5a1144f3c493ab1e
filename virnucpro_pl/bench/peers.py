"""The peers: fair-esm and transformers on padded batches, and VirNucPro's own settings."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from importlib import import_module
from itertools import cycle
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from virnucpro_pl.bench.case import DNA, Case
from virnucpro_pl.bench.meter import Row, measured
from virnucpro_pl.errors import UsageError
from virnucpro_pl.input.protein_tokens import ProteinTokenizer
from virnucpro_pl.models import dnabert_s
from virnucpro_pl.models.esm2 import SIZES

_ORIGINAL_TOKENS = 2048
"""Tokens of a batch in VirNucPro's own setting (Li et al. 2025)."""
_BUDGETS = {"cuda": (8_192, 32_768, 131_072), "cpu": (512, 1_024, 2_048, 4_096)}
"""Places of a padded batch; the fastest counts."""


def peers(case: Case, authors_code: ModuleType | None) -> Iterator[Row]:
    """Measure all peers of the case's model.

    Args:
        case: Model and sequences.
        authors_code: That of DNABERT-S, see `import_authors_code`.
    """
    if case.model == DNA:
        name = "VirNucPro's setting: fp32, one sequence at a time"
        if authors_code:
            yield one_at_a_time(case, f"{name}, authors' code", dnabert_s_of(authors_code, case))
        yield one_at_a_time(case, f"{name}, this network", this_network(case))
        return
    precision = "half" if case.dtype == torch.float16 else "fp32"
    yield _best(case, f"fair-esm, {precision}", fair_esm(case, case.dtype))
    yield _best(case, f"transformers, {precision}, SDPA", transformers(case))
    name = "VirNucPro's setting: fair-esm, fp32, 2,048 tokens"
    yield padded(case, name, _ORIGINAL_TOKENS, fair_esm(case, torch.float32), case.seconds / 3)


def fair_esm(case: Case, dtype: torch.dtype) -> Callable[[Tensor], Any]:
    """fair-esm's own class."""
    from esm.model.esm2 import ESM2

    config = SIZES[case.model]
    with torch.device(case.device):
        network = ESM2(config.layers, config.width, config.heads).to(dtype).eval()
    return lambda tokens: network(tokens, repr_layers=[config.layers])


def transformers(case: Case) -> Callable[[Tensor], Any]:
    """Transformers' EsmModel with SDPA."""
    from transformers import EsmConfig, EsmModel

    config = SIZES[case.model]
    esm = EsmConfig(
        vocab_size=33,
        hidden_size=config.width,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        intermediate_size=4 * config.width,
        position_embedding_type="rotary",
        token_dropout=True,
        emb_layer_norm_before=False,
        mask_token_id=32,
        pad_token_id=1,
    )
    esm._attn_implementation = "sdpa"
    with torch.device(case.device):
        network: nn.Module = EsmModel(esm, add_pooling_layer=False)
    network.to(case.dtype).eval()
    return lambda tokens: network(tokens, attention_mask=tokens != 1)


def _best(case: Case, name: str, forward: Callable[[Tensor], Any]) -> Row:
    """The fastest of some batch sizes."""
    rows = [
        padded(case, f"{name}, {budget:,} places", budget, forward, case.seconds / 9)
        for budget in _BUDGETS[case.device.type]
    ]
    return max(rows, key=lambda row: row.tokens_per_second)


def padded(
    case: Case, name: str, budget: int, forward: Callable[[Tensor], Any], seconds: float
) -> Row:
    """A peer on padded batches of at most `budget` places, sorted by length as its loader does."""
    batches = list(_padded_batches(case.sample, budget))
    order = np.random.default_rng(0).permutation(len(batches))  # lengths mixed in time
    counted = [(batches[i], int((batches[i] != 1).sum())) for i in order]
    return _in_turn(case, name, counted, forward, seconds)


def _in_turn(
    case: Case,
    name: str,
    batches: list[tuple[Tensor, int]],
    forward: Callable[[Tensor], Any],
    seconds: float,
) -> Row:
    """A peer on batches (n, L), each with its number of tokens, copied to the device in turn."""
    with measured(case) as timed, torch.inference_mode():
        began = time.perf_counter()
        forward(batches[0][0].to(case.device))
        case.wait()
        timed.warm_up = time.perf_counter() - began
        began = time.perf_counter()
        for batch, tokens in cycle(batches):
            forward(batch.to(case.device))
            case.wait()
            timed.seconds = time.perf_counter() - began
            timed.tokens += tokens
            timed.sequences += len(batch)
            if timed.seconds >= seconds:
                break
    return timed.row(name)


def _padded_batches(sample: list[bytes], budget: int) -> Iterator[Tensor]:
    """Batches (n, L) of at most `budget` places, of sequences sorted by length."""
    tokenizer = ProteinTokenizer()
    waiting: list[Tensor] = []
    for sequence in sorted(sample, key=len):
        tokens, _ = tokenizer.encode([sequence])
        if (len(waiting) + 1) * len(tokens) > budget and waiting:
            yield nn.utils.rnn.pad_sequence(waiting, batch_first=True, padding_value=1)
            waiting = []
        waiting.append(torch.from_numpy(tokens))
    yield nn.utils.rnn.pad_sequence(waiting, batch_first=True, padding_value=1)


def import_authors_code(package: str) -> ModuleType:
    """DNABERT-S as its authors wrote it.

    Args:
        package: Importable package that holds their `bert_layers.py` and what that imports. In
            MAGICS-LAB/DNABERT_S it lies in evaluate/model_codes, and the `bert_padding.py` that it
            imports in train/pretrain/DNABERT2_MIX.

    Raises:
        UsageError: If there is none, or something that it needs is not installed.
    """
    try:
        code = import_module(f"{package}.bert_layers")
    except (ImportError, TypeError) as error:  # TypeError for a relative name
        raise UsageError(f"{package} does not give DNABERT-S's authors' code: {error}") from error
    if not hasattr(code, "BertModel"):
        raise UsageError(f"{code.__file__} has no BertModel: it is not of DNABERT-S's authors")
    return code


def dnabert_s_of(authors_code: ModuleType, case: Case) -> Callable[[Tensor], Any]:
    """The authors' network, of the published sizes, in fp32."""
    from transformers import BertConfig

    size = dnabert_s.SIZES["published"]
    config = BertConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.width,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        intermediate_size=size.inner,
        layer_norm_eps=size.epsilon,
        attention_probs_dropout_prob=0.0,
        alibi_starting_size=512,
    )
    # Their Triton attention is FP16, and does not compile under a current Triton.
    authors_code.flash_attn_qkvpacked_func = None  # type: ignore[attr-defined]
    network: nn.Module = authors_code.BertModel(config)
    return network.float().to(case.device).eval()


def this_network(case: Case) -> Callable[[Tensor], Any]:
    """This program's DNABERT-S in fp32."""
    encoder, _ = case.embedder().load_encoder(None, case.device, torch.float32)

    def forward(batch: Tensor) -> Any:
        [tokens] = batch
        ends = torch.tensor([0, len(tokens)], dtype=torch.int32, device=case.device)
        return encoder(tokens, ends, len(tokens))

    return forward


def one_at_a_time(case: Case, name: str, forward: Callable[[Tensor], Any]) -> Row:
    """A peer on one sequence (1, T) after the other."""
    tokenizer = case.embedder().tokenizer
    encoded = [torch.from_numpy(tokenizer.encode([s])[0]) for s in case.sample[:200]]
    batches = [(tokens[None], len(tokens)) for tokens in encoded]
    return _in_turn(case, name, batches, forward, case.seconds / 3)
