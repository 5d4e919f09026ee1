"""VIReID-lite: visible-infrared person re-identification, how it breaks, and how to tell whether an attack is real.

Which file answers which question, from the ground up; an import only ever points down this list:

- errors, files, machine: the one error, files that are whole or not there, the device and its precision
- data, frequency: who is on which image, batches, the rendered people, the licensed layouts; amplitude and phase
- losses, metrics: what is minimised; what a ranking scores, and what chance would
- models, training, victims: the networks, the one loop, recipes trained once and found again
- behaviour: what each part computes on a small problem, and so which run cards are still this code's
- attacks: CMPS, its switches and rivals, single images, the feature-level attack in its two readings
- study: a run, its card, campaigns and grids of runs, their tables
- chapters, cli: what a notebook imports beside these; the command line
"""

import signal
import sys

if sys.argv[0].endswith(("vireid-lite", "vireid-lite.exe")):  # a command that is interrupted while it loads just ends
    signal.signal(signal.SIGINT, signal.SIG_DFL)
