"""The cases are read by type checkers, and run by the test beside them. pytest leaves them alone."""

collect_ignore = ["cases"]
