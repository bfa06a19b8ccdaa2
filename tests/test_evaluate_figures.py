"""Fréchet distances, Sampson errors and intervals where the answer is known."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from hpc.evaluate import frechet, intervals, sampson
from hpc.evaluate.frechet import Statistics


def of(features: np.ndarray) -> Statistics:
    made = Statistics(features.shape[1])
    made.add(features)
    return made


def gaussian(rng: np.random.Generator, n: int, mean: np.ndarray, root: np.ndarray) -> np.ndarray:
    return mean + rng.standard_normal((n, len(mean))) @ root.T


# Fréchet distances


def test_two_gaussians_in_closed_form() -> None:
    """Covariances that commute: |m1 - m2|^2 + sum (s1 - s2)^2. In one dimension that is all there is."""
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.standard_normal((6, 6)))[0]
    s1, s2 = rng.uniform(0.5, 3, 6), rng.uniform(0.5, 3, 6)
    m1, m2 = rng.standard_normal(6), rng.standard_normal(6)
    known = np.square(m1 - m2).sum() + np.square(s1 - s2).sum()
    found = frechet.of_moments(m1, turn * s1**2 @ turn.T, m2, turn * s2**2 @ turn.T)
    assert found == pytest.approx(known, rel=1e-12)
    one = frechet.of_moments(np.array([1.0]), np.array([[4.0]]), np.array([3.0]), np.array([[9.0]]))
    assert one == pytest.approx(5.0, rel=1e-12)


def test_covariances_that_do_not_commute() -> None:
    """tr (S1 S2)^(1/2) of two 2 x 2 matrices is sqrt(tr S1 S2 + 2 sqrt det S1 S2)."""
    s1, s2 = np.array([[2.0, 0.7], [0.7, 1.0]]), np.array([[0.5, -0.3], [-0.3, 3.0]])
    product = s1 @ s2
    cross = np.sqrt(np.trace(product) + 2 * np.sqrt(np.linalg.det(product)))
    known = np.trace(s1) + np.trace(s2) - 2 * cross
    assert frechet.of_moments(np.zeros(2), s1, np.zeros(2), s2) == pytest.approx(known, rel=1e-12)


def test_samples_come_near_the_closed_form_and_equal_sets_give_nothing() -> None:
    rng = np.random.default_rng(1)
    mean, root = np.array([0.0, 1.0, 2.0]), np.diag([1.0, 2.0, 0.5])
    one, other = gaussian(rng, 60_000, mean, root), gaussian(rng, 60_000, mean + 0.5, 2 * root)
    known = 3 * 0.25 + (1 + 4 + 0.25)
    assert frechet.distance(of(one), of(other)) == pytest.approx(known, rel=0.02)
    assert frechet.distance(of(one), of(one)) == 0
    shuffled = rng.permutation(one)
    assert frechet.distance(of(one), of(shuffled)) < 1e-6


@pytest.mark.parametrize("n", [3, 40])
def test_statistics_merge_in_any_order(n: int) -> None:
    """Also where there are fewer features than dimensions, which are kept as they are until then."""
    rng = np.random.default_rng(2)
    parts = [rng.standard_normal((n, 8)).astype(np.float32) + 5 for _ in range(4)]
    mean, covariance = of(np.concatenate(parts)).moments()
    assert mean == pytest.approx(np.concatenate(parts).astype(np.float64).mean(0), rel=1e-12)
    assert covariance == pytest.approx(np.cov(np.concatenate(parts).astype(np.float64), rowvar=False), rel=1e-9)
    for order in itertools.permutations(range(4)):
        statistics = [Statistics.of_arrays(of(parts[i]).arrays()) for i in order]
        merged = frechet.combined(statistics)
        assert merged.n == 4 * n
        for found, known in zip(merged.moments(), (mean, covariance), strict=True):
            assert found == pytest.approx(known, rel=1e-12, abs=1e-13)
    twice = frechet.combined([of(parts[0]), of(parts[1])], [2, 0])
    assert twice.n == 2 * n and twice.moments()[0] == pytest.approx(parts[0].astype(np.float64).mean(0))


def test_few_features_are_kept_small() -> None:
    few, many = (of(np.ones((n, 512), np.float32)) for n in (4, 600))
    assert sum(one.nbytes for one in few.arrays().values()) < 20_000
    assert many.arrays()["outer"].shape == (512, 512) and not len(many.arrays()["rows"])


def test_what_cannot_be_added_is_refused() -> None:
    made = Statistics(3)
    with pytest.raises(ValueError, match=r"features are \[2, 4\]"):
        made.add(np.zeros((2, 4)))
    with pytest.raises(ValueError, match="NaN"):
        made.add(np.full((1, 3), np.nan))
    with pytest.raises(ValueError, match="of two networks"):
        made.merge(of(np.zeros((2, 4))))
    made.add(np.zeros((1, 3)))
    with pytest.raises(ValueError, match="two features at least"):
        made.moments()


# Intervals


def test_intervals_of_means_hold_the_mean_as_often_as_they_say() -> None:
    rng = np.random.default_rng(3)
    held = 0
    for trial in range(200):
        found = intervals.of_mean(rng.standard_normal(60) + 2, 400, 0.9, intervals.generator(trial, "x"))
        assert found
        held += found[0] < 2 < found[1]
    assert 0.82 < held / 200 < 0.96
    assert intervals.of_mean([1.0] * 4, 100, 0.9, intervals.generator(0, "x")) is None
    same = [intervals.of_mean(np.arange(50.0), 100, 0.9, intervals.generator(7, "psnr")) for _ in range(2)]
    assert same[0] == same[1] != intervals.of_mean(np.arange(50.0), 100, 0.9, intervals.generator(7, "ssim"))


def test_intervals_of_distances_hold_the_distance() -> None:
    """The distance of such a set in the mean over many sets; intervals of quantiles would lie above it."""
    rng = np.random.default_rng(4)

    def drawn(shift: float) -> list[Statistics]:
        return [of(rng.standard_normal((20, 4)) + shift) for _ in range(15)]

    known = np.mean([frechet.distance(frechet.combined(drawn(0)), frechet.combined(drawn(1))) for _ in range(100)])
    held = 0
    for trial in range(60):
        one, other = drawn(0), drawn(1)
        found = intervals.of_distance(one, other, 50, 0.9, intervals.generator(trial, "x"))
        assert found
        held += found[0] < known < found[1]
    assert held / 60 > 0.75
    assert intervals.of_distance(drawn(0)[:4], drawn(0), 50, 0.9, intervals.generator(0, "x")) is None


# Sampson errors


def cameras(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points of a scene in two pictures of 960 x 540, and the F that the cameras have."""
    K = np.array([[500.0, 0, 480], [0, 500, 270], [0, 0, 1]])
    angle = 0.1
    R = np.array([[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]])
    t = np.array([-0.8, 0.1, 0.2])
    scene = np.stack([rng.uniform(-3, 3, n), rng.uniform(-1.5, 1.5, n), rng.uniform(4, 12, n)], 1)
    one, other = scene @ K.T, (scene @ R.T + t) @ K.T
    cross = np.array([[0, -t[2], t[1]], [t[2], 0, -t[0]], [-t[1], t[0], 0]])
    F = np.linalg.inv(K).T @ cross @ R @ np.linalg.inv(K)
    return one[:, :2] / one[:, 2:], other[:, :2] / other[:, 2:], F


def test_a_rigid_scene_has_no_error_and_the_right_matrix() -> None:
    x, y, F = cameras(np.random.default_rng(5), 60)
    assert sampson.errors(F, x, y).max() < 1e-9
    found = sampson.eight_point(x, y)
    found, F = (one / np.linalg.norm(one) * np.sign(one[2, 1]) for one in (found, F))
    assert found == pytest.approx(F, abs=1e-9)
    error = sampson.measured([(x, y)], 0)
    assert error and error.mean < 1e-6 and error.matches == 60


def test_the_error_is_the_distance_to_a_match_that_fits() -> None:
    """Noise of a deviation s in each coordinate: the error is one coordinate of four, so |e| is s sqrt(2 / pi)."""
    rng = np.random.default_rng(6)
    x, y, F = cameras(rng, 20_000)
    noisy = [points + rng.normal(0, 0.5, points.shape) for points in (x, y)]
    assert sampson.errors(F, *noisy).mean() == pytest.approx(0.5 * np.sqrt(2 / np.pi), rel=0.02)


def test_outliers_do_not_move_the_matrix_and_count_in_the_mean() -> None:
    rng = np.random.default_rng(7)
    x, y, _ = cameras(rng, 200)
    y = y + rng.normal(0, 0.2, y.shape)
    y[:60] = rng.uniform([0, 0], [960, 540], (60, 2))
    found = sampson.fundamental(x, y, 0)
    clean, clean_y, _ = cameras(np.random.default_rng(8), 100)
    assert np.median(sampson.errors(found, clean, clean_y)) < 0.3
    error = sampson.measured([(x, y)], 0)
    assert error and error.median < 0.5 < 5 < error.mean
    assert (sampson.fundamental(x, y, 0) == found).all(), "seeds are fixed"
    assert sampson.measured([(x[:15], y[:15])], 0) is None
    with pytest.raises(ValueError, match="here are 7"):
        sampson.fundamental(x[:7], y[:7], 0)


def test_points_of_a_moved_picture_are_matched() -> None:
    pytest.importorskip("cv2")
    rng = np.random.default_rng(9)
    small = rng.integers(0, 255, (30, 50), np.uint8)
    picture = np.kron(small, np.ones((8, 8))).astype(np.uint8)
    one, other = sampson.described(picture[:200, :300]), sampson.described(picture[10:210, 25:325])
    x, y = sampson.matched(one, other)
    assert len(x) > 50 and np.median(x - y, axis=0) == pytest.approx([25 * 540 / 200, 10 * 540 / 200], abs=0.3)
    error = sampson.measured([(x, y)], 0)
    assert error and error.median < 0.3
    nothing = sampson.described(np.zeros((64, 64), np.uint8))
    assert len(nothing.points_N2) == 0 and len(sampson.matched(nothing, one)[0]) == 0
