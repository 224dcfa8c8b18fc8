"""
Several labels to a picture
===========================

Which shapes are in a picture: any of a disc, a square and a triangle, or none. Each label is a yes or no of its own,
so the loss is ``BCEWithLogitsLoss`` and targets are floats of the shape of the outputs, [batch, 3].
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MultilabelF1Score

from mxtorch import ScheduledOptim, Trainer

torch.manual_seed(0)
rng = np.random.default_rng(0)
LABELS = ["disc", "square", "triangle"]


# %%
# Data: drawn in grey, 24 x 24 pixels.
def draw(present):
    picture = Image.new("L", (24, 24), int(rng.integers(0, 90)))
    pen = ImageDraw.Draw(picture)
    for shape in rng.permutation(3):
        if present[shape]:
            x, y, r = *rng.uniform(5, 19, 2), rng.uniform(3, 5.5)
            if shape == 2:
                pen.polygon([(x - r, y + r), (x + r, y + r), (x, y - r)], fill=int(rng.integers(130, 255)))
            else:
                pen_draws = (pen.ellipse, pen.rectangle)[shape]
                pen_draws((x - r, y - r, x + r, y + r), fill=int(rng.integers(130, 255)))
    return np.asarray(picture, dtype=np.float32) / 255 + rng.normal(0, 0.04, (24, 24))


targets = rng.integers(0, 2, (1600, 3))
pictures = torch.tensor(np.stack([draw(row) for row in targets]), dtype=torch.float32).unsqueeze(1)
data = TensorDataset(pictures, torch.tensor(targets, dtype=torch.float32))
train_data = DataLoader(torch.utils.data.Subset(data, range(1200)), 64, shuffle=True)
val_data = DataLoader(torch.utils.data.Subset(data, range(1200, 1600)), 200)


# %%
# Model and training.
def block(inputs, outputs):
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2)
    )


net = nn.Sequential(block(1, 8), block(8, 16), block(16, 32), nn.Flatten(), nn.Linear(32 * 9, 3))
trainer = Trainer(
    net,
    nn.BCEWithLogitsLoss(),
    ScheduledOptim(torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-3)),
    metrics={"f1": MultilabelF1Score(num_labels=3)},
    log_every=10,
)
found = trainer.find_lr(train_data, val_data, schedule="one_cycle", epochs=6, budget=6)
print(found)
print(trainer.fit(train_data, val_data, epochs=6, lr=found, schedule="one_cycle"))

# %%
# The first pictures of the validation data, with what is seen in them; mistakes are red.
probabilities = trainer.predict(val_data).sigmoid()
figure, panels = plt.subplots(2, 6, figsize=(11, 4.4), layout="tight")
for index, panel in enumerate(panels.flat):
    picture, target = data[1200 + index]
    seen = probabilities[index] > 0.5
    names = ", ".join(name for name, there in zip(LABELS, seen, strict=True) if there) or "nothing"
    panel.imshow(picture[0].numpy(), cmap="gray", vmin=0, vmax=1)
    panel.set_title(names, fontsize=8, color="black" if bool((seen == target.bool()).all()) else "#c0392b")
    panel.axis("off")
Path("runs").mkdir(exist_ok=True)
figure.savefig("runs/multi_label.png", dpi=110)
print(f"validation F1 {trainer.history['val/f1'][-1]:.3f}")
plt.show()
