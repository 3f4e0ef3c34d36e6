"""Tables: which arm chose how well, with intervals."""
