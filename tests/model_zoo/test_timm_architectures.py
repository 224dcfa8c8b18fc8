"""Architectures of timm with one input channel and a user's `fc`, on the meta device."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import model_zoo

# One model of every kind of first layer and of head: several first convolutions (fastvit, mobileone, repvgg,
# repghostnet), blocks of pixels as channels (tresnet), patches through a linear layer (naflexvit), heads within heads.
WORK = (
    "tresnet_m", "repvgg_a0", "fastvit_t8", "mobileone_s0", "naflexvit_base_patch16_gap", "repghostnet_050",
    "convnext_atto", "vit_tiny_patch16_224", "beit_base_patch16_224", "swin_tiny_patch4_window7_224", "coatnet_0_224",
    "maxvit_tiny_tf_224", "hrnet_w18_small", "regnetx_002", "ghostnet_050", "mobilevit_xxs", "edgenext_xx_small",
    "pvt_v2_b0", "mixer_s32_224", "inception_next_tiny", "mambaout_femto", "vovnet39a", "xcit_nano_12_p16_224",
    "poolformer_s12", "hiera_tiny_224",
)  # fmt: skip
REFUSED = (
    ("levit_128", "has several classifiers"),
    ("repvit_m0_9", "has several classifiers"),
    ("deit_tiny_distilled_patch16_224", "has several classifiers"),
    ("gemma4_vit_570m_enc", "has no classifier"),
    ("mobilenetv5_300m_enc", "has no classifier"),
    ("csatv2", "takes only images with 3 channels"),
)


@pytest.mark.parametrize("name", WORK)
def test_one_channel_and_a_new_head(name):
    with torch.device("meta"), torch.no_grad():
        net = model_zoo.create(f"timm/{name}", num_classes=7, in_channels=1).eval()
        side = net.pretrained_cfg["input_size"][-1]
        pictures = torch.empty(2, 1, side, side)
        assert net(pictures).shape == (2, 7)
        net.fc = nn.Linear(net.fc.in_features, 5)
        assert net(pictures).shape == (2, 5)


@pytest.mark.parametrize(("name", "reason"), REFUSED)
def test_models_that_the_zoo_can_not_build_are_refused(name, reason):
    with torch.device("meta"), pytest.raises(ValueError, match=reason):
        model_zoo.create(f"timm/{name}", in_channels=1)


@pytest.mark.filterwarnings("ignore:.*no published hash")
@pytest.mark.parametrize("name", ["resnet10t", "repvgg_a0", "mobileone_s0", "fastvit_t8", "tresnet_m"])
@pytest.mark.parametrize("source", ["pretrained", "file"])
def test_weights_for_colours_are_fitted_to_one_channel(name, source, tmp_path, monkeypatch):
    """A grey picture gives the same outputs as the same picture in RGB."""
    import timm
    from safetensors.torch import save_file

    monkeypatch.setenv("MXTORCH_WEIGHTS_MIRROR", str(tmp_path))
    monkeypatch.setenv("MXTORCH_OFFLINE", "1")
    tag = model_zoo.info(f"timm/{name}").weights[0].tag
    colour = timm.create_model(name, num_classes=1000).eval()
    save_file(
        {key: tensor.contiguous() for key, tensor in colour.state_dict().items()},
        tmp_path / f"{name}.{tag}.safetensors",
    )
    options = {"pretrained": True} if source == "pretrained" else {"weights": tmp_path / f"{name}.{tag}.safetensors"}
    grey = model_zoo.create(f"timm/{name}", in_channels=1, **options).eval()
    picture = torch.randn(1, 1, 64, 64)
    with torch.no_grad():
        expected = colour(picture.expand(1, 3, 64, 64))
        assert torch.allclose(grey(picture), expected, atol=1e-4 * float(expected.abs().max()) + 1e-5)


@pytest.mark.parametrize(("name", "channels"), [("tresnet_m", 5), ("naflexvit_base_patch16_gap", 1)])
def test_weights_that_can_not_be_fitted_are_refused(name, channels):
    """timm would leave random values in the first layer."""
    from model_zoo.builders import check_first_layers

    with torch.device("meta"):
        net = model_zoo.create(f"timm/{name}", in_channels=channels)
    with pytest.raises(ValueError, match=r"in_channels: got ., but weights for 3 channels can't be fitted"):
        check_first_layers(net, name, channels)
