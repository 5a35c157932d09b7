import pytest

for module in ("contract", "contract_journal", "places", "walk"):  # so that their assertions say what they compared
    pytest.register_assert_rewrite(f"{__name__}.{module}")
