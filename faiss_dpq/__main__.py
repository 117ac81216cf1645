"""``python -m faiss_dpq`` is the command ``faiss-dpq``."""

from .cli import main

raise SystemExit(main())
