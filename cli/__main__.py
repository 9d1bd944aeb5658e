"""``python -m pararealize_cli``: the ``pararealize`` command."""

from .main import main

main()
