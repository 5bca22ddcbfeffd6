"""`python -m pabench.stub`."""

import sys

from pabench.errors import PabenchError
from pabench.stub.command import main

if __name__ == "__main__":
    try:
        main()
    except PabenchError as error:
        print(f"pabench stub: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
