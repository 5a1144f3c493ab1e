import pytest
import torch
import torch.nn.functional as F

from virnucpro_pl.errors import UsageError
from virnucpro_pl.models import attention
from virnucpro_pl.models.attention import Card, attend, check_device, choose_attention, lay_out

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def starts(*lengths):
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)


@pytest.fixture(autouse=True)
def card(monkeypatch):
    """Substitute what is known of a GPU: an A100, or any that a test puts in."""
    known = [Card("NVIDIA A100", (8, 0))]
    monkeypatch.setattr(
        attention, "find_card", lambda device: known[-1] if device.type == "cuda" else None
    )
    return known.append


OLD = [Card("Tesla T4", (7, 5)), Card("Tesla V100-SXM2-16GB", (7, 0)), Card("GTX 1080", (6, 1))]


def plain_attention(query, key, value, lengths):
    """Softmax attention, sequence by sequence and head by head, in fp64."""
    out = []
    parts = (x.double().split(lengths) for x in (query, key, value))
    for q, k, v in zip(*parts, strict=True):
        weight = torch.einsum("ihk,jhk->hij", q, k) * q.shape[-1] ** -0.5
        out.append(torch.einsum("hij,jhk->ihk", weight.softmax(-1), v))
    return torch.cat(out)


@pytest.mark.parametrize(
    "lengths",
    [
        [5], [3, 3], [1], [1, 17, 2, 9, 1, 40], [40, 39, 1],
        [5, 5, 3, 3], [3, 3, 5, 5], [5, 3, 5], [2, 9, 9, 9, 8],
    ],
)  # fmt: skip
def test_attend_sdpa_equals_attention_within_each_sequence(lengths):
    torch.manual_seed(0)
    q, k, v = torch.randn(sum(lengths), 3, 2, 4).unbind(1)
    layout = lay_out(starts(*lengths), max(lengths), sum(lengths), "sdpa")
    expected = plain_attention(q, k, v, lengths).float()
    torch.testing.assert_close(attend(q, k, v, layout), expected, rtol=0, atol=1e-6)


def test_attend_sdpa_neighbour_with_nan_changes_nothing():
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 9, 2, 4)
    layout = lay_out(starts(3, 2, 4), 4, 9, "sdpa")
    healthy = attend(q, k, v, layout)
    for x in (q, k, v):
        x[3:5] = torch.nan
    poisoned = attend(q, k, v, layout)
    rows = [0, 1, 2, 5, 6, 7, 8]
    assert torch.equal(poisoned[rows], healthy[rows])
    assert poisoned[3:5].isnan().all()


def test_attend_sdpa_first_sequence_with_nan_changes_nothing():
    # Were padded places filled from the first sequence, its NaN would come through the mask.
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 9, 2, 4)
    layout = lay_out(starts(4, 3, 2), 4, 9, "sdpa")
    healthy = attend(q, k, v, layout)
    for x in (q, k, v):
        x[:4] = torch.nan
    assert torch.equal(attend(q, k, v, layout)[4:], healthy[4:])


@pytest.mark.parametrize("slopes", [None, torch.tensor([0.5, 0.25])])
def test_attend_sdpa_leaves_out_cudnn_which_plans_for_each_new_shape(slopes, monkeypatch):
    allowed, compute = [], F.scaled_dot_product_attention

    def spy(*args, **options):
        allowed.append(torch.backends.cuda.cudnn_sdp_enabled())
        return compute(*args, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    before = torch.backends.cuda.cudnn_sdp_enabled()
    q, k, v = torch.randn(3, 9, 2, 4)
    attend(q, k, v, lay_out(starts(3, 2, 4), 4, 9, "sdpa", slopes))
    assert set(allowed) == {False}
    assert torch.backends.cuda.cudnn_sdp_enabled() == before


def test_lay_out_positions_count_from_each_start():
    layout = lay_out(starts(3, 1, 2), 3, 6, "varlen")
    assert layout.position.tolist() == [0, 1, 2, 0, 0, 1]


@pytest.mark.parametrize(
    ("asked", "device", "reduced", "chosen"),
    [
        ("auto", GPU, True, "triton"),
        ("triton", GPU, True, "triton"),
        ("triton", GPU, False, "sdpa"),
        ("auto", GPU, False, "sdpa"),
        ("auto", CPU, True, "sdpa"),
        ("varlen", GPU, True, "varlen"),
        ("varlen", GPU, False, "sdpa"),
        ("sdpa", GPU, True, "sdpa"),
    ],
)
def test_choose_attention_follows_device_and_precision(asked, device, reduced, chosen):
    assert choose_attention(asked, device=device, reduced=reduced) == chosen


def test_choose_attention_biased_has_no_varlen():
    with pytest.raises(UsageError, match="not varlen"):
        choose_attention("varlen", device=GPU, reduced=True, biased=True)


def test_choose_attention_names_choice_and_reason_in_log(caplog):
    with caplog.at_level("INFO"):
        choose_attention("varlen", device=GPU, reduced=False)
        choose_attention("auto", device=CPU, reduced=True)
    assert "(varlen: packed kernels need FP16 or BF16)" in caplog.text
    assert "(auto: packed kernels need a GPU, and this runs on cpu)" in caplog.text


@pytest.mark.parametrize("old", OLD)
@pytest.mark.parametrize("reduced", [True, False])
def test_choose_attention_auto_on_an_old_gpu_is_sdpa_and_says_why(card, caplog, old, reduced):
    card(old)
    with caplog.at_level("INFO"):
        assert choose_attention("auto", device=GPU, reduced=reduced) == "sdpa"
    major, minor = old.capability
    why = f"auto: {old.name} has compute capability {major}.{minor}, packed kernels need 8.0"
    assert (
        f"Attention: sdpa, PyTorch's own, over sequences of similar length ({why})" in caplog.text
    )


@pytest.mark.parametrize("capability", [(8, 0), (8, 9), (9, 0), (10, 0), (12, 0)])
def test_choose_attention_auto_on_a_newer_gpu_is_triton(card, capability):
    card(Card("NVIDIA", capability))
    assert choose_attention("auto", device=GPU, reduced=True) == "triton"


@pytest.mark.parametrize("asked", ["triton", "varlen"])
@pytest.mark.parametrize("reduced", [True, False])
def test_packed_attention_on_an_old_gpu_is_refused_and_names_it(card, asked, reduced):
    card(OLD[0])
    expected = f"Attention {asked} cannot run here, Tesla T4 .* 7.5.*attention as sdpa or auto"
    with pytest.raises(UsageError, match=expected):
        choose_attention(asked, device=GPU, reduced=reduced)
    with pytest.raises(UsageError, match=expected):
        check_device(asked, GPU)


def test_choose_attention_packing_disabled_is_sdpa_on_any_device(card, monkeypatch):
    card(OLD[0])
    monkeypatch.setenv("VIRNUCPRO_DISABLE_PACKING", "1")
    for device in (CPU, GPU):
        assert choose_attention("triton", device=device, reduced=True) == "sdpa"


def test_choose_attention_packing_disabled_is_sdpa(monkeypatch):
    monkeypatch.setenv("VIRNUCPRO_DISABLE_PACKING", "Yes")
    assert choose_attention("varlen", device=GPU, reduced=True) == "sdpa"
    monkeypatch.setenv("VIRNUCPRO_DISABLE_PACKING", "yess")
    with pytest.raises(UsageError, match="VIRNUCPRO_DISABLE_PACKING"):
        choose_attention("auto", device=GPU, reduced=True)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("lengths", [[5], [1, 170, 2, 90, 33], [300, 1]])
@pytest.mark.parametrize("backend", ["varlen", "triton"])
def test_attend_packed_equals_attention_within_each_sequence(backend, lengths, dtype):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, sum(lengths), 2, 64, device="cuda", dtype=dtype)
    layout = lay_out(starts(*lengths).cuda(), max(lengths), sum(lengths), backend)
    expected = plain_attention(q, k, v, lengths)
    error = (attend(q, k, v, layout).double() - expected).abs().max()
    assert error < (2e-3 if dtype == torch.float16 else 2e-2)
