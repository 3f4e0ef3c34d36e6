"""Results: how often each system solves a problem, with intervals; tables, reports and the paper's claims."""
