"""The ``pararealize`` command: read the arguments, make one library call, print."""
