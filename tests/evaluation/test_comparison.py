from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from momkd_fl.errors import UserError
from momkd_fl.evaluation.comparison import Scores, compare, differences, held_out, matrix
from momkd_fl.evaluation.operating import operating


def scores(signal: float, *, seed: int = 0, sites: tuple[tuple[str, int], ...] = (("maple", 90), ("willow", 60))):
    """One model's predictions; labels depend on the patients alone, not on ``signal`` or ``seed``."""
    names = tuple(site for site, count in sites for _ in range(count))
    labels = (np.random.default_rng(99).random(len(names)) < 0.35).astype(np.int64)
    logits = signal * (labels - 0.5) + np.random.default_rng(seed).standard_normal(len(names))
    positive = 1 / (1 + np.exp(-logits))
    ids = tuple(f"{site}-{row}" for row, site in enumerate(names))
    return Scores(ids, labels, np.column_stack([1 - positive, positive]), names)


def shuffled(model: Scores, seed: int = 1) -> Scores:
    return model.rows(np.random.default_rng(seed).permutation(len(model.ids)))


def test_held_out_has_the_three_numbers() -> None:
    model = scores(1.5)
    found = held_out(model)
    by_site = {site: roc_auc_score(model.at(site).labels, model.at(site).probabilities[:, 1]) for site in found.sites}
    assert found.pooled.value == pytest.approx(roc_auc_score(model.labels, model.probabilities[:, 1]))
    assert {site: estimate.value for site, estimate in found.sites.items()} == pytest.approx(by_site)
    assert found.within_site.value == pytest.approx(np.mean(list(by_site.values())))
    assert found.between_sites_sd == pytest.approx(np.std(list(by_site.values()), ddof=1))
    assert found.prediction is not None
    assert found.prediction.value is None
    for estimate in (found.pooled, found.within_site, *found.sites.values()):
        assert 0 < estimate.low < estimate.value < estimate.high < 1


def test_small_sites_have_no_auroc_but_count_in_the_pooled_one() -> None:
    model = scores(1.5, sites=(("maple", 90), ("rowan", 12)))
    found = held_out(model)
    assert found.sites["rowan"].value is None
    assert found.within_site.value == found.sites["maple"].value
    assert found.between_sites_sd is None
    assert found.prediction is None
    assert found.pooled.value == pytest.approx(roc_auc_score(model.labels, model.probabilities[:, 1]))
    nothing = held_out(model.at("rowan"))
    assert nothing.pooled.value is None
    assert nothing.within_site.value is None


def test_a_prediction_interval_from_four_sites_on() -> None:
    sites = tuple((f"site{n}", 80) for n in range(5))
    found = held_out(scores(1.5, sites=sites), resamples=300)
    assert found.prediction.low < found.within_site.low
    assert found.prediction.high <= 1
    perfect = held_out(scores(60.0, sites=sites), resamples=300)
    assert perfect.prediction.value == pytest.approx(1.0)
    assert perfect.prediction.low < 1


def test_of_several_models_the_median_counts() -> None:
    locals_ = [scores(signal, seed=seed) for signal, seed in ((0.2, 1), (0.8, 2), (2.5, 3))]
    found = held_out([locals_[0], shuffled(locals_[1]), locals_[2]])
    areas = [roc_auc_score(model.labels, model.probabilities[:, 1]) for model in locals_]
    assert found.pooled.value == pytest.approx(np.median(areas))


def test_comparison_is_paired_whatever_the_order() -> None:
    better, worse = scores(2.0, seed=4), scores(0.5, seed=5)
    paired = compare(better, worse)
    assert paired == compare(better, shuffled(worse))
    assert paired.difference.low > 0
    assert paired.p_value < 0.01
    assert paired.patients == 150
    same = compare(better, shuffled(better))
    assert (same.difference.value, same.difference.low, same.difference.high, same.p_value) == (0, 0, 0, 1)


def test_pairing_narrows_the_interval() -> None:
    model = scores(1.2)
    noise = 0.05 * np.random.default_rng(8).standard_normal(150)
    near = np.clip(model.probabilities[:, 1] + noise, 0, 1)
    twin = Scores(model.ids, model.labels, np.column_stack([1 - near, near]), model.sites)
    paired, alone = compare(model, twin).difference, held_out(model).pooled
    assert paired.high - paired.low < 0.5 * (alone.high - alone.low)


def test_comparison_against_the_median_local_model() -> None:
    locals_ = [scores(0.3, seed=seed) for seed in range(3)]
    paired = compare(scores(2.0, seed=9), locals_)
    expected = held_out(scores(2.0, seed=9)).pooled.value - held_out(locals_).pooled.value
    assert paired.difference.value == pytest.approx(expected)
    assert 0 < paired.p_value < 0.01


def test_comparison_of_too_few_is_not_estimable() -> None:
    small = scores(1.0).rows(range(12))
    paired = compare(small, small)
    assert paired.difference.value is None
    assert paired.p_value is None


def test_other_patients_or_labels_are_refused_without_naming_anyone() -> None:
    model = scores(1.0)
    with pytest.raises(UserError) as error:
        compare(model, model.rows(range(149)))
    assert error.value.code == "comparison-patients-differ"
    assert "maple-" not in str(error.value)
    assert "willow-" not in str(error.value)
    flipped = Scores(model.ids, 1 - model.labels, model.probabilities, model.sites)
    with pytest.raises(UserError) as error:
        compare(model, flipped)
    assert error.value.code == "comparison-labels-differ"


def test_scores_refuse_doubles_and_other_lengths() -> None:
    model = scores(1.0)
    with pytest.raises(ValueError, match="twice"):
        Scores.join([model, model])
    with pytest.raises(ValueError, match="length"):
        Scores(model.ids, model.labels[1:], model.probabilities, model.sites)
    assert Scores.join([model.at("maple"), model.at("willow")]).ids == model.ids


def test_differences_are_adjusted_over_tasks() -> None:
    methods = {
        "PR": {"federated": scores(1.0, seed=1), "pooled": scores(1.1, seed=2)},
        "HER2": {"federated": scores(2.0, seed=3), "pooled": scores(0.4, seed=4)},
        "ODX": {"federated": scores(2.0, seed=5)},
    }
    found = differences(methods, [("federated", "pooled"), ("federated", "no_genomics_control")], resamples=200)
    assert [(one.task, one.method, one.reference) for one in found] == [
        ("PR", "federated", "pooled"),
        ("HER2", "federated", "pooled"),
    ]
    her2 = found[1]
    assert her2.p_holm == pytest.approx(2 * her2.p_value)
    assert all(one.p_holm >= one.p_value for one in found)


def test_operating_point_with_intervals() -> None:
    model = scores(1.5)
    found = operating(model, task="PR", method="federated", threshold=0.5)
    called = model.probabilities[:, 1] >= 0.5
    metrics = found.metrics
    assert metrics["sensitivity"].value == pytest.approx(called[model.labels == 1].mean())
    assert metrics["prevalence"].value == pytest.approx(model.labels.mean())
    assert metrics["auroc"] == held_out(model).pooled
    assert 0 < metrics["calibration_slope"].low < metrics["calibration_slope"].high
    assert len(metrics) == 13
    for estimate in metrics.values():
        assert estimate.low <= estimate.value <= estimate.high
    at_site = operating(model, task="PR", method="federated", threshold=0.5, site="willow")
    assert at_site.metrics["auroc"].value == held_out(model).sites["willow"].value


def test_operating_point_of_too_few_is_not_estimable() -> None:
    model = scores(1.5, sites=(("maple", 90), ("rowan", 12)))
    for site in ("rowan", "nowhere"):
        found = operating(model, task="PR", method="federated", threshold=0.5, site=site)
        assert all(estimate.value is None for estimate in found.metrics.values())


def test_operating_point_of_a_perfect_model() -> None:
    metrics = operating(scores(60.0), task="PR", method="federated", threshold=0.5).metrics
    assert metrics["sensitivity"].value == 1
    assert metrics["sensitivity"].low < 1
    assert metrics["calibration_slope"].reason == "a threshold separates the classes"


def test_a_site_under_ten_of_a_class_has_no_auroc_whatever_the_minimum() -> None:
    model = scores(1.5, sites=(("maple", 90), ("rowan", 17)))
    assert 0 < np.bincount(model.at("rowan").labels).min() < 10
    for minimum in (1, 5, 11):
        assert held_out(model, class_minimum=minimum, resamples=50).sites["rowan"].value is None
        assert matrix({"maple": model}, class_minimum=minimum, resamples=50)["maple"]["rowan"].value is None


def test_the_matrix_is_trained_by_tested() -> None:
    all_sites = (("maple", 60), ("rowan", 70), ("willow", 80), ("elder", 50))
    models = {site: scores(1.0 + n, sites=all_sites, seed=n) for n, site in enumerate(("rowan", "maple"))}
    elsewhere = {
        trained: Scores.join([model.at(site) for site in model.site_names if site != trained])
        for trained, model in models.items()
    }
    found = matrix(elsewhere, resamples=300)
    assert list(found) == ["rowan", "maple"]
    assert list(found["rowan"]) == list(found["maple"]) == ["rowan", "maple", "elder", "willow"]
    for trained in found:
        assert found[trained][trained].reason == "trained there"
        for tested in set(found) - {trained} | {"willow", "elder"}:
            here = models[trained].at(tested)
            cell = found[trained][tested]
            assert cell.value == pytest.approx(roc_auc_score(here.labels, here.probabilities[:, 1]))
            assert cell.low < cell.value < cell.high
    reordered = {trained: shuffled(model) for trained, model in elsewhere.items()}
    assert matrix(reordered, resamples=300)["maple"] == found["maple"]
    assert matrix(models, resamples=50)["rowan"]["rowan"].value is not None


def test_share_spared_is_the_share_called_negative() -> None:
    model = scores(1.5)
    found = operating(model, task="ODX", method="federated", threshold=0.4).metrics["share_spared"]
    assert found.value == pytest.approx((model.probabilities[:, 1] < 0.4).mean())
    assert found.low < found.value < found.high
