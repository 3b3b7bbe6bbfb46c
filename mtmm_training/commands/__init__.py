"""The command line `mtmm`."""
