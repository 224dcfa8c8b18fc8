"""
Detection
=========

Where are the shapes, and which are they? A network says for each cell of a grid whether the middle of a shape is in
it, of which class it is, and where its box ends (as in FCOS and CenterNet, in the small). What is beyond ``(x, y)`` and
one loss goes into ``training_step``; ``find_lr`` and ``fit`` call the same one.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset
from torchvision.ops import batched_nms, box_iou, generalized_box_iou_loss

from mxtorch import ScheduledOptim, StepOutput, Trainer

torch.manual_seed(0)
rng = np.random.default_rng(0)
SIZE, CELL, GRID = 48, 8, (6, 6)


# %%
# Data: a picture, the class of each cell (0: none), and the box of the shape whose middle is there, in pixels.
def draw():
    y, x = np.mgrid[:SIZE, :SIZE]
    picture = np.full((3, SIZE, SIZE), 0.2) + rng.normal(0, 0.06, (3, SIZE, SIZE))
    classes, boxes = np.zeros(GRID, dtype=np.int64), np.zeros((*GRID, 4))
    for kind in rng.integers(1, 3, rng.integers(1, 4)):
        cx, cy, w, h = *rng.uniform(9, SIZE - 9, 2), *rng.uniform(6, 9, 2)
        cell = int(cy) // CELL, int(cx) // CELL
        u, v = (x - cx) / w, (y - cy) / h
        picture[:, (np.hypot(u, v) if kind == 1 else np.maximum(abs(u), abs(v))) < 1] = rng.uniform(0.4, 1, (3, 1))
        classes[cell], boxes[cell] = kind, (cx - w, cy - h, cx + w, cy + h)
    return picture.astype(np.float32), classes, boxes.astype(np.float32)


data = TensorDataset(*(torch.tensor(np.stack(column)) for column in zip(*(draw() for _ in range(900)), strict=True)))
train_data = DataLoader(Subset(data, range(800)), 32, shuffle=True)
val_data = DataLoader(Subset(data, range(800, 900)), 100)


# %%
# Network and loss. Its seven outputs a cell are three classes and the distances to four sides.
def block(inputs, outputs):
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


middles = torch.arange(CELL // 2, SIZE, CELL).float()
centres = torch.stack(torch.meshgrid(middles, middles, indexing="xy"), dim=-1)  # [rows, columns, (x, y)]


class Detector(Trainer):
    def boxes(self, outputs):  # distances from the cell's middle to the four sides, positive
        distances = nn.functional.softplus(outputs[:, 3:].permute(0, 2, 3, 1)) * CELL
        return torch.cat([centres - distances[..., :2], centres + distances[..., 2:]], dim=-1)

    def training_step(self, batch):
        pictures, classes, boxes = batch
        outputs, taken = self.model(pictures), classes > 0
        loss = nn.functional.cross_entropy(outputs[:, :3], classes)
        loss = loss + 0.5 * generalized_box_iou_loss(self.boxes(outputs)[taken], boxes[taken], reduction="mean")
        return StepOutput(loss, outputs, classes)

    evaluation_step = training_step  # it steps no optimizer of its own, so it can be judged by itself


at_cells = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 7, 1))
net = nn.Sequential(block(3, 16), block(16, 32), block(32, 64), at_cells)
trainer = Detector(net, None, ScheduledOptim(torch.optim.AdamW(net.parameters(), lr=1e-3)), log_every=10)
found = trainer.find_lr(train_data, val_data, schedule="one_cycle", epochs=8, budget=6)
print(found)
print(trainer.fit(train_data, val_data, epochs=8, lr=found, schedule="one_cycle"))

# %%
# Boxes above a probability of 0.3, the best of those that overlap; dotted are the true ones.
figure, panels = plt.subplots(2, 5, figsize=(11, 4.8), layout="tight", subplot_kw={"xticks": [], "yticks": []})
outputs, hits, there = trainer.predict(pictures for pictures, _, _ in val_data), 0, 0
for index in range(100):
    picture, classes, true = data[800 + index]
    scores, kinds = outputs[index : index + 1, :3].softmax(1)[0, 1:].max(dim=0)
    sure = scores > 0.3
    boxes, kinds, scores = trainer.boxes(outputs[index : index + 1])[0][sure], kinds[sure] + 1, scores[sure]
    kept = batched_nms(boxes, scores, kinds, 0.4)
    true, true_kinds = true[classes > 0], classes[classes > 0]
    overlaps = box_iou(true, boxes[kept]) * (true_kinds[:, None] == kinds[kept])
    hits, there = hits + int((overlaps > 0.5).any(dim=1).sum()), there + len(true)
    if index < 10:
        panels.flat[index].imshow(picture.permute(1, 2, 0).clip(0, 1).numpy())
        for style, shown, names in ((":", true, true_kinds), ("-", boxes[kept], kinds[kept])):
            for (x0, y0, x1, y1), name in zip(shown.tolist(), names.tolist(), strict=True):
                look = {"fill": False, "linestyle": style, "color": ("#ffb000", "#00d0ff")[name - 1]}
                panels.flat[index].add_patch(plt.Rectangle((x0, y0), x1 - x0, y1 - y0, **look))
Path("runs").mkdir(exist_ok=True)
figure.savefig("runs/detection.png", dpi=110)
print(f"{hits} of {there} shapes found, of the right class and with an overlap above a half")
plt.show()
