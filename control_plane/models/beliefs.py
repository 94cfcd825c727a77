"""What one worker believes loaded, what it is using, and what it has yet to tell Redis. In memory, no I/O.

The hot path of a prediction is here: `try_use` and `done` only count. A belief follows the snapshots of Redis; a
batch of counts leaves with `take_batch` and is kept until Redis has confirmed it.
"""

import time

from control_plane.store.residency import FlushBatch, SlotState, Snapshot
from control_plane.telemetry.metrics import MODEL_CACHE_HITS, MODEL_CACHE_MISSES

COUNTED = ("hits", "misses", "evictions", "expirations")


class Belief:
    """One model: whether it is believed loaded, and this worker's use of it."""

    __slots__ = (
        "acknowledged", "draining", "fence", "hits", "in_flight", "last_used", "leased", "lost_fence", "model_type",
        "owed", "ready", "ready_since", "told_hits", "told_used", "told_uses", "uses",
    )  # fmt: skip

    def __init__(self, model_type: str) -> None:
        self.model_type = model_type
        self.ready = False
        self.ready_since = 0.0
        self.in_flight = 0
        self.last_used = 0.0
        self.told_used = 0.0
        self.uses = 0
        self.told_uses = 0
        self.hits = 0
        self.told_hits = 0
        self.owed = 0
        """Uses that were counted as misses already, since they waited for the load."""
        self.fence = 0
        self.lost_fence = -1
        """Triton lost the load of this fence: a snapshot that still calls it ready is wrong."""
        self.leased = False
        self.draining = 0
        """Fence of the unload that waits for this worker to stop using the model; 0 for none."""
        self.acknowledged = False


class Beliefs:
    """All models of one worker.

    Args:
        enable_metrics: Count hits and misses in Prometheus too.
    """

    def __init__(self, *, enable_metrics: bool = True) -> None:
        self._models: dict[str, Belief] = {}
        self._enable_metrics = enable_metrics
        self._counts = dict.fromkeys(COUNTED, 0)
        self._told = dict.fromkeys(COUNTED, 0)
        self._pending: FlushBatch | None = None
        self.batch = 0
        self.generation = -1
        self.epoch = ""
        self.dirty = False
        """Whether there are counts to flush."""
        self.urgent = False
        """Whether someone waits for this worker to stop using a model, and it has."""

    def try_use(self, key: str) -> bool:
        """Starts a use, where the model is believed loaded."""
        belief = self._models.get(key)
        if belief is None or not belief.ready:
            return False
        belief.in_flight += 1
        belief.last_used = time.time()
        belief.uses += 1
        if belief.owed:
            belief.owed -= 1
        else:
            belief.hits += 1
        self.dirty = True
        return True

    def done(self, key: str) -> None:
        """Ends a use."""
        belief = self._models[key]
        belief.in_flight -= 1
        self.dirty = True
        if belief.draining and belief.in_flight == 0:
            self.urgent = True

    def hold(self, key: str, model_type: str) -> None:
        """Keeps the model in use without counting a use; `done` ends it."""
        self._of(key, model_type).in_flight += 1
        self.dirty = True

    def miss(self, model_type: str) -> None:
        """Counts a prediction that has to wait for a load."""
        self._counts["misses"] += 1
        self.dirty = True
        if self._enable_metrics:
            MODEL_CACHE_MISSES.labels(model_type).inc()

    def owe(self, key: str) -> None:
        """The next use was counted as a miss already."""
        belief = self._models.get(key)
        if belief is not None and belief.ready:
            belief.owed += 1

    def count_told(self, name: str) -> None:
        """Counts an eviction or expiration that a script has counted in Redis already."""
        self._counts[name] += 1
        self._told[name] += 1

    def lose(self, key: str) -> None:
        """Triton does not hold the model, whatever Redis says of the load that we know of."""
        belief = self._models.get(key)
        if belief is not None:
            belief.lost_fence = belief.fence
            self._set(belief, ready=False)

    def is_lost(self, key: str, fence: int) -> bool:
        """Whether Triton said that it doesn't hold the model, since the load of this fence."""
        belief = self._models.get(key)
        return belief is not None and belief.lost_fence >= fence

    def believe(self, key: str, model_type: str, fence: int) -> None:
        """Triton holds the model: seen with our own eyes."""
        belief = self._of(key, model_type)
        belief.fence = max(belief.fence, fence)
        belief.lost_fence = -1
        self._set(belief, ready=True)

    def is_ready(self, key: str) -> bool:
        """Whether the model is believed loaded."""
        belief = self._models.get(key)
        return belief is not None and belief.ready

    def ready_models(self) -> dict[str, float]:
        """Models believed loaded, with this worker's last use (wall seconds)."""
        return {
            key: max(belief.last_used, belief.ready_since)
            for key, belief in self._models.items()
            if belief.ready
        }

    def in_flight(self, key: str) -> int:
        """Uses that have not ended."""
        belief = self._models.get(key)
        return belief.in_flight if belief is not None else 0

    def apply(self, snapshot: Snapshot) -> None:
        """Follows Redis. An older snapshot than the last one is passed over."""
        if snapshot.epoch == self.epoch and snapshot.generation < self.generation:
            return
        self.epoch = snapshot.epoch
        self.generation = snapshot.generation
        for key in snapshot.slots.keys() - self._models.keys():
            self._models[key] = Belief(key.partition("-")[0])
        for key, belief in self._models.items():
            slot = snapshot.slots.get(key)
            if slot is None or slot.state is not SlotState.UNLOADING:
                belief.draining = 0
                belief.acknowledged = False
            if slot is None:
                self._set(belief, ready=False)
                continue
            belief.fence = slot.fence
            if slot.state is SlotState.UNLOADING:
                if belief.draining != slot.fence:
                    belief.draining = slot.fence
                    belief.acknowledged = False
                if belief.in_flight == 0 and not belief.acknowledged:
                    self.urgent = True
            self._set(belief, ready=slot.state is SlotState.READY and slot.fence > belief.lost_fence)

    @property
    def has_pending(self) -> bool:
        """Whether a batch waits for its confirmation."""
        return self._pending is not None

    def take_batch(self) -> FlushBatch:
        """What Redis is to be told now.

        Counts are those of the pending batch, the same until `confirm` or `forget_confirmed`; all else is the present.
        """
        self.dirty = False
        self.urgent = False
        if self._pending is None:
            self._pending = self._next_counts()
            self.batch += 1
        return FlushBatch(
            touched=tuple(
                (key, repr(belief.last_used))
                for key, belief in self._models.items()
                if belief.last_used > belief.told_used
            ),
            uses=self._pending.uses,
            stats=self._pending.stats,
            leased=tuple(key for key, belief in self._models.items() if belief.in_flight > 0),
            released=tuple(
                key for key, belief in self._models.items() if belief.leased and belief.in_flight == 0
            ),
            drained=tuple(
                (key, str(belief.draining))
                for key, belief in self._models.items()
                if belief.draining and belief.in_flight == 0 and not belief.acknowledged
            ),
        )

    def confirm(self, batch: FlushBatch, *, counted: bool) -> None:
        """Redis has taken the batch; `counted` unless it lost its memory, and the counts have to wait."""
        if counted:
            self._pending = None
        for key, used in batch.touched:
            self._models[key].told_used = float(used)
        for key in batch.leased:
            self._models[key].leased = True
        for key in batch.released:
            # A use may have begun meanwhile: the next batch leases it again.
            self._models[key].leased = False
        for key, fence in batch.drained:
            belief = self._models[key]
            if str(belief.draining) == fence:
                belief.acknowledged = True

    def note_lease(self, key: str) -> None:
        """A script has leased the model for us, so a release is due."""
        self._models[key].leased = True
        self.dirty = True

    def forget_confirmed(self) -> None:
        """Redis has lost its memory: everything that was ever counted here is told again."""
        self._pending = None
        self._told = dict.fromkeys(COUNTED, 0)
        for belief in self._models.values():
            belief.told_uses = 0
            belief.told_used = 0.0
            belief.acknowledged = False
        self.dirty = True

    def _next_counts(self) -> FlushBatch:
        uses = []
        for key, belief in self._models.items():
            hits = belief.hits - belief.told_hits
            if hits:
                belief.told_hits = belief.hits
                self._counts["hits"] += hits
                if self._enable_metrics:
                    MODEL_CACHE_HITS.labels(belief.model_type).inc(hits)
            count = belief.uses - belief.told_uses
            if count:
                belief.told_uses = belief.uses
                uses.append((key, count))
        stats = {
            name: count - self._told[name] for name, count in self._counts.items() if count > self._told[name]
        }
        self._told = dict(self._counts)
        return FlushBatch(uses=tuple(uses), stats=stats)

    def _of(self, key: str, model_type: str) -> Belief:
        belief = self._models.get(key)
        if belief is None:
            belief = self._models[key] = Belief(model_type)
        return belief

    def _set(self, belief: Belief, *, ready: bool) -> None:
        if ready is belief.ready:
            return
        belief.ready = ready
        belief.owed = 0
        if ready:
            belief.ready_since = time.time()
