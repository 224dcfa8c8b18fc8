"""
A table
=======

Is a tumour malignant? 569 patients, thirty measurements each, of scikit-learn. The columns are standardised by the
training rows alone, the rarer class counts as much as the other one, and scikit-learn's gradient boosting is there to
compare with.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import RocCurveDisplay, roc_auc_score
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassRecall

from mxtorch import ScheduledOptim, Trainer, balance

torch.manual_seed(0)
table = load_breast_cancer()
x_train, x_val, y_train, y_val = train_test_split(
    table.data, table.target, test_size=0.3, stratify=table.target, random_state=0
)

# %%
# Scaling, tensors, loaders.
scaler = StandardScaler().fit(x_train)


def loader(rows, labels, **options):
    inputs = torch.tensor(scaler.transform(rows), dtype=torch.float32)
    return DataLoader(TensorDataset(inputs, torch.tensor(labels)), batch_size=32, **options)


train_data, val_data = loader(x_train, y_train, shuffle=True), loader(x_val, y_val)

# %%
# Class weights go into the loss; the mean over a window or over the validation data weighs them as one large batch.
net = nn.Sequential(nn.Linear(30, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.3), nn.Linear(64, 2))
trainer = Trainer(
    net,
    nn.CrossEntropyLoss(weight=balance.class_weights(train_data)),
    ScheduledOptim(torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=0.05)),
    metrics=MetricCollection(
        {"accuracy": MulticlassAccuracy(num_classes=2, average="micro"), "recall": MulticlassRecall(num_classes=2)}
    ),
    log_every=10,
)
found = trainer.find_lr(train_data, val_data, schedule="one_cycle", epochs=8, budget=6)
print(found)
print(trainer.fit(train_data, val_data, epochs=8, lr=found, schedule="one_cycle"))

# %%
# The area under the ROC curve, beside that of boosted trees.
probabilities = trainer.predict(val_data).softmax(dim=1)[:, 1].numpy()
of_trees = HistGradientBoostingClassifier(random_state=0).fit(x_train, y_train).predict_proba(x_val)[:, 1]
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4), layout="tight")
found.plot(left)
RocCurveDisplay.from_predictions(y_val, probabilities, ax=right, name="network")
RocCurveDisplay.from_predictions(y_val, of_trees, ax=right, name="boosted trees", plot_chance_level=True)
right.set_title("ROC, patients that were held out", loc="left")
Path("runs").mkdir(exist_ok=True)
figure.savefig("runs/tabular.png", dpi=110)
print(f"AUC {roc_auc_score(y_val, probabilities):.3f}, boosted trees {roc_auc_score(y_val, of_trees):.3f}")
plt.show()
