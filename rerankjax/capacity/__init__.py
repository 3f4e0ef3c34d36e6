"""Whether a run fits the devices, and how fast it can be: ahead-of-time compilation and rooflines."""
