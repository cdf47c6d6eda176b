"""`replctl`, the operator's command: one file per noun, click and the standard library at start.

It talks to the daemon over its control socket and never imports the daemon's own packages. Data
goes to stdout, words and progress to stderr, and every failure has the form of `repl/errors.py`.
"""
