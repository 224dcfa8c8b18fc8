"""
A GAN, with two optimizers
==========================

The generator draws handwritten digits of 8 x 8 pixels, the discriminator tells them from those of scikit-learn. Each
has an optimizer; ``training_step`` steps the discriminator's and returns the loss of the generator, whose optimizer is
the trainer's own. :doc:`/how-to/several-optimizers` explains what a found rate means in a game.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader

from mxtorch import ScheduledOptim, Trainer

torch.manual_seed(0)
NOISE = 16
real = torch.tensor(load_digits().data, dtype=torch.float32) / 8 - 1  # [1797, 64], from -1 to 1
data = DataLoader(real, batch_size=64, shuffle=True, drop_last=True)


# %%
# Both networks are in one model, so that both are saved, moved and set to training mode.
def network(inputs, outputs, last):
    layers = [
        nn.Linear(inputs, 128),
        nn.LeakyReLU(0.2),
        nn.Linear(128, 128),
        nn.LeakyReLU(0.2),
        nn.Linear(128, outputs),
    ]
    return nn.Sequential(*layers, last)


model = nn.ModuleDict({"generator": network(NOISE, 64, nn.Tanh()), "discriminator": network(64, 1, nn.Flatten(0))})


class GANTrainer(Trainer):
    def training_step(self, real):
        generator, discriminator = self.model["generator"], self.model["discriminator"]
        fake = generator(torch.randn(len(real), NOISE, device=real.device))
        optimizer = self.other_optimizers["discriminator"]
        optimizer.zero_grad()
        noise = 0.2 * torch.randn_like(real)  # on both, so that the discriminator can't win by single pixels
        loss = nn.functional.softplus(-discriminator(real + noise)).mean()
        loss = loss + nn.functional.softplus(discriminator(fake.detach() + noise)).mean()
        self.discriminator_loss = loss.detach()
        self.engine.backward(loss)
        self.engine.step(optimizer)
        return nn.functional.softplus(-discriminator(fake + noise)).mean()


adam = {"lr": 5e-4, "betas": (0.5, 0.999)}
trainer = GANTrainer(
    model,
    None,
    ScheduledOptim(torch.optim.Adam(model["generator"].parameters(), **adam)),
    other_optimizers={"discriminator": torch.optim.Adam(model["discriminator"].parameters(), **adam)},
    log_every=10,
    progress=False,
)

# %%
# How fast may the discriminator learn, against a generator that hardly moves? The sweep's answer is an upper end: the
# training takes a fifth of it. Everything is put back afterwards, both optimizers and both networks.
trainer.optimizer.set_learning_rate(1e-6)
found = trainer.find_lr(data, method="sweep", optimizer="discriminator", watch=lambda: trainer.discriminator_loss)
print(found)
rate = min(found.suggestion / 5, 1e-3) if found.suggestion else 5e-4
trainer.other_optimizers["discriminator"].set_learning_rate(rate)
history = trainer.fit(data, epochs=80, lr=5e-4)

# %%
# Digits of the generator beside real ones, and the two losses.
with torch.no_grad():
    drawn = model["generator"](torch.randn(40, NOISE))
figure, panels = plt.subplots(1, 3, figsize=(12, 3.9), layout="tight")
found.plot(panels[0])
for panel, samples, title in zip(panels[1:], (drawn, real[:40]), ("generated", "real"), strict=True):
    sheet = samples.reshape(5, 8, 8, 8).permute(0, 2, 1, 3).reshape(40, 64)
    panel.imshow(sheet.numpy(), cmap="gray_r", vmin=-1, vmax=1)
    panel.set_title(title, loc="left")
    panel.axis("off")
Path("runs").mkdir(exist_ok=True)
figure.savefig("runs/gan.png", dpi=110)
distance = torch.cdist(drawn, real).min(dim=1).values.mean()
print(f"mean distance of a drawn digit to the nearest real one: {distance:.2f}")
plt.show()
