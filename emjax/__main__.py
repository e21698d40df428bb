"""emjax <verb>: the same as python -m emjax.<verb>; `train` is emjax.main."""

import importlib
import sys

from emjax import cli

VERBS = {"train": "emjax.main"} | {
    verb: f"emjax.{verb}" for verb in ("sweep", "predict", "report", "convert", "doctor")
}


def main():
    verb = sys.argv[1] if len(sys.argv) > 1 else ""
    if verb not in VERBS:
        print(f"usage: emjax {{{','.join(VERBS)}}} ...", file=sys.stderr)
        sys.exit(2)
    module = importlib.import_module(VERBS[verb])
    cli.run(module.main, sys.argv[2:])


if __name__ == "__main__":
    main()
