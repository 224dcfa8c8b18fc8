"""
A time series, with its uncertainty
===================================

A GRU forecasts the next two days of an hourly load from the four before. It says three numbers for each hour, the
quantiles .1, .5 and .9, so that a forecast comes with how sure it is; the loss is the pinball loss.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from mxtorch import ScheduledOptim, Trainer

torch.manual_seed(0)
rng = np.random.default_rng(0)
PAST, FUTURE, QUANTILES = 96, 48, torch.tensor([0.1, 0.5, 0.9])

# %%
# Data: days and weeks, a slow drift, and noise that is larger by day. The last fifth is held out: a random split would
# put hours of one day into both parts.
hours = np.arange(24 * 7 * 30)
day, week = 2 * np.pi * hours / 24, (hours // 24) % 7
load = np.sin(day - 1.6) + 0.4 * np.sin(2 * day) - 0.9 * (week >= 5) + np.cumsum(rng.normal(0, 0.01, len(hours)))
load += rng.normal(0, 1, len(hours)) * np.where(np.sin(day - 1.6) > 0, 0.25, 0.08)
load = torch.tensor((load - load.mean()) / load.std(), dtype=torch.float32)
clock = torch.tensor(np.stack([np.sin(day), np.cos(day), (week >= 5) * 1.0], axis=1), dtype=torch.float32)


def windows(begin, end, stride):
    starts = range(begin, end - PAST - FUTURE, stride)
    past = torch.stack([torch.cat([load[s : s + PAST, None], clock[s : s + PAST]], dim=1) for s in starts])
    known = torch.stack([clock[s + PAST : s + PAST + FUTURE] for s in starts])  # the calendar of the future is known
    target = torch.stack([load[s + PAST : s + PAST + FUTURE] for s in starts])
    inputs = torch.cat([past, nn.functional.pad(known, (1, 0))], dim=1)  # [windows, PAST + FUTURE, 4]
    return TensorDataset(inputs, target)


cut = len(hours) * 4 // 5
train_data = DataLoader(windows(0, cut, 5), 32, shuffle=True)
val_data = DataLoader(windows(cut, len(hours), 12), 128)


# %%
# Model and loss.
class Forecaster(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(4, 32, batch_first=True)
        self.head = nn.Linear(32, len(QUANTILES))

    def forward(self, inputs):
        return self.head(self.gru(inputs)[0][:, PAST:])  # [batch, FUTURE, quantiles]


def pinball(outputs, targets):
    errors = targets.unsqueeze(-1) - outputs
    return torch.maximum(QUANTILES * errors, (QUANTILES - 1) * errors).mean()


net = Forecaster()
trainer = Trainer(net, pinball, ScheduledOptim(torch.optim.Adam(net.parameters(), lr=1e-3)), log_every=10)
found = trainer.find_lr(train_data, val_data, schedule="one_cycle", epochs=5, budget=6)
print(found)
print(trainer.fit(train_data, val_data, epochs=5, lr=found, schedule="one_cycle"))

# %%
# One forecast, and how often the truth is within the band: four of five hours are meant.
outputs = trainer.predict(val_data)
targets = torch.cat([target for _, target in val_data])
inside = float(((targets > outputs[..., 0]) & (targets < outputs[..., 2])).float().mean())
inputs, target = val_data.dataset[3]
figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.2), width_ratios=(1, 1.5), layout="tight")
found.plot(left)
right.plot(range(-PAST, 0), inputs[:PAST, 0].numpy(), color="#888888", label="known")
right.plot(target.numpy(), color="#1f4e79", label="what came")
low, median, high = outputs[3].T.numpy()
right.plot(median, color="#e07a1f", label="forecast")
right.fill_between(range(FUTURE), low, high, color="#e07a1f", alpha=0.25, linewidth=0)
right.set(xlabel="hours from now", title=f"{inside:.0%} of the hours are within the band")
right.legend(frameon=False, ncols=3, loc="upper left")
Path("runs").mkdir(exist_ok=True)
figure.savefig("runs/time_series.png", dpi=110)
print(f"validation loss {trainer.history['val/loss'][-1]:.3f}, {inside:.0%} of the hours within the band of 80%")
plt.show()
