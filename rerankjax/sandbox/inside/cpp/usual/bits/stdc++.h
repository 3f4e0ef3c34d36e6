// Replaces the real header in programs that include ../headers.h.
