"""Print the reference of the configuration: `make manual` writes what it prints.

    python -m mlsdm.manual markdown    > docs/configuration.md
    python -m mlsdm.manual development > config/default.yaml
    python -m mlsdm.manual production  > config/production-ready.yaml

`core.settings_manual` renders it. This program is separate because it may import modules and `core` may not.
"""

import sys
from collections.abc import Sequence

from app.lifecycle.loader import BUILT_IN, load_modules, sections_of
from core import settings_manual
from core.startup import Sections


def built_in_sections() -> Sections:
    """Return the sections of the modules that this package brings."""
    return {
        name: section for name, section in sections_of(load_modules(tuple(BUILT_IN))).items() if section is not None
    }


def main(arguments: Sequence[str], sections: Sections) -> int:
    """Print what `arguments` ask for, with the settings of the modules in `sections`; return the exit status."""
    match [*arguments]:
        case ["markdown"]:
            sys.stdout.write(settings_manual.markdown(sections))
        case ["development" | "production" as environment]:
            sys.stdout.write(settings_manual.yaml_file(environment, sections))
        case _:
            sys.stderr.write("usage: python -m mlsdm.manual markdown | development | production\n")
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], built_in_sections()))
