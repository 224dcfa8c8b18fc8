"""
Regression
==========

How far has diabetes got in a year? 442 patients of scikit-learn, ten measurements each. Targets are standardised, as
a network learns numbers around zero best; the picture shows them in their own unit.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_diabetes
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split
from torchmetrics import R2Score

from mxtorch import ScheduledOptim, Trainer, callbacks

torch.manual_seed(0)

# %%
# A target has the shape of the output, here [1]: with targets of shape [] a loss would compare each with all.
inputs, targets = load_diabetes(return_X_y=True)
inputs = torch.tensor(inputs, dtype=torch.float32) * 20  # scikit-learn scales the columns to a norm of one
targets = torch.tensor(targets, dtype=torch.float32).unsqueeze(1)
mean, std = targets.mean(), targets.std()
train, val = random_split(TensorDataset(inputs, (targets - mean) / std), [330, 112])
train_data, val_data = DataLoader(train, 32, shuffle=True), DataLoader(val, 112)

# %%
# So little data are learnt by heart soon, so the best epoch counts, and not the last.
net = nn.Sequential(nn.Linear(10, 32), nn.SiLU(), nn.Dropout(0.2), nn.Linear(32, 1))
trainer = Trainer(
    net,
    nn.MSELoss(),
    ScheduledOptim(torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=0.1)),
    metrics={"r2": R2Score()},
    callbacks=[callbacks.BestWeights("val/loss")],
    progress=False,
)
found = trainer.find_lr(train_data, val_data, schedule="one_cycle", epochs=30, budget=6)
print(found)
trainer.fit(train_data, val_data, epochs=30, lr=found, schedule="one_cycle")
figures = trainer.evaluate(val_data)
print(f"validation R2 {figures['val/r2']:.3f}; a linear model has about 0.45")

# %%
# Predictions over truth.
predicted = trainer.predict(val_data) * std + mean
true = torch.stack([target for _, target in val]) * std + mean
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="tight")
found.plot(left)
right.plot([25, 346], [25, 346], color="#888888", linewidth=1, linestyle=":")
right.scatter(true, predicted, s=16, color="#1f4e79")
right.set_xlabel("progression after a year")
right.set_ylabel("predicted")
right.set_title(f"R² {figures['val/r2']:.2f} on patients that were held out", loc="left")
right.grid(alpha=0.25)
Path("runs").mkdir(exist_ok=True)
figure.savefig("runs/regression.png", dpi=110)
plt.show()
