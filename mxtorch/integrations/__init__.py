"""The search for a learning rate in other libraries, each imported on use only.

    lightning       a LightningModule; a callback in place of Lightning's Tuner
    transformers    a transformers.Trainer; a callback that sets the rate before training
    accelerate      what `Accelerator.prepare` returned
    fastai          a Learner
    ignite          an Engine
    skorch          a NeuralNet

Each has a page in docs/integrations. A `ScheduledOptim` works in all of them as any torch optimizer does.
"""
