import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.precision import MixedPrecision, Precision

from virnucpro_pl import PrecisionFromEnv, should_use_fp16
from virnucpro_pl.errors import UsageError
from virnucpro_pl.precision import resolve_precision, unify_precision
from virnucpro_pl.switches import env_switch


def test_should_use_fp16_default_is_true():
    assert should_use_fp16({}) is True


def test_should_use_fp16_reads_the_environment(monkeypatch):
    assert should_use_fp16() is True
    monkeypatch.setenv("VIRNUCPRO_DISABLE_FP16", "1")
    assert should_use_fp16() is False


@pytest.mark.parametrize("word", ["1", "true", "yes", "on", "TRUE", " On ", "Yes\t"])
def test_should_use_fp16_switch_on_is_false(word):
    assert should_use_fp16({"VIRNUCPRO_DISABLE_FP16": word}) is False


@pytest.mark.parametrize("word", ["", "0", "false", "no", "off", " ", "FALSE", " Off "])
def test_should_use_fp16_switch_off_is_true(word):
    assert should_use_fp16({"VIRNUCPRO_DISABLE_FP16": word}) is True


@pytest.mark.parametrize("word", ["tru", "2", "-1", "y", "disable", "none", "1 1"])
def test_env_switch_typo_raises_with_the_words_that_count(word):
    with pytest.raises(UsageError, match=r"VIRNUCPRO_DISABLE_FP16=.*1, true, yes, on"):
        env_switch("VIRNUCPRO_DISABLE_FP16", {"VIRNUCPRO_DISABLE_FP16": word})


ALL = ("16-mixed", "bf16-mixed", "16-true", "bf16-true", "32-true", "64-true")


@pytest.mark.parametrize("accelerator", ["cpu", "cuda"])
@pytest.mark.parametrize("precision", ALL)
@pytest.mark.parametrize("enable_fp16", [True, False])
def test_resolve_switch_on_is_always_single(precision, enable_fp16, accelerator):
    options = {"enable_fp16": enable_fp16, "fp16_allowed": False, "accelerator": accelerator}
    assert resolve_precision(precision, **options) == "32-true"


@pytest.mark.parametrize(
    ("precision", "enable_fp16", "accelerator", "expected"),
    [
        ("16-mixed", False, "cuda", "32-true"),
        ("16-true", False, "cuda", "32-true"),
        ("16-mixed", False, "cpu", "32-true"),
        ("bf16-mixed", False, "cuda", "bf16-mixed"),
        ("bf16-mixed", False, "cpu", "32-true"),  # what Lightning makes of 16-mixed on a CPU
        ("bf16-true", False, "cuda", "bf16-true"),
        ("32-true", False, "cuda", "32-true"),
        ("64-true", False, "cpu", "64-true"),
        ("32-true", True, "cuda", "16-mixed"),
        ("32-true", True, "cpu", "bf16-mixed"),
        ("16-mixed", True, "cuda", "16-mixed"),
        ("16-mixed", True, "cpu", "bf16-mixed"),
        ("16-true", True, "cuda", "16-true"),
        ("bf16-true", True, "cpu", "bf16-true"),
        ("64-true", True, "cpu", "64-true"),
        (16, True, "cuda", "16-mixed"),
        ("16", False, "cuda", "32-true"),
        (32, True, "cuda", "16-mixed"),
        ("bf16", True, "cpu", "bf16-mixed"),
        (64, True, "cpu", "64-true"),
    ],
)
def test_resolve_switch_off_follows_the_table(precision, enable_fp16, accelerator, expected):
    options = {"enable_fp16": enable_fp16, "fp16_allowed": True, "accelerator": accelerator}
    assert resolve_precision(precision, **options) == expected


@pytest.mark.parametrize(
    ("precision", "enable_fp16", "accelerator", "expected"),
    [
        ("16-mixed", True, "cpu", "32-true"),
        ("bf16-mixed", True, "cpu", "32-true"),
        ("32-true", True, "cpu", "32-true"),
        ("bf16", True, "cpu", "32-true"),
        ("16-mixed", False, "cpu", "32-true"),
        ("bf16-mixed", False, "cpu", "32-true"),
        ("bf16-true", True, "cpu", "bf16-true"),
        ("bf16-true", False, "cpu", "bf16-true"),
        ("16-true", True, "cpu", "16-true"),
        ("64-true", True, "cpu", "64-true"),
        ("16-mixed", True, "cuda", "16-mixed"),
        ("bf16-mixed", True, "cuda", "bf16-mixed"),
        ("32-true", True, "cuda", "16-mixed"),
    ],
)
def test_resolve_cpu_without_bf16_units_takes_single(precision, enable_fp16, accelerator, expected):
    options = {"enable_fp16": enable_fp16, "fp16_allowed": True, "accelerator": accelerator}
    assert resolve_precision(precision, **options, bf16_units=False) == expected


@pytest.mark.parametrize("given", [16, "16", "bf16", 32, "32", 64, "64", *ALL])
def test_unify_precision_equals_lightning(given):
    on_gpu = {"16": "16-mixed", "bf16": "bf16-mixed", "32": "32-true", "64": "64-true"}
    assert unify_precision(given) == on_gpu.get(str(given), given)
    if "16" not in str(given):
        trainer = Trainer(accelerator="cpu", precision=given, logger=False)
        assert trainer.precision == unify_precision(given)


class Module:
    """What the callback reads of a module."""

    def __init__(self, enable_fp16):
        self.enable_fp16 = enable_fp16


def set_up(precision, enable_fp16=True):
    trainer = Trainer(
        accelerator="cpu", precision=precision, logger=False, enable_checkpointing=False
    )
    PrecisionFromEnv().setup(trainer, Module(enable_fp16), "predict")
    return trainer


@pytest.mark.usefixtures("bf16_units")
def test_callback_default_trainer_on_cpu_becomes_bf16_mixed():
    trainer = set_up("32-true")
    assert trainer.precision == "bf16-mixed"
    plugin = trainer.strategy.precision_plugin
    assert isinstance(plugin, MixedPrecision)
    with plugin.forward_context():
        assert torch.is_autocast_enabled("cpu")
        assert torch.get_autocast_dtype("cpu") == torch.bfloat16


@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed", "32-true"])
def test_callback_cpu_without_bf16_units_takes_all_mixed_away(monkeypatch, precision):
    monkeypatch.setattr("virnucpro_pl.devices.has_bf16_units", lambda: False)
    trainer = set_up(precision)
    assert trainer.precision == "32-true"
    assert type(trainer.strategy.precision_plugin) is Precision
    with trainer.strategy.precision_plugin.forward_context():
        assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed", "32-true", "16-true", "64-true"])
def test_callback_switch_on_takes_everything_reduced_away(monkeypatch, precision):
    monkeypatch.setenv("VIRNUCPRO_DISABLE_FP16", "1")
    trainer = set_up(precision)
    assert trainer.precision == "32-true"
    assert type(trainer.strategy.precision_plugin) is Precision
    with trainer.strategy.precision_plugin.forward_context():
        assert not torch.is_autocast_enabled("cpu")
        assert torch.get_default_dtype() == torch.float32


def test_callback_typo_raises(monkeypatch):
    monkeypatch.setenv("VIRNUCPRO_DISABLE_FP16", "ture")
    with pytest.raises(UsageError, match="ture"):
        set_up("16-mixed")


@pytest.mark.parametrize("turn_on", ["old", "old_flag", "new"])
def test_callback_single_turns_tf32_off_whoever_turned_it_on(turn_on):
    trainer = set_up("32-true", enable_fp16=False)
    assert trainer.precision == "32-true"
    if turn_on == "old":
        torch.set_float32_matmul_precision("medium")
    elif turn_on == "old_flag":
        torch.backends.cuda.matmul.allow_tf32 = True
    else:
        torch.backends.cuda.matmul.fp32_precision = "tf32"
    PrecisionFromEnv().on_predict_batch_start(trainer, Module(False), None, 5)
    assert torch.get_float32_matmul_precision() == "highest"
    assert torch.backends.cuda.matmul.fp32_precision == "ieee"


@pytest.mark.usefixtures("bf16_units")
def test_callback_reduced_leaves_tf32_alone():
    torch.set_float32_matmul_precision("high")
    set_up("bf16-mixed")
    assert torch.get_float32_matmul_precision() == "high"
