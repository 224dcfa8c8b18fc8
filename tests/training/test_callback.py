from __future__ import annotations

import pytest

from mxtorch import Callback


def test_the_order_of_events(net, loader, make, recorder):
    make(net, callbacks=[recorder]).fit(loader, loader, epochs=1)
    events = [event for event in recorder.events if event not in ("on_step", "on_log")]
    assert events == [
        "on_fit_start",
        "on_epoch_start",
        "on_epoch_trained",
        "on_evaluate_start",
        "on_evaluate_end",
        "on_epoch_complete",
        "on_epoch_end",
        "on_fit_end",
    ]


@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt()])
@pytest.mark.parametrize("where", ["on_epoch_start", "on_evaluate_start", "on_epoch_complete", "on_log"])
def test_every_start_has_its_end(net, loader, where, error, make, recorder):
    class Failing(Callback):
        pass

    def fail(self, *arguments):
        raise error

    setattr(Failing, where, fail)
    trainer = make(net, callbacks=[recorder, Failing()])
    with pytest.raises(type(error)):
        trainer.fit(loader, loader, epochs=2)
    for phase in ("fit", "epoch", "evaluate"):
        starts = recorder.events.count(f"on_{phase}_start")
        assert starts == recorder.events.count(f"on_{phase}_end")
    assert recorder.events[-1] == "on_fit_end"


def test_a_callback_can_stop_the_run(net, loader, make):
    class Stop(Callback):
        def on_epoch_complete(self, trainer, row):
            if row["epoch"] == 2:
                trainer.stop()

    assert len(make(net, callbacks=[Stop()]).fit(loader, epochs=9)) == 2
