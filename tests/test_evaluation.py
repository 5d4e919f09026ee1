import copy

import numpy as np
import pytest
import torch

from vireid_lite import metrics, models
from vireid_lite.data import ImageStore, Modality, SyntheticVI, cached, people
from vireid_lite.errors import InputError
from vireid_lite.metrics.evaluation import direction_name, embed_store, evaluate, identities_and_cameras, ranked


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return models.build("agw", 12, "lite").eval()


def test_features_stand_in_the_stores_order(model, tiny):
    records = [*tiny.val[::-1]]
    store = cached(tiny, records, progress=False)
    features = embed_store(model, store, batch_size=5, progress=False)
    for row in (0, len(records) // 2, len(records) - 1):
        alone = model.embed(store.batch(np.array([row])), records[row].modality)[0]
        assert torch.allclose(features[row], alone, atol=1e-5)


@pytest.mark.parametrize("query_modality", Modality)
def test_scores_equal_the_metric_on_the_full_distance_matrix(model, tiny, query_modality):
    result = evaluate(model, tiny, query_modality, progress=False)
    (trial,) = tiny.trials(query_modality)
    assert {record.modality for record in trial.query} == {query_modality}
    query, gallery = (
        embed_store(model, cached(tiny, side, progress=False), progress=False) for side in (trial.query, trial.gallery)
    )
    expected = metrics.evaluate(torch.cdist(query, gallery), *identities_and_cameras(trial))
    assert result.rank1 == pytest.approx(expected.rank1)
    assert result.mAP == pytest.approx(expected.mAP, abs=1e-6)
    assert result.mINP == pytest.approx(expected.mINP, abs=1e-6)
    assert result.mAP >= result.chance.minimum.mAP
    weights = result.per_identity.queries / result.per_identity.queries.sum()
    assert (weights * result.per_identity.rank1).sum() == pytest.approx(result.rank1)


def test_only_the_query_is_perturbed(model, tiny):
    seen = []

    def black(images, modality):
        seen.append((modality, torch.is_grad_enabled(), len(images)))
        return torch.zeros_like(images)

    clean = evaluate(model, tiny, Modality.INFRARED, progress=False)
    attacked = evaluate(model, tiny, Modality.INFRARED, perturb=black, progress=False)
    assert {modality for modality, _, _ in seen} == {Modality.INFRARED}
    assert all(grad for _, grad, _ in seen), "an attack may need gradients"
    assert sum(count for _, _, count in seen) == clean.trials[0].valid_queries
    assert attacked.rank1 == pytest.approx(1 / 6), "one feature for all queries finds one identity"


def test_the_gallery_is_perturbed_only_where_asked(model, tiny):
    seen = []

    def negative(images, modality):
        seen.append(modality)
        return 1 - images

    clean = evaluate(model, tiny, Modality.INFRARED, progress=False)
    options = {"perturb_gallery": negative, "progress": False}
    gallery = evaluate(model, tiny, Modality.INFRARED, **options)
    assert seen == [Modality.VISIBLE]
    both = evaluate(model, tiny, Modality.INFRARED, perturb=negative, **options)
    query = evaluate(model, tiny, Modality.INFRARED, perturb=negative, clean=clean, progress=False)
    assert torch.equal(gallery.query, clean.query)
    assert not torch.allclose(gallery.gallery, clean.gallery, atol=1e-3)
    assert torch.equal(both.query, query.query)
    assert torch.equal(both.gallery, gallery.gallery)
    (trial,) = tiny.trials(Modality.INFRARED)
    expected = metrics.evaluate(torch.cdist(both.query, both.gallery), *identities_and_cameras(trial))
    assert both.mAP == pytest.approx(expected.mAP, abs=1e-6)


def test_a_clean_gallery_cannot_stand_for_a_perturbed_one(model, tiny):
    clean = evaluate(model, tiny, Modality.VISIBLE, progress=False)
    with pytest.raises(InputError, match="clean brings a clean gallery") as refusal:
        evaluate(model, tiny, Modality.VISIBLE, clean=clean, perturb_gallery=lambda x, _: x, progress=False)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("query_modality", Modality)
def test_crafted_queries_score_as_the_same_change_made_on_the_fly(model, tiny, query_modality):
    (trial,) = tiny.trials(query_modality)
    clean = cached(tiny, trial.query, progress=False)
    # Another order, and more than the queries: rows are found by record.
    records = [*trial.query[::-1], *tiny.val]
    others = cached(tiny, tiny.val, progress=False).images
    crafted = ImageStore(255 - np.concatenate([clean.images[::-1], others]), records)
    stored = evaluate(model, tiny, query_modality, query_store=crafted, progress=False)
    on_the_fly = evaluate(model, tiny, query_modality, perturb=lambda images, modality: 1 - images, progress=False)
    assert np.array_equal(stored.per_identity.rank1, on_the_fly.per_identity.rank1)
    assert stored.mAP == pytest.approx(on_the_fly.mAP, abs=1e-6)
    assert stored.mAP != pytest.approx(evaluate(model, tiny, query_modality, progress=False).mAP, abs=1e-6)


def test_crafted_queries_must_be_whole_and_are_not_perturbed_again(model, tiny):
    (trial,) = tiny.trials(Modality.VISIBLE)
    store = cached(tiny, trial.query[1:], progress=False)
    with pytest.raises(InputError, match=f"lacks 1 of {len(trial.query)} queries"):
        evaluate(model, tiny, Modality.VISIBLE, query_store=store, progress=False)
    store = cached(tiny, trial.query, progress=False)
    with pytest.raises(InputError, match="perturb and query_store"):
        evaluate(model, tiny, Modality.VISIBLE, query_store=store, perturb=lambda x, m: x, progress=False)


def test_several_trials_are_averaged(model, tiny):
    (trial,) = tiny.trials(Modality.VISIBLE)
    half = trial._replace(gallery=trial.gallery[::2])
    both = evaluate(model, tiny, Modality.VISIBLE, trials=[trial, half], progress=False)
    apart = [evaluate(model, tiny, Modality.VISIBLE, trials=[t], progress=False).mAP for t in (trial, half)]
    assert both.mAP == pytest.approx(np.mean(apart))


def test_ranked_agrees_with_the_scores(model, tiny):
    (trial,) = tiny.trials(Modality.VISIBLE)
    queries, rankings = ranked(model, tiny, trial, queries=trial.query)
    result = evaluate(model, tiny, Modality.VISIBLE, progress=False)
    right = [ranking[0].identity == query.identity for query, ranking in zip(queries, rankings, strict=True)]
    assert np.mean(right) == pytest.approx(result.rank1)
    assert all(len(ranking) == 10 for ranking in rankings)


def test_direction_is_named_in_words():
    assert direction_name(Modality.VISIBLE) == "visible to infrared"


def test_people_a_model_was_trained_on_are_not_ranked(model, tiny, tmp_path):
    """Whoever loads the checkpoint, the network says whom it has seen."""
    trial, seen = tiny.val_trial(), copy.deepcopy(model)
    seen.people = people(tiny, [*tiny.train, tiny.val[0]])
    models.checkpoints.save_checkpoint(tmp_path / "v.safetensors", seen, {})
    seen, _ = models.checkpoints.load_checkpoint(tmp_path / "v.safetensors")
    with pytest.raises(InputError, match=r"synthetic: the victim was trained on 1 of the 6 people to be ranked; "):
        evaluate(seen, tiny, trials=[trial], progress=False)
    assert evaluate(seen, tiny, progress=False).rank1 >= 0
    assert not seen.people & people(SyntheticVI(12, 4, size=(32, 16), seed=1), trial.query)
