"""What a checkpoint holds of each process, and how a run goes on with another number of them."""

from __future__ import annotations

from typing import Any

from mxtorch.training.epoch_lengths import accumulate_in

# Of the place in a run, what each process has of its own: where its data were read to, and metrics of its batches.
_OWN = ("feed", "validation", "metrics")


def own_parts(content: dict[str, Any]) -> dict[str, Any]:
    """What of a checkpoint's content is this process's own."""
    run = content["run"]
    return {"random": content["random"], "run": None if run is None else {name: run[name] for name in _OWN}}


def for_process(saved: dict[str, Any], rank: int, world_size: int, sizes: tuple[int | None, int | None]) -> Any:
    """A checkpoint as a process takes it, and in what the run will differ from the one that was saved.

    Args:
        saved: The content, as the main process wrote it.
        rank: Of this process.
        world_size: How many there are now.
        sizes: Samples to a batch of all processes, when it was saved and now; None where it is not known.
    """
    processes = saved.get("processes") or [None]
    if len(processes) == world_size:
        own = processes[rank]
        if own is None:
            return saved, []
        run = saved["run"]
        return {**saved, "random": own["random"], "run": None if run is None else {**run, **own["run"]}}, []
    changed = [
        f"it was saved by {len(processes)} process{'es' if len(processes) > 1 else ''} and goes on with {world_size}, "
        "which draw other random numbers, as for dropout and augmentation"
    ]
    if saved["run"] is None:
        return saved, changed
    run = dict(saved["run"])
    for name in ("feed", "validation"):
        if run[name] is not None:  # each process had another batch
            run[name] = {**run[name], "last": None}
    before, now = sizes
    if before != now:
        changed.append(
            f"a step takes {now} samples, and took {before}: the schedule goes on at its step, made for the other "
            "number of them, and the epoch at the last whole step before its place"
        )
        run = _at_same_sample(run, before, now)
    return {**saved, "run": run}, changed


def _at_same_sample(run: dict[str, Any], before: int | None, now: int | None) -> dict[str, Any]:
    """The place in the data for batches of another size: that of the last step that was taken whole."""
    feed, meter, settings = run["feed"], run["meter"], run["fingerprint"]
    if feed["start"] is None:
        return run
    fixed = settings.get("accumulate")  # a text where it changes; a file without accumulations is refused then, later
    each = [(1, fixed if type(fixed) is int else 1)]
    accumulate = accumulate_in(settings.get("accumulations", each), run["epoch"])
    # An epoch may go on in a pass of an earlier one; if it has begun another since, the place is counted from there.
    earlier = max(feed["batches"] - (0 if meter is None else meter["count"]) * accumulate, 0)
    if before is None or now is None:
        earlier = steps = 0
    else:
        steps = (feed["batches"] - earlier) * before // (now * accumulate)
        earlier = earlier * before // now
    feed = {**feed, "batches": earlier + steps * accumulate}
    return {**run, "feed": feed, "meter": None if meter is None else {**meter, "count": steps}}
