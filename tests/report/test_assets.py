"""What is done to plotly's library before it goes into a page."""

import pytest

from epbench.report.assets import called_at_once

WRAPPED = (
    '/** v */\n(function(root, factory) {}(typeof self !== "undefined" ? self : this, () => {\nlet x = "}));";\n}));\n'
)


def test_the_function_that_makes_the_library_is_in_parentheses() -> None:
    expected = WRAPPED.replace("this, () => {", "this, (() => {").replace("\n}));\n", "\n})));\n")
    assert called_at_once(WRAPPED) == expected


def test_the_installed_library_begins_and_ends_as_is_known() -> None:
    """Another wrapping is no mistake, but costs a quarter of a second: look whether it can be had again."""
    from plotly.offline import get_plotlyjs

    library = get_plotlyjs()
    assert len(called_at_once(library)) == len(library) + 2


@pytest.mark.parametrize("library", ["", "var Plotly = 1;", WRAPPED.replace("this, () =>", "this, factory =>")])
def test_another_library_stays_as_it_is(library: str) -> None:
    assert called_at_once(library) == library
