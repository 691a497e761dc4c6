"""The command line: parse, call one function of the Python interface, print. Nothing here that a notebook could not reach."""
