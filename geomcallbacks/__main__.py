"""`python -m geomcallbacks`, which `accelerate launch -m geomcallbacks` takes too."""

import sys

from geomcallbacks.cli import main

sys.exit(main())
