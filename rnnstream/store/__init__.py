"""Where sessions outlive the process. To a store, states, producers and journal entries are bytes."""
