from __future__ import annotations

from pathlib import Path

import pytest

from momkd_fl.data.encoders import canonical_encoder, check_dimension, is_known, resolve_encoder
from momkd_fl.errors import UserError

PLAIN = Path("/data/features/S1.h5")
IN_FOLDER = Path("/data/20x_256px_0px_overlap/features_uni_v2/S1.h5")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("uni_v2", "uni2-h"),
        ("UNI2-h", "uni2-h"),
        ("MahmoodLab/UNI2-h", "uni2-h"),
        ("uni_v1", "uni"),
        ("conch_v15", "conch-v1.5"),
        ("CONCH v1.5", "conch-v1.5"),
        ("hoptimus0", "h-optimus-0"),
        ("midnight12k", "midnight"),
        ("Synthetic_256", "synthetic-256"),
        ("resnet18-imagenet(512)", "resnet18-imagenet-512"),
    ],
)
def test_one_spelling_for_one_encoder(name, expected):
    assert canonical_encoder(name) == expected
    assert canonical_encoder(expected) == expected


def test_the_1024_dimensional_encoders_stay_apart():
    assert len({canonical_encoder(name) for name in ("uni", "resnet50", "phikon-v2", "musk", "gpfm")}) == 5


@pytest.mark.parametrize(
    ("path", "attribute", "configured", "expected"),
    [
        (PLAIN, "uni_v2", None, "uni2-h"),
        (PLAIN, "uni_v2", "UNI2-h", "uni2-h"),
        (IN_FOLDER, None, None, "uni2-h"),
        (IN_FOLDER, "placeholder", None, "uni2-h"),
        (PLAIN, "resnet18-imagenet(512)", "resnet18-swarm", "resnet18-swarm"),
        (PLAIN, "house encoder", None, "house-encoder"),
        (Path("/d/features_house/S1.h5"), None, None, "house"),
        (PLAIN, None, "conch", "conch"),
        (PLAIN, None, None, None),
    ],
)
def test_who_names_the_encoder(path, attribute, configured, expected):
    assert resolve_encoder(path, attribute, configured) == expected


@pytest.mark.parametrize(("path", "attribute"), [(PLAIN, "uni_v2"), (IN_FOLDER, None), (IN_FOLDER, "placeholder")])
def test_a_published_name_in_the_file_cannot_be_contradicted(path, attribute):
    with pytest.raises(UserError, match=r"uni2-h.*conch") as error:
        resolve_encoder(path, attribute, "conch")
    assert error.value.code == "encoder-conflict"


def test_dimension_that_the_encoder_never_gives():
    check_dimension(PLAIN, "uni2-h", 1536)
    check_dimension(PLAIN, "house", 17)
    assert not is_known("house")
    with pytest.raises(UserError, match=r"1024 dimensions.*1536") as error:
        check_dimension(PLAIN, "uni2-h", 1024)
    assert error.value.code == "encoder-dim"
