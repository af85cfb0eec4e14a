from __future__ import annotations

from collections import Counter
from dataclasses import replace

import torch

from animatediff.data.pairs import PairOrder
from animatediff.miniature.pairs import SyntheticClip, synthetic_groups
from animatediff.training.diffusion import TimestepRule
from animatediff.training.samples import BatchPlan, SampleRule, Samples, batches, join

GROUPS = synthetic_groups(3, clips=3, seed=0)
RULE = SampleRule(seed=7, latent_shape=(4, 2, 2, 2), timesteps=TimestepRule(), targets=2)
NUMBERS = {clip.name: float(i) for i, clip in enumerate(c for group in GROUPS for c in group.clips)}


def number_of(clip: SyntheticClip) -> torch.Tensor:
    return torch.tensor([NUMBERS[clip.name]])


def samples(rule: SampleRule = RULE) -> Samples:
    return Samples(PairOrder(GROUPS, seed=7), rule, number_of)


def test_a_sample_is_the_same_in_any_batch_and_after_any_other() -> None:
    alone = samples()[11]
    after = samples()
    _ = [after[number] for number in (40, 3)]
    again = after[11]
    for key, value in vars(alone).items():
        other = getattr(again, key)
        assert torch.equal(value, other) if torch.is_tensor(value) else value == other


def test_targets_of_a_batch_belong_to_references_in_turn() -> None:
    source = samples(replace(RULE, null_text=0.0))
    joined = join([source[n] for n in range(4)])
    assert joined.reference.shape == (4, 1)
    assert joined.targets.shape == (8, 1)
    assert joined.target_noise.shape == (8, 4, 2, 2, 2)
    for i, target in enumerate(joined.targets.flatten().tolist()):
        reference = joined.reference[i % 4].item()
        assert reference != target, "a clip was its own reference"
        assert reference // 3 == target // 3, "the reference is of another group"
    clips = [clip for group in GROUPS for clip in group.clips]
    assert joined.captions == [clips[int(number)].caption for number in joined.targets.flatten()]


def test_every_clip_is_a_target_once_per_epoch_in_an_order_of_its_own() -> None:
    source = samples(replace(RULE, targets=1))
    epochs = [[source[n].targets.item() for n in range(start, start + 9)] for start in (0, 9)]
    assert Counter(epochs[0]) == Counter(epochs[1]) == Counter(NUMBERS.values())
    assert epochs[0] != epochs[1]


def test_captions_are_dropped_at_the_given_rate() -> None:
    for rate, expected in ((0.0, 0), (1.0, 40)):
        rule = replace(RULE, null_text=rate)
        assert sum(caption == "" for n in range(20) for caption in samples(rule)[n].captions) == expected


def test_processes_and_accumulation_share_out_the_same_samples() -> None:
    alone = list(BatchPlan(batch_size=4).numbers(8, 2))
    assert alone == [[8, 9, 10, 11], [12, 13, 14, 15]]
    two = [list(BatchPlan(2, process=p, processes=2).numbers(8, 2)) for p in range(2)]
    assert two == [[[8, 9], [12, 13]], [[10, 11], [14, 15]]]
    assert list(BatchPlan(2, accumulation=2).numbers(8, 1)) == [[8, 9], [10, 11]]


def test_batches_go_on_where_a_run_stopped() -> None:
    whole = [batch.numbers for batch in batches(samples(), BatchPlan(2), 0, 4)]
    rest = [batch.numbers for batch in batches(samples(), BatchPlan(2), 4, 2)]
    assert whole == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert rest == whole[2:]
