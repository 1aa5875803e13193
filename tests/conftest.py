from __future__ import annotations

import signal

# A shell that starts the tests in the background has interrupts ignored, here and in every process that tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)
