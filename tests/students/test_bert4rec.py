"""What the cloze student alone does: hiding items in training, asking a hidden place when recommending."""

import pytest
import torch
from torch import Tensor

from distilrec.data.batching import Batch
from distilrec.students.bert4rec import HIDDEN, BERT4Rec, BERT4RecSettings

N_ITEMS, REACH = 13, 6


def small(**changes: float) -> BERT4Rec:
    torch.manual_seed(0)
    settings = BERT4RecSettings.model_validate({"hidden_size": 16, "max_length": REACH, "dropout": 0.2, **changes})
    return BERT4Rec(settings, N_ITEMS).eval()


def batch() -> Batch:
    """Three histories: asked everywhere, asked in the second half only (a window of a longer one), and of one item."""
    histories = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 0], [9, 0, 0, 0]])
    return Batch(
        histories,
        torch.tensor([4, 3, 1]),
        positions=torch.tensor([0, 1, 2, 3, 5, 6, 8]),
        targets=torch.tensor([2, 3, 4, 11, 7, 12, 10]),
        examples=torch.tensor([101, 102, 103, 104, 202, 203, 301]),
    )


def test_all_targets_can_be_hidden() -> None:
    view = small(mask_share=1, last_share=0).training_view(batch())
    assert view.histories.tolist() == [[1, -1, -1, -1, -1], [5, 6, -1, -1, 0], [9, -1, 0, 0, 0]]
    assert view.lengths.tolist() == [5, 4, 2]
    assert view.positions.tolist() == [1, 2, 3, 4, 7, 8, 11]
    assert torch.equal(view.targets, batch().targets)
    assert torch.equal(view.examples, batch().examples)


def original(view: Batch) -> Tensor:
    histories = view.histories.clone()
    histories.view(-1)[view.positions] = view.targets
    return histories


@pytest.mark.parametrize("last_share", [0, 0.5, 1])
@pytest.mark.parametrize("mask_share", [0.01, 0.4])
def test_what_is_hidden_is_asked_for(mask_share: float, last_share: float) -> None:
    student = small(mask_share=mask_share, last_share=last_share)
    example_of = dict(zip(batch().examples.tolist(), batch().targets.tolist(), strict=True))
    for seed in range(30):
        torch.manual_seed(seed)
        view = student.training_view(batch())
        assert 1 <= len(view.targets) == len(view.positions)
        assert torch.equal((view.histories.view(-1) == HIDDEN).nonzero()[:, 0], view.positions)
        assert [example_of[example] for example in view.examples.tolist()] == view.targets.tolist()
        assert original(view).tolist() == [[1, 2, 3, 4, 11], [5, 6, 7, 12, 0], [9, 10, 0, 0, 0]]
        assert (view.positions % 5 < view.lengths[view.positions // 5]).all()


def test_a_cut_history_ends_with_the_only_hidden_item() -> None:
    student = small(last_share=1)
    ends = set()
    for seed in range(40):
        torch.manual_seed(seed)
        view = student.training_view(batch())
        assert (view.positions // 5).tolist() == [0, 1, 2]  # one of each history
        assert torch.equal(view.positions % 5, view.lengths - 1)
        ends |= set(view.examples.tolist())
    assert ends == set(batch().examples.tolist())  # any target may be it


def test_a_history_of_which_nothing_is_asked_is_left_alone() -> None:
    asked = batch()
    lone = Batch(asked.histories, asked.lengths, asked.positions[-1:], asked.targets[-1:], asked.examples[-1:])
    for last_share in (0.0, 1.0):
        view = small(last_share=last_share).training_view(lone)
        assert view.lengths.tolist() == [4, 3, 2]
        assert view.histories.tolist() == [[1, 2, 3, 4, 0], [5, 6, 7, 0, 0], [9, -1, 0, 0, 0]]


def test_the_share_of_hidden_items() -> None:
    rows, columns = 200, 20
    histories = torch.randint(N_ITEMS, (rows, columns))
    every = torch.arange(rows * columns)
    big = Batch(histories, torch.full((rows,), columns), every, torch.randint(N_ITEMS, (rows * columns,)), every)
    view = small(mask_share=0.3, last_share=0, max_length=columns).training_view(big)
    assert len(view.targets) / len(every) == pytest.approx(0.3, abs=0.03)


def test_one_seed_one_view() -> None:
    student, views = small(), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        views.append(student.training_view(batch()))
    assert torch.equal(views[0].histories, views[1].histories)
    assert not torch.equal(views[0].histories, views[2].histories)


@pytest.mark.parametrize("full", [True, False])
@torch.inference_mode()
def test_a_recommendation_is_the_state_of_an_appended_hidden_item(full: bool) -> None:
    student = small()
    table = student.item_vectors()
    histories = torch.randint(N_ITEMS, (4, REACH), generator=torch.Generator().manual_seed(1))
    lengths = torch.full((4,), REACH) if full else torch.tensor([REACH, 1, 3, 4])
    states = student.encode_last(histories, lengths, table)
    for row, length in enumerate(lengths.tolist()):
        asked = torch.cat([histories[row, :length], torch.tensor([HIDDEN])])[None]
        expected = student.encode(asked, torch.tensor([length + 1]), table)[0, -1]
        torch.testing.assert_close(states[row], expected, rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_a_state_sees_both_directions_and_no_padding() -> None:
    student = small()
    table = student.item_vectors()
    histories, lengths = torch.tensor([[1, 2, HIDDEN, 4, 0]]), torch.tensor([4])
    before = student.encode(histories, lengths, table)[0, 2]
    for place in (0, 1, 3, 4):
        other = histories.clone()
        other[0, place] = 7
        moved = (student.encode(other, lengths, table)[0, 2] - before).abs().max()
        assert (moved > 1e-5) == (place < 4), place


@torch.inference_mode()
def test_a_hidden_item_is_no_item() -> None:
    student = small()
    table = student.item_vectors()
    lengths = torch.tensor([3])
    states = [student.encode(torch.tensor([[1, item, 3]]), lengths, table)[0, 1] for item in (HIDDEN, *range(N_ITEMS))]
    assert all((states[0] - other).abs().max() > 1e-5 for other in states[1:])
