"""The networks of the long trainings."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Pixels(nn.Module):
    """Bytes [N, C, H, W] to numbers around zero; numbers pass."""

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        return (images.float() / 255 - 0.47) / 0.25 if images.dtype == torch.uint8 else images


class BasicBlock(nn.Module):
    """Two convolutions with normalisation, added to what came in (arXiv 1512.03385)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, maps: Tensor) -> Tensor:
        """Maps in, maps out."""
        return torch.relu(self.body(maps) + self.shortcut(maps))


class ResNet(nn.Module):
    """A stem, three stages of residual blocks, pooling, a linear head."""

    def __init__(self, width: int, blocks: int = 1, outputs: int = 10) -> None:
        super().__init__()
        layers: list[nn.Module] = [Pixels(), nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        inputs = width
        for stage, stride in enumerate((1, 2, 2)):
            for block in range(blocks):
                layers.append(BasicBlock(inputs, width * 2**stage, stride if block == 0 else 1))
                inputs = width * 2**stage
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(inputs, outputs)

    def forward(self, images: Tensor) -> Tensor:
        """Images [N, 3, 32, 32] in, scores [N, outputs] out."""
        return self.head(self.body(images))


class Around(nn.Module):
    """A body and a way around it."""

    def __init__(self, *body: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(*body)

    def forward(self, values: Tensor) -> Tensor:
        """The same shape out."""
        return values + self.body(values)


def conv_mixer(width: int, depth: int, dropout: float) -> nn.Module:
    """Patches of 4 x 4, depthwise and pointwise convolutions (arXiv 2201.09792)."""
    layers: list[nn.Module] = [Pixels(), nn.Conv2d(3, width, 4, 4), nn.GELU(), nn.BatchNorm2d(width)]
    for _ in range(depth):
        depthwise = nn.Conv2d(width, width, 5, padding=2, groups=width)
        layers += [Around(depthwise, nn.GELU(), nn.BatchNorm2d(width))]
        layers += [nn.Conv2d(width, width, 1), nn.GELU(), nn.BatchNorm2d(width)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout), nn.Linear(width, 10))


def vgg(width: int, dropout: float) -> nn.Module:
    """Plain convolutions without normalisation, two dense layers with dropout."""
    layers: list[nn.Module] = [Pixels()]
    inputs = 3
    for outputs in (width, 2 * width, 4 * width):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU()]
        layers += [nn.Conv2d(outputs, outputs, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        inputs = outputs
    return nn.Sequential(
        *layers,
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(16 * inputs, 128),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(128, 10),
    )


class TransformerBlock(nn.Module):
    """Attention and a perceptron, normalised before (pre-norm) or after (post-norm, arXiv 1706.03762)."""

    def __init__(self, width: int, heads: int, *, causal: bool, dropout: float = 0.0, post_norm: bool = False) -> None:
        super().__init__()
        self.heads, self.causal, self.post_norm = heads, causal, post_norm
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.to_qkv, self.to_out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(dropout)

    def attend(self, tokens: Tensor) -> Tensor:
        """[N, length, width] in and out."""
        count, length, width = tokens.shape
        q, k, v = self.to_qkv(tokens).view(count, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.dropout(self.to_out(mixed.transpose(1, 2).reshape(count, length, width)))

    def think(self, tokens: Tensor) -> Tensor:
        """[N, length, width] in and out."""
        return self.dropout(self.down(F.gelu(self.up(tokens))))

    def forward(self, tokens: Tensor) -> Tensor:
        """[N, length, width] in and out."""
        if self.post_norm:
            tokens = self.norm1(tokens + self.attend(tokens))
            return self.norm2(tokens + self.think(tokens))
        tokens = tokens + self.attend(self.norm1(tokens))
        return tokens + self.think(self.norm2(tokens))


class VisionTransformer(nn.Module):
    """Patches of 4 x 4 pixels, pre-norm blocks with dropout, the mean of the tokens."""

    def __init__(self, width: int, depth: int, dropout: float) -> None:
        super().__init__()
        self.patches = nn.Sequential(Pixels(), nn.Conv2d(3, width, 4, 4))
        self.position = nn.Parameter(0.02 * torch.randn(64, width))
        self.blocks = nn.Sequential(*(TransformerBlock(width, 4, causal=False, dropout=dropout) for _ in range(depth)))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 10))

    def forward(self, images: Tensor) -> Tensor:
        """Images [N, 3, 32, 32] in, scores [N, 10] out."""
        return self.head(self.blocks(self.patches(images).flatten(2).transpose(1, 2) + self.position).mean(1))


class LanguageModel(nn.Module):
    """Causal Transformer over symbols; scores are [N, symbols, length]."""

    def __init__(
        self, symbols: int, length: int, width: int, depth: int, *, dropout: float = 0.0, post_norm: bool = False
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(symbols, width)
        self.position = nn.Parameter(0.02 * torch.randn(length, width))
        self.blocks = nn.Sequential(
            *(TransformerBlock(width, 4, causal=True, dropout=dropout, post_norm=post_norm) for _ in range(depth))
        )
        self.norm = nn.Identity() if post_norm else nn.LayerNorm(width)
        self.head = nn.Linear(width, symbols)
        nn.init.normal_(self.embedding.weight, std=0.02)

    def forward(self, symbols: Tensor) -> Tensor:
        """Symbols [N, length] in, scores [N, symbols, length] out."""
        return self.head(self.norm(self.blocks(self.embedding(symbols.long()) + self.position))).transpose(1, 2)


class LSTM(nn.Module):
    """Two layers of LSTM over symbols, with dropout before the head; scores are [N, symbols, length]."""

    def __init__(self, symbols: int, width: int, dropout: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(symbols, width)
        self.lstm = nn.LSTM(width, width, 2, batch_first=True)
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(width, symbols))

    def forward(self, symbols: Tensor) -> Tensor:
        """Symbols [N, length] in, scores [N, symbols, length] out."""
        return self.head(self.lstm(self.embedding(symbols.long()))[0]).transpose(1, 2)


class UNet(nn.Module):
    """Three levels with skip connections and batch normalisation (arXiv 1505.04597); scores for each pixel."""

    def __init__(self, width: int, channels: int, outputs: int) -> None:
        super().__init__()
        self.down1, self.down2 = self._block(channels, width), self._block(width, 2 * width)
        self.middle = self._block(2 * width, 4 * width)
        self.up2, self.up1 = self._block(6 * width, 2 * width), self._block(3 * width, width)
        self.head = nn.Conv2d(width, outputs, 1)

    @staticmethod
    def _block(inputs: int, outputs: int) -> nn.Module:
        layers: list[nn.Module] = []
        for count in (inputs, outputs):
            layers += [nn.Conv2d(count, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        return nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        """Images [N, channels, H, W] in, scores [N, outputs, H, W] out."""
        fine = self.down1(images)
        coarse = self.down2(F.max_pool2d(fine, 2))
        middle = F.interpolate(self.middle(F.max_pool2d(coarse, 2)), scale_factor=2.0)
        coarse = self.up2(torch.cat([middle, coarse], 1))
        return self.head(self.up1(torch.cat([F.interpolate(coarse, scale_factor=2.0), fine], 1)))


def autoencoder(width: int, code: int) -> nn.Module:
    """CIFAR images through a code of few numbers and back."""
    return nn.Sequential(
        nn.Conv2d(3, width, 4, 2, 1), nn.GELU(), nn.Conv2d(width, 2 * width, 4, 2, 1), nn.GELU(), nn.Flatten(),
        nn.Linear(128 * width, code), nn.Linear(code, 128 * width), nn.GELU(), nn.Unflatten(1, (2 * width, 8, 8)),
        nn.ConvTranspose2d(2 * width, width, 4, 2, 1), nn.GELU(), nn.ConvTranspose2d(width, 3, 4, 2, 1),
    )  # fmt: skip


class TwoViews(nn.Module):
    """Both views of each image [N, 2, 3, H, W] to unit vectors [N, 2, size], as SimCLR (arXiv 2002.05709)."""

    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        trunk = ResNet(width)
        features = trunk.head.in_features
        trunk.head = nn.Sequential(nn.Linear(features, features), nn.ReLU(), nn.Linear(features, size))
        self.trunk = trunk

    def forward(self, views: Tensor) -> Tensor:
        """See the class."""
        return F.normalize(self.trunk(views.flatten(0, 1)).float(), dim=1).view(len(views), 2, -1)


class SequenceToSequence(nn.Module):
    """A GRU reads symbols, another writes them in the opposite order; scores are [N, symbols, length].

    The decoder sees the target so far (teacher forcing): inputs hold the source and the shifted target.
    """

    def __init__(self, symbols: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(symbols + 1, width)
        self.reader = nn.GRU(width, width, batch_first=True)
        self.writer = nn.GRU(width, width, batch_first=True)
        self.head = nn.Linear(width, symbols)

    def forward(self, both: Tensor) -> Tensor:
        """[N, 2, length] in."""
        source, shifted = self.embedding(both.long()).unbind(1)
        return self.head(self.writer(shifted, self.reader(source)[1])[0]).transpose(1, 2)


class Factorisation(nn.Module):
    """Ratings from the vectors of a user and an item, and a small perceptron on both."""

    def __init__(self, users: int, items: int, width: int) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(users, width), nn.Embedding(items, width)
        self.head = nn.Sequential(nn.Linear(3 * width, 64), nn.ReLU(), nn.Linear(64, 1))
        for table in (self.users, self.items):
            nn.init.normal_(table.weight, std=0.1)

    def forward(self, pairs: Tensor) -> Tensor:
        """Pairs [N, 2] in, ratings [N, 1] out."""
        users, items = self.users(pairs[:, 0]), self.items(pairs[:, 1])
        return self.head(torch.cat([users, items, users * items], 1))


class Tabular(nn.Module):
    """Numbers and categories: embeddings beside the columns, a perceptron with batch normalisation and dropout."""

    def __init__(self, columns: int, categories: int, levels: int, width: int, dropout: float) -> None:
        super().__init__()
        self.columns = columns
        self.embeddings = nn.ModuleList(nn.Embedding(levels, 4) for _ in range(categories))
        layers: list[nn.Module] = []
        inputs = columns + 4 * categories
        for _ in range(3):
            layers += [nn.Linear(inputs, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(dropout)]
            inputs = width
        self.body = nn.Sequential(*layers, nn.Linear(width, 2))

    def forward(self, rows: Tensor) -> Tensor:
        """Rows [N, columns + categories] in, scores [N, 2] out."""
        levels = rows[:, self.columns :].long()
        embedded = [table(levels[:, index]) for index, table in enumerate(self.embeddings)]
        return self.body(torch.cat([rows[:, : self.columns], *embedded], 1))
