import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from utils.kvcache.blocks import BlockPool, BlockTable, OutOfBlocks, PagedStore


class PagedSequences(RuleBasedStateMachine):
    """Sequences that grow, fork and end; a plain list per sequence is the oracle."""

    def __init__(self):
        super().__init__()
        self.pool = BlockPool(num_blocks=12, block_size=4)
        self.store = PagedStore(self.pool)
        self.tables: list[BlockTable] = []
        self.expected: list[list[int]] = []
        self.next_token = 0

    @rule()
    def start(self):
        self.tables.append(BlockTable(self.pool))
        self.expected.append([])

    @precondition(lambda self: self.tables)
    @rule(index=st.integers(0, 50), count=st.integers(0, 9))
    def append(self, index, count):
        index %= len(self.tables)
        table = self.tables[index]
        tokens = list(range(self.next_token, self.next_token + count))
        self.next_token += count
        before = (list(table.blocks), table.num_tokens, len(self.pool.free))
        fits = table.blocks_to_grow(count) <= len(self.pool.free)
        try:
            self.store.append(table, tokens)
        except OutOfBlocks:
            assert not fits
            assert (list(table.blocks), table.num_tokens, len(self.pool.free)) == before
            return
        assert fits
        self.expected[index] += tokens

    @precondition(lambda self: self.tables)
    @rule(index=st.integers(0, 50))
    def fork(self, index):
        index %= len(self.tables)
        free = len(self.pool.free)
        self.tables.append(self.tables[index].fork())
        self.expected.append(list(self.expected[index]))
        assert len(self.pool.free) == free

    @precondition(lambda self: self.tables)
    @rule(index=st.integers(0, 50))
    def end(self, index):
        index %= len(self.tables)
        self.tables.pop(index).release()
        self.expected.pop(index)

    @invariant()
    def contents_are_isolated(self):
        assert [self.store.read(table) for table in self.tables] == self.expected

    @invariant()
    def references_equal_table_entries(self):
        entries = [block for table in self.tables for block in table.blocks]
        counts = [entries.count(block) for block in range(self.pool.num_blocks)]
        assert self.pool.references == counts

    @invariant()
    def blocks_are_conserved(self):
        free = list(self.pool.free)
        assert len(set(free)) == len(free)
        held = {block for table in self.tables for block in table.blocks}
        assert set(free) | held == set(range(self.pool.num_blocks))
        assert not set(free) & held
        assert self.pool.used == len(held)

    @invariant()
    def no_table_holds_more_than_it_needs(self):
        for table in self.tables:
            assert len(table.blocks) == -(-table.num_tokens // 4)


PagedSequences.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestPagedSequences = PagedSequences.TestCase


def test_a_block_cannot_be_freed_twice_nor_shared_when_free():
    pool = BlockPool(2, 4)
    block = pool.allocate()
    pool.release(block)
    with pytest.raises(ValueError, match="freed twice"):
        pool.release(block)
    with pytest.raises(ValueError, match="is free"):
        pool.share(block)


def test_running_out_is_an_error_of_its_own():
    pool = BlockPool(1, 4)
    pool.allocate()
    assert pool.usage == 1.0
    with pytest.raises(OutOfBlocks, match="All 1 blocks"):
        pool.allocate()


def test_a_shared_full_block_is_not_copied():
    pool = BlockPool(4, 4)
    table = BlockTable(pool)
    table.grow(4)
    twin = table.fork()
    assert twin.grow(1) is None
    assert twin.blocks[0] == table.blocks[0]
    assert len(twin.blocks) == 2


def test_a_shared_partly_filled_block_is_copied_once():
    pool = BlockPool(4, 4)
    table = BlockTable(pool)
    table.grow(6)
    twin = table.fork()
    shared = table.blocks[-1]
    assert twin.grow(1) == (shared, twin.blocks[-1])
    assert table.grow(1) is None, "the last owner writes in place"
    assert table.blocks[-1] == shared


def test_slots_follow_the_block_table():
    pool = BlockPool(4, 4)
    pool.allocate()
    table = BlockTable(pool)
    table.grow(5)
    assert table.slot(4) == (table.blocks[1], 0)
    with pytest.raises(IndexError):
        table.slot(5)


@given(blocks=st.integers(-2, 0))
def test_empty_pools_are_refused(blocks):
    with pytest.raises(ValueError):
        BlockPool(blocks, 4)
