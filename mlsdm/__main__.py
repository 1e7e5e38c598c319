"""`python -m mlsdm`: the command, where its script is not on the path."""

import sys

from mlsdm.command import main

sys.exit(main())
