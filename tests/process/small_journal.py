"""`rnnstream`, but that its workers' journals hold so many tokens; with 0, every write saves the sessions that it is about.

python -m tests.process.small_journal 0 serve ...
"""

import functools
import importlib
import sys

from rnnstream.cli import main
from rnnstream.worker.worker import Worker

if __name__ == "__main__":
    tokens = int(sys.argv.pop(1))
    importlib.import_module("rnnstream.cli.serve").Worker = functools.partial(Worker, journal_tokens=tokens)
    main()
