"""Public data sets as site folders."""
