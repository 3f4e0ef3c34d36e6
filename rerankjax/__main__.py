"""`python -m rerankjax`: the same as the command `rerankjax`."""

import sys

from rerankjax.cli import main

sys.exit(main())
