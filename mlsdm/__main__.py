"""`python -m mlsdm`: the command without its installed script."""

import sys

from mlsdm.command import main

sys.exit(main())
