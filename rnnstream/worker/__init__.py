"""The worker: a core that turns request bodies into reply bodies, and the loop around a ROUTER socket."""
