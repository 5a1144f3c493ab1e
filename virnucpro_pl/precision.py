"""Which precision a run uses: one rule, the callback that applies it, and the safety switch.

`VIRNUCPRO_DISABLE_FP16` wins over everything. On a CPU `16-mixed` means `bf16-mixed`, as Lightning
itself substitutes, and where that would be slower than FP32, which is more exact, FP32.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Literal, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.precision import MixedPrecision, Precision

from virnucpro_pl import devices
from virnucpro_pl.switches import env_switch

log = logging.getLogger(__name__)

FP16_SWITCH = "VIRNUCPRO_DISABLE_FP16"
_ALIASES = {"16": "16-mixed", "bf16": "bf16-mixed", "32": "32-true", "64": "64-true"}


def should_use_fp16(env: Mapping[str, str] | None = None) -> bool:
    """Tell whether FP16 is allowed, that is, `VIRNUCPRO_DISABLE_FP16` is not on.

    Raises:
        UsageError: If the variable holds a word that is neither on nor off.
    """
    return not env_switch(FP16_SWITCH, env)


def unify_precision(precision: str | int) -> str:
    """Spell a precision as Lightning's own attribute does: `32` and `"32"` become `32-true`."""
    return _ALIASES.get(str(precision), str(precision))


def resolve_precision(
    precision: str | int,
    *,
    enable_fp16: bool,
    fp16_allowed: bool,
    accelerator: str,
    bf16_units: bool = True,
) -> str:
    """Decide the precision of a run.

    Args:
        precision: What the Trainer has; `32-true` is also Lightning's default.
        enable_fp16: The module's own wish.
        fp16_allowed: Result of `should_use_fp16()`.
        accelerator: Device type the run is on, such as `cpu` or `cuda`.
        bf16_units: Result of `devices.has_bf16_units()`; only on a CPU it matters.

    Returns:
        A precision in Lightning's unified spelling.
    """
    precision = unify_precision(precision)
    if not fp16_allowed:
        return "32-true"
    if not enable_fp16:
        # On a CPU Lightning has made bf16-mixed of a Trainer's 16-mixed: nobody can tell any more.
        reduced = precision.startswith("16-") or (precision, accelerator) == ("bf16-mixed", "cpu")
        return "32-true" if reduced else precision
    if precision == "32-true":
        precision = "16-mixed"
    if accelerator == "cpu" and precision in ("16-mixed", "bf16-mixed"):
        return "bf16-mixed" if bf16_units else "32-true"
    return precision


def run_precision(trainer: Trainer, pl_module: LightningModule) -> str:
    """The precision in which a Trainer will run a module, by the rule.

    Raises:
        UsageError: If `VIRNUCPRO_DISABLE_FP16` holds a word that is neither on nor off.
    """
    return resolve_precision(
        trainer.precision,
        enable_fp16=bool(getattr(pl_module, "enable_fp16", True)),
        fp16_allowed=should_use_fp16(),
        accelerator=trainer.strategy.root_device.type,
        bf16_units=devices.has_bf16_units(),
    )


class PrecisionFromEnv(Callback):
    """Applies the precision rule in `setup`, before the model is built.

    `VIRNUCPRO_DISABLE_FP16` wins, then the module's `enable_fp16`, then the Trainer's precision.
    `Trainer()` and `Trainer(precision="32-true")` look alike to this callback, so in Python only
    `enable_fp16=False` or the variable gives FP32; the command line can tell them apart.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Swap the Trainer's precision plugin where the rule asks for another.

        Raises:
            UsageError: If the variable holds a word that is neither on nor off.
        """
        before = unify_precision(trainer.precision)
        # Nodes may have different processors, and one result has one precision: that of rank 0.
        after = trainer.strategy.broadcast(run_precision(trainer, pl_module))
        if after != before:
            device = trainer.strategy.root_device.type
            trainer.strategy.precision_plugin = _plugin(after, device)
            why = f"enable_fp16=False or {FP16_SWITCH}=1 give FP32"
            if after == "32-true":
                why = f"enable_fp16 is False, {FP16_SWITCH} is on, or a CPU has no bf16 units"
            log.info("Precision %s instead of the Trainer's %s (%s)", after, before, why)
        self._forbid_tf32(trainer)

    def on_predict_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Keep TF32 off on every batch, whoever turned it on since."""
        self._forbid_tf32(trainer)

    @staticmethod
    def _forbid_tf32(trainer: Trainer) -> None:
        if unify_precision(trainer.precision) == "32-true":
            torch.set_float32_matmul_precision("highest")


def _plugin(precision: str, device: str) -> Precision:
    if precision == "32-true":
        return Precision()
    # resolve_precision turns nothing into another true or double precision, only into mixed ones.
    return MixedPrecision(cast('Literal["16-mixed", "bf16-mixed"]', precision), device)
