"""Find candidates: channels, the signals and sources they read, titles grounded to catalog ids."""
