"""The command line: ``pofx COMMAND``, a command of ``commands.COMMANDS``.

Each is one function of ``commands/``; a dataclass has its options, parsed by tyro, and their help. Results go to
standard output (one JSON object with ``--json``), progress and notes to standard error. Exit codes: 0 done, 2 usage,
3 data, 4 not supported, 5 run folder, 6 training, 7 incomparable, 130 interrupted (143 by SIGTERM, 129 by SIGHUP).
"""

from __future__ import annotations

import atexit
import gc
import sys

from pofx import commands
from pofx.commands import COMMANDS

GARBAGE = 20_000  # new objects between two collections: importing torch makes 300,000 that all stay

USAGE = """usage: pofx COMMAND ... [--help]

Model p(x), the probability of data, in every way the field knows, behind one
honest contract.

{commands}

examples:
  pofx data wine.csv                       what is in the file, as pofx reads it
  pofx compare wine.csv --seconds 30       which family to take
  pofx fit wine.csv nsf --out runs/wine    fit one family
  pofx log-prob runs/wine new.csv --out log-probs.csv
  pofx sample runs/wine 1000 --out synthetic.csv
  pofx fit book.txt gpt --out runs/book
  pofx sample runs/book 1 --prompt 'Once upon'

'pofx COMMAND --help' tells a command's options, and
'pofx fit SOURCE FAMILY --help' a family's own."""


def main(argv: list[str] | None = None) -> int:
    """Run one command, by default the one that this process was started for; the exit code."""
    if argv is None:
        gc.set_threshold(GARBAGE)
        atexit.register(gc.freeze)  # else Python looks through all of torch for garbage: a quarter of a second
    try:
        return _run(list(sys.argv[1:] if argv is None else argv))
    except BrokenPipeError:  # the reader of our output (head, less) has seen enough
        sys.stderr.close()
        return 0


def _run(args: list[str]) -> int:
    # Light answers first: neither tyro nor torch is imported for them.
    if not args or args[0] in ("-h", "--help", "help"):
        print(USAGE.format(commands="\n".join(f"  {name:10} {text}" for name, (*_, text) in COMMANDS.items())))
        return 0
    if args[0] in ("-V", "--version"):
        import pofx

        print(f"pofx {pofx.__version__}")
        return 0
    if args[0] not in COMMANDS:
        from pofx.core.spelling import meant

        hint = meant(args[0], COMMANDS, f"Commands: {', '.join(COMMANDS)}.")
        print(f"pofx: there is no command {args[0]!r}. {hint}", file=sys.stderr)
        return 2
    from pofx.commands.terminal import Terminal
    from pofx.core.errors import PofxError, Stopped

    try:
        return commands.run(args[0], args[1:]) or 0
    except PofxError as error:
        Terminal(stderr=True).print(f"pofx: {type(error).__name__}: {commands.elsewhere(str(error), args[0])}")
        return error.exit_code
    except Stopped as stopped:
        Terminal(stderr=True).print(f"pofx: {stopped}")
        return stopped.exit_code
    except KeyboardInterrupt:
        Terminal(stderr=True).print("pofx: interrupted. An unfinished run goes on with 'pofx resume RUN'.")
        return 130


if __name__ == "__main__":
    sys.exit(main())
