"""Ray Serve's question, which replica, answered for prefixes. Runs in Ray's HTTP proxy."""

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

from app.cluster.sessions import ranked


class PrefixRouter(RequestRouter):
    """The replica that a session belongs to, while it has a seat; else the one with least to do."""

    def initialize_state(self, *, seats: int) -> None:
        self._seats = seats

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """Ranks: of the first that has one that takes the request, Ray takes the least loaded."""
        if pending_request is None or not candidate_replicas:
            return [candidate_replicas]
        pending_request.routing_context.should_backoff = True  # else Ray asks without a pause
        session = pending_request.metadata.session_id
        if not session:
            return [candidate_replicas]
        replicas = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        home = replicas[ranked(session, replicas)[0]]
        if (self.replica_queue_len_cache.get(home.replica_id) or 0) >= self._seats:
            return [candidate_replicas]
        return [[home], candidate_replicas]
