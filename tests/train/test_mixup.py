"""Mixup of sequences against the public code of AFFT, and what it must not touch."""

import pytest
import torch
from golden_cases import available, load_case

from actionfuse.train.mixup import fully_labelled, mixup, soft_labels


@pytest.mark.parametrize("name", available("anticipation", "afft_mixup"))
def test_golden(name):
    case = load_case(name, "anticipation")
    options = case.meta["constructor_args"]
    smoothing, classes = options["label_smoothing"]["action"], options["num_classes"]["action"]
    labels, past = case.arrays["labels"], case.arrays["past_labels"].squeeze(-1)
    rows = fully_labelled(past)
    values = {
        "x": case.input("mix_rgb"),
        "y": soft_labels(labels, classes, smoothing=smoothing),
        "past_y": soft_labels(past, classes, smoothing=smoothing),
    }
    before = {key: x.clone() for key, x in values.items()}
    for key, x in mixup(values, share=options["forced_lambda"], rows=rows).items():
        case.check_output(key, x, rtol=1e-6)
        torch.testing.assert_close(values[key], before[key])
    assert torch.equal((past < 0)[..., None], case.arrays["past_ignore"])


def test_all_rows_by_default_and_one_row_stays_itself():
    x = torch.randn(5, 3, dtype=torch.float64)
    mixed = mixup({"rgb": x}, share=0.25)["rgb"]
    for i in range(5):
        torch.testing.assert_close(mixed[i], 0.25 * x[i] + 0.75 * x[4 - i])
    one = torch.tensor([False, False, True, False, False])
    torch.testing.assert_close(mixup({"rgb": x}, share=0.25, rows=one)["rgb"], x)


def test_wrong_calls():
    with pytest.raises(ValueError, match="share is 1.5"):
        mixup({"rgb": torch.zeros(2, 3)}, share=1.5)
    with pytest.raises(ValueError, match="a label is 7; they must be 0 to 6"):
        soft_labels(torch.tensor([0, 7]), 7)
    with pytest.raises(ValueError, match="smoothing is 1.0"):
        soft_labels(torch.tensor([0]), 7, smoothing=1.0)
