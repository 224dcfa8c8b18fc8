"""
Image classification
====================

A small convolutional network learns to read handwritten digits, the 1,797 pictures of 8 x 8 pixels of scikit-learn.
The layers are those of :mod:`mxtorch.nn`: a size that is None is read off the first batch, and the initialiser stands
where the layer is made.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset, random_split
from torchmetrics.classification import MulticlassAccuracy

from mxtorch import ScheduledOptim, Trainer, nn

torch.manual_seed(0)

# %%
# Data: inputs are float32 of shape [1, 8, 8] between 0 and 1, labels are int64.
digits = load_digits()
pictures = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
data = TensorDataset(pictures, torch.tensor(digits.target))
train, val = random_split(data, [1397, 400])
train_data, val_data = DataLoader(train, 64, shuffle=True), DataLoader(val, 200)

# %%
# Model, optimizer, trainer. The first batch is shown to the network before the optimizer is made, because only then
# does it have all of its weights.
options = {"padding": 1, "bias": False, "norm": "batch", "activation": "relu", "weight_init": "kaiming_normal"}
net = nn.Sequential(
    nn.Conv2d(1, 16, 3, **options),
    nn.Conv2d(None, 32, 3, stride=2, **options),
    nn.Conv2d(None, 64, 3, stride=2, **options),
    nn.Flatten(),
    nn.Dropout(0.2),
    nn.Linear(None, 10),
)
net(pictures[:2])
trainer = Trainer(
    net,
    nn.CrossEntropyLoss(),
    ScheduledOptim(torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=0.01)),
    metrics={"accuracy": MulticlassAccuracy(num_classes=10, average="micro")},
    log_every=10,
)

# %%
# Find a rate for the very training that follows: its schedule, its length. ``budget`` is what the search may take, in
# units of the training.
found = trainer.find_lr(train_data, val_data, schedule="one_cycle", epochs=6, budget=6)
print(found)
history = trainer.fit(train_data, val_data, epochs=6, lr=found, schedule="one_cycle")
print(history)

# %%
# What it finds hard: the pictures with the highest losses.
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4), layout="tight")
found.plot(left)
result = trainer.interpret(val_data, classes=[str(digit) for digit in range(10)])
result.plot_confusion(right)
Path("runs").mkdir(exist_ok=True)
figure.savefig("runs/image_classification.png", dpi=110)
print(f"validation accuracy {result.accuracy:.3f}")
plt.show()
