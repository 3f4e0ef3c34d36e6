"""Problems: what is asked, and the tests that decide. Imports no JAX."""
