"""The command line tools: ``odam-demo`` and the others, and ``tools/`` of the checkout."""
