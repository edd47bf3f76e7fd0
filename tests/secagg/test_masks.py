"""Masks cancel, cover vector and lanes with one stream, and look uniform."""

from __future__ import annotations

import os

import numpy as np
import pytest
from support.secure_sum import federation

from fedtune.secagg.masks import CHUNK_BYTES, PRGS, Mask, add_masks, keystream, pair_sign
from fedtune.secagg.messages import Kind, Signed
from fedtune.secagg.policy import Policy
from fedtune.secagg.rounds import finish_attempt
from fedtune.secagg.trips import MaskedAnswer

DTYPES = ["<u2", "<u4", "<u8"]


@pytest.mark.parametrize("prg", PRGS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("entries", [1, 7, CHUNK_BYTES // 2, CHUNK_BYTES // 2 + 3])
def test_a_mask_is_the_stream_over_the_vector_and_then_the_lanes(prg, dtype, entries) -> None:
    key = os.urandom(32)
    vector, lanes = np.zeros(entries, dtype=dtype), np.zeros(3, dtype=np.uint64)
    add_masks(vector, lanes, [Mask(key=key, sign=1)], prg=prg)
    stream = keystream(key, prg).update(bytes(vector.nbytes + lanes.nbytes))
    assert vector.tobytes() + lanes.tobytes() == stream


@pytest.mark.parametrize("dtype", DTYPES)
def test_opposite_signs_cancel_exactly(dtype: str) -> None:
    rng = np.random.default_rng(0)
    vector = rng.integers(0, 2**16, 100_000).astype(dtype)
    lanes = rng.integers(0, 2**60, 4).astype(np.uint64)
    before = vector.tobytes(), lanes.tobytes()
    keys = [os.urandom(32) for _ in range(3)]
    add_masks(vector, lanes, [Mask(key=key, sign=1) for key in keys], prg="aes256ctr")
    assert vector.tobytes() != before[0]
    assert lanes.tobytes() != before[1]
    add_masks(vector, lanes, [Mask(key=key, sign=-1) for key in keys], prg="aes256ctr")
    assert (vector.tobytes(), lanes.tobytes()) == before


def test_more_streams_than_one_batch_are_all_applied() -> None:
    keys = [os.urandom(32) for _ in range(1100)]
    vector, lanes = np.zeros(2, dtype="<u4"), np.zeros(1, dtype=np.uint64)
    add_masks(vector, lanes, [Mask(key=key, sign=1) for key in keys], prg="aes256ctr")
    add_masks(vector, lanes, [Mask(key=key, sign=-1) for key in reversed(keys)], prg="aes256ctr")
    assert vector.tolist() == [0, 0]
    assert lanes.tolist() == [0]


def test_the_two_ends_of_a_pair_have_opposite_signs() -> None:
    assert {pair_sign(3, 5), pair_sign(5, 3)} == {1, -1}


@pytest.mark.parametrize("prg", PRGS)
def test_the_masked_vector_that_a_client_sends_is_uniform_over_the_ring(tmp_path, prg) -> None:
    """Chi-squared over 256 cells of every byte, the share of ones, and the correlation of neighbours.

    With 255 degrees of freedom the statistic has mean 255 and deviation 22.6: six of them are 391, which a
    uniform vector exceeds once in some millions of runs. The updates are clipped to a narrow bound, so an
    unmasked vector fails by orders of magnitude.
    """
    parties = federation(tmp_path, 3, size=300_000, policy=Policy(k_min=3, prg=prg))
    sent = []

    def keep(requests):
        for reply in parties.send()(requests):
            signed = Signed.read(reply)
            if signed.kind is Kind.MASKED:
                sent.append(np.frombuffer(MaskedAnswer.decode(signed.body).masked[:1_200_000], "<u4"))
            yield reply

    finish_attempt(parties.attempt(), keep)
    for vector in sent:
        assert not looks_biased(vector)
    assert looks_biased(parties.updates[0].vector)


def looks_biased(vector: np.ndarray) -> bool:
    expected = len(vector) / 256
    for shift in (0, 8, 16, 24):
        counts = np.bincount((vector >> shift) & 255, minlength=256)
        if ((counts - expected) ** 2 / expected).sum() > 391:
            return True
    ones = np.unpackbits(vector.view(np.uint8)).mean()
    correlation = np.corrcoef(vector[:-1].astype(float), vector[1:].astype(float))[0, 1]
    return bool(
        abs(ones - 0.5) > 3 / np.sqrt(32 * len(vector)) or abs(correlation) > 6 / np.sqrt(len(vector))
    )
