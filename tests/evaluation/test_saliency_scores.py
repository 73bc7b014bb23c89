import numpy as np
import pytest

from evaluation.saliency import METRICS, SaliencyScores, s_measure, saliency_metrics


def example(seed: int = 0, size: tuple[int, int] = (21, 34)) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = np.zeros(size, np.uint8)
    truth[4:15, 6:20] = 255
    return np.clip(0.5 * (truth > 0) + rng.random(size) * 0.6, 0, 1).astype(np.float32), truth


def plain_f(probs: np.ndarray, truth: np.ndarray, threshold: float) -> float:
    predicted = probs > np.float32(threshold)
    hits = (predicted & truth).sum()
    precision, recall = hits / (predicted.sum() + 1e-7), hits / (truth.sum() + 1e-7)
    return 1.09 * precision * recall / (0.09 * precision + recall + 1e-7)


@pytest.mark.parametrize("seed", range(4))
def test_equals_the_formulas(seed):
    probs, truth = example(seed)
    scores, mask = saliency_metrics(probs, truth), truth > 0
    predicted = probs > 0.5
    assert scores["iou"] == pytest.approx((predicted & mask).sum() / (predicted | mask).sum())
    assert scores["pixel_acc"] == pytest.approx((predicted == mask).mean())
    assert scores["mae"] == pytest.approx(np.abs(probs - mask).mean(), rel=1e-5)
    assert scores["f_score"] == pytest.approx(plain_f(probs, mask, 0.5))
    assert scores["f_max"] == pytest.approx(max(plain_f(probs, mask, i / 255) for i in range(255)))
    assert scores["f_mean"] == pytest.approx(plain_f(probs, mask, 2 * probs.mean(dtype=np.float64)))


def test_perfect_and_worst_prediction():
    _, truth = example()
    perfect = saliency_metrics((truth > 0).astype(np.float32), truth)
    assert all(perfect[name] == pytest.approx(1, abs=1e-6) for name in METRICS if name != "mae")
    assert perfect["mae"] == 0
    worst = saliency_metrics((truth == 0).astype(np.float32), truth)
    assert worst["iou"] == 0
    assert worst["mae"] == 1
    assert worst["f_max"] < 0.3
    assert worst["s_measure"] < 0.1


def test_empty_and_full_truth():
    probs = np.full((5, 7), 0.25, np.float32)
    assert s_measure(probs, np.zeros((5, 7), bool)) == pytest.approx(0.75)
    assert s_measure(probs, np.ones((5, 7), bool)) == pytest.approx(0.25)
    for truth in (np.zeros((5, 7)), np.ones((5, 7))):
        assert all(np.isfinite(value) for value in saliency_metrics(probs, truth).values())


@pytest.mark.parametrize(("rows", "columns"), [(slice(0, 1), slice(0, 1)), (slice(0, 1), slice(None)), (4, 6)])
def test_objects_at_the_border_have_finite_scores(rows, columns):
    truth = np.zeros((5, 7), bool)
    truth[rows, columns] = True
    score = s_measure(np.random.default_rng(0).random((5, 7)), truth)
    assert 0 <= score <= 1


def test_s_measure_falls_with_damage():
    probs, truth = example()
    clean = (truth > 0).astype(np.float32)
    scores = [s_measure((1 - a) * clean + a * probs[::-1], truth > 0) for a in (0, 0.3, 0.6, 1)]
    assert scores == sorted(scores, reverse=True)


def test_means_over_pictures_with_upper_bound():
    probs, truth = example()
    queries = np.stack([np.zeros_like(probs), probs, (truth > 0).astype(np.float32)])
    scores = SaliencyScores()
    scores.add(probs, truth, queries)
    scores.add(queries[2], truth, queries)
    means = scores.gather().means()
    assert means["num_images"] == 2
    assert means["ub_iou"] == pytest.approx(1)
    assert means["iou"] == pytest.approx((saliency_metrics(probs, truth)["iou"] + 1) / 2)


def test_refuses_other_shapes_and_no_pictures():
    with pytest.raises(ValueError, match=r"expected two equal shapes \(H, W\), received \(2, 3\) and \(3, 2\)"):
        saliency_metrics(np.zeros((2, 3)), np.zeros((3, 2)))
    with pytest.raises(ValueError, match="no picture has been scored"):
        SaliencyScores().means()
