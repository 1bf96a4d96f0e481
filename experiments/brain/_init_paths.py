"""Imported first by scripts that are run by their path: finds ``experiments``, and our packages where not installed."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path += [str(ROOT), str(ROOT / "python")]
