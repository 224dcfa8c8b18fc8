"""
A GPT on source text
====================

A transformer of two layers learns to write Python, character by character, from the source of Python's own library.
It knows nothing of words; after ten seconds it has learnt indentation, keywords and ``self``.
"""

import sysconfig
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset

from mxtorch import ScheduledOptim, Trainer

torch.manual_seed(0)
CONTEXT, WIDTH = 64, 64

# %%
# Data: each sample is 64 characters, and as targets the 64 that follow them by one.
library = Path(sysconfig.get_path("stdlib"))
names = ("argparse", "configparser", "dataclasses", "inspect", "optparse", "typing")
text = "".join(path.read_text() for name in names if (path := library / f"{name}.py").exists())
text = "".join(character for character in text if character.isascii())
characters = sorted(set(text))
codes = torch.tensor([characters.index(character) for character in text])
print(f"{len(text):,} characters, {len(characters)} different ones")


windows = codes.unfold(0, CONTEXT + 1, CONTEXT)
data = TensorDataset(windows[:, :-1], windows[:, 1:])
cut = len(data) * 9 // 10
train_data = DataLoader(Subset(data, range(cut)), 32, shuffle=True)
val_data = DataLoader(Subset(data, range(cut, len(data))), 64)


# %%
# The model. Its outputs are turned to [batch, characters, positions], as ``CrossEntropyLoss`` wants its classes second.
class GPT(nn.Module):
    def __init__(self):
        super().__init__()
        self.characters, self.positions = nn.Embedding(len(characters), WIDTH), nn.Embedding(CONTEXT, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, 0.0, "gelu", batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, nn.LayerNorm(WIDTH), enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, len(characters))

    def forward(self, inputs):
        mask = nn.Transformer.generate_square_subsequent_mask(inputs.shape[1])
        hidden = self.characters(inputs) + self.positions.weight[: inputs.shape[1]]
        return self.head(self.layers(hidden, mask=mask, is_causal=True)).transpose(1, 2)

    @torch.no_grad()
    def write(self, start, length):
        written = [characters.index(character) for character in start]
        for _ in range(length):
            logits = self(torch.tensor([written[-CONTEXT:]]))[0, :, -1]
            written.append(int(torch.multinomial((logits / 0.6).softmax(0), 1)))
        return "".join(characters[code] for code in written)


net = GPT()
optimizer = ScheduledOptim(torch.optim.AdamW(net.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1))
trainer = Trainer(net, nn.CrossEntropyLoss(), optimizer, clip_grad_norm=1.0, log_every=20)

# %%
# Half of the training's steps are too few for whole trainings, so the search says ``guess``, and ``fit`` warns of it.
found = trainer.find_lr(train_data, val_data, schedule="warmup_cosine", epochs=2, budget=0.5)
print(found)
history = trainer.fit(train_data, val_data, epochs=2, lr=found, schedule="warmup_cosine")

# %%
# What it writes, and how it got there.
sample = net.eval().write("def ", 400)
print(sample)
figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 4.2), layout="tight")
found.plot(left)
middle.plot(history.records.column("step"), history.records.column("train/loss"), color="#1f4e79")
middle.set(xlabel="optimizer steps", title=f"bits a character: {history['val/loss'][-1] / 0.6931:.2f}")
right.text(
    0,
    1,
    "\n".join(sample[at : at + 48].replace("\n", "⏎") for at in range(0, 400, 48)),
    family="monospace",
    fontsize=7,
    va="top",
)
right.axis("off")
Path("runs").mkdir(exist_ok=True)
figure.savefig("runs/gpt.png", dpi=110)
print(f"validation loss {history['val/loss'][-1]:.3f}")
plt.show()
