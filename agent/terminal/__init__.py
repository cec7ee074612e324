"""The `evoke` command and its output on a terminal."""
