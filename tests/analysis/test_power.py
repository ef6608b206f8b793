"""What the gate promises, by simulated nights: how rarely it errs, and how surely it finds.

Launches scatter as on two H200 (docs/noise.md). A rate that the theory gives exactly may be off by Monte-Carlo error:
three standard errors either way.
"""

import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from epbench.analysis.differences import Difference, Floats, growth_found, holm, nights, paired, welch
from epbench.analysis.noise import Noise, smallest_gated_change
from epbench.gate_records import GateSpec

ALPHA = 0.01
NIGHTS = 20_000
NOISES = {"eager step": 0.0057, "eager work": 0.0034, "compiled step": 0.0106, "compiled work": 0.0030}
Draw = Callable[..., Floats]


def normal(random: np.random.Generator, *shape: int) -> Floats:
    return random.normal(size=shape)


def heavy(random: np.random.Generator, *shape: int) -> Floats:
    """Student's t with 3 degrees of freedom, of variance 1: every hundredth launch is 4.5 sd off."""
    return random.standard_t(3, size=shape) / math.sqrt(3)


def slack(rate: float, count: int = NIGHTS) -> float:
    return 3 * math.sqrt(rate * (1 - rate) / count)


def alarms(ps: Floats, alpha: float = ALPHA) -> NDArray[np.bool_]:
    """Nights [N] of cells [N, M] in which Holm leaves anything."""
    return np.asarray((holm(ps) <= alpha).any(axis=-1))


def test_holm_by_hand() -> None:
    assert holm(np.array([0.02, 0.01, 0.04, 0.015])) == pytest.approx([0.045, 0.04, 0.045, 0.045])
    assert holm(np.array([[0.5, 0.9], [0.01, 0.2]])) == pytest.approx(np.array([[1.0, 1.0], [0.02, 0.2]]))
    assert holm(np.array([0.3])) == pytest.approx([0.3])


def of_two_degrees(statistic: float) -> float:
    """Upper tail of Student's t with 2 degrees of freedom, in closed form."""
    return 0.5 - statistic / (2 * math.sqrt(2 + statistic**2))


HAND = [  # centre, standard error, degrees of freedom
    (paired(np.zeros(3), np.array([0.10, 0.11, 0.12])), 0.11, 0.01 / math.sqrt(3), 2),
    (paired(np.array([0.5, 0.6, 0.7]), np.array([0.60, 0.71, 0.82])), 0.11, 0.01 / math.sqrt(3), 2),
    (welch(np.array([0.0, 0.01, 0.02]), np.array([0.10, 0.11, 0.12])), 0.10, 0.01 * math.sqrt(2 / 3), 4),
    (welch(np.array([0.0, 0.0, 0.0]), np.array([0.10, 0.11, 0.12])), 0.11, 0.01 / math.sqrt(3), 2),
    (welch(np.zeros(3), np.full(4, 0.1)), 0.10, 0, 5),
    (nights(np.array([0.0, 0.01, 0.02]), np.array(0.11)), 0.10, 0.01 * math.sqrt(4 / 3), 2),
]


@pytest.mark.parametrize(("found", "centre", "error", "degrees"), HAND)
def test_differences_by_hand(found: Difference, centre: float, error: float, degrees: float) -> None:
    assert float(found.centre) == pytest.approx(centre)
    assert float(found.error) == pytest.approx(error)
    assert float(found.degrees) == pytest.approx(degrees)
    if degrees == 2:
        assert float(found.above(0.09)) == pytest.approx(of_two_degrees((centre - 0.09) / error))
        assert float(found.below(0.09)) == pytest.approx(of_two_degrees((-centre - 0.09) / error))


@pytest.mark.parametrize(("head", "is_sure"), [(0.1, True), (0.02, False), (0.02 + 1e-15, False), (0.0, False)])
def test_launches_without_scatter_are_sure_but_not_of_a_rounding_error(head: float, is_sure: bool) -> None:
    for found in (paired(np.zeros(5), np.full(5, head)), welch(np.zeros(5), np.full(5, head))):
        assert (float(found.above(0.02)) < 1e-6) is is_sure


@pytest.mark.parametrize("draw", [normal, heavy])
@pytest.mark.parametrize("cells", [1, 6])
def test_equal_arms_raise_an_alarm_in_one_night_of_a_hundred_over_all_cells(draw: Draw, cells: int) -> None:
    """At the limit, where alarms are most frequent; below it they are rarer."""
    random = np.random.default_rng(cells)
    start = random.normal(0, 3, (NIGHTS, cells, 1))  # in both arms, where launches are interleaved
    base, head = (draw(random, NIGHTS, cells, 5) + start for _ in range(2))
    for found in (paired(base, head), welch(base, head)):
        rate = float(alarms(found.above(0.0)).mean())
        assert rate <= ALPHA + slack(ALPHA)
        if draw is normal and found.degrees.max() == 4:
            assert rate == pytest.approx(ALPHA, abs=slack(ALPHA)), "Holm's first step is exact up to alpha squared"


@pytest.mark.parametrize("name", NOISES)
def test_equal_arms_pass_where_two_or_five_per_cent_are_allowed(name: str) -> None:
    """Of two runs, each on a machine start of its own, which Welch's test does not know of: the limit covers it."""
    start_sd = {"eager step": 0.0023, "eager work": 0.0, "compiled step": 0.0145, "compiled work": 0.0037}[name]
    limit = math.log1p(0.05 if name.endswith("step") else 0.02)
    random = np.random.default_rng(7)
    arms = [NOISES[name] * normal(random, NIGHTS, 6, 5) + start_sd * normal(random, NIGHTS, 1, 1) for _ in range(2)]
    assert alarms(welch(*arms).above(limit)).mean() <= ALPHA


@pytest.mark.parametrize("draw", [normal, heavy])
def test_two_looks_at_half_the_rate_each_raise_no_more_alarms(draw: Draw) -> None:
    random = np.random.default_rng(11)
    base, head = draw(random, NIGHTS, 6, 10), draw(random, NIGHTS, 6, 10)
    first = alarms(paired(base[..., :5], head[..., :5]).above(0.0), ALPHA / 2)
    second = alarms(paired(base, head).above(0.0), ALPHA / 2)
    rate = float((first | second).mean())
    assert rate <= ALPHA + slack(ALPHA)
    assert rate > ALPHA / 2, "the second look adds to the first"


def test_against_many_nights_the_night_is_the_unit() -> None:
    """Launches of a night share what the night was like; counted as launches, equal code often fails."""
    random = np.random.default_rng(5)
    history = random.normal(0, 1, (NIGHTS, 6, 1)) + 0.5 * random.normal(size=(NIGHTS, 6, 5))
    tonight = random.normal(0, 1, (NIGHTS, 1)) + 0.5 * random.normal(size=(NIGHTS, 5))
    by_night = nights(history.mean(axis=-1), tonight.mean(axis=-1)).above(0.0) <= ALPHA
    by_launch = welch(history.reshape(NIGHTS, 30), tonight).above(0.0) <= ALPHA
    assert by_night.mean() == pytest.approx(ALPHA, abs=slack(ALPHA))
    assert by_launch.mean() > 0.2


def noise_like(between: float) -> Noise:
    return Noise(
        metric="step_s", median=0.2, launches=10, starts=2, within=None, between=between, degrees=8, between_starts=None
    )


@pytest.mark.parametrize("family", [1, 2, 6])
@pytest.mark.parametrize("name", NOISES)
def test_what_the_gate_says_it_finds_is_found_in_95_nights_of_100(name: str, family: int) -> None:
    """One cell of the family has become slower by just that much; exact, so it may be 3 standard errors off."""
    limit = 0.05 if name.endswith("step") else 0.02
    random = np.random.default_rng(family)
    for launches in (3, 5, 10):
        change = smallest_gated_change(noise_like(NOISES[name]), launches, family=family, limit=limit)
        assert change is not None and change > limit
        base, head = (NOISES[name] * normal(random, NIGHTS // 2, family, launches) for _ in range(2))
        head[:, 0] += math.log1p(change)
        found = (holm(paired(base, head).above(math.log1p(limit)))[:, 0] <= ALPHA).mean()
        assert found == pytest.approx(0.95, abs=slack(0.95, NIGHTS // 2))


@pytest.mark.parametrize("cells", [2, 6])
def test_five_launches_rarely_leave_a_night_of_equal_arms_undecided(cells: int) -> None:
    """By the defaults, half of the cells compiled, which scatter most: a gate that mostly shrugs is ignored too."""
    spec, family = GateSpec(), 2 * cells
    random = np.random.default_rng(cells)
    undecided = np.zeros(NIGHTS, dtype=bool)
    for name, sd in NOISES.items():
        limit = math.log1p(spec.also["step_s"] if name.endswith("step") else spec.practical_limit)
        base, head = (sd * normal(random, NIGHTS, cells // 2, 5) for _ in range(2))
        unit = math.log1p(growth_found(0.001, 4, limit=limit, alpha=ALPHA / family)) - limit
        change = paired(base, head)
        found = limit + change.error * unit / 0.001
        undecided |= (found > math.log1p(spec.detectable)).any(axis=-1)
        is_told = np.abs(change.centre) > change.half(0.95)
        is_large = np.abs(np.median(head, axis=-1) - np.median(base, axis=-1)) > limit
        undecided |= (is_told & is_large).any(axis=-1)
    assert undecided.mean() <= 0.02


@pytest.mark.parametrize("count", [5, 15])
def test_many_nights_find_what_they_say(count: int) -> None:
    change = math.log1p(growth_found(0.004 * math.sqrt(1 + 1 / count), count - 1, limit=0.02, alpha=ALPHA / 6))
    random = np.random.default_rng(count)
    history, tonight = 0.004 * normal(random, NIGHTS, count), 0.004 * normal(random, NIGHTS) + change
    found = (nights(history, tonight).above(0.02) <= ALPHA / 6).mean()
    assert found == pytest.approx(0.95, abs=slack(0.95))


def test_what_is_found_by_hand() -> None:
    """Without scatter the limit itself; more tests, fewer launches or a wider limit find less."""
    assert growth_found(0.0, 4, limit=math.log1p(0.02), alpha=0.01) == pytest.approx(0.02)
    noise = noise_like(0.005)
    by_family = [smallest_gated_change(noise, 5, family=family, limit=0.02) or 0 for family in (1, 2, 12)]
    by_launches = [smallest_gated_change(noise, count, family=2, limit=0.02) or 0 for count in (10, 8, 5, 3)]
    assert by_family == sorted(by_family) and by_launches == sorted(by_launches)
    of_floor = smallest_gated_change(noise, 5, family=1, limit=0.02, floor_s=0.02)  # a tenth of the median
    assert of_floor == pytest.approx(smallest_gated_change(noise, 5, family=1, limit=0.1))
    assert smallest_gated_change(noise, 1, family=1, limit=0.02) is None
    assert math.isinf(growth_found(1.0, 2, limit=0.0, alpha=1e-9))


def test_levels_too_small_for_the_launches_are_told_without_a_jump() -> None:
    """Two degrees of freedom: the critical value is 1 / sqrt(2 alpha), and passes 300 here."""
    shifts = [math.log1p(growth_found(0.001, 2, limit=0.0, alpha=1 / (2 * critical**2))) for critical in (299, 301)]
    assert shifts[1] / shifts[0] == pytest.approx(301 / 299, rel=1e-3)
