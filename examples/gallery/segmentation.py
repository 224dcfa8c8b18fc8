"""
Segmentation
============

A small U-Net says of each pixel whether it belongs to a disc, to a square or to the ground. Outputs have the shape
[batch, classes, height, width], targets [batch, height, width]; ``CrossEntropyLoss`` takes them as they are.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset
from torchmetrics.classification import MulticlassJaccardIndex

from mxtorch import ScheduledOptim, Trainer

torch.manual_seed(0)
rng = np.random.default_rng(0)


# %%
# Data: two or three shapes on a noisy ground, in three colours, 32 x 32 pixels.
def draw(size=32):
    y, x = np.mgrid[:size, :size]
    picture = np.ones((3, size, size)) * rng.uniform(0, 0.5, (3, 1, 1))
    mask = np.zeros((size, size), dtype=np.int64)
    for _ in range(rng.integers(2, 4)):
        cx, cy, r = *rng.uniform(6, size - 6, 2), rng.uniform(4, 8)
        kind = rng.integers(1, 3)
        inside = np.hypot(x - cx, y - cy) < r if kind == 1 else np.maximum(abs(x - cx), abs(y - cy)) < r * 0.9
        picture[:, inside] = rng.uniform(0.4, 1, (3, 1))
        mask[inside] = kind
    return picture + rng.normal(0, 0.08, picture.shape), mask


drawn = [draw() for _ in range(580)]
pictures = torch.tensor(np.stack([picture for picture, _ in drawn]), dtype=torch.float32)
data = TensorDataset(pictures, torch.tensor(np.stack([mask for _, mask in drawn])))
train_data, val_data = (
    DataLoader(Subset(data, range(480)), 30, shuffle=True),
    DataLoader(Subset(data, range(480, 580)), 50),
)


# %%
# A U-Net: down to a quarter, up again, with what the way down saw beside it.
def block(inputs, outputs):
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


class UNet(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.down1, self.down2, self.bottom = block(3, 8), block(8, 16), block(16, 32)
        self.up2, self.up1 = block(32 + 16, 16), block(16 + 8, 8)
        self.head = nn.Conv2d(8, classes, 1)

    def forward(self, inputs):
        first = self.down1(inputs)
        second = self.down2(nn.functional.max_pool2d(first, 2))
        bottom = self.bottom(nn.functional.max_pool2d(second, 2))
        up = self.up2(torch.cat([nn.functional.interpolate(bottom, scale_factor=2), second], dim=1))
        return self.head(self.up1(torch.cat([nn.functional.interpolate(up, scale_factor=2), first], dim=1)))


net = UNet(3)
trainer = Trainer(
    net,
    nn.CrossEntropyLoss(),
    ScheduledOptim(torch.optim.AdamW(net.parameters(), lr=1e-3)),
    metrics={"iou": MulticlassJaccardIndex(num_classes=3)},
    log_every=10,
)
found = trainer.find_lr(train_data, val_data, schedule="one_cycle", epochs=9, budget=6)
print(found)
print(trainer.fit(train_data, val_data, epochs=9, lr=found, schedule="one_cycle"))

# %%
# Pictures, what is true, what is predicted.
predicted = trainer.predict(val_data).argmax(dim=1)
figure, panels = plt.subplots(3, 6, figsize=(11, 5.6), layout="tight")
for index, column in enumerate(panels.T):
    picture, mask = data[480 + index]
    for panel, shown in zip(column, (picture.permute(1, 2, 0).clip(0, 1), mask, predicted[index]), strict=True):
        panel.imshow(shown.numpy(), vmin=0, vmax=2)
        panel.set(xticks=[], yticks=[])
for panel, name in zip(panels[:, 0], ("picture", "true", "predicted"), strict=True):
    panel.set_ylabel(name)
Path("runs").mkdir(exist_ok=True)
figure.savefig("runs/segmentation.png", dpi=110)
print(f"validation IoU {trainer.history['val/iou'][-1]:.3f}")
plt.show()
