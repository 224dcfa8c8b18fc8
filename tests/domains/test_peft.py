"""Adapters of peft in fit, find_lr, fine_tune and checkpoints."""

import copy
import warnings

import pytest
import torch
from torch.utils.data import DataLoader

from mxtorch import Callback, Trainer
from mxtorch.callbacks import EMA, BestWeights, Checkpoint

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    transformers = pytest.importorskip("transformers")
    peft = pytest.importorskip("peft")

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # what peft asks of transformers
HEAD = "base_model.model.classifier"


def loader():
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(1, 30, (24, 6), generator=generator)
    samples = [{"input_ids": one, "labels": one[0] % 3} for one in words]
    return DataLoader(samples, batch_size=6, shuffle=True)


def made(kind=None, **options):
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=8, num_labels=3,
    )  # fmt: skip
    base = transformers.BertForSequenceClassification(config)
    adapters = kind or peft.LoraConfig(r=2, target_modules=["query", "value"], modules_to_save=["classifier"])
    net = peft.get_peft_model(base, adapters)
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=1e-2)
    return Trainer(net, None, optimizer, device="cpu", progress=False, **options)


def frozen_part(net):
    return {name: p.detach().clone() for name, p in net.named_parameters() if not p.requires_grad}


def unchanged(net, before):
    now = dict(net.named_parameters())
    return all(torch.equal(now[name], value) and not now[name].requires_grad for name, value in before.items())


@pytest.mark.parametrize(
    "kind",
    [
        None,
        peft.LoraConfig(r=2, use_dora=True, target_modules=["query"], modules_to_save=["classifier"]),
        peft.IA3Config(target_modules=["value", "intermediate.dense"], feedforward_modules=["intermediate.dense"],
                       modules_to_save=["classifier"]),
    ],
    ids=["LoRA", "DoRA", "IA3"],
)  # fmt: skip
def test_only_the_adapters_are_trained(kind):
    trainer = made(kind, callbacks=[EMA(), BestWeights()])
    before = frozen_part(trainer.model)
    adapters = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
    history = trainer.fit(loader(), loader(), epochs=3, schedule="one_cycle")
    assert unchanged(trainer.model, before)
    assert any(not torch.equal(dict(trainer.model.named_parameters())[n], value) for n, value in adapters.items())
    assert history["train/loss"][-1] < history["train/loss"][0]


def test_find_lr_leaves_no_trace():
    trainer = made()
    before = copy.deepcopy(trainer.model.state_dict())
    found = trainer.find_lr(loader(), schedule="one_cycle", epochs=3, num_steps=60)
    assert found.trials
    assert all(torch.equal(before[name], value) for name, value in trainer.model.state_dict().items())


def test_fine_tune_keeps_frozen_what_the_adapters_leave_frozen():
    trainer = made()
    before = frozen_part(trainer.model)
    trainer.fine_tune(loader(), loader(), epochs=1, freeze_epochs=1, head=HEAD, lr=(1e-2, 1e-3))
    assert unchanged(trainer.model, before)
    assert trainer.epoch == 2
    with pytest.raises(ValueError, match="head: PeftModel"):
        made().fine_tune(loader(), epochs=1)


def test_a_run_is_resumed_bit_for_bit_and_saved_by_peft(tmp_path):
    class Kill(Callback):
        def on_step(self, trainer):
            if trainer.step == 6:
                raise KeyboardInterrupt

    def run(folder, *more, resume=None):
        trainer = made(callbacks=[*more, Checkpoint(folder, every=1)])
        trainer.fit(loader(), epochs=2, schedule="warmup_linear", resume=resume)
        return trainer

    whole = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", Kill())
    parts = run(tmp_path / "parts", resume="auto")
    state = whole.model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in parts.model.state_dict().items())
    parts.model.save_pretrained(tmp_path / "adapters")
    assert (tmp_path / "adapters" / "adapter_model.safetensors").exists()


def test_merged_adapters_predict_the_same():
    trainer = made()
    data = loader()
    trainer.fit(data, epochs=1)
    ordered = DataLoader(data.dataset, batch_size=6)
    with_adapters = trainer.predict(ordered)
    merged = trainer.model.merge_and_unload()
    plain = Trainer(merged, None, torch.optim.SGD(merged.parameters(), lr=0.1), device="cpu", progress=False)
    torch.testing.assert_close(plain.predict(ordered), with_adapters, rtol=1e-4, atol=1e-5)
