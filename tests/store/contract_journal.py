"""What every store has to hold of its journal."""

from __future__ import annotations

import pytest

from rnnstream.store.interface import Opened, Store, Write

from .places import IDENTITY, Place, row


class Journal:
    """Tests of a store. Who inherits them says where it is, by the fixtures `place` and `store`."""

    def test_the_journal_is_given_by_its_ids(self, place: Place, store: Store) -> None:
        entries = {
            1: b"",
            2: b"two",
            3: bytes(range(256)),
            4: bytes(5 << 20),
            9: b"",
            1000: b"\0",
            1 << 40: b"far",
            (1 << 62): b"end",
        }
        for id, entry in entries.items():
            assert store.write(Write(id, entry)) == 1
        for _ in range(2):
            assert list(store.journal()) == list(entries.items())
            store, found = place.reopened(store)
            assert found.last == 1 << 62

    def test_a_journal_that_is_read_may_be_written_meanwhile(self, store: Store) -> None:
        entries = [(id, b"%d" % id) for id in range(1, 451)]
        for id, entry in entries:
            store.write(Write(id, entry))
        read = []
        for id, entry in store.journal():
            read.append((id, entry))
            if id % 100 == 0:
                store.write(Write(1000 + id, b"later", [row("a", id)]))
        assert read[:450] == entries
        assert set(read[450:]) <= {(1000 + id, b"later") for id, _ in entries}

    def test_entries_are_dropped_that_are_not_needed_and_no_others(self, place: Place, store: Store) -> None:
        for id in range(1, 11):
            assert store.write(Write(id, b"%d" % id)) == 1
        there = list(range(1, 11))
        for id, needed in ((11, 1), (12, 4), (13, 2), (14, 0), (15, 12)):
            there.append(id)
            oldest = store.write(Write(id, b"%d" % id, needed=needed))
            assert oldest in there
            assert oldest <= max(needed, there[0])
            there = [id for id in there if id >= oldest]
            assert list(store.journal()) == [(id, b"%d" % id) for id in there]
            store, found = place.reopened(store)
            assert found.last == id

    def test_a_journal_of_which_little_is_needed_does_not_grow_for_ever(self, place: Place, store: Store) -> None:
        oldest = 1
        for id in range(1, 2001):
            before, oldest = oldest, store.write(Write(id, b"%d" % id, needed=id - 9))
            assert before <= oldest <= max(1, id - 9)
            if oldest > before:
                assert next(store.journal()) == (oldest, b"%d" % oldest)
        assert oldest > 1000
        for _ in range(2):
            assert list(store.journal()) == [(id, b"%d" % id) for id in range(oldest, 2001)]
            store, _ = place.reopened(store)
        assert store.write(Write(2001, b"2001", needed=1500)) >= oldest

    def test_all_that_is_not_needed_is_gone_at_once_with_the_last_write(self, place: Place, store: Store) -> None:
        for id in range(1, 1001):
            store.write(Write(id, b""))
        assert store.write(Write(1001, b"last", needed=999, last=True)) == 999
        assert list(store.journal()) == [(999, b""), (1000, b""), (1001, b"last")]
        assert list(place.reopened(store)[0].journal()) == [(999, b""), (1000, b""), (1001, b"last")]

    @pytest.mark.parametrize("last", [False, True])
    @pytest.mark.parametrize("beyond", [0, 1, 1000])
    def test_the_newest_entry_stays_so_that_the_ids_go_on(self, place: Place, store: Store, last: bool, beyond: int) -> None:
        for id in range(1, 21):
            store.write(Write(id, b"%d" % id, [row(f"s{id}", id)]))
        oldest = store.write(Write(21, b"newest", needed=21 + beyond, last=last))
        assert oldest == 21 if last else oldest <= 21
        store, found = place.reopened(store)
        assert found == Opened(IDENTITY.numerics, 20, 21)
        assert list(store.journal()) == [(id, b"%d" % id) for id in range(oldest, 21)] + [(21, b"newest")]
        assert store.write(Write(22, b"22")) == oldest

    @pytest.mark.parametrize("last", [False, True])
    @pytest.mark.parametrize(("needed", "oldest"), [(2, 5), (6, 300), (301, 2000), (3001, 3000)])
    def test_ids_may_leave_others_out(self, store: Store, last: bool, needed: int, oldest: int) -> None:
        for id in (1, 5, 300, 2000):
            store.write(Write(id, b""))
        found = store.write(Write(3000, b"", needed=needed, last=last))
        there = [id for id, _ in store.journal()]
        assert there == [id for id in (1, 5, 300, 2000, 3000) if id >= found]
        assert there[0] == found
        assert found == oldest if last else found <= oldest
