import pytest

from utils.kvcache.blocks import OutOfBlocks
from utils.kvcache.prefix_blocks import PrefixBlockPool, chained_hashes, serve_alone


def prompt(start, length=9):
    return list(range(start, start + length))


def test_hash_of_block_depends_on_all_tokens_before_it():
    first, second = chained_hashes([1, 2, 3, 4, 5], 2)
    other_first, other_second = chained_hashes([9, 2, 3, 4], 2)
    assert first != other_first and second != other_second
    assert chained_hashes([1, 2, 3, 4], 2) == [first, second]
    assert chained_hashes([1], 2) == []


def test_prompt_finds_full_blocks_but_never_its_last_token():
    pool = PrefixBlockPool(8, 4)
    assert serve_alone(pool, prompt(0, 8), [100, 101]) == 0
    assert (
        serve_alone(pool, prompt(0, 8), [100, 101]) == 4
    )  # one of the two blocks has the last token
    assert serve_alone(pool, [*prompt(0, 8), 50], [100]) == 8


def test_answer_is_found_when_conversation_goes_on():
    pool = PrefixBlockPool(8, 4)
    serve_alone(pool, prompt(0, 4), [60, 61, 62, 63, 64])  # 64 was never fed back
    assert serve_alone(pool, [*prompt(0, 4), 60, 61, 62, 63, 64, 65], [1]) == 8


def test_pool_forgets_block_that_was_released_longest_ago():
    pool = PrefixBlockPool(5, 4)
    serve_alone(pool, prompt(0, 8), [100])  # takes blocks 0, 1
    serve_alone(pool, prompt(20, 8), [100])  # takes blocks 2, 3
    serve_alone(pool, prompt(40, 8), [100])  # takes block 4, then the end of the first prompt
    assert pool.match([*prompt(0, 8), 9]) == [0]
    assert pool.match([*prompt(20, 8), 9]) == [2, 3]


def test_block_that_is_asked_for_moves_to_end_of_queue():
    pool = PrefixBlockPool(5, 4)
    serve_alone(pool, prompt(0, 5), [100])
    serve_alone(pool, prompt(20, 5), [100])
    serve_alone(pool, prompt(0, 5), [100])  # revived
    serve_alone(pool, prompt(40, 16), [100])  # needs four of five blocks
    assert pool.match(prompt(0, 5)) == [0]
    assert pool.match(prompt(20, 5)) == []


def test_shared_block_stays_while_one_request_holds_it():
    pool = PrefixBlockPool(2, 4)
    blocks = pool.take(1)
    pool.store(blocks, prompt(0, 4))
    pool.touch(blocks)
    pool.release(blocks)
    assert pool.references[blocks[0]] == 1 and blocks[0] not in pool.free
    with pytest.raises(OutOfBlocks, match="2 blocks were asked for, but only 1 are free"):
        pool.take(2)
    assert len(pool.free) == 1


def test_request_that_is_too_long_changes_nothing():
    pool = PrefixBlockPool(2, 4)
    serve_alone(pool, prompt(0, 5), [100])
    before = (list(pool.free), list(pool.hashes))
    with pytest.raises(OutOfBlocks, match="9 tokens don't fit into 2 blocks"):
        serve_alone(pool, prompt(0), [100])
    assert (list(pool.free), list(pool.hashes)) == before


def test_pool_of_no_blocks_is_refused():
    with pytest.raises(ValueError, match="0 x 4"):
        PrefixBlockPool(0, 4)
