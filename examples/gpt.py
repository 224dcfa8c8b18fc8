"""Train a GPT on the sources of Python's standard library, on as many processes as the script is started with.

    python examples/gpt.py                                                     # a small one, in a minute
    torchrun --nproc-per-node 2 examples/gpt.py --device cpu                   # the same on two processes
    torchrun --nproc-per-node 2 examples/gpt.py --size 1b --strategy fsdp2     # a billion parameters on two GPUs

It reads and writes bytes, so there is nothing to download. With `--strategy fsdp2` each process holds a part of every
parameter, of its gradient and of the optimizer's state: 16 bytes a parameter in float32 with AdamW, divided by the
processes. A run that was ended goes on with `--resume`, on another number of processes too.
"""

from __future__ import annotations

import argparse
import sysconfig
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from mxtorch import Trainer
from mxtorch.callbacks import Checkpoint
from mxtorch.engines import DistributedEngine

BYTES = 256


class Size(NamedTuple):
    """Layers, width, heads, and the learning rate that models of the size are mostly trained with."""

    layers: int
    width: int
    heads: int
    rate: float


# Parameters: 12 layers * width^2, and the embeddings.
SIZES = {
    "tiny": Size(2, 64, 4, 3e-3),  # 0.1 M
    "small": Size(12, 768, 12, 6e-4),  # 85 M
    "1b": Size(20, 2048, 16, 2e-4),  # 1.01 G
}


class Block(nn.Module):
    """Attention to what came before, then a perceptron, each added to what it is given."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm, self.norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.queries_keys_values, self.attended = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        """From [N, T, width] to the same."""
        samples, length, width = hidden.shape
        parts = self.queries_keys_values(self.attention_norm(hidden)).view(samples, length, 3, self.heads, -1)
        queries, keys, values = parts.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        hidden = hidden + self.attended(attended.transpose(1, 2).reshape(samples, length, width))
        return hidden + self.narrow(F.gelu(self.wide(self.norm(hidden))))


class GPT(nn.Module):
    """A transformer that predicts the next byte.

    Args:
        size: Layers, width, heads.
        length: Bytes that it looks back at most.
    """

    def __init__(self, size: Size, length: int) -> None:
        super().__init__()
        self.length = length
        self.bytes, self.places = nn.Embedding(BYTES, size.width), nn.Embedding(length, size.width)
        self.blocks = nn.ModuleList([Block(size.width, size.heads) for _ in range(size.layers)])
        self.norm, self.next = nn.LayerNorm(size.width), nn.Linear(size.width, BYTES)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:  # GPT-2's initialisation: what is added to the residual stream is smaller
                scale = (2 * size.layers) ** -0.5 if name.endswith(("attended.weight", "narrow.weight")) else 1.0
                nn.init.normal_(parameter, std=0.02 * scale)

    def forward(self, text: Tensor) -> Tensor:
        """From bytes, int64 [N, T], to the logits of the next byte at each place, [N, T, 256]."""
        places = torch.arange(text.shape[1], device=text.device)
        hidden = self.bytes(text) + self.places(places)
        for block in self.blocks:
            hidden = block(hidden)
        return self.next(self.norm(hidden))


class Text(Dataset):
    """Pieces of a text, one after the other: (bytes, the bytes that follow them).

    Args:
        text: uint8 [bytes].
        length: Of a piece.
    """

    def __init__(self, text: Tensor, length: int) -> None:
        self.text, self.length = text, length

    def __len__(self) -> int:
        return (len(self.text) - 1) // self.length

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        piece = self.text[index * self.length : (index + 1) * self.length + 1].long()
        return piece[:-1], piece[1:]


def standard_library(most: int) -> Tensor:
    """The sources of Python's standard library, uint8 [at most `most`]."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    content = bytearray()
    for file in files:
        content += file.read_bytes()
        if len(content) >= most:
            break
    return torch.frombuffer(content[:most], dtype=torch.uint8)


def loss_of_bytes(logits: Tensor, following: Tensor) -> Tensor:
    """The mean cross-entropy over all places, in nats."""
    return F.cross_entropy(logits.flatten(0, 1), following.flatten())


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="tiny", help="of the model (default: %(default)s)")
    parser.add_argument("--strategy", choices=("ddp", "fsdp2"), default="ddp", help="default: %(default)s")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=16, help="of each process (default: %(default)s)")
    parser.add_argument("--length", type=int, default=128, help="bytes of a sample (default: %(default)s)")
    parser.add_argument("--text", type=int, default=1_000_000, help="bytes to train on, at most (default: %(default)s)")
    parser.add_argument("--find-lr", action="store_true", help="search the rate in place of the usual one")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default=None, help="fp32, or bf16, which is the default on a GPU")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--folder", type=Path, default=Path("runs/gpt"), help="for checkpoints (default: %(default)s)")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in the folder")
    return parser.parse_args()


def main() -> None:
    """Find, fit, write."""
    options = parse_arguments()
    size = SIZES[options.size]
    torch.manual_seed(0)
    model = GPT(size, options.length)
    precision = options.precision or ("bf16" if torch.cuda.is_available() and options.device != "cpu" else "fp32")
    engine = DistributedEngine(options.device, precision, strategy=options.strategy, compile=options.compile)
    optimizer = torch.optim.AdamW(model.parameters(), size.rate, betas=(0.9, 0.95), weight_decay=0.1)
    trainer = Trainer(
        model,
        loss_of_bytes,
        optimizer,
        engine=engine,
        callbacks=[Checkpoint(options.folder, keep=1)],
        clip_grad_norm=1.0,
        log_every=10,
        seed=0,
    )
    text = standard_library(options.text)
    held_out = len(text) // 20
    train_data = DataLoader(Text(text[:-held_out], options.length), options.batch_size, shuffle=True, drop_last=True)
    val_data = DataLoader(Text(text[-held_out:], options.length), options.batch_size)
    rate = size.rate
    if options.find_lr:
        found = trainer.find_lr(train_data, val_data, epochs=options.epochs, schedule="warmup_cosine")
        rate = found.suggestion or rate
        if engine.is_main:
            print(found)
    resume = "auto" if options.resume else None
    trainer.fit(train_data, val_data, epochs=options.epochs, lr=rate, schedule="warmup_cosine", resume=resume)
    written = write(trainer, b"def main(", 160)
    if engine.is_main:
        print(f"\n{trainer.history}\n\n{written.decode(errors='replace')}")


@torch.no_grad()
def write(trainer: Trainer, beginning: bytes, count: int) -> bytes:
    """Go on with a text, always with the likeliest byte; all processes together."""
    model, text = trainer.model.eval(), torch.frombuffer(bytearray(beginning), dtype=torch.uint8).long()
    for _ in range(count):
        with trainer.engine.autocast():
            logits = model(text[None, -model.length :].to(trainer.engine.device))
        text = torch.cat([text, logits[0, -1].argmax()[None].cpu()])
    return bytes(text.tolist())


if __name__ == "__main__":
    main()
