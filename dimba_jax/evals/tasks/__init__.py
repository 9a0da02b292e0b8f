"""The tasks of the evaluate command: each checks its flags and makes one library call of them."""
