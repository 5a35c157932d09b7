"""Promise 5 against mutated messages; scripts/fuzz.py sends more of them."""

from tests.process.fuzz import GIANT, run

BODIES, WARM_UP = 10_000, 5_000
LEAK = 200  # bytes a body, of which nothing may be left; what is bounded has been filled by the warm-up, or nearly


def test_every_mutated_body_is_answered_or_cut_off_and_leaves_nothing_behind(tmp_path):
    report = run(tmp_path, BODIES, 1, warm_up=WARM_UP)
    assert report.cut == (BODIES + WARM_UP) // GIANT
    assert report.checked > 0
    assert report.grown < LEAK * BODIES
    seen = {code for code, count in report.replies.items() if count}
    assert seen >= {"", "bad_message", "bad_request", "bad_token", "bad_state", "unknown_session", "exists", "gap", "conflict"}
    assert report.replies[""] > BODIES / 4, "many are good, or nearly"
