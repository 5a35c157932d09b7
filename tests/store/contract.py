"""What every store has to hold."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from rnnstream.errors import BadStore
from rnnstream.names import Owned, owner_of
from rnnstream.store.interface import Opened, Saved, Store, Write

from .contract_journal import Journal
from .places import IDENTITY, Place, by_name, loaded, pages, row
from .walk import Walk

ALICE, BOB = "A" * 40, "B" * 40
ODD_NAMES = [
    *(
        "",
        " ",
        "a",
        "A",
        "a ",
        "a\0",
        "a\0b",
        "\0",
        "'",
        "''",
        "'; DROP TABLE sessions; --",
        '"',
        "`",
        "?",
        ":a",
        "%",
        "_",
        "\\",
    ),
    *(
        "1",
        "01",
        "1.0",
        "0x1",
        "NULL",
        "\n",
        "\r\n",
        "\t",
        "é",
        "e\u0301",
        "ß",
        "ss",
        "🎻",
        "👩‍👩‍👧",
        "\ufeff",
        "\uffff",
        "\U0010ffff",
    ),
    *("n" * 200, "n" * 199, "é" * 100, "🎻" * 50),
]


class Contract(Journal, Walk):
    """Tests of a store. Who inherits them says where it is, by a fixture `place`."""

    @pytest.fixture
    def store(self, place: Place) -> Store:
        """New and open."""
        return place.opened()[0]

    # -- open and close

    def test_a_new_store_is_empty(self, place: Place) -> None:
        store, found = place.opened()
        assert found == Opened(IDENTITY.numerics, 0, 0)
        assert (list(store.journal()), list(store.tombstones())) == ([], [])
        assert (store.load(["a"]), store.page(0, 10)) == (([], []), ([], None))
        _, found = place.reopened(store)
        assert found == Opened(IDENTITY.numerics, 0, 0)

    def test_it_says_how_many_sessions_are_open_and_which_entry_is_the_last(self, place: Place, store: Store) -> None:
        ended = [row("closed", 1, "closed"), row("expired", 1, "expired"), row("again", 1, "closed")]
        store.write(Write(1, b"", [row("a", 1), row("b", 1), row("forgotten", 1), *ended]))
        store.write(Write(2, b"", [row("again", 2), row("b", 2)], ["forgotten", "never"]))
        store, found = place.reopened(store)
        assert found == Opened(IDENTITY.numerics, 3, 2)
        store.write(Write(3, b"", [row("a", 3, "expired")], ["b", "closed"], needed=3, last=True))
        assert place.reopened(store)[1] == Opened(IDENTITY.numerics, 1, 3)

    def test_other_numerics_are_told_until_a_last_write(self, place: Place) -> None:
        store = place.store()
        told = (("first", "first"), ("second", "first"), ("second", "first"), ("second", "second"), ("first", "second"))
        for id, (here, before) in enumerate(told, 1):
            assert store.open(replace(IDENTITY, numerics=here)).numerics == before
            store.write(Write(id, b"some steps", last=id == 3))
            place.end(store)
            store = place.store()

    @pytest.mark.parametrize(
        "other", [{"digest": "f" * 64}, {"dtype": "<f8"}, {"state_size": 4}], ids=lambda other: next(iter(other))
    )
    def test_the_store_of_another_model_is_refused_and_stays_as_it_is(
        self, place: Place, store: Store, other: dict[str, Any]
    ) -> None:
        store.write(Write(1, b"one", [row("a", 1)]))
        place.end(store)
        store = place.store()
        with pytest.raises(BadStore, match="keeps"):
            store.open(replace(IDENTITY, numerics="others", **other))
        store.close()
        store, found = place.opened()
        assert found == Opened(IDENTITY.numerics, 1, 1)
        assert loaded(store, "a") == {"a": row("a", 1)}

    def test_a_model_is_known_by_its_digest_whatever_its_name(self, place: Place, store: Store) -> None:
        store.write(Write(1, b"", [row("a", 1)]))
        place.end(store)
        store = place.store()
        assert store.open(replace(IDENTITY, name="renamed")).sessions == 1

    def test_one_worker_at_a_time_has_it(self, place: Place, store: Store) -> None:
        store.write(Write(1, b"one"))
        second = place.store()
        for _ in range(2):
            with pytest.raises(BadStore, match="in use"):
                second.open(IDENTITY)
        store.write(Write(2, b"two", [row("a", 2)]))
        assert list(store.journal()) == [(1, b"one"), (2, b"two")]
        store.close()
        assert second.open(IDENTITY) == Opened(IDENTITY.numerics, 1, 2)
        with pytest.raises(BadStore, match="in use"):
            place.store().open(IDENTITY)

    def test_a_store_that_is_open_is_not_opened_again_and_loses_nothing_by_it(self, place: Place, store: Store) -> None:
        with pytest.raises(BadStore, match="in use"):
            store.open(IDENTITY)
        store.write(Write(1, b"one"))
        assert list(store.journal()) == [(1, b"one")]
        store.close()
        assert store.open(IDENTITY).last == 1

    def test_closing_it_is_harmless_at_any_time(self, place: Place) -> None:
        store = place.store()
        store.close()
        for last in range(3):
            assert store.open(IDENTITY).last == last
            store.write(Write(last + 1, b""))
            half_read = store.journal()
            next(half_read)
            store.close()
            store.close()

    # -- rows

    def test_rows_are_kept_as_they_were_written(self, place: Place, store: Store) -> None:
        rows = [
            Saved("least", "open", 0),
            Saved("most", "open", (1 << 63) - 1, (1 << 63) - 1, 1e300, 5e-324, bytes(range(256)), bytes(1 << 20)),
            Saved("closed", "closed", 3, producers=b"\0"),
            Saved("expired", "expired", 4),
            Saved("fractions", "open", 5, 2**53 + 1, 0.1, 1e9 + 1 / 3, b"", b"\xff"),
        ]
        store.write(Write(7, b"", rows))
        for _ in range(2):
            assert loaded(store, *(saved.name for saved in rows)) == by_name(rows)
            store, _ = place.reopened(store)

    def test_a_saved_row_replaces_what_was_kept_of_its_name(self, place: Place, store: Store) -> None:
        for id, status in enumerate(["open", "open", "closed", "open", "expired", "expired", "open"], 1):
            store.write(Write(id, b"", [row("b", id, status), row(f"other {id}", id)]))
            assert loaded(store, "b") == {"b": row("b", id, status)}
            assert [saved.name for saved in store.tombstones()] == ["b"] * (status != "open")
            names = [name for _, name, _ in pages(store, 100)]
            assert sorted(names) == sorted(["b"] * (status == "open") + [f"other {i}" for i in range(1, id + 1)])
        store, _ = place.reopened(store)
        assert loaded(store, "b", "other 3") == {"b": row("b", 7), "other 3": row("other 3", 3)}

    def test_of_a_forgotten_name_nothing_is_kept(self, place: Place, store: Store) -> None:
        store.write(Write(1, b"", [row("a", 1), row("b", 1), row("c", 1, "closed"), row("d", 1, "expired")]))
        store.write(Write(2, b"", [], ["a", "c", "never", ""]))
        for _ in range(2):
            assert loaded(store, "a", "b", "c", "d") == {"b": row("b", 1), "d": row("d", 1, "expired")}
            assert [saved.name for saved in store.tombstones()] == ["d"]
            assert [name for _, name, _ in pages(store, 1)] == ["b"]
            store, _ = place.reopened(store)
        store.write(Write(3, b"", [row("a", 3), row("c", 3)]))
        assert loaded(store, "a", "b", "c") == {"a": row("a", 3), "b": row("b", 1), "c": row("c", 3)}

    @pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 128, 300])
    def test_as_many_names_are_loaded_as_are_asked_for(self, store: Store, count: int) -> None:
        names = [f"s{i}" for i in range(count)]
        kept = {name: row(name, 1, "closed" if i % 5 == 4 else "open") for i, name in enumerate(names) if i % 3}
        store.write(Write(1, b"", [*kept.values(), row("not asked for", 1)]))
        assert loaded(store, *names) == kept
        assert loaded(store, *reversed(names), "never") == kept

    def test_names_may_be_any_text(self, place: Place, store: Store) -> None:
        kept = {name: row(name, 1) for name in ODD_NAMES[::2]}
        store.write(Write(1, b"", list(kept.values())))
        for _ in range(2):
            assert loaded(store, *ODD_NAMES) == kept
            for name in ODD_NAMES:
                assert loaded(store, name) == ({name: kept[name]} if name in kept else {})
            assert sorted(name for _, name, _ in pages(store, 3)) == sorted(kept)
            store, _ = place.reopened(store)
        store.write(Write(2, b"", [row(name, 2, "closed") for name in ODD_NAMES[1::2]], ODD_NAMES[::4]))
        assert loaded(store, *ODD_NAMES) == {name: kept[name] for name in ODD_NAMES[2::4]} | {
            name: row(name, 2, "closed") for name in ODD_NAMES[1::2]
        }

    def test_tombstones_come_in_the_order_of_their_upto(self, place: Place, store: Store) -> None:
        order = [5, 3, 9, 1, 8, 2, 7]
        store.write(
            Write(9, b"", [row(f"s{upto}", upto, "closed" if upto % 2 else "expired") for upto in order] + [row("a", 4)])
        )
        store.write(Write(10, b"", [row("s3", 10, "expired"), row("s8", 10)], ["s5"]))
        for _ in range(2):
            expected = [row("s1", 1, "closed"), row("s2", 2, "expired"), row("s7", 7, "closed"), row("s9", 9, "closed")]
            assert list(store.tombstones()) == [*expected, row("s3", 10, "expired")]
            store, _ = place.reopened(store)

    # -- owners

    def test_a_name_of_one_key_is_not_that_of_another_nor_nobodys(self, place: Place, store: Store) -> None:
        names = ["a", Owned(ALICE, "a"), Owned(BOB, "a"), Owned(BOB, "b"), f"{ALICE}a", f"{ALICE}\0a"]
        kept = {name: row(name, 1) for name in names}
        store.write(Write(1, b"", list(kept.values())))
        for _ in range(2):
            assert loaded(store, *names, Owned(ALICE, "b"), "b") == kept
            for name in names:
                assert loaded(store, name) == {name: kept[name]}
            store, found = place.reopened(store)
            assert (found.sessions, found.owned) == (6, {ALICE: 1, BOB: 2})
        store.write(Write(2, b"", [row(Owned(BOB, "a"), 2, "closed")], [Owned(ALICE, "a"), "b"]))
        assert [saved.name for saved in store.tombstones()] == [Owned(BOB, "a")]
        assert loaded(store, *names) == {name: kept[name] for name in ("a", Owned(BOB, "b"), *names[4:])} | {
            Owned(BOB, "a"): row(Owned(BOB, "a"), 2, "closed")
        }
        assert place.reopened(store)[1].owned == {BOB: 1}

    def test_pages_of_one_owner_look_at_no_row_of_others(self, place: Place, store: Store) -> None:
        rows = [row(Owned((ALICE, BOB)[i % 2], f"s{i}"), 1) if i % 3 else row(f"s{i}", 1) for i in range(60)]
        store.write(Write(1, b"", rows))
        for _ in range(2):
            for owner in (ALICE, BOB, ""):
                theirs = [saved.name for saved in rows if owner_of(saved.name) == owner]
                found, after = [], 0
                for _ in range(len(theirs) // 5):
                    some, after = store.page(after or 0, 5, owner)
                    found += [name for _, name, _ in some]
                assert found == theirs
                assert store.page(after or 0, 5, owner)[0] == []
            assert store.page(0, 5, "C" * 40) == ([], None)
            store, _ = place.reopened(store)

    # -- pages

    @pytest.mark.parametrize("scan", [1, 2, 3, 7, 12, 13, 1000])
    def test_pages_give_each_open_session_once(self, place: Place, store: Store, scan: int) -> None:
        rows = [row(f"s{i}", 1, "closed" if i % 4 == 1 else "expired" if i % 4 == 2 else "open") for i in range(12)]
        store.write(Write(1, b"", rows))
        for _ in range(2):
            found = pages(store, scan)
            assert sorted((name, moved_at) for _, name, moved_at in found) == sorted(
                (saved.name, saved.moved_at) for saved in rows if saved.status == "open"
            )
            for at, (cursor, _, _) in enumerate(found):
                assert store.page(cursor, 1000)[0] == found[at + 1 :]
            store, _ = place.reopened(store)

    def test_pages_where_all_are_closed_go_on_to_the_end(self, store: Store) -> None:
        store.write(Write(1, b"", [row(f"s{i}", 1, "closed") for i in range(10)]))
        assert pages(store, 3) == []
        store.write(Write(2, b"", [row("s9", 2)]))
        assert [name for _, name, _ in pages(store, 3)] == ["s9"]

    def test_the_order_of_pages_stays(self, place: Place, store: Store) -> None:
        store.write(Write(1, b"", [row(f"s{i}", 1) for i in (5, 2, 8, 1, 9, 4)]))
        order = pages(store, 100)
        for id in range(2, 5):
            store.write(Write(id, b"", [row(f"s{i}", id) for i in (4, 8)] + [row(f"new {id}", id)]))
            store, _ = place.reopened(store)
            moved = {f"s{i}": row(f"s{i}", id).moved_at for i in (4, 8)}
            found = [entry for entry in pages(store, 2) if entry[1].startswith("s")]
            assert found == [(cursor, name, moved.get(name, moved_at)) for cursor, name, moved_at in order]

    @pytest.mark.parametrize("forget", [False, True])
    def test_sessions_may_end_and_begin_between_pages(self, place: Place, store: Store, forget: bool) -> None:
        names = [f"s{i}" for i in range(10)]
        store.write(Write(1, b"", [row(name, 1) for name in names]))
        found, after, id = [], 0, 1
        while after is not None:
            page, after = store.page(after, 3)
            found += [name for _, name, _ in page]
            for _, name, _ in page:
                id += 1
                saved = [row(f"new {id}", id)] if id % 2 and id < 10 else []
                store.write(Write(id, b"", saved + ([] if forget else [row(name, id, "closed")]), [name] if forget else []))
            store, _ = place.reopened(store)
        assert sorted(name for name in found if name.startswith("s")) == names
        assert len(found) == len(set(found))
