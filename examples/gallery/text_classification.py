"""
Text classification with transformers
=====================================

From which part of Python's standard library is a piece of documentation? A DistilBERT of one layer, of Hugging Face's
transformers, is made from a config, with a tokenizer that is trained on the same text. Batches are dictionaries of the
model's arguments, with ``labels``: the model computes its loss, so the trainer is given None for one.
"""

import ast
import sysconfig
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch.utils.data import DataLoader, random_split
from torchmetrics.classification import MulticlassAccuracy
from transformers import DistilBertConfig, DistilBertForSequenceClassification, PreTrainedTokenizerFast

from mxtorch import ScheduledOptim, Trainer

torch.manual_seed(0)
CLASSES = ["asyncio", "email", "unittest", "multiprocessing", "logging"]


# %%
# Data: the docstrings and comments of five packages, in pieces of three sentences or lines.
def pieces(package):
    found = set()
    for path in sorted((Path(sysconfig.get_path("stdlib")) / package).rglob("*.py")):
        if "test" not in path.parts:
            source = path.read_text(encoding="utf-8")
            kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
            found |= {ast.get_docstring(node) or "" for node in ast.walk(ast.parse(source)) if isinstance(node, kinds)}
            comments = [line.strip() for line in source.splitlines() if line.strip().startswith("# ")]
            found |= {" ".join(comments[start : start + 3]) for start in range(0, len(comments), 3)}
    return sorted(text[:400] for text in found if len(text) > 30)


samples = [(text, label) for label, package in enumerate(CLASSES) for text in pieces(package)]
train, val = random_split(samples, [0.8, 0.2])
print(f"{len(train)} + {len(val)} pieces of text")

# %%
# A tokenizer, and what makes a batch of texts.
words = Tokenizer(models.WordPiece(unk_token="[UNK]"))
words.normalizer, words.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.BertPreTokenizer()
special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
words.train_from_iterator(
    (text for text, _ in train), trainers.WordPieceTrainer(vocab_size=2000, special_tokens=special, show_progress=False)
)
tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]")


def collate(batch):
    texts, labels = zip(*batch, strict=True)
    encoded = tokenizer(list(texts), padding=True, truncation=True, max_length=24, return_tensors="pt")
    names = ("input_ids", "attention_mask")
    return {name: encoded[name] for name in names} | {"labels": torch.tensor(labels)}


train_data = DataLoader(train, 32, shuffle=True, collate_fn=collate)
val_data = DataLoader(val, 128, collate_fn=collate)

# %%
# Model and training.
config = DistilBertConfig(
    vocab_size=2000, dim=48, hidden_dim=96, n_layers=1, n_heads=4, max_position_embeddings=24, num_labels=len(CLASSES)
)
net = DistilBertForSequenceClassification(config)
trainer = Trainer(
    net,
    None,
    ScheduledOptim(torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=0.05)),
    metrics={"accuracy": MulticlassAccuracy(num_classes=len(CLASSES), average="micro")},
    clip_grad_norm=1.0,
    log_every=20,
)
found = trainer.find_lr(train_data, val_data, schedule="one_cycle", epochs=3, budget=6)
print(found)
print(trainer.fit(train_data, val_data, epochs=3, lr=found, schedule="one_cycle"))

# %%
# What is taken for what.
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4), layout="tight")
found.plot(left)
result = trainer.interpret(val_data, classes=CLASSES)
result.plot_confusion(right)
Path("runs").mkdir(exist_ok=True)
figure.savefig("runs/text_classification.png", dpi=110)
print(f"validation accuracy {result.accuracy:.3f}")
plt.show()
