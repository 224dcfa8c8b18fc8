"""The facts of the catalogue equal those of the installed libraries."""

from __future__ import annotations

import math
import re
import warnings
from pathlib import Path
from typing import get_args

import pytest
import timm
import torchvision
from timm.models import get_pretrained_cfg

import model_zoo
from model_zoo.catalogue import ENTRIES
from model_zoo.catalogue.hashes import WHOLE
from model_zoo.catalogue.names import ModelName, WeightTag
from model_zoo.families import FAMILIES

ROOT = Path(__file__).parents[2]
OF_TORCHVISION = [name for name, entry in ENTRIES.items() if entry.builder.startswith("torchvision")]
OF_TIMM = [name for name, entry in ENTRIES.items() if entry.builder.startswith("timm")]
OF_CADENE = [name for name, entry in ENTRIES.items() if entry.builder.startswith("cadene")]


@pytest.mark.parametrize("name", OF_TORCHVISION)
def test_torchvision(name):
    entry = ENTRIES[name]
    published = torchvision.models.get_model_weights(entry.builder.split(":")[1])
    for weights in entry.weights:
        if weights.tag == "cadene":
            continue
        theirs = published[weights.tag]
        assert weights.files[0].url == theirs.url
        assert weights.top1 == theirs.meta["_metrics"]["ImageNet-1K"]["acc@1"]
        transforms, ours = theirs.transforms(), weights.preprocessing
        assert ([ours.size], [ours.resize]) == (transforms.crop_size, transforms.resize_size)
        assert ours.interpolation == transforms.interpolation.value
        if name != "inception_v3":  # torchvision's network has its own transform inside, which these numbers replace
            assert (list(ours.mean), list(ours.std)) == (transforms.mean, transforms.std)
            assert entry.parameters == theirs.meta["num_params"]
        assert entry.gmacs == pytest.approx(theirs.meta["_ops"], abs=1e-3)


@pytest.mark.parametrize("name", OF_TIMM)
def test_timm(name):
    model = ENTRIES[name].builder.split(":")[1]
    assert timm.is_model(model)
    for weights in ENTRIES[name].weights:
        if weights.tag == "cadene":
            continue
        theirs = get_pretrained_cfg(f"{model}.{weights.tag}")
        assert theirs is not None, weights.tag
        assert theirs.license == weights.licence.lower()
        hubs = {file.hub for file in weights.files if file.hub}
        assert hubs <= {theirs.hf_hub_id}
        if (theirs.url or "").endswith(".pth"):
            assert theirs.url.rsplit("/", 1)[-1] in {file.name for file in weights.files}
        ours = weights.preprocessing
        assert (ours.size, ours.resize) == (theirs.input_size[-1], math.floor(theirs.input_size[-1] / theirs.crop_pct))
        assert ours.interpolation == theirs.interpolation
        assert (ours.mean, ours.std) == (pytest.approx(theirs.mean), pytest.approx(theirs.std))


def test_pretrainedmodels():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pretrainedmodels.models.utils import pretrained_settings
    checked = 0
    for entry in ENTRIES.values():
        for weights in entry.weights:
            if weights.tag == "cadene":
                theirs = next(iter(pretrained_settings[entry.name].values()))
                assert weights.files[0].url == theirs["url"].replace("http:", "https:")
                ours, scale = weights.preprocessing, max(theirs["input_range"])
                assert (ours.size, ours.channels) == (theirs["input_size"][-1], theirs["input_space"])
                assert [mean * scale for mean in ours.mean] == pytest.approx(theirs["mean"])
                assert [std * scale for std in ours.std] == pytest.approx(theirs["std"])
                checked += 1
    assert checked >= len(OF_CADENE)


def test_the_names_for_editors_equal_those_of_the_catalogue():
    assert get_args(ModelName) == tuple(ENTRIES)
    assert set(get_args(WeightTag)) == {weights.tag for entry in ENTRIES.values() for weights in entry.weights}
    assert set(ENTRIES) <= set(model_zoo.__all__)
    for name in ENTRIES:
        assert getattr(model_zoo, name).__name__ == name


def test_every_file_has_an_address_and_most_have_a_hash():
    for entry in ENTRIES.values():
        assert entry.family in FAMILIES
        tags = [weights.tag for weights in entry.weights]
        assert len(tags) == len(set(tags))
        for weights in entry.weights:
            assert weights.licence
            assert (weights.top1 is None) == (weights.measured_by == "")
            assert any(file.url for file in weights.files)
            for file in weights.files:
                assert not file.url or file.url.startswith("https://")
                assert re.fullmatch(r"[0-9a-f]{8,64}", file.sha256) or file.hub
                digits = re.search(r"-([0-9a-f]{8,9})\.pth$", file.name)
                assert digits is None or file.sha256.startswith(digits[1])
                assert len(file.sha256) in (0, 8, 9, 64)


def test_the_documents_have_the_numbers_of_hashes():
    files = {
        file.name: file for entry in ENTRIES.values() for weights in entry.weights for file in weights.files
    }.values()
    whole = sum(len(file.sha256) == 64 for file in files)
    none = sum(not file.sha256 for file in files)
    sentence = (
        f"Of the {len(files)} files of the list, {whole} have a whole pinned sha256, {len(files) - whole - none} the "
        f"first eight or nine digits, and {none} none"
    )
    for name in ("SECURITY.md", "docs/how-to/model-zoo.md"):
        assert sentence in " ".join((ROOT / name).read_text().split())
    assert set(WHOLE) <= {file.name for file in files}


def test_a_file_name_means_one_file():
    seen = {}
    for entry in ENTRIES.values():
        for weights in entry.weights:
            for file in weights.files:
                first = seen.setdefault(file.name, file)
                assert (first.sha256, first.hub) == (file.sha256, file.hub)
