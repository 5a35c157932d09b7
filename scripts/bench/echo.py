"""The transport's own limit in Python: a bare ROUTER, as one writes it with pyzmq, that sends every body back.

python -m scripts.bench.echo
"""

import argparse

import zmq


def echo(socket: zmq.Socket[bytes]) -> None:
    """Send back what comes, for ever: all that has arrived, without asking in between whether it has."""
    recv, send, more = socket.recv, socket.send, zmq.SNDMORE
    while True:
        peer, body = recv(), recv()
        send(peer, more)
        send(body)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--bind", default="tcp://127.0.0.1:*")
    args = parser.parse_args()
    socket = zmq.Context().socket(zmq.ROUTER)
    socket.sndhwm = socket.rcvhwm = 0
    socket.bind(args.bind)
    print("ready", socket.getsockopt_string(zmq.LAST_ENDPOINT), flush=True)
    echo(socket)


if __name__ == "__main__":
    main()
