"""Bytes to messages and back: the bodies of protocol version 1, and its limits."""
