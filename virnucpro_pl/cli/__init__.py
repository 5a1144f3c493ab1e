"""The command line: which command, with which options, and what is wrong with them."""
