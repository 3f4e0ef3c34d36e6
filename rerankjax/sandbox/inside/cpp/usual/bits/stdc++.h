// Stands in for the real one where headers.h beside this directory has been included.
