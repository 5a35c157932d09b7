"""`python -m rnnstream`: the command line."""

from rnnstream.cli import main

if __name__ == "__main__":
    main(prog_name="rnnstream")
